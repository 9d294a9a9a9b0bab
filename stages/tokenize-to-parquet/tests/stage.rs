//! The whole stage on small corpora: what it writes, what it leaves out, what it refuses.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use model::prompt;
use model::tokenizer::Tokenizer;
use parquet::file::reader::{FileReader, SerializedFileReader};
use record::corpus::CorpusRow;
use record::tokens::TokensManifest;
use serde_json::{Value, json};
use stage_kit::{ContextBuilder, ExitCode, StageError, files};
use tempfile::TempDir;
use tokenize_to_parquet::{Content, OverLong, Params, Row, TokenizeToParquet};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fetch-model/embedded/tiny/tokenizer.json");

fn row(id: &str, function: &str, tests: &str) -> Value {
    json!({
        "id": id, "function_code": function, "unit_tests": tests, "property_tests": null,
        "context": {"imports": ["use std::fmt;"], "items": ["struct E;"]},
        "metadata": {
            "crate": "c", "version": "1.0.0", "path": "src/lib.rs", "item": "f", "lines": [1, 2], "license": "MIT",
            "complexity": 1, "has_generics": false, "has_lifetimes": false, "is_async": false, "is_unsafe": false,
            "uses_macros": false, "returns_result": false, "source_class": "unit", "oracle": "human",
            "link_tier": "name", "mutants_killed": 0, "sha256": stage_kit::digest::sha256_hex(function),
        },
    })
}

/// A model's folder without weights, and a corpus.
struct Case {
    root: TempDir,
}

impl Case {
    fn new(train: &[Value], validation: &[Value]) -> Self {
        let case = Self { root: tempfile::tempdir().unwrap() };
        for dir in ["model", "corpus"] {
            fs::create_dir(case.path(dir)).unwrap();
        }
        fs::copy(TOKENIZER, case.path("model/tokenizer.json")).unwrap();
        let config = model::init::architecture("tiny").unwrap();
        fs::write(case.path("model/config.json"), config.to_json(model::Dtype::F32)).unwrap();
        files::write_jsonl(&case.path("corpus/train.jsonl"), train).unwrap();
        files::write_jsonl(&case.path("corpus/validation.jsonl"), validation).unwrap();
        case.manifest(json!(["ab"]));
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn manifest(&self, holdout: Value) {
        let manifest = json!({
            "schema_version": 1, "sources": [], "counts": {}, "property_share": {}, "holdout_sha256": holdout,
            "funnel": {"functions_seen": 0, "pairs_linked": 0, "dropped": {}, "duplicates_exact": 0, "duplicates_near": 0, "kept": 0},
            "leakage": {"exact": 0, "normalized": 0, "ngram13": 0, "nearest": []}, "toolchain": "t", "shortfalls": [],
        });
        fs::write(self.path("corpus/manifest.json"), manifest.to_string()).unwrap();
    }

    fn run(&self, out: &str, params: Params) -> Result<PathBuf, StageError> {
        let context = ContextBuilder::new("tokenize-to-parquet", self.root.path())
            .input("model", self.path("model"))
            .input("corpus", self.path("corpus"))
            .output("tokens", self.path(out));
        context.run::<TokenizeToParquet>(params)?;
        Ok(self.path(out))
    }

    fn error(&self, params: Params) -> StageError {
        let error = self.run("refused", params).unwrap_err();
        assert!(!self.path("refused").exists() && !self.path("refused.partial").exists());
        error
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_dir(&self.path("model")).unwrap()
    }
}

fn rows(n: usize) -> Vec<Value> {
    let function = |i: usize| format!("fn f{i}(x: u32) -> u32 {{ x + {i} }}");
    (0..n)
        .map(|i| {
            row(
                &format!("r{i}"),
                &function(i),
                &format!("#[test]\nfn t() {{ assert_eq!(f{i}(1), {}); }}", i + 1),
            )
        })
        .collect()
}

fn read(dir: &Path, split: &str) -> Vec<Row> {
    tokenize_to_parquet::read(&dir.join(format!("{split}.parquet"))).unwrap()
}

fn metadata(dir: &Path) -> TokensManifest {
    files::read_versioned(&dir.join("metadata.json"), 1).unwrap()
}

#[test]
fn what_is_read_back_is_what_the_renderer_made() {
    let (train, validation) = (rows(3000), rows(3007).split_off(3000));
    let case = Case::new(&train, &validation);
    let dir = case.run("tokens", Params::default()).unwrap();
    let tokenizer = case.tokenizer();
    for (split, corpus) in [("train", &train), ("validation", &validation)] {
        let back = read(&dir, split);
        assert_eq!(back.len(), corpus.len());
        for (row, value) in back.iter().zip(corpus) {
            let source: CorpusRow = serde_json::from_value(value.clone()).unwrap();
            let expected = prompt::encode_training(&tokenizer, &source).unwrap();
            assert_eq!(
                (&row.input_ids, &row.labels),
                (&expected.input_ids, &expected.labels),
                "{}",
                source.id
            );
            assert_eq!((&row.id, &row.function_sha256), (&source.id, &source.metadata.sha256));
        }
    }
    let metadata = metadata(&dir);
    let counts = &metadata.splits["train"];
    assert_eq!((counts.rows_read, counts.rows, counts.over_long.len()), (3000, 3000, 0));
    let all = read(&dir, "train");
    assert_eq!(counts.tokens, all.iter().map(|r| r.input_ids.len() as u64).sum::<u64>());
    assert_eq!(
        counts.label_tokens,
        all.iter().flat_map(|r| &r.labels).filter(|l| **l != -100).count() as u64
    );
    assert_eq!(counts.longest, all.iter().map(|r| r.input_ids.len() as u64).max().unwrap());
    assert_eq!(metadata.tokenizer_sha256, tokenizer.sha256());
    assert_eq!(metadata.template_sha256, prompt::template_sha256());
}

#[test]
fn the_same_corpus_gives_the_same_bytes() {
    let case = Case::new(&rows(20), &rows(22)[20..]);
    let (a, b) = (case.run("a", Params::default()).unwrap(), case.run("b", Params::default()).unwrap());
    for name in ["train.parquet", "validation.parquet", "metadata.json"] {
        assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn the_parquet_file_carries_what_a_trainer_must_check() {
    let case = Case::new(&rows(2), &rows(3)[2..]);
    let dir = case.run("tokens", Params::default()).unwrap();
    let file = fs::File::open(dir.join("train.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let value = |key: &str| pairs.iter().find(|p| p.key == key).and_then(|p| p.value.clone()).unwrap();
    assert_eq!(value("tokenizer_sha256"), case.tokenizer().sha256());
    assert_eq!(value("template_sha256"), prompt::template_sha256());
    assert_eq!(
        (value("schema_version"), value("content"), value("max_length")),
        ("1".into(), "chat".into(), "1024".into())
    );
    assert_eq!(value("holdout_sha256"), r#"["ab"]"#);
}

#[test]
fn each_content_has_its_labels() {
    let case = Case::new(&rows(2), &[]);
    let tokenizer = case.tokenizer();
    let run = |content| {
        let dir = case.run(&format!("{content:?}"), Params { content, ..Params::default() }).unwrap();
        assert_eq!(metadata(&dir).content, format!("{content:?}").to_lowercase());
        read(&dir, "train").swap_remove(0)
    };
    let (chat, transcript, text) = (run(Content::Chat), run(Content::Transcript), run(Content::Text));
    assert_eq!(chat.input_ids, transcript.input_ids);
    let labelled = |row: &Row| row.labels.iter().filter(|l| **l != -100).count();
    assert!(labelled(&chat) > 5 && labelled(&chat) < chat.input_ids.len() / 2);
    assert_eq!(labelled(&transcript), transcript.input_ids.len());
    assert_eq!(labelled(&text), text.input_ids.len());
    let source = tokenizer.decode(&text.input_ids).unwrap();
    assert!(
        source.starts_with("use std::fmt;\n\nstruct E;\n\nfn f0") && source.ends_with("}\n<|endoftext|>"),
        "{source}"
    );
}

#[test]
fn over_long_rows_are_left_out_whole_and_named_or_stop_the_stage() {
    let mut train = rows(3);
    let long = "assert_eq!(f1(1), 2);\n".repeat(200);
    train[1]["unit_tests"] = json!(format!("#[test]\nfn t() {{\n{long}}}"));
    let case = Case::new(&train, &rows(4)[3..]);
    let dir = case.run("tokens", Params::default()).unwrap();
    let counts = &metadata(&dir).splits["train"];
    assert_eq!(
        (counts.rows_read, counts.rows, counts.over_long.as_slice()),
        (3, 2, ["r1".to_owned()].as_slice())
    );
    let kept: Vec<String> = read(&dir, "train").into_iter().map(|r| r.id).collect();
    assert_eq!(kept, ["r0", "r2"]);
    let error = case.error(Params { over_long: OverLong::Error, ..Params::default() });
    assert!(error.to_string().contains("`r1`") && error.to_string().contains("tokens"), "{error}");
}

#[test]
fn the_limit_itself_still_fits() {
    let case = Case::new(&rows(1), &[]);
    let longest = metadata(&case.run("a", Params::default()).unwrap()).splits["train"].longest;
    let at = |max_length| case.run(&format!("at-{max_length}"), Params { max_length, ..Params::default() });
    assert_eq!(metadata(&at(longest).unwrap()).splits["train"].rows, 1);
    let error = at(longest - 1).unwrap_err().to_string();
    assert!(error.contains("nothing is left") && error.contains("train.jsonl"), "{error}");
}

#[test]
fn a_row_of_the_holdout_stops_the_stage_in_either_split() {
    for (train, validation) in [(rows(2), vec![]), (rows(3).split_off(2), rows(2))] {
        let case = Case::new(&train, &validation);
        case.manifest(json!([stage_kit::digest::sha256_hex("fn f1(x: u32) -> u32 { x + 1 }")]));
        let error = case.error(Params::default());
        assert!(error.to_string().contains("`r1`") && error.to_string().contains("holdout"), "{error}");
    }
    let mut train = rows(2);
    train[1]["metadata"]["sha256"] = json!("00");
    let case = Case::new(&train, &[]);
    case.manifest(json!([stage_kit::digest::sha256_hex("fn f1(x: u32) -> u32 { x + 1 }")]));
    assert!(case.error(Params::default()).to_string().contains("holdout"), "the code itself is hashed");
}

#[test]
fn damaged_corpora_are_named_by_file_and_line() {
    let case = Case::new(&[], &[]);
    let error = case.error(Params::default());
    assert!(error.to_string().contains("train.jsonl") && error.to_string().contains("no rows"), "{error}");

    let case = Case::new(&rows(3), &[]);
    let path = case.path("corpus/train.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let third = text.lines().nth(2).unwrap();
    fs::write(&path, text.replace(third, &third[..third.len() / 2])).unwrap();
    assert!(case.error(Params::default()).to_string().contains("train.jsonl:3"));
    let mut bytes = text.clone().into_bytes();
    bytes[20] = 0xff;
    fs::write(&path, bytes).unwrap();
    assert!(case.error(Params::default()).place().unwrap().contains("train.jsonl:1"));

    let case = Case::new(&[rows(1), rows(1)].concat(), &[]);
    assert!(case.error(Params::default()).to_string().contains("twice"));
    let case = Case::new(&rows(1), &rows(1));
    assert!(case.error(Params::default()).to_string().contains("twice"));
    let case = Case::new(&[row("r", "fn f() {}", "\n")], &[]);
    assert!(case.error(Params::default()).to_string().contains("no tests"));
    for file in ["train.jsonl", "validation.jsonl", "manifest.json"] {
        let case = Case::new(&rows(1), &[]);
        fs::remove_file(case.path("corpus").join(file)).unwrap();
        assert!(case.error(Params::default()).to_string().contains(file));
    }
    let case = Case::new(&rows(1), &[]);
    fs::write(case.path("corpus/manifest.json"), r#"{"schema_version": 99}"#).unwrap();
    assert!(case.error(Params::default()).to_string().contains("schema_version"));
}

#[test]
fn unfit_models_and_limits_are_refused() {
    let case = Case::new(&rows(1), &[]);
    for max_length in [0, 1, 2049] {
        let error = case.error(Params { max_length, ..Params::default() });
        assert_eq!(error.code(), ExitCode::Usage);
        assert!(error.to_string().contains("max_length"), "{error}");
    }
    let config = case.path("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("3072", "3071")).unwrap();
    assert!(case.error(Params::default()).to_string().contains("3072 ids"));
    fs::write(case.path("model/tokenizer.json"), "{}").unwrap();
    assert!(case.error(Params::default()).to_string().contains("tokenizer.json"));
}

#[test]
fn a_damaged_token_file_is_an_error() {
    let case = Case::new(&rows(5), &[]);
    let dir = case.run("tokens", Params::default()).unwrap();
    let path = dir.join("train.parquet");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 3, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = tokenize_to_parquet::read(&path).unwrap_err();
        assert!(error.to_string().contains("train.parquet"), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_to_be_one() {
    let case = Case::new(&rows(5), &[]);
    let dir = case.run("tokens", Params::default()).unwrap();
    let error = tokenize_to_parquet::write(Path::new("/dev/full"), &read(&dir, "train"), &metadata(&dir))
        .unwrap_err();
    assert!(error.to_string().contains("/dev/full") && error.to_string().contains("space"), "{error}");
    assert!(miette::Diagnostic::help(&error).unwrap().to_string().contains("free some space"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Any rows come back from the file as they went in.
    #[test]
    fn rows_survive_the_file(
        rows in proptest::collection::vec(
            (".{0,12}", "[0-9a-f]{0,64}", proptest::collection::vec((0..=i32::MAX, -100i32..=i32::MAX), 0..40)),
            0..60,
        )
    ) {
        let rows: Vec<Row> = rows
            .into_iter()
            .map(|(id, function_sha256, tokens)| {
                let (ids, labels): (Vec<i32>, Vec<i32>) = tokens.into_iter().unzip();
                Row { id, function_sha256, input_ids: ids.into_iter().map(|id| id as u32).collect(), labels }
            })
            .collect();
        let manifest = TokensManifest {
            schema_version: 1, content: "chat".to_owned(), tokenizer_sha256: "t".to_owned(), template_sha256: "p".to_owned(),
            max_length: 1024, over_long: "drop".to_owned(), splits: Default::default(), holdout_sha256: vec![],
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        tokenize_to_parquet::write(&path, &rows, &manifest).unwrap();
        proptest::prop_assert_eq!(tokenize_to_parquet::read(&path).unwrap(), rows);
    }
}
