/// What a meter of `digits` digits has counted between two readings, given that it may have rolled over once.
// focal
pub fn meter_difference(before: u64, after: u64, digits: u32) -> Option<u64> {
    let limit = 10u64.checked_pow(digits)?;
    if before >= limit || after >= limit {
        return None;
    }
    if after >= before {
        Some(after - before)
    } else {
        Some(limit - before + after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_counts_up() {
        assert_eq!(meter_difference(120, 150, 4), Some(30));
        assert_eq!(meter_difference(120, 120, 4), Some(0));
    }

    #[test]
    fn test_rolls_over() {
        assert_eq!(meter_difference(9990, 15, 4), Some(25));
        assert_eq!(meter_difference(1, 0, 1), Some(9));
    }

    #[test]
    fn test_a_reading_with_too_many_digits_is_refused() {
        assert_eq!(meter_difference(1000, 1, 3), None);
        assert_eq!(meter_difference(1, 1000, 3), None);
        assert_eq!(meter_difference(999, 999, 3), Some(0));
    }

    #[test]
    fn test_a_meter_with_too_many_digits_is_refused() {
        assert_eq!(meter_difference(1, 2, 20), None);
        assert_eq!(meter_difference(0, 0, 0), Some(0));
    }
}
