//! Ten optimizer steps, equal to transformers and PEFT: loss, gradient norm, learning rate of each, and the adapter after them.

use std::collections::BTreeMap;
use std::path::Path;

use record::training::{StepRecord, TrainingManifest};
use serde::Deserialize;
use stage_kit::ContextBuilder;
use train_cuda::{Params, Precision, Select, TrainCuda, TrainMode};

use crate::support::{Row, args, golden, jsonl, program, stderr, tensors, write_tokens};

const RELATIVE: f64 = 1e-5;

#[derive(Deserialize)]
struct Reference {
    train: Vec<ReferenceStep>,
}

#[derive(Deserialize)]
struct ReferenceStep {
    step: u64,
    loss: f64,
    grad_norm: f64,
    lr: f64,
    label_tokens: u64,
}

/// The rows of the twenty micro-batches, padding taken off; and how many each has.
fn rows(case: &str) -> (Vec<Row>, usize) {
    let tensors = tensors(&golden(case).join("reference.safetensors"));
    let mut rows = Vec::new();
    let mut batch = 0;
    for micro in 0.. {
        let get = |name: &str| tensors.get(&format!("micro.{micro}.{name}"));
        let (Some((shape, ids)), Some((_, labels)), Some((_, mask))) =
            (get("input_ids"), get("labels"), get("attention_mask"))
        else {
            assert_eq!(micro, 20, "the reference has twenty micro-batches");
            break;
        };
        batch = shape[0];
        for b in 0..shape[0] {
            let kept = (b * shape[1]..(b + 1) * shape[1]).filter(|&i| mask[i] != 0.0);
            let (ids, labels) = kept.map(|i| (ids[i] as i32, labels[i] as i32)).unzip();
            rows.push(Row::new(ids, labels));
        }
    }
    (rows, batch)
}

fn close(what: &str, ours: f64, reference: f64) {
    let off = (ours / reference - 1.0).abs();
    assert!(off <= RELATIVE, "{what}: {ours} and not {reference} (relative difference {off:.2e})");
}

/// Frobenius norm of the difference, relative to that of `b`.
fn distance(
    a: &BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    b: &BTreeMap<String, (Vec<usize>, Vec<f64>)>,
) -> f64 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (name, (shape, values)) in a {
        let (other_shape, others) = &b[name];
        assert_eq!(shape, other_shape, "{name}");
        for (x, y) in values.iter().zip(others) {
            difference += (x - y) * (x - y);
            norm += y * y;
        }
    }
    (difference / norm).sqrt()
}

fn check(case: &str, out: &Path) {
    let text = std::fs::read_to_string(golden(case).join("reference.json")).unwrap();
    let reference: Reference = serde_json::from_str(&text).unwrap();
    let steps: Vec<StepRecord> = jsonl(&out.join("checkpoints/steps.jsonl"));
    assert_eq!(steps.len(), reference.train.len());
    for (ours, wanted) in steps.iter().zip(&reference.train) {
        assert_eq!((ours.step, ours.label_tokens), (wanted.step, wanted.label_tokens));
        close(&format!("loss of step {}", ours.step), ours.loss, wanted.loss);
        close(&format!("gradient norm of step {}", ours.step), ours.grad_norm, wanted.grad_norm);
        close(&format!("learning rate of step {}", ours.step), ours.lr, wanted.lr);
    }
    let file = "adapter_model.safetensors";
    let ours = tensors(&out.join("adapter").join(file));
    let after = tensors(&golden(case).join("adapter_after_10_steps").join(file));
    let start = tensors(&golden(case).join("adapter_start").join(file));
    let moved = distance(&start, &after);
    assert!(
        moved > 100.0 * RELATIVE,
        "the reference moved too little to tell a trained adapter from its start: {moved}"
    );
    let off = distance(&ours, &after);
    assert!(off <= RELATIVE, "the adapter is {off:.2e} away from the reference's");
}

fn check_manifest(out: &Path) {
    let text = std::fs::read_to_string(out.join("adapter/manifest.json")).unwrap();
    let manifest: TrainingManifest = serde_json::from_str(&text).unwrap();
    assert_eq!((manifest.kind.as_str(), manifest.mode.as_str(), manifest.steps), ("adapter", "lora", 10));
    assert_eq!(manifest.base_model_sha256_after.as_ref(), Some(&manifest.base_model_sha256));
    assert!(!manifest.base_model_sha256.is_empty());
}

fn through_the_library(case: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (rows, batch) = rows(case);
    write_tokens(&dir.path().join("tokens"), &rows, &[]);
    let params = Params {
        mode: TrainMode::Lora,
        device: "cpu".into(),
        precision: Precision::Float32,
        batch: Some(batch as u32),
        accumulation: Some(2),
        epochs: Some(1),
        warmup_ratio: 0.1,
        dropout: 0.0,
        shuffle: false,
        select: Select::Last,
        ..Params::default()
    };
    ContextBuilder::new("train", &dir.path().join("work"))
        .input("model", golden(case).join("model"))
        .input("tokens", dir.path().join("tokens"))
        .input("adapter_start", golden(case).join("adapter_start"))
        .output("adapter", dir.path().join("adapter"))
        .output("checkpoints", dir.path().join("checkpoints"))
        .run::<TrainCuda>(params)
        .unwrap();
    check(case, dir.path());
    check_manifest(dir.path());
}

fn through_the_program(case: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (rows, batch) = rows(case);
    let tokens = dir.path().join("tokens");
    write_tokens(&tokens, &rows, &[]);
    let batch = format!("batch={batch}");
    let more = [
        "adapter",
        "mode=lora",
        "dropout=0",
        "shuffle=false",
        "epochs=1",
        "accumulation=2",
        "lr=2e-4",
        "warmup_ratio=0.1",
        "min_lr_ratio=0.1",
        "clip=1",
        "weight_decay=0.01",
        "select=last",
        &batch,
    ];
    let mut args = args(&golden(case).join("model"), &tokens, dir.path(), &more);
    args.extend([
        "--input".into(),
        format!("adapter_start={}", golden(case).join("adapter_start").display()),
    ]);
    let output = program(&args).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    check(case, dir.path());
}

#[test]
fn two_layers_through_the_library() {
    through_the_library("qwen2-tiny");
}

#[test]
fn seven_query_heads_to_a_key_head_through_the_library() {
    through_the_library("qwen2-gqa7");
}

#[test]
fn two_layers_through_the_program() {
    through_the_program("qwen2-tiny");
}

#[test]
fn seven_query_heads_to_a_key_head_through_the_program() {
    through_the_program("qwen2-gqa7");
}
