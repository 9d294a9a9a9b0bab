//! The number types that the reference computes in: float32, and float64 to check gradients.

use kernels::gemm::Element;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// A real number with the functions that the operations need, the same bits on every machine.
pub trait Real:
    Element
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    const ZERO: Self;
    const ONE: Self;
    /// Rounded to nearest.
    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn to_f32(self) -> f32;
    #[must_use]
    fn exp(self) -> Self;
    #[must_use]
    fn ln(self) -> Self;
    #[must_use]
    fn sqrt(self) -> Self;
    /// Rounded to bfloat16, ties to even.
    #[must_use]
    fn to_bf16(self) -> Self;
    fn finite(self) -> bool;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    fn of(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self)
    }
    fn ln(self) -> Self {
        libm::logf(self)
    }
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn to_bf16(self) -> Self {
        half::bf16::from_f32(self).to_f32()
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    fn of(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn exp(self) -> Self {
        libm::exp(self)
    }
    fn ln(self) -> Self {
        libm::log(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn to_bf16(self) -> Self {
        half::bf16::from_f64(self).to_f64()
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

/// `e^x` within 2 ulp of float32, branch-free so that loops over it become vector code.
///
/// `x = n ln 2 + r` with `|r| <= ln(2)/2`; a Taylor polynomial of degree 7 gives `e^r`, exponent bits the factor `2^n`.
/// Only additions and multiplications, each rounded once: the same bits everywhere. Below -87 the result is 0, above 88
/// it stays at `e^88`; NaN stays NaN.
#[inline(always)]
#[must_use]
pub fn exp_f32(x: f32) -> f32 {
    /// Adding it leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// The upper bits of ln 2 (its product with `n` is exact), and the rest.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let bounded = if x > 88.0 { 88.0 } else { x };
    let bounded = if bounded < -87.0 { -87.0 } else { bounded };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = p * r + coefficient;
    }
    let p = (p * r * r + r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let value = p * f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { value }
}

/// Lanes of a sum: element `i` goes to lane `i % LANES`, lanes are added in a fixed tree.
const LANES: usize = 8;

/// Sum of `f(i)` for `i` in `0..n`, in an order that depends on `n` alone.
#[inline(always)]
pub fn sum_lanes<R: Real>(n: usize, f: impl Fn(usize) -> R) -> R {
    let mut lanes = [R::ZERO; LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(i + lane);
        }
        i += LANES;
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(n - whole) {
        *sum += f(whole + lane);
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// The greatest element; NaN when there is one.
pub fn max<R: Real>(values: &[R]) -> R {
    let mut lanes = [R::of(f64::NEG_INFINITY); LANES];
    let mut poisoned = false;
    for chunk in values.chunks(LANES) {
        for (best, &value) in lanes.iter_mut().zip(chunk) {
            *best = if value > *best { value } else { *best };
            #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
            let nan = value != value;
            poisoned |= nan;
        }
    }
    if poisoned {
        return R::of(f64::NAN);
    }
    lanes.into_iter().fold(R::of(f64::NEG_INFINITY), |a, b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in -870_000..880_000i32 {
            let x = i as f32 * 1e-4;
            let (got, want) = (f64::from(exp_f32(x)), f64::from(x).exp());
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            worst = worst.max((got - want).abs() / ulp);
        }
        assert!(worst <= 2.0, "{worst} ulp");
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert!(exp_f32(f32::NAN).is_nan());
        assert!(exp_f32(1e30).is_finite());
    }

    #[test]
    fn a_maximum_of_values_with_nan_is_nan() {
        assert!(max(&[1.0f32, f32::NAN, 3.0]).is_nan());
        assert_eq!(max(&[1.0f64, 7.0, 3.0]), 7.0);
    }

    #[test]
    fn lanes_add_everything_once() {
        for n in 0..40 {
            assert_eq!(sum_lanes(n, |i| i as f64), (0..n).sum::<usize>() as f64);
        }
    }
}
