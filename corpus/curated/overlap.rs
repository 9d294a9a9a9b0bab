/// The part that two half-open ranges have in common; `None` when that is empty.
// focal
pub fn overlap(a: (i32, i32), b: (i32, i32)) -> Option<(i32, i32)> {
    let start = a.0.max(b.0);
    let end = a.1.min(b.1);
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_ranges_that_meet_partly() {
        assert_eq!(overlap((0, 5), (3, 9)), Some((3, 5)));
        assert_eq!(overlap((3, 9), (0, 5)), Some((3, 5)));
    }

    #[test]
    fn test_one_inside_the_other() {
        assert_eq!(overlap((-10, 10), (2, 3)), Some((2, 3)));
    }

    #[test]
    fn test_neighbours_do_not_overlap() {
        assert_eq!(overlap((0, 3), (3, 6)), None);
        assert_eq!(overlap((5, 5), (0, 9)), None);
    }

    proptest! {
        #[test]
        fn what_is_common_lies_in_both(a in (-50i32..50, -50i32..50), b in (-50i32..50, -50i32..50), point in -50i32..50) {
            let inside = |range: (i32, i32)| range.0 <= point && point < range.1;
            prop_assert_eq!(overlap(a, b).is_some_and(inside), inside(a) && inside(b));
            prop_assert_eq!(overlap(a, b), overlap(b, a));
        }
    }
}
