//! Adapters of any rank: trained, stopped and resumed, generated with; and what they take of memory.

use crate::common::agreement::{adapter, batches, configs, model};
use crate::common::{adamw, frobenius, options, random_model};
use crate::decode::narrow;
use crate::modules::agrees;
use engine::{
    Base, ComputeDevice, GenRequest, GenerateOptions, Generator, Mode, Precision, Sampling, SavePolicy,
    TrainOptions, Trainer,
};
use model::adapter::Adapter;
use model::config::Config;
use model::names::Projection;
use model::weights::Weights;

const RANKS: [usize; 10] = [1, 8, 12, 64, 65, 66, 100, 128, 200, 256];
const QLORA: Mode = Mode::Qlora { double_quant: true };
const GPU: ComputeDevice = ComputeDevice::Cuda { id: 0 };

#[test]
fn gradients_at_any_rank_are_the_cpu_s() {
    let mut wrong = Vec::new();
    for (config, _) in configs() {
        let weights = model(&config);
        for rank in RANKS {
            let adapter = adapter(&config, rank, &Projection::ALL);
            for (mode, save) in [(Mode::Lora, SavePolicy::NoGateUp), (QLORA, SavePolicy::All)] {
                let what = format!("hidden {}, rank {rank}, {mode:?}", config.hidden_size);
                wrong.extend(agrees(&what, &config, &weights, &adapter, mode, &[save]).err());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn generator(
    config: &Config,
    weights: &Weights,
    adapter: Option<&Adapter>,
    base: Base,
    (device, precision): (ComputeDevice, Precision),
) -> Generator {
    let options = GenerateOptions {
        threads: 4,
        max_tokens: 4096,
        max_length: 256,
        max_sequences: 64,
        base,
        precision,
        device,
    };
    Generator::new(config, weights, adapter, options).unwrap()
}

fn requests(config: &Config) -> Vec<GenRequest> {
    (0..7)
        .map(|i| GenRequest {
            sequence_id: i,
            prompt_ids: (0..3 + 11 * i)
                .map(|j| ((i * 31 + j * 7) % config.vocab_size as u64) as u32)
                .collect(),
            max_new_tokens: 24,
            sampling: Sampling::Greedy,
            stop_ids: Vec::new(),
            banned_from: None,
        })
        .collect()
}

#[test]
fn generation_at_any_rank_is_the_cpu_s() {
    for (config, _) in configs() {
        let weights = model(&config);
        let ids: Vec<u32> = (0..64).map(|i| (i * 13 % config.vocab_size as u64) as u32).collect();
        for (rank, base) in
            RANKS.iter().flat_map(|&rank| [(rank, Base::Float32), (rank, Base::Nf4 { double_quant: true })])
        {
            let adapter = adapter(&config, rank, &Projection::ALL);
            let of = |adapter, on| generator(&config, &weights, adapter, base, on);
            let mut on_cpu = of(Some(&adapter), (ComputeDevice::Cpu, Precision::Float32));
            let mut on_gpu = of(Some(&adapter), (GPU, Precision::Float32));
            let (wanted, found) = (on_cpu.logits(&ids).unwrap(), on_gpu.logits(&ids).unwrap());
            let what = format!("hidden {}, rank {rank}, {base:?}", config.hidden_size);
            let error = frobenius(&found, &wanted);
            assert!(error <= 1e-5, "{what}: {error} in float32");
            let all = requests(&config);
            let [ours, theirs] = [&mut on_gpu, &mut on_cpu].map(|it| {
                let done = it.generate(&all, &mut |_, _| true).unwrap();
                done.into_iter().map(|it| it.ids).collect::<Vec<_>>()
            });
            assert!(ours == theirs, "{what}: other tokens");

            let low = |device| of(Some(&adapter), (device, Precision::Bf16Rounded)).logits(&ids).unwrap();
            let [ours, theirs] = [low(GPU), low(ComputeDevice::Cpu)].map(|it| frobenius(&it, &wanted));
            let mut bare = of(None, (ComputeDevice::Cpu, Precision::Float32));
            let without = frobenius(&bare.logits(&ids).unwrap(), &wanted);
            println!(
                "{what}: {error:.1e} in float32, {ours:.4} in bfloat16, {theirs:.4} on the CPU, {without:.2} without"
            );
            assert!(ours <= 1.5 * theirs, "{what}: {ours} in bfloat16, {theirs} on the CPU");
            assert!(without > 0.3, "{what}: without the adapter only {without} off");
        }
    }
}

/// An odd rank takes the plain kernels, an even one tensor cores.
#[test]
fn logits_at_a_high_rank_do_not_depend_on_how_many_tokens_go_together() {
    let config = narrow(2, 1003);
    let weights = model(&config);
    let ids: Vec<u32> = (0..64).map(|i| (i * 13 % 1003) as u32).collect();
    for rank in [65, 128, 256] {
        let adapter = adapter(&config, rank, &Projection::ALL);
        for precision in [Precision::Float32, Precision::Bf16Rounded] {
            let mut it = generator(&config, &weights, Some(&adapter), Base::Float32, (GPU, precision));
            let all = it.logits(&ids).unwrap();
            for n in [1, 4, 9, 17, 33] {
                let some = it.logits(&ids[..n]).unwrap();
                let same = some.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "rank {rank} {precision:?}: other bits with {n} tokens");
            }
        }
    }
}

fn steps(trainer: &mut Trainer, config: &Config, steps: std::ops::Range<usize>) -> Vec<(f64, f64)> {
    let batches = batches(config, 12);
    steps
        .map(|step| {
            let outcome = trainer.step(&batches[2 * step..2 * step + 2], &adamw()).unwrap();
            assert!(outcome.grad_norm > 0.0);
            (outcome.loss, outcome.grad_norm)
        })
        .collect()
}

#[test]
fn high_ranks_repeat_and_resume_to_the_bit() {
    for (config, _) in configs() {
        let weights = model(&config);
        for rank in [65, 128, 200] {
            let adapter = adapter(&config, rank, &Projection::ALL);
            for (mode, packed_base) in [(Mode::Lora, false), (QLORA, false), (QLORA, true)] {
                let make = || {
                    let options = TrainOptions {
                        mode,
                        packed_base,
                        device: GPU,
                        precision: Precision::Bf16Rounded,
                        dropout: 0.1,
                        ..options()
                    };
                    Trainer::new(&config, &weights, Some(&adapter), options).unwrap()
                };
                let (mut whole, mut again, mut first, mut second) = (make(), make(), make(), make());
                let all = steps(&mut whole, &config, 0..6);
                assert!(all == steps(&mut again, &config, 0..6), "rank {rank} {mode:?}: two runs differ");
                let mut parts = steps(&mut first, &config, 0..3);
                second.load_state(&first.state().unwrap()).unwrap();
                parts.extend(steps(&mut second, &config, 3..6));
                assert_eq!(all, parts, "rank {rank} {mode:?}, packed {packed_base}");
                let states = [&whole, &again, &second].map(|it| it.state().unwrap());
                assert!(states[0] == states[1] && states[0] == states[2], "rank {rank} {mode:?}");
            }
        }
    }
}

/// What a trainer says that it holds is what the device misses, before the first step and after some.
#[test]
fn memory_of_a_high_rank_is_planned() {
    let config = narrow(2, 1003);
    let weights = random_model(&config, 3);
    for (rank, tokens) in [(16, 4096), (128, 4096), (256, 8192), (256, 700), (101, 700)] {
        let adapter = adapter(&config, rank, &Projection::ALL);
        let options = TrainOptions {
            mode: QLORA,
            device: GPU,
            precision: Precision::Bf16Rounded,
            dropout: 0.1,
            max_tokens: tokens,
            threads: 16,
            ..options()
        };
        let planned = Trainer::plan_bytes(&config, Some(&adapter.config), &options);
        let gpu = kernels::cuda::Gpu::open(0).unwrap();
        let free = || gpu.memory().unwrap().0;
        let before = free();
        let mut trainer = Trainer::new(&config, &weights, Some(&adapter), options).unwrap();
        let held = trainer.planned_peak_bytes();
        let taken = [(); 2].map(|()| {
            let taken = before - free();
            steps(&mut trainer, &config, 0..3);
            taken
        });
        println!("rank {rank}, {tokens} tokens: {planned} planned, {held} held, {taken:?} taken");
        assert!((planned..planned + (64 << 20)).contains(&held), "{planned} planned, {held} held");
        for taken in taken {
            // Besides, the driver keeps kernels and graphs.
            assert!(taken >= held && taken < held + (64 << 20), "{held} held, {taken} taken");
        }
    }
}
