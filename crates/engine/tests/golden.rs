//! Equal to the reference implementation: logits, losses, gradients, optimizer steps, greedy tokens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{CASES, Golden, adamw, frobenius, golden, max_relative, options};
use engine::{
    Base, ComputeDevice, GenRequest, GenerateOptions, Generator, MicroBatch, Mode, Precision, Sampling,
    TrainOptions,
};
use model::adapter::Adapter;

fn generator(golden: &Golden, adapted: bool) -> Generator {
    let options = GenerateOptions {
        threads: 1,
        max_tokens: 512,
        max_length: 512,
        max_sequences: 64,
        base: Base::Float32,
        precision: Precision::Float32,
        device: ComputeDevice::Cpu,
    };
    let adapter = adapted.then_some(&golden.adapter);
    Generator::new(&golden.config, &golden.weights, adapter, options).unwrap()
}

#[test]
fn logits() {
    for case in CASES {
        let golden = golden(case);
        for (adapted, name) in [(false, "base.logits"), (true, "lora.logits")] {
            let mut generator = generator(&golden, adapted);
            let (shape, reference) = &golden.floats[name];
            let row = shape[1] * shape[2];
            for (i, sequence) in golden.batch("").sequences.iter().enumerate() {
                let got = generator.logits(&sequence.input_ids).unwrap();
                let want = &reference[i * row..i * row + got.len()];
                let error = max_relative(&got, want);
                println!("{case} {name} sequence {i}: max relative error {error:e}");
                assert!(error <= 1e-4, "{case} {name} {i}: {error}");
            }
        }
    }
}

#[test]
fn losses() {
    for case in CASES {
        let golden = golden(case);
        let full = TrainOptions { mode: Mode::Full, ..options() };
        for (name, options) in [("base.loss", full), ("lora.loss", options())] {
            let sum = golden.trainer(options).evaluate(&golden.batch("")).unwrap();
            let (got, want) = (sum.sum / sum.label_tokens as f64, f64::from(golden.floats[name].1[0]));
            println!("{case} {name}: relative error {:e}", (got - want).abs() / want);
            assert!((got - want).abs() <= 1e-5 * want, "{case} {name}: {got} {want}");
        }
    }
}

#[test]
fn gradients() {
    for case in CASES {
        let golden = golden(case);
        let gradients = golden.trainer(options()).gradients(&golden.batch("")).unwrap();
        let reference: Vec<_> = golden.floats.iter().filter(|(name, _)| name.starts_with("grad.")).collect();
        assert_eq!(gradients.len(), reference.len());
        let mut worst = 0.0f64;
        for (name, (_, want)) in reference {
            let name = name.trim_start_matches("grad.");
            let error = frobenius(&gradients[name], want);
            worst = worst.max(error);
            assert!(error <= 1e-4, "{case} {name}: {error}");
        }
        println!("{case}: {} gradients, worst relative error {worst:e}", gradients.len());
    }
}

#[test]
fn ten_steps() {
    for case in CASES {
        let golden = golden(case);
        let mut trainer = golden.trainer(options());
        let base = trainer.base_sha256().unwrap();
        for (step, want) in golden.reference["train"].as_array().unwrap().iter().enumerate() {
            let number = |key: &str| want[key].as_f64().unwrap();
            let micro: Vec<MicroBatch> =
                (0..2).map(|i| golden.batch(&format!("micro.{}.", 2 * step + i))).collect();
            let optimizer = engine::AdamW { lr: number("lr"), ..adamw() };
            let got = trainer.step(&micro, &optimizer).unwrap();
            for (what, got, want) in
                [("loss", got.loss, number("loss")), ("norm", got.grad_norm, number("grad_norm"))]
            {
                assert!((got - want).abs() <= 1e-5 * want, "{case} step {step} {what}: {got} {want}");
            }
            assert_eq!(got.label_tokens as f64, number("label_tokens"));
        }
        let after = Adapter::load(&golden.dir.join("adapter_after_10_steps"), &golden.config).unwrap();
        let trained = trainer.adapter().unwrap().unwrap();
        let flat = |adapter: &Adapter| adapter.tensors.values().flat_map(|t| t.to_f32()).collect::<Vec<_>>();
        let error = frobenius(&flat(&trained), &flat(&after));
        println!("{case}: adapter after ten steps, relative error {error:e}");
        assert!(error <= 1e-5, "{case}: {error}");
        for (name, tensor) in &after.tensors {
            let error = frobenius(&trained.tensors[name].to_f32(), &tensor.to_f32());
            assert!(error <= 1e-5, "{case} {name}: {error}");
        }
        assert_eq!(trainer.base_sha256().unwrap(), base, "the base changed");
    }
}

#[test]
fn greedy_tokens() {
    for case in CASES {
        let golden = golden(case);
        let all = golden.reference["generation"].as_array().unwrap();
        for (which, adapted) in [("base", false), ("lora", true)] {
            let ids = |value: &serde_json::Value| -> Vec<u32> {
                value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let entries: Vec<_> = all.iter().filter(|entry| entry["which"] == which).collect();
            let requests: Vec<GenRequest> = entries
                .iter()
                .enumerate()
                .map(|(i, entry)| GenRequest {
                    sequence_id: i as u64,
                    prompt_ids: ids(&entry["prompt"]),
                    max_new_tokens: 24,
                    sampling: Sampling::Greedy,
                    stop_ids: Vec::new(),
                    banned_from: None,
                })
                .collect();
            let results = generator(&golden, adapted).generate(&requests, &mut |_, _| true).unwrap();
            assert!(!entries.is_empty());
            for (entry, result) in entries.iter().zip(results) {
                assert_eq!(result.ids, ids(&entry["completion"]), "{case} {which}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let golden = golden("qwen2-gqa7");
    let run = |threads| {
        let mut trainer = golden.trainer(TrainOptions { threads, dropout: 0.1, ..options() });
        let outcome = trainer.step(&[golden.batch("micro.0."), golden.batch("micro.1.")], &adamw()).unwrap();
        (outcome, trainer.state().unwrap())
    };
    assert_eq!(run(1), run(2));
}
