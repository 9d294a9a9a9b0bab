/// The item whose measure lies closest to `target`; of two equally close ones the smaller measure wins.
// focal
pub fn closest_by<T, I, F>(items: I, target: i64, measure: F) -> Option<T>
where
    I: IntoIterator<Item = T>,
    F: Fn(&T) -> i64,
{
    let mut best: Option<(u64, i64, T)> = None;
    for item in items {
        let value = measure(&item);
        let distance = value.abs_diff(target);
        let better = match &best {
            None => true,
            Some((d, v, _)) => distance < *d || (distance == *d && value < *v),
        };
        if better {
            best = Some((distance, value, item));
        }
    }
    best.map(|(_, _, item)| item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_finds_the_closest() {
        assert_eq!(closest_by(vec![1, 8, 20], 10, |n| *n), Some(8));
        assert_eq!(closest_by(vec![20, 13, 1], 10, |n| *n), Some(13));
    }

    #[test]
    fn test_a_tie_goes_to_the_smaller() {
        assert_eq!(closest_by(vec![12, 8], 10, |n| *n), Some(8));
        assert_eq!(closest_by(vec![8, 12], 10, |n| *n), Some(8));
    }

    #[test]
    fn test_measures_other_types() {
        assert_eq!(closest_by(["a", "abcd", "abcdefgh"], 3, |s| s.len() as i64), Some("abcd"));
    }

    #[test]
    fn test_nothing_is_closest_to_anything() {
        assert_eq!(closest_by(Vec::<i64>::new(), 0, |n| *n), None);
    }

    #[test]
    fn test_extremes_do_not_overflow() {
        assert_eq!(closest_by(vec![i64::MIN, 5], i64::MAX, |n| *n), Some(5));
    }
}
