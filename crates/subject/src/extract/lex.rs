//! Tokens with their place in the text, detached from the parser that made them.

use std::ops::Range;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Kind of a [`Token`]. Groups are flat: an opening token, the content, a closing token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ident,
    Literal,
    Punct(char),
    Open(char),
    Close(char),
}

/// A token and the bytes of its text that it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// Empty for punctuation and brackets.
    pub text: String,
    pub range: Range<usize>,
}

impl Token {
    pub fn is(&self, c: char) -> bool {
        self.kind == Kind::Punct(c)
    }

    pub fn is_ident(&self, name: &str) -> bool {
        self.kind == Kind::Ident && self.text == name
    }

    pub fn opens(&self, c: char) -> bool {
        self.kind == Kind::Open(c)
    }
}

/// Flattens a stream. Positions are bytes in the text that was parsed.
pub fn flatten(stream: TokenStream) -> Vec<Token> {
    let mut tokens = Vec::new();
    push(stream, &mut tokens);
    tokens
}

fn push(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let range = tree.span().byte_range();
        match tree {
            TokenTree::Ident(ident) => {
                tokens.push(Token { kind: Kind::Ident, text: ident.to_string(), range })
            }
            TokenTree::Literal(literal) => {
                tokens.push(Token { kind: Kind::Literal, text: literal.to_string(), range });
            }
            TokenTree::Punct(punct) => {
                tokens.push(Token { kind: Kind::Punct(punct.as_char()), text: String::new(), range });
            }
            TokenTree::Group(group) => {
                let Some((open, close)) = brackets(group.delimiter()) else {
                    push(group.stream(), tokens);
                    continue;
                };
                let (first, last) = (group.span_open().byte_range(), group.span_close().byte_range());
                tokens.push(Token { kind: Kind::Open(open), text: String::new(), range: first });
                push(group.stream(), tokens);
                tokens.push(Token { kind: Kind::Close(close), text: String::new(), range: last });
            }
        }
    }
}

fn brackets(delimiter: Delimiter) -> Option<(char, char)> {
    match delimiter {
        Delimiter::Parenthesis => Some(('(', ')')),
        Delimiter::Bracket => Some(('[', ']')),
        Delimiter::Brace => Some(('{', '}')),
        Delimiter::None => None,
    }
}

/// Index just after the bracket that closes the one at `open`.
pub fn after_group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Open(_) => depth += 1,
            Kind::Close(_) => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return i + 1;
                }
            }
            _ if depth == 0 => return i,
            _ => {}
        }
    }
    tokens.len()
}

/// Whether `::` stands at `i`.
pub fn is_path_separator(tokens: &[Token], i: usize) -> bool {
    tokens.get(i).is_some_and(|t| t.is(':'))
        && tokens.get(i + 1).is_some_and(|t| t.is(':') && t.range.start == tokens[i].range.end)
}

/// Tokens without comments and documentation: equal for texts that differ in layout alone. `None`: not Rust.
pub fn normalized(code: &str) -> Option<Vec<String>> {
    let stream: TokenStream = code.parse().ok()?;
    let tokens = flatten(stream);
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let is_doc = token.is('#')
            && tokens.get(at + 1).is_some_and(|t| t.opens('['))
            && tokens.get(at + 2).is_some_and(|t| t.is_ident("doc"));
        if is_doc {
            at = after_group(&tokens, at + 1);
            continue;
        }
        out.push(match token.kind {
            Kind::Ident | Kind::Literal => token.text.clone(),
            Kind::Punct(c) | Kind::Open(c) | Kind::Close(c) => c.to_string(),
        });
        at += 1;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_bytes_even_after_wide_characters() {
        let text = "const A: &str = \"äöü\"; fn b() {}";
        let tokens = flatten(text.parse().unwrap());
        let name = tokens.iter().find(|t| t.is_ident("b")).unwrap();
        assert_eq!(&text[name.range.clone()], "b");
        let open = tokens.iter().position(|t| t.opens('{')).unwrap();
        assert_eq!(after_group(&tokens, open), tokens.len());
    }

    #[test]
    fn layout_and_comments_do_not_matter() {
        let a = normalized("fn f( a : u8 ) { /* x */ a }");
        assert_eq!(a, normalized("/// Doc.\nfn f(a: u8) {\n a // y\n}"));
        assert_ne!(a, normalized("fn f(a: u8) { b }"));
    }
}
