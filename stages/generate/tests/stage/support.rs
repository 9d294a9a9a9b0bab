//! Models, corpora and runs for the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use model::config::{Config, GenerationConfig};
use model::weights::Weights;
use model::{Dtype, Tensor, init, manifest};
use record::corpus::CorpusRow;
use record::generation::{Sample, SamplesManifest};
use serde_json::json;

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(path)
}

/// The tokenizer of the embedded model.
fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fetch-model/embedded/tiny")
}

/// Seeded weights with projections so large that the layers, not the last token alone, decide the next one.
fn weights(config: &Config) -> Weights {
    let larger = |(name, tensor): (&str, &Tensor)| {
        let factor = if name.ends_with("proj.weight") { 5.0 } else { 1.0 };
        let values: Vec<f32> = tensor.to_f32().into_iter().map(|v| v * factor).collect();
        (name.to_owned(), Tensor::from_f32(tensor.shape(), &values).unwrap())
    };
    Weights::from_tensors(init::random_weights(config, 7).iter().map(larger).collect(), config).unwrap()
}

/// A model of the tiny architecture with few layers and positions, seeded weights and the embedded tokenizer.
pub(crate) fn tiny_model(to: &Path, max_positions: usize) -> PathBuf {
    let dir = to.join("model");
    fs::create_dir_all(&dir).unwrap();
    let mut config = init::architecture("tiny").unwrap();
    config.num_hidden_layers = 1;
    config.max_position_embeddings = max_positions;
    weights(&config).save(&dir, None).unwrap();
    fs::write(dir.join("config.json"), config.to_json(Dtype::F32)).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::write(dir.join(name), fs::read(tokenizer().join(name)).unwrap()).unwrap();
    }
    let stop = GenerationConfig { eos_token_ids: vec![0], ..GenerationConfig::default() };
    fs::write(dir.join("generation_config.json"), stop.to_json()).unwrap();
    let described =
        manifest::describe(&dir, manifest::Origin { source: "random:test".into(), ..Default::default() });
    manifest::save(&dir, &described.unwrap()).unwrap();
    dir
}

pub(crate) fn row(id: &str, code: &str) -> CorpusRow {
    let row = json!({
        "id": id,
        "function_code": code,
        "unit_tests": "#[test]\nfn t() {}",
        "property_tests": null,
        "context": {"imports": [], "items": []},
        "metadata": {
            "crate": "c", "version": "1.0.0", "path": "src/lib.rs", "item": id, "lines": [1, 2], "license": "MIT",
            "complexity": 1, "has_generics": false, "has_lifetimes": false, "is_async": false, "is_unsafe": false,
            "uses_macros": false, "returns_result": false, "source_class": "curated", "oracle": "human",
            "link_tier": "curated", "mutants_killed": 1, "sha256": stage_kit::digest::sha256_hex(code)
        }
    });
    serde_json::from_value(row).unwrap()
}

pub(crate) fn write_corpus(to: &Path, holdout: &[CorpusRow], stress: &[CorpusRow]) -> PathBuf {
    let dir = to.join("corpus");
    fs::create_dir_all(&dir).unwrap();
    stage_kit::files::write_jsonl(&dir.join("holdout.jsonl"), holdout).unwrap();
    stage_kit::files::write_jsonl(&dir.join("stress.jsonl"), stress).unwrap();
    dir
}

pub(crate) fn rows() -> [CorpusRow; 3] {
    [
        row("a", "pub fn a(x: u8) -> u8 { x + 1 }"),
        row("b", "pub fn b() -> bool { true }"),
        row("c", "pub fn c(s: &str) -> usize {\n    s.len()\n}"),
    ]
}

/// The program, on a machine that shows it no GPU.
pub(crate) fn program(args: &[String]) -> Output {
    command(args).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
}

pub(crate) fn command(args: &[String]) -> Command {
    // Read at run time: a shell that stands in for rustc may drop variables with a hyphen in their name.
    let mut command = Command::new(std::env::var_os("CARGO_BIN_EXE_generate").unwrap());
    command.args(args).env_remove("TESTFORGE_REQUEST");
    command
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `--input NAME=PATH` for each input, both outputs below `out`, `--set` for each of `more`.
pub(crate) fn args(inputs: &[(&str, &Path)], out: &Path, more: &[&str]) -> Vec<String> {
    let mut args = Vec::new();
    for (name, path) in inputs {
        args.extend(["--input".to_owned(), format!("{name}={}", path.display())]);
    }
    for name in ["samples", "timings"] {
        args.extend(["--output".to_owned(), format!("{name}={}", out.join(name).display())]);
    }
    for (option, dir) in [("--checkpoint-dir", "resume"), ("--live-dir", "live")] {
        args.extend([option.to_owned(), out.join(dir).display().to_string()]);
    }
    for m in ["device=cpu"].iter().chain(more) {
        args.extend(["--set".to_owned(), (*m).to_owned()]);
    }
    args
}

/// Runs the program, expects success, and reads the samples.
pub(crate) fn generate(inputs: &[(&str, &Path)], out: &Path, more: &[&str]) -> Vec<Sample> {
    generate_with(inputs, out, more, &[])
}

pub(crate) fn generate_with(
    inputs: &[(&str, &Path)],
    out: &Path,
    more: &[&str],
    also: &[&str],
) -> Vec<Sample> {
    let mut args = args(inputs, out, more);
    args.extend(also.iter().map(|a| (*a).to_owned()));
    let output = program(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    samples(out)
}

pub(crate) fn samples(out: &Path) -> Vec<Sample> {
    stage_kit::files::read_jsonl(&out.join("samples/samples.jsonl")).unwrap()
}

pub(crate) fn samples_manifest(out: &Path) -> SamplesManifest {
    stage_kit::files::read_json(&out.join("samples/manifest.json")).unwrap()
}
