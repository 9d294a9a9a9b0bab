//! What a training step has to compute, to set its time against.

use model::config::Config;

use crate::params::TrainMode;

/// What utilisation refers to, on every device: bfloat16 products of an H200 as measured (see experiments/peers/README.md).
pub(crate) const PEAK_TFLOPS: f64 = 790.0;

/// Floating-point operations of the products of one token, forward and backward: two a parameter forward, two backward
/// for its input and, where it is trained, two for itself; attention at the mean causal length, its backward 2.5 times
/// its forward. What is computed twice to save memory counts once.
///
/// `n_adapter`: parameters of the adapters, none in mode full. `length`: of the sequence that the mean token lies in. `labelled`: the share of tokens that carry a loss; the others never
/// meet the head.
pub(crate) fn per_token(config: &Config, mode: TrainMode, n_adapter: u64, length: f64, labelled: f64) -> f64 {
    let (hidden, ffn) = (config.hidden_size as f64, config.intermediate_size as f64);
    let q = (config.num_attention_heads * config.head_dim) as f64;
    let kv = (config.num_key_value_heads * config.head_dim) as f64;
    let layers = config.num_hidden_layers as f64;
    let linear = layers * (hidden * (2.0 * q + 2.0 * kv) + 3.0 * hidden * ffn);
    let head = hidden * config.vocab_size as f64 * labelled;
    let attention = layers * 4.0 * q * (length + 1.0) / 2.0;
    let products = match mode {
        TrainMode::Full => 6.0 * (linear + head),
        TrainMode::Lora | TrainMode::Qlora => 4.0 * (linear + head) + 6.0 * n_adapter as f64,
    };
    products + 3.5 * attention
}

/// The share of [`PEAK_TFLOPS`] that so many tokens a second come to.
pub(crate) fn utilisation(tokens_per_s: f64, per_token: f64) -> f64 {
    tokens_per_s * per_token / (PEAK_TFLOPS * 1e12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_0_5b_shape_costs_what_its_arithmetic_says() {
        let config = model::init::architecture("qwen2.5-coder-0.5b").unwrap();
        let all = model::adapter::LoraConfig { r: 16, ..Default::default() };
        let n_adapter = model::adapter::Adapter::init(&config, &all, 1).n_parameters();
        let mflop = |length| per_token(&config, TrainMode::Qlora, n_adapter, length, 1.0) / 1e6;
        assert!((mflop(512.0) - 2106.0).abs() < 2.0, "{}", mflop(512.0));
        assert!((mflop(2048.0) - 2337.0).abs() < 3.0, "{}", mflop(2048.0));
        let head_less = per_token(&config, TrainMode::Qlora, n_adapter, 512.0, 0.0) / 1e6;
        assert!((mflop(512.0) - head_less - 4.0 * 136.134_656).abs() < 1e-3, "{head_less}");
        // Adapters on fewer projections cost less.
        let few = per_token(&config, TrainMode::Qlora, n_adapter / 7, 512.0, 1.0) / 1e6;
        assert!((mflop(512.0) - few - 6.0 * (n_adapter - n_adapter / 7) as f64 / 1e6).abs() < 1e-3, "{few}");
        assert!((utilisation(155_600.0, mflop(512.0) * 1e6) - 0.415).abs() < 1e-3);
    }
}
