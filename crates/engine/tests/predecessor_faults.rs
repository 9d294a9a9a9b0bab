//! One test for each fault that an earlier implementation of the same specification had. None may ever come back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{
    adamw, frobenius, golden, options, random_adapter, random_model, sequence, tiny_config, tiny_micro,
    tiny_trainer,
};
use engine::{
    Base, ComputeDevice, GenerateOptions, Generator, MicroBatch, Mode, Precision, SavePolicy, Sequence,
    TrainOptions, Trainer,
};
use model::Tensor;
use model::config::Config;
use model::weights::Weights;

fn full() -> TrainOptions {
    TrainOptions { mode: Mode::Full, ..options() }
}

/// The training forward's loss on one sequence, without adapters.
fn training_loss(config: &Config, weights: &Weights, ids: &[u32]) -> f64 {
    let labels = ids.iter().map(|&id| id as i32).collect();
    let micro = MicroBatch { sequences: vec![Sequence { sample_id: 0, input_ids: ids.to_vec(), labels }] };
    let mut trainer = Trainer::new(config, weights, None, full()).unwrap();
    trainer.evaluate(&micro).unwrap().sum
}

/// The weights with `change` applied to the tensors whose names contain `part`.
fn changed(config: &Config, part: &str, change: impl Fn(Vec<f32>) -> Vec<f32>) -> Weights {
    let weights = random_model(config, 3);
    let tensors = weights.iter().map(|(name, tensor)| {
        let values = if name.contains(part) { change(tensor.to_f32()) } else { tensor.to_f32() };
        (name.to_owned(), Tensor::from_f32(tensor.shape().to_vec(), &values).unwrap())
    });
    Weights::from_tensors(tensors.collect(), config).unwrap()
}

/// RoPE was missing in the training forward.
#[test]
fn rope_rotates_in_the_training_forward() {
    let config = tiny_config();
    let weights = random_model(&config, 3);
    let ids = sequence(&config, 1, 20, 0).input_ids;
    let other = Config { rope_theta: 1e6, ..config.clone() };
    let (a, b) = (training_loss(&config, &weights, &ids), training_loss(&other, &weights, &ids));
    assert!((a - b).abs() > 1e-4 * a, "the rotary base has no effect: {a} {b}");
    // Without positions, exchanging two early tokens would leave what a last token sees unchanged.
    let mut generator = generator(&config, &weights);
    let mut swapped = ids.clone();
    swapped.swap(3, 9);
    let vocab = config.vocab_size;
    let last = |logits: Vec<f32>| logits[19 * vocab..].to_vec();
    let (a, b) = (last(generator.logits(&ids).unwrap()), last(generator.logits(&swapped).unwrap()));
    assert!(frobenius(&a, &b) > 1e-3);
}

fn generator(config: &Config, weights: &Weights) -> Generator {
    let options = GenerateOptions {
        threads: 1,
        max_tokens: 64,
        max_length: 64,
        max_sequences: 64,
        base: Base::Float32,
        precision: Precision::Float32,
        device: ComputeDevice::Cpu,
    };
    Generator::new(config, weights, None, options).unwrap()
}

/// The biases of query, key and value were never applied.
#[test]
fn biases_of_query_key_and_value_are_applied() {
    let config = tiny_config();
    let ids = sequence(&config, 1, 20, 0).input_ids;
    let reference = training_loss(&config, &random_model(&config, 3), &ids);
    for part in ["q_proj.bias", "k_proj.bias", "v_proj.bias"] {
        let without = changed(&config, part, |values| vec![0.0; values.len()]);
        let loss = training_loss(&config, &without, &ids);
        assert!((loss - reference).abs() > 1e-5 * reference, "{part} has no effect");
    }
}

/// One gradient buffer served all layers.
#[test]
fn every_layer_has_its_own_gradient() {
    for options in [options(), full()] {
        let gradients = tiny_trainer(options).gradients(&tiny_micro(&[(1, 20, 2)])).unwrap();
        let mut compared = 0;
        for (name, first) in gradients.iter().filter(|(name, _)| name.contains("layers.0.")) {
            let second = &gradients[&name.replace("layers.0.", "layers.1.")];
            assert!(frobenius(first, second) > 1e-2, "{name} is the same in both layers");
            compared += 1;
        }
        assert!(compared >= 12);
    }
}

/// Weights were read `in x out` instead of `out x in`.
#[test]
fn weights_are_out_by_in() {
    // o_proj is square here, so reading it transposed would fit and go unnoticed.
    let config = tiny_config();
    let d = config.hidden_size;
    let ids = sequence(&config, 1, 20, 0).input_ids;
    let transposed =
        changed(&config, "o_proj.weight", |w| (0..d * d).map(|i| w[i % d * d + i / d]).collect());
    let (a, b) =
        (training_loss(&config, &random_model(&config, 3), &ids), training_loss(&config, &transposed, &ids));
    assert!((a - b).abs() > 1e-4 * a);
    // And the right one of the two is the reference implementation's.
    let golden = golden("qwen2-gqa7");
    let sum = golden.trainer(full()).evaluate(&golden.batch("")).unwrap();
    let reference = f64::from(golden.floats["base.loss"].1[0]);
    assert!((sum.sum / sum.label_tokens as f64 - reference).abs() < 1e-5 * reference);
}

/// Alpha had no effect.
#[test]
fn alpha_takes_effect_in_training() {
    let config = tiny_config();
    let weights = random_model(&config, 3);
    let micro = tiny_micro(&[(1, 20, 2)]);
    let run = |alpha: f64| {
        let adapter = random_adapter(&config, 4, alpha, 5);
        let mut trainer = Trainer::new(&config, &weights, Some(&adapter), options()).unwrap();
        (trainer.evaluate(&micro).unwrap().sum, trainer.gradients(&micro).unwrap())
    };
    let ((loss, gradients), (louder, doubled)) = (run(8.0), run(16.0));
    assert!((loss - louder).abs() > 1e-4 * loss);
    assert!(gradients.iter().all(|(name, g)| frobenius(&doubled[name], g) > 1e-2));
}

/// Adapters sat on Q and V only.
#[test]
fn all_seven_projections_carry_adapters_that_train() {
    let mut trainer = tiny_trainer(options());
    let before = trainer.adapter().unwrap().unwrap();
    assert_eq!(before.tensors.len(), 2 * 7 * 2);
    trainer.step(&[tiny_micro(&[(1, 20, 2)])], &adamw()).unwrap();
    let after = trainer.adapter().unwrap().unwrap();
    for (name, tensor) in &before.tensors {
        assert_ne!(after.tensors[name], *tensor, "{name} did not move");
    }
}

/// Attention had no causal mask.
#[test]
fn a_token_does_not_see_the_future() {
    let config = tiny_config();
    let weights = random_model(&config, 3);
    let ids = sequence(&config, 1, 20, 0).input_ids;
    let mut other = ids.clone();
    other[19] = (other[19] + 1) % config.vocab_size as u32;
    // In training: only the label changes for the row before, nothing for the rows before that.
    let micro = |ids: &[u32]| {
        let mut labels = vec![-100; 20];
        labels[1..19].copy_from_slice(&ids[1..19].iter().map(|&id| id as i32).collect::<Vec<_>>());
        MicroBatch { sequences: vec![Sequence { sample_id: 0, input_ids: ids.to_vec(), labels }] }
    };
    let mut trainer = Trainer::new(&config, &weights, None, full()).unwrap();
    let sums = [trainer.evaluate(&micro(&ids)).unwrap(), trainer.evaluate(&micro(&other)).unwrap()];
    assert_eq!(sums[0], sums[1]);
    // In generation likewise, and the last row does change.
    let mut generator = generator(&config, &weights);
    let (a, b) = (generator.logits(&ids).unwrap(), generator.logits(&other).unwrap());
    let seen = 19 * config.vocab_size;
    assert_eq!(a[..seen], b[..seen]);
    assert!(a[seen..] != b[seen..]);
}

/// The backward skipped norms, the activation, the up projection and attention.
#[test]
fn the_backward_goes_through_everything() {
    for save in [SavePolicy::All, SavePolicy::NoGateUp, SavePolicy::Input] {
        let gradients =
            tiny_trainer(TrainOptions { save, ..full() }).gradients(&tiny_micro(&[(1, 20, 2)])).unwrap();
        let config = tiny_config();
        for (name, shape) in model::names::expected(&config) {
            let gradient = &gradients[&name];
            assert_eq!(gradient.len(), shape.iter().product::<usize>());
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 1e-6, "{name} has no gradient");
        }
    }
}

/// Throughput was counted from planned, padded tokens.
#[test]
fn tokens_are_those_that_were_there() {
    let mut trainer = tiny_trainer(options());
    let micro = tiny_micro(&[(1, 20, 4), (2, 7, 1)]);
    let outcome = trainer.step(&[micro], &adamw()).unwrap();
    assert_eq!((outcome.tokens, outcome.label_tokens), (27, 16 + 6));
}
