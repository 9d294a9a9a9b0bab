//! Every backward operation against central differences in float64: each function alone, then whole models.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{normal, random_adapter, random_model, tiny_config, tiny_micro};
use engine::backend::{Backend, Inputs, Scalars, Slab};
use engine::cpu::adapter::{self, Dropout, Factors, Grads, Masked};
use engine::cpu::attention::{self, Saved};
use engine::cpu::{Cpu, CpuOptions, elementwise, training};
use engine::place::{Layout, place};
use engine::plan::{
    Class, Dims, HEAD_CHUNK, Heads, Input, LoraShape, ModelParams, Shape, TrainPlan, optimizer_plans,
    train_plan,
};
use engine::{AdamW, SavePolicy};
use kernels::gemm::{View, ViewMut, product};
use std::collections::BTreeMap;
use std::sync::Arc;

const STEP: f64 = 1e-5;

fn noise(n: usize, seed: u64) -> Vec<f64> {
    normal(n, seed).into_iter().map(f64::from).collect()
}

/// Holds `backward(arguments, d_out)` against differences of `sum(weights * forward(arguments))`.
fn check(
    what: &str,
    arguments: &[Vec<f64>],
    forward: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    backward: impl Fn(&[Vec<f64>], &[f64]) -> Vec<Vec<f64>>,
) {
    let weights = noise(forward(arguments).len(), 99);
    let loss = |arguments: &[Vec<f64>]| -> f64 {
        forward(arguments).iter().zip(&weights).map(|(out, weight)| out * weight).sum()
    };
    let gradients = backward(arguments, &weights);
    assert_eq!(gradients.len(), arguments.len(), "{what}");
    let mut arguments = arguments.to_vec();
    for which in 0..arguments.len() {
        let mut nonzero = false;
        for i in 0..arguments[which].len() {
            let value = arguments[which][i];
            arguments[which][i] = value + STEP;
            let above = loss(&arguments);
            arguments[which][i] = value - STEP;
            let below = loss(&arguments);
            arguments[which][i] = value;
            let numeric = (above - below) / (2.0 * STEP);
            let exact = gradients[which][i];
            nonzero |= exact != 0.0;
            let error = (numeric - exact).abs() / (1e-2 + exact.abs());
            assert!(error < 1e-6, "{what}: argument {which}[{i}]: {exact} against {numeric}");
        }
        assert!(nonzero, "{what}: argument {which} has no gradient at all");
    }
}

fn view(data: &[f64], cols: usize) -> View<'_, f64> {
    View::rows(data, data.len() / cols, cols, cols)
}

fn out(data: &mut [f64], cols: usize) -> ViewMut<'_, f64> {
    let rows = data.len() / cols;
    ViewMut::rows(data, rows, cols, cols)
}

#[test]
fn rms_norm() {
    let (t, d, eps) = (3, 11, 1e-2);
    let run = |a: &[Vec<f64>]| {
        let (mut y, mut rstd) = (vec![0.0; t * d], vec![0.0; t]);
        elementwise::rms_norm(view(&a[0], d), &a[1], eps, out(&mut y, d), out(&mut rstd, 1), 1);
        (y, rstd)
    };
    check(
        "rms norm",
        &[noise(t * d, 1), noise(d, 2)],
        |a| run(a).0,
        |a, d_out| {
            let rstd = run(a).1;
            // Accumulation onto what is there already is part of the operation.
            let mut d_x = vec![1.0; t * d];
            let (x, rstd, d_y) = (view(&a[0], d), view(&rstd, 1), view(d_out, d));
            elementwise::rms_norm_grad(x, &a[1], rstd, d_y, out(&mut d_x, d), true, 1);
            let mut overwritten = vec![f64::NAN; t * d];
            elementwise::rms_norm_grad(x, &a[1], rstd, d_y, out(&mut overwritten, d), false, 1);
            let mut d_weight = vec![0.0; d];
            elementwise::rms_norm_weight_grad(x, rstd, d_y, &mut d_weight);
            let d_x: Vec<f64> = d_x.iter().map(|value| value - 1.0).collect();
            for (a, b) in d_x.iter().zip(&overwritten) {
                assert!((a - b).abs() < 1e-12);
            }
            vec![d_x, d_weight]
        },
    );
}

#[test]
fn products() {
    let (m, k, n) = (4, 5, 3);
    check(
        "projection",
        &[noise(m * k, 1), noise(n * k, 2)],
        |a| {
            let mut y = vec![0.0; m * n];
            product(view(&a[0], k), view(&a[1], k).t(), false, &mut out(&mut y, n), 1);
            y
        },
        |a, d_y| {
            let (mut d_x, mut d_w) = (vec![0.0; m * k], vec![0.0; n * k]);
            product(view(d_y, n), view(&a[1], k), false, &mut out(&mut d_x, k), 1);
            product(view(d_y, n).t(), view(&a[0], k), true, &mut out(&mut d_w, k), 1);
            vec![d_x, d_w]
        },
    );
}

#[test]
fn bias_and_sum() {
    let (t, d) = (4, 3);
    check(
        "bias and residual",
        &[noise(t * d, 1), noise(t * d, 3), noise(d, 2)],
        |a| {
            let mut y = vec![0.0; t * d];
            elementwise::add(view(&a[0], d), view(&a[1], d), out(&mut y, d), 1);
            elementwise::add_bias(out(&mut y, d), &a[2], 1);
            y
        },
        |_, d_y| {
            let mut d_bias = vec![0.0; d];
            elementwise::bias_grad(view(d_y, d), &mut d_bias);
            vec![d_y.to_vec(), d_y.to_vec(), d_bias]
        },
    );
}

#[test]
fn rope() {
    let (heads, dim) = (3, 8);
    let positions = [0u32, 5, 2, 31];
    let table: Vec<f64> = elementwise::rope_table(32, dim, 100.0).into_iter().map(f64::from).collect();
    let rotate = |x: &[f64], inverse: bool| {
        let mut x = x.to_vec();
        elementwise::rope(out(&mut x, heads * dim), &positions, view(&table, dim), dim, inverse, 1);
        x
    };
    let x = noise(positions.len() * heads * dim, 1);
    check("rope", std::slice::from_ref(&x), |a| rotate(&a[0], false), |_, d| vec![rotate(d, true)]);
    for (a, b) in x.iter().zip(rotate(&rotate(&x, false), true)) {
        assert!((a - b).abs() < 1e-6, "the inverse does not bring it back");
    }
}

#[test]
fn swiglu() {
    let (t, f) = (3, 5);
    check(
        "swiglu",
        &[noise(t * 2 * f, 1)],
        |a| {
            let mut h = vec![0.0; t * f];
            elementwise::swiglu(view(&a[0], 2 * f), out(&mut h, f), 1);
            h
        },
        |a, d_h| {
            let mut d = vec![0.0; t * 2 * f];
            elementwise::swiglu_grad(view(&a[0], 2 * f), view(d_h, f), out(&mut d, 2 * f), 1);
            vec![d]
        },
    );
}

/// Backward of attention by one of its two ways.
fn attention_backward(
    a: &[Vec<f64>],
    d_out: &[f64],
    starts: &[u32],
    heads: Heads,
    at_once: bool,
) -> Vec<Vec<f64>> {
    let (q_cols, kv_cols) = (heads.query * heads.dim, heads.kv_cols());
    let t = a[0].len() / q_cols;
    let (mut o, mut lse, mut delta) =
        (vec![0.0; t * q_cols], vec![0.0; t * heads.query], vec![0.0; t * heads.query]);
    let (q, kv) = (view(&a[0], q_cols), view(&a[1], kv_cols));
    attention::packed(q, kv, starts, out(&mut o, q_cols), out(&mut lse, heads.query), heads, 1);
    let d_out = view(d_out, q_cols);
    attention::delta(view(&o, q_cols), d_out, out(&mut delta, heads.query), heads, 1);
    let (lse, delta) = (view(&lse, heads.query), view(&delta, heads.query));
    let saved = Saved { q, kv, starts, lse, delta, d_out, heads };
    let (mut d_q, mut d_kv) = (vec![f64::NAN; t * q_cols], vec![f64::NAN; t * kv_cols]);
    if at_once {
        let width = q_cols + kv_cols;
        let mut d = vec![f64::NAN; t * width];
        attention::grad_qkv(&saved, out(&mut d, width), 1);
        for (i, row) in d.chunks_exact(width).enumerate() {
            d_q[i * q_cols..(i + 1) * q_cols].copy_from_slice(&row[..q_cols]);
            d_kv[i * kv_cols..(i + 1) * kv_cols].copy_from_slice(&row[q_cols..]);
        }
    } else {
        attention::grad_q(&saved, out(&mut d_q, q_cols), 1);
        attention::grad_kv(&saved, out(&mut d_kv, kv_cols), 1);
    }
    vec![d_q, d_kv]
}

#[test]
fn attention() {
    // The second case crosses the blocks that rows are worked on in.
    for (starts, heads) in [
        (vec![0u32, 5, 6, 9], Heads { query: 6, kv: 2, dim: 4 }),
        (vec![0, 70], Heads { query: 2, kv: 1, dim: 2 }),
    ] {
        let t = starts[starts.len() - 1] as usize;
        let (q_cols, kv_cols) = (heads.query * heads.dim, heads.kv_cols());
        let arguments = [noise(t * q_cols, 1), noise(t * kv_cols, 2)];
        for at_once in [false, true] {
            check(
                "attention",
                &arguments,
                |a| {
                    let (mut o, mut lse) = (vec![0.0; t * q_cols], vec![0.0; t * heads.query]);
                    let (q, kv) = (view(&a[0], q_cols), view(&a[1], kv_cols));
                    let lse = out(&mut lse, heads.query);
                    attention::packed(q, kv, &starts, out(&mut o, q_cols), lse, heads, 1);
                    o
                },
                |a, d_out| attention_backward(a, d_out, &starts, heads, at_once),
            );
        }
    }
}

#[test]
fn adapters() {
    let (t, inputs, outputs, rank, scale) = (5, 11, 7, 3, 1.5);
    let samples: Vec<u32> = (0..2 * t as u32).collect();
    let positions: Vec<u32> = (0..t as u32).collect();
    for threshold in [0u32, 20_000] {
        let mask = Dropout::new(7, 3, (1, 2), threshold, &samples, &positions);
        let run = |a: &[Vec<f64>]| {
            let (mut u, mut y, mut room) =
                (vec![0.0; t * rank], vec![0.0; t * outputs], vec![0.0; t * inputs]);
            let factors = Factors { a: view(&a[1], inputs), b: view(&a[2], rank), scale };
            let masked = Some(Masked { mask, room: out(&mut room, inputs) });
            let x = view(&a[0], inputs);
            adapter::forward(x, masked, factors, out(&mut u, rank), out(&mut y, outputs), 1);
            (y, u)
        };
        check(
            "adapter",
            &[noise(t * inputs, 1), noise(rank * inputs, 2), noise(outputs * rank, 3)],
            |a| run(a).0,
            |a, d_y| {
                let u = run(a).1;
                let mut room = vec![0.0; t * inputs];
                let (mut d_u, mut d_a, mut d_b, mut d_x) = (
                    vec![0.0; t * rank],
                    vec![0.0; rank * inputs],
                    vec![0.0; outputs * rank],
                    vec![0.0; t * inputs],
                );
                let (x, d_y) = (view(&a[0], inputs), view(d_y, outputs));
                adapter::grad_inner(d_y, view(&a[2], rank), scale, out(&mut d_u, rank), 1);
                let grads = Grads { d_a: out(&mut d_a, inputs), d_b: out(&mut d_b, rank) };
                let masked = Some(Masked { mask, room: out(&mut room, inputs) });
                let factors = [view(&u, rank), d_y, view(&d_u, rank)];
                adapter::grad_params(x, masked, factors, scale, grads, 1);
                let masked = Some(Masked { mask, room: out(&mut room, inputs) });
                let a = view(&a[1], inputs);
                adapter::grad_input(view(&d_u, rank), a, masked, out(&mut d_x, inputs), 1);
                vec![d_x, d_a, d_b]
            },
        );
    }
}

#[test]
fn cross_entropy() {
    let (t, v) = (4, 9);
    let labels = [3u32, 0, 8, 3];
    check(
        "cross entropy",
        &[noise(t * v, 1)],
        |a| {
            let (mut logits, mut loss) = (a[0].clone(), vec![0.0; t]);
            training::cross_entropy(out(&mut logits, v), &labels, out(&mut loss, 1), false, 1);
            let sum = training::sum_losses(view(&loss, 1));
            // The harness weighs outputs; dividing by its weight leaves the sum itself.
            vec![sum / noise(1, 99)[0]]
        },
        |a, _| {
            let (mut logits, mut loss) = (a[0].clone(), vec![0.0; t]);
            training::cross_entropy(out(&mut logits, v), &labels, out(&mut loss, 1), true, 1);
            vec![logits]
        },
    );
}

#[test]
fn rows_of_tables() {
    let (vocab, d) = (5, 3);
    let ids = [4u32, 1, 4, 0];
    let index = [0u32, 2];
    check(
        "embedding, then a choice of rows",
        &[noise(vocab * d, 1)],
        |a| {
            let (mut x, mut rows) = (vec![0.0; ids.len() * d], vec![0.0; index.len() * d]);
            elementwise::embed(&ids, view(&a[0], d), out(&mut x, d));
            elementwise::gather_rows(view(&x, d), &index, out(&mut rows, d));
            rows
        },
        |_, d_rows| {
            let (mut d_x, mut d_table) = (vec![f64::NAN; ids.len() * d], vec![0.0; vocab * d]);
            elementwise::scatter_rows(view(d_rows, d), &index, out(&mut d_x, d));
            elementwise::embed_grad(&ids, view(&d_x, d), out(&mut d_table, d));
            vec![d_table]
        },
    );
}

/// A tiny model in float64, through the plan.
struct Model {
    backend: Cpu<f64>,
    plan: TrainPlan,
    program: engine::cpu::CpuProgram,
    zero: engine::cpu::CpuProgram,
    inputs: Inputs,
    params: ModelParams,
}

impl Model {
    fn new(full: bool, tied: bool, save: SavePolicy, dropout: bool, native: bool) -> Self {
        let config = model::config::Config { tie_word_embeddings: tied, ..tiny_config() };
        let shape = Shape {
            hidden: config.hidden_size,
            layers: config.num_hidden_layers,
            query_heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            ffn: config.intermediate_size,
            vocab: config.vocab_size,
            norm_eps: config.rms_norm_eps,
            rope_theta: config.rope_theta,
            tied,
        };
        let lora = (!full).then_some(LoraShape { rank: 3, modules: [true; 7] });
        let params = ModelParams::new(shape, lora, full, !full, 16);
        let options = CpuOptions { threads: 1, round: false, transposed: false, native };
        let mut backend = Cpu::<f64>::new(&options);
        backend.allocate(&params).unwrap();
        let weights = random_model(&config, 3);
        let adapter = random_adapter(&config, 3, 6.0, 4);
        for (id, spec) in params.iter() {
            let values = match spec.class {
                Class::RopeTable => elementwise::rope_table(spec.rows, spec.cols, shape.rope_theta),
                Class::Adapter => adapter.tensors[&spec.pieces[0].name].to_f32(),
                _ => spec.pieces.iter().flat_map(|p| weights.get(&p.name).unwrap().to_f32()).collect(),
            };
            backend.store_param(id, &values).unwrap();
        }
        let plan = train_plan(&params, 16, Some(&[save; 2]), dropout);
        let claims = backend.caps().claims;
        let placement = place(&plan.plan, Layout::uniform(8), &claims);
        let program = backend.compile(plan.plan.clone(), placement).unwrap();
        let zero = optimizer_plans().0;
        let placement = place(&zero, Layout::uniform(8), &claims);
        let zero = backend.compile(zero, placement).unwrap();
        Model { backend, plan, program, zero, inputs: inputs(if dropout { 20_000 } else { 0 }), params }
    }

    fn loss(&mut self) -> f64 {
        self.backend.submit(&self.program, self.inputs.clone()).unwrap();
        self.backend.values(&self.program, self.plan.loss_sum, self.inputs.dims).unwrap()[0]
    }

    fn gradient(&mut self) -> Vec<f64> {
        let dims = Dims { tokens: 0, loss_rows: 0, seqs: 0, chunk: 1 };
        let nothing = Inputs { dims, index: Arc::default(), ..self.inputs.clone() };
        self.backend.submit(&self.zero, nothing).unwrap();
        self.loss();
        self.backend.slab_mut(Slab::Gradient).clone()
    }
}

fn inputs(drop_threshold: u32) -> Inputs {
    let micro = tiny_micro(&[(11, 6, 2), (12, 5, 1)]);
    let mut index: BTreeMap<Input, Vec<u32>> = BTreeMap::new();
    let mut starts = vec![0u32];
    let mut tokens = 0u32;
    for sequence in &micro.sequences {
        for (i, &id) in sequence.input_ids.iter().enumerate() {
            index.entry(Input::TokenIds).or_default().push(id);
            index.entry(Input::Positions).or_default().push(i as u32);
            index.entry(Input::Samples).or_default().extend([sequence.sample_id as u32, 0]);
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
    let dims = Dims { tokens: tokens as usize, loss_rows, seqs: 2, chunk: HEAD_CHUNK };
    let optimizer = AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: 0.0 };
    let scalars = Scalars {
        inv_labels: 1.0 / loss_rows as f64,
        lora_scale: 2.0,
        step: 5,
        seed: 9,
        drop_threshold,
        optimizer,
    };
    Inputs { dims, index: Arc::new(index), scalars }
}

#[test]
fn whole_models() {
    for (full, tied, save, dropout) in [
        (true, true, SavePolicy::All, false),
        (true, false, SavePolicy::Input, false),
        (false, true, SavePolicy::NoGateUp, true),
        (false, true, SavePolicy::Input, true),
    ] {
        let mut model = Model::new(full, tied, save, dropout, true);
        let exact = model.gradient();
        assert_eq!(exact.len(), model.params.slab_len);
        // A prime stride visits every tensor in every column without taking minutes.
        for i in (0..exact.len()).step_by(7) {
            let value = model.backend.slab_mut(Slab::Master)[i];
            model.backend.slab_mut(Slab::Master)[i] = value + STEP;
            let above = model.loss();
            model.backend.slab_mut(Slab::Master)[i] = value - STEP;
            let below = model.loss();
            model.backend.slab_mut(Slab::Master)[i] = value;
            let numeric = (above - below) / (2.0 * STEP);
            let error = (numeric - exact[i]).abs() / (1e-2 + exact[i].abs());
            assert!(error < 1e-6, "full {full}, element {i}: {} against {numeric}", exact[i]);
        }
        let table = model.params.table();
        for (name, range) in table {
            let part = &exact[range.start..range.start + range.len];
            assert!(part.iter().any(|&g| g != 0.0), "{name} has no gradient");
        }
    }
}

#[test]
fn a_claimed_block_equals_its_decomposition() {
    for full in [false, true] {
        let run = |native| Model::new(full, true, SavePolicy::All, !full, native).gradient();
        let (claimed, decomposed) = (run(true), run(false));
        for (a, b) in claimed.iter().zip(&decomposed) {
            assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{a} {b}");
        }
    }
}
