//! Adapters on some of the projections: whatever is left out, the gradients of the others are those of the CPU.

use crate::common::agreement::{
    Agreement, BATCHES, Gradients, Worst, adapter, batches, configs, model, sets,
};
use crate::common::{frobenius, options};
use engine::{ComputeDevice, Mode, Precision, SavePolicy, TrainOptions, Trainer};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;

/// A GPU in both precisions and under each policy against the CPU: in float32 within 1e-4, in bfloat16 within rounding.
///
/// # Errors
/// What is not.
pub(crate) fn agrees(
    what: &str,
    config: &Config,
    weights: &Weights,
    adapter: &Adapter,
    mode: Mode,
    policies: &[SavePolicy],
) -> Result<Worst, String> {
    let batches = batches(config, BATCHES);
    let gradients = |device, precision, save, packed_base| -> Vec<Gradients> {
        let options = TrainOptions {
            mode,
            device,
            precision,
            save,
            packed_base,
            dropout: 0.1,
            threads: 4,
            ..options()
        };
        let mut trainer = Trainer::new(config, weights, Some(adapter), options).unwrap();
        batches.iter().map(|batch| trainer.gradients(batch).unwrap()).collect()
    };
    let wanted = gradients(ComputeDevice::Cpu, Precision::Float32, SavePolicy::All, false);
    let rounded = gradients(ComputeDevice::Cpu, Precision::Bf16Rounded, SavePolicy::All, false);
    assert_eq!(wanted[0].len(), adapter.tensors.len());
    let (gpu, packed) = (ComputeDevice::Cuda { id: 0 }, matches!(mode, Mode::Qlora { .. }));
    let mut worst = Worst::default();
    for &save in policies {
        let exact = gradients(gpu, Precision::Float32, save, packed);
        for (exact, wanted) in exact.iter().zip(&wanted) {
            for (name, wanted) in wanted {
                let error = frobenius(&exact[name], wanted);
                // NaN is refused too.
                if error.is_nan() || error > 1e-4 {
                    return Err(format!("{what} {save:?} {name}: {error} in float32"));
                }
            }
        }
        let mut agreement = Agreement::default();
        let found = gradients(gpu, Precision::Bf16Rounded, save, packed);
        for ((wanted, rounded), found) in wanted.iter().zip(&rounded).zip(&found) {
            agreement.add(wanted, rounded, found);
        }
        let verdict = agreement.verdict();
        worst = worst.or(verdict.map_err(|error| format!("{what} {save:?}, bfloat16: {error}"))?);
    }
    println!("{what}: {worst:?}");
    Ok(worst)
}

#[test]
fn any_set_of_projections_may_be_trained() {
    let mut wrong = Vec::new();
    for (config, rank) in configs() {
        let weights = model(&config);
        let mut worst = Worst::default();
        for modules in sets() {
            let adapter = adapter(&config, rank, &modules);
            let policies = [SavePolicy::All, SavePolicy::NoGateUp];
            let what = format!("rank {rank} {modules:?}");
            match agrees(&what, &config, &weights, &adapter, Mode::Lora, &policies) {
                Ok(found) => worst = worst.or(found),
                Err(error) => wrong.push(error),
            }
        }
        println!("rank {rank}, all sets: {worst:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
