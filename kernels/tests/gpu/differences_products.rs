//! Gradients of products, attention, rotations, adapters and activations against central differences of the forward
//! formulas in float64, as in `differences.rs`: no derivative is written down here.

use crate::differences::differences;
use crate::lora::bytes_of;
use crate::lora_fused::gradients_of;
use crate::philox::Masks;
use crate::support::{Kind, Matrix, Random, close, given, gpu, integers, poisoned, random, run, run_twice};
use kernels::cuda::ops::attention::{self, Heads, Saved};
use kernels::cuda::ops::elementwise::{self, Activation};
use kernels::cuda::ops::{StepScalars, lora, rope};
use kernels::cuda::{Dtype, Form, Matmul, Tensor, WORKSPACE_BYTES, Work};

const DTYPE: Dtype = Dtype::F32;

fn fresh(rng: &mut Random, rows: usize, cols: usize, scale: f32) -> Matrix {
    random(rng, (rows, cols), 1, DTYPE, scale)
}

/// `a[m,k] b[n,k]^T`.
fn product(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    a.chunks(k).flat_map(|x| b.chunks(k).map(move |y| dot(x, y))).collect()
}

#[test]
fn gradients_of_a_product_equal_central_differences() {
    let mut rng = Random::new("differences of a product");
    let workspace = gpu().alloc(WORKSPACE_BYTES, "a test").unwrap();
    let (m, n, k) = (7, 5, 9);
    let (x, w, d_y) = (fresh(&mut rng, m, k, 1.0), fresh(&mut rng, n, k, 1.0), fresh(&mut rng, m, n, 1.0));
    let times = |form, a: &Matrix, b: &Matrix, c: &Tensor| {
        let work = Matmul::new(&workspace, form, (&a.tensor, &b.tensor, c), false).unwrap();
        run_twice("product", &Work::from(work), &[c]);
    };
    let (d_x, d_w) = (poisoned((m, k), 3, DTYPE), poisoned((n, k), 3, DTYPE));
    times(Form::Nn, &d_y, &w, &d_x);
    times(Form::Tn, &d_y, &x, &d_w);
    let by_x = differences(&x.host, &d_y.host, |x| product(x, &w.host, k));
    let by_w = differences(&w.host, &d_y.host, |w| product(&x.host, w, k));
    close("product by x", &d_x, &by_x, Kind::Product);
    close("product by w", &d_w, &by_w, Kind::Product);
}

/// Causal attention inside each sequence of these lengths.
fn attend(q: &[f64], kv: &[f64], lengths: &[usize], heads: Heads) -> Vec<f64> {
    let (n, pitch, dim) = (heads.query_cols(), heads.kv_cols(), heads.dim);
    let mut out = Vec::with_capacity(q.len());
    let starts = lengths.iter().scan(0, |end, &length| {
        *end += length;
        Some(vec![*end - length; length])
    });
    for (t, start) in starts.flatten().enumerate() {
        for head in 0..heads.query {
            let at = head / (heads.query / heads.kv) * dim;
            let row = |key: usize, at: usize| &kv[key * pitch + at..][..dim];
            let q = &q[t * n + head * dim..][..dim];
            let dot = |key| row(key, at).iter().zip(q).map(|(a, b)| a * b).sum::<f64>();
            let weights: Vec<f64> = (start..=t).map(|key| (dot(key) / (dim as f64).sqrt()).exp()).collect();
            let total: f64 = weights.iter().sum();
            let value = |c: usize| {
                let weighted = (start..).zip(&weights);
                weighted.map(|(key, w)| w * row(key, at + heads.kv * dim)[c]).sum::<f64>() / total
            };
            out.extend((0..dim).map(value));
        }
    }
    out
}

#[test]
fn gradients_of_attention_equal_central_differences() {
    let mut rng = Random::new("differences of attention");
    for (heads, lengths) in [
        (Heads { query: 4, kv: 2, dim: 6 }, vec![3, 1, 5]),
        (Heads { query: 3, kv: 1, dim: 32 }, vec![2, 4]),
        (Heads { query: 2, kv: 2, dim: 96 }, vec![3]),
    ] {
        let tokens = lengths.iter().sum();
        let (q, kv) =
            (fresh(&mut rng, tokens, heads.query_cols(), 1.0), fresh(&mut rng, tokens, heads.kv_cols(), 1.0));
        let d_out = fresh(&mut rng, tokens, heads.query_cols(), 1.0);
        let spans = integers(&crate::attention::spans(&lengths), 2);
        let column = || poisoned((tokens, heads.query), 0, DTYPE);
        let (out, lse, delta) = (poisoned((tokens, heads.query_cols()), 0, DTYPE), column(), column());
        let (d_q, d_kv) =
            (poisoned((tokens, heads.query_cols()), 5, DTYPE), poisoned((tokens, heads.kv_cols()), 5, DTYPE));
        run(&attention::forward(&q.tensor, &kv.tensor, (&spans, None), &out, &lse, heads).unwrap());
        run(&attention::delta(&out, &d_out.tensor, &delta, heads).unwrap());
        let saved = Saved {
            q: &q.tensor,
            kv: &kv.tensor,
            spans: &spans,
            lse: &lse,
            delta: &delta,
            d_out: &d_out.tensor,
            heads,
            order: None,
            turn: None,
        };
        run_twice("d_q", &attention::grad_q(&saved, &d_q).unwrap(), &[&d_q]);
        run_twice("d_kv", &attention::grad_kv(&saved, &d_kv).unwrap(), &[&d_kv]);
        let by_q = differences(&q.host, &d_out.host, |q| attend(q, &kv.host, &lengths, heads));
        let by_kv = differences(&kv.host, &d_out.host, |kv| attend(&q.host, kv, &lengths, heads));
        close(&format!("attention {heads:?} by q"), &d_q, &by_q, Kind::Product);
        close(&format!("attention {heads:?} by k and v"), &d_kv, &by_kv, Kind::Product);
    }
}

#[test]
fn gradients_of_rope_equal_central_differences() {
    let mut rng = Random::new("differences of rope");
    let (rows, heads, dim) = (4, 3, 10);
    let angles = rng.values(9 * dim / 2, 3.0);
    let table: Vec<f32> = angles
        .chunks(dim / 2)
        .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())))
        .collect();
    let table = given(&table, (9, dim), 0, DTYPE);
    let positions = [3u32, 0, 8, 5];
    let turn = |x: &[f64]| -> Vec<f64> {
        let column = |i: usize| {
            let (row, c) = (i / (heads * dim), i % dim);
            let angle = &table.host[positions[row] as usize * dim..][..dim];
            let (cos, sin) = (angle[c % (dim / 2)], angle[dim / 2 + c % (dim / 2)]);
            if c < dim / 2 { x[i] * cos - x[i + dim / 2] * sin } else { x[i] * cos + x[i - dim / 2] * sin }
        };
        (0..x.len()).map(column).collect()
    };
    let (x, d) = (fresh(&mut rng, rows, heads * dim, 1.0), fresh(&mut rng, rows, heads * dim, 1.0));
    let expected = differences(&x.host, &d.host, turn);
    let work = rope::apply(&d.tensor, &integers(&positions, 1), &table.tensor, dim, true).unwrap();
    run_twice("rope", &work, &[&d.tensor]);
    close("rope", &d.tensor, &expected, Kind::Elementwise);
}

/// Tokens, features and rank of the adapters below, and their columns.
const ADAPTED: (usize, usize, usize) = (5, 9, 3);
const COUNTS: [usize; 2] = [7, 4];

/// `1.5 drop_m(x) A_m^T B_m^T` of two modules side by side.
fn adapted(kept: &[Vec<bool>; 2], keep: f64, x: &[f64], a: [&[f64]; 2], b: [&[f64]; 2]) -> Vec<f64> {
    let (tokens, features, rank) = ADAPTED;
    let y = [0, 1].map(|m| {
        let drop = x.iter().zip(&kept[m]).map(|(x, &kept)| if kept { x * keep } else { 0.0 });
        product(&product(&drop.collect::<Vec<f64>>(), a[m], features), b[m], rank)
    });
    let row = |t: usize| [0, 1].map(|m| y[m][t * COUNTS[m]..][..COUNTS[m]].to_vec()).concat();
    (0..tokens).flat_map(row).map(|y| y * 1.5).collect()
}

#[test]
fn gradients_of_adapters_equal_central_differences() {
    let mut rng = Random::new("differences of lora");
    let (tokens, features, rank) = ADAPTED;
    let cols = [(0, COUNTS[0]), (COUNTS[0], COUNTS[1])];
    let samples: Vec<u32> = (0..2 * tokens).map(|_| rng.bits() as u32).collect();
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let (seed, step, threshold) = (rng.bits(), 7, 20_000);
    let modules = vec![2, 5];
    let masks = Masks {
        seed,
        step,
        threshold,
        layer: 3,
        modules,
        samples: samples.clone(),
        positions: positions.clone(),
    };
    let kept = [0, 1].map(|m| masks.kept(m, features));
    let keep = 65_536.0 / (65_536.0 - f64::from(threshold));
    let step =
        StepScalars { lora_scale: 1.5, step, drop_threshold: threshold, seed, ..StepScalars::default() };
    let x = fresh(&mut rng, tokens, features, 1.0);
    let a = [0, 1].map(|_| random(&mut rng, (rank, features), 0, DTYPE, 1.0));
    let b = COUNTS.map(|n| random(&mut rng, (n, rank), 0, DTYPE, 1.0));
    let d_y = fresh(&mut rng, tokens, 11, 1.0);

    let scalars = bytes_of(&step.to_bytes());
    let (samples, positions) = (integers(&samples, 2), integers(&positions, 1));
    let dropout =
        lora::Dropout { samples: &samples, positions: &positions, layer: 3, modules: &masks.modules };
    let tensors = |of: &[Matrix; 2]| [of[0].tensor.clone(), of[1].tensor.clone()];
    let (u, d_u) = (poisoned((tokens, 2 * rank), 1, DTYPE), poisoned((tokens, 2 * rank), 1, DTYPE));
    run_twice("u", &lora::down(&x.tensor, &tensors(&a), &u, Some(&dropout), &scalars, None).unwrap(), &[&u]);
    run_twice("d_u", &lora::grad_inner(&d_y.tensor, &tensors(&b), &cols, &d_u, &scalars).unwrap(), &[&d_u]);
    let zeros = |rows: usize, cols: usize| given(&vec![0.0; rows * cols], (rows, cols), 0, DTYPE).tensor;
    let (d_a, d_b) = ([0, 1].map(|_| zeros(rank, features)), COUNTS.map(|n| zeros(n, rank)));
    let scratch = poisoned((1, lora::scratch_bytes(tokens, features, rank, &cols) / 4), 0, DTYPE);
    let outer = lora::Outer {
        u: &u,
        d_y: &d_y.tensor,
        cols: &cols,
        d_u: &d_u,
        d_a: &d_a,
        d_b: &d_b,
        scratch: &scratch,
    };
    let params = lora::Params { x: &x.tensor, outer };
    gradients_of(&params, Some(&dropout), &scalars).iter().for_each(run);
    let d_x = zeros(tokens, features);
    let work = lora::grad_input(&d_u, &tensors(&a), &d_x, Some(&dropout), &scalars).unwrap();
    run_twice("d_x", &work, &[&d_x]);

    let (a, b) = ([&a[0].host[..], &a[1].host[..]], [&b[0].host[..], &b[1].host[..]]);
    close("by x", &d_x, &differences(&x.host, &d_y.host, |x| adapted(&kept, keep, x, a, b)), Kind::Product);
    for m in 0..2 {
        let by_a = differences(a[m], &d_y.host, |new| adapted(&kept, keep, &x.host, with_one(new, a, m), b));
        close(&format!("by A {m}"), &d_a[m], &by_a, Kind::Product);
        let by_b = differences(b[m], &d_y.host, |new| adapted(&kept, keep, &x.host, a, with_one(new, b, m)));
        close(&format!("by B {m}"), &d_b[m], &by_b, Kind::Product);
    }
}

/// `new` in the place of one of the two.
fn with_one<'a>(new: &'a [f64], old: [&'a [f64]; 2], place: usize) -> [&'a [f64]; 2] {
    if place == 0 { [new, old[1]] } else { [old[0], new] }
}

#[test]
fn gradients_of_activations_equal_central_differences() {
    let mut rng = Random::new("differences of activations");
    type Formula = fn(f64) -> f64;
    let rules: [(Activation, Formula); 3] = [
        (Activation::Relu, |x| x.max(0.0)),
        (Activation::Silu, |x| x / (1.0 + (-x).exp())),
        (Activation::GeluTanh, |x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }),
    ];
    for (f, formula) in rules {
        let mut values = rng.values(3 * 33, 5.0);
        // no difference across the corner of ReLU
        values.iter_mut().filter(|v| v.abs() < 1e-3).for_each(|v| *v = 0.5);
        let x = given(&values, (3, 33), 1, DTYPE);
        let (d_out, d_x) = (fresh(&mut rng, 3, 33, 1.0), poisoned((3, 33), 0, DTYPE));
        let work = elementwise::activation_grad(f, &x.tensor, &d_out.tensor, &d_x).unwrap();
        run_twice(&format!("{f:?}"), &work, &[&d_x]);
        let expected = differences(&x.host, &d_out.host, |x| x.iter().map(|&x| formula(x)).collect());
        close(&format!("{f:?}"), &d_x, &expected, Kind::Elementwise);
    }
}
