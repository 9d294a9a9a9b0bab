//! NF4, the 4-bit format of QLoRA (T. Dettmers et al., 2023), bit for bit as bitsandbytes stores it.
//!
//! Values are taken flat, row-major, in blocks of 64. Each is divided by its block's largest magnitude and becomes the
//! nearest of 16 levels, the quantiles of a normal distribution. Two codes make a byte, the even element in the high nibble.
//! Numbers below the smallest normal one count as zero there, so they do here.
//! bitsandbytes multiplies by an approximate reciprocal of the magnitude (one unit in the last place off for some), this
//! module by the rounded one: a value that comes to lie within that unit of the middle of two levels may get the other one.
//! With double quantisation the block maxima are themselves stored in 8 bits: their mean is taken off, and blocks of
//! 256 of them are scaled by the largest magnitude and rounded to a 256-entry table of signed, dynamic exponent.

use std::sync::OnceLock;

use half::bf16;

pub const BLOCK: usize = 64;
pub const NESTED_BLOCK: usize = 256;

/// The 16 levels, as in Appendix E of the QLoRA paper.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A value above `THRESHOLDS[i]` has a code above `i`. The decimals of bitsandbytes' kernel, not means computed anew: most lie
/// halfway between two numbers of float32, so that with fewer digits some would be rounded to the other one.
#[expect(clippy::excessive_precision, reason = "the last digits decide the rounding")]
const THRESHOLDS: [f32; 15] = [
    -0.848_096_400_499_343_9,
    -0.610_632_926_225_662_2,
    -0.459_995_269_775_390_6,
    -0.339_679_434_895_515_44,
    -0.234_607_405_960_559_84,
    -0.137_911_733_239_889_14,
    -0.045_525_018_125_772_476,
    0.039_790_149_778_127_67,
    0.120_255_250_483_751_3,
    0.203_521_251_678_466_8,
    0.292_013_771_831_989_3,
    0.389_312_535_524_368_3,
    0.501_663_416_624_069_2,
    0.642_786_920_070_648_2,
    0.861_478_418_111_801_1,
];

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Nf4Error {
    #[error("value {index} is {value}: only finite numbers can be quantised")]
    NotFinite { index: usize, value: f32 },
    #[error("{what}: {found} given, {expected} needed for {len} values")]
    Length { what: &'static str, found: usize, expected: usize, len: usize },
}

/// The largest magnitude of each block.
#[derive(Debug, Clone, PartialEq)]
pub enum AbsMax {
    Single(Vec<f32>),
    Double {
        codes: Vec<u8>,
        /// Mean of the magnitudes.
        offset: f32,
        /// The largest magnitude of each block of [`NESTED_BLOCK`] magnitudes less the mean.
        nested: Vec<f32>,
    },
}

/// Numbers in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    len: usize,
    codes: Vec<u8>,
    absmax: AbsMax,
}

impl Nf4 {
    /// Quantises `values`; `double` quantises the block maxima too. The last block may be short.
    ///
    /// # Errors
    /// A value is infinite or not a number.
    pub fn quantize(values: &[f32], double: bool) -> Result<Self, Nf4Error> {
        // Without an early end the check runs on several values at a time.
        if !values.iter().fold(true, |all, v| all & v.is_finite())
            && let Some(index) = values.iter().position(|v| !v.is_finite())
        {
            return Err(Nf4Error::NotFinite { index, value: values[index] });
        }
        let maxima: Vec<f32> = values.chunks(BLOCK).map(|block| flushed(largest(block))).collect();
        let mut codes = Vec::with_capacity(values.len().div_ceil(2));
        for (block, &max) in values.chunks(BLOCK).zip(&maxima) {
            let block_codes = block_codes(block, 1.0 / max);
            codes.extend(
                block_codes.as_chunks::<2>().0[..block.len().div_ceil(2)].iter().map(|[a, b]| a << 4 | b),
            );
        }
        let absmax = if double { AbsMax::quantize(&maxima, mean(&maxima)) } else { AbsMax::Single(maxima) };
        Ok(Self { len: values.len(), codes, absmax })
    }

    /// Takes parts that were quantised elsewhere.
    ///
    /// # Errors
    /// A part has the wrong length for `len` values.
    pub fn from_parts(len: usize, codes: Vec<u8>, absmax: AbsMax) -> Result<Self, Nf4Error> {
        let blocks = len.div_ceil(BLOCK);
        let (maxima, nested) = match &absmax {
            AbsMax::Single(maxima) => (maxima.len(), None),
            AbsMax::Double { codes, nested, .. } => (codes.len(), Some(nested.len())),
        };
        let check = |what, found, expected| {
            if found == expected { Ok(()) } else { Err(Nf4Error::Length { what, found, expected, len }) }
        };
        check("codes", codes.len(), len.div_ceil(2))?;
        check("block maxima", maxima, blocks)?;
        if let Some(nested) = nested {
            check("nested maxima", nested, blocks.div_ceil(NESTED_BLOCK))?;
        }
        Ok(Self { len, codes, absmax })
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Two codes a byte, the even element in the high nibble.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    pub fn absmax(&self) -> &AbsMax {
        &self.absmax
    }

    /// Bytes of codes and maxima.
    pub fn n_bytes(&self) -> usize {
        let maxima = match &self.absmax {
            AbsMax::Single(maxima) => 4 * maxima.len(),
            AbsMax::Double { codes, nested, .. } => codes.len() + 4 * nested.len() + 4,
        };
        self.codes.len() + maxima
    }

    /// The numbers again, rounded to bfloat16 (nearest, ties to even), as float32.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.codes.len() * 2);
        for (codes, max) in self.codes.chunks(BLOCK / 2).zip(self.absmax.dequantize()) {
            let levels = LEVELS.map(|level| bf16::from_f32(level * max).to_f32());
            let pair = |byte: &u8| [levels[usize::from(byte >> 4)], levels[usize::from(byte & 15)]];
            values.extend(codes.iter().flat_map(pair));
        }
        values.truncate(self.len);
        values
    }
}

impl AbsMax {
    /// Quantises block maxima to 8 bits around `offset`.
    pub fn quantize(maxima: &[f32], offset: f32) -> Self {
        let table = dynamic_map();
        let centred: Vec<f32> = maxima.iter().map(|m| m - offset).collect();
        let nested: Vec<f32> = centred.chunks(NESTED_BLOCK).map(largest).collect();
        let mut codes = Vec::with_capacity(maxima.len());
        for (block, max) in centred.chunks(NESTED_BLOCK).zip(&nested) {
            let inverse = 1.0 / max;
            codes.extend(block.iter().map(|v| nearest(table, v * inverse)));
        }
        Self::Double { codes, offset, nested }
    }

    /// The block maxima.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Single(maxima) => maxima.clone(),
            Self::Double { codes, offset, nested } => {
                let table = dynamic_map();
                let value =
                    |(i, &code): (usize, &u8)| table[usize::from(code)] * nested[i / NESTED_BLOCK] + offset;
                codes.iter().enumerate().map(value).collect()
            }
        }
    }
}

/// Kept for eight lanes at a time: the largest is the same in any order.
fn largest(block: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for values in block.chunks(lanes.len()) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = if value.abs() > *lane { value.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

fn mean(values: &[f32]) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    (values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64) as f32
}

/// Codes of up to [`BLOCK`] values; what a short block lacks counts as zeros, as bitsandbytes pads.
/// A block of zeros gives 0 * inf, which is above no threshold: code 0, whose level times 0 is 0.
fn block_codes(block: &[f32], inverse: f32) -> [u8; BLOCK] {
    let inverse = flushed(inverse);
    let mut scaled = [0.0 * inverse; BLOCK];
    for (scaled, value) in scaled.iter_mut().zip(block) {
        *scaled = flushed(*value) * inverse;
    }
    // One threshold for all values after another: the loop inside runs on several values at a time.
    let mut codes = [0u32; BLOCK];
    for threshold in THRESHOLDS {
        for (code, value) in codes.iter_mut().zip(&scaled) {
            *code += u32::from(*value > threshold);
        }
    }
    codes.map(|code| code as u8)
}

/// Zero for numbers below the smallest normal one, which bitsandbytes' kernel does not know.
fn flushed(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}

/// The index of the entry of a sorted table that bitsandbytes takes for `value`: the nearest, a tie to the lower side
/// of where its bisection ends.
fn nearest(table: &[f32; 256], value: f32) -> u8 {
    let (mut lower, mut upper, mut pivot) = (0usize, 255usize, 127usize);
    for step in [64, 32, 16, 8, 4, 2, 1] {
        if value > table[pivot] {
            lower = pivot;
            pivot += step;
        } else {
            upper = pivot;
            pivot -= step;
        }
    }
    let at = table[pivot];
    let chosen = if value > at {
        if value > (table[upper] + at) * 0.5 { upper } else { pivot }
    } else if value < (table[lower] + at) * 0.5 {
        lower
    } else {
        pivot
    };
    chosen as u8
}

/// The signed dynamic map of 8 bits with up to 7 exponent bits: for each decade `10^(i - 6)` the middles of `2^i` equal
/// parts of 0.1..1, both signs, and 0 and 1; sorted (T. Dettmers, "8-bit approximations for parallelism in deep learning", 2015).
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: OnceLock<[f32; 256]> = OnceLock::new();
    MAP.get_or_init(|| {
        let mut entries = Vec::with_capacity(256);
        for exponent in 0..7 {
            let scale = 10f64.powi(exponent - 6);
            let parts = 1usize << exponent;
            for part in 0..parts {
                let middle = (linspace(part, parts) + linspace(part + 1, parts)) / 2.0;
                let value = (scale as f32) * middle;
                entries.extend([value, -value]);
            }
        }
        entries.extend([0.0, 1.0]);
        entries.sort_by(f32::total_cmp);
        let mut map = [0.0; 256];
        for (slot, entry) in map.iter_mut().zip(entries) {
            *slot = entry;
        }
        map
    })
}

/// Boundary `i` of `parts` equal parts of 0.1..1 in float32, counted from the nearer end; product and sum round once, as
/// in the build of torch that wrote the tables of bitsandbytes.
fn linspace(i: usize, parts: usize) -> f32 {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / parts as f32;
    if i < parts.div_ceil(2) {
        libm::fmaf(step, i as f32, start)
    } else {
        libm::fmaf(-step, (parts - i) as f32, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Purpose, Stream};

    /// Value by value, as the definition says it.
    fn plain(values: &[f32]) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        let maxima: Vec<f32> = values
            .chunks(BLOCK)
            .map(|block| block.iter().map(|v| v.abs()).max_by(f32::total_cmp).unwrap_or(0.0))
            .map(|max| if max.is_subnormal() { 0.0 } else { max })
            .collect();
        let code = |i: usize| {
            let normal = |v: f32| if v.is_subnormal() { 0.0 } else { v };
            let inverse = normal(1.0 / maxima[i.min(values.len() - 1) / BLOCK]);
            let scaled = normal(values.get(i).copied().unwrap_or(0.0)) * inverse;
            THRESHOLDS.iter().filter(|&&threshold| scaled > threshold).count()
        };
        let codes =
            (0..values.len().div_ceil(2)).map(|i| (code(2 * i) << 4 | code(2 * i + 1)) as u8).collect();
        let back =
            (0..values.len()).map(|i| bf16::from_f32(LEVELS[code(i)] * maxima[i / BLOCK]).to_f32()).collect();
        (codes, maxima, back)
    }

    #[test]
    fn blocks_at_a_time_give_what_values_one_by_one_give() {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for (round, n) in [1, 2, 63, 64, 65, 127, 128, 1000, 4097].into_iter().enumerate() {
            let stream = Stream::new(round as u64, Purpose::Weights, [0, 0, 0]);
            let mut values: Vec<f32> = (0..n as u64).flat_map(|i| stream.normal_block(i)).take(n).collect();
            // A block of zeros, thresholds met exactly, numbers at both ends of what float32 holds.
            values.iter_mut().skip(64).take(64).for_each(|v| *v = 0.0);
            values.iter_mut().skip(128).zip(THRESHOLDS).for_each(|(v, threshold)| *v = threshold);
            values.iter_mut().skip(200).take(1).for_each(|v| *v = -1.0);
            values
                .iter_mut()
                .skip(320)
                .zip([f32::MAX, f32::MIN_POSITIVE, -0.0, 1e-45])
                .for_each(|(v, x)| *v = x);
            let (codes, maxima, back) = plain(&values);
            let nf4 = Nf4::quantize(&values, false).unwrap();
            assert_eq!(nf4.codes(), codes, "{n} values");
            assert!(
                matches!(nf4.absmax(), AbsMax::Single(found) if bits(found) == bits(&maxima)),
                "{n} values"
            );
            assert_eq!(bits(&nf4.dequantize()), bits(&back), "{n} values");
        }
    }
}
