/// Puts a value into a sorted list, after those that are equal, and says where it stands.
// focal
pub fn insert_sorted<T: PartialOrd>(list: &mut Vec<T>, value: T) -> usize {
    let place = list.partition_point(|held| *held <= value);
    list.insert(place, value);
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_between_two() {
        let mut list = vec![1, 5];
        assert_eq!(insert_sorted(&mut list, 3), 1);
        assert_eq!(list, [1, 3, 5]);
    }

    #[test]
    fn test_first_last_and_empty() {
        let mut list = Vec::new();
        assert_eq!(insert_sorted(&mut list, 'm'), 0);
        assert_eq!(insert_sorted(&mut list, 'a'), 0);
        assert_eq!(insert_sorted(&mut list, 'z'), 2);
        assert_eq!(list, ['a', 'm', 'z']);
    }

    #[test]
    fn test_after_equal_ones() {
        let mut list = vec![2, 2, 3];
        assert_eq!(insert_sorted(&mut list, 2), 2);
    }

    proptest! {
        #[test]
        fn one_by_one_sorts(values in prop::collection::vec(any::<i16>(), 0..16)) {
            let mut list = Vec::new();
            for &value in &values {
                let place = insert_sorted(&mut list, value);
                prop_assert_eq!(list[place], value);
            }
            let mut expected = values;
            expected.sort_unstable();
            prop_assert_eq!(list, expected);
        }
    }
}
