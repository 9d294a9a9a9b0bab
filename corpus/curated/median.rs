/// The middle of the sorted values, or the mean of the two middle ones. Values that are no number are ignored.
// focal
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| !v.is_nan()).collect();
    if sorted.is_empty() {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { Some(sorted[middle]) } else { Some((sorted[middle - 1] + sorted[middle]) / 2.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_odd_number_of_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn test_even_number_of_values() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn test_nothing_to_take_the_middle_of() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[f64::NAN]), None);
    }

    #[test]
    fn test_not_a_number_is_ignored() {
        assert_eq!(median(&[f64::NAN, 5.0, 1.0, 9.0]), Some(5.0));
        assert_eq!(median(&[f64::INFINITY, 0.0, -1.0]), Some(0.0));
    }

    proptest! {
        #[test]
        fn as_many_values_lie_below_as_above(values in prop::collection::vec(-1.0e6f64..1.0e6, 1..20)) {
            let middle = median(&values).unwrap();
            let below = values.iter().filter(|v| **v < middle).count();
            let above = values.iter().filter(|v| **v > middle).count();
            prop_assert!(2 * below <= values.len() && 2 * above <= values.len());
        }
    }
}
