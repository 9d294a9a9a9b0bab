//! Low-rank adapters with dropout.
//!
//! The mask of an element is a function of (seed, step, layer, module, sample, position, feature) alone: bit-equal in any
//! packing, and drawn again in the backward instead of being stored.

use super::parallel::rows;
use super::real::Real;
use kernels::gemm::{View, ViewMut, product};
use model::philox::{Purpose, Stream, philox4x32};

/// Features that one block of 128 random bits decides on: 16 bits each.
const LANES: usize = 8;

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

    /// What a kept element is multiplied by.
    fn keep_scale<R: Real>(&self) -> R {
        R::of(65_536.0 / (65_536.0 - f64::from(self.threshold)))
    }

    /// `out = mask(x)` or `out += mask(x)`.
    pub fn apply<R: Real>(&self, x: View<'_, R>, out: ViewMut<'_, R>, accumulate: bool, threads: usize) {
        let scale = self.keep_scale::<R>();
        let key = self.stream.key();
        let cost = out.cols * 4;
        rows(out, cost, threads, |start, mut out| {
            for i in 0..out.rows {
                let t = start + i;
                let (position, low, high) = (self.positions[t], self.samples[2 * t], self.samples[2 * t + 1]);
                let pairs = x.row(t).chunks(LANES).zip(out.row_mut(i).chunks_mut(LANES));
                for (block, (x, out)) in pairs.enumerate() {
                    let bits = philox4x32([block as u32, position, low, high], key);
                    for (lane, (out, &x)) in out.iter_mut().zip(x).enumerate() {
                        let drawn = bits[lane / 2] >> (16 * (lane % 2)) & 0xFFFF;
                        let value = if drawn < self.threshold { R::ZERO } else { x * scale };
                        *out = if accumulate { *out + value } else { value };
                    }
                }
            }
        });
    }
}

/// `u = x A^T`, `y += scale u B^T`; `x`: `T x in` (dropped already), `a`: `r x in`, `b`: `out x r`.
pub fn forward<R: Real>(
    x: View<'_, R>,
    a: View<'_, R>,
    b: View<'_, R>,
    scale: R,
    mut u: ViewMut<'_, R>,
    mut y: ViewMut<'_, R>,
    threads: usize,
) {
    product(x, a.t(), false, &mut u, threads);
    let scaled = scaled(u.view(), scale);
    product(View::rows(&scaled, u.rows, u.cols, u.cols), b.t(), true, &mut y, threads);
}

/// `d_u = scale d_y B`; `d_y`: `T x out`.
pub fn grad_inner<R: Real>(
    d_y: View<'_, R>,
    b: View<'_, R>,
    scale: R,
    mut d_u: ViewMut<'_, R>,
    threads: usize,
) {
    product(d_y, b, false, &mut d_u, threads);
    for i in 0..d_u.rows {
        for value in d_u.row_mut(i) {
            *value *= scale;
        }
    }
}

/// Gradients of one adapter.
#[derive(Debug)]
pub struct Grads<'a, R> {
    pub d_a: ViewMut<'a, R>,
    pub d_b: ViewMut<'a, R>,
}

/// `d_B += d_y^T (scale u)`, `d_A += d_u^T x`; `x` dropped already.
pub fn grad_params<R: Real>(
    x: View<'_, R>,
    u: View<'_, R>,
    d_y: View<'_, R>,
    d_u: View<'_, R>,
    scale: R,
    grads: Grads<'_, R>,
    threads: usize,
) {
    let Grads { mut d_a, mut d_b } = grads;
    let scaled = scaled(u, scale);
    product(d_y.t(), View::rows(&scaled, u.rows, u.cols, u.cols), true, &mut d_b, threads);
    product(d_u.t(), x, true, &mut d_a, threads);
}

fn scaled<R: Real>(u: View<'_, R>, scale: R) -> Vec<R> {
    (0..u.rows).flat_map(|i| u.row(i).iter().map(move |&value| value * scale)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_words_decide_in_the_order_that_is_written_down() {
        let (samples, positions) = ([9u32, 2], [6u32]);
        let mask = Dropout::new(11, 4, (1, 5), 30_000, &samples, &positions);
        let key = Stream::new(11, Purpose::Dropout, [4, 1, 5]).key();
        let x = [1.0f64; 150];
        let mut out = [0.0; 150];
        mask.apply(View::rows(&x, 1, 150, 150), ViewMut::rows(&mut out, 1, 150, 150), false, 1);
        for (feature, &value) in out.iter().enumerate() {
            let block = philox4x32([feature as u32 / 8, 6, 9, 2], key);
            let bits = block[feature % 8 / 2] >> (16 * (feature % 2)) & 0xFFFF;
            let expected = if bits < 30_000 { 0.0 } else { 65_536.0 / 35_536.0 };
            assert_eq!(value, expected, "feature {feature}");
        }
    }
}
