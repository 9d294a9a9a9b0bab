/// A field of a comma-separated line: in quotes where it holds a comma, a quote or a line break, quotes doubled.
// focal
pub fn csv_field(text: &str) -> String {
    if !text.contains([',', '"', '\n', '\r']) {
        return text.to_string();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if c == '"' {
            quoted.push('"');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_plain_text_stays() {
        assert_eq!(csv_field("plain text"), "plain text");
        assert_eq!(csv_field(""), "");
    }

    #[test]
    fn test_separators_are_quoted() {
        assert_eq!(csv_field("a,b"), "\"a,b\"");
        assert_eq!(csv_field("two\nlines"), "\"two\nlines\"");
        assert_eq!(csv_field("\r"), "\"\r\"");
    }

    #[test]
    fn test_quotes_are_doubled() {
        assert_eq!(csv_field("say \"hi\""), "\"say \"\"hi\"\"\"");
    }

    proptest! {
        #[test]
        fn the_text_can_be_read_back(text in "[ab,\"\n]{0,12}") {
            let field = csv_field(&text);
            let read = match field.strip_prefix('"').and_then(|f| f.strip_suffix('"')) {
                Some(inner) => inner.replace("\"\"", "\""),
                None => field,
            };
            prop_assert_eq!(read, text);
        }
    }
}
