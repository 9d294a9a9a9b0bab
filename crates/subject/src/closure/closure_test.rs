//! Taking functions out of small crates.

use std::collections::BTreeSet;

use super::{Breadth, Closer, ClosureError, StandAlone};
use crate::extract::{CrateFiles, Krate, config::Config};

fn read(files: &[(&str, &str)]) -> Krate {
    let files = CrateFiles {
        name: "sample".to_owned(),
        root: "src/lib.rs".to_owned(),
        files: files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect(),
        integration_tests: Vec::new(),
        config: Config::default(),
    };
    Krate::read(&files).unwrap()
}

fn close(files: &[(&str, &str)], path: &str) -> Result<StandAlone, ClosureError> {
    let krate = read(files);
    let functions = krate.functions();
    let focal = *functions.iter().find(|f| krate.path_of(**f) == path).unwrap();
    let closer = Closer::new(&krate, BTreeSet::new());
    let cases: Vec<usize> =
        (0..krate.cases.len()).filter(|&c| closer.callees(c, &functions).contains(&focal)).collect();
    closer.close(focal, &cases, Breadth::Generous)
}

#[test]
fn helpers_constants_and_imports_come_along_and_nothing_else() {
    let alone = close(
        &[(
            "src/lib.rs",
            "use std::collections::{BTreeMap, HashMap};\nuse std::fmt;\nconst LIMIT: usize = 3;\nconst OTHER: usize = 4;\n\
             fn helper(n: usize) -> usize { n.min(LIMIT) }\nfn unused() -> HashMap<u8, u8> { HashMap::new() }\n\
             pub fn count(text: &str) -> BTreeMap<char, usize> {\n    let mut m = BTreeMap::new();\n    for c in text.chars() { *m.entry(c).or_insert(0) += helper(1); }\n    m\n}",
        )],
        "count",
    )
    .unwrap();
    assert_eq!(alone.imports, ["use std::collections::BTreeMap;"]);
    assert_eq!(alone.items, ["const LIMIT: usize = 3;", "fn helper(n: usize) -> usize { n.min(LIMIT) }"]);
    assert!(alone.function_code.starts_with("pub fn count"));
}

#[test]
fn paths_through_modules_become_flat() {
    let alone = close(
        &[
            ("src/lib.rs", "mod tools;\npub mod text {\n    use crate::tools::{self, double as twice};\n    pub(crate) fn go(n: u32) -> u32 {\n        twice(n) + tools::double(n) + crate::tools::half(n) + super::tools::half(n)\n    }\n}"),
            ("src/tools.rs", "pub(super) fn double(n: u32) -> u32 { n * 2 }\npub fn half(n: u32) -> u32 { n / 2 }"),
        ],
        "text::go",
    )
    .unwrap();
    assert_eq!(
        alone.function_code,
        "pub fn go(n: u32) -> u32 {\n    double(n) + double(n) + half(n) + half(n)\n}"
    );
    assert_eq!(
        alone.items,
        ["pub fn double(n: u32) -> u32 { n * 2 }", "pub fn half(n: u32) -> u32 { n / 2 }"]
    );
}

#[test]
fn a_method_brings_its_type_and_the_methods_that_are_called() {
    let alone = close(
        &[(
            "src/lib.rs",
            "/// A stack.\n#[derive(Debug, Clone, Serialize)]\npub struct Stack { /// Inside.\n    inner: Vec<u8> }\n\
             impl Stack {\n    pub fn new() -> Self { Stack { inner: Vec::new() } }\n    /// Pushes.\n    ///\n    /// ```\n    /// let mut s = sample::Stack::new();\n    /// s.push(1);\n    /// assert_eq!(s.top(), Some(1));\n    /// ```\n    #[inline]\n    pub fn push(&mut self, v: u8) {\n        self.inner.push(v);\n    }\n    pub fn top(&self) -> Option<u8> { self.inner.last().copied() }\n    pub fn unused(&self) {}\n}\n\
             impl PartialEq for Stack { fn eq(&self, o: &Self) -> bool { self.inner == o.inner } }",
        )],
        "Stack::push",
    )
    .unwrap();
    assert_eq!(
        alone.function_code,
        "impl Stack {\n    /// Pushes.\n    pub fn push(&mut self, v: u8) {\n        self.inner.push(v);\n    }\n}"
    );
    let items = alone.items.join("\n");
    assert!(items.contains("#[derive(Debug, Clone)]\npub struct Stack"), "{items}");
    assert!(items.contains("fn new") && items.contains("fn top") && !items.contains("unused"), "{items}");
    assert!(!items.contains("Inside") && items.contains("impl PartialEq for Stack"), "{items}");
    assert_eq!(
        alone.unit_tests,
        "#[test]\nfn push_example() {\n    let mut s = Stack::new();\n    s.push(1);\n    assert_eq!(s.top(), Some(1));\n}"
    );
}

#[test]
fn unit_tests_bring_their_helpers_and_imports() {
    let alone = close(
        &[(
            "src/lib.rs",
            "pub fn id(n: u8) -> u8 { n }\n#[cfg(test)]\nmod tests {\n    use super::id;\n    use std::collections::HashSet;\n    fn check(n: u8) { assert_eq!(id(n), n); }\n    fn other() {}\n    #[test]\n    fn works() {\n        // A comment stays.\n        let s: HashSet<u8> = HashSet::new();\n        check(s.len() as u8 + id(0));\n    }\n}",
        )],
        "id",
    )
    .unwrap();
    assert_eq!(
        alone.unit_tests,
        "use std::collections::HashSet;\n\nfn check(n: u8) { assert_eq!(id(n), n); }\n\n#[test]\nfn works() {\n    // A comment stays.\n    let s: HashSet<u8> = HashSet::new();\n    check(s.len() as u8 + id(0));\n}"
    );
    assert!(alone.imports.is_empty() && alone.items.is_empty());
}

#[test]
fn local_traits_come_with_the_impls_in_play() {
    let alone = close(
        &[(
            "src/lib.rs",
            "pub trait Shout { fn shout(&self) -> String; }\nimpl Shout for str { fn shout(&self) -> String { self.to_uppercase() } }\n\
             pub trait Far { fn far(&self); }\nimpl Far for str { fn far(&self) {} }\npub fn loud(s: &str) -> String { s.shout() }",
        )],
        "loud",
    )
    .unwrap();
    let items = alone.items.join("\n");
    assert!(
        items.contains("trait Shout") && items.contains("impl Shout for str") && !items.contains("Far"),
        "{items}"
    );
}

#[test]
fn macros_come_first_with_crate_paths_rewritten() {
    let alone = close(
        &[(
            "src/lib.rs",
            "mod deep { pub fn two() -> u8 { 2 } }\npub fn twice(n: u8) -> u8 { double!(n) }\nmacro_rules! double { ($e:expr) => { $e * $crate::deep::two() }; }",
        )],
        "twice",
    )
    .unwrap();
    assert_eq!(alone.items[0], "macro_rules! double { ($e:expr) => { $e * two() }; }");
    assert_eq!(alone.items[1], "pub fn two() -> u8 { 2 }");
}

#[test]
fn variants_brought_by_use_are_spelled_out() {
    let alone = close(
        &[("src/lib.rs", "use self::Side::*;\nenum Side { Left, Right }\nfn flip(s: Side) -> Side { match s { Left => Right, Right => Left } }")],
        "flip",
    )
    .unwrap();
    assert!(alone.function_code.contains("Side::Left => Side::Right"), "{}", alone.function_code);
}

#[test]
fn outside_crates_system_calls_and_name_conflicts_are_refused() {
    let outside = close(&[("src/lib.rs", "use regex::Regex;\nfn f(r: &Regex) -> bool { true }")], "f");
    assert_eq!(outside, Err(ClosureError::OutsideDependency("regex".to_owned())));
    let clock =
        close(&[("src/lib.rs", "use std::time::Instant;\nfn f() -> Instant { Instant::now() }")], "f");
    assert_eq!(clock, Err(ClosureError::Forbidden("std::time::Instant".to_owned())));
    let files = close(&[("src/lib.rs", "fn f() -> bool { std::fs::read(\"x\").is_ok() }")], "f");
    assert_eq!(files, Err(ClosureError::Forbidden("std::fs".to_owned())));
    let two = close(
        &[("src/lib.rs", "mod a { pub fn x() {} }\nmod b { pub fn x() {} }\nfn f() { a::x(); b::x(); }")],
        "f",
    );
    assert_eq!(two, Err(ClosureError::NameConflict("x".to_owned())));
}

#[test]
fn what_a_body_imports_is_at_hand_or_kept() {
    let alone = close(
        &[("src/lib.rs", "mod a { pub fn x() -> usize { 1 } }\nfn f() -> usize {\n    use a::x;\n    use alloc::vec::Vec;\n    let v: Vec<u8> = Vec::new();\n    x() + v.len()\n}")],
        "f",
    )
    .unwrap();
    assert_eq!(
        alone.function_code,
        "fn f() -> usize {\n    use std::vec::Vec;\n    let v: Vec<u8> = Vec::new();\n    x() + v.len()\n}"
    );
}

#[test]
fn everything_that_comes_out_parses() {
    let source = include_str!("select.rs");
    let krate = read(&[("src/lib.rs", source)]);
    let closer = Closer::new(&krate, BTreeSet::new());
    let mut closed = 0;
    for focal in krate.functions() {
        if let Ok(alone) = closer.close(focal, &[], Breadth::Lean) {
            let whole = [alone.imports, alone.items, vec![alone.function_code]].concat().join("\n");
            assert!(syn::parse_file(&whole).is_ok(), "{whole}");
            closed += 1;
        }
    }
    assert!(closed >= 5, "{closed}");
}
