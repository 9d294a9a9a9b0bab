//! Functions whose mutants were counted by hand, run for real: every case compiles with rustc and runs its tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use harness::{Harness, Libraries, Limits, Toolchain, parallel_map};
use mutants::MutantSite;
use mutants::score::{Prepared, ScoreOptions, SuiteScore, planted_bug_is_found, run_planted, score_suite};
use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};
use record::mutation::{MutantStatus, Verdict};
use sandbox::Sandbox;

fn row(function: &str, items: &[&str]) -> CorpusRow {
    CorpusRow {
        id: "row".into(),
        function_code: function.into(),
        unit_tests: String::new(),
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

struct Bench {
    harness: Harness,
    _scratch: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let toolchain = Toolchain::find().unwrap();
        let path: &Path = scratch.path();
        let harness = Harness::new(
            toolchain,
            Libraries::none(),
            Sandbox::probe(),
            path.to_path_buf(),
            Limits::default(),
        );
        Self { harness, _scratch: scratch }
    }

    fn prepare(&self, function: &str, items: &[&str]) -> Prepared {
        Prepared::new(&self.harness, &row(function, items)).unwrap()
    }

    fn score(&self, prepared: &Prepared, tests: &str) -> SuiteScore {
        score_suite(&self.harness, prepared, Some(tests), &ScoreOptions::default()).unwrap()
    }

    fn run(&self, function: &str, items: &[&str], tests: &str) -> (Prepared, SuiteScore) {
        let prepared = self.prepare(function, items);
        let score = self.score(&prepared, tests);
        assert!(score.passed, "{:?} {:?}", score.error, score.tests);
        (prepared, score)
    }
}

/// `original -> replacement` of every mutant with a status.
fn with_status(prepared: &Prepared, score: &SuiteScore, status: MutantStatus) -> Vec<String> {
    let pairs = prepared.instrumented.mutants.iter().zip(&score.mutants);
    let matching = pairs.filter(|(_, outcome)| outcome.status == status);
    matching.map(|(m, _)| format!("{} -> {}", m.original, m.replacement)).collect()
}

const CLAMP: &str = "pub fn clamp(x: i32, lo: i32, hi: i32) -> i32 {
    if x < lo { lo } else if x > hi { hi } else { x }
}";

#[test]
fn the_equivalent_mutants_of_a_clamp_survive_and_no_other() {
    let bench = Bench::new();
    let tests = "#[test] fn below() { assert_eq!(clamp(-5, 2, 9), 2); }
                 #[test] fn above() { assert_eq!(clamp(12, 2, 9), 9); }
                 #[test] fn inside() { assert_eq!(clamp(4, 2, 9), 4); }";
    let (prepared, score) = bench.run(CLAMP, &[], tests);
    // Seven mutants: three return values, four comparisons. At equality both sides of a clamp are the same value.
    assert_eq!(
        with_status(&prepared, &score, MutantStatus::Survived),
        ["x < lo -> x <= lo", "x > hi -> x >= hi"]
    );
    let counts = score.counts().unwrap();
    assert_eq!((counts.killed, counts.survived, counts.timeout, counts.unviable), (5, 2, 0, 0));
    let coverage = prepared.coverage(&score, None);
    // Two `if`: then, then, else.
    assert_eq!((coverage.branches, coverage.branches_covered), (3, 3));
    assert!(
        planted_bug_is_found(&bench.harness, &prepared, Some(tests), &score, &ScoreOptions::default())
            .unwrap()
            .unwrap()
    );
}

#[test]
fn what_is_not_reached_is_not_covered() {
    let bench = Bench::new();
    let (prepared, score) = bench.run(CLAMP, &[], "#[test] fn below() { assert_eq!(clamp(-5, 2, 9), 2); }");
    assert_eq!(
        with_status(&prepared, &score, MutantStatus::NoCoverage),
        ["x > hi -> x >= hi", "x > hi -> x <= hi"]
    );
    let coverage = prepared.coverage(&score, None);
    assert_eq!((coverage.branches, coverage.branches_covered), (3, 1));
}

#[test]
fn vacuous_failing_and_missing_tests_kill_nothing() {
    let bench = Bench::new();
    let prepared = bench.prepare(CLAMP, &[]);
    let vacuous = bench.score(&prepared, "#[test] fn t() { assert!(true); }");
    assert!(vacuous.passed && vacuous.killed().is_empty() && !vacuous.entered);
    let failing = bench.score(&prepared, "#[test] fn t() { assert_eq!(clamp(1, 2, 3), 7); }");
    assert!(failing.compiled && !failing.passed && failing.mutants.is_empty() && failing.counts().is_none());
    let message = failing.tests[0].message.as_deref().unwrap_or_default();
    assert!(message.starts_with("line 1, column ") && message.contains("left: 2"), "{message}");
    let none = bench.score(&prepared, "fn helper() {}");
    assert!(none.compiled && !none.passed, "no test at all");
    let ignored = bench.score(&prepared, "#[test] #[ignore] fn t() { assert_eq!(clamp(1, 2, 3), 2); }");
    assert!(!ignored.passed);
    assert_eq!(ignored.tests[0].verdict, Verdict::Ignored);
    let broken = bench.score(&prepared, "#[test] fn t() { let x: i32 = clamp(1, 2, \"3\"); }");
    assert!(!broken.compiled && broken.error.is_some());
}

#[test]
fn mutants_that_do_not_compile_are_taken_out_and_the_others_stay() {
    let bench = Bench::new();
    let prepared = bench.prepare(
        "pub fn late(a: std::time::Duration, b: std::time::Duration) -> bool { a + b > std::time::Duration::from_secs(3) }",
        &[],
    );
    assert_eq!(unviable(&prepared), ["a + b -> a * b"], "a Duration has no product with another");
    let prepared =
        bench.prepare("pub fn twice<T: std::ops::Add<Output = T> + Copy>(x: T) -> T { x + x }", &[]);
    assert_eq!(unviable(&prepared), ["x + x -> x - x", "x + x -> x * x"]);
    let prepared = bench.prepare("pub fn greet(name: &str) -> String { String::from(\"hi \") + name }", &[]);
    let out = unviable(&prepared);
    assert_eq!(out.len(), 2, "a String has a sum and nothing else: {out:?}");
    assert!(prepared.viable().any(|m| m.mutator == "StringLiteral"));
}

fn unviable(prepared: &Prepared) -> Vec<String> {
    let gone = prepared.instrumented.mutants.iter().filter(|m| prepared.dropped.mutants.contains(&m.id));
    gone.map(|m| format!("{} -> {}", m.original, m.replacement)).collect()
}

#[test]
fn mutants_that_hang_end_by_fuel_and_alike_each_time() {
    let bench = Bench::new();
    let total = "pub fn total(n: u64) -> u64 {
        let (mut sum, mut i) = (0, 0);
        while i < n {
            sum += i;
            i += 1;
        }
        sum
    }";
    let tests = "#[test] fn adds() { assert_eq!(total(5), 10); }";
    let (prepared, first) = bench.run(total, &[], tests);
    let second = bench.score(&prepared, tests);
    assert_eq!(first, second, "the same verdicts");
    let hung = with_status(&prepared, &first, MutantStatus::Timeout);
    assert_eq!(hung, ["i += 1 -> i *= 1", "1 -> 0"]);
    let helper = "fn steps(mut n: u32) -> u32 { let mut k = 0; while n != 1 { n = if n % 2 == 0 { n / 2 } else { 1 }; k += 1; } k }";
    let caller = "pub fn f(n: u32) -> u32 { steps(n * 1) }";
    let tests = "#[test] fn t() { assert_eq!(f(4), 2); }";
    let (prepared, score) = bench.run(caller, &[helper], tests);
    let hung = with_status(&prepared, &score, MutantStatus::Timeout);
    assert!(hung.contains(&"1 -> 0".to_owned()), "a helper's loop ticks too: {hung:?}");
}

#[test]
fn a_suite_that_hangs_does_not_pass() {
    let bench = Bench::new();
    let prepared =
        bench.prepare("pub fn count(n: u64) -> u64 { let mut i = 0; while i < n { i += 1; } i }", &[]);
    let score = bench
        .score(&prepared, "#[test] fn t() { count(u64::MAX); } #[test] fn u() { assert_eq!(count(2), 2); }");
    assert_eq!(score.tests[0].verdict, Verdict::Timeout);
    assert_eq!(score.tests[1].verdict, Verdict::Passed);
    assert!(!score.passed);
}

/// Every kind of code that the rewriting must leave working: instrumented, unmutated, the tests pass.
#[test]
fn all_kinds_of_functions_stay_what_they_were() {
    let bench = Bench::new();
    for (function, items, tests) in KINDS {
        let prepared = bench.prepare(function, items);
        assert_eq!(prepared.not_instrumentable, None, "{function}");
        let score = bench.score(&prepared, tests);
        assert!(score.passed && score.entered, "{function}\n{:?} {:?}", score.error, score.tests);
        assert!(!score.killed().is_empty(), "{function}");
        let (kept, all) = (prepared.branches().len(), prepared.instrumented.branches.len());
        assert_eq!(kept, all, "every probe compiles: {function}");
        let lines = (prepared.lines().len(), prepared.instrumented.lines.len());
        assert_eq!(lines.0, lines.1, "{function}");
    }
}

type Kind = (&'static str, &'static [&'static str], &'static str);

const KINDS: &[Kind] = &[
    (
        "impl<T: Clone> Stack<T> {\n    pub fn pop_or(&mut self, other: T) -> T {\n        if self.items.len() > 1 { self.items.pop().unwrap_or(other) } else { other.clone() }\n    }\n}",
        &["pub struct Stack<T> { items: Vec<T> }"],
        "#[test] fn t() { let mut s = Stack { items: vec![1, 2] }; assert_eq!(s.pop_or(9), 2); assert_eq!(s.pop_or(9), 9); }",
    ),
    (
        "pub fn longest<'a>(a: &'a str, b: &'a str) -> &'a str { if a.len() >= b.len() { a } else { b } }",
        &[],
        "#[test] fn t() { assert_eq!(longest(\"ab\", \"c\"), \"ab\"); assert_eq!(longest(\"a\", \"bc\"), \"bc\"); }",
    ),
    (
        "pub fn evens(n: u32) -> impl Iterator<Item = u32> { (0..n).filter(|x| x % 2 == 0).map(move |x| x + n) }",
        &[],
        "#[test] fn t() { assert_eq!(evens(5).collect::<Vec<_>>(), [5, 7, 9]); }",
    ),
    (
        "pub fn sum(text: &str) -> Result<i32, std::num::ParseIntError> {\n    let mut total = 0;\n    for part in text.split(',') { total += part.trim().parse::<i32>()?; }\n    Ok(total)\n}",
        &[],
        "#[test] fn t() { assert_eq!(sum(\"1, 2\"), Ok(3)); assert!(sum(\"x\").is_err()); }",
    ),
    (
        "pub unsafe fn get(v: *const u8, n: usize) -> u8 { if n > 2 { return 0 } unsafe { *v.add(n) } }",
        &[],
        "#[test] fn t() { let v = [1, 2, 3]; assert_eq!(unsafe { get(v.as_ptr(), 1) }, 2); assert_eq!(unsafe { get(v.as_ptr(), 9) }, 0); }",
    ),
    (
        "pub const fn half(n: u32) -> u32 { if n % 2 == 0 { n / 2 } else { 0 } }",
        &[],
        "#[test] fn t() { assert_eq!(half(8), 4); assert_eq!(half(7), 0); }",
    ),
    (
        "pub fn find(grid: &[Vec<i32>], x: i32) -> Option<(usize, usize)> {\n    let mut found = None;\n    'rows: for (i, row) in grid.iter().enumerate() {\n        for (j, &cell) in row.iter().enumerate() {\n            if cell < 0 { continue 'rows; }\n            if cell == x { found = Some((i, j)); break 'rows; }\n        }\n    }\n    found\n}",
        &[],
        "#[test] fn t() { let g = vec![vec![1, -1, 7], vec![7]]; assert_eq!(find(&g, 7), Some((1, 0))); assert_eq!(find(&g, 8), None); }",
    ),
    (
        "pub async fn later(n: u32) -> u32 { let m = async { n + 1 }.await; if m > 3 && n != 9 { m } else { 0 } }",
        &[
            "pub fn block<F: std::future::Future>(f: F) -> F::Output { let mut f = Box::pin(f); let w = std::task::Waker::noop(); let mut c = std::task::Context::from_waker(w); loop { if let std::task::Poll::Ready(x) = f.as_mut().poll(&mut c) { return x; } } }",
        ],
        "#[test] fn t() { assert_eq!(block(later(5)), 6); assert_eq!(block(later(1)), 0); }",
    ),
    (
        "pub fn parse(input: Option<&str>) -> u8 {\n    let Some(text) = input else { return 0 };\n    let x = match text.len() { 0 => 1, n if n > 3 => 2, 1..=2 => 3, _ => 4 };\n    x\n}",
        &[],
        "#[test] fn t() { assert_eq!(parse(None), 0); assert_eq!(parse(Some(\"\")), 1); assert_eq!(parse(Some(\"abcd\")), 2); assert_eq!(parse(Some(\"a\")), 3); }",
    ),
    (
        "pub fn table(i: usize) -> &'static [u8] { const N: usize = 2 + 1; static T: [u8; N] = [1, 2, 3]; let s: &'static [u8] = &[7, 8]; if i == 0 { &T } else { s } }",
        &[],
        "#[test] fn t() { assert_eq!(table(0), [1, 2, 3]); assert_eq!(table(1), [7, 8]); }",
    ),
    (
        "impl std::ops::Add for P { type Output = P; fn add(self, o: P) -> P { P { x: self.x + o.x, ..self } } }",
        &["#[derive(Debug, PartialEq, Default, Clone, Copy)] pub struct P { x: i8, y: i8 }"],
        "#[test] fn t() { assert_eq!(P { x: 1, y: 5 } + P { x: 2, y: 3 }, P { x: 3, y: 5 }); }",
    ),
    (
        "pub fn neg(x: i8) -> i8 { let r: i8 = -128; if x == r { 127 } else { -x } }",
        &[],
        "#[test] fn t() { assert_eq!(neg(-128), 127); assert_eq!(neg(3), -3); }",
    ),
    (
        "pub fn shadow(x: &str) -> usize { let x = x.trim(); let x = x.split_once('=').map(|(k, v)| k.len() * 10 + v.len()).unwrap_or(0); x }",
        &[],
        "#[test] fn t() { assert_eq!(shadow(\" ab=c \"), 21); assert_eq!(shadow(\"\"), 0); }",
    ),
    (
        "pub fn lookup(m: &std::collections::BTreeMap<u8, u8>, k: u8) -> u8 { let v = m.get(&k).unwrap_or(&9); if let Some(w) = m.get(v) { if *w > 1 { return *w; } } *v }",
        &[],
        "#[test] fn t() { let m = [(1, 2), (2, 5)].into(); assert_eq!(lookup(&m, 1), 5); assert_eq!(lookup(&m, 7), 9); }",
    ),
];

#[test]
fn tests_can_not_ask_which_mutant_is_on() {
    let bench = Bench::new();
    let prepared = bench.prepare(CLAMP, &[]);
    let spy = "#[test] fn t() { clamp(1, 2, 3); clamp(9, 2, 3); clamp(2, 2, 3);
        assert!(std::env::var(\"TESTFORGE_MUTANT\").unwrap_or(\"0\".into()) == \"0\"); }";
    let score = bench.score(&prepared, spy);
    assert!(score.passed && score.killed().is_empty(), "{:?}", score.killed());
    let guess = bench.score(&prepared, "#[test] fn t() { assert!(crate::__testforge_mutants::at(0) == 0); }");
    assert!(!guess.compiled);
}

#[test]
fn a_limit_takes_mutants_from_all_operators() {
    let bench = Bench::new();
    let prepared = bench.prepare(CLAMP, &[]);
    let options = ScoreOptions { limit: 2, ..ScoreOptions::default() };
    let tests = "#[test] fn t() { assert_eq!(clamp(-5, 2, 9), 2); assert_eq!(clamp(12, 2, 9), 9); }";
    let score = score_suite(&bench.harness, &prepared, Some(tests), &options).unwrap();
    let tried: Vec<&str> = prepared
        .instrumented
        .mutants
        .iter()
        .zip(&score.mutants)
        .filter(|(_, outcome)| outcome.status != MutantStatus::Ignored)
        .map(|(mutant, _)| mutant.mutator)
        .collect();
    assert_eq!(tried, ["ReturnValue", "EqualityOperator"]);
}

/// The switch and the source must say the same of every mutant: each one is written into the source, compiled for itself
/// and run.
#[test]
fn each_mutant_does_under_the_switch_what_it_does_in_the_source() {
    let bench = Bench::new();
    for (function, tests) in CROSS_CHECKED {
        let (prepared, score) = bench.run(function, &[], tests);
        let viable: Vec<&MutantSite> = prepared.viable().collect();
        // Most of the time goes into waiting for those that hang.
        let planted = parallel_map(4, &viable, |_, mutant| {
            run_planted(&bench.harness, &prepared, mutant.id, Some(tests), Duration::from_secs(4)).unwrap()
        });
        for (mutant, run) in viable.iter().zip(planted) {
            let run = run.unwrap_or_else(|| panic!("{mutant:?} compiles under the switch alone"));
            let first =
                run.verdicts.values().find(|test| test.verdict != Verdict::Passed).map(|test| test.verdict);
            let in_source = match first {
                None => MutantStatus::Survived,
                Some(Verdict::Timeout) => MutantStatus::Timeout,
                Some(_) => MutantStatus::Killed,
            };
            let switched = match score.mutants[mutant.id as usize - 1].status {
                MutantStatus::NoCoverage => MutantStatus::Survived,
                status => status,
            };
            assert_eq!(switched, in_source, "{function}\n{mutant:?}");
        }
    }
}

const CROSS_CHECKED: [(&str, &str); 3] = [
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
];
