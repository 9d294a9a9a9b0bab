//! Turns a corpus into token ids with labels, in parquet files that a trainer reads.
//!
//! Every row goes through the one prompt renderer of `model`. A row longer than the limit is left out whole and counted,
//! or stops the stage: nothing is ever cut. A row of the holdout stops it too.

mod encode;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use model::config::Config;
use model::prompt;
use model::tokenizer::Tokenizer;
use record::corpus::{CORPUS_SCHEMA_VERSION, CorpusManifest, CorpusRow};
use record::tokens::{SplitTokens, TOKENS_SCHEMA_VERSION, TokensManifest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Context, Outcome, PortSpec, Result, Stage, StageError, files};

pub use encode::{Row, Split};
pub use table::{read, write};

/// The stage program.
#[derive(Debug)]
pub struct TokenizeToParquet;

/// What a row becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The prompt and the tests; loss on the tests and the token that ends them.
    Chat,
    /// The tokens of `chat`, loss on every one: teaches the markup too.
    Transcript,
    /// Context, function and tests as a source file; loss on every token.
    Text,
}

/// What happens to a row with more tokens than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverLong {
    /// It is left out whole, and counted.
    Drop,
    /// The stage fails and names it.
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// `chat` (fine-tuning), `transcript` or `text` (training a model from nothing).
    pub content: Content,
    /// The most tokens of a row, prompt and answer together.
    pub max_length: u64,
    /// `drop` leaves longer rows out and counts them, `error` fails.
    pub over_long: OverLong,
}

impl Default for Params {
    fn default() -> Self {
        Self { content: Content::Chat, max_length: 1024, over_long: OverLong::Drop }
    }
}

impl Stage for TokenizeToParquet {
    type Params = Params;
    const NAME: &'static str = "tokenize-to-parquet";
    const INPUTS: &'static [PortSpec] = &[
        PortSpec::required("model", "the model whose tokenizer is used"),
        PortSpec::required("corpus", "train.jsonl, validation.jsonl and manifest.json"),
    ];
    const OUTPUTS: &'static [PortSpec] =
        &[PortSpec::required("tokens", "train.parquet, validation.parquet and metadata.json")];

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        let model_dir = context.input("model")?;
        let config = Config::from_dir(model_dir).map_err(model_error)?;
        check_length(params.max_length, &config)?;
        let tokenizer = Tokenizer::from_dir(model_dir).map_err(model_error)?;
        if tokenizer.n_ids() as usize > config.vocab_size {
            return Err(StageError::failed(format!(
                "has {} ids, and the model's vocabulary {} rows",
                tokenizer.n_ids(),
                config.vocab_size
            ))
            .at(model_dir.join("tokenizer.json").display().to_string())
            .next("take the tokenizer that belongs to the model"));
        }
        let corpus = Corpus::open(context.input("corpus")?)?;
        let out = context.output_dir("tokens")?;
        let mut manifest = TokensManifest {
            schema_version: TOKENS_SCHEMA_VERSION,
            content: name_of(&params.content)?,
            tokenizer_sha256: tokenizer.sha256().to_owned(),
            template_sha256: prompt::template_sha256().to_owned(),
            max_length: params.max_length,
            over_long: name_of(&params.over_long)?,
            splits: Default::default(),
            holdout_sha256: corpus.holdout.iter().cloned().collect(),
        };
        let mut ids = BTreeSet::new();
        for name in ["train", "validation"] {
            let rows = corpus.rows(name, &mut ids)?;
            let split = encode::split(&corpus.file(name), &rows, &tokenizer, &params, context)?;
            report(name, &split, context)?;
            if name == "train" && split.rows.is_empty() {
                let limit = params.max_length;
                return Err(StageError::failed(format!(
                    "every row has more than {limit} tokens: nothing is left to train on"
                ))
                .at(corpus.file(name).display().to_string())
                .next("raise max_length"));
            }
            table::write(&out.join(format!("{name}.parquet")), &split.rows, &manifest)?;
            manifest.splits.insert(name.to_owned(), split.counts);
        }
        files::write_json(&out.join("metadata.json"), &manifest)?;
        Ok(Outcome::Done)
    }
}

fn check_length(max_length: u64, config: &Config) -> Result<()> {
    let positions = config.max_position_embeddings as u64;
    if (2..=positions).contains(&max_length) {
        return Ok(());
    }
    Err(StageError::usage(format!("is {max_length}, and the model has {positions} positions"))
        .at("tokenize-to-parquet parameter max_length")
        .next(format!("choose a number from 2 to {positions}")))
}

/// A variant as it is written in a file.
fn name_of<T: Serialize>(variant: &T) -> Result<String> {
    let value = serde_json::to_value(variant).map_err(|e| StageError::internal(e.to_string()))?;
    Ok(value.as_str().unwrap_or_default().to_owned())
}

fn report(name: &str, split: &Split, context: &Context) -> Result<()> {
    let SplitTokens { rows_read, rows, over_long, tokens, label_tokens, longest } = &split.counts;
    context.log(&format!(
        "{name}: {rows} of {rows_read} rows, {tokens} tokens, {label_tokens} of them labels, the longest row {longest}"
    ));
    if !over_long.is_empty() {
        context.warn(&format!("{name}: {} rows are over-long and left out", over_long.len()));
    }
    context.metric(&format!("{name}_rows"), *rows as f64, "rows", None);
    context.metric(&format!("{name}_over_long"), over_long.len() as f64, "rows", None);
    Ok(())
}

/// A corpus folder.
struct Corpus {
    dir: PathBuf,
    holdout: BTreeSet<String>,
}

impl Corpus {
    fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("manifest.json");
        let manifest: CorpusManifest = files::read_versioned(&path, CORPUS_SCHEMA_VERSION)?;
        Ok(Self { dir: dir.to_owned(), holdout: manifest.holdout_sha256.into_iter().collect() })
    }

    fn file(&self, split: &str) -> PathBuf {
        self.dir.join(format!("{split}.jsonl"))
    }

    /// The rows of a split; none of the holdout, none without tests, no id twice.
    fn rows(&self, split: &str, ids: &mut BTreeSet<String>) -> Result<Vec<CorpusRow>> {
        let path = self.file(split);
        let rows: Vec<CorpusRow> = files::read_jsonl(&path)?;
        if rows.is_empty() && split == "train" {
            return Err(StageError::failed("the corpus has no rows to train on")
                .at(path.display().to_string())
                .next("see manifest.json beside it for what build-corpus dropped, and why"));
        }
        for row in &rows {
            let wrong = |what: String, next: &str| {
                Err(StageError::failed(what).at(format!("{}, row `{}`", path.display(), row.id)).next(next))
            };
            if !ids.insert(row.id.clone()) {
                return wrong("its id occurs twice".to_owned(), "build the corpus again");
            }
            let own = stage_kit::digest::sha256_hex(&row.function_code);
            if self.holdout.contains(&row.metadata.sha256) || self.holdout.contains(&own) {
                return wrong(
                    format!("its function is one of the holdout ({own})"),
                    "build the corpus again: nothing that evaluates the model may train it",
                );
            }
            if prompt::answer(row).is_empty() {
                return wrong("it has no tests to learn".to_owned(), "build the corpus again");
            }
        }
        Ok(rows)
    }
}

fn model_error(error: model::ModelError) -> StageError {
    StageError::failed(error.message()).at(error.place()).next(error.next_step())
}
