/// Each number as its difference to the one before, the first as it is; differences wrap around.
// focal
pub fn delta_encode(numbers: &[i32]) -> Vec<i32> {
    let mut before = 0i32;
    let mut deltas = Vec::with_capacity(numbers.len());
    for &number in numbers {
        deltas.push(number.wrapping_sub(before));
        before = number;
    }
    deltas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_differences() {
        assert_eq!(delta_encode(&[3, 5, 4, 4]), [3, 2, -1, 0]);
    }

    #[test]
    fn test_nothing_and_one() {
        assert!(delta_encode(&[]).is_empty());
        assert_eq!(delta_encode(&[-7]), [-7]);
    }

    #[test]
    fn test_extremes_wrap() {
        assert_eq!(delta_encode(&[i32::MAX, i32::MIN]), [i32::MAX, 1]);
    }

    proptest! {
        #[test]
        fn adding_up_restores(numbers in prop::collection::vec(any::<i32>(), 0..20)) {
            let mut sum = 0i32;
            let restored: Vec<i32> = delta_encode(&numbers)
                .into_iter()
                .map(|delta| {
                    sum = sum.wrapping_add(delta);
                    sum
                })
                .collect();
            prop_assert_eq!(restored, numbers);
        }
    }
}
