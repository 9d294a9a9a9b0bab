//! How a row and its tests become one crate, and how test code is taken out of a completion.
//!
//! The crate's root holds `imports`, `items`, `function_code`; then bare tests stand in `mod tests { ... use super::*; }`,
//! and tests that bring their own `mod` stand as they are. The scaffold's imports come last in the module, so that inner
//! attributes of the tests stay valid and the tests keep their columns. A module that the row's own code names would change
//! what that code means if it stood at the root (`mod tokio`), so such modules go inside `mod tests` too.

use std::collections::BTreeSet;
use std::ops::Range;

use proc_macro2::{TokenStream, TokenTree};
use record::corpus::CorpusRow;
use syn::Item;

use crate::depth::parse_items;
use crate::tests::{Layout, layout};

/// One crate's source. Lines count from 1; ranges are half open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub source: String,
    /// Where `function_code` stands.
    pub function_lines: Range<u32>,
    /// Where the given tests stand (the row's unit tests when none were given). Line 1 of the tests is `start`.
    pub tests_lines: Range<u32>,
    /// Where the row's property tests stand, when they were placed too.
    pub property_lines: Option<Range<u32>>,
}

/// Puts a row and tests together: `Some(code)` places that code, `None` the row's own unit and property tests.
///
/// The tests need not parse: whoever compiles the source sees the compiler's own view of them.
pub fn assemble(row: &CorpusRow, tests: Option<&str>) -> Placed {
    let mut out = Source::default();
    for import in &row.context.imports {
        out.push(import);
    }
    for item in &row.context.items {
        out.push(item);
    }
    let function_lines = out.push(&row.function_code);
    let tests_lines = place(&mut out, row, "tests", tests.unwrap_or(&row.unit_tests));
    let property = if tests.is_none() { row.property_tests.as_deref() } else { None };
    let property_lines = property.map(|code| place(&mut out, row, "property_tests", code));
    Placed { source: out.text, function_lines, tests_lines, property_lines }
}

fn place(out: &mut Source, row: &CorpusRow, module: &str, code: &str) -> Range<u32> {
    let how = match parse_items("the tests", code) {
        Ok(file) => match layout(&file.items) {
            Layout::Modules if names_a_module(row, &file.items) => {
                Layout::Bare { super_glob: true, proptest_glob: false }
            }
            how => how,
        },
        Err(_) => Layout::Bare { super_glob: true, proptest_glob: false },
    };
    let Layout::Bare { super_glob, proptest_glob } = how else { return out.push(code) };
    out.push(&format!("#[cfg(test)]\nmod {module} {{"));
    let lines = out.push(code);
    let property = module == "property_tests";
    if super_glob || property {
        out.push("#[allow(unused_imports)]\nuse super::*;");
    }
    if proptest_glob || property {
        out.push("#[allow(unused_imports)]\nuse proptest::prelude::*;");
    }
    out.push("}");
    lines
}

/// Whether a path in the row's own code begins with, or goes through, the name of one of the modules.
fn names_a_module(row: &CorpusRow, items: &[Item]) -> bool {
    let modules = items.iter().filter_map(|item| match item {
        Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    });
    let names: BTreeSet<String> = modules.collect();
    let mut texts = row.context.imports.iter().chain(&row.context.items).chain([&row.function_code]);
    texts.any(|text| text.parse().is_ok_and(|tokens| holds_path_part(tokens, &names)))
}

fn holds_path_part(stream: TokenStream, names: &BTreeSet<String>) -> bool {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    tokens.iter().enumerate().any(|(i, token)| match token {
        TokenTree::Group(group) => holds_path_part(group.stream(), names),
        TokenTree::Ident(ident) => {
            let is_colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
            let goes_on = is_colon(tokens.get(i + 1)) && is_colon(tokens.get(i + 2));
            goes_on && names.contains(&ident.to_string())
        }
        _ => false,
    })
}

#[derive(Debug, Default)]
struct Source {
    text: String,
    lines: u32,
}

impl Source {
    /// Appends whole lines and says where they stand.
    fn push(&mut self, text: &str) -> Range<u32> {
        let start = self.lines + 1;
        self.text.push_str(text);
        if !text.ends_with('\n') {
            self.text.push('\n');
        }
        self.lines += u32::try_from(text.lines().count().max(1)).unwrap_or(u32::MAX);
        start..self.lines + 1
    }
}

/// Takes the test code out of a completion: the fenced blocks that hold tests, else the first Rust block, else the text
/// with the prose around it taken off, in lines that end with `\n`. What does not parse comes back as it is; nothing is repaired.
pub fn extract_code(completion: &str) -> String {
    // A mark that opens a file is no part of its code, and an error anywhere else.
    let text = completion.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let blocks = rust_blocks(&text);
    if !blocks.is_empty() {
        let with_tests: Vec<&str> =
            blocks.iter().map(String::as_str).filter(|block| holds_tests(block)).collect();
        if with_tests.is_empty() {
            return blocks.into_iter().next().unwrap_or_default();
        }
        return with_tests.join("\n");
    }
    let whole = trim_blank_lines(&text);
    if parse_items("the tests", whole).is_ok() {
        return whole.to_owned();
    }
    match without_prose(whole) {
        Some(code) if parse_items("the tests", code).is_ok() => code.to_owned(),
        _ => whole.to_owned(),
    }
}

fn holds_tests(code: &str) -> bool {
    code.contains("#[test]") || code.contains("::test") || code.contains("proptest!")
}

/// Contents of the fences whose language is Rust or not given. An open last fence reaches to the end.
fn rust_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, bool, Vec<&str>)> = None;
    for line in text.lines() {
        let bare = line.trim_start();
        match &mut open {
            Some((fence, is_rust, lines)) => {
                if bare.trim_end() == fence {
                    if *is_rust {
                        blocks.push(lines.join("\n"));
                    }
                    open = None;
                } else {
                    lines.push(line);
                }
            }
            None => {
                if let Some((fence, info)) = fence_start(bare) {
                    open = Some((fence, is_rust(info), Vec::new()));
                }
            }
        }
    }
    if let Some((_, true, lines)) = open {
        blocks.push(lines.join("\n"));
    }
    blocks.retain(|block| !block.trim().is_empty());
    blocks
}

fn fence_start(line: &str) -> Option<(String, &str)> {
    let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let info = line.trim_start_matches(mark);
    let length = line.len() - info.len();
    if length < 3 || (mark == '`' && info.contains('`')) {
        return None;
    }
    Some((line[..length].to_owned(), info.trim()))
}

fn is_rust(info: &str) -> bool {
    let language = info.split([',', ' ', '{']).next().unwrap_or_default().to_ascii_lowercase();
    matches!(language.as_str(), "" | "rust" | "rs" | "should_panic" | "ignore" | "no_run")
}

fn trim_blank_lines(text: &str) -> &str {
    text.trim_start_matches('\n').trim_end()
}

/// From the first line that starts an item to the last line that ends one at the left margin.
fn without_prose(text: &str) -> Option<&str> {
    const STARTS: [&str; 22] = [
        "#[",
        "#![",
        "use ",
        "mod ",
        "fn ",
        "pub ",
        "pub(",
        "async ",
        "unsafe ",
        "const ",
        "static ",
        "struct ",
        "enum ",
        "union ",
        "impl",
        "trait ",
        "type ",
        "extern ",
        "macro_rules!",
        "proptest!",
        "///",
        "//!",
    ];
    let mut start = None;
    let mut end = None;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let code = line.trim_end();
        if start.is_none() && STARTS.iter().any(|s| code.trim_start().starts_with(s)) {
            start = Some(offset);
        }
        offset += line.len();
        if start.is_some() && (code.ends_with('}') || code.ends_with(';')) {
            end = Some(offset);
        }
    }
    text.get(start?..end?).map(str::trim_end)
}

#[cfg(test)]
#[path = "placement_test.rs"]
mod test;
