/// Name of a spreadsheet column, counted from 0: A, B, ..., Z, AA, AB, ...
// focal
pub fn column_name(index: u32) -> String {
    let mut letters = Vec::new();
    let mut left = u64::from(index) + 1;
    while left > 0 {
        left -= 1;
        letters.push(char::from(b'A' + (left % 26) as u8));
        left /= 26;
    }
    letters.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_single_letters() {
        assert_eq!(column_name(0), "A");
        assert_eq!(column_name(25), "Z");
    }

    #[test]
    fn test_two_and_three_letters() {
        assert_eq!(column_name(26), "AA");
        assert_eq!(column_name(51), "AZ");
        assert_eq!(column_name(701), "ZZ");
        assert_eq!(column_name(702), "AAA");
    }

    #[test]
    fn test_largest_index() {
        assert_eq!(column_name(u32::MAX), "MWLQKWV");
    }

    proptest! {
        #[test]
        fn names_count_upwards(index in 0u32..1_000_000) {
            let (name, next) = (column_name(index), column_name(index + 1));
            prop_assert!((name.len(), &name) < (next.len(), &next));
            prop_assert!(name.bytes().all(|b| b.is_ascii_uppercase()));
        }
    }
}
