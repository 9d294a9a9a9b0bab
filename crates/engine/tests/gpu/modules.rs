//! Adapters on some of the projections: whatever is left out, the gradients of the others are those of the CPU.

use crate::common::{frobenius, options, random_adapter, random_model, sequence};
use engine::{ComputeDevice, MicroBatch, Precision, SavePolicy, TrainOptions, Trainer};
use model::adapter::Adapter;
use model::config::Config;
use model::names::Projection;

/// Heads of 64 and rank 16 take the kernels for tensor cores, the odd sizes the plain ones.
fn configs() -> [(Config, usize); 2] {
    let config = |hidden, heads: (usize, usize), ffn| Config {
        hidden_size: hidden,
        intermediate_size: ffn,
        num_hidden_layers: 2,
        num_attention_heads: heads.0,
        num_key_value_heads: heads.1,
        head_dim: hidden / heads.0,
        vocab_size: 333,
        max_position_embeddings: 512,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
    };
    [(config(448, (7, 1), 320), 16), (config(24, (6, 2), 40), 3)]
}

/// Every projection alone, every set that lacks one, and pairs from different products.
fn sets() -> Vec<Vec<Projection>> {
    let all = Projection::ALL;
    let alone = all.iter().map(|&one| vec![one]);
    let without = all.iter().map(|&one| all.iter().copied().filter(|&p| p != one).collect());
    let pairs = [(0, 2), (3, 6), (1, 4), (2, 5), (4, 5)].map(|(a, b)| vec![all[a], all[b]]);
    alone.chain(without).chain(pairs).collect()
}

fn adapter_on(config: &Config, rank: usize, modules: &[Projection]) -> Adapter {
    let mut adapter = random_adapter(config, rank, 2.0 * rank as f64, 5);
    let name = |name: &str, module: &Projection| name.contains(&format!(".{}.", module.name()));
    adapter.tensors.retain(|tensor, _| modules.iter().any(|module| name(tensor, module)));
    adapter.config.target_modules = modules.to_vec();
    adapter
}

#[test]
fn any_set_of_projections_may_be_trained() {
    for (config, rank) in configs() {
        let weights = random_model(&config, 3);
        let sequences = [(1, 40, 3), (2, 1, 0), (3, 61, 20)];
        let sequences = sequences.map(|(id, length, prompt)| sequence(&config, id, length, prompt)).to_vec();
        let batch = MicroBatch { sequences };
        for modules in sets() {
            let adapter = adapter_on(&config, rank, &modules);
            let gradients = |device, precision, save| {
                let options = TrainOptions { device, precision, save, dropout: 0.1, ..options() };
                let mut trainer = Trainer::new(&config, &weights, Some(&adapter), options).unwrap();
                trainer.gradients(&batch).unwrap()
            };
            let gpu = ComputeDevice::Cuda { id: 0 };
            let want = gradients(ComputeDevice::Cpu, Precision::Float32, SavePolicy::All);
            let theirs = gradients(ComputeDevice::Cpu, Precision::Bf16Rounded, SavePolicy::All);
            assert_eq!(want.len(), adapter.tensors.len());
            let all = want.values().flatten().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            for save in [SavePolicy::All, SavePolicy::NoGateUp] {
                let exact = gradients(gpu, Precision::Float32, save);
                let rounded = gradients(gpu, Precision::Bf16Rounded, save);
                assert!(exact.keys().eq(want.keys()) && rounded.keys().eq(want.keys()), "{modules:?}");
                for (name, want) in &want {
                    // Those of queries and keys are small differences of larger numbers.
                    let norm = want.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                    let error = frobenius(&exact[name], want) * norm;
                    let place = format!("{modules:?} {save:?} {name}: {error} of {norm}, all {all}");
                    assert!(error <= f64::max(1e-4 * norm, 1e-5 * all), "{place}");
                    // What rounding costs a gradient depends on the set (much for queries and keys): the CPU's rounding tells.
                    let [ours, theirs] = [&rounded[name], &theirs[name]].map(|got| frobenius(got, want));
                    let place = format!("{modules:?} {save:?} {name}: {ours} here, {theirs} on the CPU");
                    assert!(ours <= 0.02 || ours <= 3.0 * theirs, "{place}");
                }
            }
        }
    }
}
