//! Every operation of whole plans: what the GPU wrote against what the CPU wrote, operation by operation.

use crate::common::{distance, random_adapter, random_model, sequence};
use engine::backend::{Backend, Inputs, Scalars, Slab};
use engine::cpu::{Cpu, CpuOptions, elementwise};
use engine::cuda::{Cuda, CudaOptions};
use engine::place::place;
use engine::plan::{
    Class, Dims, Input, LoraShape, Mat, ModelParams, Op, Place, Plan, Role, Shape, train_plan_in_chunks,
};
use engine::{AdamW, Precision, SavePolicy};
use model::config::Config;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const CHUNK: usize = 32;

/// A model and how it is trained.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) config: Config,
    pub(crate) rank: Option<usize>,
    pub(crate) dropout: bool,
    pub(crate) save: SavePolicy,
    pub(crate) lengths: Vec<usize>,
    /// Of weights, adapters, tokens and masks.
    pub(crate) seed: u64,
}

pub(crate) fn config(hidden: usize, heads: (usize, usize), ffn: usize, vocab: usize, tied: bool) -> Config {
    Config {
        hidden_size: hidden,
        intermediate_size: ffn,
        num_hidden_layers: 2,
        num_attention_heads: heads.0,
        num_key_value_heads: heads.1,
        head_dim: hidden / heads.0,
        vocab_size: vocab,
        max_position_embeddings: 512,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: tied,
    }
}

fn cases() -> Vec<Case> {
    let plain = |name, config, rank, dropout, save| Case {
        name,
        config,
        rank,
        dropout,
        save,
        lengths: vec![40, 1, 61],
        seed: 3,
    };
    vec![
        plain("odd sizes, rank 3", config(24, (6, 2), 40, 50, true), Some(3), true, SavePolicy::All),
        plain(
            "heads of 64, rank 16",
            config(448, (7, 1), 320, 1001, true),
            Some(16),
            true,
            SavePolicy::NoGateUp,
        ),
        plain("odd sizes, rank 65", config(24, (6, 2), 40, 50, true), Some(65), true, SavePolicy::All),
        plain(
            "heads of 64, rank 100",
            config(448, (7, 1), 320, 1001, true),
            Some(100),
            true,
            SavePolicy::NoGateUp,
        ),
        plain("rank 256", config(256, (4, 4), 192, 333, false), Some(256), false, SavePolicy::Input),
        plain(
            "no dropout, computed again",
            config(256, (4, 4), 192, 333, false),
            Some(8),
            false,
            SavePolicy::Input,
        ),
        plain("full, tied", config(128, (2, 1), 96, 200, true), None, false, SavePolicy::All),
        plain("full, odd, untied", config(60, (5, 1), 77, 131, false), None, false, SavePolicy::NoGateUp),
    ]
}

pub(crate) fn shape(config: &Config) -> Shape {
    Shape {
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        query_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        ffn: config.intermediate_size,
        vocab: config.vocab_size,
        norm_eps: config.rms_norm_eps,
        rope_theta: config.rope_theta,
        tied: config.tie_word_embeddings,
    }
}

pub(crate) fn inputs(case: &Case) -> Inputs {
    let mut index: BTreeMap<Input, Vec<u32>> = BTreeMap::new();
    let (mut starts, mut tokens) = (vec![0u32], 0u32);
    for (n, &length) in case.lengths.iter().enumerate() {
        let sequence = sequence(&case.config, n as u64 + case.seed + 2, length, length / 4);
        for (i, &id) in sequence.input_ids.iter().enumerate() {
            index.entry(Input::TokenIds).or_default().push(id);
            index.entry(Input::Positions).or_default().push(i as u32);
            index.entry(Input::Samples).or_default().extend([n as u32 + 5, 1]);
            if let Some(&label) = sequence.labels.get(i + 1).filter(|&&label| label >= 0) {
                index.entry(Input::LossIndex).or_default().push(tokens);
                index.entry(Input::Labels).or_default().push(label as u32);
            }
            tokens += 1;
        }
        starts.push(tokens);
    }
    index.insert(Input::Starts, starts);
    let loss_rows = index[&Input::Labels].len();
    let dims = Dims { tokens: tokens as usize, loss_rows, seqs: case.lengths.len(), chunk: CHUNK };
    let optimizer = AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: 0.0 };
    let drop_threshold = if case.dropout { 13_000 } else { 0 };
    let scalars = Scalars {
        inv_labels: 1.0 / loss_rows as f64,
        lora_scale: 2.0,
        step: 5,
        seed: 9 << 32 | case.seed,
        drop_threshold,
        optimizer,
    };
    Inputs { dims, index: Arc::new(index), scalars }
}

pub(crate) fn store(backend: &mut impl Backend, params: &ModelParams, case: &Case) {
    backend.allocate(params).unwrap();
    let weights = random_model(&case.config, case.seed);
    let adapter = case.rank.map(|rank| random_adapter(&case.config, rank, 2.0 * rank as f64, case.seed + 1));
    for (id, spec) in params.iter() {
        let values = match spec.class {
            Class::RopeTable => elementwise::rope_table(spec.rows, spec.cols, params.shape.rope_theta),
            Class::Adapter => adapter.as_ref().unwrap().tensors[&spec.pieces[0].name].to_f32(),
            _ => spec.pieces.iter().flat_map(|p| weights.get(&p.name).unwrap().to_f32()).collect(),
        };
        backend.store_param(id, &values).unwrap();
    }
}

pub(crate) fn on_gpu(precision: Precision) -> CudaOptions {
    CudaOptions { ordinal: 0, precision, packed: None, few_rows: false, graphs: false, in_order: false }
}

/// Views in the arena that hold something for an operation, and have rows.
fn in_arena(plan: &Plan, op: &Op, dims: &Dims, views: Vec<Mat>) -> Vec<Mat> {
    let scratch = match *op {
        Op::Lora { scratch, .. } | Op::LoraGradParams { scratch, .. } | Op::LoraGradInput { scratch, .. } => {
            scratch
        }
        _ => None,
    };
    views
        .into_iter()
        .filter(|mat| plan.get(mat.buffer).place == Place::Arena && mat.role != Role::Index)
        .filter(|mat| scratch.is_none_or(|scratch| scratch.buffer != mat.buffer) && dims.rows(mat.rows) > 0)
        .collect()
}

/// What an operation reads or adds to.
fn touched(plan: &Plan, op: &Op, dims: &Dims) -> Vec<Mat> {
    let access = op.access(&plan.groups);
    in_arena(plan, op, dims, access.reads.into_iter().chain(access.updates).collect())
}

/// What it writes or adds to; not what it only needs room for.
fn written(plan: &Plan, op: &Op, dims: &Dims) -> Vec<Mat> {
    let access = op.access(&plan.groups);
    in_arena(plan, op, dims, access.writes.into_iter().chain(access.updates).collect())
}

/// What an operation may be off in the Frobenius norm. In bfloat16 each side rounds at most twice, each rounding off by
/// 2^-8 / sqrt(3) of an element at most in the mean square. In float32 attention's gradients are left with what a row's
/// weights cancel: p (d_out v - delta) is small where a row looks at one key.
fn bound(precision: Precision, op: &str) -> f64 {
    match precision {
        Precision::Bf16Rounded => 2.0 / 3f64.sqrt() / 256.0,
        Precision::Float32 if op.starts_with("AttentionGrad") => 1e-4,
        Precision::Float32 => 1e-5,
    }
}

pub(crate) fn compare(case: &Case, precision: Precision) {
    let lora = case.rank.map(|rank| LoraShape { rank, modules: [true; 7] });
    let full = lora.is_none();
    let params = ModelParams::new(shape(&case.config), lora, full, !full, 128);
    let round = precision == Precision::Bf16Rounded;
    let mut cpu = Cpu::<f32>::new(&CpuOptions { threads: 1, round, transposed: false, native: false });
    let mut gpu = Cuda::open(on_gpu(precision)).unwrap();
    store(&mut cpu, &params, case);
    store(&mut gpu, &params, case);
    let plan = train_plan_in_chunks(
        &params,
        128,
        Some(&vec![case.save; case.config.num_hidden_layers]),
        case.dropout,
        CHUNK,
    )
    .plan;
    let on_cpu = cpu.compile(plan.clone(), place(&plan, cpu.layout(&plan), &BTreeSet::new())).unwrap();
    let on_gpu = gpu.compile(plan.clone(), place(&plan, gpu.layout(&plan), &BTreeSet::new())).unwrap();
    let inputs = inputs(case);
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    for (n, op) in plan.ops().enumerate() {
        let zeros = vec![0.0; params.slab_len];
        cpu.store_slab(Slab::Gradient, &zeros).unwrap();
        gpu.store_slab(Slab::Gradient, &zeros).unwrap();
        // Both start from the CPU's values, so that an error is this operation's own.
        for view in touched(&plan, op, &inputs.dims) {
            let values = cpu.peek(&on_cpu, view, inputs.dims).unwrap();
            gpu.poke(&on_gpu, view, inputs.dims, &values).unwrap();
        }
        cpu.submit_range(&on_cpu, inputs.clone(), n..n + 1).unwrap();
        gpu.submit_range(&on_gpu, inputs.clone(), n..n + 1).unwrap();
        gpu.wait().unwrap();
        let mut check = |what: &str, got: &[f32], want: &[f32]| {
            let (error, bound) = (distance(got, want), bound(precision, &op.name()));
            let most = worst.entry(op.name()).or_default();
            *most = most.max(error);
            let name = op.name();
            assert!(
                error <= bound,
                "{} {precision:?}: operation {n} {name} wrote {what}: {error:e}",
                case.name
            );
        };
        for view in written(&plan, op, &inputs.dims) {
            let got = gpu.peek(&on_gpu, view, inputs.dims).unwrap();
            let want = cpu.peek(&on_cpu, view, inputs.dims).unwrap();
            check(&plan.get(view.buffer).name, &got, &want);
        }
        let (got, want) = (gpu.load_slab(Slab::Gradient).unwrap(), cpu.load_slab(Slab::Gradient).unwrap());
        check("the gradients", &got, &want);
    }
    let worst: Vec<String> = worst.iter().map(|(name, error)| format!("{name} {error:.1e}")).collect();
    println!("{} {precision:?}: {}", case.name, worst.join(", "));
}

#[test]
fn every_operation_equals_the_cpu_s_in_float32() {
    for case in cases() {
        compare(&case, Precision::Float32);
    }
}

#[test]
fn every_operation_equals_the_cpu_s_in_bfloat16() {
    for case in cases() {
        compare(&case, Precision::Bf16Rounded);
    }
}
