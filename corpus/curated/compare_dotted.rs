/// Compares dotted numbers such as `1.10` and `1.9` part by part; missing parts count as 0, other text as 0 too.
// focal
pub fn compare_dotted(a: &str, b: &str) -> std::cmp::Ordering {
    let number = |part: Option<&str>| part.and_then(|p| p.parse::<u32>().ok()).unwrap_or(0);
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let (left, right) = (a.next(), b.next());
        if left.is_none() && right.is_none() {
            return std::cmp::Ordering::Equal;
        }
        let order = number(left).cmp(&number(right));
        if order.is_ne() {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Ordering;

    #[test]
    fn test_parts_are_numbers() {
        assert_eq!(compare_dotted("1.10", "1.9"), Ordering::Greater);
        assert_eq!(compare_dotted("2", "10"), Ordering::Less);
    }

    #[test]
    fn test_missing_parts_are_zero() {
        assert_eq!(compare_dotted("1.0", "1"), Ordering::Equal);
        assert_eq!(compare_dotted("1", "1.0.1"), Ordering::Less);
        assert_eq!(compare_dotted("", "0"), Ordering::Equal);
    }

    #[test]
    fn test_other_text_counts_as_zero() {
        assert_eq!(compare_dotted("1.x", "1.0"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn the_other_way_round_is_the_opposite(a in "[0-9]{1,2}(\\.[0-9]{1,2}){0,3}", b in "[0-9]{1,2}(\\.[0-9]{1,2}){0,3}") {
            prop_assert_eq!(compare_dotted(&a, &b), compare_dotted(&b, &a).reverse());
            let longer = format!("{a}.0");
            prop_assert_eq!(compare_dotted(&a, &longer), Ordering::Equal);
        }
    }
}
