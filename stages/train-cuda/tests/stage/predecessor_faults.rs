//! Faults of the predecessor that a trainer's reports can have; those of its arithmetic are in the engine's tests.

use record::training::{StepRecord, TrainingMetrics, TrainingState};
use stage_kit::files::read_json;

use crate::support::{args, golden, jsonl, made_up_rows, program, stderr, write_tokens};

/// Trains two epochs without shuffling, in batches of 3 rows, on 10 rows of unequal length.
fn run(dir: &std::path::Path) -> Vec<usize> {
    let rows = made_up_rows(10, 3, 640);
    let tokens = dir.join("tokens");
    write_tokens(&tokens, &rows, &[]);
    let more =
        ["adapter", "mode=lora", "batch=3", "accumulation=1", "epochs=2", "shuffle=false", "select=last"];
    let output = program(&args(&golden("qwen2-tiny/model"), &tokens, dir, &more)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    rows.iter().map(|r| r.input_ids.len()).collect()
}

#[test]
fn throughput_counts_the_tokens_that_were_there_and_no_padding() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = run(dir.path());
    let steps: Vec<StepRecord> = jsonl(&dir.path().join("checkpoints/steps.jsonl"));
    let wanted: Vec<u64> = lengths.chunks(3).map(|rows| rows.iter().sum::<usize>() as u64).collect();
    let counted: Vec<u64> = steps.iter().map(|s| s.tokens).collect();
    assert_eq!(counted, [&wanted[..], &wanted[..]].concat());
    let padded =
        lengths.chunks(3).any(|rows| rows.iter().max().unwrap() * rows.len() != rows.iter().sum::<usize>());
    assert!(padded, "rows of one length can't tell padding from tokens");
}

#[test]
fn telemetry_that_nobody_measured_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path());
    let state: TrainingState = read_json(&dir.path().join("live/training_state.json")).unwrap();
    assert!(state.gpu.is_none() && state.sample.is_none());
    let metrics: TrainingMetrics = read_json(&dir.path().join("log/metrics.json")).unwrap();
    assert_eq!((metrics.peak_vram_bytes, metrics.mean_gpu_utilization_percent), (None, None));
    assert_eq!(metrics.best_validation_loss, None, "there were no validation rows");
}
