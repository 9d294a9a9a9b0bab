//! The head computes its logits in chunks of rows: neither many chunks nor empty ones change a result.

mod common;

use common::{frobenius, options, tiny_micro, tiny_trainer};
use engine::plan::HEAD_CHUNK;
use engine::{Mode, TrainOptions};

fn room(mode: Mode, chunks: usize) -> TrainOptions {
    TrainOptions { mode, max_tokens: chunks * HEAD_CHUNK, ..options() }
}

#[test]
fn a_small_batch_in_a_trainer_with_room_for_a_large_one_has_the_same_bits() {
    let small = tiny_micro(&[(1, 20, 4), (2, 7, 1)]);
    for mode in [Mode::Lora, Mode::Full] {
        let (mut one, mut many) = (tiny_trainer(room(mode, 1)), tiny_trainer(room(mode, 4)));
        assert_eq!(one.evaluate(&small).unwrap(), many.evaluate(&small).unwrap());
        assert_eq!(one.gradients(&small).unwrap(), many.gradients(&small).unwrap());
    }
}

#[test]
fn losses_and_gradients_over_several_chunks_are_those_of_the_sequences() {
    // 2 full chunks and a part of a third.
    let lengths = [(1, 300, 1), (2, 250, 5), (3, 90, 2)];
    for mode in [Mode::Lora, Mode::Full] {
        let mut trainer = tiny_trainer(room(mode, 4));
        let together = trainer.evaluate(&tiny_micro(&lengths)).unwrap();
        let gradients = trainer.gradients(&tiny_micro(&lengths)).unwrap();
        let (mut sum, mut label_tokens) = (0.0, 0);
        let mut apart: Vec<(f64, _)> = Vec::new();
        for one in lengths {
            let micro = tiny_micro(&[one]);
            let loss = trainer.evaluate(&micro).unwrap();
            (sum, label_tokens) = (sum + loss.sum, label_tokens + loss.label_tokens);
            apart.push((loss.label_tokens as f64, trainer.gradients(&micro).unwrap()));
        }
        assert_eq!(together.label_tokens, label_tokens);
        assert!((together.sum - sum).abs() < 1e-5 * sum);
        for (name, together) in &gradients {
            let mean: Vec<f32> = (0..together.len())
                .map(|i| {
                    apart.iter().map(|(n, g)| f64::from(g[name][i]) * n).sum::<f64>() / label_tokens as f64
                })
                .map(|x| x as f32)
                .collect();
            assert!(frobenius(together, &mean) < 1e-5, "{name}");
        }
    }
}
