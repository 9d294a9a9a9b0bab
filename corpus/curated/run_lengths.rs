/// Consecutive equal characters with how often they occur.
// focal
pub fn run_lengths(text: &str) -> Vec<(char, usize)> {
    let mut runs: Vec<(char, usize)> = Vec::new();
    for symbol in text.chars() {
        match runs.last_mut() {
            Some((last, count)) if *last == symbol => *count += 1,
            _ => runs.push((symbol, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_runs_are_counted() {
        assert_eq!(run_lengths("aabccc"), vec![('a', 2), ('b', 1), ('c', 3)]);
    }

    #[test]
    fn test_empty_text_has_no_runs() {
        assert!(run_lengths("").is_empty());
    }

    #[test]
    fn test_a_character_may_come_back() {
        assert_eq!(run_lengths("éaé"), vec![('é', 1), ('a', 1), ('é', 1)]);
    }

    proptest! {
        #[test]
        fn runs_expand_to_the_text(text in "[ab]{0,20}") {
            let back: String = run_lengths(&text).iter().map(|(c, n)| c.to_string().repeat(*n)).collect();
            prop_assert_eq!(back, text);
        }
    }
}
