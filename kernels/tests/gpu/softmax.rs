use crate::support::{
    Kind, Matrix, Random, close, close_beside, given, padding_untouched, poisoned, random, run, same_twice,
};
use kernels::cuda::Dtype;
use kernels::cuda::ops::softmax;

fn reference(x: &Matrix, cols: usize) -> Vec<f64> {
    let row = |row: &[f64]| {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|v| (v - top).exp()).sum();
        row.iter().map(|v| (v - top).exp() / total).collect::<Vec<f64>>()
    };
    x.host.chunks(cols).flat_map(row).collect()
}

#[test]
fn softmax_equals_plain_loops() {
    let mut rng = Random::new("softmax");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (rows, cols, pad, scale) in [
            (1, 1, 0, 1.0),
            (3, 31, 3, 5.0),
            (9, 33, 0, 1e4),
            (64, 896, 0, 10.0),
            (5, 4864, 8, 1e4),
            (2, 151_936, 0, 20.0),
        ] {
            let what = format!("softmax {rows}x{cols} {dtype:?}");
            let x = random(&mut rng, (rows, cols), pad, dtype, scale);
            let out = poisoned((rows, cols), pad, dtype);
            same_twice(&what, &softmax::forward(&x.tensor, &out).unwrap(), &out);
            let expected = reference(&x, cols);
            close(&what, &out, &expected, Kind::Reduction);
            padding_untouched(&what, &out);
            if dtype == Dtype::F32 {
                for row in out.download().unwrap().chunks(cols) {
                    let total: f64 = row.iter().map(|&v| f64::from(v)).sum();
                    assert!((total - 1.0).abs() <= 1e-6, "{what}: a row sums to {total}");
                }
            }
            let p: Vec<f64> = out.download().unwrap().into_iter().map(f64::from).collect();
            let d_out = random(&mut rng, (rows, cols), pad, dtype, 1.0);
            let dots: Vec<f64> = (0..rows)
                .map(|row| (row * cols..(row + 1) * cols).map(|j| p[j] * d_out.host[j]).sum())
                .collect();
            let expected: Vec<f64> =
                (0..rows * cols).map(|i| p[i] * (d_out.host[i] - dots[i / cols])).collect();
            let d_x = poisoned((rows, cols), pad, dtype);
            let work = softmax::backward(&out, &d_out.tensor, &d_x).unwrap();
            same_twice(&format!("{what} backward"), &work, &d_x);
            // Shares and gradients are at most 1 and cancel where one share is all.
            close_beside(&format!("{what} backward"), &d_x, &expected, Kind::Reduction, 1.0);
            padding_untouched(&what, &d_x);
        }
    }
}

#[test]
fn softmax_takes_minus_infinity_and_shows_nan() {
    let mut values = vec![0.5f32; 2 * 40];
    values[..39].fill(f32::NEG_INFINITY);
    values[40 + 7] = f32::NAN;
    let x = given(&values, (2, 40), 0, Dtype::F32);
    let out = poisoned((2, 40), 0, Dtype::F32);
    run(&softmax::forward(&x.tensor, &out).unwrap());
    let got = out.download().unwrap();
    assert!(got[..39].iter().all(|&v| v == 0.0) && got[39] == 1.0, "{:?}", &got[..40]);
    assert!(got[40..].iter().all(|v| v.is_nan()), "{:?}", &got[40..]);
}
