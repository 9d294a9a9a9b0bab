//! Puts a base model into a folder: from a hub, from a folder, made from a seed, or the embedded tiny one.
//!
//! Whatever the source, the result is checked as a whole (configuration, every tensor's shape, tokenizer) before it takes
//! its name, and `manifest.json` says what every file hashes to.

mod embedded;
pub mod folder;
pub mod hub;
mod source;

use std::path::Path;

use model::ModelError;
use model::config::{Config, GenerationConfig};
use model::manifest::{self, Origin};
use model::tokenizer::Tokenizer;
use model::weights::Weights;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Alias, Context, Outcome, PortSpec, Result, Stage, StageError, Target};

pub use source::Source;

/// The stage program.
#[derive(Debug)]
pub struct FetchModel;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// A hub id (`owner/name`), `file:DIR`, `random:NAME` (a named shape with seeded weights), `embedded:tiny`, or `input` for the input `files`.
    pub source: String,
    /// The hub's branch, tag or commit.
    pub revision: String,
    /// How often a request to the hub is tried before giving up.
    pub attempts: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            source: "Qwen/Qwen2.5-Coder-0.5B-Instruct".to_owned(),
            revision: "main".to_owned(),
            attempts: 6,
        }
    }
}

impl Stage for FetchModel {
    type Params = Params;
    const NAME: &'static str = "fetch-model";
    const INPUTS: &'static [PortSpec] = &[PortSpec::optional(
        "files",
        "a model folder to take, for source = \"input\"; its content enters the key",
    )];
    const OUTPUTS: &'static [PortSpec] =
        &[PortSpec::required("model", "config, tokenizer, weights and manifest.json of a Qwen2 model")];
    const ALIASES: &'static [Alias] = &[
        Alias { option: "source", target: Target::Param("source") },
        Alias { option: "revision", target: Target::Param("revision") },
        Alias { option: "out", target: Target::Output("model") },
    ];

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        let source = Source::parse(&params.source)?;
        let dir = context.output_dir("model")?;
        let origin = match &source {
            Source::Hub { id } => {
                let hub = hub::Hub::new(hub::Settings::from_env(params.attempts)?)?;
                let fetched = hub.fetch(id, &params.revision, context)?;
                folder::take(&fetched.dir, &dir, context)?;
                Origin { source: params.source, revision: Some(fetched.commit), license: fetched.license }
            }
            Source::File { dir: from } => {
                folder::take(from, &dir, context)?;
                Origin { source: params.source, revision: None, license: folder::license(from) }
            }
            Source::Input => {
                let from = context.input("files")?;
                folder::take(from, &dir, context)?;
                Origin { source: params.source, revision: None, license: folder::license(from) }
            }
            Source::Random { config, dtype } => {
                context.log(&format!(
                    "making {} parameters from the seed {}",
                    model::names::n_parameters(config),
                    context.seed()
                ));
                embedded::write(config, *dtype, context.seed(), &dir)?;
                Origin { source: params.source, revision: None, license: Some(embedded::LICENSE.to_owned()) }
            }
        };
        context.check_cancelled()?;
        check(&dir)?;
        let manifest = manifest::describe(&dir, origin).map_err(model_error)?;
        manifest::save(&dir, &manifest).map_err(model_error)?;
        context.log(&format!("{} tensors, {} parameters", manifest.n_tensors, manifest.n_parameters));
        Ok(Outcome::Done)
    }
}

/// Reads everything once, as the stages that follow will.
fn check(dir: &Path) -> Result<()> {
    let config = Config::from_dir(dir).map_err(model_error)?;
    let weights = Weights::load(dir, &config).map_err(model_error)?;
    drop(weights);
    let tokenizer = Tokenizer::from_dir(dir).map_err(model_error)?;
    let place = |file: &str| dir.join(file).display().to_string();
    if tokenizer.n_ids() as usize > config.vocab_size {
        let (ids, rows) = (tokenizer.n_ids(), config.vocab_size);
        return Err(StageError::failed(format!(
            "has ids up to {}, and the model's vocabulary has {rows} rows",
            ids - 1
        ))
        .at(place("tokenizer.json"))
        .next("take the tokenizer that belongs to the model"));
    }
    let generation = GenerationConfig::from_dir(dir).map_err(model_error)?;
    match generation.eos_token_ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => Err(StageError::failed(format!(
            "the stop token {id} is not in the vocabulary of {}",
            config.vocab_size
        ))
        .at(place("generation_config.json"))
        .next("mend eos_token_id")),
        None => Ok(()),
    }
}

pub(crate) fn model_error(error: ModelError) -> StageError {
    StageError::failed(error.message()).at(error.place()).next(error.next_step())
}
