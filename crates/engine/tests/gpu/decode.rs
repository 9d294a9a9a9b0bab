//! Generation: a sequence's tokens are its own, whatever runs beside it; and what a step of decoding costs.

use crate::common::{random_adapter, random_model};
use engine::{Base, ComputeDevice, GenRequest, GenerateOptions, Generator, Precision, Sampling};
use model::config::Config;
use model::weights::Weights;
use model::{Dtype, init};

/// The projections of the 0.5B shape, with fewer layers and tokens.
pub(crate) fn narrow(layers: usize, vocab_size: usize) -> Config {
    Config {
        hidden_size: 896,
        intermediate_size: 4864,
        num_hidden_layers: layers,
        num_attention_heads: 14,
        num_key_value_heads: 2,
        head_dim: 64,
        vocab_size,
        max_position_embeddings: 32_768,
        rope_theta: 1e6,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
    }
}

fn generator_of(
    config: &Config,
    weights: &Weights,
    precision: Precision,
    adapted: bool,
    max_tokens: usize,
) -> Generator {
    let adapter = adapted.then(|| random_adapter(config, 16, 32.0, 5));
    let options = GenerateOptions {
        threads: 16,
        max_tokens,
        max_length: max_tokens.min(1024),
        max_sequences: 64,
        base: Base::Nf4 { double_quant: true },
        precision,
        device: ComputeDevice::Cuda { id: 0 },
    };
    Generator::new(config, weights, adapter.as_ref(), options).unwrap()
}

fn requests(config: &Config, n: u64) -> Vec<GenRequest> {
    (0..n)
        .map(|i| GenRequest {
            sequence_id: i,
            prompt_ids: (0..5 + 37 * (i % 9))
                .map(|j| ((i * 31 + j * 7) % config.vocab_size as u64) as u32)
                .collect(),
            max_new_tokens: 40,
            sampling: Sampling::Sample { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 9 },
            stop_ids: Vec::new(),
            banned_from: None,
        })
        .collect()
}

#[test]
fn logits_do_not_depend_on_how_many_tokens_go_together() {
    let config = narrow(2, 1003);
    let weights = random_model(&config, 3);
    let ids: Vec<u32> = (0..256).map(|i| (i * 13 % 1003) as u32).collect();
    for precision in [Precision::Float32, Precision::Bf16Rounded] {
        for adapted in [false, true] {
            let mut generator = generator_of(&config, &weights, precision, adapted, 512);
            let all = generator.logits(&ids[..64]).unwrap();
            let mut wrong = Vec::new();
            for n in [1, 2, 4, 5, 9, 16, 17, 33, 48] {
                let some = generator.logits(&ids[..n]).unwrap();
                if some.iter().zip(&all).any(|(a, b)| a.to_bits() != b.to_bits()) {
                    wrong.push(n);
                }
            }
            println!("{precision:?}, adapter {adapted}: other bits than among 64 with {wrong:?} tokens");
            assert!(wrong.is_empty(), "{precision:?}, adapter {adapted}: {wrong:?}");
        }
    }
}

#[test]
fn a_sequence_s_tokens_do_not_depend_on_its_neighbours() {
    let config = narrow(2, 1003);
    let weights = random_model(&config, 3);
    for (precision, adapted) in [(Precision::Float32, false), (Precision::Bf16Rounded, true)] {
        let all = requests(&config, 70);
        let mut together = generator_of(&config, &weights, precision, adapted, 70 * 350);
        let together = together.generate(&all, &mut |_, _| true).unwrap();
        let mut alone = generator_of(&config, &weights, precision, adapted, 350);
        let mut wrong = 0;
        for (request, together) in all.iter().zip(&together).step_by(5) {
            let alone = alone.generate(std::slice::from_ref(request), &mut |_, _| true).unwrap();
            wrong += usize::from(alone[0].ids != together.ids);
        }
        println!("{precision:?}: {wrong} of 14 differ");
        assert_eq!(wrong, 0, "{precision:?}");
    }
}

#[test]
fn bench_decode() {
    let config = narrow(24, 151_936);
    let weights = init::random_weights_in(&config, 3, Dtype::Bf16);
    for (precision, adapted) in [(Precision::Bf16Rounded, false), (Precision::Bf16Rounded, true)] {
        let mut generator = generator_of(&config, &weights, precision, adapted, 64 * 1024);
        for sequences in [1, 16, 64] {
            let times = generator.profile(sequences, 700).unwrap();
            let total: f64 = times.iter().map(|t| t.ms).sum();
            println!("{precision:?}, adapter {adapted}, {sequences} sequences: {total:.3} ms");
            for time in times.iter().take(16) {
                println!("  {:9.4} ms {:4} x {}", time.ms, time.launches, time.name);
            }
        }
    }
}
