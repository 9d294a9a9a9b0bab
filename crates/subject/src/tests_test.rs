//! Tests of the reading of tests.

use super::{TestKind, TestSuite};

fn names(code: &str) -> Vec<String> {
    TestSuite::parse(code).unwrap().tests.into_iter().map(|test| test.name).collect()
}

#[test]
fn bare_items_get_the_scaffold_once() {
    let suite = TestSuite::parse("#[test] fn a() {} fn helper() {}").unwrap();
    assert_eq!(suite.modules.len(), 1);
    assert_eq!(suite.modules[0].items.len(), 3, "use super::* was added");
    let suite = TestSuite::parse("use super::*;\n#[test] fn a() {}").unwrap();
    assert_eq!(suite.modules[0].items.len(), 2, "it was there");
}

#[test]
fn a_wrapper_is_peeled_off_and_left_as_it_is() {
    let suite = TestSuite::parse("#[cfg(test)]\nmod tests { use super::*; #[test] fn a() {} }").unwrap();
    assert_eq!(suite.modules[0].name, "tests");
    assert!(suite.modules[0].attrs.is_empty());
    assert_eq!(suite.modules[0].items.len(), 2);
    assert_eq!(suite.tests[0].name, "a");
}

#[test]
fn nested_modules_give_nested_names() {
    assert_eq!(
        names("#[test] fn a() {} mod deep { #[test] fn a() {} mod er { #[test] fn a() {} } }"),
        ["a", "deep::a", "deep::er::a"]
    );
}

#[test]
fn a_function_beside_the_wrapper_keeps_the_wrapper_nested() {
    assert_eq!(names("fn add() {} #[cfg(test)] mod tests { #[test] fn a() {} }"), ["tests::a"]);
}

#[test]
fn two_wrappers_are_two_root_modules() {
    let code =
        "#[cfg(test)] mod tests { #[test] fn a() {} } #[cfg(test)] mod property_tests { #[test] fn a() {} }";
    assert_eq!(names(code), ["a", "property_tests::a"]);
}

#[test]
fn proptest_blocks_are_read_and_imported() {
    let suite = TestSuite::parse(
        "proptest! { #![proptest_config(c())] #[test] fn p(a in 0..3) {} fn helper(a in 0..3) {} }",
    )
    .unwrap();
    assert_eq!(suite.tests.len(), 1);
    assert!(matches!(suite.tests[0].kind, TestKind::Property));
    assert_eq!(suite.modules[0].items.len(), 3, "super and the prelude of proptest");
}

#[test]
fn endings_are_known() {
    let suite = TestSuite::parse(
        r#"
        #[test] #[should_panic(expected = "empty")] fn a() {}
        #[test] #[should_panic] fn b() {}
        #[test] #[ignore = "slow"] fn c() {}
        #[test] fn d() -> Result<(), String> { Ok(()) }
        #[test] fn e() -> () {}
        #[tokio::test(start_paused = true)] async fn f() {}
        "#,
    )
    .unwrap();
    let t = &suite.tests;
    assert_eq!(t[0].should_panic.as_ref().unwrap().expected.as_deref(), Some("empty"));
    assert_eq!(t[1].should_panic.as_ref().unwrap().expected, None);
    assert!(t[2].ignored);
    assert!(t[3].fallible && !t[4].fallible);
    assert!(t[5].is_async);
    assert!(matches!(&t[5].kind, TestKind::Tokio { args } if !args.is_empty()));
}

#[test]
fn an_attribute_of_another_runner_is_no_test_of_ours() {
    assert!(names("#[async_std::test] async fn a() {} #[rstest] fn b() {}").is_empty());
}

#[test]
fn what_is_not_rust_names_its_place() {
    let error = TestSuite::parse("#[test]\nfn a( {").unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
    assert!(TestSuite::parse("assert_eq!(1, 2)").is_err());
}
