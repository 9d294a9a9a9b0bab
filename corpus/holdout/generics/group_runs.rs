/// Borrows each maximal run of neighbours that have the same key.
// focal
pub fn group_runs<'a, T, K, F>(items: &'a [T], key: F) -> Vec<(K, &'a [T])>
where
    K: PartialEq,
    F: Fn(&'a T) -> K,
{
    let mut groups: Vec<(K, &'a [T])> = Vec::new();
    let mut start = 0;
    for i in 0..items.len() {
        let here = key(&items[i]);
        match groups.last_mut() {
            Some((last, run)) if *last == here => *run = &items[start..=i],
            _ => {
                start = i;
                groups.push((here, &items[i..=i]));
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_groups_neighbours() {
        let groups = group_runs(&[1, 3, 2, 4, 5], |n| n % 2);
        assert_eq!(groups, vec![(1, &[1, 3][..]), (0, &[2, 4][..]), (1, &[5][..])]);
    }

    #[test]
    fn test_one_group() {
        assert_eq!(group_runs(&["a", "b", "c"], |s| s.len()), vec![(1, &["a", "b", "c"][..])]);
    }

    #[test]
    fn test_no_items_no_groups() {
        let none: [u8; 0] = [];
        assert!(group_runs(&none, |n| *n).is_empty());
    }

    #[test]
    fn test_borrows_keys() {
        let words = ["x=1".to_string(), "x=2".to_string(), "y=3".to_string()];
        let groups = group_runs(&words, |w| w.split('=').next());
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].0, Some("x"));
        assert_eq!(groups[1].1, &words[2..]);
    }
}
