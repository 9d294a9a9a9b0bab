//! Functions whose mutants were counted by hand, run for real: every case compiles with rustc and runs its tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Bench, row};
use harness::parallel_map;
use mutants::score::{Prepared, ScoreOptions, SuiteScore, planted_bug_is_found, score_suite};
use record::mutation::{MutantStatus, Verdict};

impl Bench {
    fn prepare(&self, function: &str, items: &[&str]) -> Prepared {
        Prepared::judged(&self.harness, &row(function, items)).unwrap()
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

/// `cargo test` does not know of a test whose condition does not hold; a suite of nothing else has no test.
#[test]
fn a_test_that_a_condition_leaves_out_is_none() {
    let bench = Bench::new();
    let prepared = bench.prepare(CLAMP, &[]);
    let out = "#[cfg(not(test))] #[test] fn never() { panic!() }
               #[test] #[cfg(windows)] fn elsewhere() { panic!() }";
    let there = "#[test] fn here() { assert_eq!(clamp(-5, 2, 9), 2); }";
    let score = bench.score(&prepared, &format!("{out}\n{there}"));
    let names: Vec<&str> = score.tests.iter().map(|test| test.name.as_str()).collect();
    assert_eq!((names, score.passed), (vec!["here"], true));
    assert!(!score.killed().is_empty());
    let none = bench.score(&prepared, out);
    assert!(none.compiled && none.tests.is_empty() && !none.passed);
    let leaves = "#[test] fn a_leaves() { std::process::exit(0); }\n#[test] fn b_stays() { clamp(1, 2, 3); }";
    let score = bench.score(&prepared, leaves);
    let verdicts: Vec<Verdict> = score.tests.iter().map(|test| test.verdict).collect();
    assert_eq!(verdicts, [Verdict::Aborted, Verdict::Passed], "what ends the process is not left out");
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
    let gone = prepared.instrumented.mutants.iter().filter(|m| !prepared.is_viable(m.id));
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

/// Every kind of code that the rewriting must leave working: instrumented, unmutated, the tests of each case pass, every
/// probe compiles, and some mutant is killed.
#[test]
fn all_kinds_of_functions_stay_what_they_were() {
    let bench = Bench::new();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() > 30);
    let wrong = parallel_map(2, &paths, |_, path| kept_its_meaning(&bench, path).err());
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A case has three parts: items, the function, its tests.
fn kept_its_meaning(bench: &Bench, path: &Path) -> Result<(), String> {
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).unwrap();
    let (items, rest) = text.strip_prefix("// items\n").unwrap().split_once("// function\n").unwrap();
    let (function, tests) = rest.split_once("// tests\n").unwrap();
    let prepared = bench.prepare(function.trim(), &[items.trim()]);
    let score = bench.score(&prepared, tests);
    let n_lost = prepared.instrumented.branches.len() - prepared.branches().len()
        + prepared.instrumented.lines.len()
        - prepared.lines().len();
    match () {
        () if prepared.not_instrumentable.is_some() => {
            Err(format!("{name}: {:?}", prepared.not_instrumentable))
        }
        () if !score.passed || !score.entered => Err(format!("{name}: {:?} {:?}", score.error, score.tests)),
        () if n_lost > 0 => Err(format!("{name}: {n_lost} probes do not compile")),
        () if score.killed().is_empty() => Err(format!("{name}: no mutant is killed")),
        () => Ok(()),
    }
}

/// A constant needs a constant function, and that can't ask which mutant is on: its mutants are written into the source.
#[test]
fn a_function_that_a_constant_needs_has_its_mutants_in_the_source() {
    let bench = Bench::new();
    let (prepared, score) = bench.run(
        "pub const fn shift(x: u8) -> u8 { x << 2 }",
        &["pub const TABLE: [u8; 2] = [shift(1), shift(2)];"],
        "#[test] fn t() { assert_eq!(TABLE, [4, 8]); }",
    );
    assert!(prepared.not_instrumentable.is_some());
    let counts = score.counts().unwrap();
    assert_eq!((counts.killed, counts.survived, counts.in_source), (6, 0, 6), "{:?}", score.mutants);
    assert!(score.entered);
    assert_eq!(with_status(&prepared, &score, MutantStatus::CompileError), Vec::<String>::new());
}

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

/// Only tests that reach a mutant are run on it. One that needs another before it must not look as if it noticed something.
#[test]
fn a_test_that_needs_another_before_it_kills_nothing_by_running_alone() {
    let bench = Bench::new();
    let (_, score) = bench.run(
        CLAMP,
        &[],
        "static READY: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
         #[test] fn a_prepares() { READY.store(true, std::sync::atomic::Ordering::SeqCst); }
         #[test] fn b_needs_it() {
             for x in [1, 5, 12] { let _ = clamp(x, 2, 9); }
             assert!(READY.load(std::sync::atomic::Ordering::SeqCst));
         }",
    );
    assert!(score.killed().is_empty(), "{:?}", score.mutants);
}

/// What a test finds in memory beside its own variables: the switch is among it.
#[test]
fn a_test_that_looks_for_the_switch_in_memory_learns_nothing() {
    let bench = Bench::new();
    let prepared = bench.prepare(CLAMP, &[]);
    let spy = |finds: &str| {
        format!(
            "static MARK: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
             #[test] fn spies() {{
                 for x in [1, 5, 12] {{ let _ = clamp(x, 2, 9); }}
                 let mark = &raw const MARK as usize;
                 for at in (mark - 256..mark + 256).step_by(4) {{
                     let value = unsafe {{ std::ptr::read_volatile(at as *const u32) }};
                     assert!(!({finds}), \"{{value}}\");
                 }}
             }}"
        )
    };
    for finds in ["(1..=7).contains(&value)", "value == 8", "value == 5"] {
        let score = bench.score(&prepared, &spy(finds));
        assert!(score.killed().is_empty(), "{finds}: {:?}", score.mutants);
    }
}

/// By whatever means a test tells that it is measured: it fails on the function as it is, too, and that shows.
#[test]
fn a_test_that_fails_when_measured_although_the_function_is_the_same_is_flaky() {
    let bench = Bench::new();
    let prepared = bench.prepare(CLAMP, &[]);
    let no_fuel = ScoreOptions { fuel_factor: 0, fuel_floor: 0, ..ScoreOptions::default() };
    let tests = "#[test] fn t() { assert_eq!(clamp(-5, 2, 9), 2); }";
    let score = score_suite(&bench.harness, &prepared, Some(tests), &no_fuel).unwrap();
    assert_eq!(score.tests[0].verdict, Verdict::Flaky);
    assert!(!score.passed && score.mutants.is_empty() && score.counts().is_none());
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
