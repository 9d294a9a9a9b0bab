//! Bad input: a clear error that names the place and the next step, the right exit code, and nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{args, golden, program, rows, stderr, tiny_model, write_corpus};

struct Case {
    dir: tempfile::TempDir,
    model: PathBuf,
    corpus: PathBuf,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = rows();
        Self { model: tiny_model(dir.path(), 256), corpus: write_corpus(dir.path(), &[a, b], &[c]), dir }
    }

    fn fails(&self, inputs: &[(&str, &Path)], more: &[&str], code: i32, texts: &[&str]) {
        let out = self.dir.path().join("out");
        let output = program(&args(inputs, &out, &[&["max_new_tokens=2"], more].concat()));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        // Lines are wrapped and indented by the renderer.
        let flat: String = said.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        for text in texts {
            assert!(flat.contains(text), "`{text}` is not in: {said}");
        }
        assert!(said.contains("help:"), "no next step: {said}");
        for output in ["samples", "timings", "samples.partial", "timings.partial"] {
            assert!(!out.join(output).exists(), "{output} was left behind");
        }
    }

    fn corpus_fails(&self, more: &[&str], code: i32, texts: &[&str]) {
        self.fails(&[("model", &self.model), ("corpus", &self.corpus)], more, code, texts);
    }

    fn adapter_fails(&self, adapter: &Path, texts: &[&str]) {
        let inputs = [("model", self.model.as_path()), ("corpus", &self.corpus), ("adapter", adapter)];
        self.fails(&inputs, &[], 3, texts);
    }

    /// An adapter for this model with the manifest that `train-cuda` writes, after `change`.
    fn adapter(&self, change: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
        let dir = self.dir.path().join("adapter");
        fs::create_dir_all(&dir).unwrap();
        let config = model::config::Config::from_dir(&self.model).unwrap();
        model::adapter::Adapter::init(&config, &model::adapter::LoraConfig::default(), 1).save(&dir).unwrap();
        let own = model::manifest::load(&self.model).unwrap();
        let weights = fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let mut manifest = json!({
            "schema_version": 1, "kind": "adapter", "mode": "lora", "select": "last", "selected_step": 1, "steps": 1,
            "epochs": 1, "backend": "cpu", "model_sha256": own.model_sha256, "base_model_sha256": "x",
            "base_model_sha256_after": "x", "tokenizer_sha256": own.tokenizer_sha256,
            "template_sha256": model::prompt::template_sha256(), "weights_sha256": stage_kit::digest::sha256_hex(weights),
            "n_trainable": 1, "first_train_loss": 1.0, "final_train_loss": 1.0, "validation_loss_before": null,
            "best_validation_loss": null, "params": {}
        });
        change(&mut manifest);
        fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
        dir
    }
}

#[test]
fn nothing_to_generate_for() {
    let case = Case::new();
    case.fails(&[("model", &case.model)], &[], 2, &["nothing to generate for", "--input corpus=DIR"]);
    case.fails(&[("corpus", &case.corpus)], &[], 2, &["the input `model` is missing"]);
    fs::write(case.corpus.join("holdout.jsonl"), "").unwrap();
    case.corpus_fails(&["splits=[\"holdout\"]"], 3, &["there are no tasks"]);
}

#[test]
fn damaged_corpora() {
    let case = Case::new();
    let path = case.corpus.join("holdout.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{{\"id\": 3}}\n")).unwrap();
    case.corpus_fails(&[], 3, &["holdout.jsonl:3"]);
    fs::write(&path, format!("{text}{text}")).unwrap();
    case.corpus_fails(&[], 3, &["two tasks have the id `a`"]);
    fs::remove_file(&path).unwrap();
    case.corpus_fails(&[], 3, &["holdout.jsonl"]);
}

#[test]
fn damaged_models() {
    let case = Case::new();
    let path = case.model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    case.corpus_fails(&[], 3, &["model.safetensors", "manifest.json"]);
    fs::remove_file(case.model.join("manifest.json")).unwrap();
    case.corpus_fails(&[], 3, &["model.safetensors"]);
    fs::write(&path, bytes).unwrap();
    fs::write(case.model.join("tokenizer.json"), "{").unwrap();
    case.corpus_fails(&[], 3, &["tokenizer.json"]);
    fs::remove_file(case.model.join("tokenizer.json")).unwrap();
    case.corpus_fails(&[], 3, &["the model has no tokenizer.json"]);
}

#[test]
fn adapters_that_do_not_belong_to_the_model() {
    let case = Case::new();
    let fitting = case.adapter(|_| {});
    let inputs = [("model", case.model.as_path()), ("corpus", &case.corpus), ("adapter", &fitting)];
    let fine = program(&args(&inputs, &case.dir.path().join("fine"), &["max_new_tokens=2"]));
    assert!(fine.status.success(), "{}", stderr(&fine));
    case.adapter_fails(
        &case.adapter(|m| m["model_sha256"] = json!("other")),
        &["another base model (other)"],
    );
    case.adapter_fails(
        &case.adapter(|m| m["tokenizer_sha256"] = json!("other")),
        &["another tokenizer (other)"],
    );
    case.adapter_fails(
        &case.adapter(|m| m["template_sha256"] = json!("other")),
        &["another prompt template (other)"],
    );
    case.adapter_fails(
        &case.adapter(|m| m["weights_sha256"] = json!("other")),
        &["adapter_model.safetensors", "its bytes are not those"],
    );
    case.adapter_fails(&case.adapter(|m| m["schema_version"] = json!(9)), &["schema_version is 9"]);
    case.adapter_fails(&golden("qwen2-tiny/adapter_start"), &["adapter_model.safetensors"]);
}

#[test]
fn token_tasks_that_the_model_cannot_take() {
    let case = Case::new();
    let tasks = case.dir.path().join("tasks.jsonl");
    let inputs = [("model", case.model.as_path()), ("tasks", tasks.as_path())];
    let vocab = model::config::Config::from_dir(&case.model).unwrap().vocab_size;
    fs::write(&tasks, format!("{{\"id\":\"x\",\"prompt_ids\":[{vocab}]}}\n")).unwrap();
    case.fails(&inputs, &[], 3, &["task `x`", &format!("token id {vocab}"), "tasks.jsonl"]);
    fs::write(&tasks, "{\"id\":\"x\",\"prompt_ids\":[]}\n").unwrap();
    case.fails(&inputs, &[], 3, &["task `x` has an empty prompt"]);
    fs::write(&tasks, "{\"id\":\"x\",\"prompt_ids\":[-1]}\n").unwrap();
    case.fails(&inputs, &[], 3, &["tasks.jsonl:1"]);
    fs::write(&tasks, "").unwrap();
    case.fails(&inputs, &[], 3, &["there are no tasks"]);
}

#[test]
fn feedback_about_other_tasks() {
    let case = Case::new();
    let feedback = case.dir.path().join("compile_results.json");
    let result = json!({
        "task_id": "zzz", "sample_idx": 0, "round": 0, "tests": "", "refused": null, "parses": false, "type_checks": null,
        "lint_clean": null, "links": null, "diagnostics": [], "fixes": [], "facts": null, "similarity": null
    });
    let file = json!({
        "schema_version": 1, "toolchain": "", "linter": null, "isolation": {"level": 0, "layers": []}, "samples": [result]
    });
    fs::write(&feedback, file.to_string()).unwrap();
    let inputs = [("model", case.model.as_path()), ("corpus", &case.corpus), ("feedback", &feedback)];
    case.fails(&inputs, &[], 3, &["task `zzz` is not in the splits"]);
}

#[test]
fn devices_and_parameters() {
    let case = Case::new();
    case.corpus_fails(&["device=wgpu"], 2, &["no wgpu backend", "device=cpu"]);
    case.corpus_fails(&["device=cuda:x"], 2, &["there is no device `cuda:x`"]);
    let why = if cfg!(feature = "cuda") { "no NVIDIA GPU can be used" } else { "without the feature cuda" };
    case.corpus_fails(&["device=cuda"], 2, &[why, "device=cpu"]);
    case.corpus_fails(&["temperature=0"], 2, &["parameter temperature"]);
    case.corpus_fails(&["top_q=1"], 2, &["there is no parameter `top_q`"]);
}
