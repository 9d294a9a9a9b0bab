/// The value of `key` in lines of `key = value`; `#` starts a comment, the last of several wins, an empty value is none.
// focal
pub fn find_setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut found = None;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("");
        let Some((name, value)) = line.split_once('=') else { continue };
        if name.trim() == key {
            let value = value.trim();
            found = if value.is_empty() { None } else { Some(value) };
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_finds_a_value() {
        assert_eq!(find_setting("a = 1\nb=two words\n", "b"), Some("two words"));
    }

    #[test]
    fn test_the_last_one_wins() {
        assert_eq!(find_setting("a=1\na=2", "a"), Some("2"));
        assert_eq!(find_setting("a=1\na=", "a"), None);
    }

    #[test]
    fn test_comments_do_not_count() {
        assert_eq!(find_setting("# a=1", "a"), None);
        assert_eq!(find_setting("a=1 # old", "a"), Some("1"));
    }

    #[test]
    fn test_missing_key() {
        assert_eq!(find_setting("ab=1\nno separator", "a"), None);
        assert_eq!(find_setting("", "a"), None);
    }

    #[test]
    fn test_a_value_may_hold_the_separator() {
        assert_eq!(find_setting("a=b=c", "a"), Some("b=c"));
    }
}
