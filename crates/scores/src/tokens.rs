//! Tokenisers for BLEU.

use crate::rust_lexer;

/// How a text becomes the tokens whose n-grams are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokenizer {
    /// mteval-v13a as sacrebleu applies it: for prose; it tears Rust operators apart.
    V13a,
    /// Rust's lexical grammar, comments stripped, tokens joined by one space and split at white space: what sacrebleu
    /// computes with `tokenize="none"` on that text. A string literal with spaces inside counts as several tokens.
    Rust,
    /// White space alone.
    Whitespace,
}

impl Tokenizer {
    /// The part of a BLEU signature that names the tokeniser.
    pub fn signature(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::Rust => "rust-lexer.1",
            Self::Whitespace => "none",
        }
    }

    pub fn tokens(self, text: &str) -> Vec<String> {
        match self {
            Self::V13a => v13a(text),
            Self::Rust => {
                rust_lexer::lex(text).iter().flat_map(|token| words(token.text)).map(str::to_owned).collect()
            }
            Self::Whitespace => words(text).map(str::to_owned).collect(),
        }
    }
}

/// White space as Python's `str.split()` sees it: Unicode's, and the four ASCII information separators.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// The mteval-v13a rules: punctuation apart, but a period or comma between digits stays, and so does a dash after a letter.
fn v13a(text: &str) -> Vec<String> {
    let text = text.trim_end_matches(is_space);
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let mut spaced = String::with_capacity(text.len() + 16);
    spaced.push(' ');
    for c in text.chars() {
        if is_apart(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    spaced.push(' ');
    let is_digit = |c: char| c.is_ascii_digit();
    let is_stop = |c: char| c == '.' || c == ',';
    let line = replace_pairs(&spaced, |a, b| !is_digit(a) && is_stop(b), |a, b| vec![a, ' ', b, ' ']);
    let line = replace_pairs(&line, |a, b| is_stop(a) && !is_digit(b), |a, b| vec![' ', a, ' ', b]);
    let line = replace_pairs(&line, |a, b| is_digit(a) && b == '-', |a, b| vec![a, ' ', b, ' ']);
    words(&line).map(str::to_owned).collect()
}

/// Characters that always stand alone: ASCII punctuation but `'`, `,`, `-` and `.`.
fn is_apart(c: char) -> bool {
    c.is_ascii_punctuation() && !matches!(c, '\'' | ',' | '-' | '.')
}

/// Replaces pairs of neighbours from left to right; a character belongs to one pair at most.
fn replace_pairs(
    text: &str,
    matches: impl Fn(char, char) -> bool,
    replacement: impl Fn(char, char) -> Vec<char>,
) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len() + 8);
    let mut i = 0;
    while i < chars.len() {
        match chars.get(i + 1) {
            Some(&next) if matches(chars[i], next) => {
                out.extend(replacement(chars[i], next));
                i += 2;
            }
            _ => {
                out.push(chars[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v13a_keeps_numbers_and_parts_operators() {
        assert_eq!(v13a("x+=1.5, y."), ["x", "+", "=", "1.5", ",", "y", "."]);
        assert_eq!(v13a("a-b 3-4 \u{a0}z"), ["a-b", "3", "-", "4", "z"]);
    }

    #[test]
    fn rust_tokens_split_inside_strings_with_spaces() {
        assert_eq!(Tokenizer::Rust.tokens("f(\"a b\") // no"), ["f", "(", "\"a", "b\"", ")"]);
    }
}
