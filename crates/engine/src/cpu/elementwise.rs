//! Norms, rotations, activations, sums: operations that look at one row at a time.

use super::loops::{gated, gated_grad};
use super::parallel::{rows, rows2};
use super::real::{Real, sum_lanes};
use kernels::gemm::{View, ViewMut};

/// `rstd = 1/sqrt(mean(x^2) + eps)`, `out = x rstd weight`; shapes `T x d`, `d`, `T x 1`.
pub fn rms_norm<R: Real>(
    x: View<'_, R>,
    weight: &[R],
    eps: f64,
    out: ViewMut<'_, R>,
    rstd: ViewMut<'_, R>,
    threads: usize,
) {
    let eps = R::of(eps);
    let inv = R::ONE / R::of(x.cols as f64);
    rows2(out, rstd, x.cols * 2, threads, |start, mut out, mut rstd| {
        for i in 0..out.rows {
            let x = x.row(start + i);
            let mean = sum_lanes(x.len(), |c| x[c] * x[c]) * inv;
            let scale = R::ONE / (mean + eps).sqrt();
            rstd.row_mut(i)[0] = scale;
            for ((out, &x), &weight) in out.row_mut(i).iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        }
    });
}

/// Gradient of [`rms_norm`] by `x`; added to `d_x` with `accumulate`.
pub fn rms_norm_grad<R: Real>(
    x: View<'_, R>,
    weight: &[R],
    rstd: View<'_, R>,
    d_out: View<'_, R>,
    d_x: ViewMut<'_, R>,
    accumulate: bool,
    threads: usize,
) {
    let inv = R::ONE / R::of(x.cols as f64);
    rows(d_x, x.cols * 3, threads, |start, mut d_x| {
        for i in 0..d_x.rows {
            let (x, d) = (x.row(start + i), d_out.row(start + i));
            let scale = rstd.row(start + i)[0];
            let mean = sum_lanes(x.len(), |c| d[c] * weight[c] * x[c]) * scale * inv;
            for (c, d_x) in d_x.row_mut(i).iter_mut().enumerate() {
                let value = scale * (d[c] * weight[c] - x[c] * scale * mean);
                *d_x = if accumulate { *d_x + value } else { value };
            }
        }
    });
}

/// Gradient of [`rms_norm`] by the weight, added to `d_weight`, rows in order.
pub fn rms_norm_weight_grad<R: Real>(
    x: View<'_, R>,
    rstd: View<'_, R>,
    d_out: View<'_, R>,
    d_weight: &mut [R],
) {
    for i in 0..x.rows {
        let scale = rstd.row(i)[0];
        for ((sum, &d), &x) in d_weight.iter_mut().zip(d_out.row(i)).zip(x.row(i)) {
            *sum += d * x * scale;
        }
    }
}

/// `y += bias` on every row.
pub fn add_bias<R: Real>(y: ViewMut<'_, R>, bias: &[R], threads: usize) {
    let cols = y.cols;
    rows(y, cols, threads, |_, mut y| {
        for i in 0..y.rows {
            for (y, &bias) in y.row_mut(i).iter_mut().zip(bias) {
                *y += bias;
            }
        }
    });
}

/// `d_bias += sum over rows of d_y`, rows in order.
pub fn bias_grad<R: Real>(d_y: View<'_, R>, d_bias: &mut [R]) {
    for i in 0..d_y.rows {
        for (sum, &d) in d_bias.iter_mut().zip(d_y.row(i)) {
            *sum += d;
        }
    }
}

/// Cosines and sines of the rotary angles: `positions x dim`, a row holds `dim/2` cosines, then `dim/2` sines.
///
/// Angle of pair `i` at position `p`: `p theta^(-2i/dim)`, in float32 like transformers computes it
/// (J. Su et al., "RoFormer", 2021).
#[must_use]
pub fn rope_table(positions: usize, dim: usize, theta: f64) -> Vec<f32> {
    let half = dim / 2;
    let frequencies: Vec<f32> =
        (0..half).map(|i| 1.0 / (libm::pow(theta, (2 * i) as f64 / dim as f64) as f32)).collect();
    let mut table = vec![0.0; positions * dim];
    for (position, row) in table.chunks_exact_mut(dim.max(1)).enumerate() {
        for (i, frequency) in frequencies.iter().enumerate() {
            let angle = f64::from(position as f32 * frequency);
            row[i] = libm::cos(angle) as f32;
            row[half + i] = libm::sin(angle) as f32;
        }
    }
    table
}

/// Rotates the halves of every head of `x` by the angle of its row's position, in place; back with `inverse`.
pub fn rope<R: Real>(
    x: ViewMut<'_, R>,
    positions: &[u32],
    table: View<'_, R>,
    dim: usize,
    inverse: bool,
    threads: usize,
) {
    let half = dim / 2;
    let cost = x.cols * 2;
    rows(x, cost, threads, |start, mut x| {
        for i in 0..x.rows {
            let (cos, sin) = table.row(positions[start + i] as usize).split_at(half);
            for head in x.row_mut(i).chunks_exact_mut(dim) {
                let (low, high) = head.split_at_mut(half);
                for k in 0..half {
                    let s = if inverse { -sin[k] } else { sin[k] };
                    let (a, b) = (low[k], high[k]);
                    low[k] = a * cos[k] - b * s;
                    high[k] = b * cos[k] + a * s;
                }
            }
        }
    });
}

/// `out = silu(gate) up`; gate and up side by side in `gate_up` (`T x 2f`).
pub fn swiglu<R: Real>(gate_up: View<'_, R>, out: ViewMut<'_, R>, threads: usize) {
    let f = out.cols;
    rows(out, f * 8, threads, |start, mut out| {
        for i in 0..out.rows {
            let (gate, up) = gate_up.row(start + i).split_at(f);
            gated(gate, up, out.row_mut(i));
        }
    });
}

/// Gradient of [`swiglu`].
pub fn swiglu_grad<R: Real>(
    gate_up: View<'_, R>,
    d_out: View<'_, R>,
    d_gate_up: ViewMut<'_, R>,
    threads: usize,
) {
    let f = d_out.cols;
    rows(d_gate_up, f * 12, threads, |start, mut d| {
        for i in 0..d.rows {
            let (gate, up) = gate_up.row(start + i).split_at(f);
            let d_out = d_out.row(start + i);
            let (d_gate, d_up) = d.row_mut(i).split_at_mut(f);
            gated_grad([gate, up, d_out], [d_gate, d_up]);
        }
    });
}

/// `out = a + b`.
pub fn add<R: Real>(a: View<'_, R>, b: View<'_, R>, out: ViewMut<'_, R>, threads: usize) {
    let cols = out.cols;
    rows(out, cols, threads, |start, mut out| {
        for i in 0..out.rows {
            for ((out, &a), &b) in out.row_mut(i).iter_mut().zip(a.row(start + i)).zip(b.row(start + i)) {
                *out = a + b;
            }
        }
    });
}

/// Rounds every element to bfloat16.
pub fn round_bf16<R: Real>(x: ViewMut<'_, R>, threads: usize) {
    let cols = x.cols;
    rows(x, cols * 4, threads, |_, mut x| {
        for i in 0..x.rows {
            for value in x.row_mut(i) {
                *value = value.to_bf16();
            }
        }
    });
}

/// `out[t] = table[ids[t]]`; the table may be stored transposed.
pub fn embed<R: Real>(ids: &[u32], table: View<'_, R>, mut out: ViewMut<'_, R>) {
    for (t, &id) in ids.iter().enumerate() {
        let start = id as usize * table.row_stride;
        for (c, out) in out.row_mut(t).iter_mut().enumerate() {
            *out = table.data[start + c * table.col_stride];
        }
    }
}

/// `d_table[ids[t]] += d_out[t]`, tokens in order.
pub fn embed_grad<R: Real>(ids: &[u32], d_out: View<'_, R>, mut d_table: ViewMut<'_, R>) {
    for (t, &id) in ids.iter().enumerate() {
        for (sum, &d) in d_table.row_mut(id as usize).iter_mut().zip(d_out.row(t)) {
            *sum += d;
        }
    }
}

/// `out[i] = x[index[i]]`.
pub fn gather_rows<R: Real>(x: View<'_, R>, index: &[u32], mut out: ViewMut<'_, R>) {
    for (i, &row) in index.iter().enumerate() {
        out.row_mut(i).copy_from_slice(x.row(row as usize));
    }
}

/// `d_x = 0`, then `d_x[index[i]] = d_out[i]`.
pub fn scatter_rows<R: Real>(d_out: View<'_, R>, index: &[u32], mut d_x: ViewMut<'_, R>) {
    for i in 0..d_x.rows {
        d_x.row_mut(i).fill(R::ZERO);
    }
    for (i, &row) in index.iter().enumerate() {
        d_x.row_mut(row as usize).copy_from_slice(d_out.row(i));
    }
}
