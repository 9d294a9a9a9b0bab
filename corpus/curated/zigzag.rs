/// Maps signed numbers to unsigned ones so that small magnitudes stay small: 0, -1, 1, -2 become 0, 1, 2, 3.
// focal
pub const fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_small_values_alternate() {
        assert_eq!([0, -1, 1, -2, 2].map(zigzag), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn test_extremes() {
        assert_eq!(zigzag(i32::MAX), u32::MAX - 1);
        assert_eq!(zigzag(i32::MIN), u32::MAX);
    }

    proptest! {
        #[test]
        fn sign_is_the_lowest_bit(value in any::<i32>()) {
            prop_assert_eq!(zigzag(value) % 2 == 1, value < 0);
        }
    }
}
