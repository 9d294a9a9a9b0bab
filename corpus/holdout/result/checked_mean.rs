/// Mean rounded to the nearest, halves away from zero; `None` when there is nothing or the sum overflows.
// focal
pub fn rounded_mean(values: &[i32]) -> Option<i32> {
    let count = i32::try_from(values.len()).ok().filter(|n| *n > 0)?;
    let mut sum = 0i32;
    for value in values {
        sum = sum.checked_add(*value)?;
    }
    let (whole, rest) = (sum / count, sum % count);
    if 2 * i64::from(rest.abs()) >= i64::from(count) { Some(whole + rest.signum()) } else { Some(whole) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_exact_mean() {
        assert_eq!(rounded_mean(&[1, 2, 3]), Some(2));
        assert_eq!(rounded_mean(&[-4]), Some(-4));
    }

    #[test]
    fn test_rounds_to_the_nearest() {
        assert_eq!(rounded_mean(&[1, 1, 2]), Some(1));
        assert_eq!(rounded_mean(&[1, 2, 2]), Some(2));
    }

    #[test]
    fn test_halves_go_away_from_zero() {
        assert_eq!(rounded_mean(&[1, 2]), Some(2));
        assert_eq!(rounded_mean(&[-1, -2]), Some(-2));
        assert_eq!(rounded_mean(&[0, 1]), Some(1));
    }

    #[test]
    fn test_nothing_has_no_mean() {
        assert_eq!(rounded_mean(&[]), None);
    }

    #[test]
    fn test_overflow_is_told() {
        assert_eq!(rounded_mean(&[i32::MAX, 1]), None);
        assert_eq!(rounded_mean(&[i32::MAX, i32::MIN]), Some(-1));
    }
}
