//! The sources that need no network: the stage's whole output, and what it refuses.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use fetch_model::{FetchModel, Params};
use model::config::{Config, GenerationConfig};
use model::tokenizer::Tokenizer;
use model::weights::Weights;
use model::{init, manifest};
use stage_kit::{ContextBuilder, ExitCode, StageError};
use tempfile::TempDir;

fn fetch(root: &Path, name: &str, source: &str, seed: u64) -> Result<PathBuf, StageError> {
    let out = root.join(name);
    let params = Params { source: source.to_owned(), ..Params::default() };
    ContextBuilder::new("fetch-model", root).output("model", &out).seed(seed).run::<FetchModel>(params)?;
    Ok(out)
}

fn tiny(root: &TempDir) -> PathBuf {
    fetch(root.path(), "tiny", "embedded:tiny", 42).unwrap()
}

fn listing(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn the_embedded_model_is_whole_and_a_function_of_the_seed() {
    let root = tempfile::tempdir().unwrap();
    let dir = tiny(&root);
    let config = Config::from_dir(&dir).unwrap();
    assert_eq!(Some(&config), init::architecture("tiny").as_ref());
    let weights = Weights::load(&dir, &config).unwrap();
    assert_eq!(weights, init::random_weights(&config, 42));
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let stops = GenerationConfig::from_dir(&dir).unwrap().eos_token_ids;
    assert_eq!(stops, [tokenizer.special().im_end, tokenizer.special().end_of_text]);
    let written = manifest::load(&dir).unwrap();
    manifest::verify(&dir, &written).unwrap();
    assert_eq!((written.n_tensors, written.n_parameters), (50, weights.n_parameters()));
    assert_eq!(written.tokenizer_sha256, tokenizer.sha256());
    assert_eq!(listing(&dir), listing(&fetch(root.path(), "again", "embedded:tiny", 42).unwrap()));
    let other = manifest::load(&fetch(root.path(), "other", "embedded:tiny", 43).unwrap()).unwrap();
    assert_ne!(other.model_sha256, written.model_sha256);
    assert_eq!(other.tokenizer_sha256, written.tokenizer_sha256);
}

#[test]
fn a_folder_is_copied_whole_and_checked() {
    let root = tempfile::tempdir().unwrap();
    let dir = tiny(&root);
    let copy = fetch(root.path(), "copy", &format!("file:{}", dir.display()), 1).unwrap();
    for (name, bytes) in listing(&dir) {
        if name != "manifest.json" {
            assert_eq!(fs::read(copy.join(&name)).unwrap(), bytes, "{name}");
        }
    }
    let out = root.path().join("from-input");
    let params = Params { source: "input".to_owned(), ..Params::default() };
    let context = ContextBuilder::new("fetch-model", root.path()).input("files", &dir).output("model", &out);
    context.run::<FetchModel>(params).unwrap();
    assert_eq!(manifest::load(&out).unwrap().model_sha256, manifest::load(&copy).unwrap().model_sha256);
}

/// What the error must name, and how the folder is broken.
type Breakage<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn a_folder_that_is_no_whole_model_is_refused_and_leaves_nothing() {
    let breakages: [Breakage<'_>; 8] = [
        ("config.json", &|dir| fs::remove_file(dir.join("config.json")).unwrap()),
        ("tokenizer.json", &|dir| fs::remove_file(dir.join("tokenizer.json")).unwrap()),
        ("model.safetensors", &|dir| fs::remove_file(dir.join("model.safetensors")).unwrap()),
        ("config.json", &|dir| fs::write(dir.join("config.json"), "{").unwrap()),
        ("tokenizer.json", &|dir| fs::write(dir.join("tokenizer.json"), "{").unwrap()),
        ("model.safetensors", &|dir| {
            let bytes = fs::read(dir.join("model.safetensors")).unwrap();
            fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("embed_tokens", &|dir| {
            let text = fs::read_to_string(dir.join("config.json")).unwrap();
            fs::write(dir.join("config.json"), text.replace("3072", "3071")).unwrap();
        }),
        ("generation_config.json", &|dir| {
            fs::write(dir.join("generation_config.json"), r#"{"eos_token_id": 9999}"#).unwrap()
        }),
    ];
    for (named, damage) in breakages {
        let root = tempfile::tempdir().unwrap();
        let dir = tiny(&root);
        damage(&dir);
        let error = fetch(root.path(), "copy", &format!("file:{}", dir.display()), 1).unwrap_err();
        assert!(error.to_string().contains(named), "{named}: {error}");
        assert_eq!(error.code(), ExitCode::StageFailed, "{error}");
        assert!(!root.path().join("copy").exists() && !root.path().join("copy.partial").exists());
    }
}

#[test]
fn a_model_with_more_rows_than_ids_is_fine_and_one_with_fewer_is_not() {
    let root = tempfile::tempdir().unwrap();
    let dir = tiny(&root);
    let tiny = init::architecture("tiny").unwrap();
    for (rows, fits) in [(4000, true), (3000, false)] {
        let config = Config { vocab_size: rows, ..tiny.clone() };
        fs::write(dir.join("config.json"), config.to_json(model::Dtype::F32)).unwrap();
        init::random_weights(&config, 1).save(&dir, None).unwrap();
        let result = fetch(root.path(), &format!("copy-{rows}"), &format!("file:{}", dir.display()), 1);
        assert_eq!(result.is_ok(), fits, "{result:?}");
    }
}

#[test]
fn a_source_that_is_none_is_a_usage_error() {
    let root = tempfile::tempdir().unwrap();
    for source in ["random:huge", "embedded:big", "nonsense", "file:"] {
        assert_eq!(fetch(root.path(), "x", source, 1).unwrap_err().code(), ExitCode::Usage, "{source}");
    }
    assert_eq!(fetch(root.path(), "x", "input", 1).unwrap_err().code(), ExitCode::Usage);
    assert!(
        fetch(root.path(), "x", "file:/no/such/folder", 1)
            .unwrap_err()
            .to_string()
            .contains("/no/such/folder")
    );
}
