use std::collections::BTreeMap;

macro_rules! tally {
    ($map:expr, $($key:expr),+ $(,)?) => {
        $( *$map.entry($key).or_insert(0usize) += 1; )+
    };
}

/// Counts, of each word, itself, its first letter and its length as text.
// focal
pub fn word_tally(words: &[&str]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in words {
        let Some(first) = word.chars().next() else { continue };
        tally!(counts, word.to_string(), format!("^{first}"), format!("#{}", word.chars().count()));
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_counts_three_things_per_word() {
        let counts = word_tally(&["ox"]);
        let expected = [("#2", 1), ("^o", 1), ("ox", 1)];
        assert_eq!(counts.iter().map(|(k, n)| (k.as_str(), *n)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn test_words_share_counts() {
        let counts = word_tally(&["ox", "owl", "ox"]);
        assert_eq!(counts["ox"], 2);
        assert_eq!(counts["^o"], 3);
        assert_eq!(counts["#2"], 2);
        assert_eq!(counts["#3"], 1);
    }

    #[test]
    fn test_empty_words_are_passed_over() {
        assert!(word_tally(&["", ""]).is_empty());
        assert!(word_tally(&[]).is_empty());
    }

    #[test]
    fn test_length_counts_characters() {
        assert_eq!(word_tally(&["né"])["#2"], 1);
    }
}
