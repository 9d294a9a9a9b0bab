//! Names and shapes of a model's tensors, as the published Qwen2 checkpoints have them.
//!
//! Matrices are `[out, in]`: a row is one output. Query, key and value have biases; output and feed-forward have none.

use std::fmt;

use crate::config::Config;

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const FINAL_NORM: &str = "model.norm.weight";
pub const HEAD: &str = "lm_head.weight";

/// The seven projections of a layer that LoRA adapts, in the order used everywhere: q, k, v, o, gate, up, down.
pub const LORA_TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// One of the seven projections of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Projection {
    /// In the order of [`LORA_TARGETS`].
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// `q_proj`, ..., `down_proj`.
    pub fn name(self) -> &'static str {
        LORA_TARGETS[self as usize]
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// `self_attn.q_proj`, ..., `mlp.down_proj`.
    pub fn path(self) -> String {
        let block = if self <= Self::O { "self_attn" } else { "mlp" };
        format!("{block}.{}", self.name())
    }

    /// Outputs and inputs: the matrix is `[out, in]`.
    pub fn shape(self, config: &Config) -> (usize, usize) {
        let (hidden, kv, ffn) = (config.hidden_size, config.kv_dim(), config.intermediate_size);
        match self {
            Self::Q => (config.q_dim(), hidden),
            Self::O => (hidden, config.q_dim()),
            Self::K | Self::V => (kv, hidden),
            Self::Gate | Self::Up => (ffn, hidden),
            Self::Down => (hidden, ffn),
        }
    }

    pub fn has_bias(self) -> bool {
        self <= Self::V
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `model.layers.3.self_attn.q_proj.weight`
pub fn weight(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}.weight", projection.path())
}

/// `model.layers.3.self_attn.q_proj.bias`
pub fn bias(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}.bias", projection.path())
}

/// The norm before attention.
pub fn input_norm(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

/// The norm before the feed-forward block.
pub fn post_attention_norm(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

/// Every tensor of a model: name and shape, in the order of computation.
///
/// 12 per layer, the embedding, the last norm, and the head where it is not tied: 290 for the tied 0.5B shape.
pub fn expected(config: &Config) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![(EMBEDDING.to_owned(), vec![config.vocab_size, hidden])];
    let projection = |tensors: &mut Vec<(String, Vec<usize>)>, layer: usize, p: Projection| {
        let (out, inputs) = p.shape(config);
        tensors.push((weight(layer, p), vec![out, inputs]));
        if p.has_bias() {
            tensors.push((bias(layer, p), vec![out]));
        }
    };
    for layer in 0..config.num_hidden_layers {
        tensors.push((input_norm(layer), vec![hidden]));
        for p in [Projection::Q, Projection::K, Projection::V, Projection::O] {
            projection(&mut tensors, layer, p);
        }
        tensors.push((post_attention_norm(layer), vec![hidden]));
        for p in [Projection::Gate, Projection::Up, Projection::Down] {
            projection(&mut tensors, layer, p);
        }
    }
    tensors.push((FINAL_NORM.to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push((HEAD.to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}

/// Numbers in all tensors of a model.
pub fn n_parameters(config: &Config) -> u64 {
    let sizes =
        expected(config).into_iter().map(|(_, shape)| shape.iter().map(|&d| d as u64).product::<u64>());
    sizes.fold(0, u64::saturating_add)
}
