//! What the GPU tests judge by, on made-up results: a wrong element, a NaN or a missing one must fail.

mod compare;

use compare::{Allowed, EPS, each, largest, norm, rounded, spacing};
use kernels::cuda::bf16_bits;

/// A result without error, and its reference.
fn exact() -> (Vec<f32>, Vec<f64>) {
    let values: Vec<f32> = (0..100).map(|i| (i as f32 - 50.0) / 8.0).collect();
    let reference = values.iter().map(|&v| f64::from(v)).collect();
    (values, reference)
}

const FLOAT: Allowed = Allowed { bf16: false, roundings: 4.0 };
const HALF: Allowed = Allowed { bf16: true, roundings: 4.0 };

/// Whether each of the three ways takes a result.
fn taken(got: &[f32], expected: &[f64]) -> [bool; 3] {
    let by_itself = [FLOAT, HALF].map(|allowed| each(got, expected, |_| 0.0, allowed).is_ok());
    assert_eq!(by_itself[0], by_itself[1]);
    [largest(got, expected, 1e-2, 0.0).is_ok(), norm(got, expected, 1e-2).is_ok(), by_itself[0]]
}

#[test]
fn what_is_equal_is_taken() {
    let (got, expected) = exact();
    assert_eq!(taken(&got, &expected), [true; 3]);
    assert_eq!(taken(&[0.0; 4], &[0.0; 4]), [true; 3]);
    assert_eq!(taken(&[], &[]), [true; 3]);
}

#[test]
fn a_nan_an_infinity_a_wrong_element_or_a_missing_one_is_not() {
    for at in [0, 37, 50, 99] {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 7.0] {
            let (mut got, expected) = exact();
            got[at] = wrong;
            assert_eq!(taken(&got, &expected), [false; 3], "{wrong} at {at}");
        }
    }
    let (got, expected) = exact();
    assert_eq!(taken(&got[..99], &expected), [false; 3]);
    assert_eq!(taken(&got, &expected[..99]), [false; 3]);
    for zeros in [vec![0.0], vec![0.0; 9]] {
        for wrong in [f32::NAN, f32::INFINITY, 1.0] {
            let mut got = vec![0.0; zeros.len()];
            got[0] = wrong;
            assert_eq!(taken(&got, &zeros), [false; 3], "{wrong} among {} zeros", zeros.len());
        }
    }
    for reference in [f64::NAN, f64::INFINITY] {
        assert_eq!(taken(&[1.0, 2.0], &[1.0, reference]), [false; 3]);
        assert_eq!(taken(&[1.0, f32::NAN], &[1.0, reference]), [false; 3]);
    }
}

/// A small element that is wrong hides behind large ones, but not where each is judged by itself.
#[test]
fn a_small_element_is_judged_by_itself() {
    let (mut got, mut expected) = exact();
    (got[50], expected[50]) = (2e-4, 1e-4);
    assert_eq!(taken(&got, &expected), [true, true, false]);
    // unless larger terms cancelled in it
    assert!(each(&got, &expected, |_| 1e3, FLOAT).is_ok());
}

#[test]
fn an_element_may_be_off_by_what_it_is_allowed() {
    let near = |factor: f64, allowed| each(&[(1.5 * (1.0 + factor)) as f32], &[1.5], |_| 0.0, allowed);
    assert!(near(3.9 * EPS, FLOAT).is_ok() && near(5.0 * EPS, FLOAT).is_err());
    // 1.5 is a bfloat16; its neighbours are 1/128 away
    let by = |steps: f64| each(&[(1.5 + steps / 128.0) as f32], &[1.501], |_| 0.0, HALF);
    assert!(by(0.0).is_ok() && by(1.0).is_ok() && by(-1.0).is_ok());
    assert!(by(2.0).is_err() && by(-2.0).is_err());
}

#[test]
fn bfloat16_is_rounded_as_the_device_rounds_it() {
    let (mut bits, mut seen) = (1u32, 0);
    while seen < 20_000 {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = f32::from_bits(bits);
        // the greatest ones become infinite
        if value.is_finite() && value.abs() < 3e38 {
            let expected = f32::from_bits(u32::from(bf16_bits(value)) << 16);
            assert_eq!(rounded(f64::from(value)), f64::from(expected), "{value:e}");
            seen += 1;
        }
    }
    assert_eq!((spacing(1.0), spacing(1.99), spacing(2.0)), (1.0 / 128.0, 1.0 / 128.0, 1.0 / 64.0));
}
