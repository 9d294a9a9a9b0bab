/// Cuts a text into pieces of at most `most` characters; joined, they are the text again.
// focal
pub fn pieces(text: &str, most: usize) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() && most > 0 {
        let end = rest.char_indices().nth(most).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        found.push(piece);
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_last_piece_may_be_shorter() {
        assert_eq!(pieces("abcde", 2), ["ab", "cd", "e"]);
        assert_eq!(pieces("abcd", 2), ["ab", "cd"]);
    }

    #[test]
    fn test_characters_are_not_torn() {
        assert_eq!(pieces("äöü", 2), ["äö", "ü"]);
    }

    #[test]
    fn test_nothing_to_cut() {
        assert!(pieces("", 3).is_empty());
        assert!(pieces("abc", 0).is_empty());
        assert_eq!(pieces("abc", 9), ["abc"]);
    }

    proptest! {
        #[test]
        fn joined_they_are_the_text(text in "\\PC{0,20}", most in 1usize..8) {
            let cut = pieces(&text, most);
            prop_assert_eq!(cut.concat(), text.as_str());
            prop_assert!(cut.iter().all(|piece| (1..=most).contains(&piece.chars().count())));
        }
    }
}
