use crate::support::{Random, given, integers, run};
use kernels::cuda::Dtype;
use kernels::cuda::ops::sample::{NONE, choose};
use kernels::sample::{self, Draw, WORDS};

/// What the device chooses from each row, and what the host does.
fn both(
    values: &[f32],
    (cols, pad): (usize, usize),
    dtype: Dtype,
    draws: &[Draw],
) -> (Vec<Option<u32>>, Vec<Option<u32>>) {
    let rows = draws.len();
    let logits = given(values, (rows, cols), pad, dtype);
    let words: Vec<u32> = draws.iter().flat_map(Draw::words).collect();
    let ids = integers(&vec![7; rows], 1);
    let work = choose(&logits.tensor, &integers(&words, WORDS), &ids).unwrap();
    run(&work);
    let read = || -> Vec<u32> {
        let bytes = ids.read_rows().unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    };
    let first = read();
    run(&work);
    assert_eq!(first, read(), "two runs differ");
    let held: Vec<f32> = logits.host.iter().map(|&value| value as f32).collect();
    let host = held.chunks(cols).zip(draws).map(|(row, draw)| sample::choose(row, draw)).collect();
    (first.into_iter().map(|id| (id != NONE).then_some(id)).collect(), host)
}

/// About normal, in steps of `step` (0: no steps).
fn spread(rng: &mut Random, n: usize, scale: f32, step: f32) -> Vec<f32> {
    (0..n)
        .map(|_| {
            let x = (0..4).map(|_| rng.unit()).sum::<f32>() * scale;
            if step > 0.0 { (x / step).round() * step } else { x }
        })
        .collect()
}

#[test]
fn choose_is_the_host_s_choice() {
    let mut rng = Random::new("choose");
    let (mut cases, mut greatest) = (0, 0);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (cols, pad, allowed) in [
            (1, 0, 1),
            (33, 3, 20),
            (512, 0, 512),
            (1003, 0, 2000),
            (1003, 5, 1000),
            (8192, 0, 8191),
            (151_936, 0, 151_665),
            (151_936, 8, 151_936),
        ] {
            // flat, as of a language model, one token above all, equals, one value, huge and tiny differences
            for (scale, step) in
                [(0.6, 0.0), (4.0, 0.0), (40.0, 0.0), (3.0, 0.5), (0.0, 0.0), (1e4, 0.0), (1e-5, 0.0)]
            {
                let mut draws = vec![Draw::greatest(allowed)];
                for temperature in [0.8f32, 1.0, 0.02, 50.0, 1e-30, f32::MAX] {
                    for limits in [(0, 0.95), (0, 1.0), (1, 1.0), (40, 0.9), (cols / 2, 1.0), (0, 1e-6)] {
                        let u = [0.0, (rng.unit() + 1.0) / 2.0, 1.0 - f32::EPSILON / 2.0][rng.below(3)];
                        let u = u.min(1.0 - f32::EPSILON / 2.0);
                        draws.push(Draw::weighted(allowed, temperature, limits, u));
                    }
                }
                let values = spread(&mut rng, draws.len() * cols, scale, step);
                let (device, host) = both(&values, (cols, pad), dtype, &draws);
                for (i, (device, host)) in device.iter().zip(&host).enumerate() {
                    assert_eq!(device, host, "{cols} {scale} {step} {dtype:?}: {:?}", draws[i]);
                    assert!(host.is_some_and(|id| id < allowed));
                    let top = sample::choose(&values[i * cols..(i + 1) * cols], &Draw::greatest(allowed));
                    greatest += usize::from(*host == top);
                    cases += 1;
                }
            }
        }
    }
    println!("{cases} rows, the greatest logit in {greatest}");
    assert!(greatest < cases * 9 / 10, "the draws draw nothing");
}

#[test]
fn choose_of_rows_without_a_choice() {
    let mut values = vec![f32::NEG_INFINITY; 6 * 100];
    values[100 + 50] = f32::NAN;
    values[200 + 99] = f32::NAN;
    values[200 + 98] = -3.0;
    values[399] = f32::INFINITY;
    values[400 + 7] = -1e30;
    values[500..600].fill(f32::NAN);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (allowed, expected) in [
            (100, [None, None, None, None, Some(7), None]),
            (99, [None, None, Some(98), None, Some(7), None]),
            (0, [None; 6]),
        ] {
            for draw in [Draw::greatest(allowed), Draw::weighted(allowed, 1.0, (0, 0.9), 0.7)] {
                let (device, host) = both(&values, (100, 0), dtype, &[draw; 6]);
                assert_eq!((device.as_slice(), host.as_slice()), (&expected[..], &expected[..]), "{draw:?}");
            }
        }
    }
}

/// Values that differ by their last bit, around zero and far from it, and zeros of both signs.
#[test]
fn choose_tells_neighbours_apart() {
    let mut rng = Random::new("neighbours");
    for (centre, dtype) in
        [(0.0f32, Dtype::F32), (1000.0, Dtype::F32), (1e-38, Dtype::F32), (0.0, Dtype::Bf16)]
    {
        let cols = 5000;
        let draws: Vec<Draw> = (0..64)
            .map(|_| {
                Draw::weighted(cols as u32, 1.0, ([0, 2500][rng.below(2)], 0.6), (rng.unit() + 1.0) / 2.1)
            })
            .collect();
        let values: Vec<f32> = (0..draws.len() * cols)
            .map(|_| {
                let near = f32::from_bits((centre.to_bits() as usize + rng.below(300)) as u32);
                if rng.below(2) == 0 && centre < 1.0 { -near } else { near }
            })
            .collect();
        let (device, host) = both(&values, (cols, 0), dtype, &draws);
        assert_eq!(device, host, "around {centre} in {dtype:?}");
    }
}
