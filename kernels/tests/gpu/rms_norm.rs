use crate::support::{
    Kind, Random, close, close_beside, given, gpu, padding_untouched, poisoned, random, run, run_twice,
    same_twice,
};
use kernels::cuda::Dtype;
use kernels::cuda::ops::elementwise;
use kernels::cuda::ops::rms_norm::{self, Residual};

const EPS: f64 = 1e-6;

fn shapes() -> Vec<(usize, usize)> {
    // 1,024 and 8,192 columns are where other kernels take over
    vec![
        (1, 1),
        (3, 31),
        (5, 32),
        (7, 33),
        (64, 896),
        (129, 4864),
        (2, 100),
        (3, 1024),
        (3, 1025),
        (2, 8192),
        (2, 8193),
    ]
}

#[test]
fn rms_norm_equals_plain_loops() {
    let mut rng = Random::new("rms_norm");
    for (x_type, w_type) in [(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::Bf16), (Dtype::Bf16, Dtype::F32)]
    {
        for (rows, cols) in shapes() {
            let what = format!("rms_norm {rows}x{cols} {x_type:?}");
            let x = random(&mut rng, (rows, cols), 3, x_type, 2.0);
            let w = random(&mut rng, (1, cols), 0, w_type, 1.0);
            let d_out = random(&mut rng, (rows, cols), 1, x_type, 1.0);
            let (out, rstd) = (poisoned((rows, cols), 5, x_type), poisoned((rows, 1), 0, Dtype::F32));
            let work = rms_norm::forward(&x.tensor, &w.tensor, &out, &rstd, EPS as f32).unwrap();
            same_twice(&what, &work, &out);
            let r: Vec<f64> = x
                .host
                .chunks(cols)
                .map(|row| {
                    let mean = row.iter().map(|v| v * v).sum::<f64>() / cols as f64;
                    1.0 / (mean + EPS).sqrt()
                })
                .collect();
            let expected: Vec<f64> =
                (0..rows * cols).map(|i| x.host[i] * r[i / cols] * w.host[i % cols]).collect();
            close(&what, &out, &expected, Kind::Reduction);
            close(&what, &rstd, &r, Kind::Reduction);
            padding_untouched(&what, &out);

            let dots: Vec<f64> = (0..rows)
                .map(|row| row * cols..(row + 1) * cols)
                .map(|range| range.map(|j| x.host[j] * d_out.host[j] * w.host[j % cols]).sum())
                .collect();
            let grad = |i: usize| {
                let (row, c) = (i / cols, i % cols);
                r[row] * (d_out.host[i] * w.host[c] - x.host[i] * r[row] * r[row] * dots[row] / cols as f64)
            };
            let expected: Vec<f64> = (0..rows * cols).map(grad).collect();
            let d_x = poisoned((rows, cols), 2, x_type);
            let work = rms_norm::backward(&x.tensor, &w.tensor, &rstd, &d_out.tensor, &d_x, false);
            same_twice(&format!("{what} backward"), &work.unwrap(), &d_x);
            // the two terms of the difference, which cancel in a row of one column
            let terms = (0..rows * cols)
                .map(|i| (r[i / cols] * d_out.host[i] * w.host[i % cols]).abs())
                .fold(0.0, f64::max);
            close_beside(&format!("{what} backward"), &d_x, &expected, Kind::Reduction, terms);
            padding_untouched(&what, &d_x);

            let d_x = random(&mut rng, (rows, cols), 0, x_type, 1.0);
            let added: Vec<f64> = expected.iter().zip(&d_x.host).map(|(a, b)| a + b).collect();
            let work = rms_norm::backward(&x.tensor, &w.tensor, &rstd, &d_out.tensor, &d_x.tensor, true);
            run_twice(&format!("{what} backward, added"), &work.unwrap(), &[&d_x.tensor]);
            close_beside(&format!("{what} backward, added"), &d_x.tensor, &added, Kind::Reduction, terms);

            let d_w = random(&mut rng, (1, cols), 0, Dtype::F32, 1.0);
            let expected: Vec<f64> = (0..cols)
                .map(|c| {
                    let sum: f64 =
                        (0..rows).map(|t| d_out.host[t * cols + c] * x.host[t * cols + c] * r[t]).sum();
                    d_w.host[c] + sum
                })
                .collect();
            let work = rms_norm::weight_grad(&x.tensor, &rstd, &d_out.tensor, &d_w.tensor).unwrap();
            run_twice(&format!("{what} weight"), &work, &[&d_w.tensor]);
            close(&format!("{what} weight"), &d_w.tensor, &expected, Kind::Reduction);
        }
    }
}

#[test]
fn the_norm_of_a_sum_equals_both_steps() {
    let mut rng = Random::new("rms_norm_add");
    for (x_type, w_type) in [(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::Bf16), (Dtype::Bf16, Dtype::F32)]
    {
        for (rows, cols) in shapes() {
            let what = format!("rms_norm_add {rows}x{cols} {x_type:?}");
            let x = random(&mut rng, (rows, cols), 3, x_type, 2.0);
            let addend = random(&mut rng, (rows, cols), 8, x_type, 2.0);
            let w = random(&mut rng, (1, cols), 0, w_type, 1.0);
            let outputs = || {
                let sum = poisoned((rows, cols), 8, x_type);
                (sum, poisoned((rows, cols), 0, x_type), poisoned((rows, 1), 0, Dtype::F32))
            };
            let (sum, out, rstd) = outputs();
            let (other_sum, other_out, other_rstd) = outputs();
            let residual = Residual { x: &x.tensor, addend: &addend.tensor, sum: &sum };
            let work = rms_norm::forward_add(residual, &w.tensor, &out, &rstd, EPS as f32).unwrap();
            run_twice(&what, &work, &[&sum, &out, &rstd]);
            run(&elementwise::add(&x.tensor, &addend.tensor, &other_sum).unwrap());
            let work = rms_norm::forward(&other_sum, &w.tensor, &other_out, &other_rstd, EPS as f32);
            run(&work.unwrap());
            for (name, a, b) in
                [("sum", &sum, &other_sum), ("out", &out, &other_out), ("rstd", &rstd, &other_rstd)]
            {
                assert!(a.read_rows().unwrap() == b.read_rows().unwrap(), "{what}: {name}");
                padding_untouched(&what, a);
            }
        }
    }
}

/// A row has the same bits alone, among others, and in a view that is not aligned.
#[test]
fn a_row_depends_on_nothing_else() {
    let mut rng = Random::new("rms_norm rows");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (rows, cols) in [(9, 896), (9, 100), (4, 4864), (3, 8200)] {
            let values = rng.values(rows * cols, 2.0);
            let w = random(&mut rng, (1, cols), 0, dtype, 1.0);
            let slopes = rng.values(rows * cols, 1.0);
            let normed = |from: usize, rows: usize, pad: usize| {
                let part =
                    |values: &[f32]| given(&values[from * cols..][..rows * cols], (rows, cols), pad, dtype);
                let (x, d_out) = (part(&values), part(&slopes));
                let (out, rstd) = (poisoned((rows, cols), pad, dtype), poisoned((rows, 1), 0, Dtype::F32));
                run(&rms_norm::forward(&x.tensor, &w.tensor, &out, &rstd, EPS as f32).unwrap());
                let mut bytes = out.read_rows().unwrap();
                let d_x = part(&slopes).tensor;
                run(&rms_norm::backward(&x.tensor, &w.tensor, &rstd, &d_out.tensor, &d_x, true).unwrap());
                bytes.extend(d_x.read_rows().unwrap());
                bytes
            };
            let all = normed(0, rows, 8);
            assert!(all == normed(0, rows, 3), "{cols} {dtype:?}: another pitch");
            let alone = normed(rows - 1, 1, 0);
            let (row, half) = (alone.len() / 2, all.len() / 2);
            assert!(all[half - row..half] == alone[..row], "{cols} {dtype:?}: a row alone");
            assert!(all[2 * half - row..] == alone[row..], "{cols} {dtype:?}: a row's gradient alone");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let x = poisoned((4, 8), 0, Dtype::F32);
    let (w, rstd) = (poisoned((1, 7), 0, Dtype::F32), poisoned((4, 1), 0, Dtype::F32));
    let error = rms_norm::forward(&x, &w, &x, &rstd, 1e-6).unwrap_err();
    assert!(error.to_string().contains("weight is 1 x 7, not 1 x 8"), "{error}");
    gpu().synchronize().unwrap();
}
