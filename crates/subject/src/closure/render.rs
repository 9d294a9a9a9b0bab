//! Text of a fragment after its edits, moved to the left margin.

use crate::extract::lex::{Kind, Token};
use crate::extract::{Edit, Fragment, Text};

/// The fragment's own text: edits applied, indentation of its first line taken off every line outside literals.
pub(super) fn code(texts: &[Text], fragment: &Fragment, edits: &[Edit]) -> String {
    let content = &texts[fragment.text].content;
    let margin = margin(content, fragment.range.start);
    let mut all: Vec<&Edit> = fragment.edits.iter().chain(edits).collect();
    all.sort_by_key(|e| (e.range.start, e.range.end));
    let mut out = String::new();
    let mut at = fragment.range.start;
    for edit in all {
        if edit.range.start < at || edit.range.end > fragment.range.end {
            continue;
        }
        push(&mut out, content, at..edit.range.start, margin, &fragment.tokens);
        at = edit.range.end;
        if edit.text.is_empty() {
            at = swallow_line(&mut out, content, at);
        } else {
            out.push_str(&edit.text);
        }
    }
    push(&mut out, content, at..fragment.range.end, margin, &fragment.tokens);
    out
}

/// With documentation and attributes above it.
pub(super) fn with_attributes(fragment: &Fragment, code: &str, prose: bool) -> String {
    let mut lines = Vec::new();
    if prose {
        let doc = |l: &String| if l.is_empty() { "///".to_owned() } else { format!("/// {l}") };
        lines.extend(fragment.prose.iter().map(doc));
    }
    lines.extend(fragment.attributes.iter().cloned());
    lines.push(code.to_owned());
    lines.join("\n")
}

/// Indents by four spaces, leaving the inside of multi-line literals alone.
pub(super) fn indent(code: &str) -> String {
    let tokens = code.parse().map(crate::extract::lex::flatten).unwrap_or_default();
    let mut out = String::new();
    let mut offset = 0;
    for line in code.split_inclusive('\n') {
        if !line.trim().is_empty() && !in_literal(&tokens, offset) {
            out.push_str("    ");
        }
        out.push_str(line);
        offset += line.len();
    }
    out
}

/// Spaces before the first character of a range's line, when nothing else stands there.
fn margin(content: &str, at: usize) -> usize {
    let start = content[..at].rfind('\n').map_or(0, |i| i + 1);
    content[start..].len() - content[start..].trim_start_matches(' ').len()
}

fn push(out: &mut String, content: &str, range: std::ops::Range<usize>, margin: usize, tokens: &[Token]) {
    let mut offset = range.start;
    for (i, line) in content[range].split_inclusive('\n').enumerate() {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        let cut = if i == 0 || in_literal(tokens, offset) { 0 } else { spaces.min(margin) };
        out.push_str(&line[cut..]);
        offset += line.len();
    }
}

fn in_literal(tokens: &[Token], offset: usize) -> bool {
    tokens.iter().any(|t| t.kind == Kind::Literal && t.range.start < offset && offset < t.range.end)
}

/// After a deletion: when nothing else stands on the line, the line goes too. Returns where to go on.
fn swallow_line(out: &mut String, content: &str, at: usize) -> usize {
    let rest = &content[at..];
    let line_end = rest.find('\n').unwrap_or(rest.len());
    let before = out.rfind('\n').map_or(0, |i| i + 1);
    let alone = rest[..line_end].trim().is_empty() && out[before..].trim().is_empty();
    if !alone {
        // Deleted inside a line: the space that followed it goes, unless it is the only one left.
        if !out.ends_with([' ', '\n']) {
            return at;
        }
        return at + (rest.len() - rest.trim_start_matches(' ').len()).min(line_end);
    }
    out.truncate(before.saturating_sub(1));
    at + line_end
}
