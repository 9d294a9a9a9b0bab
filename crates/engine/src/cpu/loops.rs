//! Loops over a row that take an exponential an element: compiled for the vector width of the machine.

use super::real::Real;
use kernels::wide::{Wide, wide};

#[inline(always)]
fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// `values = exp(values - top)`.
pub(super) fn exp_from<R: Real>(values: &mut [R], top: R) {
    wide(ExpFrom { values, top });
}

struct ExpFrom<'a, R> {
    values: &'a mut [R],
    top: R,
}

impl<R: Real> Wide for ExpFrom<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for value in self.values {
            *value = (*value - self.top).exp();
        }
    }
}

/// `out = silu(gate) up`.
pub(super) fn gated<R: Real>(gate: &[R], up: &[R], out: &mut [R]) {
    wide(Gated { gate, up, out });
}

struct Gated<'a, R> {
    gate: &'a [R],
    up: &'a [R],
    out: &'a mut [R],
}

impl<R: Real> Wide for Gated<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((out, &g), &u) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = g * sigmoid(g) * u;
        }
    }
}

/// Gradients of [`gated`] by gate and up.
pub(super) fn gated_grad<R: Real>([gate, up, d_out]: [&[R]; 3], [d_gate, d_up]: [&mut [R]; 2]) {
    wide(GatedGrad { gate, up, d_out, d_gate, d_up });
}

struct GatedGrad<'a, R> {
    gate: &'a [R],
    up: &'a [R],
    d_out: &'a [R],
    d_gate: &'a mut [R],
    d_up: &'a mut [R],
}

impl<R: Real> Wide for GatedGrad<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let inputs = self.gate.iter().zip(self.up).zip(self.d_out);
        let outputs = self.d_gate.iter_mut().zip(self.d_up);
        for (((&gate, &up), &d), (d_gate, d_up)) in inputs.zip(outputs) {
            let s = sigmoid(gate);
            *d_up = d * gate * s;
            *d_gate = d * up * s * (R::ONE + gate * (R::ONE - s));
        }
    }
}

/// Of attention scores `p` and gradients `ds` by probabilities: `p = exp(p scale - lse)`, `ds = p (ds - delta) scale`.
pub(super) fn score_grad<R: Real>(p: &mut [R], ds: &mut [R], [scale, lse, delta]: [R; 3]) {
    wide(ScoreGrad { p, ds, scale, lse, delta });
}

struct ScoreGrad<'a, R> {
    p: &'a mut [R],
    ds: &'a mut [R],
    scale: R,
    lse: R,
    delta: R,
}

impl<R: Real> Wide for ScoreGrad<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (p, ds) in self.p.iter_mut().zip(self.ds) {
            *p = (*p * self.scale - self.lse).exp();
            *ds = *p * (*ds - self.delta) * self.scale;
        }
    }
}
