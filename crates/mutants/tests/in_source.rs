//! The switch and the source must say the same of every mutant: each one is written into the source, compiled for itself
//! and run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Bench, row};
use harness::parallel_map;
use mutants::score::{Prepared, ScoreOptions, SuiteScore, run_planted, score_suite};
use record::mutation::{MutantStatus, Verdict};

impl Bench {
    fn run(&self, function: &str, tests: &str) -> (Prepared, SuiteScore) {
        let prepared = Prepared::judged(&self.harness, &row(function, &[])).unwrap();
        let score = score_suite(&self.harness, &prepared, Some(tests), &ScoreOptions::default()).unwrap();
        assert!(score.passed, "{function}\n{:?} {:?}", score.error, score.tests);
        (prepared, score)
    }
}

/// `original -> replacement`.
fn shown(prepared: &Prepared, which: impl Fn(u32) -> bool) -> Vec<String> {
    let chosen = prepared.instrumented.mutants.iter().filter(|mutant| which(mutant.id));
    chosen.map(|m| format!("{} -> {}", m.original, m.replacement)).collect()
}

/// Compares every mutant and gives the operators that it met, `+` for `MethodExpression`'s names.
fn cross_check(bench: &Bench, function: &str, tests: &str) -> BTreeSet<String> {
    let (prepared, score) = bench.run(function, tests);
    // Most of the time goes into waiting for those that hang.
    let planted = parallel_map(4, &prepared.instrumented.mutants, |_, mutant| {
        run_planted(&bench.harness, &prepared, mutant.id, Some(tests), Duration::from_secs(4)).unwrap()
    });
    let mut operators = BTreeSet::new();
    for (mutant, run) in prepared.instrumented.mutants.iter().zip(planted) {
        let first = |run: &harness::TestRun| {
            run.verdicts.values().map(|test| test.verdict).find(|verdict| *verdict != Verdict::Passed)
        };
        let in_source = match run.as_ref().map(first) {
            None => MutantStatus::CompileError,
            Some(None) => MutantStatus::Survived,
            Some(Some(Verdict::Timeout)) => MutantStatus::Timeout,
            Some(Some(_)) => MutantStatus::Killed,
        };
        let here = match score.mutants[mutant.id as usize - 1].status {
            MutantStatus::NoCoverage => MutantStatus::Survived,
            status => status,
        };
        assert_eq!(here, in_source, "{function}\n{mutant:?}");
        if in_source != MutantStatus::CompileError {
            operators.insert(mutant.mutator.to_owned());
        }
    }
    operators
}

#[test]
fn each_mutant_does_under_the_switch_what_it_does_in_the_source() {
    let bench = Bench::new();
    let mut met = BTreeSet::new();
    for (function, tests) in CROSS_CHECKED {
        met.extend(cross_check(&bench, function, tests));
    }
    let all = [
        "ArithmeticOperator",
        "AssignmentOperator",
        "BitwiseOperator",
        "BlockStatement",
        "BooleanLiteral",
        "ConditionalExpression",
        "EqualityOperator",
        "FloatLiteral",
        "IntegerLiteral",
        "LogicalOperator",
        "LoopControl",
        "MatchArm",
        "MethodExpression",
        "ObjectLiteral",
        "RangeBoundary",
        "ReturnValue",
        "StatementDeletion",
        "StringLiteral",
        "UnaryOperator",
    ];
    assert_eq!(met, all.map(str::to_owned).into());
}

/// A literal under a cast takes its type from the cast, and a choice of literals does not.
#[test]
fn a_mutant_that_compiles_in_the_source_alone_is_run_there_and_counts() {
    let bench = Bench::new();
    let function = "pub fn first_letter(upper: bool) -> char { if upper { 65 as char } else { 'a' } }";
    let (prepared, score) =
        bench.run(function, "#[test] fn upper() { assert_eq!(first_letter(true), 'A'); }");
    assert_eq!(shown(&prepared, |id| !prepared.has_switch(id)), ["65 -> 66", "65 -> 64", "65 -> 0"]);
    let counts = score.counts().unwrap();
    assert_eq!((counts.unviable, counts.in_source), (0, 3));
    let killed = |id: u32| score.killed().contains(&id);
    assert!(prepared.instrumented.mutants.iter().filter(|m| m.original == "65").all(|m| killed(m.id)));

    let blind = "#[test] fn lower() { assert_eq!(first_letter(false), 'a'); }";
    let score = score_suite(&bench.harness, &prepared, Some(blind), &ScoreOptions::default()).unwrap();
    let counts = score.counts().unwrap();
    assert_eq!((counts.unviable, counts.in_source), (0, 3));
    assert!(score.mutants.iter().filter(|m| m.in_source).all(|m| m.status == MutantStatus::Survived));
    let none = "#[test] fn vacuous() { assert!(true); }";
    let score = score_suite(&bench.harness, &prepared, Some(none), &ScoreOptions::default()).unwrap();
    assert!(score.mutants.iter().all(|m| m.status == MutantStatus::NoCoverage), "{:?}", score.mutants);
}

/// The switch keeps the statement from which a type is inferred; without it there is no program.
#[test]
fn a_mutant_that_compiles_under_the_switch_alone_is_none() {
    let bench = Bench::new();
    let function = "pub fn count(text: &str) -> usize {
    let mut seen = Vec::new();
    for c in text.chars() {
        seen.push(c);
    }
    seen.len()
}";
    let tests = "#[test] fn counts() { assert_eq!(count(\"abc\"), 3); }";
    let (prepared, score) = bench.run(function, tests);
    let under_the_switch_alone = |id| prepared.has_switch(id) && !prepared.is_viable(id);
    let found = shown(&prepared, under_the_switch_alone);
    assert_eq!(found.len(), 2, "the statement, and the loop around it: {found:?}");
    assert!(found[1].contains("seen.push(c);"), "{found:?}");
    let unviable = score.mutants.iter().filter(|m| m.status == MutantStatus::CompileError).count();
    assert_eq!((unviable, score.counts().unwrap().unviable), (2, 2));
}

/// A hang in the source ends by fuel as well, not by the clock.
#[test]
fn a_mutant_that_hangs_in_the_source_runs_out_of_fuel() {
    let bench = Bench::new();
    let function = "pub fn letters(n: u32) -> String {
    let mut out = String::new();
    while out.len() < n as usize {
        if 97 as char == 'a' {
            out.push('a');
        }
    }
    out
}";
    let started = std::time::Instant::now();
    let (prepared, score) = bench.run(function, "#[test] fn two() { assert_eq!(letters(2), \"aa\"); }");
    let of_literal = prepared.instrumented.mutants.iter().zip(&score.mutants);
    let of_literal: Vec<MutantStatus> =
        of_literal.filter(|(m, _)| m.original == "97").map(|(_, outcome)| outcome.status).collect();
    assert_eq!(of_literal, [MutantStatus::Timeout; 3]);
    let in_source = score.mutants.iter().filter(|m| m.in_source).count();
    assert!(in_source >= 3, "{:?}", score.mutants);
    assert!(started.elapsed() < Duration::from_secs(15), "three deadlines of five seconds");
}

/// Tests that do not compile beside the switch must not escape the mutants.
#[test]
fn a_suite_that_the_switch_is_in_the_way_of_meets_its_mutants_in_the_source() {
    let bench = Bench::new();
    let function = "pub const fn double(x: u8) -> u8 { x * 2 }";
    let vacuous = "const FOUR: u8 = double(2);\n#[test] fn sees_nothing() { assert!(FOUR < 200); }";
    let (_, score) = bench.run(function, vacuous);
    let counts = score.counts().unwrap();
    assert_eq!((counts.killed, counts.in_source), (0, counts.survived));
    assert!(counts.survived >= 4, "{:?}", score.mutants);
    let careful = "const FOUR: u8 = double(2);\n#[test] fn sees_all() { assert_eq!(FOUR, 4); assert_eq!(double(3), 6); }";
    let (_, score) = bench.run(function, careful);
    assert_eq!(score.counts().unwrap().survived, 0, "{:?}", score.mutants);
}

const CROSS_CHECKED: [(&str, &str); 10] = [
    (
        "pub fn longest_run(values: &[i32]) -> usize {
    let (mut best, mut run) = (0, 1);
    for i in 1..values.len() {
        if values[i] == values[i - 1] && values[i] != 0 {
            run += 1;
        } else {
            run = 1;
        }
        best = best.max(run);
    }
    best
}",
        "#[test] fn runs() { assert_eq!(longest_run(&[1, 1, 2, 2, 2, 3]), 3); assert_eq!(longest_run(&[]), 0); }",
    ),
    (
        "pub fn digits(mut n: u32) -> Vec<u32> {
    let mut out = Vec::new();
    while n > 9 {
        out.push(n % 10);
        n /= 10;
    }
    out.push(n);
    out.reverse();
    out
}",
        "#[test] fn of_a_number() { assert_eq!(digits(120), [1, 2, 0]); assert_eq!(digits(7), [7]); }",
    ),
    (
        "pub fn find(text: &str, wanted: char) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            c if c == wanted && depth == 0 => return Some(i),
            _ => continue,
        }
    }
    None
}",
        "#[test] fn outside() { assert_eq!(find(\"(a)ba\", 'a'), Some(4)); assert_eq!(find(\")b\", 'b'), Some(1)); }",
    ),
    (
        "pub fn mix(mut a: u32, b: u32) -> u32 {
    a ^= b & 12 | 3;
    a <<= 1;
    a |= b >> 2;
    a &= !(b % 7);
    a -= (a / 3) * 2;
    a >>= 1;
    a %= 97;
    a
}",
        "#[test] fn of_two() { assert_eq!(mix(5, 9), 5); assert_eq!(mix(200, 77), 69); }",
    ),
    (
        "pub fn share(part: f64, whole: f64) -> f64 {
    if whole <= 0.0 || part < 0.0 {
        return 0.0;
    }
    let mut share = part / whole;
    share *= 100.0;
    -(-share).floor().min(0.5)
}",
        "#[test] fn of_a_whole() { assert_eq!(share(1.0, 3.0), 34.0); assert_eq!(share(1.0, -1.0), 0.0); }",
    ),
    (
        "pub fn label(name: Option<&str>, loud: bool) -> String {
    let mut out = String::from(\"id-\");
    if let Some(name) = name {
        out.push_str(name.trim_start());
    }
    if loud { out.to_uppercase() } else { out }
}",
        "#[test] fn of_names() { assert_eq!(label(Some(\" a\"), false), \"id-a\"); assert_eq!(label(None, true), \"ID-\"); }",
    ),
    (
        "pub fn window(limits: (i8, i8)) -> [i8; 2] {
    #[derive(Clone, Copy)]
    struct Window { low: i8, high: i8 }
    const WIDE: Window = Window { low: -9, high: 9 };
    let window = Window { low: limits.0, ..WIDE };
    let window = if limits.1 > -1 { Window { high: limits.1, ..window } } else { window };
    [window.low, window.high]
}",
        "#[test] fn of_limits() { assert_eq!(window((1, 5)), [1, 5]); assert_eq!(window((2, -3)), [2, 9]); }",
    ),
    (
        "pub fn words(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        match rest.split_once(' ') {
            Some((\"\", after)) => rest = after,
            Some((word, after)) if !word.is_empty() => {
                found.push(word.to_owned());
                rest = after;
            }
            _ => break,
        }
    }
    if rest.is_empty() || rest.starts_with('#') {
        return Err(String::from(\"no last word\"));
    }
    found.push(rest.to_owned());
    found.sort();
    Ok(found)
}",
        "#[test] fn of_text() { assert_eq!(words(\"b  a\"), Ok(vec![\"a\".to_owned(), \"b\".to_owned()])); assert!(words(\"b \").is_err()); }",
    ),
    (
        "pub fn fill(cells: &mut [u8], from: usize, to: usize) {
    cells[0] = 1;
    for cell in &mut cells[from..=to] {
        *cell = b'x' + 1;
    }
    cells.reverse();
}",
        "#[test] fn of_cells() { let mut cells = [0; 4]; fill(&mut cells, 1, 2); assert_eq!(cells, [0, b'y', b'y', 1]); }",
    ),
    (
        "pub fn letter(n: u8) -> Option<char> {
    let letter = match n {
        0 => 65 as char,
        1..=25 => (b'A' + n) as char,
        _ => return None,
    };
    Some(letter).filter(|c| c.is_ascii_uppercase() && true)
}",
        "#[test] fn of_numbers() { assert_eq!(letter(0), Some('A')); assert_eq!(letter(25), Some('Z')); assert_eq!(letter(26), None); }",
    ),
];
