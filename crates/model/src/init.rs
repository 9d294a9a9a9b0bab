//! Models made from a seed: named shapes and random weights.

use crate::config::Config;
use crate::philox::{Purpose, Stream};
use crate::tensor::{self, Dtype, Tensor};
use crate::weights::Weights;
use crate::{names, parallel};

/// Standard deviation of initial weights: `initializer_range` of the Qwen2 configurations.
pub const STD: f64 = 0.02;

/// Names that [`architecture`] knows.
pub const ARCHITECTURES: [&str; 2] = ["qwen2.5-coder-0.5b", "tiny"];

/// A named shape.
///
/// `qwen2.5-coder-0.5b` is Qwen/Qwen2.5-Coder-0.5B; `tiny` is the embedded model, small enough to be trained from
/// random weights on a CPU within minutes.
pub fn architecture(name: &str) -> Option<Config> {
    match name {
        "qwen2.5-coder-0.5b" => Some(Config {
            hidden_size: 896,
            intermediate_size: 4864,
            num_hidden_layers: 24,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            head_dim: 64,
            vocab_size: 151_936,
            max_position_embeddings: 32_768,
            rope_theta: 1_000_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
        }),
        "tiny" => Some(Config {
            hidden_size: 192,
            intermediate_size: 640,
            num_hidden_layers: 4,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 32,
            vocab_size: 3072,
            max_position_embeddings: 2048,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
        }),
        _ => None,
    }
}

/// Weights of a model that nobody trained, float32: matrices normal with deviation [`STD`], norms one, biases zero.
pub fn random_weights(config: &Config, seed: u64) -> Weights {
    random_weights_in(config, seed, Dtype::F32)
}

/// [`random_weights`], each value rounded to `dtype`.
pub fn random_weights_in(config: &Config, seed: u64, dtype: Dtype) -> Weights {
    let expected = names::expected(config);
    let numbered: Vec<(usize, &(String, Vec<usize>))> = expected.iter().enumerate().collect();
    let made = parallel::map(&numbered, parallel::available(), |&(index, (name, shape))| {
        let stream = Stream::new(seed, Purpose::Weights, [index as u32, 0, 0]);
        let tensor = Tensor::from_bytes(dtype, shape.as_slice(), random_tensor(name, shape, stream, dtype));
        Some((name.clone(), tensor?))
    });
    let tensors = made.into_iter().flatten().collect();
    Weights::trusted(tensors)
}

fn random_tensor(name: &str, shape: &[usize], stream: Stream, dtype: Dtype) -> Vec<u8> {
    let n: usize = shape.iter().product();
    if name.ends_with(".bias") {
        return tensor::encode(dtype, &vec![0.0; n]);
    }
    if name.ends_with("norm.weight") {
        return tensor::encode(dtype, &vec![1.0; n]);
    }
    let mut bytes = Vec::with_capacity(n * dtype.size());
    for block in 0..n.div_ceil(4) {
        let normal = stream.normal_block(block as u64).map(|x| (f64::from(x) * STD) as f32);
        let used = (n - 4 * block).min(4);
        bytes.extend(tensor::encode(dtype, &normal[..used]));
    }
    bytes
}
