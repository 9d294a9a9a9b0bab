//! Comments, found in the text: they are no part of the syntax tree.

/// Whether any comment, doc comments too, holds at least one word.
pub(super) fn has_comment(code: &str) -> bool {
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let (skipped, comment) = token(rest, first);
        if comment && is_wordy(&rest[..skipped]) {
            return true;
        }
        rest = rest.get(skipped..).unwrap_or_default();
    }
    false
}

fn is_wordy(comment: &str) -> bool {
    comment.split(|c: char| !c.is_alphabetic()).any(|word| word.chars().count() >= 2)
}

/// Length of the token at the head of `text`, and whether it is a comment. `first` is the first character of `text`.
pub(crate) fn token(text: &str, first: char) -> (usize, bool) {
    if text.starts_with("//") {
        return (text.find('\n').unwrap_or(text.len()), true);
    }
    if text.starts_with("/*") {
        return (block_comment(text), true);
    }
    if let Some(length) = raw_string(text) {
        return (length, false);
    }
    match first {
        '"' => (quoted(text, '"'), false),
        '\'' => (char_or_lifetime(text), false),
        _ if first.is_alphabetic() || first == '_' => {
            let word = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
            (word, false)
        }
        _ => (first.len_utf8(), false),
    }
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// `r"..."`, `br#"..."#`, `cr"..."`.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        let rest = text.strip_prefix(prefix).unwrap_or_default();
        rest.trim_start_matches('#').starts_with('"') && text.starts_with(prefix)
    })?;
    let rest = &text[prefix.len()..];
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let open = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    let body = text.get(open..)?;
    Some(body.find(&close).map_or(text.len(), |end| open + end + close.len()))
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return i + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn char_or_lifetime(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => quoted(text, '\''),
        (Some(_), Some((i, '\''))) => i + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod test {
    use super::has_comment;

    #[test]
    fn comments_are_told_from_strings_and_lifetimes() {
        assert!(has_comment("fn a() {} // says why"));
        assert!(has_comment("/* a /* nested */ one */"));
        assert!(has_comment("/// Doc.\nfn a() {}"));
        assert!(has_comment("fn f<'a>(c: &'a char) { '\\''; } // after a lifetime and a quote"));
        assert!(!has_comment(
            "let s = \"http://example\"; let r = r#\"// not \"one\"\"#; let c = '\"'; let d = '/';"
        ));
        assert!(!has_comment("fn a() {} //\n// ---\n/**/"));
        assert!(!has_comment("\"open // string"));
    }
}
