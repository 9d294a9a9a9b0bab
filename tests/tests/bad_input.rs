//! Bad input to the real programs: an exit code, the file, the place, the next step, and nothing half-written.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use testforge_tests::{Finished, Project, fixture};

/// A project with a tiny model, a small corpus and its tokens.
fn prepared() -> Project {
    let project = Project::new("schema = 1\n");
    fixture::write_corpus(&project.path("corpus"));
    stage(&project, "fetch-model", &["--set", "source=embedded:tiny", "--output", "model=model"])
        .expect_code(0);
    let ports = ["--input", "model=model", "--input", "corpus=corpus", "--output", "tokens=tokens"];
    stage(&project, "tokenize-to-parquet", &ports).expect_code(0);
    project
}

fn stage(project: &Project, name: &str, args: &[&str]) -> Finished {
    Finished::of(project.program(name).args(args).output().unwrap())
}

fn tokenize(project: &Project) -> Finished {
    let ports = ["--input", "model=model", "--input", "corpus=corpus", "--output", "tokens=again"];
    stage(project, "tokenize-to-parquet", &ports)
}

fn train(project: &Project, more: &[&str]) -> Finished {
    let mut args = vec!["--input", "model=model", "--input", "tokens=tokens", "--output", "adapter=adapter"];
    args.extend([
        "--set",
        "mode=lora",
        "--set",
        "device=cpu",
        "--set",
        "precision=float32",
        "--set",
        "max_steps=1",
    ]);
    args.extend(more);
    stage(project, "train-cuda", &args)
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[track_caller]
fn refused(project: &Project, result: Finished, output: &str, part: &str) {
    let code = result.code;
    let result = result.expect_text(part);
    assert!(matches!(code, Some(2 | 3)), "exit code {code:?}\n{}", result.stderr);
    assert!(!result.stderr.contains("panicked"), "{}", result.stderr);
    assert!(!project.path(output).exists(), "something was left in `{output}`");
}

#[test]
fn an_output_that_can_t_be_made_is_refused_before_the_work() {
    let project = Project::new("schema = 1\n");
    fs::write(project.path("file"), "text").unwrap();
    for (program, output) in [
        ("fetch-model", "model"),
        ("prebuild-libs", "libs"),
        ("build-corpus", "corpus"),
        ("tokenize-to-parquet", "tokens"),
        ("train-cuda", "adapter"),
        ("train-cuda", "log"),
        ("generate", "samples"),
        ("generate", "timings"),
        ("compile-check", "compile"),
        ("mutate-score", "mutation"),
        ("popper-report", "report"),
    ] {
        for path in ["/proc/x/y", "file/y"] {
            let result = stage(&project, program, &["--output", &format!("{output}={path}")]);
            result.expect_code(2).expect_text(&format!("the output `{output}` can't be made"));
        }
    }
}

#[test]
fn a_truncated_model_is_refused_by_name() {
    let project = prepared();
    truncate(&project.path("model/model.safetensors"));
    refused(&project, train(&project, &[]), "adapter", "model.safetensors");
}

#[test]
fn a_missing_weight_file_is_refused_by_name() {
    let project = prepared();
    fs::remove_file(project.path("model/model.safetensors")).unwrap();
    refused(&project, train(&project, &[]), "adapter", "safetensors");
}

#[test]
fn a_model_whose_shapes_disagree_with_its_config_is_refused() {
    let project = prepared();
    let path = project.path("model/config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let size = config["intermediate_size"].as_u64().unwrap();
    config["intermediate_size"] = (size + 64).into();
    fs::write(&path, config.to_string()).unwrap();
    refused(&project, train(&project, &[]), "adapter", "manifest.json");
    fs::remove_file(project.path("model/manifest.json")).unwrap();
    refused(&project, train(&project, &[]), "adapter", "mlp");
}

#[test]
fn a_config_that_is_not_json_or_lacks_a_field_is_refused() {
    let project = prepared();
    let path = project.path("model/config.json");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, "{ not json").unwrap();
    refused(&project, train(&project, &[]), "adapter", "config.json");
    fs::write(&path, good.replace("hidden_size", "hidden_sise")).unwrap();
    refused(&project, train(&project, &[]), "adapter", "hidden_size");
}

#[test]
fn a_damaged_tokenizer_is_refused() {
    let project = prepared();
    truncate(&project.path("model/tokenizer.json"));
    refused(&project, tokenize(&project), "again", "tokenizer.json");
}

#[test]
fn a_damaged_row_is_named_by_line() {
    let project = prepared();
    let path = project.path("corpus/train.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{{\"id\": 3}}\n")).unwrap();
    refused(&project, tokenize(&project), "again", "train.jsonl:4");
}

#[test]
fn an_empty_corpus_is_refused() {
    let project = prepared();
    fs::write(project.path("corpus/train.jsonl"), "").unwrap();
    refused(&project, tokenize(&project), "again", "train");
}

#[test]
fn damaged_and_missing_tokens_are_refused() {
    let project = prepared();
    truncate(&project.path("tokens/train.parquet"));
    refused(&project, train(&project, &[]), "adapter", "train.parquet");
    fs::write(project.path("tokens/train.parquet"), "no parquet").unwrap();
    refused(&project, train(&project, &[]), "adapter", "train.parquet");
    fs::remove_file(project.path("tokens/train.parquet")).unwrap();
    refused(&project, train(&project, &[]), "adapter", "train.parquet");
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let project = prepared();
    for (set, part) in [
        ("epochs=0", "epochs"),
        ("batch=0", "batch"),
        ("lr=-1", "lr"),
        ("dropout=1.5", "dropout"),
        ("rank=0", "rank"),
        ("mode=qqlora", "mode"),
        ("device=tpu", "device"),
        ("device=wgpu", "wgpu"),
    ] {
        let result = train(&project, &["--set", set]);
        assert_eq!(result.code, Some(2), "{set}: {}", result.stderr);
        refused(&project, result, "adapter", part);
    }
}

#[test]
fn a_source_that_is_not_there_is_refused() {
    let project = prepared();
    for source in ["file:nowhere", "embedded:huge", "random:huge", "not a model id"] {
        let set = format!("source={source}");
        let result = stage(&project, "fetch-model", &["--set", &set, "--output", "model=other"]);
        refused(&project, result, "other", source.trim_start_matches("file:"));
    }
}

#[test]
fn a_hub_that_can_not_be_reached_is_said_and_may_be_tried_again() {
    let project = Project::new("schema = 1\n");
    let mut program = project.program("fetch-model");
    program.args(["--set", "source=nobody/nothing", "--output", "model=model"]);
    program.env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_HOME", project.path("hub"));
    let result = Finished::of(program.output().unwrap());
    assert!(matches!(result.code, Some(3 | 75)), "exit code {:?}\n{}", result.code, result.stderr);
    result.expect_text("127.0.0.1:9");
    let mut program = project.program("fetch-model");
    program.args(["--set", "source=nobody/nothing", "--output", "model=model"]);
    program.env("HF_HUB_OFFLINE", "1").env("HF_HOME", project.path("hub"));
    let result = Finished::of(program.output().unwrap());
    refused(&project, result, "model", "HF_HUB_OFFLINE");
}

#[test]
fn a_holdout_function_among_the_training_rows_is_refused() {
    let project = prepared();
    let holdout = project.read("corpus/holdout.jsonl");
    let train_rows = project.read("corpus/train.jsonl");
    project.write("corpus/train.jsonl", &format!("{train_rows}{holdout}"));
    let tokenized = tokenize(&project);
    if tokenized.code == Some(0) {
        let ports = ["--input", "model=model", "--input", "tokens=again", "--output", "adapter=adapter"];
        let sets = ["--set", "mode=lora", "--set", "device=cpu", "--set", "max_steps=1"];
        let all: Vec<&str> = ports.iter().chain(&sets).copied().collect();
        refused(&project, stage(&project, "train-cuda", &all), "adapter", "holdout");
    } else {
        refused(&project, tokenized, "again", "holdout");
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let project = prepared();
    fs::create_dir(project.path("small")).unwrap();
    let exe = testforge_tests::programs().join("fetch-model");
    let script = format!(
        "mount -t tmpfs -o size=256k none small && {} --set source=embedded:tiny --output model=small/model; code=$?; ls small; exit $code",
        exe.display()
    );
    let mut shell = std::process::Command::new("unshare");
    shell.args(["--map-root-user", "--mount", "sh", "-c", &script]).current_dir(project.path("."));
    let result = Finished::of(shell.output().unwrap());
    assert!(
        !result.stderr.contains("unshare") && !result.stderr.contains("mount:"),
        "NOT TESTED: this test needs user and mount namespaces: {}",
        result.stderr
    );
    let result = result.expect_code(3).expect_text("disk");
    assert!(!result.stdout.contains("model"), "left behind: {}", result.stdout);
}
