/// Adds a member that is not there and takes out one that is; the list stays sorted. Says whether it is a member now.
// focal
pub fn toggle(members: &mut Vec<u32>, member: u32) -> bool {
    match members.binary_search(&member) {
        Ok(at) => {
            members.remove(at);
            false
        }
        Err(at) => {
            members.insert(at, member);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_in_and_out_again() {
        let mut members = vec![2, 4];
        assert!(toggle(&mut members, 3));
        assert_eq!(members, [2, 3, 4]);
        assert!(!toggle(&mut members, 3));
        assert_eq!(members, [2, 4]);
    }

    #[test]
    fn test_first_member() {
        let mut members = Vec::new();
        assert!(toggle(&mut members, 7));
        assert_eq!(members, [7]);
    }

    proptest! {
        #[test]
        fn members_are_those_toggled_an_odd_number_of_times(toggled in prop::collection::vec(0u32..8, 0..24)) {
            let mut members = Vec::new();
            for &member in &toggled {
                let is_member = toggle(&mut members, member);
                prop_assert_eq!(is_member, members.contains(&member));
            }
            let odd = |m: &u32| toggled.iter().filter(|t| *t == m).count() % 2 == 1;
            prop_assert_eq!(members, (0u32..8).filter(odd).collect::<Vec<u32>>());
        }
    }
}
