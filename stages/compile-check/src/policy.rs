//! What generated tests may not contain. Pure.
//!
//! Hygiene, not a boundary: what slips through is held by the sandbox. What
//! this keeps out is code whose verdict would depend on the machine (files, processes, the network, variables at compile
//! time) or that reaches past the language (linking, inline assembly).

use proc_macro2::{Delimiter, TokenStream, TokenTree};

const MACROS: [&str; 8] =
    ["include", "include_str", "include_bytes", "env", "option_env", "asm", "global_asm", "naked_asm"];
/// Words that have no other use: refused wherever they stand, because a macro may carry them to their place.
const WORDS: [&str; 12] = [
    "include_str",
    "include_bytes",
    "option_env",
    "global_asm",
    "naked_asm",
    "link_section",
    "link_name",
    "link_ordinal",
    "no_mangle",
    "export_name",
    "global_allocator",
    // Names of the function's own crate: `vec!` would not be the standard library's any more.
    "macro_export",
];
const STD_MODULES: [&str; 7] = ["arch", "env", "fs", "include", "net", "os", "process"];
const CORE_MODULES: [&str; 3] = ["arch", "env", "include"];
const TOKIO_MODULES: [&str; 4] = ["fs", "net", "process", "signal"];
const ATTRIBUTES: [&str; 10] = [
    "path",
    "link",
    "link_name",
    "link_section",
    "link_ordinal",
    "no_mangle",
    "export_name",
    "used",
    "global_allocator",
    "naked",
];
/// Names of the code that the harness puts beside the tests.
const OWN_PREFIX: &str = "__testforge";

/// The first thing in the tests that is not allowed, with the reason; `None` also for text that is not Rust at all.
pub fn refusal(tests: &str) -> Option<String> {
    let tokens: TokenStream = tests.parse().ok()?;
    in_stream(tokens)
}

fn in_stream(stream: TokenStream) -> Option<String> {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    for (i, token) in tokens.iter().enumerate() {
        let rest = &tokens[i..];
        let found = match token {
            TokenTree::Ident(ident) => ident_reason(&ident.to_string(), rest),
            TokenTree::Punct(punct) if punct.as_char() == '#' => attribute_reason(&rest[1..]),
            TokenTree::Group(group) => in_stream(group.stream()),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn ident_reason(name: &str, rest: &[TokenTree]) -> Option<String> {
    let bare = name.strip_prefix("r#").unwrap_or(name);
    if bare.starts_with(OWN_PREFIX) {
        return Some(format!("`{bare}`: a name of the harness itself"));
    }
    if WORDS.contains(&bare) {
        return Some(format!("`{bare}`: reads a file, depends on the environment or reaches past the tests"));
    }
    let is_call = is_punct(rest.get(1), '!') && matches!(rest.get(2), Some(TokenTree::Group(_)));
    if is_call && MACROS.contains(&bare) {
        let reason = match bare {
            "env" | "option_env" => "depends on the environment of the compiler",
            "include" | "include_str" | "include_bytes" => "reads a file",
            _ => "inline assembly",
        };
        return Some(format!("`{bare}!`: {reason}"));
    }
    match bare {
        "std" | "core" | "tokio" => {
            let modules: &[&str] = match bare {
                "std" => &STD_MODULES,
                "core" => &CORE_MODULES,
                _ => &TOKIO_MODULES,
            };
            let is_path = is_punct(rest.get(1), ':') && is_punct(rest.get(2), ':');
            if bare == "std" && !is_path || is_path && is_punct(rest.get(3), '$') {
                return Some(format!(
                    "`{bare}` under another name, or with a path that a macro puts together"
                ));
            }
            let module = if is_path { forbidden_in(&rest[3..], modules)? } else { return None };
            Some(format!(
                "`{bare}::{module}`: files, processes, variables, the network and the machine are out of bounds"
            ))
        }
        "extern" if !matches!(rest.get(1), Some(TokenTree::Ident(word)) if word == "crate") => {
            Some("`extern`: foreign functions".to_owned())
        }
        _ => None,
    }
}

/// The module of the list that the rest of a path names: `fs`, `{fs, io}`, `{io, {fs::File}}`. A glob brings all of them,
/// and so does another name for the root.
fn forbidden_in(rest: &[TokenTree], modules: &[&str]) -> Option<String> {
    match rest.first()? {
        TokenTree::Ident(ident) if ident == "self" => {
            matches!(rest.get(1), Some(TokenTree::Ident(word)) if word == "as").then(|| "self".to_owned())
        }
        TokenTree::Ident(ident) => Some(plain(ident)).filter(|name| modules.contains(&name.as_str())),
        TokenTree::Punct(punct) if punct.as_char() == '*' => Some("*".to_owned()),
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
            let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut parts = tokens.split(|token| is_punct(Some(token), ','));
            parts.find_map(|part| forbidden_in(part, modules))
        }
        _ => None,
    }
}

/// `#[...]`, `#![...]`, with whatever is nested inside (`cfg_attr`, `unsafe(...)`).
fn attribute_reason(rest: &[TokenTree]) -> Option<String> {
    let at = usize::from(is_punct(rest.first(), '!'));
    let TokenTree::Group(group) = rest.get(at)? else { return None };
    if group.delimiter() != Delimiter::Bracket {
        return None;
    }
    let name = attribute_name(group.stream())?;
    Some(format!("`#[{name}]`: reaches past the language"))
}

fn attribute_name(stream: TokenStream) -> Option<String> {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    tokens.iter().enumerate().find_map(|(i, token)| match token {
        TokenTree::Ident(ident) => {
            let name = plain(ident);
            // As a word among others `path` is harmless; as a setting it reads another file.
            let counts = name != "path" || is_punct(tokens.get(i + 1), '=');
            Some(name).filter(|name| counts && ATTRIBUTES.contains(&name.as_str()))
        }
        TokenTree::Group(group) => attribute_name(group.stream()),
        _ => None,
    })
}

fn plain(ident: &proc_macro2::Ident) -> String {
    let name = ident.to_string();
    name.strip_prefix("r#").map(str::to_owned).unwrap_or(name)
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_outside_is_refused() {
        for code in [
            "const X: &str = include_str!(\"/etc/passwd\");",
            "#[test] fn t() { let x = std::env!(\"HOME\"); }",
            "#[test] fn t() { assert!(option_env!(\"CI\").is_none()); }",
            "#[test] fn t() { ::std::process::exit(0); }",
            "use std::process;",
            "use std::{collections::HashMap, fs};",
            "use std::{fs::File, io::Read};",
            "use std as s;",
            "use std::os::fd::FromRawFd;",
            "use tokio::net::TcpStream;",
            "extern \"C\" { fn exit(code: i32) -> !; }",
            "unsafe extern { fn exit(code: i32) -> !; }",
            "unsafe extern \"C\" { fn exit(code: i32) -> !; }",
            "#[path = \"/etc/passwd\"] mod x;",
            "#[cfg_attr(test, path = \"x.rs\")] mod x;",
            "#[link(name = \"c\")] extern \"C\" {}",
            "#[unsafe(link_section = \".init_array\")] static X: u8 = 0;",
            "#[no_mangle] fn main() {}",
            "macro_rules! m { () => { std::process::abort() } }",
            "#[test] fn t() { unsafe { core::arch::asm!(\"nop\") } }",
            "#[test] fn t() { crate::__testforge::out_of_fuel(); }",
            "macro_rules! call { ($f:ident) => { $f!(\"/etc/passwd\") } } call!(include_str);",
            "macro_rules! attr { ($a:meta) => { #[$a] static X: u8 = 0; } } attr!(link_section = \".x\");",
            "macro_rules! abi { ($a:literal) => { extern $a { fn exit(code: i32) -> !; } } } abi!(\"C\");",
            "macro_rules! m { ($m:ident) => { std::$m::exit(0) } } m!(process);",
            "macro_rules! m { ($s:ident) => { $s::process::exit(0) } } m!(std);",
            "#[test] fn t() { assert!(std::env::var(\"CI\").is_err()); }",
            "fn r#include_str() {}",
            "use std::*;",
            "use std::{*};",
            "use std::{self as s};",
            "use std::{{fs}};",
            "use std::{io, {net::TcpStream}};",
            "use core::include as i;",
            "use core::{fmt, env as e};",
            "use core::arch::asm as a;",
            "#[macro_export] macro_rules! vec { () => { 1 } }",
            "macro_rules! attr { ($a:meta) => { #[$a] macro_rules! vec { () => { 1 } } } } attr!(macro_export);",
        ] {
            assert!(refusal(code).is_some(), "{code}");
        }
    }

    #[test]
    fn ordinary_tests_are_not() {
        for code in [
            "use super::*; use std::collections::HashMap; #[test] fn t() { assert_eq!(f(1), 2); }",
            "#[test] fn t() { let process = 1; let fs = process; assert_eq!(fs, 1); }",
            "#[test] fn t() { unsafe { assert_eq!(f(&1), 1) } }",
            "#[test] #[should_panic(expected = \"path\")] fn t() { env(); }",
            "/// Of a #[path].\n#[test] fn t() { assert_eq!(include(1), 1); }",
            "use std::{io, path::Path}; #[tokio::test] async fn t() { tokio::time::pause(); }",
            "#[test] fn t() { let env = 1; assert!(env != 2); }",
            "use std::io::{self, Write}; use std::fmt::*; use std::{io::*, fmt::{self as f}};",
            "macro_rules! m { ($e:expr) => { assert!($e) } } #[test] fn t() { m!(!f(1)); }",
            "use core::fmt::Write; #[test] fn t() { let include = core::cmp::max(1, 2); assert!(include as f64 != 1.0); }",
            "not rust at all \"",
            "",
        ] {
            assert_eq!(refusal(code), None, "{code}");
        }
    }
}
