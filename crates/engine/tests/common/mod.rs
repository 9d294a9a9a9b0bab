//! What the engine's tests share: the golden cases and options.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub(crate) mod agreement;

use engine::{AdamW, MicroBatch, Mode, Precision, SavePolicy, Sequence, TrainOptions, Trainer};
use model::Tensor;
use model::adapter::{Adapter, LoraConfig};
use model::config::Config;
use model::names;
use model::philox::{Purpose, Stream};
use model::weights::Weights;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) const CASES: [&str; 3] = ["qwen2-tiny", "qwen2-gqa7", "qwen2-heads"];

/// A golden case: model, adapter and what the reference implementation computes with them.
pub(crate) struct Golden {
    pub(crate) dir: PathBuf,
    pub(crate) config: Config,
    pub(crate) weights: Weights,
    pub(crate) adapter: Adapter,
    pub(crate) floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub(crate) ints: BTreeMap<String, (Vec<usize>, Vec<i64>)>,
    pub(crate) reference: serde_json::Value,
}

pub(crate) fn golden(case: &str) -> Golden {
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
    pub(crate) fn batch(&self, prefix: &str) -> MicroBatch {
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

    pub(crate) fn trainer(&self, options: TrainOptions) -> Trainer {
        let adapter = (options.mode != Mode::Full).then_some(&self.adapter);
        Trainer::new(&self.config, &self.weights, adapter, options).unwrap()
    }
}

pub(crate) fn options() -> TrainOptions {
    TrainOptions {
        mode: Mode::Lora,
        dropout: 0.0,
        precision: Precision::Float32,
        threads: 1,
        seed: 42,
        save: SavePolicy::All,
        max_tokens: 128,
        device: engine::ComputeDevice::Cpu,
        packed_base: false,
    }
}

pub(crate) fn adamw() -> AdamW {
    AdamW { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: 1.0 }
}

/// `|a - b| / |b|` in the Frobenius norm.
pub(crate) fn frobenius(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm).sqrt()
}

/// [`frobenius`], or `|a|` where `b` is zero. No bound holds where either holds a NaN or an infinity.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    if b.iter().all(|&x| x == 0.0) {
        assert_eq!(a.len(), b.len());
        return a.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    }
    frobenius(a, b)
}

/// `max |a - b| / max |b|`.
pub(crate) fn max_relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(!b.iter().any(|x| x.is_nan()), "the reference holds a NaN");
    let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(!a.iter().any(|x| x.is_nan()));
    f64::from(difference) / f64::from(b.iter().fold(0.0f32, |most, b| most.max(b.abs())))
}

/// A small model with every feature: grouped heads, biases, two layers.
pub(crate) fn tiny_config() -> Config {
    Config {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 4,
        vocab_size: 50,
        max_position_embeddings: 512,
        rope_theta: 100.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
    }
}

/// Numbers of a normal distribution.
pub(crate) fn normal(n: usize, seed: u64) -> Vec<f32> {
    let stream = Stream::new(seed, Purpose::Weights, [77, 0, 0]);
    (0..n.div_ceil(4) as u64).flat_map(|block| stream.normal_block(block)).take(n).collect()
}

/// Random weights, biases and norms included.
pub(crate) fn random_model(config: &Config, seed: u64) -> Weights {
    let tensors = names::expected(config).into_iter().enumerate().map(|(i, (name, shape))| {
        let n = shape.iter().product();
        let fan_in = *shape.last().unwrap() as f32;
        let values: Vec<f32> = normal(n, seed * 1000 + i as u64)
            .into_iter()
            .map(|x| match () {
                () if name.contains("norm") => 1.0 + 0.2 * x,
                () if name.contains("bias") => 0.3 * x,
                () => x / fan_in.sqrt(),
            })
            .collect();
        (name, Tensor::from_f32(shape, &values).unwrap())
    });
    Weights::from_tensors(tensors.collect(), config).unwrap()
}

/// An adapter on all projections whose B is not zero.
pub(crate) fn random_adapter(config: &Config, rank: usize, alpha: f64, seed: u64) -> Adapter {
    let lora = LoraConfig { r: rank, alpha, dropout: 0.0, ..LoraConfig::default() };
    let mut adapter = Adapter::init(config, &lora, seed);
    for (i, (name, tensor)) in adapter.tensors.iter_mut().enumerate() {
        let scale = if name.contains("lora_B") { 0.1 } else { 0.3 };
        let values: Vec<f32> =
            normal(tensor.len(), seed * 777 + i as u64).into_iter().map(|x| x * scale).collect();
        *tensor = Tensor::from_f32(tensor.shape().to_vec(), &values).unwrap();
    }
    adapter
}

/// A sequence of pseudo-random tokens; the first `prompt` carry no loss.
pub(crate) fn sequence(config: &Config, sample_id: u64, len: usize, prompt: usize) -> Sequence {
    let stream = Stream::new(sample_id, Purpose::Shuffle, [9, 9, 9]);
    let ids: Vec<u32> = (0..len as u64).map(|i| stream.below(i, config.vocab_size as u64) as u32).collect();
    let labels = ids.iter().enumerate().map(|(i, &id)| if i < prompt { -100 } else { id as i32 }).collect();
    Sequence { sample_id, input_ids: ids, labels }
}

/// A tiny model with its adapter and a trainer on it.
pub(crate) fn tiny_trainer(options: TrainOptions) -> Trainer {
    let config = tiny_config();
    let adapter = random_adapter(&config, 4, 8.0, 5);
    let adapter = (options.mode != Mode::Full).then_some(&adapter);
    Trainer::new(&config, &random_model(&config, 3), adapter, options).unwrap()
}

pub(crate) fn tiny_micro(sequences: &[(u64, usize, usize)]) -> MicroBatch {
    let config = tiny_config();
    let sequences = sequences.iter().map(|&(id, len, prompt)| sequence(&config, id, len, prompt)).collect();
    MicroBatch { sequences }
}
