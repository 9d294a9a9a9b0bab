//! One test for each recorded fault of the older implementation that shows in whole programs; those of the forward and
//! backward pass stand in `crates/engine/tests/predecessor_faults.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::process::Command;

use record::Map;
use record::compile::CompileResults;
use record::generation::{FinishReason, Sample};
use record::libs::{LIBS_SCHEMA_VERSION, PrebuiltLibs};
use record::mutation::{SampleResult, TestResults};
use record::tokens::TokensManifest;
use record::training::{StepRecord, TrainingMetrics, TrainingState};
use testforge_tests::{Finished, Project, fixture};

const STRONG: &str = "#[test]\nfn test_both_branches() {\n    assert_eq!(clamp_sum(1, 2, 10), 3);\n    assert_eq!(clamp_sum(7, 8, 10), 10);\n    assert_eq!(clamp_sum(5, 5, 10), 10);\n    assert_eq!(clamp_sum(-4, 1, 0), -3);\n}\n";
const WEAK: &str = "#[test]\nfn test_runs() {\n    let _ = clamp_sum(1, 2, 10);\n}\n";
/// What a formatter accepts and a compiler does not.
const ILL_TYPED: &str =
    "#[test]\nfn test_types() {\n    let n: String = clamp_sum(1, 2, 10);\n    assert_eq!(n, 3);\n}\n";

/// A project whose samples are the given completions for `clamp_sum`.
fn evaluated(completions: &[&str]) -> Project {
    let project = Project::new("schema = 1\n");
    fixture::write_corpus(&project.path("corpus"));
    let row = serde_json::to_string(&fixture::rows()[0]).unwrap();
    project.write("corpus/holdout.jsonl", &(row + "\n"));
    // The row is held out, so no other split has it.
    project.write("corpus/train.jsonl", "");
    let lines: String = completions.iter().enumerate().map(|(i, c)| sample(i as u32, c) + "\n").collect();
    project.write("samples/samples.jsonl", &lines);
    project.write("libs/libs.json", &serde_json::to_string(&no_libs()).unwrap());
    run(&project, "compile-check", &["samples", "corpus", "libs"], &["compile"], &[]);
    project
}

fn mutated(completions: &[&str]) -> Vec<SampleResult> {
    let project = evaluated(completions);
    run(&project, "mutate-score", &["samples", "corpus", "compile", "libs"], &["mutation"], &[]);
    let results: TestResults = serde_json::from_str(&project.read("mutation/test_results.json")).unwrap();
    results.samples
}

fn run(project: &Project, stage: &str, inputs: &[&str], outputs: &[&str], sets: &[&str]) {
    let mut program = project.program(stage);
    for (option, names) in [("--input", inputs), ("--output", outputs)] {
        for name in names {
            program.arg(option).arg(format!("{name}={name}"));
        }
    }
    for set in sets {
        program.args(["--set", set]);
    }
    Finished::of(program.output().unwrap()).expect_code(0);
}

fn sample(sample_idx: u32, completion: &str) -> String {
    let sample = Sample {
        task_id: fixture::rows()[0].id.clone(),
        sample_idx,
        round: 0,
        seed: 42,
        prompt_sha256: String::new(),
        completion: completion.to_owned(),
        completion_ids: None,
        finish_reason: FinishReason::Stop,
        prompt_tokens: 1,
        completion_tokens: 1,
        model_sha256: String::new(),
        adapter_sha256: None,
        tokenizer_sha256: String::new(),
        template_sha256: String::new(),
    };
    serde_json::to_string(&sample).unwrap()
}

fn no_libs() -> PrebuiltLibs {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    PrebuiltLibs {
        schema_version: LIBS_SCHEMA_VERSION,
        rustc: String::from_utf8(rustc.stdout).unwrap(),
        externs: Map::new(),
        versions: Map::new(),
        files: Map::new(),
    }
}

fn score(result: &SampleResult) -> f64 {
    let counts = result.mutants.unwrap();
    let detected = counts.killed + counts.timeout;
    f64::from(detected) / f64::from(detected + counts.survived + counts.no_coverage)
}

#[test]
fn the_mutation_score_is_measured_not_a_constant() {
    let results = mutated(&[STRONG, WEAK]);
    assert!(results.iter().all(|r| r.passed), "{results:?}");
    let (strong, weak) = (score(&results[0]), score(&results[1]));
    assert!(strong > 0.7, "tests of every branch kill {strong}");
    assert!(weak < 0.3, "a test without an assertion kills {weak}");
}

#[test]
fn well_formatted_is_not_taken_for_compiling() {
    let project = evaluated(&[ILL_TYPED, STRONG]);
    let results: CompileResults =
        serde_json::from_str(&project.read("compile/compile_results.json")).unwrap();
    let (ill, strong) = (&results.samples[0], &results.samples[1]);
    assert!(ill.parses);
    assert_eq!(ill.type_checks, Some(false));
    assert!(ill.diagnostics.iter().any(|d| d.code.as_deref() == Some("E0308")), "{:?}", ill.diagnostics);
    assert_eq!((strong.parses, strong.type_checks, strong.links), (true, Some(true), Some(true)));
}

/// A training run of a few steps on the CPU, two rows to a micro-batch.
fn trained() -> Project {
    let project = Project::new("schema = 1\n");
    fixture::write_corpus(&project.path("corpus"));
    run(&project, "fetch-model", &[], &["model"], &["source=embedded:tiny"]);
    run(&project, "tokenize-to-parquet", &["model", "corpus"], &["tokens"], &[]);
    let sets = ["mode=lora", "device=cpu", "precision=float32", "epochs=1", "batch=3", "accumulation=1"];
    run(&project, "train-cuda", &["model", "tokens"], &["adapter", "checkpoints", "log"], &sets);
    project
}

#[test]
fn telemetry_is_absent_without_a_gpu_never_simulated() {
    let project = trained();
    let metrics: TrainingMetrics = serde_json::from_str(&project.read("log/metrics.json")).unwrap();
    assert_eq!((metrics.peak_vram_bytes, metrics.mean_gpu_utilization_percent), (None, None));
    assert_eq!(metrics.backend, "cpu");
    let state: TrainingState =
        serde_json::from_str(&project.read("adapter.live/training_state.json")).unwrap();
    assert_eq!(state.gpu, None);
}

#[test]
fn throughput_counts_real_tokens_not_padded_ones() {
    let project = trained();
    let text = project.read("checkpoints/steps.jsonl");
    let steps: Vec<StepRecord> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let manifest: TokensManifest = serde_json::from_str(&project.read("tokens/metadata.json")).unwrap();
    let tokens: u64 = steps.iter().map(|s| s.tokens).sum();
    let lengths = manifest.splits["train"].tokens;
    assert_eq!(tokens, lengths, "rows of unequal length were counted with padding");
}

#[test]
fn all_seven_projections_are_written() {
    let project = trained();
    let bytes = fs::read(project.path("adapter/adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for projection in ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] {
        for half in ["lora_A", "lora_B"] {
            let found = tensors.iter().filter(|(name, _)| name.contains(projection) && name.contains(half));
            let moved = found.filter(|(_, t)| t.data().iter().any(|b| *b != 0)).count();
            assert_eq!(moved, 4, "{projection} {half}: of 4 layers {moved} carry something other than zero");
        }
    }
}
