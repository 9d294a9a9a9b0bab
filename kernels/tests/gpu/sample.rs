use crate::support::{Random, given, integers, run};
use kernels::cuda::Dtype;
use kernels::cuda::ops::sample;

fn choose(values: &[f32], cols: usize, pad: usize, dtype: Dtype, banned: Option<u32>) -> Vec<u32> {
    let rows = values.len() / cols;
    let logits = given(values, (rows, cols), pad, dtype);
    let ids = integers(&vec![7; rows], 1);
    run(&sample::argmax(&logits.tensor, banned, &ids).unwrap());
    let bytes = ids.read_rows().unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

#[test]
fn argmax_takes_the_first_of_equals_and_nothing_banned() {
    let mut rng = Random::new("argmax");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (rows, cols, pad, banned) in [
            (1, 1, 0, None),
            (5, 33, 3, Some(20)),
            (64, 1000, 0, Some(2000)),
            (3, 151_936, 0, Some(151_665)),
            (2, 151_936, 8, None),
        ] {
            // halves from -4 to 4: many equals in both types
            let values: Vec<f32> = (0..rows * cols).map(|_| (rng.below(17) as f32 - 8.0) / 2.0).collect();
            let allowed = banned.map_or(cols, |id| (id as usize).min(cols));
            let expected: Vec<u32> = values
                .chunks(cols)
                .map(|row| {
                    (0..allowed).rev().fold(0, |best, c| if row[c] >= row[best] { c } else { best }) as u32
                })
                .collect();
            assert_eq!(choose(&values, cols, pad, dtype, banned), expected, "{rows}x{cols} {dtype:?}");
        }
    }
}

#[test]
fn argmax_of_rows_without_a_choice() {
    let mut values = vec![f32::NEG_INFINITY; 4 * 100];
    values[100 + 50] = f32::NAN;
    values[200 + 99] = f32::NAN;
    values[200 + 98] = -3.0;
    values[399] = f32::INFINITY;
    assert_eq!(choose(&values, 100, 0, Dtype::F32, None), [0, sample::NONE, sample::NONE, 99]);
    assert_eq!(choose(&values, 100, 0, Dtype::F32, Some(99)), [0, sample::NONE, 98, 0]);
    assert_eq!(choose(&values, 100, 0, Dtype::F32, Some(0)), [sample::NONE; 4]);
}
