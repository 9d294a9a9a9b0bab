use crate::support::{Random, integers, padding_untouched, poisoned, random, run_twice, same_twice};
use kernels::cuda::Dtype;
use kernels::cuda::ops::rows;

const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 1, 1, 0), (50, 20, 33, 3), (64, 64, 896, 0), (300, 129, 100, 4), (40, 13, 2056, 8)];

/// `picked` of `rows` rows, in no order.
fn pick(rng: &mut Random, rows: usize, picked: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..rows as u32).collect();
    for i in 0..picked {
        let j = i + rng.below(rows - i);
        all.swap(i, j);
    }
    all.truncate(picked);
    all
}

#[test]
fn gather_copies_rows_and_zeroes_the_rest() {
    let mut rng = Random::new("gather");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (x_rows, out_rows, cols, pad) in SHAPES {
            let what = format!("gather {out_rows}x{cols} of {x_rows} {dtype:?}");
            let x = random(&mut rng, (x_rows, cols), pad, dtype, 1.0);
            let mut index: Vec<u32> = (0..out_rows).map(|_| rng.below(x_rows) as u32).collect();
            index[out_rows / 2] = rows::NONE;
            index[out_rows - 1] = x_rows as u32;
            let out = poisoned((out_rows, cols), pad, dtype);
            same_twice(&what, &rows::gather(&x.tensor, &integers(&index, 1), &out).unwrap(), &out);
            let expected: Vec<f64> = index
                .iter()
                .flat_map(|&i| match x.host.chunks(cols).nth(i as usize) {
                    Some(row) => row.to_vec(),
                    None => vec![0.0; cols],
                })
                .collect();
            let got: Vec<f64> = out.download().unwrap().into_iter().map(f64::from).collect();
            assert_eq!(got, expected, "{what}");
            padding_untouched(&what, &out);
        }
    }
}

#[test]
fn scatter_is_the_gradient_of_gather_in_both_forms() {
    let mut rng = Random::new("scatter");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (x_rows, out_rows, cols, pad) in SHAPES {
            let what = format!("scatter {out_rows}x{cols} to {x_rows} {dtype:?}");
            let d_out = random(&mut rng, (out_rows, cols), pad, dtype, 1.0);
            let mut index = pick(&mut rng, x_rows, out_rows);
            if out_rows > 2 {
                index[1] = rows::NONE;
                index[2] = x_rows as u32;
            }
            let mut inverse = vec![rows::NONE; x_rows];
            let mut expected = vec![0.0; x_rows * cols];
            for (i, &row) in index.iter().enumerate().filter(|(_, row)| (**row as usize) < x_rows) {
                inverse[row as usize] = i as u32;
                expected[row as usize * cols..][..cols].copy_from_slice(&d_out.host[i * cols..][..cols]);
            }
            let (first, second) =
                (poisoned((x_rows, cols), pad, dtype), poisoned((x_rows, cols), pad, dtype));
            let works = rows::scatter(&d_out.tensor, &integers(&index, 1), &first).unwrap();
            works.iter().for_each(|work| run_twice(&what, work, &[&first]));
            let one = rows::scatter_inverse(&d_out.tensor, &integers(&inverse, 1), &second).unwrap();
            same_twice(&what, &one, &second);
            for d_x in [&first, &second] {
                let got: Vec<f64> = d_x.download().unwrap().into_iter().map(f64::from).collect();
                assert_eq!(got, expected, "{what}");
                padding_untouched(&what, d_x);
            }
        }
    }
}
