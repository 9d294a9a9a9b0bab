/// The values without repetition, in the order in which each was first seen.
// focal
pub fn first_seen<T: PartialEq + Clone>(values: &[T]) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for value in values {
        if !kept.contains(value) {
            kept.push(value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_later_copies_go() {
        assert_eq!(first_seen(&[3, 1, 3, 2, 1]), [3, 1, 2]);
    }

    #[test]
    fn test_nothing_repeats() {
        assert_eq!(first_seen(&["a", "b"]), ["a", "b"]);
        assert!(first_seen::<u8>(&[]).is_empty());
    }

    #[test]
    fn test_what_equals_nothing_stays() {
        assert_eq!(first_seen(&[f64::NAN, f64::NAN]).len(), 2);
    }

    proptest! {
        #[test]
        fn each_value_once_and_none_lost(values in prop::collection::vec(0u8..6, 0..16)) {
            let kept = first_seen(&values);
            prop_assert!(values.iter().all(|v| kept.iter().filter(|k| *k == v).count() == 1));
            prop_assert!(kept.iter().all(|k| values.contains(k)));
            prop_assert_eq!(first_seen(&kept), kept);
        }
    }
}
