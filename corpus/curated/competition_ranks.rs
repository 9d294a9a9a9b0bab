/// Places in a contest, the highest score first: equal scores share a place, and the next place is skipped.
// focal
pub fn competition_ranks(scores: &[u32]) -> Vec<usize> {
    scores.iter().map(|score| 1 + scores.iter().filter(|other| *other > score).count()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_places() {
        assert_eq!(competition_ranks(&[10, 30, 20]), [3, 1, 2]);
    }

    #[test]
    fn test_equal_scores_share_a_place() {
        assert_eq!(competition_ranks(&[5, 9, 5, 1]), [2, 1, 2, 4]);
    }

    #[test]
    fn test_nobody_took_part() {
        assert!(competition_ranks(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn order_of_places_is_the_order_of_scores(scores in prop::collection::vec(0u32..20, 1..12)) {
            let places = competition_ranks(&scores);
            prop_assert!(places.contains(&1));
            for i in 0..scores.len() {
                for j in 0..scores.len() {
                    prop_assert_eq!(scores[i].cmp(&scores[j]), places[j].cmp(&places[i]));
                }
            }
        }
    }
}
