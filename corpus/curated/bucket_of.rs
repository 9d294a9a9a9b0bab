/// Index of the bucket that a value falls into, given ascending upper bounds, each bound inside its bucket.
// focal
pub fn bucket_of(value: f64, bounds: &[f64]) -> Option<usize> {
    if value.is_nan() {
        return None;
    }
    bounds.iter().position(|bound| value <= *bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_bounds_belong_to_their_bucket() {
        assert_eq!(bucket_of(1.0, &[1.0, 2.5]), Some(0));
        assert_eq!(bucket_of(1.1, &[1.0, 2.5]), Some(1));
    }

    #[test]
    fn test_beyond_the_last_bound() {
        assert_eq!(bucket_of(2.6, &[1.0, 2.5]), None);
        assert_eq!(bucket_of(0.0, &[]), None);
    }

    #[test]
    fn test_not_a_number_has_no_bucket() {
        assert_eq!(bucket_of(f64::NAN, &[1.0]), None);
        assert_eq!(bucket_of(f64::NEG_INFINITY, &[1.0]), Some(0));
    }

    proptest! {
        #[test]
        fn the_bucket_holds_the_value(value in -5.0f64..15.0, steps in prop::collection::vec(0.1f64..3.0, 1..6)) {
            let bounds: Vec<f64> = steps.iter().scan(0.0, |sum, s| { *sum += s; Some(*sum) }).collect();
            match bucket_of(value, &bounds) {
                Some(i) => prop_assert!(value <= bounds[i] && (i == 0 || value > bounds[i - 1])),
                None => prop_assert!(value > bounds[bounds.len() - 1]),
            }
        }
    }
}
