//! Tests of the placement.

use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};

use super::{assemble, extract_code};

fn row() -> CorpusRow {
    CorpusRow {
        id: "r".into(),
        function_code: "pub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}".into(),
        unit_tests: "#[test]\nfn adds() { assert_eq!(add(1, 2), 3); }".into(),
        property_tests: Some(
            "proptest! {\n    #[test]\n    fn p(a in 0..3) { prop_assert!(a < 3); }\n}\n".into(),
        ),
        context: RowContext {
            imports: vec!["use std::fmt;".into()],
            items: vec!["struct A;\nstruct B;".into()],
        },
        metadata: RowMetadata {
            crate_name: "c".into(),
            version: "1.0.0".into(),
            path: "src/lib.rs".into(),
            item: "add".into(),
            lines: [1, 3],
            license: "MIT".into(),
            complexity: 1,
            has_generics: false,
            has_lifetimes: false,
            is_async: false,
            is_unsafe: false,
            uses_macros: false,
            returns_result: false,
            source_class: SourceClass::Curated,
            property_class: None,
            oracle: Oracle::Human,
            link_tier: LinkTier::Curated,
            mutants_killed: 0,
            stratum: None,
            sha256: String::new(),
        },
    }
}

fn lines(source: &str, range: std::ops::Range<u32>) -> String {
    let skip = range.start as usize - 1;
    source.lines().skip(skip).take(range.len()).collect::<Vec<_>>().join("\n")
}

#[test]
fn ranges_point_at_what_they_name() {
    let row = row();
    let placed = assemble(&row, None);
    assert_eq!(lines(&placed.source, placed.function_lines.clone()), row.function_code);
    assert_eq!(lines(&placed.source, placed.tests_lines.clone()), row.unit_tests);
    assert_eq!(
        lines(&placed.source, placed.property_lines.clone().unwrap()),
        row.property_tests.clone().unwrap().trim_end()
    );
    assert!(syn::parse_file(&placed.source).is_ok());
    assert!(placed.source.contains("use proptest::prelude::*;"));
}

#[test]
fn given_tests_stand_alone() {
    let placed = assemble(&row(), Some("#![allow(unused)]\nuse super::*;\n#[test]\nfn a() {}"));
    assert_eq!(placed.source.matches("use super::*").count(), 1);
    assert!(placed.property_lines.is_none());
    assert!(syn::parse_file(&placed.source).is_ok(), "inner attributes stay first:\n{}", placed.source);
}

#[test]
fn a_module_of_its_own_is_placed_as_it_is() {
    let code = "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn a() {}\n}";
    let placed = assemble(&row(), Some(code));
    assert_eq!(placed.source.matches("mod tests").count(), 1);
    assert_eq!(lines(&placed.source, placed.tests_lines), code);
}

/// At the root `mod tokio` would take the place of the library, for the function too.
#[test]
fn a_module_that_the_function_names_does_not_come_between() {
    let mut row = row();
    row.function_code = "pub fn f() -> u32 {\n    cfg::VALUE\n}".into();
    let code = "mod cfg {\n    pub const VALUE: u32 = 1;\n}\nmod tests {\n    use super::*;\n    #[test]\n    fn a() {}\n}";
    let placed = assemble(&row, Some(code));
    assert_eq!(placed.source.matches("mod tests {").count(), 2, "{}", placed.source);
    assert_eq!(lines(&placed.source, placed.tests_lines), code);
    row.function_code = "/// Of cfg.\npub fn f(cfg: u32) -> u32 {\n    cfg\n}".into();
    assert_eq!(assemble(&row, Some(code)).source.matches("mod tests {").count(), 1);
    row.function_code = "/// Of cfg::VALUE.\npub fn f(a: u32) -> u32 {\n    a\n}".into();
    assert_eq!(assemble(&row, Some(code)).source.matches("mod tests {").count(), 1);
}

#[test]
fn text_that_does_not_parse_is_still_placed() {
    let placed = assemble(&row(), Some("fn broken( {"));
    assert_eq!(lines(&placed.source, placed.tests_lines), "fn broken( {");
    let empty = assemble(&row(), Some(""));
    assert_eq!(empty.tests_lines.len(), 1);
    assert!(syn::parse_file(&empty.source).is_ok());
}

#[test]
fn fences_and_prose_are_taken_off() {
    let test = "#[test]\nfn a() {}";
    assert_eq!(extract_code(test), test);
    assert_eq!(extract_code(&format!("Here you go:\n```rust\n{test}\n```\nHope it helps!")), test);
    assert_eq!(extract_code(&format!("```rust\n{test}")), test, "a cut answer has no closing fence");
    assert_eq!(extract_code(&format!("Here are the tests:\n\n{test}\n\nThey cover all of it.")), test);
    let two = format!("```rust\nfn add() {{}}\n```\nand\n```rs\n{test}\n```\n```toml\n[x]\n```");
    assert_eq!(extract_code(&two), test, "the block without tests is not test code");
    assert_eq!(extract_code("```\nfn x() {}\n```"), "fn x() {}");
    assert_eq!(extract_code("~~~~rust\nfn x() {}\n~~~~"), "fn x() {}");
}

#[test]
fn what_can_not_be_read_comes_back_unchanged() {
    assert_eq!(extract_code("I can't do that."), "I can't do that.");
    assert_eq!(extract_code("#[test]\nfn a() { assert_eq!(1,"), "#[test]\nfn a() { assert_eq!(1,");
    assert_eq!(extract_code(""), "");
}

#[test]
fn marks_of_files_are_no_code() {
    assert_eq!(extract_code("\u{feff}#[test]\r\nfn a() {}\r\n"), "#[test]\nfn a() {}");
}
