//! Tests of the facts.

use record::compile::TestFacts;

use super::facts;
use crate::FocalFn;

fn of(function: &str, tests: &str) -> TestFacts {
    facts(tests, &FocalFn::parse(function).unwrap()).unwrap()
}

fn free(body: &str) -> TestFacts {
    of("fn focal(a: i32) -> i32 { a }", &format!("#[test] fn t() {{ {body} }}"))
}

fn counts(body: &str) -> (u32, u32, u32) {
    let facts = free(body);
    (facts.n_assertions, facts.n_assertions_on_result, facts.n_tautologies)
}

#[test]
fn assertions_on_the_result_follow_the_value() {
    assert_eq!(counts("assert_eq!(focal(1), 2); assert!(other(3) > 1);"), (2, 1, 0));
    assert_eq!(counts("let r = focal(1); let s = r + 1; assert_eq!(s, 3);"), (1, 1, 0));
    assert_eq!(counts("let r = focal(1); let r = other(); assert_eq!(r, 3);"), (1, 0, 0), "shadowed");
    assert_eq!(counts("let (a, b) = (focal(1), other()); assert!(a > b); assert!(b > 1);"), (2, 1, 0));
    assert_eq!(counts("let f = |x| focal(x); assert_eq!(f(1), 2);"), (1, 1, 0));
    assert_eq!(
        counts("let v: Vec<_> = xs.iter().map(|x| focal(*x)).collect(); assert_eq!(v, [1]);"),
        (1, 1, 0)
    );
    assert_eq!(
        counts("let v: Vec<_> = xs.iter().copied().map(focal).collect(); assert_eq!(v, [1]);"),
        (1, 1, 0)
    );
    assert_eq!(counts("let mut n = 0; for i in 0..3 { n += focal(i); } assert_eq!(n, 3);"), (1, 1, 0));
    assert_eq!(counts("assert!(matches!(focal(1), 2 | 3)); assert!(x, \"{}\", focal(1));"), (2, 1, 0));
    assert_eq!(counts("for (a, b) in [(1, 2)] { assert_eq!(super::focal(a), b); }"), (1, 1, 0));
    assert_eq!(counts("assert_close(1.0, focal(1)); assert_close(1.0, 2.0);"), (2, 1, 0));
    assert_eq!(counts("assert_relative_eq!(2.0, focal(1), epsilon = 0.1);"), (1, 1, 0));
}

#[test]
fn a_panic_under_a_condition_on_the_result_is_an_assertion() {
    assert_eq!(counts("match focal(1) { 2 => {} _ => panic!() }"), (1, 1, 0));
    assert_eq!(counts("if other() { unreachable!() }"), (1, 0, 0));
    assert_eq!(counts("let 2 = focal(1) else { panic!() };"), (1, 1, 0));
    assert_eq!(counts("panic!()"), (0, 0, 0));
}

#[test]
fn tautologies_can_not_fail() {
    for body in [
        "assert!(true);",
        "assert!(!false, \"never\");",
        "assert_eq!(1 + 1, 2);",
        "assert_ne!(\"a\", \"b\");",
        "assert_eq!(focal(1), focal(1));",
        "let r = focal(1); assert_eq!(r, r);",
        "let r = focal(1); assert!(r == r);",
        "let r = focal(1); assert!(r >= r);",
        "let r = focal(1); assert!(r.is_ok() || r.is_err());",
        "let r = focal(1); assert!(r > 1 || !(r > 1));",
        "assert!(v.len() >= 0);",
        "assert!(matches!(focal(1), _));",
        "let expected = 5; assert_eq!(expected, 5);",
        "assert_eq!(vec![1], vec![1]);",
        "debug_assert!(true);",
    ] {
        assert_eq!(free(body).n_tautologies, 1, "{body}");
    }
    for body in [
        "assert_eq!(focal(1), 1);",
        "let expected = 5; assert_eq!(focal(2), expected);",
        "let mut v = vec![]; v.push(focal(1)); assert_eq!(v, vec![1]);",
        "let r = focal(1); assert!(r > 0 || r < -5);",
        "assert!(focal(1) >= 0);",
        "assert!(matches!(focal(1), Some(_)));",
    ] {
        assert_eq!(free(body).n_tautologies, 0, "{body}");
    }
}

#[test]
fn edge_values_must_reach_a_call() {
    for body in [
        "focal(0);",
        "focal(i32::MAX);",
        "let z = 0; focal(z);",
        "focal(Some(0));",
        "focal(&[]);",
        "focal(\"\");",
        "focal(vec![]);",
        "focal(String::new());",
        "focal(&Vec::<i32>::new());",
        "focal(None);",
        "focal(255u8);",
        "for (input, _) in [(\"\", 1), (\"a\", 2)] { focal(input); }",
        "[0, 1].iter().for_each(|x| { focal(x); });",
        "check(0); fn check(n: i32) { focal(n); }",
        "let f = |x| focal(x); f(0);",
        "focal(Duration::from_secs(0));",
        "focal(\"\".to_string());",
    ] {
        assert!(free(body).has_edge_case, "{body}");
    }
    for body in [
        "focal(1);",
        "other(0); focal(2);",
        "assert_eq!(focal(3), 0);",
        "focal(a[0]);",
        "for (input, _) in [(\"x\", 0)] { focal(input); }",
        "let z = 0; let z = 5; focal(z);",
    ] {
        assert!(!free(body).has_edge_case, "{body}");
    }
    let helper = of("fn focal(a: i32) {}", "fn check(n: i32) { focal(n); } #[test] fn t() { check(0); }");
    assert!(helper.has_edge_case && helper.calls_focal);
}

#[test]
fn methods_change_their_receiver() {
    let push = "impl<T> Stack<T> { fn push(&mut self, v: T) {} }";
    let facts = of(
        push,
        "#[test] fn t() { let mut s = Stack::new(); s.push(1); s.push(2); assert_eq!(s.len(), 2); }",
    );
    assert!(facts.calls_focal && facts.has_edge_case, "pushed on an empty one");
    assert_eq!(facts.n_assertions_on_result, 1);
    let pop = "impl<T> Stack<T> { fn pop(&mut self) -> Option<T> { None } }";
    let facts =
        of(pop, "#[test] fn t() { let mut s = Stack::new(); s.push(1); assert_eq!(s.pop(), Some(1)); }");
    assert!(!facts.has_edge_case);
    let new = "impl<T> Stack<T> { fn new() -> Self { Stack } }";
    assert!(!of(new, "#[test] fn t() { let v: Vec<u8> = Vec::new(); assert!(v.is_empty()); }").calls_focal);
    assert!(of(new, "#[test] fn t() { assert!(Stack::<u8>::new().is_empty()); }").calls_focal);
}

#[test]
fn trait_methods_are_called_by_their_operators() {
    let parse = "impl FromStr for Rgb { fn from_str(s: &str) -> Result<Self, ()> { Err(()) } }";
    assert_eq!(
        of(parse, "#[test] fn t() { assert!(\"\".parse::<Rgb>().is_err()); }").n_assertions_on_result,
        1
    );
    let add = "impl Add for P { fn add(self, o: P) -> P { o } }";
    assert_eq!(of(add, "#[test] fn t() { assert_eq!(a + b, c); }").n_assertions_on_result, 1);
    let fmt = "impl Display for P { fn fmt(&self, f: &mut Formatter) -> fmt::Result { Ok(()) } }";
    assert_eq!(of(fmt, "#[test] fn t() { assert_eq!(format!(\"{p}\"), \"p\"); }").n_assertions_on_result, 1);
}

#[test]
fn a_should_panic_test_asserts_that_the_call_panics() {
    let facts = of(
        "fn focal() {}",
        "#[test] #[should_panic] fn t() { focal(); } #[test] #[should_panic] fn u() { panic!() }",
    );
    assert_eq!((facts.n_assertions, facts.n_assertions_on_result), (1, 1));
}

#[test]
fn redefinitions_are_seen() {
    assert!(of("fn focal() {}", "fn focal() {} #[test] fn t() { focal(); }").redefines_focal);
    assert!(of("fn focal() {}", "#[test] fn t() { let focal = |x| x; focal(1); }").redefines_focal);
    assert!(of("fn max(a: i32) {}", "use std::cmp::max; #[test] fn t() { max(1, 2); }").redefines_focal);
    assert!(
        of("impl S { fn f(&self) {} }", "struct S; impl S { fn f(&self) {} } #[test] fn t() {}")
            .redefines_focal
    );
    assert!(!of("fn focal() {}", "use super::focal; #[test] fn t() { focal(); }").redefines_focal);
    assert!(!of("impl S { fn f(&self) {} }", "fn f() {} #[test] fn t() {}").redefines_focal);
    assert!(!of("fn focal() {}", "#[test] fn focal() { super::focal(); }").redefines_focal);
}

#[test]
fn what_bears_the_name_of_the_function_is_not_the_function() {
    let focal = "fn focal(a: i32) -> i32 { a }";
    let copy = of(focal, "fn focal(a: i32) -> i32 { a } #[test] fn t() { assert_eq!(focal(0), 0); }");
    assert_eq!((copy.n_assertions, copy.n_assertions_on_result), (1, 0));
    assert!(!copy.calls_focal && !copy.has_edge_case);
    let reference =
        of(focal, "fn focal(a: i32) -> i32 { a } #[test] fn t() { assert_eq!(super::focal(0), focal(0)); }");
    assert_eq!((reference.n_assertions_on_result, reference.calls_focal), (1, true));
    let method = of(
        "impl S { fn f(&self) -> u8 { 1 } }",
        "struct S; impl S { fn f(&self) -> u8 { 1 } } #[test] fn t() { assert_eq!(S.f(), 1); }",
    );
    assert_eq!((method.n_assertions_on_result, method.calls_focal), (0, false));
}

#[test]
fn an_assertion_that_the_suite_made_itself_counts_for_nothing() {
    let facts = of(
        "fn focal(a: i32) -> i32 { a }",
        "macro_rules! assert_eq { ($($t:tt)*) => {} }
         #[test] fn t() { assert_eq!(focal(1), 2); assert!(focal(1) == 1); }",
    );
    assert_eq!((facts.n_assertions, facts.n_assertions_on_result), (1, 1));
}

#[test]
fn property_tests_name_their_variables() {
    let facts = of(
        "fn focal(a: i32) -> i32 { a }",
        "proptest! { #[test] fn p(value in 0..9, (x, y) in any::<(u8, u8)>()) { prop_assert_eq!(focal(value), 1); } }
         #[test] fn q() { proptest!(|(len in 1..3)| { prop_assert!(focal(len) > 0); }); }",
    );
    assert_eq!(facts.strategy_names, ["value", "x", "y", "len"]);
    assert_eq!((facts.n_assertions, facts.n_assertions_on_result), (2, 2));
    assert_eq!(facts.test_names, ["p", "q"]);
}

#[test]
fn what_does_not_parse_has_no_facts() {
    assert!(facts("fn t( {", &FocalFn::parse("fn f() {}").unwrap()).is_err());
    let nothing = of("fn focal() {}", "");
    assert_eq!((nothing.n_assertions, nothing.calls_focal, nothing.has_comment), (0, false, false));
}

proptest::proptest! {
    #[test]
    fn no_text_breaks_the_reading(code in "[ \\n(){}#\\[\\]!a-z0-9_'\"/*=,;.&|-]{0,60}") {
        let focal = FocalFn::parse("fn focal(a: i32) -> i32 { a }").unwrap();
        let _ = facts(&code, &focal);
        proptest::prop_assert!(crate::extract_code(&code).len() <= code.len());
    }

    #[test]
    fn a_first_comment_is_found_before_any_text(rest in "\\PC{0,40}") {
        let code = format!("// says why\n{rest}");
        proptest::prop_assert!(super::comments::has_comment(&code));
    }
}
