//! Which attributes stay on an item that leaves its crate.

use std::ops::Range;

use super::config::Config;
use super::lex::{Kind, Token, after_group};
use super::{Edit, Fragment};

const DERIVES: [&str; 9] =
    ["Debug", "Clone", "Copy", "PartialEq", "Eq", "PartialOrd", "Ord", "Hash", "Default"];
/// They change nothing for a crate of one row, or ask for something that it does not have.
const DROPPED: [&str; 20] = [
    "doc",
    "inline",
    "cold",
    "cfg_attr",
    "must_use",
    "deprecated",
    "allow",
    "warn",
    "deny",
    "forbid",
    "expect",
    "macro_export",
    "macro_use",
    "rustfmt",
    "clippy",
    "track_caller",
    "automatically_derived",
    "stable",
    "no_mangle",
    "diagnostic",
];

/// Splits tokens into outer attributes and the rest; those inside that do not stay become edits.
pub(super) fn fragment(text: usize, content: &str, tokens: &[Token], config: &Config) -> Fragment {
    let mut fragment = Fragment { text, ..Fragment::default() };
    let mut at = 0;
    while let Some(end) = attribute_end(tokens, at) {
        fragment.attributes.extend(kept(content, &tokens[at..end], config));
        at = end;
    }
    if let (Some(first), Some(last)) = (tokens.get(at), tokens.last()) {
        fragment.range = first.range.start..last.range.end;
    }
    while at < tokens.len() {
        let Some(end) = attribute_end(tokens, at) else {
            fragment.tokens.push(tokens[at].clone());
            at += 1;
            continue;
        };
        let range = range(&tokens[at..end]);
        let text = kept(content, &tokens[at..end], config).unwrap_or_default();
        if text != content[range.clone()] {
            fragment.edits.push(Edit { range, text });
        }
        at = end;
    }
    fragment
}

/// Whether the item is there, judged by its `cfg` attributes.
pub(super) fn is_on(tokens: &[Token], config: &Config) -> bool {
    let mut at = 0;
    while let Some(end) = attribute_end(tokens, at) {
        if name(&tokens[at..end]) == Some("cfg") && !cfg_holds(&tokens[at..end], config) {
            return false;
        }
        at = end;
    }
    true
}

/// The outer attributes of an item, each as its tokens.
pub(super) fn outer(tokens: &[Token]) -> Vec<&[Token]> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(end) = attribute_end(tokens, at) {
        found.push(&tokens[at..end]);
        at = end;
    }
    found
}

/// Last segment of the attribute's path: `test` of `#[tokio::test]`.
pub(super) fn last_name(attribute: &[Token]) -> Option<&str> {
    let open = attribute.iter().position(|t| t.opens('['))?;
    let path = attribute[open + 1..].iter().take_while(|t| t.kind == Kind::Ident || t.is(':'));
    path.filter(|t| t.kind == Kind::Ident).last().map(|t| t.text.as_str())
}

/// The value of `#[name = "value"]`.
pub(super) fn value(attribute: &[Token]) -> Option<&str> {
    let equals = attribute.iter().position(|t| t.is('='))?;
    attribute.get(equals + 1).filter(|t| t.kind == Kind::Literal).map(|t| t.text.as_str())
}

pub(super) fn name(attribute: &[Token]) -> Option<&str> {
    let open = attribute.iter().position(|t| t.opens('['))?;
    attribute.get(open + 1).filter(|t| t.kind == Kind::Ident).map(|t| t.text.as_str())
}

fn attribute_end(tokens: &[Token], at: usize) -> Option<usize> {
    if !tokens.get(at)?.is('#') {
        return None;
    }
    let open = if tokens.get(at + 1)?.is('!') { at + 2 } else { at + 1 };
    let named = tokens.get(open)?.opens('[') && tokens.get(open + 1)?.kind == Kind::Ident;
    named.then(|| after_group(tokens, open))
}

fn range(tokens: &[Token]) -> Range<usize> {
    match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => first.range.start..last.range.end,
        _ => 0..0,
    }
}

fn cfg_holds(attribute: &[Token], config: &Config) -> bool {
    let Some(open) = attribute.iter().position(|t| t.opens('(')) else { return false };
    let end = after_group(attribute, open);
    config.holds(&attribute[open + 1..end.saturating_sub(1).max(open + 1)])
}

/// The attribute as it stays, or `None`.
fn kept(content: &str, attribute: &[Token], config: &Config) -> Option<String> {
    let name = name(attribute)?;
    let whole = content[range(attribute)].to_owned();
    match name {
        // What is on needs no condition any more; what is off keeps it and stays off.
        "cfg" => (!cfg_holds(attribute, config)).then_some(whole),
        "derive" => {
            let names = attribute.iter().filter(|t| t.kind == Kind::Ident).map(|t| t.text.as_str());
            let known: Vec<&str> = names.filter(|n| DERIVES.contains(n)).collect();
            (!known.is_empty()).then(|| format!("#[derive({})]", known.join(", ")))
        }
        _ if DROPPED.contains(&name) => None,
        _ => Some(whole),
    }
}
