/// Sums every `stride`-th value; a stride of zero counts as one.
// focal
pub fn sum_stride(values: &[i32], stride: usize) -> i64 {
    let stride = if stride == 0 { 1 } else { stride };
    let mut sum = 0i64;
    let mut at = 0;
    while at < values.len() {
        // SAFETY: `at` is below the length.
        sum += i64::from(unsafe { *values.get_unchecked(at) });
        at += stride;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_every_value() {
        assert_eq!(sum_stride(&[1, 2, 3, 4], 1), 10);
        assert_eq!(sum_stride(&[1, 2, 3, 4], 0), 10);
    }

    #[test]
    fn test_every_second_value() {
        assert_eq!(sum_stride(&[1, 2, 3, 4, 5], 2), 9);
    }

    #[test]
    fn test_a_stride_beyond_the_end_takes_the_first() {
        assert_eq!(sum_stride(&[7, 8], 5), 7);
    }

    #[test]
    fn test_nothing_sums_to_zero() {
        assert_eq!(sum_stride(&[], 3), 0);
    }

    #[test]
    fn test_large_values_do_not_overflow() {
        assert_eq!(sum_stride(&[i32::MAX, i32::MAX], 1), 2 * i64::from(i32::MAX));
    }
}
