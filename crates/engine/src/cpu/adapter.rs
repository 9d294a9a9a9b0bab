//! Low-rank adapters with dropout.
//!
//! The mask of an element is a function of (seed, step, layer, module, sample, position, feature) alone: bit-equal in any
//! packing, and drawn again in the backward instead of being stored.

use super::parallel::{cut, each, even};
use super::real::Real;
use kernels::gemm::{BLOCK, View, ViewMut, product};
use kernels::random::half_words;
use kernels::wide::{Wide, wide};
use model::philox::{Purpose, Stream};
use std::ops::Range;

/// Features that one block of 128 random bits decides on: 16 bits each.
const LANES: usize = 8;
/// Elements of a dropped input that are made and used before the next: they stay in a near cache.
const NEAR: usize = 1 << 14;

/// Which mask.
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    stream: Stream,
    /// A feature is dropped when its 16 bits are below it.
    threshold: u32,
    /// `T x 2`.
    samples: &'a [u32],
    positions: &'a [u32],
}

impl<'a> Dropout<'a> {
    #[must_use]
    pub fn new(
        seed: u64,
        step: u64,
        (layer, module): (u32, u32),
        threshold: u32,
        samples: &'a [u32],
        positions: &'a [u32],
    ) -> Self {
        let stream = Stream::new(seed, Purpose::Dropout, [step as u32, layer, module]);
        Dropout { stream, threshold, samples, positions }
    }

    /// `out = mask(x)` or `out += mask(x)`, where `x` and `out` are the tokens from `token` on and the features from
    /// `feature` on, a multiple of [`LANES`].
    pub fn apply<R: Real>(
        &self,
        x: View<'_, R>,
        out: ViewMut<'_, R>,
        (token, feature): (usize, usize),
        accumulate: bool,
    ) {
        debug_assert!(feature.is_multiple_of(LANES), "a block of random bits is not cut");
        wide(Masking { mask: *self, x, out, token, feature, accumulate });
    }
}

/// The work of [`Dropout::apply`].
struct Masking<'a, 'b, R> {
    mask: Dropout<'a>,
    x: View<'b, R>,
    out: ViewMut<'b, R>,
    token: usize,
    feature: usize,
    accumulate: bool,
}

impl<R: Real> Wide for Masking<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let Dropout { stream, threshold, samples, positions } = self.mask;
        let (key, first) = (stream.key(), (self.feature / LANES) as u32);
        // What a kept element is multiplied by.
        let scale = R::of(65_536.0 / (65_536.0 - f64::from(threshold)));
        let mut drawn = vec![0; self.out.cols];
        for i in 0..self.out.rows {
            let t = self.token + i;
            let token = [positions[t], samples[2 * t], samples[2 * t + 1]];
            half_words(key, first, token, &mut drawn);
            for ((out, &x), &drawn) in self.out.row_mut(i).iter_mut().zip(self.x.row(i)).zip(&drawn) {
                let value = if u32::from(drawn) < threshold { R::ZERO } else { x * scale };
                *out = if self.accumulate { *out + value } else { value };
            }
        }
    }
}

/// A mask, and room for one dropped input at a time.
#[derive(Debug)]
pub struct Masked<'a, R> {
    pub mask: Dropout<'a>,
    /// At least as large as the input.
    pub room: ViewMut<'a, R>,
}

/// The two factors and what their product is multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a, R> {
    /// `r x in`.
    pub a: View<'a, R>,
    /// `out x r`.
    pub b: View<'a, R>,
    pub scale: R,
}

/// Rows of one thread, with its part of the room.
fn rows_of<'a, R: Real>(
    ranges: &[Range<usize>],
    masked: Option<Masked<'a, R>>,
) -> Vec<Option<(Dropout<'a>, ViewMut<'a, R>)>> {
    let Some(Masked { mask, room }) = masked else { return ranges.iter().map(|_| None).collect() };
    cut(room, ranges).into_iter().map(|room| Some((mask, room))).collect()
}

/// `u = drop(x) A^T`, `y += scale u B^T`; `x`: `T x in`, `u`: `T x r`, `y`: `T x out`.
pub fn forward<R: Real>(
    x: View<'_, R>,
    masked: Option<Masked<'_, R>>,
    Factors { a, b, scale }: Factors<'_, R>,
    u: ViewMut<'_, R>,
    y: ViewMut<'_, R>,
    threads: usize,
) {
    let transposed: Vec<R> = (0..a.cols).flat_map(|c| (0..a.rows).map(move |r| a.at(r, c))).collect();
    let a = View::rows(&transposed, a.cols, a.rows, a.rows);
    let cost = x.cols * (a.cols + 2) + b.rows * a.cols;
    let ranges = even(x.rows, cost, threads);
    let outputs = cut(u, &ranges).into_iter().zip(cut(y, &ranges));
    let parts: Vec<_> = ranges.iter().cloned().zip(rows_of(&ranges, masked)).zip(outputs).collect();
    each(parts, |((range, masked), (mut u, mut y))| {
        let x = x.slice(range.start, range.len());
        match masked {
            None => product(x, a, false, &mut u, 1),
            Some((mask, mut room)) => {
                let blocks = near(x.rows, x.cols);
                for (block, mut u) in blocks.iter().zip(cut(u.reborrow(), &blocks)) {
                    let mut dropped = room.reborrow().split_at(block.len()).0;
                    let x = x.slice(block.start, block.len());
                    mask.apply(x, dropped.reborrow(), (range.start + block.start, 0), false);
                    product(dropped.view(), a, false, &mut u, 1);
                }
            }
        }
        let scaled = scaled(u.view(), scale);
        product(View::rows(&scaled, u.rows, u.cols, u.cols), b.t(), true, &mut y, 1);
    });
}

/// Blocks of rows that hold about [`NEAR`] elements each.
fn near(rows: usize, cols: usize) -> Vec<Range<usize>> {
    let each = (NEAR / cols.max(1)).max(32);
    (0..rows).step_by(each).map(|start| start..(start + each).min(rows)).collect()
}

/// `d_u = scale d_y B`; `d_y`: `T x out`.
pub fn grad_inner<R: Real>(d_y: View<'_, R>, b: View<'_, R>, scale: R, d_u: ViewMut<'_, R>, threads: usize) {
    let ranges = even(d_u.rows, b.rows * b.cols, threads);
    let parts: Vec<_> = ranges.iter().cloned().zip(cut(d_u, &ranges)).collect();
    each(parts, |(range, mut d_u)| {
        product(d_y.slice(range.start, range.len()), b, false, &mut d_u, 1);
        for i in 0..d_u.rows {
            for value in d_u.row_mut(i) {
                *value *= scale;
            }
        }
    });
}

/// `d_x += drop(d_u A)`; `d_u`: `T x r`.
pub fn grad_input<R: Real>(
    d_u: View<'_, R>,
    a: View<'_, R>,
    masked: Option<Masked<'_, R>>,
    d_x: ViewMut<'_, R>,
    threads: usize,
) {
    let ranges = even(d_x.rows, a.cols * (a.rows + 2), threads);
    let parts: Vec<_> = ranges.iter().cloned().zip(rows_of(&ranges, masked)).zip(cut(d_x, &ranges)).collect();
    each(parts, |((range, masked), mut d_x)| {
        let d_u = d_u.slice(range.start, range.len());
        let Some((mask, mut room)) = masked else { return product(d_u, a, true, &mut d_x, 1) };
        let blocks = near(d_u.rows, a.cols);
        for (block, d_x) in blocks.iter().zip(cut(d_x, &blocks)) {
            let mut before = room.reborrow().split_at(block.len()).0;
            product(d_u.slice(block.start, block.len()), a, false, &mut before, 1);
            mask.apply(before.view(), d_x, (range.start + block.start, 0), true);
        }
    });
}

/// Gradients of one adapter.
#[derive(Debug)]
pub struct Grads<'a, R> {
    pub d_a: ViewMut<'a, R>,
    pub d_b: ViewMut<'a, R>,
}

/// `d_B += d_y^T (scale u)`, `d_A += d_u^T drop(x)`. Threads share the columns of A and the rows of B.
pub fn grad_params<R: Real>(
    x: View<'_, R>,
    masked: Option<Masked<'_, R>>,
    [u, d_y, d_u]: [View<'_, R>; 3],
    scale: R,
    Grads { mut d_a, d_b }: Grads<'_, R>,
    threads: usize,
) {
    let scaled = scaled(u, scale);
    let scaled = View::rows(&scaled, u.rows, u.cols, u.cols);
    let threads = even(x.cols + d_b.rows, x.rows * u.cols, threads).len();
    let (mask, mut room) = masked.map_or((None, &mut [][..]), |m| (Some(m.mask), m.room.data));
    let inputs = shares(x.cols.div_ceil(LANES), threads)
        .into_iter()
        .map(|blocks| (blocks.start * LANES).min(x.cols)..(blocks.end * LANES).min(x.cols));
    // Columns of one matrix interleave in memory: each share is summed apart and copied back.
    let mut sums: Vec<(Range<usize>, Vec<R>)> = inputs.map(|cols| (cols.clone(), part(&d_a, cols))).collect();
    let outputs = shares(d_b.rows, threads);
    let mut parts = Vec::with_capacity(threads);
    for (((cols, sums), rows), d_b) in sums.iter_mut().zip(&outputs).zip(cut(d_b, &outputs)) {
        let (own, tail) = room.split_at_mut((cols.len() * x.rows).min(room.len()));
        room = tail;
        parts.push((cols.clone(), sums, own, rows.clone(), d_b));
    }
    each(parts, |(cols, sums, room, rows, mut d_b)| {
        product(d_y.columns(rows.start, rows.len()).t(), scaled, true, &mut d_b, 1);
        let x = x.columns(cols.start, cols.len());
        let mut sums = ViewMut::rows(sums, d_u.cols, x.cols, x.cols);
        // Blocks of a product's own chains: what is dropped is used while it is near.
        for start in (0..x.rows).step_by(BLOCK) {
            let mut x = x.slice(start, BLOCK.min(x.rows - start));
            if let Some(mask) = mask {
                let dropped = &mut room[..x.rows * x.cols];
                mask.apply(x, ViewMut::rows(dropped, x.rows, x.cols, x.cols), (start, cols.start), false);
                x = View::rows(dropped, x.rows, x.cols, x.cols);
            }
            product(d_u.slice(start, x.rows).t(), x, true, &mut sums, 1);
        }
    });
    for (cols, sums) in sums {
        for (i, row) in sums.chunks_exact(cols.len().max(1)).enumerate() {
            d_a.row_mut(i)[cols.clone()].copy_from_slice(row);
        }
    }
}

/// Some columns of a gradient, row by row.
fn part<R: Real>(gradient: &ViewMut<'_, R>, cols: Range<usize>) -> Vec<R> {
    (0..gradient.rows).flat_map(|i| &gradient.row(i)[cols.clone()]).copied().collect()
}

/// `parts` contiguous ranges of `0..n` of about equal length.
fn shares(n: usize, parts: usize) -> Vec<Range<usize>> {
    (0..parts).map(|i| n * i / parts..n * (i + 1) / parts).collect()
}

fn scaled<R: Real>(u: View<'_, R>, scale: R) -> Vec<R> {
    (0..u.rows).flat_map(|i| u.row(i).iter().map(move |&value| value * scale)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::philox::philox4x32;

    #[test]
    fn half_words_decide_in_the_order_that_is_written_down() {
        let (samples, positions) = ([9u32, 2], [6u32]);
        let mask = Dropout::new(11, 4, (1, 5), 30_000, &samples, &positions);
        let key = Stream::new(11, Purpose::Dropout, [4, 1, 5]).key();
        let x = [1.0f64; 150];
        let mut out = [0.0; 150];
        mask.apply(View::rows(&x, 1, 150, 150), ViewMut::rows(&mut out, 1, 150, 150), (0, 0), false);
        for (feature, &value) in out.iter().enumerate() {
            let block = philox4x32([feature as u32 / 8, 6, 9, 2], key);
            let bits = block[feature % 8 / 2] >> (16 * (feature % 2)) & 0xFFFF;
            let expected = if bits < 30_000 { 0.0 } else { 65_536.0 / 35_536.0 };
            assert_eq!(value, expected, "feature {feature}");
        }
    }

    /// What the operations are, one after the other over whole matrices.
    fn whole(
        x: View<'_, f32>,
        mask: impl Fn(&[f32]) -> Vec<f32>,
        [a, b, d_y]: [View<'_, f32>; 3],
        scale: f32,
    ) -> [Vec<f32>; 6] {
        fn times(left: View<'_, f32>, right: View<'_, f32>, start: f32) -> Vec<f32> {
            let (rows, cols) = (left.rows, right.cols);
            let mut out = vec![start; rows * cols];
            product(left, right, start != 0.0, &mut ViewMut::rows(&mut out, rows, cols, cols), 1);
            out
        }
        let (t, inputs, rank) = (x.rows, x.cols, a.rows);
        let dropped = mask(x.data);
        let u = times(View::rows(&dropped, t, inputs, inputs), a.t(), 0.0);
        let scaled: Vec<f32> = u.iter().map(|u| u * scale).collect();
        let scaled = View::rows(&scaled, t, rank, rank);
        let y = times(scaled, b.t(), 1.0);
        let d_u: Vec<f32> = times(d_y, b, 0.0).into_iter().map(|value| value * scale).collect();
        let inner = View::rows(&d_u, t, rank, rank);
        let d_x = mask(&times(inner, a, 0.0)).into_iter().map(|value| 1.0 + value).collect();
        let d_a = times(inner.t(), View::rows(&dropped, t, inputs, inputs), 1.0);
        let d_b = times(d_y.t(), scaled, 1.0);
        [u, y, d_u, d_x, d_a, d_b]
    }

    fn matrix(data: &mut [f32], cols: usize) -> ViewMut<'_, f32> {
        ViewMut::rows(data, data.len() / cols, cols, cols)
    }

    /// The same results by the functions of this module.
    fn parts(
        x: View<'_, f32>,
        mask: Option<Dropout<'_>>,
        [a, b, d_y]: [View<'_, f32>; 3],
        scale: f32,
        threads: usize,
    ) -> [Vec<f32>; 6] {
        let (t, inputs, rank) = (x.rows, x.cols, a.rows);
        let mut room = vec![f32::NAN; t * inputs];
        let (mut u, mut y) = (vec![0.0; t * rank], vec![1.0; d_y.data.len()]);
        let (mut d_u, mut d_x) = (vec![0.0; t * rank], vec![1.0; t * inputs]);
        let (mut d_a, mut d_b) = (vec![1.0; a.data.len()], vec![1.0; b.data.len()]);
        fn masked<'a>(
            mask: Option<Dropout<'a>>,
            room: &'a mut [f32],
            cols: usize,
        ) -> Option<Masked<'a, f32>> {
            mask.map(|mask| Masked { mask, room: matrix(room, cols) })
        }
        forward(
            x,
            masked(mask, &mut room, inputs),
            Factors { a, b, scale },
            matrix(&mut u, rank),
            matrix(&mut y, d_y.cols),
            threads,
        );
        grad_inner(d_y, b, scale, matrix(&mut d_u, rank), threads);
        let inner = View::rows(&d_u, t, rank, rank);
        grad_input(inner, a, masked(mask, &mut room, inputs), matrix(&mut d_x, inputs), threads);
        let grads = Grads { d_a: matrix(&mut d_a, inputs), d_b: matrix(&mut d_b, rank) };
        let saved = [View::rows(&u, t, rank, rank), d_y, inner];
        grad_params(x, masked(mask, &mut room, inputs), saved, scale, grads, threads);
        [u, y, d_u, d_x, d_a, d_b]
    }

    #[test]
    fn bits_are_those_of_whole_matrices_on_any_number_of_threads() {
        let (t, outputs, rank, scale) = (700, 210, 5, 1.25);
        let noise = |n: usize, k: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * k) % 1009) as f32 / 512.0 - 0.9).collect()
        };
        let samples: Vec<u32> = (0..2 * t as u32).map(|i| i / 9).collect();
        let positions: Vec<u32> = (0..t as u32).map(|i| i % 90).collect();
        let dropout = Dropout::new(5, 2, (3, 1), 9_000, &samples, &positions);
        for inputs in [203, 64, 7] {
            let (x, a) = (noise(t * inputs, 17), noise(rank * inputs, 31));
            let (b, d_y) = (noise(outputs * rank, 77), noise(t * outputs, 5));
            let [x, a] = [(&x, t), (&a, rank)].map(|(data, rows)| View::rows(data, rows, inputs, inputs));
            let (b, d_y) = (View::rows(&b, outputs, rank, rank), View::rows(&d_y, t, outputs, outputs));
            for (mask, threads) in [(Some(dropout), 1), (Some(dropout), 2), (Some(dropout), 3), (None, 2)] {
                let drop = |x: &[f32]| {
                    let mut out = x.to_vec();
                    if let Some(mask) = mask {
                        mask.apply(View::rows(x, t, inputs, inputs), matrix(&mut out, inputs), (0, 0), false);
                    }
                    out
                };
                let expected = whole(x, drop, [a, b, d_y], scale);
                let got = parts(x, mask, [a, b, d_y], scale, threads);
                for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    assert_eq!(got, expected, "result {i}, {inputs} inputs, {threads} threads");
                }
            }
        }
    }
}
