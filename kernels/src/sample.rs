//! The choice of a token from a row of logits, as every device makes it: the same token to the last bit.
//!
//! A draw is the inverse of a cumulative distribution over the allowed tokens, most likely first (the lower id of equals).
//! Weights are whole numbers, so their sums are exact in any order, and a device may add them as it likes:
//!
//! `weight(l) = round(2^40 2^-d)`, `d = (greatest - l) scale`, `scale = log2(e) / temperature`; 0 from `d = 41` on.
//!
//! `d` is one subtraction and one product in float64. With `n = floor(d)` and `g = d - (n + 1/2)`, `2^-d` is `2^-n` times
//! the series of `2^-(g + 1/2)` around 0 up to `g^11`, by Horner's rule with each product and each sum rounded to float64.
//!
//! `top_k` keeps the first tokens of that order. `top_p` keeps the fewest first tokens whose weights reach its share of the
//! rest. The draw is the first token whose cumulated weight is above `uniform` times the sum of what is kept.

/// Words of a [`Draw`] on a device.
pub const WORDS: usize = 8;
/// `top_p` that keeps everything.
pub const ALL: u32 = 1 << 31;
/// Most logits of a row: sums of weights fit 64 bits.
pub const MOST_LOGITS: usize = 1 << 22;

/// Bits of the greatest weight.
const BITS: i32 = 40;
/// Coefficients of `2^-(g + 1/2)`: `sqrt(1/2) (-ln 2)^k / k!`.
const SERIES: [f64; 12] = [
    std::f64::consts::FRAC_1_SQRT_2,
    -0.490_129_071_734_273_6,
    0.169_865_792_091_537_46,
    -0.039_247_331_620_610_35,
    0.006_801_044_314_331_813,
    -0.000_942_824_938_268_468_5,
    0.000_108_919_407_953_732_24,
    -1.078_531_150_448_399_7e-5,
    9.344_760_325_992_282e-7,
    -7.196_993_636_633_317e-8,
    4.988_575_847_740_251_4e-9,
    -3.143_470_258_064_176_4e-10,
];
/// Ranges of `d` that are summed by themselves, and how many there are to 1.
const BINS: usize = 2048;
const BINS_TO_ONE: f64 = 32.0;

/// How a token is chosen from one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Only ids below.
    pub allowed: u32,
    /// 0: no limit.
    pub top_k: u32,
    /// In units of 2^-31; [`ALL`]: no limit.
    pub top_p: u32,
    /// In units of 2^-24, below 1.
    pub uniform: u32,
    /// `log2(e) / temperature`; 0: the greatest logit.
    pub scale: f64,
}

impl Draw {
    /// The greatest of the logits below `allowed`.
    #[must_use]
    pub fn greatest(allowed: u32) -> Self {
        Draw { allowed, top_k: 0, top_p: ALL, uniform: 0, scale: 0.0 }
    }

    /// By the softmax at `temperature` (above 0), with `uniform` in `0.0..1.0`.
    #[must_use]
    pub fn weighted(allowed: u32, temperature: f32, (top_k, top_p): (usize, f32), uniform: f32) -> Self {
        Draw {
            allowed,
            top_k: u32::try_from(top_k).unwrap_or(0),
            top_p: (f64::from(top_p) * f64::from(ALL)).ceil().clamp(1.0, f64::from(ALL)) as u32,
            uniform: (uniform * 16_777_216.0) as u32,
            scale: std::f64::consts::LOG2_E / f64::from(temperature),
        }
    }

    /// As a device reads it.
    #[must_use]
    pub fn words(&self) -> [u32; WORDS] {
        let bits = self.scale.to_bits();
        let Draw { allowed, top_k, top_p, uniform, .. } = *self;
        [allowed, top_k, top_p, uniform, bits as u32, (bits >> 32) as u32, 0, 0]
    }
}

/// The token; the greatest logit's is the lowest id of equals. `None` when an allowed logit is NaN or infinite, all of them
/// are minus infinity, or none is allowed.
#[must_use]
pub fn choose(logits: &[f32], draw: &Draw) -> Option<u32> {
    let logits = &logits[..logits.len().min(draw.allowed as usize)];
    let (id, top) = greatest(logits)?;
    if draw.scale == 0.0 {
        return Some(id);
    }
    let row = Row { logits, top, scale: draw.scale };
    let (mut floor, mut surplus) = (f32::NEG_INFINITY, 0);
    if (1..logits.len()).contains(&(draw.top_k as usize)) {
        let last = row.crossing(&row.sums(floor, |_| 1), floor, |_| 1, u64::from(draw.top_k));
        floor = last.value;
        surplus = (last.before + last.ids.len() as u64 - u64::from(draw.top_k)) * row.weight(floor);
    }
    let weight = |value| row.weight(value);
    let sums = row.sums(floor, weight);
    let mut kept = sums.iter().sum::<u64>() - surplus;
    if draw.top_p < ALL {
        let share = (u128::from(kept) * u128::from(draw.top_p)).div_ceil(u128::from(ALL)) as u64;
        let last = row.crossing(&sums, floor, weight, share);
        kept = last.before + (share - last.before).next_multiple_of(last.each);
    }
    let below = ((u128::from(kept) * u128::from(draw.uniform)) >> 24) as u64;
    let found = row.crossing(&sums, floor, weight, below + 1);
    found.ids.get(((below - found.before) / found.each) as usize).copied()
}

fn greatest(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return None;
        }
        if value > best.1 {
            best = (id as u32, value);
        }
    }
    (best.1 > f32::NEG_INFINITY).then_some(best)
}

/// Logits with what their weights need.
struct Row<'a> {
    logits: &'a [f32],
    top: f32,
    scale: f64,
}

/// Where a cumulated measure reaches what is asked for.
struct Crossing {
    /// The logit at which it does, and its tokens in order.
    value: f32,
    ids: Vec<u32>,
    /// Measure of all greater ones, and of one such token.
    before: u64,
    each: u64,
}

impl Row<'_> {
    fn distance(&self, value: f32) -> f64 {
        (f64::from(self.top) - f64::from(value)) * self.scale
    }

    fn weight(&self, value: f32) -> u64 {
        let d = self.distance(value);
        if d >= f64::from(BITS + 1) {
            return 0;
        }
        let n = d as i32;
        let g = d - (f64::from(n) + 0.5);
        let power = SERIES.iter().rev().fold(0.0, |sum, c| sum * g + c);
        let factor = f64::from_bits(((1023 + BITS - n) as u64) << 52);
        (power * factor + 0.5) as u64
    }

    fn bin(&self, value: f32) -> usize {
        ((self.distance(value) * BINS_TO_ONE) as usize).min(BINS - 1)
    }

    /// Sums of a measure over the logits from `floor` on, by their distance from the greatest.
    fn sums(&self, floor: f32, measure: impl Fn(f32) -> u64) -> Vec<u64> {
        let mut sums = vec![0; BINS];
        for &value in self.logits.iter().filter(|&&value| value >= floor) {
            sums[self.bin(value)] += measure(value);
        }
        sums
    }

    /// The logit at which the measure, cumulated from the greatest on, reaches `need`, which is above 0 and at most all of it.
    fn crossing(&self, sums: &[u64], floor: f32, measure: impl Fn(f32) -> u64, need: u64) -> Crossing {
        let (mut before, mut bin) = (0, 0);
        while bin + 1 < sums.len() && before + sums[bin] < need {
            before += sums[bin];
            bin += 1;
        }
        let near = self.logits.iter().zip(0u32..);
        let mut near: Vec<(f32, u32)> = near
            .map(|(&value, id)| (value, id))
            .filter(|&(value, _)| value >= floor && self.bin(value) == bin)
            .collect();
        near.sort_unstable_by(|a, b| (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then(a.1.cmp(&b.1)));
        let mut found = Crossing { value: floor, ids: Vec::new(), before, each: 1 };
        for equals in near.chunk_by(|a, b| a.0 == b.0) {
            let each = measure(equals[0].0);
            let ids = equals.iter().map(|e| e.1).collect();
            found = Crossing { value: equals[0].0, ids, before, each: each.max(1) };
            before += each * equals.len() as u64;
            if before >= need {
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64 (G. Steele and others, 2014).
    struct Random(u64);

    impl Random {
        fn bits(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }

        fn unit(&mut self) -> f32 {
            (self.bits() >> 40) as f32 / 16_777_216.0
        }

        /// About normal, in steps of `step` (0: no steps).
        fn row(&mut self, n: usize, spread: f32, step: f32) -> Vec<f32> {
            (0..n)
                .map(|_| {
                    let x = ((0..6).map(|_| self.unit()).sum::<f32>() - 3.0) * spread;
                    if step > 0.0 { (x / step).round() * step } else { x }
                })
                .collect()
        }
    }

    /// As the module's text says, word for word.
    fn plain(logits: &[f32], draw: &Draw) -> Option<u32> {
        let (_, top) = greatest(logits)?;
        let row = Row { logits, top, scale: draw.scale };
        let mut all: Vec<(f32, u32, u64)> =
            (0u32..).zip(logits).map(|(id, &value)| (value, id, row.weight(value))).collect();
        all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        if draw.top_k > 0 {
            all.truncate(draw.top_k as usize);
        }
        let total: u128 = all.iter().map(|token| u128::from(token.2)).sum();
        if draw.top_p < ALL {
            let mut sum = 0;
            let enough = all.iter().position(|token| {
                sum += u128::from(token.2);
                sum << 31 >= total * u128::from(draw.top_p)
            });
            all.truncate(enough.unwrap() + 1);
        }
        let kept: u128 = all.iter().map(|token| u128::from(token.2)).sum();
        let mut sum = 0;
        let found = all.iter().find(|token| {
            sum += u128::from(token.2);
            sum << 24 > kept * u128::from(draw.uniform)
        });
        found.map(|token| token.1)
    }

    /// Weights in float64 by the library's exponential.
    fn in_float64(logits: &[f32], temperature: f32, (top_k, top_p): (usize, f32), u: f32) -> u32 {
        let (_, top) = greatest(logits).unwrap();
        let weight = |value: f32| ((f64::from(value) - f64::from(top)) / f64::from(temperature)).exp();
        let mut all: Vec<(f64, u32)> = (0u32..).zip(logits).map(|(id, &v)| (weight(v), id)).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if top_k > 0 {
            all.truncate(top_k);
        }
        let total: f64 = all.iter().map(|token| token.0).sum();
        let mut mass = 0.0;
        let enough = all.iter().position(|token| {
            mass += token.0;
            mass >= f64::from(top_p) * total
        });
        all.truncate(enough.map_or(all.len(), |last| last + 1));
        let mut left = f64::from(u) * all.iter().map(|token| token.0).sum::<f64>();
        let found = all.iter().find(|token| {
            left -= token.0;
            left < 0.0
        });
        found.map_or(all[all.len() - 1].1, |token| token.1)
    }

    #[test]
    fn a_draw_is_the_text_s_and_that_of_float64() {
        let mut rng = Random(7);
        for (n, spread, step) in [
            (1, 1.0, 0.0),
            (2, 1.0, 0.0),
            (50, 1.0, 0.0),
            (1003, 0.6, 0.0),
            (1003, 0.6, 0.25),
            (1003, 8.0, 0.0),
            (3000, 20.0, 0.5),
            (300, 1e-6, 0.0),
            (300, 0.0, 0.0),
            (300, 3e4, 0.0),
        ] {
            for temperature in [0.8, 1.0, 0.05, 30.0] {
                for (top_k, top_p) in [(0, 1.0), (0, 0.95), (7, 1.0), (20, 0.5), (n, 0.3), (0, 1e-9)] {
                    for _ in 0..6 {
                        let logits = rng.row(n, spread, step);
                        let u = rng.unit();
                        let draw = Draw::weighted(n as u32, temperature, (top_k, top_p), u);
                        let case = format!("{n} {spread} {step} {temperature} {top_k} {top_p} {u}");
                        let got = choose(&logits, &draw);
                        assert_eq!(got, plain(&logits, &draw), "{case}");
                        let float = in_float64(&logits, temperature, (top_k, top_p), u);
                        assert_eq!(got, Some(float), "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn weights_are_powers_of_two() {
        let row = Row { logits: &[], top: 3.0, scale: 1.0 };
        assert_eq!(row.weight(3.0), 1 << 40);
        for (value, power) in [(2.0, 39), (-17.0, 20), (-37.0, 0)] {
            assert_eq!(row.weight(value), 1 << power, "{value}");
        }
        assert_eq!((row.weight(-38.0), row.weight(f32::NEG_INFINITY)), (0, 0));
        for i in 0..4000 {
            let value = 3.0 - i as f32 / 100.0;
            let exact = (40.0 - (3.0 - f64::from(value))).exp2();
            let got = row.weight(value) as f64;
            assert!((got - exact).abs() <= 0.5 + exact * 1e-14, "{value}: {got} {exact}");
        }
    }

    #[test]
    fn what_is_no_distribution_has_no_token() {
        let rules = [Draw::greatest(3), Draw::weighted(3, 1.0, (0, 1.0), 0.5)];
        for draw in rules {
            let choose = |logits: &[f32]| choose(logits, &draw);
            assert_eq!(choose(&[f32::NAN, 1.0, 0.0]), None);
            assert_eq!(choose(&[f32::INFINITY, 1.0, 0.0]), None);
            assert_eq!(choose(&[f32::NEG_INFINITY; 3]), None);
            assert_eq!(choose(&[]), None);
            assert_eq!(choose(&[f32::NEG_INFINITY, -1e30, f32::NEG_INFINITY, f32::NAN]), Some(1));
        }
        assert_eq!(choose(&[1.0], &Draw::greatest(0)), None);
    }

    #[test]
    fn ends_of_the_range_of_numbers() {
        let logits = [f32::MAX, f32::MIN, 0.0, -0.0, f32::MIN_POSITIVE];
        for temperature in [f32::from_bits(1), 1e-30, 1.0, f32::MAX] {
            for uniform in [0.0, 0.5, 1.0 - f32::EPSILON / 2.0] {
                let draw = Draw::weighted(5, temperature, (0, 1.0), uniform);
                assert_eq!(choose(&logits, &draw), plain(&logits, &draw), "{temperature} {uniform}");
            }
        }
        let zeros = [-0.0, 0.0, -0.0];
        assert_eq!(choose(&zeros, &Draw::greatest(3)), Some(0));
        let ids = [0.1f32, 0.5, 0.9].map(|u| choose(&zeros, &Draw::weighted(3, 1.0, (0, 1.0), u)));
        assert_eq!(ids, [Some(0), Some(1), Some(2)]);
    }
}
