/// Merges two sorted slices into one sorted vector; equal elements of `left` come first.
// focal
pub fn merge_sorted<T: Ord + Clone>(left: &[T], right: &[T]) -> Vec<T> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut l, mut r) = (0, 0);
    while l < left.len() && r < right.len() {
        if right[r] < left[l] {
            merged.push(right[r].clone());
            r += 1;
        } else {
            merged.push(left[l].clone());
            l += 1;
        }
    }
    merged.extend_from_slice(&left[l..]);
    merged.extend_from_slice(&right[r..]);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_interleaves() {
        assert_eq!(merge_sorted(&[1, 4, 6], &[2, 3, 7]), vec![1, 2, 3, 4, 6, 7]);
    }

    #[test]
    fn test_one_side_empty() {
        assert_eq!(merge_sorted(&[], &["a", "b"]), vec!["a", "b"]);
        assert_eq!(merge_sorted(&["a"], &[]), vec!["a"]);
        assert_eq!(merge_sorted::<u8>(&[], &[]), Vec::<u8>::new());
    }

    #[test]
    fn test_equal_elements_of_the_left_come_first() {
        #[derive(Debug, Clone, PartialEq, Eq)]
        struct Card(u8, char);
        impl PartialOrd for Card {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for Card {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.0.cmp(&other.0)
            }
        }
        let merged = merge_sorted(&[Card(1, 'l'), Card(2, 'l')], &[Card(1, 'r'), Card(2, 'r')]);
        let sides: String = merged.iter().map(|card| card.1).collect();
        assert_eq!(sides, "lrlr");
    }
}
