//! What runs beside the main line changes no bit: gradients against those of one launch after another.

use crate::operations::{Case, config, inputs, on_gpu, shape, store};
use engine::backend::{Backend, Slab};
use engine::cuda::{Cuda, CudaOptions};
use engine::place::place;
use engine::plan::{LoraShape, ModelParams, train_plan_in_chunks};
use engine::{Precision, SavePolicy};
use model::config::Config;

/// Gradients after each of some runs on one trainer's memory.
fn gradients(case: &Case, options: CudaOptions, runs: u64) -> Vec<Vec<f32>> {
    let lora = LoraShape { rank: case.rank.unwrap(), modules: [true; 7] };
    let tokens = case.lengths.iter().sum();
    let params = ModelParams::new(shape(&case.config), Some(lora), false, true, tokens);
    let mut gpu = Cuda::open(options).unwrap();
    store(&mut gpu, &params, case);
    let policies = vec![case.save; case.config.num_hidden_layers];
    let plan =
        train_plan_in_chunks(&params, tokens, Some(&policies), case.dropout, gpu.caps().head_chunk).plan;
    let program = gpu.compile(plan.clone(), place(&plan, gpu.layout(&plan), &gpu.caps().claims)).unwrap();
    let run = |step: u64| {
        let mut inputs = inputs(case);
        (inputs.scalars.step, inputs.dims.chunk) = (step, plan.capacity.chunk);
        gpu.store_slab(Slab::Gradient, &vec![0.0; params.slab_len]).unwrap();
        gpu.submit(&program, inputs).unwrap();
        gpu.wait().unwrap();
        gpu.load_slab(Slab::Gradient).unwrap()
    };
    (0..runs).map(run).collect()
}

#[test]
fn what_runs_beside_changes_no_bit() {
    let config = Config { num_hidden_layers: 5, ..config(448, (7, 1), 1216, 1001, true) };
    for (rank, save, lengths) in [
        (16, SavePolicy::All, &[512, 300, 1, 700, 2, 512, 21][..]),
        (16, SavePolicy::NoGateUp, &[40, 1, 61][..]),
        (16, SavePolicy::Input, &[300, 301, 302][..]),
        (100, SavePolicy::All, &[512, 300, 1, 700, 2][..]),
        (101, SavePolicy::NoGateUp, &[300, 301, 302][..]),
    ] {
        let case = Case {
            name: "beside",
            config: config.clone(),
            rank: Some(rank),
            dropout: true,
            save,
            lengths: lengths.to_vec(),
            seed: 3,
        };
        for precision in [Precision::Bf16Rounded, Precision::Float32] {
            let options = on_gpu(precision);
            let in_order = gradients(&case, CudaOptions { in_order: true, ..options }, 6);
            assert!(in_order[0] != in_order[1] && in_order.iter().flatten().any(|&g| g != 0.0));
            for graphs in [false, true] {
                let beside = gradients(&case, CudaOptions { graphs, ..options }, 6);
                assert!(
                    beside == in_order,
                    "rank {rank} {save:?} {precision:?} {lengths:?}, graphs {graphs}"
                );
            }
        }
    }
}
