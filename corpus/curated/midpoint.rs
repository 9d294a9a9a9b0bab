/// The value halfway between two numbers, rounded towards the smaller one; never overflows.
// focal
pub fn midpoint(a: i64, b: i64) -> i64 {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let gap = high.wrapping_sub(low) as u64;
    low.wrapping_add((gap / 2) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_midpoint_rounds_down() {
        assert_eq!(midpoint(2, 5), 3);
        assert_eq!(midpoint(-5, -2), -4);
    }

    #[test]
    fn test_midpoint_of_extremes_does_not_overflow() {
        assert_eq!(midpoint(i64::MIN, i64::MAX), -1);
        assert_eq!(midpoint(i64::MAX, i64::MAX), i64::MAX);
    }

    proptest! {
        #[test]
        fn midpoint_lies_between_and_ignores_order(a in any::<i64>(), b in any::<i64>()) {
            let m = midpoint(a, b);
            prop_assert!(a.min(b) <= m && m <= a.max(b));
            prop_assert_eq!(m, midpoint(b, a));
        }
    }
}
