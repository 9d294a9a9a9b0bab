//! One table of times: every kernel that is bound by memory, at the shapes of the 0.5B model and 8,192 tokens.

use crate::cross_entropy::scalars;
use crate::support::{gpu, integers, run};
use kernels::cuda::ops::elementwise::{self, Activation};
use kernels::cuda::ops::layer_norm::{self, Statistics};
use kernels::cuda::ops::optimizer::{self, Conditions, Slabs};
use kernels::cuda::ops::rms_norm::{self, Residual};
use kernels::cuda::ops::{
    StepScalars, attention_paged, cross_entropy, embed, rope, rows, sample, softmax, sum_parts,
};
use kernels::cuda::{Dtype, Event, Finish, Graph, Schedule, Tensor, Work};
use kernels::sample::{Draw, WORDS};
use std::sync::Arc;
use std::time::Instant;

const T: usize = 8192;
const C: usize = 896;
const F: usize = 4864;
const V: usize = 151_936;
/// Parameters of the adapters at rank 16.
const TRAINABLE: usize = 8_798_208;
/// Bytes that one round of a bench touches, well beyond any cache.
const ROUND: f64 = 400e6;

/// Numbers that repeat after 64 rows, not zero: speed may depend on what is moved.
pub(crate) fn filled(rows: usize, cols: usize, dtype: Dtype) -> Tensor {
    const PERIOD: usize = 64;
    let dense = |rows: usize| {
        gpu().alloc(rows * cols * dtype.bytes(), "a bench").unwrap().dense(rows, cols, dtype).unwrap()
    };
    let part: Vec<f32> = (0..PERIOD * cols).map(|i| ((i * 7919 % 10_007) as f32 - 5003.0) / 2500.0).collect();
    let base = dense(PERIOD);
    base.upload(&part).unwrap();
    let index: Vec<u32> = (0..rows as u32).map(|row| row % PERIOD as u32).collect();
    let out = dense(rows);
    run(&rows::gather(&base, &integers(&index, 1), &out).unwrap());
    out
}

/// Name, bytes and median milliseconds of one piece: rounds over several sets of buffers, recorded as a graph.
fn time(mut make: impl FnMut() -> Vec<Work>) -> (String, f64, f64) {
    let first = make();
    let name = first[0].name().to_owned();
    let bytes: f64 = first.iter().map(|work| work.cost().bytes).sum();
    let sets = ((ROUND / bytes).ceil() as usize).clamp(2, 12);
    let mut all = first;
    (1..sets).for_each(|_| all.extend(make()));
    let work = Arc::new(Schedule::in_order(gpu(), all).unwrap());
    work.run().unwrap();
    gpu().synchronize().unwrap();
    let graph = Graph::capture(gpu(), &work).unwrap();
    let (start, end) = (Event::new(gpu()).unwrap(), Event::new(gpu()).unwrap());
    let mut times: Vec<f64> = (0..25)
        .map(|_| {
            start.record().unwrap();
            graph.launch().unwrap();
            end.record().unwrap();
            end.wait().unwrap();
            f64::from(end.ms_since(&start).unwrap()) / sets as f64
        })
        .skip(3)
        .collect();
    times.sort_by(f64::total_cmp);
    (name, bytes, times[times.len() / 2])
}

fn line(shape: &str, limit: f64, make: impl FnMut() -> Vec<Work>) {
    let (name, bytes, ms) = time(make);
    let rate = bytes / ms / 1e6;
    println!("{name:<34} {shape:<22} {:>9.1} us {rate:>8.0} GB/s {:>5.0} %", ms * 1e3, 100.0 * rate / limit);
}

/// Rotations of queries and keys, writing to a cache, and the sum of a product's parts.
fn turning(dtype: Dtype) {
    let limit = limit();
    let positions: Vec<u32> = (0..T as u32).map(|t| t % 512).collect();
    let (positions, table) = (integers(&positions, 1), filled(512, 64, Dtype::F32));
    for inverse in [false, true] {
        line(&format!("{T} x 16 heads of 64"), limit, || {
            vec![rope::apply(&filled(T, 1024, dtype), &positions, &table, 64, inverse).unwrap()]
        });
    }
    let index: Vec<u32> = (0..T as u32).map(|t| t * 5 % T as u32).collect();
    let index = integers(&index, 1);
    line(&format!("{T} x 256"), limit, || {
        vec![attention_paged::cache_write(&filled(T, 256, dtype), &index, &filled(T, 256, dtype)).unwrap()]
    });
    for (parts, rows, with) in [(2, 9728, false), (9, 896, false), (4, 1024, true)] {
        let bias = filled(1, C, dtype);
        line(&format!("{parts} of {rows} x {C}{}", if with { " finished" } else { "" }), limit, || {
            let each =
                filled(parts * rows, C, Dtype::F32).memory().dense(parts, rows * C, Dtype::F32).unwrap();
            let addend = filled(rows, C, dtype);
            let finish = Finish { addend: with.then_some(&addend), bias: with.then_some(&bias) };
            vec![sum_parts::add(&each, &filled(rows, C, dtype), finish).unwrap()]
        });
    }
}

/// Bytes a second that a large copy moves on this device, as measured elsewhere; for the last column.
fn limit() -> f64 {
    if gpu().properties().name.contains("H200") { 4300.0 } else { 3000.0 }
}

#[test]
fn bench_elementwise() {
    let start = Instant::now();
    println!("{} (limit {} GB/s)", gpu().properties().name, limit());
    for dtype in [Dtype::Bf16, Dtype::F32] {
        norms(dtype);
        activations(dtype);
        picking(dtype);
        turning(dtype);
    }
    losses();
    updates();
    println!("bench_elementwise took {:.1} s", start.elapsed().as_secs_f64());
}

fn norms(dtype: Dtype) {
    let limit = limit();
    let (w, b) = (filled(1, C, dtype), filled(1, C, dtype));
    let sum = filled(1, C, Dtype::F32);
    let x = || filled(T, C, dtype);
    let stat = || filled(T, 1, Dtype::F32);
    let shape = format!("{T} x {C}");
    line(&shape, limit, || vec![rms_norm::forward(&x(), &w, &x(), &stat(), 1e-6).unwrap()]);
    line(&shape, limit, || {
        let (x, addend, sum) = (x(), x(), x());
        let residual = Residual { x: &x, addend: &addend, sum: &sum };
        vec![rms_norm::forward_add(residual, &w, &filled(T, C, dtype), &stat(), 1e-6).unwrap()]
    });
    for accumulate in [false, true] {
        let shape = format!("{shape}{}", if accumulate { " added" } else { "" });
        line(&shape, limit, || vec![rms_norm::backward(&x(), &w, &stat(), &x(), &x(), accumulate).unwrap()]);
    }
    line(&shape, limit, || vec![rms_norm::weight_grad(&x(), &stat(), &x(), &sum).unwrap()]);
    line(&shape, limit, || {
        let (mean, rstd) = (stat(), stat());
        let kept = Statistics { mean: &mean, rstd: &rstd };
        vec![layer_norm::forward(&x(), &w, &b, &x(), kept, 1e-5).unwrap()]
    });
    line(&shape, limit, || {
        let (mean, rstd) = (stat(), stat());
        let kept = Statistics { mean: &mean, rstd: &rstd };
        vec![layer_norm::backward(&x(), &w, kept, &x(), &x()).unwrap()]
    });
    let other = filled(1, C, Dtype::F32);
    line(&shape, limit, || {
        let (mean, rstd) = (stat(), stat());
        let kept = Statistics { mean: &mean, rstd: &rstd };
        vec![layer_norm::weight_grad(&x(), kept, &x(), &sum, &other).unwrap()]
    });
    line(&shape, limit, || vec![softmax::forward(&x(), &x()).unwrap()]);
    line(&shape, limit, || vec![softmax::backward(&x(), &x(), &x()).unwrap()]);
}

fn activations(dtype: Dtype) {
    let limit = limit();
    let bias = filled(1, 1152, dtype);
    let d_bias = filled(1, 1152, Dtype::F32);
    let x = || filled(T, C, dtype);
    let half = || filled(T, F, dtype);
    let pair = || filled(T, 2 * F, dtype);
    line(&format!("{T} x {C}"), limit, || vec![elementwise::add(&x(), &x(), &x()).unwrap()]);
    let other = if dtype == Dtype::F32 { Dtype::Bf16 } else { Dtype::F32 };
    line(&format!("{T} x {C}"), limit, || vec![elementwise::cast(&x(), &filled(T, C, other)).unwrap()]);
    let y = || filled(T, 1152, dtype);
    line(&format!("{T} x 1152"), limit, || vec![elementwise::add_bias(&y(), &bias).unwrap()]);
    line(&format!("{T} x 1152"), limit, || vec![elementwise::bias_grad(&y(), &d_bias).unwrap()]);
    for f in [Activation::Relu, Activation::GeluTanh, Activation::GeluErf, Activation::Silu] {
        line(&format!("{T} x {F}"), limit, || vec![elementwise::activation(f, &half(), &half()).unwrap()]);
        line(&format!("{T} x {F}"), limit, || {
            vec![elementwise::activation_grad(f, &half(), &half(), &half()).unwrap()]
        });
    }
    line(&format!("{T} x {F}"), limit, || vec![elementwise::swiglu(&pair(), &half()).unwrap()]);
    line(&format!("{T} x {F}"), limit, || {
        vec![elementwise::swiglu_grad(&pair(), &half(), &pair(), None).unwrap()]
    });
    line(&format!("{T} x {F} with h"), limit, || {
        vec![elementwise::swiglu_grad(&pair(), &half(), &pair(), Some(&half())).unwrap()]
    });
}

fn picking(dtype: Dtype) {
    let limit = limit();
    let shape = format!("{T} x {C}");
    let ids: Vec<u32> = (0..T as u32).map(|t| t.wrapping_mul(2_654_435_761) % V as u32).collect();
    let table = filled(V, C, dtype);
    let column = |values: &[u32]| integers(values, 1);
    line(&shape, limit, || vec![embed::forward(&column(&ids), &table, &filled(T, C, dtype)).unwrap()]);
    let index: Vec<u32> = (0..T as u32).map(|t| t * 5 % T as u32).collect();
    let x = || filled(T, C, dtype);
    line(&shape, limit, || vec![rows::gather(&x(), &column(&index), &x()).unwrap()]);
    line(&shape, limit, || vec![rows::put(&x(), &column(&index), &x()).unwrap()]);
    line(&shape, limit, || vec![rows::scatter_inverse(&x(), &column(&index), &x()).unwrap()]);
    // text repeats few tokens often: as many as one in ten is the same
    let text: Vec<u32> = ids.iter().map(|&id| if id % 10 == 0 { 220 } else { id % 3000 }).collect();
    let (order, mut starts, count) = embed::runs(&text);
    starts.resize(T + 1, 0);
    let (ids, order, starts, count) = (column(&text), column(&order), column(&starts), column(&[count]));
    let d_table = filled(V, C, Dtype::F32);
    line(&format!("{shape} text"), limit, || {
        let runs = embed::Runs { order: &order, starts: &starts, count: &count };
        vec![embed::grad(&ids, runs, &x(), &d_table).unwrap()]
    });
}

fn losses() {
    let limit = limit();
    for (count, dtype) in [(256, Dtype::Bf16), (1024, Dtype::Bf16), (256, Dtype::F32)] {
        let labels: Vec<u32> = (0..count as u32).map(|i| i * 577 % V as u32).collect();
        let labels = integers(&labels, 1);
        let shape = format!("{count} x {V}");
        let loss = filled(count, 1, Dtype::F32);
        for gradient in [false, true] {
            let shape = format!("{shape}{}", if gradient { " grad" } else { "" });
            line(&shape, limit, || {
                let logits = filled(count, V, dtype);
                vec![cross_entropy::forward(&logits, &labels, &loss, gradient).unwrap()]
            });
        }
    }
    let sum = filled(1, 1, Dtype::F32);
    line(&format!("{T}"), limit, || {
        vec![cross_entropy::sum_loss(&filled(T, 1, Dtype::F32), &sum, None).unwrap()]
    });
    for count in [1, 64, 256] {
        let ids = integers(&vec![0; count], 1);
        for (name, draw) in [
            ("greatest", Draw::greatest(151_665)),
            ("flat", Draw::weighted(151_665, 0.8, (0, 0.95), 0.4)),
            ("peaked", Draw::weighted(151_665, 0.05, (0, 0.95), 0.4)),
        ] {
            let draws = integers(&draw.words().repeat(count), WORDS);
            line(&format!("{count} x {V} {name}"), limit, || {
                vec![sample::choose(&filled(count, V, Dtype::Bf16), &draws, &ids).unwrap()]
            });
        }
    }
}

fn updates() {
    let limit = limit();
    let s = scalars(StepScalars {
        inv_labels: 1e-4,
        clip: 1.0,
        step_size: 1e-4,
        correction: 1.0,
        keep1: 0.1,
        beta2: 0.999,
        keep2: 0.001,
        eps: 1e-8,
        shrink: 0.999_999,
        ..StepScalars::default()
    });
    let slab = |dtype| filled(TRAINABLE / 1024, 1024, dtype).memory().dense(1, TRAINABLE, dtype).unwrap();
    let all_decay = integers(&[0, 1], 2);
    let many: Vec<(usize, bool)> = (0..290).map(|i| (TRAINABLE / 290, i % 3 != 0)).collect();
    let many = integers(&optimizer::segments(many), 2);
    let norm = filled(1, 1, Dtype::F32);
    norm.upload(&[2.0]).unwrap();
    let bytes = optimizer::partials_bytes(TRAINABLE);
    line(&format!("{TRAINABLE}"), limit, || {
        let gradient = slab(Dtype::F32);
        let partials = gpu().alloc(bytes, "partial sums").unwrap().dense(1, bytes, Dtype::U8).unwrap();
        optimizer::grad_norm(&gradient, &partials, &norm, &s, None).unwrap().into()
    });
    norm.upload(&[2.0]).unwrap();
    for (shape, segments, copy) in [
        ("one rule", &all_decay, false),
        ("one rule, copy", &all_decay, true),
        ("290 rules, copy", &many, true),
        ("adam, copy", &all_decay, true),
    ] {
        line(&format!("{TRAINABLE} {shape}"), limit, || {
            let float = || slab(Dtype::F32);
            let (master, gradient, m, v) = (float(), float(), float(), float());
            run(&elementwise::activation(Activation::Relu, &v, &v).unwrap());
            let rounded = slab(Dtype::Bf16);
            let slabs =
                Slabs { master: &master, gradient: &gradient, m: &m, v: &v, copy: copy.then_some(&rounded) };
            let conditions = Conditions { norm: &norm, scalars: &s, segments, flag: None };
            let adam = shape.starts_with("adam");
            vec![match adam {
                true => optimizer::adam(slabs, conditions, 0.01).unwrap(),
                false => optimizer::adamw(slabs, conditions).unwrap(),
            }]
        });
    }
    line(&format!("{TRAINABLE}"), limit, || {
        let gradient = slab(Dtype::F32);
        vec![optimizer::clip(&gradient, &norm, &s).unwrap()]
    });
}
