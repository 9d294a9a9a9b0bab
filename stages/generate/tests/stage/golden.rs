//! Greedy completions equal to those of transformers and PEFT, token by token, through the library and the program.

use std::collections::BTreeMap;
use std::path::Path;

use generate::{Generate, Params};
use record::generation::{FinishReason, Sample, TokenTask};
use serde::Deserialize;
use stage_kit::ContextBuilder;

use crate::support::{generate as run_program, golden, samples};

#[derive(Deserialize)]
struct Reference {
    generation: Vec<Completion>,
}

#[derive(Deserialize)]
struct Completion {
    which: String,
    prompt: Vec<u32>,
    completion: Vec<u32>,
}

/// Writes the tasks of `which` model; their completions by id.
fn tasks(case: &str, which: &str, dir: &Path) -> BTreeMap<String, Vec<u32>> {
    let text = std::fs::read_to_string(golden(case).join("reference.json")).unwrap();
    let reference: Reference = serde_json::from_str(&text).unwrap();
    let ours: Vec<Completion> = reference.generation.into_iter().filter(|c| c.which == which).collect();
    assert!(!ours.is_empty());
    let tasks =
        ours.iter().enumerate().map(|(i, c)| TokenTask { id: format!("t{i}"), prompt_ids: c.prompt.clone() });
    std::fs::create_dir_all(dir).unwrap();
    stage_kit::files::write_jsonl(&dir.join("tasks.jsonl"), tasks).unwrap();
    ours.into_iter().enumerate().map(|(i, c)| (format!("t{i}"), c.completion)).collect()
}

fn check(samples: &[Sample], wanted: &BTreeMap<String, Vec<u32>>) {
    assert_eq!(samples.len(), wanted.len());
    for sample in samples {
        assert_eq!(sample.completion_ids.as_ref(), Some(&wanted[&sample.task_id]), "{}", sample.task_id);
        assert_eq!((sample.finish_reason, sample.completion_tokens), (FinishReason::Length, 24));
    }
}

fn through_both(case: &str, which: &str) {
    let dir = tempfile::tempdir().unwrap();
    let tasks_dir = dir.path().join("tasks");
    let wanted = tasks(case, which, &tasks_dir);
    let adapter = (which == "lora").then(|| golden(case).join("adapter_start"));
    let model = golden(case).join("model");
    for batch in [1, 4] {
        let out = dir.path().join(format!("library-{batch}"));
        let params = Params {
            device: "cpu".into(),
            max_new_tokens: 24,
            return_ids: true,
            ignore_stop: true,
            batch,
            ..Params::default()
        };
        let mut context = ContextBuilder::new("generate", &out.join("work"))
            .input("model", &model)
            .input("tasks", &tasks_dir)
            .output("samples", out.join("samples"));
        if let Some(adapter) = &adapter {
            context = context.input("adapter", adapter);
        }
        context.run::<Generate>(params).unwrap();
        check(&samples(&out), &wanted);
    }
    let mut inputs = vec![("model", model.as_path()), ("tasks", tasks_dir.as_path())];
    inputs.extend(adapter.as_deref().map(|a| ("adapter", a)));
    let more = ["max_new_tokens=24", "return_ids=true", "ignore_stop=true"];
    check(&run_program(&inputs, &dir.path().join("program"), &more), &wanted);
}

#[test]
fn base_of_two_layers() {
    through_both("qwen2-tiny", "base");
}

#[test]
fn adapter_on_two_layers() {
    through_both("qwen2-tiny", "lora");
}

#[test]
fn base_of_seven_query_heads_to_a_key_head() {
    through_both("qwen2-gqa7", "base");
}

#[test]
fn adapter_on_seven_query_heads_to_a_key_head() {
    through_both("qwen2-gqa7", "lora");
}
