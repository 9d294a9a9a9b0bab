//! Backward kernels against central differences of the forward formulas in float64: no derivative is written down here.

use crate::support::{Kind, Random, close, integers, poisoned, random, run};
use kernels::cuda::Dtype;
use kernels::cuda::ops::layer_norm::{self, Statistics};
use kernels::cuda::ops::{cross_entropy, elementwise, rms_norm, softmax};

const ROWS: usize = 3;
const COLS: usize = 33;
const EPS: f64 = 1e-6;
const DTYPE: Dtype = Dtype::F32;

/// Gradient of `sum of d_out f(x)` by each element of `x`.
pub(crate) fn differences(x: &[f64], d_out: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let value = |x: &[f64]| -> f64 { f(x).iter().zip(d_out).map(|(y, d)| y * d).sum() };
    let h = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let before = x[i];
            x[i] = before + h;
            let above = value(&x);
            x[i] = before - h;
            let below = value(&x);
            x[i] = before;
            (above - below) / (2.0 * h)
        })
        .collect()
}

fn by_row(x: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks(COLS).flat_map(f).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    values.sum::<f64>() / COLS as f64
}

#[test]
fn gradients_of_norms_equal_central_differences() {
    let mut rng = Random::new("differences of norms");
    let mut fresh = |rows: usize| random(&mut rng, (rows, COLS), 3, DTYPE, 1.5);
    let (x, w, b, d_out) = (fresh(ROWS), fresh(1), fresh(1), fresh(ROWS));
    let column = || poisoned((ROWS, 1), 0, DTYPE);
    let (out, d_x, mean_kept, rstd) = (fresh(ROWS).tensor, fresh(ROWS).tensor, column(), column());

    let normed = |row: &[f64]| {
        let r = 1.0 / (mean(row.iter().map(|v| v * v)) + EPS).sqrt();
        row.iter().zip(&w.host).map(|(v, w)| v * r * w).collect()
    };
    run(&rms_norm::forward(&x.tensor, &w.tensor, &out, &rstd, EPS as f32).unwrap());
    run(&rms_norm::backward(&x.tensor, &w.tensor, &rstd, &d_out.tensor, &d_x, false).unwrap());
    let expected = differences(&x.host, &d_out.host, |x| by_row(x, normed));
    close("rms_norm", &d_x, &expected, Kind::Reduction);

    let normed = |row: &[f64]| {
        let m = mean(row.iter().copied());
        let r = 1.0 / (mean(row.iter().map(|v| (v - m) * (v - m))) + EPS).sqrt();
        (0..COLS).map(|c| (row[c] - m) * r * w.host[c] + b.host[c]).collect()
    };
    let kept = Statistics { mean: &mean_kept, rstd: &rstd };
    run(&layer_norm::forward(&x.tensor, &w.tensor, &b.tensor, &out, kept, EPS as f32).unwrap());
    run(&layer_norm::backward(&x.tensor, &w.tensor, kept, &d_out.tensor, &d_x).unwrap());
    let expected = differences(&x.host, &d_out.host, |x| by_row(x, normed));
    close("layer_norm", &d_x, &expected, Kind::Reduction);
}

#[test]
fn gradients_of_softmax_and_cross_entropy_equal_central_differences() {
    let mut rng = Random::new("differences of softmax");
    let mut fresh = || random(&mut rng, (ROWS, COLS), 3, DTYPE, 3.0);
    let (x, d_out, out, d_x) = (fresh(), fresh(), fresh().tensor, fresh().tensor);
    let soft = |row: &[f64]| {
        let total: f64 = row.iter().map(|v| v.exp()).sum();
        row.iter().map(|v| v.exp() / total).collect()
    };
    run(&softmax::forward(&x.tensor, &out).unwrap());
    run(&softmax::backward(&out, &d_out.tensor, &d_x).unwrap());
    let expected = differences(&x.host, &d_out.host, |x| by_row(x, soft));
    close("softmax", &d_x, &expected, Kind::Reduction);

    let labels = [7u32, 0, 32];
    let loss = |x: &[f64]| {
        let row = |(row, &label): (&[f64], &u32)| {
            row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[label as usize]
        };
        x.chunks(COLS).zip(&labels).map(row).collect()
    };
    let expected = differences(&x.host, &[1.0; ROWS], loss);
    let losses = poisoned((ROWS, 1), 0, DTYPE);
    let labels = integers(&labels, 1);
    run(&cross_entropy::forward(&x.tensor, &labels, &losses, true).unwrap());
    close("cross_entropy", &x.tensor, &expected, Kind::Reduction);
}

#[test]
fn gradients_of_swiglu_equal_central_differences() {
    let mut rng = Random::new("differences of swiglu");
    let gate_up = random(&mut rng, (ROWS, 2 * COLS), 3, DTYPE, 3.0);
    let d_out = random(&mut rng, (ROWS, COLS), 0, DTYPE, 1.0);
    let d_gate_up = poisoned((ROWS, 2 * COLS), 1, DTYPE);
    let swiglu = |x: &[f64]| {
        let row = |row: &[f64]| {
            let (gate, up) = row.split_at(COLS);
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect::<Vec<f64>>()
        };
        x.chunks(2 * COLS).flat_map(row).collect()
    };
    run(&elementwise::swiglu_grad(&gate_up.tensor, &d_out.tensor, &d_gate_up, None).unwrap());
    let expected = differences(&gate_up.host, &d_out.host, swiglu);
    close("swiglu", &d_gate_up, &expected, Kind::Elementwise);
}
