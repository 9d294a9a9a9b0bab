//! Random bits for dropout on the CPU: Philox4x32-10 (J. K. Salmon and others, SC 2011), many blocks at a time.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Half-words of a block.
const LANES: usize = 8;

/// Fills `out` with 16 random bits an element: those of the blocks whose counters are `[first + i, rest..]`, eight elements
/// each, word by word and the low half first. A last block is cut.
pub fn half_words(key: [u32; 2], first: u32, rest: [u32; 3], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "vector instructions that were just detected")]
        // SAFETY: the feature is there.
        return unsafe { vector::half_words(key, first, rest, out) };
    }
    plain(key, first, rest, out);
}

fn plain(key: [u32; 2], first: u32, rest: [u32; 3], out: &mut [u16]) {
    for (i, out) in out.chunks_mut(LANES).enumerate() {
        let words = block([first.wrapping_add(i as u32), rest[0], rest[1], rest[2]], key);
        for (lane, out) in out.iter_mut().enumerate() {
            *out = (words[lane / 2] >> (16 * (lane % 2))) as u16;
        }
    }
}

fn block(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..ROUNDS {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
    }
    c
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions store through pointers")]
mod vector {
    use super::{LANES, MULTIPLIER, ROUNDS, WEYL, plain};
    use std::arch::x86_64::{
        __m256i, _mm256_blend_epi32, _mm256_mul_epu32, _mm256_permute2x128_si256, _mm256_set_epi64x,
        _mm256_set1_epi64x, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_unpackhi_epi64,
        _mm256_unpacklo_epi64, _mm256_xor_si256,
    };

    /// Blocks of one vector: a word fills 64 bits, so that products need no shuffles.
    const WIDE: usize = 4;
    /// Vectors whose chains of products overlap.
    const GROUPS: usize = 2;

    #[target_feature(enable = "avx2")]
    pub(super) fn half_words(key: [u32; 2], first: u32, rest: [u32; 3], out: &mut [u16]) {
        let mut at = first;
        let mut chunks = out.chunks_exact_mut(LANES * WIDE * GROUPS);
        for out in &mut chunks {
            for (pair, out) in blocks(key, at, rest).iter().flatten().zip(out.chunks_exact_mut(2 * LANES)) {
                // SAFETY: sixteen elements of 16 bits.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), *pair) };
            }
            at = at.wrapping_add((WIDE * GROUPS) as u32);
        }
        plain(key, at, rest, chunks.into_remainder());
    }

    /// The blocks from `first` on, two to a vector.
    #[target_feature(enable = "avx2")]
    fn blocks(key: [u32; 2], first: u32, rest: [u32; 3]) -> [[__m256i; 2]; GROUPS] {
        let all = |word: u32| _mm256_set1_epi64x(i64::from(word));
        let multiplier = MULTIPLIER.map(all);
        let mut words = [[all(0), all(rest[0]), all(rest[1]), all(rest[2])]; GROUPS];
        for (group, words) in words.iter_mut().enumerate() {
            let counter = |i: usize| i64::from(first.wrapping_add((group * WIDE + i) as u32));
            words[0] = _mm256_set_epi64x(counter(3), counter(2), counter(1), counter(0));
        }
        let mut k = key;
        for round in 0..ROUNDS {
            if round > 0 {
                k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
            }
            let keys = k.map(all);
            for words in &mut words {
                // The upper halves are whatever products leave there: nothing reads them.
                let [a, b, c, d] = *words;
                let p0 = _mm256_mul_epu32(a, multiplier[0]);
                let p1 = _mm256_mul_epu32(c, multiplier[1]);
                let high0 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p0), _mm256_xor_si256(d, keys[1]));
                let high1 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p1), _mm256_xor_si256(b, keys[0]));
                *words = [high1, p1, high0, p0];
            }
        }
        words.map(|[a, b, c, d]| {
            let ab = _mm256_blend_epi32::<0b1010_1010>(a, _mm256_slli_epi64::<32>(b));
            let cd = _mm256_blend_epi32::<0b1010_1010>(c, _mm256_slli_epi64::<32>(d));
            let (even, odd) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
            [_mm256_permute2x128_si256::<0x20>(even, odd), _mm256_permute2x128_si256::<0x31>(even, odd)]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors published with Random123.
    #[test]
    fn known_answers() {
        assert_eq!(block([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let all = u32::MAX;
        assert_eq!(block([all; 4], [all; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn many_blocks_are_those_drawn_alone() {
        for (n, first) in
            [(0, 0), (1, 3), (8, 7), (63, 1), (64, 0), (100, u32::MAX - 3), (1000, 12_345), (200, u32::MAX)]
        {
            let (key, rest) = ([0x1234_5678, 0xFEDC_BA98], [n as u32 + 1, u32::MAX, 0x8000_0001]);
            let (mut many, mut alone) = (vec![0; n], vec![0; n]);
            half_words(key, first, rest, &mut many);
            plain(key, first, rest, &mut alone);
            assert_eq!(many, alone, "{n} elements from block {first}");
        }
    }
}
