//! How results are judged against references in float64. Nothing here needs a device.

#![allow(dead_code, reason = "each test program uses a part")]

/// Unit in the last place of float32 numbers in `1.0..2.0`.
pub(crate) const EPS: f64 = 1.0 / 8_388_608.0;

/// Distance of the bfloat16 numbers around `x`.
pub(crate) fn spacing(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52 & 0x7FF) as i32 - 1023;
    2f64.powi(exponent.max(-126) - 7)
}

/// The nearest bfloat16, ties to even.
pub(crate) fn rounded(x: f64) -> f64 {
    let grid = spacing(x);
    (x / grid).round_ties_even() * grid
}

/// The greatest error by the largest magnitude of the reference, or by `beside` where that is larger.
///
/// # Errors
/// What differs: an error above `bound`, a NaN, another number of elements.
pub(crate) fn largest(got: &[f32], expected: &[f64], bound: f64, beside: f64) -> Result<f64, String> {
    check(got, expected)?;
    let largest = expected.iter().fold(beside, |largest, v| largest.max(v.abs())).max(1e-30);
    let error = |i: usize| (f64::from(got[i]) - expected[i]).abs();
    let worst = (0..got.len()).max_by(|&a, &b| error(a).total_cmp(&error(b)));
    let Some(worst) = worst else { return Ok(0.0) };
    if error(worst) <= bound * largest {
        return Ok(error(worst) / largest);
    }
    Err(format!("{} at {worst}, expected {}: above {bound:e} of {largest}", got[worst], expected[worst]))
}

/// `|got - expected| / |expected|` in the Frobenius norm; 0 where both are 0.
///
/// # Errors
/// What differs: more than `bound`, a NaN, another number of elements.
pub(crate) fn norm(got: &[f32], expected: &[f64], bound: f64) -> Result<f64, String> {
    check(got, expected)?;
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(expected).map(|(&g, e)| square(f64::from(g) - e)).sum();
    let size: f64 = expected.iter().map(|&e| square(e)).sum();
    let error = if difference == 0.0 { 0.0 } else { (difference / size).sqrt() };
    if error <= bound { Ok(error) } else { Err(format!("{error:e} off in norm, at most {bound:e}")) }
}

/// How far an element may be off, by its own size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    /// One unit in the last place of bfloat16 beside the exact value, rounded.
    pub(crate) bf16: bool,
    /// Errors of float32 inside, as multiples of [`EPS`] of the terms.
    pub(crate) roundings: f64,
}

/// The greatest error by what its own element is allowed; `terms` are the magnitudes of what is added up in an element,
/// where these are larger than the result.
///
/// # Errors
/// What differs: an element by more than it is allowed, a NaN, another number of elements.
pub(crate) fn each(
    got: &[f32],
    expected: &[f64],
    terms: impl Fn(usize) -> f64,
    allowed: Allowed,
) -> Result<f64, String> {
    check(got, expected)?;
    let mut worst = 0.0f64;
    for (i, (&value, &exact)) in got.iter().zip(expected).enumerate() {
        // 2^-149 is what float32 can't tell from 0
        let inside = allowed.roundings * EPS * terms(i).max(exact.abs()) + 2f64.powi(-149);
        let (nearest, most) = if allowed.bf16 {
            let nearest = rounded(exact);
            (nearest, inside + spacing(nearest.abs().max(f64::from(value.abs()))))
        } else {
            (exact, inside)
        };
        let error = (f64::from(value) - nearest).abs();
        if error.is_nan() || error > most {
            return Err(format!("{value:e} at {i}, expected {exact:e} within {most:e}"));
        }
        worst = worst.max(error / most);
    }
    Ok(worst)
}

fn check(got: &[f32], expected: &[f64]) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} elements, expected {}", got.len(), expected.len()));
    }
    if let Some(i) = expected.iter().position(|e| !e.is_finite()) {
        return Err(format!("the reference is {} at {i}", expected[i]));
    }
    match got.iter().position(|g| g.is_nan()) {
        Some(i) => Err(format!("NaN at {i}, expected {}", expected[i])),
        None => Ok(()),
    }
}
