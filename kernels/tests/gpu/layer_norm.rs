use crate::support::{
    Kind, Random, close, close_beside, padding_untouched, poisoned, random, run_twice, same_twice,
};
use kernels::cuda::Dtype;
use kernels::cuda::ops::layer_norm::{self, Statistics};

const EPS: f64 = 1e-5;

#[test]
fn layer_norm_equals_plain_loops() {
    let mut rng = Random::new("layer_norm");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (rows, cols, pad) in
            [(1, 2, 0), (3, 31, 3), (7, 33, 0), (64, 896, 0), (129, 4864, 8), (2, 100, 4)]
        {
            let what = format!("layer_norm {rows}x{cols} {dtype:?}");
            let x = random(&mut rng, (rows, cols), pad, dtype, 2.0);
            let (w, b) =
                (random(&mut rng, (1, cols), 0, dtype, 1.0), random(&mut rng, (1, cols), 0, dtype, 1.0));
            let d_out = random(&mut rng, (rows, cols), pad, dtype, 1.0);
            let out = poisoned((rows, cols), pad, dtype);
            let (mean, rstd) = (poisoned((rows, 1), 0, Dtype::F32), poisoned((rows, 1), 0, Dtype::F32));
            let kept = Statistics { mean: &mean, rstd: &rstd };
            let work = layer_norm::forward(&x.tensor, &w.tensor, &b.tensor, &out, kept, EPS as f32).unwrap();
            same_twice(&what, &work, &out);
            let n = cols as f64;
            let means: Vec<f64> = x.host.chunks(cols).map(|row| row.iter().sum::<f64>() / n).collect();
            let rstds: Vec<f64> = x
                .host
                .chunks(cols)
                .zip(&means)
                .map(|(row, m)| 1.0 / (row.iter().map(|v| (v - m) * (v - m)).sum::<f64>() / n + EPS).sqrt())
                .collect();
            let normed: Vec<f64> =
                (0..rows * cols).map(|i| (x.host[i] - means[i / cols]) * rstds[i / cols]).collect();
            let expected: Vec<f64> =
                (0..rows * cols).map(|i| normed[i] * w.host[i % cols] + b.host[i % cols]).collect();
            close(&what, &out, &expected, Kind::Reduction);
            close(&what, &rstd, &rstds, Kind::Reduction);
            padding_untouched(&what, &out);

            let scaled = |i: usize| d_out.host[i] * w.host[i % cols];
            let row_mean =
                |row: usize, f: &dyn Fn(usize) -> f64| (row * cols..(row + 1) * cols).map(f).sum::<f64>() / n;
            let expected: Vec<f64> = (0..rows)
                .flat_map(|row| {
                    let plain = row_mean(row, &scaled);
                    let along = row_mean(row, &|i| scaled(i) * normed[i]);
                    let (scaled, normed, r) = (&scaled, &normed, rstds[row]);
                    (row * cols..(row + 1) * cols).map(move |i| r * (scaled(i) - plain - normed[i] * along))
                })
                .collect();
            let d_x = poisoned((rows, cols), pad, dtype);
            let work = layer_norm::backward(&x.tensor, &w.tensor, kept, &d_out.tensor, &d_x).unwrap();
            same_twice(&format!("{what} backward"), &work, &d_x);
            // the terms of the difference, which cancel in a row of two columns
            let terms = (0..rows * cols).map(|i| (rstds[i / cols] * scaled(i)).abs()).fold(0.0, f64::max);
            close_beside(&format!("{what} backward"), &d_x, &expected, Kind::Reduction, terms);
            padding_untouched(&what, &d_x);

            let d_w = random(&mut rng, (1, cols), 0, Dtype::F32, 1.0);
            let d_b = random(&mut rng, (1, cols), 0, Dtype::F32, 1.0);
            let work = layer_norm::weight_grad(&x.tensor, kept, &d_out.tensor, &d_w.tensor, &d_b.tensor);
            run_twice(&format!("{what} weight"), &work.unwrap(), &[&d_w.tensor, &d_b.tensor]);
            let over_rows =
                |c: usize, f: &dyn Fn(usize) -> f64| -> f64 { (0..rows).map(|row| f(row * cols + c)).sum() };
            let expected: Vec<f64> =
                (0..cols).map(|c| d_w.host[c] + over_rows(c, &|i| d_out.host[i] * normed[i])).collect();
            close(&format!("{what} weight"), &d_w.tensor, &expected, Kind::Reduction);
            let expected: Vec<f64> =
                (0..cols).map(|c| d_b.host[c] + over_rows(c, &|i| d_out.host[i])).collect();
            close(&format!("{what} bias"), &d_b.tensor, &expected, Kind::Reduction);
        }
    }
}
