/// `part` of `whole` in whole percent, rounded down; more than all is 100, and a part of nothing is 0.
// focal
pub fn percent_of(part: u64, whole: u64) -> u8 {
    if whole == 0 {
        return 0;
    }
    if part >= whole {
        return 100;
    }
    (u128::from(part) * 100 / u128::from(whole)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_percent_is_rounded_down() {
        assert_eq!(percent_of(1, 3), 33);
        assert_eq!(percent_of(2, 3), 66);
        assert_eq!(percent_of(999, 1_000), 99);
    }

    #[test]
    fn test_borders() {
        assert_eq!(percent_of(0, 5), 0);
        assert_eq!(percent_of(5, 5), 100);
        assert_eq!(percent_of(6, 5), 100);
        assert_eq!(percent_of(3, 0), 0);
    }

    #[test]
    fn test_large_numbers_do_not_overflow() {
        assert_eq!(percent_of(u64::MAX / 2, u64::MAX), 49);
    }

    proptest! {
        #[test]
        fn more_is_never_less(part in 0u64..1_000, whole in 1u64..1_000) {
            let percent = percent_of(part, whole);
            prop_assert!(percent <= percent_of(part + 1, whole));
            prop_assert_eq!(percent == 100, part >= whole);
        }
    }
}
