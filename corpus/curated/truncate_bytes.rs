/// The longest prefix of `text` that is at most `limit` bytes long and does not cut a character.
// focal
pub fn truncate_bytes(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_short_text_is_whole() {
        assert_eq!(truncate_bytes("abc", 3), "abc");
        assert_eq!(truncate_bytes("", 0), "");
    }

    #[test]
    fn test_long_text_is_cut() {
        assert_eq!(truncate_bytes("abcdef", 4), "abcd");
    }

    #[test]
    fn test_wide_characters_stay_whole() {
        assert_eq!(truncate_bytes("né", 2), "n");
        assert_eq!(truncate_bytes("日本", 5), "日");
        assert_eq!(truncate_bytes("日本", 2), "");
    }

    proptest! {
        #[test]
        fn truncated_text_is_the_longest_prefix_that_fits(text in "\\PC{0,12}", limit in 0usize..40) {
            let cut = truncate_bytes(&text, limit);
            prop_assert!(text.starts_with(cut));
            prop_assert!(cut.len() <= limit);
            prop_assert!(cut.len() == text.len() || cut.len() + 4 > limit);
        }
    }
}
