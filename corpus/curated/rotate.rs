/// Moves every item `by` places to the right, items falling off the end coming in at the front. Negative goes left.
// focal
pub fn rotated<T: Clone>(items: &[T], by: isize) -> Vec<T> {
    if items.is_empty() {
        return Vec::new();
    }
    let shift = by.rem_euclid(items.len() as isize) as usize;
    let (head, tail) = items.split_at(items.len() - shift);
    tail.iter().chain(head).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_right_and_left() {
        assert_eq!(rotated(&[1, 2, 3, 4], 1), [4, 1, 2, 3]);
        assert_eq!(rotated(&[1, 2, 3, 4], -1), [2, 3, 4, 1]);
    }

    #[test]
    fn test_whole_turns_change_nothing() {
        assert_eq!(rotated(&["a", "b"], 2), ["a", "b"]);
        assert_eq!(rotated(&["a", "b"], -4), ["a", "b"]);
        assert_eq!(rotated(&['x'], 7), ['x']);
    }

    #[test]
    fn test_nothing_to_move() {
        assert!(rotated::<u8>(&[], 3).is_empty());
    }

    proptest! {
        #[test]
        fn turning_back_restores(items in prop::collection::vec(any::<u8>(), 0..9), by in -20isize..20) {
            prop_assert_eq!(rotated(&rotated(&items, by), -by), items);
        }
    }
}
