/// The lowest `width` bits of `value` in the opposite order; higher bits are lost.
// focal
pub fn mirror_bits(value: u32, width: u32) -> u32 {
    let mut mirrored = 0;
    for bit in 0..width.min(32) {
        if value & (1 << bit) != 0 {
            mirrored |= 1 << (width.min(32) - 1 - bit);
        }
    }
    mirrored
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_four_bits() {
        assert_eq!(mirror_bits(0b0001, 4), 0b1000);
        assert_eq!(mirror_bits(0b1011, 4), 0b1101);
    }

    #[test]
    fn test_higher_bits_are_lost() {
        assert_eq!(mirror_bits(0b11_0001, 4), 0b1000);
        assert_eq!(mirror_bits(u32::MAX, 0), 0);
    }

    #[test]
    fn test_all_bits() {
        assert_eq!(mirror_bits(1, 32), 1 << 31);
        assert_eq!(mirror_bits(1, 40), 1 << 31);
    }

    proptest! {
        #[test]
        fn twice_is_the_value_itself(value in any::<u32>(), width in 1u32..=32) {
            let low = value & (u32::MAX >> (32 - width));
            prop_assert_eq!(mirror_bits(mirror_bits(value, width), width), low);
            prop_assert_eq!(mirror_bits(value, 32), value.reverse_bits());
        }
    }
}
