//! What must not change a result, and what must.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{
    adamw, distance, frobenius, options, random_adapter, random_model, sequence, tiny_config, tiny_micro,
    tiny_trainer,
};
use engine::{
    AdamW, Base, ComputeDevice, EngineError, GenRequest, GenResult, GenerateOptions, Generator, MicroBatch,
    Mode, Precision, Sampling, SavePolicy, TrainOptions, Trainer,
};
use model::Tensor;
use model::adapter::Adapter;
use std::collections::BTreeMap;

const SEQUENCES: [(u64, usize, usize); 4] = [(1, 20, 4), (2, 7, 1), (3, 31, 10), (4, 2, 1)];

fn dropped() -> TrainOptions {
    TrainOptions { dropout: 0.3, ..options() }
}

fn mean(gradients: &[(u64, BTreeMap<String, Vec<f32>>)]) -> BTreeMap<String, Vec<f32>> {
    let total: u64 = gradients.iter().map(|g| g.0).sum();
    let mut sum: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (labels, gradient) in gradients {
        for (name, values) in gradient {
            let sum = sum.entry(name.clone()).or_insert_with(|| vec![0.0; values.len()]);
            for (sum, &value) in sum.iter_mut().zip(values) {
                *sum += f64::from(value) * *labels as f64 / total as f64;
            }
        }
    }
    sum.into_iter().map(|(name, values)| (name, values.into_iter().map(|v| v as f32).collect())).collect()
}

/// What the GPU's results are judged by.
#[test]
fn a_distance_sees_a_nan_and_a_wrong_element() {
    let (some, zeros) = ([1.0f32, -2.0, 3.0], [0.0f32; 3]);
    assert_eq!((distance(&some, &some), distance(&zeros, &zeros)), (0.0, 0.0));
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.5] {
        for at in 0..3 {
            for good in [some, zeros] {
                let mut bad = good;
                bad[at] = wrong;
                // as tests put it: NaN is within no bound
                for (got, want) in [(bad, good), (good, bad)] {
                    let error = distance(&got, &want);
                    let taken = error <= 0.1;
                    assert!(!taken, "{got:?} {want:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn packed_equals_separate() {
    for options in [options(), dropped(), TrainOptions { mode: Mode::Full, ..options() }] {
        let mut trainer = tiny_trainer(options);
        let together = trainer.gradients(&tiny_micro(&SEQUENCES)).unwrap();
        let mut apart = Vec::new();
        let (mut loss, mut labels) = (0.0, 0);
        for one in SEQUENCES {
            let micro = tiny_micro(&[one]);
            let sum = trainer.evaluate(&micro).unwrap();
            loss += sum.sum;
            labels += sum.label_tokens;
            apart.push((sum.label_tokens, trainer.gradients(&micro).unwrap()));
        }
        for (name, want) in mean(&apart) {
            assert!(frobenius(&together[&name], &want) < 2e-6, "{name}");
        }
        let sum = trainer.evaluate(&tiny_micro(&SEQUENCES)).unwrap();
        assert_eq!(sum.label_tokens, labels);
        assert!((sum.sum - loss).abs() < 1e-5 * loss);
    }
}

#[test]
fn masks_do_not_depend_on_the_order_of_packing() {
    let mut trainer = tiny_trainer(dropped());
    let forward = trainer.gradients(&tiny_micro(&SEQUENCES)).unwrap();
    let mut reversed = SEQUENCES;
    reversed.reverse();
    let backward = trainer.gradients(&tiny_micro(&reversed)).unwrap();
    for (name, values) in &forward {
        assert!(frobenius(values, &backward[name]) < 2e-6, "{name}");
    }
    let without = tiny_trainer(options()).gradients(&tiny_micro(&SEQUENCES)).unwrap();
    assert!(
        forward.iter().all(|(name, values)| frobenius(values, &without[name]) > 1e-2),
        "no dropout happened"
    );
}

#[test]
fn masks_change_with_step_seed_and_sample() {
    let micro = tiny_micro(&[(1, 20, 4)]);
    let first = tiny_trainer(dropped()).gradients(&micro).unwrap();
    let other_seed = TrainOptions { seed: 43, ..dropped() };
    let seed = tiny_trainer(other_seed).gradients(&micro).unwrap();
    let mut renamed = micro.clone();
    renamed.sequences[0].sample_id = 1 << 40;
    let sample = tiny_trainer(dropped()).gradients(&renamed).unwrap();
    let mut trainer = tiny_trainer(dropped());
    let frozen = AdamW { lr: 0.0, weight_decay: 0.0, ..adamw() };
    trainer.step(std::slice::from_ref(&micro), &frozen).unwrap();
    let step = trainer.gradients(&micro).unwrap();
    for other in [seed, sample, step] {
        assert!(first.iter().any(|(name, values)| frobenius(&other[name], values) > 1e-2));
    }
}

#[test]
fn accumulation_equals_one_batch() {
    let once = [tiny_micro(&SEQUENCES)];
    let four: Vec<MicroBatch> = SEQUENCES.iter().map(|&one| tiny_micro(&[one])).collect();
    let (mut a, mut b) = (tiny_trainer(dropped()), tiny_trainer(dropped()));
    for _ in 0..3 {
        let (one, many) = (a.step(&once, &adamw()).unwrap(), b.step(&four, &adamw()).unwrap());
        assert!((one.loss - many.loss).abs() < 1e-6 * one.loss);
        assert!((one.grad_norm - many.grad_norm).abs() < 1e-5 * one.grad_norm);
        assert_eq!((one.label_tokens, one.tokens), (many.label_tokens, many.tokens));
    }
}

/// Long enough that work is really split.
fn long_micro() -> MicroBatch {
    tiny_micro(&[(1, 300, 3), (2, 212, 1), (3, 5, 1)])
}

#[test]
fn threads_do_not_change_a_bit() {
    for mode in [Mode::Lora, Mode::Full, Mode::Qlora { double_quant: true }] {
        let run = |threads| {
            let options = TrainOptions { mode, threads, max_tokens: 600, dropout: 0.1, ..options() };
            let mut trainer = tiny_trainer(options);
            let outcomes: Vec<_> = (0..2).map(|_| trainer.step(&[long_micro()], &adamw()).unwrap()).collect();
            (outcomes, trainer.state().unwrap())
        };
        let one = run(1);
        for threads in [2, 3] {
            assert_eq!(one, run(threads), "{mode:?} on {threads} threads");
        }
    }
}

#[test]
fn save_policies_do_not_change_a_bit() {
    for mode in [Mode::Lora, Mode::Full] {
        let run = |save| {
            let mut trainer = tiny_trainer(TrainOptions { mode, save, ..dropped() });
            (trainer.planned_peak_bytes(), trainer.gradients(&tiny_micro(&SEQUENCES)).unwrap())
        };
        let (all, reference) = run(SavePolicy::All);
        for save in [SavePolicy::NoGateUp, SavePolicy::Input] {
            let (peak, gradients) = run(save);
            assert!(peak < all, "{save:?} saves nothing");
            assert_eq!(gradients, reference, "{mode:?} {save:?}");
        }
    }
}

#[test]
fn memory_is_known_without_a_trainer() {
    for mode in [Mode::Lora, Mode::Full, Mode::Qlora { double_quant: true }] {
        for precision in [Precision::Float32, Precision::Bf16Rounded] {
            for save in [SavePolicy::All, SavePolicy::NoGateUp, SavePolicy::Input] {
                let options = TrainOptions { mode, precision, save, ..dropped() };
                let lora = random_adapter(&tiny_config(), 4, 8.0, 5).config;
                let lora = (mode != Mode::Full).then_some(&lora);
                let planned = Trainer::plan_bytes(&tiny_config(), lora, &options);
                assert_eq!(
                    planned,
                    tiny_trainer(options).planned_peak_bytes(),
                    "{mode:?} {precision:?} {save:?}"
                );
            }
        }
    }
}

#[test]
fn interrupted_and_resumed_equals_uninterrupted() {
    for mode in [Mode::Lora, Mode::Full] {
        let options = TrainOptions { mode, ..dropped() };
        let micro = |step: u64| [tiny_micro(&[(step, 20, 4), (step + 100, 9, 2)])];
        let mut whole = tiny_trainer(options.clone());
        let mut first = tiny_trainer(options.clone());
        for step in 0..3 {
            whole.step(&micro(step), &adamw()).unwrap();
            first.step(&micro(step), &adamw()).unwrap();
        }
        let state = first.state().unwrap();
        let mut second = tiny_trainer(options);
        second.load_state(&state).unwrap();
        for step in 3..6 {
            let (a, b) = (whole.step(&micro(step), &adamw()), second.step(&micro(step), &adamw()));
            assert_eq!(a.unwrap(), b.unwrap());
        }
        assert_eq!(whole.state().unwrap(), second.state().unwrap());
    }
}

#[test]
fn a_state_of_another_model_is_refused() {
    let state = tiny_trainer(options()).state().unwrap();
    let mut full = tiny_trainer(TrainOptions { mode: Mode::Full, ..options() });
    assert!(matches!(full.load_state(&state), Err(EngineError::Mismatch(_))));
}

/// An adapter whose every number is `factor` times as large.
fn scaled(adapter: &Adapter, matching: &str, factor: f32) -> Adapter {
    let mut adapter = adapter.clone();
    for (name, tensor) in &mut adapter.tensors {
        if name.contains(matching) {
            let values: Vec<f32> = tensor.to_f32().into_iter().map(|x| x * factor).collect();
            *tensor = Tensor::from_f32(tensor.shape().to_vec(), &values).unwrap();
        }
    }
    adapter
}

fn generator(adapter: Option<&Adapter>, base: Base) -> Generator {
    let options = GenerateOptions {
        threads: 1,
        max_tokens: 400,
        max_length: 400,
        max_sequences: 64,
        base,
        precision: Precision::Float32,
        device: ComputeDevice::Cpu,
    };
    let config = tiny_config();
    Generator::new(&config, &random_model(&config, 3), adapter, options).unwrap()
}

#[test]
fn alpha_scales_the_adapter() {
    let config = tiny_config();
    let adapter = random_adapter(&config, 4, 8.0, 5);
    let ids = sequence(&config, 1, 12, 0).input_ids;
    let mut doubled = adapter.clone();
    doubled.config.alpha *= 2.0;
    let by_alpha = generator(Some(&doubled), Base::Float32).logits(&ids).unwrap();
    let by_b = generator(Some(&scaled(&adapter, "lora_B", 2.0)), Base::Float32).logits(&ids).unwrap();
    assert_eq!(by_alpha, by_b, "doubling alpha is doubling B");
    let once = generator(Some(&adapter), Base::Float32).logits(&ids).unwrap();
    assert!(frobenius(&by_alpha, &once) > 1e-3);
    // With a factor of 0 the adapted model is the base model.
    let mut off = adapter.clone();
    off.config.alpha = 0.0;
    let base = generator(None, Base::Float32).logits(&ids).unwrap();
    assert_eq!(generator(Some(&off), Base::Float32).logits(&ids).unwrap(), base);
}

#[test]
fn every_adapter_matters() {
    let config = tiny_config();
    let adapter = random_adapter(&config, 4, 8.0, 5);
    let ids = sequence(&config, 1, 12, 0).input_ids;
    let with_all = generator(Some(&adapter), Base::Float32).logits(&ids).unwrap();
    for name in adapter.tensors.keys() {
        let without = scaled(&adapter, name, 0.0);
        let logits = generator(Some(&without), Base::Float32).logits(&ids).unwrap();
        assert!(frobenius(&logits, &with_all) > 1e-5, "{name} does nothing");
    }
}

#[test]
fn the_base_never_changes() {
    for mode in [Mode::Lora, Mode::Qlora { double_quant: false }] {
        let mut trainer = tiny_trainer(TrainOptions { mode, ..dropped() });
        let (hash, weights) = (trainer.base_sha256().unwrap(), trainer.weights().unwrap());
        let strong = AdamW { lr: 0.1, ..adamw() };
        for _ in 0..3 {
            trainer.step(&[tiny_micro(&SEQUENCES)], &strong).unwrap();
        }
        assert_eq!(trainer.base_sha256().unwrap(), hash);
        assert_eq!(trainer.weights().unwrap(), weights);
    }
}

#[test]
fn quantised_training_uses_the_quantised_base() {
    let config = tiny_config();
    let adapter = random_adapter(&config, 4, 8.0, 5);
    let micro = tiny_micro(&SEQUENCES);
    let losses: Vec<f64> =
        [Mode::Lora, Mode::Qlora { double_quant: false }, Mode::Qlora { double_quant: true }]
            .into_iter()
            .map(|mode| tiny_trainer(TrainOptions { mode, ..options() }).evaluate(&micro).unwrap().sum)
            .collect();
    assert!(
        losses[0] != losses[1] && losses[1] != losses[2] && (losses[0] - losses[1]).abs() < 0.2 * losses[0]
    );
    // Generation on the same base gives the same bits as training: the first label's loss from logits.
    for double_quant in [false, true] {
        let mode = Mode::Qlora { double_quant };
        let trainer = tiny_trainer(TrainOptions { mode, ..options() });
        let base = trainer.weights().unwrap();
        let ids = sequence(&config, 1, 12, 0).input_ids;
        let options = GenerateOptions {
            threads: 1,
            max_tokens: 400,
            max_length: 400,
            max_sequences: 64,
            base: Base::Float32,
            precision: Precision::Float32,
            device: ComputeDevice::Cpu,
        };
        let mut plain = Generator::new(&config, &base, Some(&adapter), options).unwrap();
        let mut nf4 = generator(Some(&adapter), Base::Nf4 { double_quant });
        assert_eq!(plain.logits(&ids).unwrap(), nf4.logits(&ids).unwrap());
    }
}

#[test]
fn a_loss_that_is_not_a_number_leaves_everything_as_it_was() {
    let config = tiny_config();
    let poisoned = scaled(&random_adapter(&config, 4, 8.0, 5), "layers.1.mlp.down_proj.lora_B", f32::NAN);
    let mut trainer = Trainer::new(&config, &random_model(&config, 3), Some(&poisoned), options()).unwrap();
    let bits = |trainer: &Trainer| -> Vec<u32> {
        let state = trainer.state().unwrap();
        state.master.iter().chain(&state.m).chain(&state.v).map(|x| x.to_bits()).collect()
    };
    let before = bits(&trainer);
    let error = trainer.step(&[tiny_micro(&SEQUENCES)], &adamw()).unwrap_err();
    assert!(matches!(error, EngineError::NonFinite { step: 1, .. }), "{error}");
    assert_eq!(bits(&trainer), before);
    assert_eq!(trainer.state().unwrap().step, 0);
}

#[test]
fn nothing_to_learn_is_an_error() {
    let mut trainer = tiny_trainer(options());
    let error = trainer.step(&[tiny_micro(&[(1, 5, 5)])], &adamw()).unwrap_err();
    assert!(matches!(error, EngineError::NoLabels { step: 1 }), "{error}");
    // But a micro-batch without labels beside one that has some is fine.
    let with_labels = tiny_micro(&[(2, 5, 1)]);
    trainer.step(&[tiny_micro(&[(1, 5, 5)]), with_labels.clone(), MicroBatch::default()], &adamw()).unwrap();
    let mut full = tiny_trainer(TrainOptions { mode: Mode::Full, ..options() });
    full.step(&[MicroBatch::default(), with_labels], &adamw()).unwrap();
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let config = tiny_config();
    let (weights, adapter) = (random_model(&config, 3), random_adapter(&config, 4, 8.0, 5));
    let attempt = |adapter, options| Trainer::new(&config, &weights, adapter, options).map(|_| ());
    let full = TrainOptions { mode: Mode::Full, ..options() };
    let wet = TrainOptions { dropout: 1.0, ..options() };
    for result in [attempt(None, options()), attempt(Some(&adapter), full), attempt(Some(&adapter), wet)] {
        assert!(matches!(result, Err(EngineError::Mismatch(_))));
    }
}

#[test]
fn a_rank_that_gpu_kernels_do_not_take_is_refused_before_a_gpu_is_asked() {
    let config = tiny_config();
    let (weights, wide) = (random_model(&config, 3), random_adapter(&config, 1025, 8.0, 5));
    let on_gpu = TrainOptions { device: ComputeDevice::Cuda { id: 0 }, ..options() };
    let refused = Trainer::new(&config, &weights, Some(&wide), on_gpu).map(|_| ());
    let message = refused.unwrap_err().to_string();
    assert!(message.starts_with("adapters of rank 1025: on a GPU it is at most 1024;"), "{message}");
    assert!(Trainer::new(&config, &weights, Some(&wide), options()).is_ok());
}

#[test]
fn full_training_learns() {
    let mut trainer = tiny_trainer(TrainOptions { mode: Mode::Full, ..options() });
    let fast = AdamW { lr: 3e-3, ..adamw() };
    let micro = [tiny_micro(&SEQUENCES)];
    let first = trainer.step(&micro, &fast).unwrap().loss;
    let last = (0..60).map(|_| trainer.step(&micro, &fast).unwrap().loss).last().unwrap();
    assert!(last < 0.2 * first, "{first} to {last}");
}

#[test]
fn rounded_activations_stay_close() {
    for mode in [Mode::Lora, Mode::Full] {
        let micro = tiny_micro(&SEQUENCES);
        let exact = tiny_trainer(TrainOptions { mode, ..options() }).evaluate(&micro).unwrap().sum;
        let rounded = TrainOptions { mode, precision: Precision::Bf16Rounded, ..options() };
        let mut trainer = tiny_trainer(rounded);
        let sum = trainer.evaluate(&micro).unwrap().sum;
        assert!(sum != exact && (sum - exact).abs() < 0.02 * exact, "{sum} {exact}");
        let steps: Vec<f64> = (0..5)
            .map(|_| trainer.step(std::slice::from_ref(&micro), &AdamW { lr: 1e-3, ..adamw() }).unwrap().loss)
            .collect();
        assert!(steps[4] < steps[0]);
    }
}

fn requests(sampling: impl Fn(u64) -> Sampling) -> Vec<GenRequest> {
    let config = tiny_config();
    [(1, 9, 20), (2, 70, 33), (3, 1, 5), (4, 130, 40), (5, 3, 0), (6, 200, 12)]
        .into_iter()
        .map(|(id, prompt, max_new_tokens)| GenRequest {
            sequence_id: id,
            prompt_ids: sequence(&config, id, prompt, 0).input_ids,
            max_new_tokens,
            sampling: sampling(id),
            stop_ids: vec![7],
            banned_from: Some(48),
        })
        .collect()
}

#[test]
fn neighbours_do_not_change_a_sequence() {
    let config = tiny_config();
    let adapter = random_adapter(&config, 4, 8.0, 5);
    let sample = |seed| Sampling::Sample { temperature: 1.2, top_k: 40, top_p: 0.97, seed };
    for requests in [requests(|_| Sampling::Greedy), requests(sample)] {
        let mut generator = generator(Some(&adapter), Base::Float32);
        let together = generator.generate(&requests, &mut |_, _| true).unwrap();
        let alone: Vec<GenResult> = requests
            .iter()
            .flat_map(|one| generator.generate(std::slice::from_ref(one), &mut |_, _| true).unwrap())
            .collect();
        assert_eq!(together, alone);
        for (request, result) in requests.iter().zip(&together) {
            assert!(result.ids.len() <= request.max_new_tokens);
            assert!(result.ids.iter().all(|&id| id < 48 && id != 7));
        }
    }
}

#[test]
fn threads_do_not_change_generation() {
    let config = tiny_config();
    let run = |threads| {
        let options = GenerateOptions {
            threads,
            max_tokens: 600,
            max_length: 600,
            max_sequences: 64,
            base: Base::Float32,
            precision: Precision::Float32,
            device: ComputeDevice::Cpu,
        };
        let mut generator = Generator::new(&config, &random_model(&config, 3), None, options).unwrap();
        generator.logits(&sequence(&config, 1, 500, 0).input_ids).unwrap()
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn what_prompts_share_is_computed_once() {
    let config = tiny_config();
    let shared = sequence(&config, 1, 300, 0).input_ids;
    let request = |i: u64, prompt_ids: Vec<u32>| engine::GenRequest {
        sequence_id: i,
        prompt_ids,
        max_new_tokens: 10,
        sampling: Sampling::Sample { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 9 },
        stop_ids: Vec::new(),
        banned_from: None,
    };
    // Five times the same prompt, one that leaves it half way, and one of its own.
    let mut requests: Vec<_> = (0..5).map(|i| request(i, shared.clone())).collect();
    let mut other = shared.clone();
    other[150] = (other[150] + 1) % config.vocab_size as u32;
    requests.push(request(5, other));
    requests.push(request(6, sequence(&config, 2, 60, 0).input_ids));
    let go = |requests: &[engine::GenRequest], max_sequences| {
        let options = GenerateOptions {
            threads: 1,
            max_tokens: 7 * 310,
            max_length: 310,
            max_sequences,
            base: Base::Float32,
            precision: Precision::Float32,
            device: ComputeDevice::Cpu,
        };
        let mut generator = Generator::new(&config, &random_model(&config, 3), None, options).unwrap();
        let results = generator.generate(requests, &mut |_, _| true).unwrap();
        (results, generator.computed_tokens())
    };
    let (alone, every_time) = go(&requests, 1);
    assert_eq!(every_time, 5 * 300 + 300 + 60 + 7 * 9);
    for max_sequences in [2, 7] {
        let (together, once) = go(&requests, max_sequences);
        assert_eq!(alone, together);
        if max_sequences == 7 {
            assert_eq!(once, 300 + 4 + 150 + 60 + 7 * 9);
        }
    }
    assert!(alone[0] != alone[1] && alone[0] != alone[5]);
}

#[test]
fn cached_decoding_equals_one_forward() {
    let config = tiny_config();
    let mut generator = generator(None, Base::Float32);
    let request = GenRequest {
        sequence_id: 0,
        prompt_ids: sequence(&config, 1, 65, 0).input_ids,
        max_new_tokens: 30,
        sampling: Sampling::Greedy,
        stop_ids: Vec::new(),
        banned_from: None,
    };
    let drawn = generator.generate(std::slice::from_ref(&request), &mut |_, _| true).unwrap()[0].ids.clone();
    assert_eq!(drawn.len(), 30);
    let mut ids = request.prompt_ids.clone();
    ids.extend(&drawn);
    let logits = generator.logits(&ids).unwrap();
    let vocab = config.vocab_size;
    for (i, &id) in drawn.iter().enumerate() {
        let row = &logits[(request.prompt_ids.len() - 1 + i) * vocab..][..vocab];
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(best as u32, id);
    }
}

#[test]
fn progress_is_told_and_generation_can_be_cancelled() {
    let mut generator = generator(None, Base::Float32);
    let requests = requests(|_| Sampling::Greedy);
    let mut calls = 0;
    let result = generator.generate(&requests, &mut |request, tokens| {
        calls += 1;
        assert!(request < requests.len() && tokens <= requests[request].max_new_tokens);
        calls < 10
    });
    assert!(matches!(result, Err(EngineError::Cancelled)));
    assert_eq!(calls, 10);
}

#[test]
fn bad_requests_are_refused() {
    let mut generator = generator(None, Base::Float32);
    let good = requests(|_| Sampling::Greedy).remove(0);
    let bad = [
        GenRequest { prompt_ids: Vec::new(), ..good.clone() },
        GenRequest { prompt_ids: vec![50], ..good.clone() },
        GenRequest { max_new_tokens: 1000, ..good.clone() },
        GenRequest { banned_from: Some(0), ..good.clone() },
        GenRequest {
            sampling: Sampling::Sample { temperature: f32::NAN, top_k: 0, top_p: 1.0, seed: 0 },
            ..good.clone()
        },
    ];
    for request in bad {
        let requests = [good.clone(), request];
        let error = generator.generate(&requests, &mut |_, _| true).unwrap_err();
        assert!(error.to_string().contains("request 1"), "{error}");
    }
    assert!(generator.logits(&[50]).is_err());
}
