//! Loss and optimizer.

use super::loops::exp_from;
use super::parallel::{balance, each, even, rows2};
use super::real::{Real, max, sum_lanes};
use crate::api::AdamW;
use kernels::gemm::{View, ViewMut};

/// `loss[i] = lse(logits[i]) - logits[i][labels[i]]`; with `gradient`, `logits` become `softmax - onehot`, the gradient
/// of the sum of losses.
pub fn cross_entropy<R: Real>(
    logits: ViewMut<'_, R>,
    labels: &[u32],
    loss: ViewMut<'_, R>,
    gradient: bool,
    threads: usize,
) {
    let cost = logits.cols * 10;
    rows2(logits, loss, cost, threads, |start, mut logits, mut loss| {
        for i in 0..logits.rows {
            let label = labels[start + i] as usize;
            let row = logits.row_mut(i);
            let top = max(row);
            let at_label = row[label] - top;
            if !gradient {
                let total = sum_lanes(row.len(), |c| (row[c] - top).exp());
                loss.row_mut(i)[0] = total.ln() - at_label;
                continue;
            }
            exp_from(row, top);
            let total = sum_lanes(row.len(), |c| row[c]);
            loss.row_mut(i)[0] = total.ln() - at_label;
            let factor = R::of(1.0) / total;
            for value in row.iter_mut() {
                *value *= factor;
            }
            row[label] -= R::of(1.0);
        }
    });
}

/// Sum of a column of numbers in float64, rows in order.
#[must_use]
pub fn sum_losses<R: Real>(losses: View<'_, R>) -> f64 {
    (0..losses.rows).map(|i| losses.row(i)[0].to_f64()).sum()
}

/// Elements per partial sum of the gradient norm.
const NORM_BLOCK: usize = 4096;

/// Euclidean norm: float64 sums over blocks of fixed size, added in order.
#[must_use]
pub fn norm<R: Real>(values: &[R], threads: usize) -> f64 {
    let blocks: Vec<&[R]> = values.chunks(NORM_BLOCK).collect();
    let mut sums = vec![0.0f64; blocks.len()];
    let mut parts = Vec::new();
    let mut rest = &mut sums[..];
    for range in even(blocks.len(), NORM_BLOCK, threads) {
        let (part, tail) = rest.split_at_mut(range.len());
        parts.push((&blocks[range], part));
        rest = tail;
    }
    each(parts, |(blocks, sums)| {
        for (block, sum) in blocks.iter().zip(sums) {
            *sum = sum_lanes(block.len(), |i| block[i].to_f64() * block[i].to_f64());
        }
    });
    sums.iter().sum::<f64>().sqrt()
}

/// A run of the slabs with one rule.
#[derive(Debug)]
pub struct Segment<'a, R> {
    pub master: &'a mut [R],
    pub gradient: &'a [R],
    pub m: &'a mut [R],
    pub v: &'a mut [R],
    pub decay: bool,
}

/// AdamW with decoupled decay (I. Loshchilov, F. Hutter, 2019), operation by operation as torch's single-tensor path:
///
/// ```text
/// p *= 1 - lr decay        m += (g - m)(1 - beta1)        v = v beta2 + (1 - beta2) g^2
/// p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// ```
/// where `g` is the gradient times `scale`, then times `min(1, clip / (norm + 1e-6))`; `norm` is that of the scaled gradient. `t`
/// counts updates from 1.
pub fn adamw<R: Real>(
    segments: Vec<Segment<'_, R>>,
    rule: &AdamW,
    (scale, norm): (f64, f64),
    t: u64,
    threads: usize,
) {
    let clip = clip_factor(rule.clip, norm);
    let t = t as f64;
    let step_size = R::of(rule.lr / (1.0 - libm::pow(rule.beta1, t)));
    let correction = R::of(libm::sqrt(1.0 - libm::pow(rule.beta2, t)));
    let (keep1, beta2, keep2) = (R::of(1.0 - rule.beta1), R::of(rule.beta2), R::of(1.0 - rule.beta2));
    let (eps, scale, clip) = (R::of(rule.eps), R::of(scale), R::of(clip));
    let shrink = R::of(1.0 - rule.lr * rule.weight_decay);
    let sizes: Vec<usize> = segments.iter().map(|segment| segment.gradient.len() * 8).collect();
    let mut segments = segments.into_iter();
    let parts: Vec<Vec<Segment<'_, R>>> = balance(&sizes, threads)
        .into_iter()
        .map(|range| segments.by_ref().take(range.len()).collect())
        .collect();
    let one = |segment: Segment<'_, R>| {
        let moments = segment.m.iter_mut().zip(segment.v.iter_mut());
        for ((p, &g), (m, v)) in segment.master.iter_mut().zip(segment.gradient).zip(moments) {
            let g = g * scale * clip;
            if segment.decay {
                *p *= shrink;
            }
            *m += (g - *m) * keep1;
            *v = *v * beta2 + keep2 * g * g;
            *p -= step_size * (*m / (v.sqrt() / correction + eps));
        }
    };
    each(parts, |part| part.into_iter().for_each(one));
}

fn clip_factor(clip: f64, norm: f64) -> f64 {
    if clip > 0.0 && clip.is_finite() { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
