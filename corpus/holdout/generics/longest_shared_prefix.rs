/// The longest prefix that all words share, as a slice of the first word.
// focal
pub fn shared_prefix<'a>(words: &[&'a str]) -> &'a str {
    let Some((first, rest)) = words.split_first() else { return "" };
    let mut end = first.len();
    for word in rest {
        let same = first.char_indices().zip(word.chars()).take_while(|((_, a), b)| a == b);
        let length = same.map(|((at, c), _)| at + c.len_utf8()).last().unwrap_or(0);
        end = end.min(length);
    }
    &first[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_shares_a_stem() {
        assert_eq!(shared_prefix(&["interview", "internet", "interval"]), "inter");
    }

    #[test]
    fn test_one_word_shares_all_of_itself() {
        assert_eq!(shared_prefix(&["alone"]), "alone");
    }

    #[test]
    fn test_nothing_shared() {
        assert_eq!(shared_prefix(&["abc", "xyz"]), "");
        assert_eq!(shared_prefix(&[]), "");
        assert_eq!(shared_prefix(&["abc", ""]), "");
    }

    #[test]
    fn test_cuts_between_characters() {
        assert_eq!(shared_prefix(&["größe", "groß"]), "gr");
        assert_eq!(shared_prefix(&["éa", "éb"]), "é");
    }

    #[test]
    fn test_a_word_that_is_a_prefix() {
        assert_eq!(shared_prefix(&["car", "cart"]), "car");
        assert_eq!(shared_prefix(&["cart", "car"]), "car");
    }
}
