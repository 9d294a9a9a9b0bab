use crate::support::{Kind, Random, close, gpu, integers, padding_untouched, poisoned, random, run};
use kernels::cuda::ops::StepScalars;
use kernels::cuda::ops::cross_entropy::{self, NONE};
use kernels::cuda::{Dtype, Tensor};

pub(crate) fn scalars(values: StepScalars) -> Tensor {
    let memory = gpu().alloc(StepScalars::BYTES, "scalars").unwrap();
    let tensor = memory.dense(1, StepScalars::BYTES, Dtype::U8).unwrap();
    tensor.upload_u8(&values.to_bytes()).unwrap();
    tensor
}

/// Losses, and gradients of their sum.
fn reference(logits: &[f64], cols: usize, labels: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let mut losses = Vec::new();
    let mut gradients = Vec::new();
    for (row, &label) in logits.chunks(cols).zip(labels) {
        if label == NONE {
            losses.push(0.0);
            gradients.extend(vec![0.0; cols]);
            continue;
        }
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|v| (v - top).exp()).sum();
        losses.push(total.ln() - (row[label as usize] - top));
        gradients.extend(
            row.iter()
                .enumerate()
                .map(|(c, v)| (v - top).exp() / total - f64::from(u8::from(c == label as usize))),
        );
    }
    (losses, gradients)
}

#[test]
fn cross_entropy_equals_plain_loops() {
    let mut rng = Random::new("cross_entropy");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (rows, cols, pad, scale) in [
            (1, 1, 0, 1.0),
            (3, 31, 3, 5.0),
            (9, 33, 0, 1e4),
            (70, 1000, 0, 10.0),
            (5, 4864, 8, 1e4),
            (6, 151_936, 0, 20.0),
        ] {
            let what = format!("cross_entropy {rows}x{cols} {dtype:?}");
            let logits = random(&mut rng, (rows, cols), pad, dtype, scale);
            let mut labels: Vec<u32> = (0..rows).map(|_| rng.below(cols) as u32).collect();
            labels[0] = cols as u32 - 1;
            if rows > 2 {
                labels[rows / 2] = NONE;
            }
            let (losses, gradients) = reference(&logits.host, cols, &labels);
            let label_tensor = integers(&labels, 1);
            let loss = poisoned((rows, 1), 0, Dtype::F32);
            let before = logits.tensor.read_rows().unwrap();
            run(&cross_entropy::forward(&logits.tensor, &label_tensor, &loss, false).unwrap());
            close(&what, &loss, &losses, Kind::Reduction);
            assert!(before == logits.tensor.read_rows().unwrap(), "{what}: changed the logits");

            let work = cross_entropy::forward(&logits.tensor, &label_tensor, &loss, true).unwrap();
            run(&work);
            close(&format!("{what} with gradient"), &loss, &losses, Kind::Reduction);
            close(&format!("{what} gradient"), &logits.tensor, &gradients, Kind::Reduction);
            padding_untouched(&what, &logits.tensor);
            // far from the label an element is small beside the largest: judged by itself
            let bound = if dtype == Dtype::F32 { 1e-5 } else { 1e-2 };
            let got = logits.tensor.download().unwrap();
            for (i, (&value, &want)) in got.iter().zip(&gradients).enumerate() {
                let fair = want.abs() > 1e-30 && i % cols != labels[i / cols] as usize;
                let error = (f64::from(value) - want).abs();
                assert!(!fair || error <= bound * want.abs(), "{what}: {value:e} at {i}, expected {want:e}");
            }
            let values: Vec<f32> = logits.host.iter().map(|&v| v as f32).collect();
            logits.tensor.upload(&values).unwrap();
            run(&work);
            assert_eq!(got, logits.tensor.download().unwrap(), "{what}: two runs differ");
        }
    }
}

#[test]
fn odd_logits_and_labels() {
    let cols = 300;
    let mut values = vec![0.25f32; 4 * cols];
    values[..cols - 1].fill(f32::NEG_INFINITY); // one column is possible
    values[cols + 7] = f32::NAN;
    let tensor = poisoned((4, cols), 0, Dtype::F32);
    tensor.upload(&values).unwrap();
    let labels = integers(&[cols as u32 - 1, 3, cols as u32, NONE], 1);
    let loss = poisoned((4, 1), 0, Dtype::F32);
    run(&cross_entropy::forward(&tensor, &labels, &loss, true).unwrap());
    let losses = loss.download().unwrap();
    assert_eq!(losses[0], 0.0);
    assert!(losses[1].is_nan() && losses[2].is_nan(), "{losses:?}");
    assert_eq!(losses[3], 0.0);
    let gradient = tensor.download().unwrap();
    assert!(gradient[..cols].iter().all(|&g| g == 0.0), "{:?}", &gradient[..cols]);
    assert!(gradient[cols..2 * cols].iter().all(|g| g.is_nan()));
    assert!(gradient[2 * cols..].iter().all(|&g| g == 0.0));
}

#[test]
fn sum_loss_adds_in_float64_and_flags_what_is_not_finite() {
    let mut rng = Random::new("sum_loss");
    for rows in [1, 7, 1000, 1025, 65_536] {
        let losses = random(&mut rng, (rows, 1), 0, Dtype::F32, 10.0);
        let (sum, flag) = (poisoned((1, 1), 0, Dtype::F32), integers(&[0], 1));
        run(&cross_entropy::sum_loss(&losses.tensor, &sum, Some(&flag)).unwrap());
        let expected = losses.host.iter().sum::<f64>() as f32;
        let got = sum.download().unwrap()[0];
        let ulps = (i64::from(got.to_bits()) - i64::from(expected.to_bits())).abs();
        assert!(ulps <= 1, "{rows} rows: {got} instead of {expected}");
        assert_eq!(flag.read_rows().unwrap(), [0; 4]);
        losses.tensor.row_range(rows / 2, 1).unwrap().upload(&[f32::NAN]).unwrap();
        run(&cross_entropy::sum_loss(&losses.tensor, &sum, None).unwrap());
        run(&cross_entropy::sum_loss(&losses.tensor, &sum, Some(&flag)).unwrap());
        assert!(sum.download().unwrap()[0].is_nan());
        assert_eq!(flag.read_rows().unwrap(), 1u32.to_le_bytes());
    }
}
