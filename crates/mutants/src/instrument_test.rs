//! Tests of the instrumentation as text.

use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};

use super::Instrumented;
use crate::Dropped;

pub(crate) fn row(function: &str, items: &[&str], tests: &str) -> CorpusRow {
    CorpusRow {
        id: "row".into(),
        function_code: function.into(),
        unit_tests: tests.into(),
        property_tests: None,
        context: RowContext { imports: Vec::new(), items: items.iter().map(|&item| item.into()).collect() },
        metadata: RowMetadata {
            crate_name: "c".into(),
            version: "1.0.0".into(),
            path: "src/lib.rs".into(),
            item: String::new(),
            lines: [1, 1],
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

fn instrumented(function: &str) -> Instrumented {
    Instrumented::of(&row(function, &[], "")).unwrap()
}

/// `MUTATOR: original -> replacement` of each mutant.
fn mutants(function: &str) -> Vec<String> {
    let instrumented = instrumented(function);
    let program = instrumented.program(None, &Dropped::default());
    assert!(syn::parse_file(&program.source).is_ok(), "{}", program.source);
    for mutant in &instrumented.mutants {
        let planted = instrumented.planted(mutant.id, None).unwrap();
        assert!(syn::parse_file(&planted).is_ok(), "{mutant:?}\n{planted}");
    }
    let shown = |m: &crate::MutantSite| format!("{}: {} -> {}", m.mutator, m.original, m.replacement);
    instrumented.mutants.iter().map(shown).collect()
}

fn body(code: &str) -> Vec<String> {
    mutants(&format!("fn f() -> impl Sized {{ {code} }}"))
}

#[test]
fn hand_counted_mutants_of_a_clamp() {
    let got = mutants(
        "fn clamp(x: i32, lo: i32, hi: i32) -> i32 {\n    if x < lo { lo } else if x > hi { hi } else { x }\n}",
    );
    assert_eq!(got.iter().filter(|m| m.starts_with("ReturnValue")).count(), 3, "0, 1, -1");
    assert_eq!(got.iter().filter(|m| m.starts_with("EqualityOperator")).count(), 4);
    assert_eq!(got.len(), 7);
}

#[test]
fn operators_and_literals_are_replaced_in_place() {
    assert_eq!(
        body("a + b * 2"),
        [
            "ArithmeticOperator: a + b * 2 -> a - b * 2",
            "ArithmeticOperator: a + b * 2 -> a * b * 2",
            "ArithmeticOperator: b * 2 -> b + 2",
            "ArithmeticOperator: b * 2 -> b / 2",
            "IntegerLiteral: 2 -> 3",
            "IntegerLiteral: 2 -> 1",
            "IntegerLiteral: 2 -> 0",
        ]
    );
    assert_eq!(
        body("!a && -b == 1"),
        [
            "LogicalOperator: !a && -b == 1 -> !a || -b == 1",
            "UnaryOperator: !a -> a",
            "EqualityOperator: -b == 1 -> -b != 1",
            "UnaryOperator: -b -> b",
            "IntegerLiteral: 1 -> 2",
            "IntegerLiteral: 1 -> 0",
        ]
    );
    assert_eq!(
        body("-128i8"),
        [
            "IntegerLiteral: -128i8 -> 128i8",
            "IntegerLiteral: -128i8 -> -127i8",
            "IntegerLiteral: -128i8 -> -0i8"
        ]
    );
}

#[test]
fn a_planted_mutant_keeps_the_order_of_evaluation() {
    let inst = instrumented("fn f(a: i32, b: i32, c: i32) -> impl Sized { a - b * c }");
    let plus = inst.mutants.iter().find(|m| m.replacement == "b + c").unwrap();
    assert!(inst.planted(plus.id, None).unwrap().contains("a - ((b) + (c))"));
}

#[test]
fn locations_count_from_one() {
    let inst = instrumented("fn f(a: i32) -> impl Sized {\n    let é = 1; a + é\n}");
    let plus = inst.mutants.iter().find(|m| m.replacement == "a - é").unwrap();
    let (start, end) = (plus.location.start, plus.location.end);
    assert_eq!((start.line, start.column, end.line, end.column), (2, 16, 2, 21));
}

#[test]
fn statements_arms_guards_and_loops_have_their_own_mutants() {
    let got = body("v.push(x); self.n = 1; match x { 1 => a(), n if n > y => b(), _ => c() }");
    assert!(got.contains(&"StatementDeletion: v.push(x); -> ".to_owned()), "{got:#?}");
    assert!(got.contains(&"StatementDeletion: self.n = 1; -> ".to_owned()));
    assert!(got.contains(&"MatchArm: 1 => a(), -> ".to_owned()));
    assert!(got.contains(&"ConditionalExpression: n > y -> false".to_owned()));
    let got = body("for i in a..b { if i == c { continue; } break; } &s[..=n]");
    assert!(got.contains(&"RangeBoundary: b -> b + 1".to_owned()), "{got:#?}");
    assert!(got.contains(&"RangeBoundary: n -> n - 1".to_owned()));
    assert!(got.contains(&"LoopControl: continue -> break".to_owned()));
    assert!(got.contains(&"LoopControl: break -> continue".to_owned()));
    assert!(
        body("match x { A => 1.5, B => y }").iter().all(|m| !m.starts_with("MatchArm")),
        "no other arm catches"
    );
}

#[test]
fn struct_fields_with_a_base_and_methods_with_a_counterpart() {
    let got = body("P { x: a, y: b, ..p.min(q) }");
    assert_eq!(got[0], "ObjectLiteral: P { x: a, y: b, ..p.min(q) } -> P { y: b, ..p.min(q) }");
    assert!(got.contains(&"MethodExpression: p.min(q) -> p.max(q)".to_owned()));
}

#[test]
fn constants_patterns_types_and_macros_stay() {
    let inst = instrumented(
        "fn f(x: [u8; 3]) -> impl Sized { const N: usize = 1 + 1; let [a, 2, ..] = x else { return g::<3>() }; let y: [u8; 4] = [a; 4]; println!(\"{}\", 1 + 2); match a { 1..=5 => y, _ => y } }",
    );
    assert_eq!(inst.mutants.iter().map(|m| m.mutator).collect::<Vec<_>>(), ["MatchArm"]);
    assert_eq!(inst.opaque_macros, 1);
}

#[test]
fn a_constant_reference_is_changed_as_a_whole() {
    assert_eq!(body("m.get(&0)"), ["IntegerLiteral: &0 -> &1"]);
    assert_eq!(body("&[1, 0]").last().unwrap(), "IntegerLiteral: &[1, 0] -> &[1, 1]");
    assert!(body("[1, 2, 3, 4, 5, 6, 7, 8, 9]").is_empty(), "a table is data");
}

#[test]
fn conditions_with_let_are_left_whole() {
    let got = body("if let Some(x) = a && x > 1 { y } else { z }");
    assert!(got.iter().all(|m| !m.starts_with("Logical") && !m.starts_with("Conditional")), "{got:?}");
    assert!(got.contains(&"EqualityOperator: x > 1 -> x >= 1".to_owned()));
}

#[test]
fn a_block_of_no_value_under_a_pattern_is_emptied() {
    let got =
        body("if let Some(x) = a { return x; } while let Some(y) = b() { c(y); } for z in d { e(z) } f");
    let emptied: Vec<&String> = got.iter().filter(|m| m.starts_with("BlockStatement")).collect();
    assert_eq!(emptied, ["BlockStatement: { return x; } -> {}", "BlockStatement: { c(y); } -> {}"]);
}

#[test]
fn branches_follow_the_written_rules() {
    let kinds = |code: &str| {
        let inst = instrumented(&format!("fn f() -> impl Sized {{ {code} }}"));
        inst.branches.iter().map(|b| b.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds("if a { b }"), ["then", "else"]);
    assert_eq!(kinds("if a { b } else if c { d } else { e }"), ["then", "then", "else"]);
    assert_eq!(kinds("a?; a && b"), ["continue", "early_return", "short_circuit", "both_sides"]);
    assert_eq!(
        kinds("for i in a { b() } while c { d() } loop { }"),
        ["zero_times", "some_times", "zero_times", "some_times"]
    );
    assert_eq!(kinds("match a { A => b, B => unreachable!(), _ => c }"), ["arm", "arm"]);
    assert_eq!(kinds("let Some(a) = b else { return c }; a"), ["then", "else"]);
}

#[test]
fn lines_with_code_are_counted_once() {
    let inst = instrumented(
        "fn f(a: u8) -> u8 {\n    let b = a; let c = b;\n\n    match c {\n        1 => 2,\n        _ => {\n            3\n        }\n    }\n}",
    );
    let mut lines = inst.lines.clone();
    lines.sort_unstable();
    assert_eq!(lines, [2, 4, 5, 7]);
}

#[test]
fn a_method_of_an_impl_block_and_a_const_fn_are_instrumented() {
    let inst = instrumented("impl<T: Ord> S<T> {\n    pub const fn len(&self) -> usize { self.n + 1 }\n}");
    assert!(inst.mutants.len() > 3);
    let program = inst.program(None, &Dropped::default());
    assert!(!program.source.contains("const fn"), "{}", program.source);
    assert_eq!(&program.source[program.function.clone()][..4], "impl");
}

#[test]
fn parts_name_their_text() {
    let inst = instrumented("fn f(a: u8) -> u8 { a + 1 }");
    let program = inst.program(Some("#[test] fn t() {}"), &Dropped::default());
    for (range, part) in &program.parts {
        if let crate::Part::Mutant(id) = part {
            assert!(program.source[range.clone()].starts_with(&format!("{id} => ")), "{part:?}");
        }
    }
    assert!(!program.source.contains("__testforge_mutants"));
}
