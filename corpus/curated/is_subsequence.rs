/// Whether the characters of `needle` occur in `text` in that order, with anything in between.
// focal
pub fn is_subsequence(needle: &str, text: &str) -> bool {
    let mut left = text.chars();
    needle.chars().all(|wanted| left.any(|c| c == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_letters_in_order() {
        assert!(is_subsequence("ace", "abcde"));
        assert!(!is_subsequence("aec", "abcde"));
    }

    #[test]
    fn test_each_letter_is_used_once() {
        assert!(!is_subsequence("aa", "a"));
        assert!(is_subsequence("aa", "aba"));
    }

    #[test]
    fn test_empty_needle_and_empty_text() {
        assert!(is_subsequence("", ""));
        assert!(is_subsequence("", "x"));
        assert!(!is_subsequence("x", ""));
    }

    proptest! {
        #[test]
        fn what_is_left_after_striking_out_is_found(text in "[a-c]{0,12}", strike in prop::collection::vec(any::<bool>(), 12)) {
            let kept: String = text.chars().zip(&strike).filter(|(_, s)| !**s).map(|(c, _)| c).collect();
            prop_assert!(is_subsequence(&kept, &text));
            let longer = format!("{text}z");
            prop_assert!(!is_subsequence(&longer, &text));
        }
    }
}
