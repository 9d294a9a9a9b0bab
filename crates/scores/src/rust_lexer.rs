//! Rust's lexical grammar for texts that need not be Rust: never fails, drops comments.
//!
//! The longest operator wins, except that two angle brackets never merge
//! (`Vec<Vec<u8>>` ends in two tokens, and so does a shift), since without a parser the two can't be told apart.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token<'t> {
    pub(crate) text: &'t str,
    /// Where it starts, in bytes.
    pub(crate) start: usize,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Identifiers and keywords.
    Word,
    Lifetime,
    Literal,
    Punctuation,
}

const OPERATORS: [&str; 21] = [
    "...", "..=", "::", "->", "=>", "==", "!=", "<=", ">=", "&&", "||", "+=", "-=", "*=", "/=", "%=", "^=",
    "&=", "|=", "..", "$crate",
];

/// Strict and reserved keywords of the 2024 edition, and the weak ones that shape a test.
pub(crate) const KEYWORDS: [&str; 53] = [
    "Self",
    "abstract",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "macro_rules",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "struct",
    "super",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "union",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
];

pub(crate) fn is_keyword(word: &str) -> bool {
    KEYWORDS.binary_search(&word).is_ok()
}

/// All tokens of `text`; a comment, a string or a character that does not end reaches to the end of the text.
pub(crate) fn lex(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (length, kind) = if first.is_whitespace() {
            (first.len_utf8(), None)
        } else if let Some(length) = comment(rest) {
            (length, None)
        } else if let Some(length) = quoted(rest) {
            (length, Some(Kind::Literal))
        } else if first == '\'' {
            lifetime_or_char(rest)
        } else if first.is_ascii_digit() {
            (number(rest), Some(Kind::Literal))
        } else if is_word_start(first) {
            (word(rest), Some(Kind::Word))
        } else {
            (operator(rest), Some(Kind::Punctuation))
        };
        if let Some(kind) = kind {
            tokens.push(Token { text: &rest[..length], start: at, kind });
        }
        at += length;
    }
    tokens
}

/// The text with each run of white space and comments replaced by one space, or one line break where it holds one.
pub(crate) fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut end = 0;
    for token in lex(text) {
        if token.start > end && !out.is_empty() {
            out.push(if text[end..token.start].contains('\n') { '\n' } else { ' ' });
        }
        out.push_str(token.text);
        end = token.start + token.text.len();
    }
    out
}

fn is_word_start(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn is_word_part(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Bytes of the longest prefix whose characters all satisfy `accept`.
fn prefix(text: &str, accept: impl Fn(char) -> bool) -> usize {
    text.find(|c| !accept(c)).unwrap_or(text.len())
}

fn word(rest: &str) -> usize {
    let raw = rest.strip_prefix("r#").filter(|r| r.starts_with(is_word_start)).map_or(0, |_| 2);
    raw + prefix(&rest[raw..], is_word_part)
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let bytes = rest.as_bytes();
    let (mut depth, mut i) = (0usize, 0);
    while i + 1 < bytes.len() {
        match &bytes[i..i + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return Some(i);
        }
    }
    Some(rest.len())
}

/// A string literal of any kind, or a byte character.
fn quoted(rest: &str) -> Option<usize> {
    let letters = prefix(rest, |c| matches!(c, 'b' | 'c' | 'r'));
    let (start, body) = (&rest[..letters], &rest[letters..]);
    if !matches!(start, "" | "b" | "c" | "r" | "br" | "cr") {
        return None;
    }
    if start.ends_with('r') {
        let hashes = prefix(body, |c| c == '#');
        let inner = body[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let opened = letters + hashes + 1;
        return Some(inner.find(&end).map_or(rest.len(), |i| opened + i + end.len()));
    }
    if start == "b" && body.starts_with('\'') {
        return Some(letters + escaped(body, '\''));
    }
    body.starts_with('"').then(|| letters + escaped(body, '"'))
}

/// Length of a literal that starts and ends with `quote`, where a backslash takes the next character along.
fn escaped(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return i + 1;
        }
    }
    text.len()
}

fn lifetime_or_char(rest: &str) -> (usize, Option<Kind>) {
    let mut after = rest[1..].chars();
    let (second, third) = (after.next(), after.next());
    match second {
        Some(c) if is_word_start(c) && third != Some('\'') => {
            (1 + prefix(&rest[1..], is_word_part), Some(Kind::Lifetime))
        }
        Some('\\') => (escaped(rest, '\''), Some(Kind::Literal)),
        Some(c) if third == Some('\'') => (2 + c.len_utf8(), Some(Kind::Literal)),
        _ => (1, Some(Kind::Punctuation)),
    }
}

fn number(rest: &str) -> usize {
    let mut length = prefix(rest, is_word_part);
    let hexadecimal = rest.starts_with("0x");
    let after = &rest[length..];
    let fraction = after.strip_prefix('.').filter(|f| !f.starts_with(|c: char| c == '.' || is_word_start(c)));
    if let Some(fraction) = fraction {
        length += 1 + prefix(fraction, is_word_part);
    }
    let exponent = rest[..length].ends_with(['e', 'E']) && !hexadecimal;
    if exponent && rest[length..].starts_with(['+', '-']) {
        let digits = prefix(&rest[length + 1..], is_word_part);
        length += if digits > 0 { 1 + digits } else { 0 };
    }
    length
}

fn operator(rest: &str) -> usize {
    let found = OPERATORS.iter().find(|op| rest.starts_with(**op));
    found.map_or_else(|| rest.chars().next().map_or(0, char::len_utf8), |op| op.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(text: &str) -> Vec<&str> {
        lex(text).iter().map(|t| t.text).collect()
    }

    #[test]
    fn keywords_are_sorted_for_the_search() {
        assert!(KEYWORDS.is_sorted());
        assert!(is_keyword("fn") && is_keyword("while") && !is_keyword("fnord"));
    }

    #[test]
    fn literals_lifetimes_and_operators() {
        assert_eq!(
            texts("let r#try = b'\\'' + 'a' - 'x: 1e-3f64"),
            ["let", "r#try", "=", "b'\\''", "+", "'a'", "-", "'x", ":", "1e-3f64"]
        );
        assert_eq!(
            texts("0..=n 1.0 t.0.1 0xE+1"),
            ["0", "..=", "n", "1.0", "t", ".", "0.1", "0xE", "+", "1"]
        );
        assert_eq!(
            texts("r#\"a\"b\"# c\"d\" Vec<Vec<u8>>"),
            ["r#\"a\"b\"#", "c\"d\"", "Vec", "<", "Vec", "<", "u8", ">", ">"]
        );
    }

    #[test]
    fn comments_vanish_and_nest() {
        assert_eq!(texts("a /* x /* y */ z */ b // c\n/// d\ne"), ["a", "b", "e"]);
        assert_eq!(texts("a /* open"), ["a"]);
        assert_eq!(texts("\"// kept\""), ["\"// kept\""]);
    }

    proptest! {
        #[test]
        fn any_text_is_lexed_in_order(text in "\\PC{0,60}") {
            let mut at = 0;
            for token in lex(&text) {
                prop_assert!(!token.text.is_empty());
                at += text[at..].find(token.text).expect("tokens stand in the text in their order") + token.text.len();
            }
        }
    }
}
