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
}
