//! Philox4x32-10, the counter-based generator behind every random number of this project.
//!
//! J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//! A number is a pure function of a key and a counter: no state, so neither the order of work nor the number of threads
//! can change it, and a GPU can draw the same numbers.
//!
//! # Layout
//! [`Stream::new(seed, purpose, [a, b, c])`](Stream::new) spends one block on the key of a stream:
//! key `[seed low, seed high]`, counter `[purpose, a, b, c]`, and the first two output words are the stream's key.
//! Inside a stream, number `i` is lane `i % 4` of the block with counter `[(i / 4) low, (i / 4) high, 0, 0]`;
//! [`Purpose::Dropout`] spends 16 bits an element: feature `f` at position `p` of sample `s` takes half-word `f % 8` (the low
//! half of a lane first) of the block with counter `[f / 8, p, s low, s high]`.
//! What `a`, `b`, `c` mean is up to each [`Purpose`].

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block: 128 random bits of a counter under a key.
#[must_use]
pub const fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    let mut round = 0;
    while round < ROUNDS {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let p0 = MULTIPLIER[0] as u64 * c[0] as u64;
        let p1 = MULTIPLIER[1] as u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        round += 1;
    }
    c
}

/// What a stream is for; with the seed it keeps streams apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights. `a`: index of the tensor in [`crate::names::expected`].
    Weights = 1,
    /// Initial adapters. `a`: layer, `b`: index of the projection.
    Adapter = 2,
    /// Dropout masks of adapters. `a`: step, `b`: layer, `c`: index of the projection.
    Dropout = 3,
    /// Order of the training rows. `a`, `b`: epoch low and high.
    Shuffle = 4,
    /// Sampling of tokens. `a`: sequence low, `b`: sequence high; number `i`: position.
    Sampling = 5,
}

/// A sequence of random numbers that can be read at any place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    pub const fn new(seed: u64, purpose: Purpose, words: [u32; 3]) -> Self {
        let block =
            philox4x32([purpose as u32, words[0], words[1], words[2]], [seed as u32, (seed >> 32) as u32]);
        Self { key: [block[0], block[1]] }
    }

    /// The key, for a backend that draws on its own device.
    pub const fn key(self) -> [u32; 2] {
        self.key
    }

    /// Numbers `4 * block .. 4 * block + 4`.
    pub const fn block(self, block: u64) -> [u32; 4] {
        philox4x32([block as u32, (block >> 32) as u32, 0, 0], self.key)
    }

    pub const fn u32_at(self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// In `0.0..1.0`, a multiple of 2^-24.
    pub fn uniform_at(self, index: u64) -> f32 {
        uniform(self.u32_at(index))
    }

    /// Uniform in `0..bound` with 64 random bits (numbers `2 * index` and `2 * index + 1`): the bias is below `bound` / 2^64.
    pub fn below(self, index: u64, bound: u64) -> u64 {
        let bits = u64::from(self.u32_at(2 * index)) << 32 | u64::from(self.u32_at(2 * index + 1));
        ((u128::from(bits) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal numbers `4 * block .. 4 * block + 4`, by the transform of Box and Muller in float64.
    pub fn normal_block(self, block: u64) -> [f32; 4] {
        let [a, b, c, d] = self.block(block);
        let [x, y] = box_muller(a, b);
        let [z, w] = box_muller(c, d);
        [x, y, z, w]
    }
}

/// `bits` as a number in `0.0..1.0`: its upper 24 bits, exact in float32.
pub fn uniform(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

fn box_muller(a: u32, b: u32) -> [f32; 2] {
    const SCALE: f64 = 1.0 / 4_294_967_296.0;
    let radius = libm::sqrt(-2.0 * libm::log((f64::from(a) + 1.0) * SCALE));
    let (sin, cos) = libm::sincos(std::f64::consts::TAU * f64::from(b) * SCALE);
    [(radius * cos) as f32, (radius * sin) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors published with Random123.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn streams_differ_by_every_part_of_their_name() {
        let base = Stream::new(1, Purpose::Weights, [2, 3, 4]);
        let others = [
            Stream::new(2, Purpose::Weights, [2, 3, 4]),
            Stream::new(1 | 1 << 32, Purpose::Weights, [2, 3, 4]),
            Stream::new(1, Purpose::Adapter, [2, 3, 4]),
            Stream::new(1, Purpose::Weights, [3, 3, 4]),
            Stream::new(1, Purpose::Weights, [2, 4, 4]),
            Stream::new(1, Purpose::Weights, [2, 3, 5]),
        ];
        for other in others {
            assert_ne!(base.block(0), other.block(0));
        }
    }

    #[test]
    fn numbers_have_the_moments_of_their_distribution() {
        let stream = Stream::new(7, Purpose::Sampling, [0; 3]);
        let n = 40_000u64;
        let uniforms: Vec<f64> = (0..n).map(|i| f64::from(stream.uniform_at(i))).collect();
        assert!(uniforms.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = uniforms.iter().sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.006, "{mean}");
        let normals: Vec<f64> = (0..n / 4).flat_map(|b| stream.normal_block(b)).map(f64::from).collect();
        let mean = normals.iter().sum::<f64>() / n as f64;
        let variance = normals.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let fourth = normals.iter().map(|x| x.powi(4)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03 && (fourth - 3.0).abs() < 0.2);
    }

    #[test]
    fn below_stays_below() {
        let stream = Stream::new(7, Purpose::Shuffle, [0; 3]);
        assert!((0..1000).all(|i| stream.below(i, 7) < 7));
        assert_eq!(stream.below(0, 1), 0);
    }
}
