//! The measure by which a GPU's gradients in bfloat16 are judged lets rounding pass, and no fault of 2 %.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::agreement::{Agreement, BATCHES, Gradients, adapter, batches, configs, model};
use common::options;
use engine::{Precision, TrainOptions, Trainer};
use model::Tensor;
use model::adapter::Adapter;
use model::config::Config;
use model::names::Projection;
use model::weights::Weights;

/// Of the first `n` batches.
fn gradients(
    (config, weights): (&Config, &Weights),
    adapter: &Adapter,
    precision: Precision,
    n: u64,
) -> Vec<Gradients> {
    let options = TrainOptions { precision, dropout: 0.1, threads: 2, ..options() };
    let mut trainer = Trainer::new(config, weights, Some(adapter), options).unwrap();
    batches(config, n).iter().map(|batch| trainer.gradients(batch).unwrap()).collect()
}

fn judged(wanted: &[Gradients], rounded: &[Gradients], found: &[Gradients]) -> Agreement {
    let mut agreement = Agreement::default();
    for ((wanted, rounded), found) in wanted.iter().zip(rounded).zip(found) {
        agreement.add(wanted, rounded, found);
    }
    agreement
}

/// One tensor of the gradients, times a factor.
fn times(all: &[Gradients], name: &str, factor: f32) -> Vec<Gradients> {
    let one = |gradients: &Gradients| {
        let values = gradients[name].iter().map(|x| x * factor).collect();
        Gradients::from([(name.to_owned(), values)])
    };
    all.iter().map(one).collect()
}

#[test]
fn rounding_passes_and_a_gradient_that_is_2_percent_off_does_not() {
    for (config, rank) in configs() {
        let (weights, adapter) = (model(&config), adapter(&config, rank, &Projection::ALL));
        let wanted = gradients((&config, &weights), &adapter, Precision::Float32, BATCHES);
        let rounded = gradients((&config, &weights), &adapter, Precision::Bf16Rounded, BATCHES);
        let worst = judged(&wanted, &rounded, &rounded).verdict().unwrap();
        println!("rank {rank}: {worst:?}");
        for name in wanted[0].keys() {
            let [wanted, rounded_alone] = [&wanted, &rounded].map(|all| times(all, name, 1.0));
            for factor in [0.98, 1.02] {
                let found = times(&rounded, name, factor);
                let verdict = judged(&wanted, &rounded_alone, &found).verdict();
                let error = verdict.expect_err(&format!("rank {rank}: {name} times {factor} passed"));
                assert!(error.starts_with(name), "{error}");
            }
        }
    }
}

#[test]
fn an_adapter_that_is_left_out_does_not_pass() {
    for (config, rank) in configs() {
        let (weights, adapter) = (model(&config), adapter(&config, rank, &Projection::ALL));
        let wanted = gradients((&config, &weights), &adapter, Precision::Float32, 2);
        let rounded = gradients((&config, &weights), &adapter, Precision::Bf16Rounded, 2);
        let all: Vec<&String> = adapter.tensors.keys().filter(|name| name.contains("lora_B")).collect();
        assert_eq!(all.len(), 14);
        for name in all {
            let mut lacking = adapter.clone();
            let tensor = &adapter.tensors[name];
            let zero = Tensor::from_f32(tensor.shape().to_vec(), &vec![0.0; tensor.len()]).unwrap();
            lacking.tensors.insert(name.clone(), zero);
            let mut found = gradients((&config, &weights), &lacking, Precision::Bf16Rounded, 2);
            // Its own gradients may be right all the same.
            for (found, right) in found.iter_mut().zip(&rounded) {
                for own in [name.clone(), name.replace("lora_B", "lora_A")] {
                    found.insert(own.clone(), right[&own].clone());
                }
            }
            assert!(judged(&wanted, &rounded, &found).verdict().is_err(), "rank {rank}: without {name}");
        }
    }
}
