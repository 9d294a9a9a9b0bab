//! Equal to transformers and PEFT on their values, tightly in float32 and within bfloat16's reach in bfloat16.

use crate::common::{CASES, Golden, adamw, frobenius, golden, options};
use engine::{
    Base, ComputeDevice, GenRequest, GenerateOptions, Generator, MicroBatch, Mode, Precision, Sampling,
    TrainOptions,
};
use model::adapter::Adapter;

fn on_gpu(precision: Precision) -> TrainOptions {
    TrainOptions { device: ComputeDevice::Cuda { id: 0 }, precision, ..options() }
}

fn relative(got: f64, want: f64) -> f64 {
    (got - want).abs() / want.abs()
}

#[test]
fn losses_equal_the_reference() {
    for case in CASES {
        let golden = golden(case);
        for (precision, bound) in [(Precision::Float32, 1e-5), (Precision::Bf16Rounded, 2e-3)] {
            let full = TrainOptions { mode: Mode::Full, ..on_gpu(precision) };
            for (name, options) in [("base.loss", full), ("lora.loss", on_gpu(precision))] {
                let sum = golden.trainer(options).evaluate(&golden.batch("")).unwrap();
                let error = relative(sum.sum / sum.label_tokens as f64, f64::from(golden.floats[name].1[0]));
                println!("{case} {name} {precision:?}: relative error {error:e}");
                assert!(error <= bound, "{case} {name} {precision:?}: {error}");
            }
        }
    }
}

/// Cosine of the angle, and ratio of the norms.
fn direction(a: &[f32], b: &[f32]) -> (f64, f64) {
    let dot =
        |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
    let (aa, bb) = (dot(a, a).sqrt(), dot(b, b).sqrt());
    (dot(a, b) / (aa * bb), aa / bb)
}

#[test]
fn gradients_equal_the_reference() {
    for case in CASES {
        let golden = golden(case);
        let reference: Vec<_> = golden.floats.iter().filter(|(name, _)| name.starts_with("grad.")).collect();
        let exact = golden.trainer(on_gpu(Precision::Float32)).gradients(&golden.batch("")).unwrap();
        assert_eq!(exact.len(), reference.len());
        let rounded = golden.trainer(on_gpu(Precision::Bf16Rounded)).gradients(&golden.batch("")).unwrap();
        let (mut worst, mut angle, mut stretch) = (0.0f64, 1.0f64, 0.0f64);
        let (mut all_got, mut all_want) = (Vec::new(), Vec::new());
        for (name, (_, want)) in reference {
            let name = name.trim_start_matches("grad.");
            let error = frobenius(&exact[name], want);
            worst = worst.max(error);
            assert!(error <= 1e-4, "{case} {name}: {error}");
            let (cosine, ratio) = direction(&rounded[name], want);
            angle = angle.min(cosine);
            stretch = stretch.max((ratio - 1.0).abs());
            all_got.extend_from_slice(&rounded[name]);
            all_want.extend_from_slice(want);
        }
        println!(
            "{case}: float32 within {worst:e}; bfloat16 cosine at least {angle:.6}, norm within {stretch:e}"
        );
        let (cosine, ratio) = direction(&all_got, &all_want);
        println!("{case}: bfloat16, all gradients together: cosine {cosine:.6}, norm {ratio:.6}");
        assert!(angle > 0.999, "{case}: cosine {angle}");
        assert!((ratio - 1.0).abs() < 0.01, "{case}: norm {ratio}");
    }
}

fn ten_steps(golden: &Golden, options: TrainOptions, bound: f64) -> Adapter {
    let mut trainer = golden.trainer(options);
    let base = trainer.base_sha256().unwrap();
    for (step, want) in golden.reference["train"].as_array().unwrap().iter().enumerate() {
        let number = |key: &str| want[key].as_f64().unwrap();
        let micro: Vec<MicroBatch> =
            (0..2).map(|i| golden.batch(&format!("micro.{}.", 2 * step + i))).collect();
        let got = trainer.step(&micro, &engine::AdamW { lr: number("lr"), ..adamw() }).unwrap();
        let loss = relative(got.loss, number("loss"));
        let norm = relative(got.grad_norm, number("grad_norm"));
        println!("step {step}: loss within {loss:e}, norm within {norm:e}");
        assert!(loss <= bound && norm <= 10.0 * bound, "step {step}: {loss} {norm}");
        assert_eq!(got.label_tokens as f64, number("label_tokens"));
    }
    assert_eq!(trainer.base_sha256().unwrap(), base, "the base changed");
    trainer.adapter().unwrap().unwrap()
}

#[test]
fn ten_steps_equal_the_reference() {
    for case in CASES {
        let golden = golden(case);
        let after = Adapter::load(&golden.dir.join("adapter_after_10_steps"), &golden.config).unwrap();
        let flat = |adapter: &Adapter| adapter.tensors.values().flat_map(|t| t.to_f32()).collect::<Vec<_>>();
        let trained = ten_steps(&golden, on_gpu(Precision::Float32), 1e-4);
        let error = frobenius(&flat(&trained), &flat(&after));
        println!("{case}: adapter after ten steps in float32, relative error {error:e}");
        assert!(error <= 1e-4, "{case}: {error}");
        ten_steps(&golden, on_gpu(Precision::Bf16Rounded), 2e-3);
    }
}

#[test]
fn greedy_tokens_equal_the_reference() {
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
            let options = GenerateOptions {
                threads: 1,
                max_tokens: 512,
                max_length: 512,
                max_sequences: 64,
                base: Base::Float32,
                precision: Precision::Float32,
                device: ComputeDevice::Cuda { id: 0 },
            };
            let adapter = adapted.then_some(&golden.adapter);
            let mut generator = Generator::new(&golden.config, &golden.weights, adapter, options).unwrap();
            let results = generator.generate(&requests, &mut |_, _| true).unwrap();
            assert!(!entries.is_empty());
            for (entry, result) in entries.iter().zip(results) {
                assert_eq!(result.ids, ids(&entry["completion"]), "{case} {which}");
            }
        }
    }
}
