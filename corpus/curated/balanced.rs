/// Byte offset of the first bracket that has no partner, if there is one.
// focal
pub fn first_unbalanced(text: &str) -> Option<usize> {
    let mut open: Vec<(usize, char)> = Vec::new();
    for (at, bracket) in text.char_indices() {
        let expected = match bracket {
            '(' | '[' | '{' => {
                open.push((at, bracket));
                continue;
            }
            ')' => '(',
            ']' => '[',
            '}' => '{',
            _ => continue,
        };
        match open.pop() {
            Some((_, last)) if last == expected => {}
            _ => return Some(at),
        }
    }
    open.first().map(|(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_balanced_text_has_none() {
        assert_eq!(first_unbalanced(""), None);
        assert_eq!(first_unbalanced("f(a[1], {2})"), None);
    }

    #[test]
    fn test_wrong_partner() {
        assert_eq!(first_unbalanced("(]"), Some(1));
        assert_eq!(first_unbalanced("[}"), Some(1));
        assert_eq!(first_unbalanced("{)"), Some(1));
    }

    #[test]
    fn test_nothing_was_open() {
        assert_eq!(first_unbalanced("é)"), Some(2));
    }

    #[test]
    fn test_left_open() {
        assert_eq!(first_unbalanced("a(b(c)"), Some(1));
    }

    proptest! {
        #[test]
        fn text_between_its_brackets_stays_balanced(inner in "[a-z ]{0,8}", depth in 0usize..5) {
            let nested = format!("{}{inner}{}", "([{".repeat(depth), "}])".repeat(depth));
            prop_assert_eq!(first_unbalanced(&nested), None);
        }

        #[test]
        fn the_offset_is_that_of_a_bracket(text in "[a-c()\\[\\]{}]{0,12}") {
            if let Some(at) = first_unbalanced(&text) {
                let is_bracket = "()[]{}".contains(&text[at..=at]);
                prop_assert!(is_bracket);
            }
        }
    }
}
