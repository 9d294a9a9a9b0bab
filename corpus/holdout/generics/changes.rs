use std::cmp::Ordering;

#[derive(Debug, PartialEq, Eq)]
pub enum Change<'a, K, V> {
    Added(&'a K, &'a V),
    Removed(&'a K),
    Replaced(&'a K, &'a V),
}

/// What turns `old` into `new`, in the order of the keys. Both are sorted by key, each key at most once.
// focal
pub fn changes<'a, K: Ord, V: PartialEq>(old: &'a [(K, V)], new: &'a [(K, V)]) -> Vec<Change<'a, K, V>> {
    let mut found = Vec::new();
    let (mut o, mut n) = (0, 0);
    while o < old.len() || n < new.len() {
        let order = match (old.get(o), new.get(n)) {
            (Some(was), Some(is)) => was.0.cmp(&is.0),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => {
                found.push(Change::Removed(&old[o].0));
                o += 1;
            }
            Ordering::Greater => {
                found.push(Change::Added(&new[n].0, &new[n].1));
                n += 1;
            }
            Ordering::Equal => {
                if old[o].1 != new[n].1 {
                    found.push(Change::Replaced(&new[n].0, &new[n].1));
                }
                o += 1;
                n += 1;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_equal_lists_have_no_changes() {
        assert_eq!(changes::<u8, u8>(&[], &[]), []);
        assert_eq!(changes(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 2)]), []);
    }

    #[test]
    fn test_from_and_to_nothing() {
        assert_eq!(changes(&[], &[(1, 'x'), (2, 'y')]), [Change::Added(&1, &'x'), Change::Added(&2, &'y')]);
        assert_eq!(changes(&[(1, 'x'), (2, 'y')], &[]), [Change::Removed(&1), Change::Removed(&2)]);
    }

    #[test]
    fn test_a_new_value_replaces() {
        assert_eq!(changes(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 3)]), [Change::Replaced(&"b", &3)]);
    }

    #[test]
    fn test_changes_come_in_the_order_of_keys() {
        let old = [(1, "one"), (3, "three"), (4, "four"), (9, "nine")];
        let new = [(0, "zero"), (3, "drei"), (4, "four"), (5, "five")];
        assert_eq!(
            changes(&old, &new),
            [
                Change::Added(&0, &"zero"),
                Change::Removed(&1),
                Change::Replaced(&3, &"drei"),
                Change::Added(&5, &"five"),
                Change::Removed(&9),
            ]
        );
    }
}
