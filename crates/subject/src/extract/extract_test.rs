//! Reading a crate of several files.

use std::collections::BTreeMap;

use super::config::Config;
use super::{CaseKind, CrateFiles, ExtractError, ItemKind, Krate};

pub(crate) fn krate(files: &[(&str, &str)]) -> CrateFiles {
    CrateFiles {
        name: "sample".to_owned(),
        root: "src/lib.rs".to_owned(),
        files: files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect::<BTreeMap<_, _>>(),
        integration_tests: files
            .iter()
            .map(|(p, _)| (*p).to_owned())
            .filter(|p| p.starts_with("tests/"))
            .collect(),
        config: Config { features: ["std".to_owned()].into(), test: false },
    }
}

fn names(krate: &Krate) -> Vec<String> {
    krate.functions().into_iter().map(|f| krate.path_of(f)).collect()
}

#[test]
fn modules_are_followed_through_files_folders_and_path_attributes() {
    let files = krate(&[
        (
            "src/lib.rs",
            "mod a;\nmod b;\n#[path = \"odd/name.rs\"]\nmod c;\nmod d { pub mod e; pub fn inline() {} }\npub fn root() {}",
        ),
        ("src/a.rs", "pub mod inner;\npub fn in_a() {}"),
        ("src/a/inner.rs", "pub fn deep() {}"),
        ("src/b/mod.rs", "pub fn in_b() {}"),
        ("src/odd/name.rs", "pub fn in_c() {}"),
        ("src/d/e.rs", "pub fn in_e() {}"),
    ]);
    let found = Krate::read(&files).unwrap();
    assert_eq!(
        names(&found),
        ["a::inner::deep", "a::in_a", "b::in_b", "c::in_c", "d::e::in_e", "d::inline", "root"]
    );
    assert!(found.unreadable.is_empty());
}

#[test]
fn what_cfg_switches_off_is_left_out() {
    let files = krate(&[(
        "src/lib.rs",
        "#[cfg(feature = \"std\")] fn on() {}\n#[cfg(feature = \"serde\")] fn off() {}\n#[cfg(windows)] fn windows() {}\n\
         #[cfg(not(test))] fn outside_tests() {}\n#[cfg(test)] fn helper() {}",
    )]);
    let found = Krate::read(&files).unwrap();
    assert_eq!(names(&found), ["on", "outside_tests"]);
    assert!(found.items.iter().any(|i| i.name == "helper" && i.test_only));
}

#[test]
fn functions_are_free_ones_methods_and_sole_trait_methods() {
    let files = krate(&[(
        "src/lib.rs",
        "pub struct S; impl S { pub fn a(&self) {} fn b() {} }\nimpl std::str::FromStr for S { type Err = (); fn from_str(_: &str) -> Result<S, ()> { Ok(S) } }\n\
         trait T { fn x(); fn y(); } impl T for S { fn x() {} fn y() {} }\nfn main() {}",
    )]);
    assert_eq!(names(&Krate::read(&files).unwrap()), ["S::a", "S::b", "S::from_str"]);
}

#[test]
fn tests_examples_and_properties_are_cases() {
    let files = krate(&[
        (
            "src/lib.rs",
            "//! ```\n//! assert_eq!(sample::add(0, 0), 0);\n//! ```\n\n\
             /// Adds.\n///\n/// ```\n/// # use sample::add;\n/// assert_eq!(add(1, 2), 3);\n/// ```\n/// ```no_run\n/// add(1, 1);\n/// ```\n\
             pub fn add(a: i32, b: i32) -> i32 { a + b }\n\
             #[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn adds() { assert_eq!(add(1, 1), 2); }\n    #[test]\n    #[ignore]\n    fn slow() {}\n    \
             proptest! {\n        #![proptest_config(ProptestConfig::with_cases(9))]\n        #[test]\n        fn commutes(a in 0..9, b in 0..9) { prop_assert_eq!(add(a, b), add(b, a)); }\n        #[test]\n        fn zero(a in 0..9) { prop_assert_eq!(add(a, 0), a); }\n    }\n}",
        ),
        ("tests/it.rs", "#[test]\nfn from_outside() { assert_eq!(sample::add(2, 2), 4); }"),
    ]);
    let found = Krate::read(&files).unwrap();
    let cases: Vec<(CaseKind, &str)> = found.cases.iter().map(|c| (c.kind, c.name.as_str())).collect();
    assert_eq!(
        cases,
        [
            (CaseKind::DocExample, "sample_example"),
            (CaseKind::DocExample, "add_example"),
            (CaseKind::Unit, "adds"),
            (CaseKind::Property, "commutes"),
            (CaseKind::Property, "zero"),
            (CaseKind::Unit, "from_outside"),
        ]
    );
    assert_eq!(found.cases[1].owner, Some(found.functions()[0]));
    assert_eq!(found.cases[3].config.as_deref(), Some("#![proptest_config(ProptestConfig::with_cases(9))]"));
    assert_eq!(found.code_of(found.functions()[0]).prose, [" Adds.".trim()]);
    assert_eq!(found.items[0].kind, ItemKind::Fn);
}

#[test]
fn a_root_that_does_not_parse_is_an_error_with_its_line() {
    let error = Krate::read(&krate(&[("src/lib.rs", "fn ok() {}\nfn broken( {")])).unwrap_err();
    assert!(matches!(error, ExtractError::Syntax { line: 2, .. }), "{error}");
    let error = Krate::read(&krate(&[("src/main.rs", "")])).unwrap_err();
    assert!(matches!(error, ExtractError::NoRoot { .. }));
}

#[test]
fn a_module_that_does_not_parse_is_noted_and_the_rest_is_read() {
    let found =
        Krate::read(&krate(&[("src/lib.rs", "mod bad;\nmod gone;\nfn ok() {}"), ("src/bad.rs", "fn (")]))
            .unwrap();
    assert_eq!(names(&found), ["ok"]);
    assert_eq!(found.unreadable.len(), 2);
}

#[test]
fn files_that_would_never_end_are_noted_and_the_rest_is_read() {
    let deep = format!("fn deep() -> i32 {{ {}1 }}", "-".repeat(100_000));
    let files = [
        ("src/lib.rs", "mod deep;\nmod own;\n#[path = \"lib.rs\"]\nmod again;\nfn ok() {}"),
        ("src/deep.rs", deep.as_str()),
        ("src/own.rs", "#[path = \"own.rs\"]\nmod own;\nfn inside() {}"),
    ];
    let found = Krate::read(&krate(&files)).unwrap();
    assert_eq!(names(&found), ["own::inside", "ok"]);
    assert_eq!(found.unreadable, ["src/deep.rs", "src/own.rs", "src/lib.rs"]);
    let error = Krate::read(&krate(&[("src/lib.rs", &deep)])).unwrap_err();
    assert!(error.to_string().contains("nests too deep"), "{error}");
}

#[test]
fn marks_at_the_head_of_a_file_do_not_shift_positions() {
    let found =
        Krate::read(&krate(&[("src/lib.rs", "\u{feff}#!/usr/bin/env run\r\nfn ok() {\r\n}\r\n")])).unwrap();
    let code = found.code_of(found.functions()[0]);
    assert_eq!(&found.texts[0].content[code.range.clone()], "fn ok() {\n}");
    assert_eq!(found.lines_of(found.functions()[0]), [2, 3]);
}
