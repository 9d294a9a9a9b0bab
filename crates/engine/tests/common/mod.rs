//! What the engine's tests share: the golden cases and options.

#![allow(dead_code, reason = "each test program uses a part")]

use engine::{AdamW, MicroBatch, Mode, Precision, SavePolicy, Sequence, TrainOptions, Trainer};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const CASES: [&str; 2] = ["qwen2-tiny", "qwen2-gqa7"];

/// A golden case: model, adapter and what the reference implementation computes with them.
pub struct Golden {
    pub dir: PathBuf,
    pub config: Config,
    pub weights: Weights,
    pub adapter: Adapter,
    pub floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub ints: BTreeMap<String, (Vec<usize>, Vec<i64>)>,
    pub reference: serde_json::Value,
}

pub fn golden(case: &str) -> Golden {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(case);
    let config = Config::from_dir(&dir.join("model")).unwrap();
    let weights = Weights::load(&dir.join("model"), &config).unwrap();
    let adapter = Adapter::load(&dir.join("adapter_start"), &config).unwrap();
    let bytes = std::fs::read(dir.join("reference.safetensors")).unwrap();
    let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
        let (name, shape, data) = (name.to_owned(), view.shape().to_vec(), view.data());
        match view.dtype() {
            safetensors::Dtype::F32 => {
                let values = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                floats.insert(name, (shape, values));
            }
            safetensors::Dtype::I64 => {
                let values = data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
                ints.insert(name, (shape, values));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let text = std::fs::read_to_string(dir.join("reference.json")).unwrap();
    let reference = serde_json::from_str(&text).unwrap();
    Golden { dir, config, weights, adapter, floats, ints, reference }
}

impl Golden {
    /// The sequences of a right-padded batch, without their padding; `prefix` is empty or `micro.N.`.
    pub fn batch(&self, prefix: &str) -> MicroBatch {
        let (shape, ids) = &self.ints[&format!("{prefix}input_ids")];
        let (_, labels) = &self.ints[&format!("{prefix}labels")];
        let (_, mask) = &self.ints[&format!("{prefix}attention_mask")];
        let width = shape[1];
        let sequences = (0..shape[0])
            .map(|row| {
                let range = row * width..(row + 1) * width;
                let len = mask[range.clone()].iter().filter(|&&m| m == 1).count();
                let range = range.start..range.start + len;
                Sequence {
                    sample_id: row as u64,
                    input_ids: ids[range.clone()].iter().map(|&id| id as u32).collect(),
                    labels: labels[range].iter().map(|&label| label as i32).collect(),
                }
            })
            .collect();
        MicroBatch { sequences }
    }

    pub fn trainer(&self, options: TrainOptions) -> Trainer {
        let adapter = (options.mode != Mode::Full).then_some(&self.adapter);
        Trainer::new(&self.config, &self.weights, adapter, options).unwrap()
    }
}

pub fn options() -> TrainOptions {
    TrainOptions {
        mode: Mode::Lora,
        dropout: 0.0,
        precision: Precision::Float32,
        threads: 1,
        seed: 42,
        save: SavePolicy::All,
        max_tokens: 128,
    }
}

pub fn adamw() -> AdamW {
    AdamW { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: 1.0 }
}

/// `|a - b| / |b|` in the Frobenius norm.
pub fn frobenius(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm).sqrt()
}

/// `max |a - b| / max |b|`.
pub fn max_relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(!a.iter().any(|x| x.is_nan()));
    f64::from(difference) / f64::from(b.iter().fold(0.0f32, |most, b| most.max(b.abs())))
}
