use crate::support::{
    Kind, Random, close, close_each, given, padding_untouched, poisoned, random, run, run_twice, same_bits,
    same_twice,
};
use kernels::cuda::Dtype;
use kernels::cuda::bf16_bits;
use kernels::cuda::ops::elementwise::{self, Activation};

const TYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
/// Rows, columns, gap between rows.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 0), (3, 31, 0), (5, 33, 3), (64, 896, 0), (17, 896, 8), (129, 100, 4)];

#[test]
fn add_equals_plain_loops() {
    let mut rng = Random::new("add");
    for dtype in TYPES {
        for (rows, cols, pad) in SHAPES {
            let what = format!("add {rows}x{cols}+{pad} {dtype:?}");
            let a = random(&mut rng, (rows, cols), pad, dtype, 1.0);
            let b = random(&mut rng, (rows, cols), 0, dtype, 1.0);
            let out = poisoned((rows, cols), pad, dtype);
            same_twice(&what, &elementwise::add(&a.tensor, &b.tensor, &out).unwrap(), &out);
            let expected = || a.host.iter().zip(&b.host).map(|(&a, &b)| a as f32 + b as f32);
            same_bits(&what, &out, expected());
            padding_untouched(&what, &out);
            let what = format!("{what} in place");
            run_twice(&what, &elementwise::add(&a.tensor, &b.tensor, &a.tensor).unwrap(), &[&a.tensor]);
            same_bits(&what, &a.tensor, expected());
            padding_untouched(&what, &a.tensor);
        }
    }
}

#[test]
fn casts_round_to_nearest_even() {
    let mut rng = Random::new("cast");
    for (rows, cols, pad) in SHAPES {
        let what = format!("cast {rows}x{cols}+{pad}");
        let mut values = rng.values(rows * cols, 3.0);
        values[0] = f32::from_bits(0x3F80_8000); // a tie
        let x = given(&values, (rows, cols), pad, Dtype::F32);
        let out = poisoned((rows, cols), 5, Dtype::Bf16);
        same_twice(&what, &elementwise::cast(&x.tensor, &out).unwrap(), &out);
        let expected: Vec<u8> = values.iter().flat_map(|&v| bf16_bits(v).to_le_bytes()).collect();
        assert!(out.read_rows().unwrap() == expected, "{what}");
        padding_untouched(&what, &out);
        let back = poisoned((rows, cols), pad, Dtype::F32);
        run(&elementwise::cast(&out, &back).unwrap());
        assert_eq!(back.download().unwrap(), out.download().unwrap(), "{what} and back");
        padding_untouched(&what, &back);
    }
}

#[test]
fn biases_equal_plain_loops() {
    let mut rng = Random::new("bias");
    for (y_type, bias_type) in
        [(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::Bf16), (Dtype::Bf16, Dtype::F32)]
    {
        for (rows, cols, pad) in SHAPES.into_iter().chain([(700, 1152, 0), (1500, 40, 0)]) {
            let what = format!("add_bias {rows}x{cols}+{pad} {y_type:?} {bias_type:?}");
            let y = random(&mut rng, (rows, cols), pad, y_type, 1.0);
            let bias = random(&mut rng, (1, cols), 0, bias_type, 1.0);
            run_twice(&what, &elementwise::add_bias(&y.tensor, &bias.tensor).unwrap(), &[&y.tensor]);
            same_bits(
                &what,
                &y.tensor,
                (0..rows * cols).map(|i| y.host[i] as f32 + bias.host[i % cols] as f32),
            );
            padding_untouched(&what, &y.tensor);

            let d_y = random(&mut rng, (rows, cols), pad, y_type, 1.0);
            let d_bias = random(&mut rng, (1, cols), 0, Dtype::F32, 1.0);
            let work = elementwise::bias_grad(&d_y.tensor, &d_bias.tensor).unwrap();
            run_twice(&format!("{what} gradient"), &work, &[&d_bias.tensor]);
            let expected: Vec<f64> = (0..cols)
                .map(|c| d_bias.host[c] + (0..rows).map(|row| d_y.host[row * cols + c]).sum::<f64>())
                .collect();
            close(&format!("{what} gradient"), &d_bias.tensor, &expected, Kind::Reduction);
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `erf`, from its Taylor series near 0 and its continued fraction further out (M. Abramowitz, I. Stegun, 7.1.5, 7.1.14).
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 2.5 {
        let mut term = z;
        let mut sum = z;
        for n in 1..80 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

fn reference(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Relu => x.max(0.0),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Silu => x * sigmoid(x),
    }
}

/// Central difference: the reference shares no formula with the kernel.
fn slope(f: Activation, x: f64) -> f64 {
    if f == Activation::Relu {
        return f64::from(u8::from(x > 0.0));
    }
    let h = 1e-4;
    let once = |h: f64| (reference(f, x + h) - reference(f, x - h)) / (2.0 * h);
    (4.0 * once(h / 2.0) - once(h)) / 3.0
}

/// Errors of float32 inside a formula of one exponential, in 2^-23 of its terms. float32: 2 of the exponential, a half of
/// each of the sum, the quotient and two products. bfloat16, where it is approximate: 2 of the power, 4.5 of an exponent up
/// to 6 log2(e) rounded, 2 of the quotient, 1 of products; doubled for powers that lose a bit more.
fn exponential(dtype: Dtype) -> f64 {
    if dtype == Dtype::F32 { 4.0 } else { 20.0 }
}

/// What is added up in an activation, and in its slope: the tails of GELU are what is left of 1 - 1.
fn terms(f: Activation, x: f64) -> (f64, f64) {
    let a = x.abs();
    match f {
        Activation::Relu => (0.0, 0.0),
        Activation::GeluTanh => (a, 1.0 + a * (0.8 + 0.107 * a * a)),
        Activation::GeluErf => (a, 1.0 + 0.4 * a),
        Activation::Silu => (0.0, sigmoid(x) * (1.0 + a)),
    }
}

#[test]
fn activations_and_their_gradients_equal_plain_loops() {
    let mut rng = Random::new("activation");
    for dtype in TYPES {
        for (rows, cols, pad) in SHAPES {
            for f in [Activation::Relu, Activation::GeluTanh, Activation::GeluErf, Activation::Silu] {
                let what = format!("{f:?} {rows}x{cols}+{pad} {dtype:?}");
                let mut values = rng.values(rows * cols, 6.0);
                values[0] = 0.0;
                let x = given(&values, (rows, cols), pad, dtype);
                let out = poisoned((rows, cols), pad, dtype);
                same_twice(&what, &elementwise::activation(f, &x.tensor, &out).unwrap(), &out);
                let expected: Vec<f64> = x.host.iter().map(|&x| reference(f, x)).collect();
                close(&what, &out, &expected, Kind::Elementwise);
                // ReLU is exact
                let roundings = if f == Activation::Relu { 0.0 } else { exponential(dtype) };
                close_each(&what, &out, &expected, |i| terms(f, x.host[i]).0, roundings);
                padding_untouched(&what, &out);
                let d_out = random(&mut rng, (rows, cols), 0, dtype, 1.0);
                let d_x = poisoned((rows, cols), pad, dtype);
                let work = elementwise::activation_grad(f, &x.tensor, &d_out.tensor, &d_x).unwrap();
                same_twice(&format!("{what} gradient"), &work, &d_x);
                let expected: Vec<f64> =
                    x.host.iter().zip(&d_out.host).map(|(&x, d)| d * slope(f, x)).collect();
                let what = format!("{what} gradient");
                close(&what, &d_x, &expected, Kind::Elementwise);
                let size = |i: usize| d_out.host[i].abs() * terms(f, x.host[i]).1;
                close_each(&what, &d_x, &expected, size, roundings);
                padding_untouched(&what, &d_x);
            }
        }
    }
}

#[test]
fn activations_of_large_numbers_are_finite() {
    for dtype in TYPES {
        let x = given(&[-1e4, -100.0, -20.0, 20.0, 100.0, 1e4], (1, 6), 0, dtype);
        let ones = given(&[1.0; 6], (1, 6), 0, dtype);
        for f in [Activation::Relu, Activation::GeluTanh, Activation::GeluErf, Activation::Silu] {
            let (out, d_x) = (poisoned((1, 6), 0, dtype), poisoned((1, 6), 0, dtype));
            run(&elementwise::activation(f, &x.tensor, &out).unwrap());
            run(&elementwise::activation_grad(f, &x.tensor, &ones.tensor, &d_x).unwrap());
            for (i, (&value, &slope)) in
                out.download().unwrap().iter().zip(&d_x.download().unwrap()).enumerate()
            {
                let (want, rate) = if i < 3 { (0.0, 0.0) } else { (x.host[i], 1.0) };
                assert!(
                    (f64::from(value) - want).abs() <= 1e-6 * want.max(1.0),
                    "{f:?} {dtype:?} {i}: {value}"
                );
                assert!((f64::from(slope) - rate).abs() <= 1e-6, "{f:?} {dtype:?} {i}: slope {slope}");
            }
        }
    }
}

#[test]
fn swiglu_and_its_gradient_equal_plain_loops() {
    let mut rng = Random::new("swiglu");
    for dtype in TYPES {
        for (rows, cols, pad) in SHAPES.into_iter().chain([(9, 4864, 0)]) {
            let what = format!("swiglu {rows}x{cols}+{pad} {dtype:?}");
            let gate_up = random(&mut rng, (rows, 2 * cols), pad, dtype, 6.0);
            let out = poisoned((rows, cols), pad, dtype);
            same_twice(&what, &elementwise::swiglu(&gate_up.tensor, &out).unwrap(), &out);
            let gate = |i: usize| gate_up.host[i / cols * 2 * cols + i % cols];
            let up = |i: usize| gate_up.host[i / cols * 2 * cols + cols + i % cols];
            let expected: Vec<f64> =
                (0..rows * cols).map(|i| reference(Activation::Silu, gate(i)) * up(i)).collect();
            close(&what, &out, &expected, Kind::Elementwise);
            close_each(&what, &out, &expected, |_| 0.0, exponential(dtype));
            padding_untouched(&what, &out);

            let d_out = random(&mut rng, (rows, cols), pad, dtype, 1.0);
            let d_gate = |i: usize| d_out.host[i] * up(i) * slope(Activation::Silu, gate(i));
            let d_up = |i: usize| d_out.host[i] * reference(Activation::Silu, gate(i));
            let both: Vec<f64> = (0..rows)
                .flat_map(|row| {
                    let range = row * cols..(row + 1) * cols;
                    range.clone().map(d_gate).chain(range.map(d_up)).collect::<Vec<f64>>()
                })
                .collect();
            for with_h in [false, true] {
                let h = poisoned((rows, cols), pad, dtype);
                let d_gate_up = poisoned((rows, 2 * cols), pad, dtype);
                let work = elementwise::swiglu_grad(
                    &gate_up.tensor,
                    &d_out.tensor,
                    &d_gate_up,
                    with_h.then_some(&h),
                );
                same_twice(&what, &work.unwrap(), &d_gate_up);
                close(&format!("{what} gradient"), &d_gate_up, &both, Kind::Elementwise);
                let size = |at: usize| match (at / (2 * cols) * cols, at % (2 * cols)) {
                    (row, c) if c < cols => {
                        (d_out.host[row + c] * up(row + c)).abs() * terms(Activation::Silu, gate(row + c)).1
                    }
                    _ => 0.0,
                };
                close_each(&format!("{what} gradient"), &d_gate_up, &both, size, exponential(dtype));
                padding_untouched(&what, &d_gate_up);
                if with_h {
                    assert!(
                        h.read_rows().unwrap() == out.read_rows().unwrap(),
                        "{what}: h is not the output"
                    );
                    padding_untouched(&what, &h);
                }
            }
        }
    }
}
