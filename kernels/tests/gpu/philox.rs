//! The masks of the CPU, written out once more.

/// Whose masks.
pub(crate) struct Masks {
    pub(crate) seed: u64,
    pub(crate) step: u32,
    pub(crate) threshold: u32,
    pub(crate) layer: u32,
    pub(crate) modules: Vec<u32>,
    /// `T x 2`.
    pub(crate) samples: Vec<u32>,
    pub(crate) positions: Vec<u32>,
}

impl Masks {
    /// Which of `T x features` elements a module of the group keeps.
    pub(crate) fn kept(&self, module: usize, features: usize) -> Vec<bool> {
        const DROPOUT: u32 = 3;
        let seed = [self.seed as u32, (self.seed >> 32) as u32];
        let key = philox([DROPOUT, self.step, self.layer, self.modules[module]], seed);
        let mut kept = Vec::with_capacity(self.positions.len() * features);
        for (t, &position) in self.positions.iter().enumerate() {
            for feature in 0..features as u32 {
                let counter = [feature / 8, position, self.samples[2 * t], self.samples[2 * t + 1]];
                let word = philox(counter, [key[0], key[1]])[feature as usize % 8 / 2];
                let half = if feature % 2 == 0 { word & 0xFFFF } else { word >> 16 };
                kept.push(half >= self.threshold);
            }
        }
        kept
    }
}

/// Philox4x32-10 (J. K. Salmon and others, SC 2011).
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let (p, q) = (0xD251_1F53u64 * u64::from(c[0]), 0xCD9E_8D57u64 * u64::from(c[2]));
        c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[test]
fn known_answers() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
}
