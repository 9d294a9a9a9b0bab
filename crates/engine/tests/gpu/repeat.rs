//! The same bits: in another process's place, from a graph or launch by launch, stopped and resumed.

use crate::common::{adamw, golden, options, random_adapter, tiny_config, tiny_micro, tiny_trainer};
use engine::{ComputeDevice, MicroBatch, Mode, Precision, SavePolicy, TrainOptions, Trainer};

fn on_gpu() -> TrainOptions {
    let device = ComputeDevice::Cuda { id: 0 };
    TrainOptions { device, precision: Precision::Bf16Rounded, dropout: 0.1, ..options() }
}

fn batches(step: u64) -> Vec<MicroBatch> {
    vec![tiny_micro(&[(10 * step, 30, 3), (10 * step + 1, 7, 0)]), tiny_micro(&[(10 * step + 2, 41, 9)])]
}

fn go(trainer: &mut Trainer, steps: std::ops::Range<u64>) -> Vec<(f64, f64)> {
    steps
        .map(|step| {
            let outcome = trainer.step(&batches(step), &adamw()).unwrap();
            assert!(outcome.grad_norm > 0.0);
            (outcome.loss, outcome.grad_norm)
        })
        .collect()
}

#[test]
fn two_runs_have_the_same_bits() {
    for mode in [Mode::Lora, Mode::Full, Mode::Qlora { double_quant: true }] {
        let run = || {
            let mut trainer = tiny_trainer(TrainOptions { mode, ..on_gpu() });
            (go(&mut trainer, 0..6), trainer.state().unwrap())
        };
        assert!(run() == run(), "{mode:?}: two runs differ");
    }
}

#[test]
fn stopped_and_resumed_is_as_in_one_piece() {
    for mode in [Mode::Lora, Mode::Full] {
        let options = TrainOptions { mode, ..on_gpu() };
        let mut whole = tiny_trainer(options.clone());
        let all = go(&mut whole, 0..6);
        let mut first = tiny_trainer(options.clone());
        let mut parts = go(&mut first, 0..3);
        let mut second = tiny_trainer(options);
        second.load_state(&first.state().unwrap()).unwrap();
        parts.extend(go(&mut second, 3..6));
        assert_eq!(all, parts, "{mode:?}");
        assert!(whole.state().unwrap() == second.state().unwrap(), "{mode:?}");
    }
}

/// Each step's first pass runs while the one before it is looked at; whatever is asked in between, or if other rows come than
/// those that were prepared, it makes no difference.
#[test]
fn steps_begun_ahead_have_the_same_bits() {
    for mode in [Mode::Lora, Mode::Full] {
        let options = TrainOptions { mode, ..on_gpu() };
        let mut plain = tiny_trainer(options.clone());
        let expected = go(&mut plain, 0..8);
        let looked_at = tiny_micro(&[(99, 23, 2)]);
        let (loss, state) = (plain.evaluate(&looked_at).unwrap(), plain.state().unwrap());
        let gradients = plain.gradients(&looked_at).unwrap();

        let mut ahead = tiny_trainer(options);
        let mut now = ahead.packer().prepare(&batches(0)).unwrap();
        let mut found = Vec::new();
        for step in 0..8 {
            // After the sixth step others are promised than come.
            let promised = batches(if step == 5 { 77 } else { step + 1 });
            let next = |packer: engine::Packer| Some(packer.prepare(&promised));
            let (outcome, prepared) = ahead.step_and_prepare(&now, &adamw(), next).unwrap();
            found.push((outcome.loss, outcome.grad_norm));
            now = prepared.unwrap().unwrap();
            match step {
                1 => assert!(ahead.evaluate(&looked_at).unwrap().sum > 0.0),
                2 => assert!(!ahead.gradients(&looked_at).unwrap().is_empty()),
                3 => assert_eq!(ahead.state().unwrap().step, 4),
                4 => {
                    let state = ahead.state().unwrap();
                    ahead.load_state(&state).unwrap();
                }
                5 => now = ahead.packer().prepare(&batches(6)).unwrap(),
                _ => {}
            }
        }
        assert_eq!(found, expected, "{mode:?}");
        assert_eq!(ahead.evaluate(&looked_at).unwrap(), loss, "{mode:?}");
        assert!(ahead.state().unwrap() == state, "{mode:?}");
        assert!(ahead.gradients(&looked_at).unwrap() == gradients, "{mode:?}");
        let mut rest = (go(&mut ahead, 8..10), go(&mut plain, 8..10));
        rest.0.extend(go(&mut ahead, 10..11));
        rest.1.extend(go(&mut plain, 10..11));
        assert_eq!(rest.0, rest.1, "{mode:?}");
    }
}

#[test]
fn what_is_computed_again_does_not_change_a_bit() {
    let run = |save| {
        let mut trainer = tiny_trainer(TrainOptions { save, ..on_gpu() });
        (go(&mut trainer, 0..3), trainer.state().unwrap())
    };
    let all = run(SavePolicy::All);
    assert!(all == run(SavePolicy::NoGateUp) && all == run(SavePolicy::Input));
}

#[test]
fn a_packed_base_has_the_same_bits() {
    for double_quant in [true, false] {
        let run = |packed_base| {
            let mode = Mode::Qlora { double_quant };
            let mut trainer = tiny_trainer(TrainOptions { mode, packed_base, ..on_gpu() });
            (go(&mut trainer, 0..4), trainer.state().unwrap(), trainer.base_sha256().unwrap())
        };
        assert!(run(true) == run(false), "double quantisation {double_quant}");
    }
}

#[test]
fn the_gpu_s_learning_curve_is_the_cpu_s() {
    let golden = golden("qwen2-gqa7");
    let curve = |device, precision| {
        let mut trainer = golden.trainer(TrainOptions { device, precision, mode: Mode::Full, ..options() });
        let rule = engine::AdamW { lr: 1e-3, ..adamw() };
        (0..20).map(|_| trainer.step(&[golden.batch("")], &rule).unwrap().loss).collect::<Vec<_>>()
    };
    let cpu = curve(ComputeDevice::Cpu, Precision::Float32);
    let gpu = curve(ComputeDevice::Cuda { id: 0 }, Precision::Bf16Rounded);
    println!("cpu {cpu:?}\ngpu {gpu:?}");
    assert!(gpu[19] < 0.8 * gpu[0], "the loss does not fall");
    for (a, b) in cpu.iter().zip(&gpu) {
        assert!((a - b).abs() <= 2e-2 * a, "{a} {b}");
    }
}

/// Only partial sums, which lowering finds out, are not in the plan of a trainer that nobody made.
#[test]
fn memory_is_known_without_a_trainer() {
    for packed_base in [true, false] {
        let options = TrainOptions { mode: Mode::Qlora { double_quant: true }, packed_base, ..on_gpu() };
        let lora = random_adapter(&tiny_config(), 4, 8.0, 5).config;
        let planned = engine::Trainer::plan_bytes(&tiny_config(), Some(&lora), &options);
        let held = tiny_trainer(options).planned_peak_bytes();
        assert!((planned..planned + (256 << 20)).contains(&held), "{planned} planned, {held} held");
    }
}

/// More losses in one step than the backend keeps between two waits: the mean is that of the rows' own.
#[test]
fn a_step_of_very_many_micro_batches() {
    let mut trainer = tiny_trainer(TrainOptions { dropout: 0.0, ..on_gpu() });
    let one = tiny_micro(&[(1, 12, 3)]);
    let alone = trainer.evaluate(&one).unwrap();
    let n = engine::backend::NOTES + 1;
    let all = vec![one; n];
    assert!(trainer.evaluate_all(&all).unwrap().iter().all(|loss| *loss == alone));
    let outcome = trainer.step(&all, &adamw()).unwrap();
    let mean = alone.sum / alone.label_tokens as f64;
    assert!((outcome.loss - mean).abs() <= 1e-3 * mean, "{} instead of {mean}", outcome.loss);
    assert_eq!(outcome.label_tokens, n as u64 * alone.label_tokens);
}
