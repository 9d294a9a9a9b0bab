/// The largest value of each window of `width` neighbours.
// focal
pub fn sliding_max(values: &[i32], width: usize) -> Vec<i32> {
    if width == 0 {
        return Vec::new();
    }
    let mut candidates: std::collections::VecDeque<usize> = Default::default();
    let mut largest = Vec::new();
    for (i, value) in values.iter().enumerate() {
        while candidates.back().is_some_and(|&last| values[last] <= *value) {
            candidates.pop_back();
        }
        candidates.push_back(i);
        if candidates[0] + width <= i {
            candidates.pop_front();
        }
        if i + 1 >= width {
            largest.push(values[candidates[0]]);
        }
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_windows_of_three() {
        assert_eq!(sliding_max(&[1, 3, -1, -3, 5, 3], 3), [3, 3, 5, 5]);
    }

    #[test]
    fn test_width_one_copies() {
        assert_eq!(sliding_max(&[4, 2, 4], 1), [4, 2, 4]);
    }

    #[test]
    fn test_no_window_fits() {
        assert!(sliding_max(&[1, 2], 3).is_empty());
        assert!(sliding_max(&[1, 2], 0).is_empty());
        assert!(sliding_max(&[], 1).is_empty());
    }

    proptest! {
        #[test]
        fn equals_looking_at_every_window(values in prop::collection::vec(-9i32..9, 0..20), width in 1usize..6) {
            let expected: Vec<i32> = values.windows(width).filter_map(|w| w.iter().max().copied()).collect();
            prop_assert_eq!(sliding_max(&values, width), expected);
        }
    }
}
