//! Real compilations and real runs: verdicts come out as the tests deserve, whatever the tests do.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{
    Build, CrateKind, Harness, Libraries, Limits, RunOptions, TestBinary, TestProgram, TestRun, Toolchain,
};
use record::mutation::Verdict::{self, Aborted, Failed, Ignored, Passed, Timeout};
use sandbox::Sandbox;
use tempfile::TempDir;

fn harness() -> (Harness, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let toolchain = Toolchain::find().unwrap();
    let harness = Harness::new(
        toolchain,
        Libraries::none(),
        Sandbox::probe(),
        dir.path().to_path_buf(),
        Limits::default(),
    );
    (harness, dir)
}

fn build(harness: &Harness, source: &str, hook: Option<&str>) -> TestBinary {
    match harness.build(&TestProgram::new(source, hook).unwrap()).unwrap() {
        Build::Ready(binary) => binary,
        Build::Failed(compilation) => panic!("{compilation:#?}"),
    }
}

fn run(source: &str, options: &RunOptions) -> TestRun {
    let (harness, _dir) = harness();
    harness.run(&build(&harness, source, None), options).unwrap()
}

fn verdicts(source: &str) -> BTreeMap<String, Verdict> {
    let run = run(source, &RunOptions { wall: Duration::from_secs(60), ..RunOptions::default() });
    run.verdicts.into_iter().map(|(name, outcome)| (name, outcome.verdict)).collect()
}

fn expected(list: &[(&str, Verdict)]) -> BTreeMap<String, Verdict> {
    list.iter().map(|(name, verdict)| ((*name).to_owned(), *verdict)).collect()
}

#[test]
fn each_kind_of_test_gets_its_verdict() {
    let source = r#"
        pub fn halve(n: u32) -> Result<u32, String> { if n % 2 == 0 { Ok(n / 2) } else { Err("odd".into()) } }
        fn main() { panic!("a row's own main is never called"); }
        #[cfg(test)]
        mod tests {
            use super::*;
            #[test] fn right() { assert_eq!(halve(4), Ok(2)); }
            #[test] fn wrong() { assert_eq!(halve(4), Ok(3)); }
            #[test] fn fallible() -> Result<(), String> { halve(2).map(drop) }
            #[test] fn fallible_err() -> Result<(), String> { halve(3).map(drop) }
            #[test] #[should_panic] fn panics() { halve(3).unwrap(); }
            #[test] #[should_panic(expected = "odd")] fn panics_so() { halve(3).unwrap(); }
            #[test] #[should_panic(expected = "even")] fn panics_otherwise() { halve(3).unwrap(); }
            #[test] #[should_panic] fn does_not_panic() { halve(2).unwrap(); }
            #[test] #[ignore = "slow"] fn ignored() { panic!(); }
            #[cfg(any())] #[test] fn absent() { no_such_function(); }
            #[test] #[cfg_attr(not(feature = "x"), ignore)] fn ignored_here() { panic!(); }
            #[test] #[cfg_attr(miri, ignore = "slow", allow(unused))] fn not_ignored_here() { assert_eq!(halve(4), Ok(2)); }
            #[test] #[cfg_attr(all(), should_panic(expected = "odd"))] fn panics_here() { halve(3).unwrap(); }
            #[test] #[cfg_attr(miri, should_panic)] fn need_not_panic_here() {}
            #[cfg_attr(test, test)] fn a_test_here() { assert_eq!(halve(4), Ok(3)); }
            #[cfg_attr(miri, test)] fn no_test_here() { panic!(); }
            #[test] fn sees_cfg() { assert!(cfg!(test)); }
            fn helper() -> u32 { 1 }
            mod nested { #[test] fn right() { assert_eq!(super::helper(), 1); } }
        }
    "#;
    let expected = expected(&[
        ("right", Passed),
        ("wrong", Failed),
        ("fallible", Passed),
        ("fallible_err", Failed),
        ("panics", Passed),
        ("panics_so", Passed),
        ("panics_otherwise", Failed),
        ("does_not_panic", Failed),
        ("ignored", Ignored),
        ("ignored_here", Ignored),
        ("not_ignored_here", Passed),
        ("panics_here", Passed),
        ("need_not_panic_here", Passed),
        ("a_test_here", Failed),
        ("sees_cfg", Passed),
        ("nested::right", Passed),
    ]);
    // `absent` is compiled away: it is no test.
    assert_eq!(verdicts(source), expected);
}

#[test]
fn a_test_that_ends_the_process_hides_no_other() {
    let source = r#"
        #[test] fn a_passes() {}
        #[test] fn b_exits() { std::process::exit(0) }
        #[test] fn c_fails() { panic!("no") }
        #[test] fn d_aborts() { std::process::abort() }
        #[test] fn e_passes() {}
        #[test] fn f_overflows() {
            fn down(n: u64) -> u64 { let room = std::hint::black_box([n; 64]); if n == 0 { 0 } else { down(n + 1) + room[9] } }
            assert_ne!(down(1), 1);
        }
        #[test] fn g_eats() { let mut all = Vec::new(); loop { all.push(vec![1_u8; 64 << 20]); } }
        #[test] fn h_passes() {}
    "#;
    let expected = expected(&[
        ("a_passes", Passed),
        ("b_exits", Aborted),
        ("c_fails", Failed),
        ("d_aborts", Aborted),
        ("e_passes", Passed),
        ("f_overflows", Aborted),
        ("g_eats", Aborted),
        ("h_passes", Passed),
    ]);
    assert_eq!(verdicts(source), expected);
}

#[test]
fn an_innocent_test_is_not_blamed_for_anothers_thread() {
    let source = r#"
        use std::time::Duration;
        #[test] fn a_leaves_a_bomb() {
            std::thread::spawn(|| { std::thread::sleep(Duration::from_millis(50)); std::process::exit(0) });
        }
        #[test] fn b_takes_its_time() { std::thread::sleep(Duration::from_millis(300)); }
    "#;
    assert_eq!(verdicts(source), expected(&[("a_leaves_a_bomb", Passed), ("b_takes_its_time", Passed)]));
}

#[test]
fn endless_tests_time_out_and_fuel_ends_them_at_once() {
    let source = r#"
        #[test] fn a_sleeps() { std::thread::sleep(std::time::Duration::from_secs(600)); }
        #[test] fn b_passes() {}
        #[test] fn c_out_of_fuel() { crate::__testforge::out_of_fuel(); }
        #[test] fn d_out_of_fuel_in_a_thread() {
            let _ = std::thread::spawn(|| { crate::__testforge::out_of_fuel(); }).join();
        }
        #[test] fn e_passes() {}
    "#;
    let options = RunOptions { wall: Duration::from_secs(2), ..RunOptions::default() };
    let run = run(source, &options);
    let found: BTreeMap<_, _> = run.verdicts.iter().map(|(name, o)| (name.clone(), o.verdict)).collect();
    let expected = expected(&[
        ("a_sleeps", Timeout),
        ("b_passes", Passed),
        ("c_out_of_fuel", Timeout),
        ("d_out_of_fuel_in_a_thread", Timeout),
        ("e_passes", Passed),
    ]);
    assert_eq!(found, expected);
    assert!(run.wall < Duration::from_secs(30), "{:?}", run.wall);
    assert_eq!(run.verdicts["c_out_of_fuel"].message.as_deref(), Some("out of loop fuel"));
}

#[test]
fn a_verdict_can_not_be_forged() {
    let source = r#"
        use std::io::Write;
        use std::os::fd::FromRawFd;
        #[test] fn a_forges() {
            assert!(std::env::vars().all(|(name, _)| !name.starts_with("TESTFORGE")));
            println!("test a_forges ... ok");
            let line = "\nNONCE {\"event\":\"passed\",\"test\":\"a_forges\"}\n{\"event\":\"passed\",\"test\":\"a_forges\"}";
            for fd in 3..64 {
                let mut file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
                let _ = file.write_all(line.as_bytes());
            }
            panic!("caught");
        }
        #[test] fn b_closes_everything() {
            for fd in 3..64 { drop(unsafe { std::fs::File::from_raw_fd(fd) }); }
        }
        #[test] fn c_passes() {}
    "#;
    let found = verdicts(source);
    assert_eq!(found["a_forges"], Failed);
    assert_eq!(found["b_closes_everything"], Aborted);
    assert_eq!(found["c_passes"], Passed);
}

#[test]
fn the_hook_speaks_after_each_test() {
    let source = "
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        pub fn count() -> String { format!(\"n={} \\\"q\\\"\", COUNT.load(std::sync::atomic::Ordering::Relaxed)) }
        #[test] fn a() { COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed); }
        #[test] fn b() { COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed); panic!(); }
        #[test] fn c() { COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed); crate::__testforge::out_of_fuel() }";
    let (harness, _dir) = harness();
    let run = harness.run(&build(&harness, source, Some("crate::count()")), &RunOptions::default()).unwrap();
    let extra: Vec<&str> = run.extra.values().map(String::as_str).collect();
    assert_eq!(extra, ["n=1 \"q\"", "n=2 \"q\"", "n=3 \"q\""]);
}

#[test]
fn the_hook_takes_its_variables_before_a_test_can_see_them() {
    let source = "
        pub fn take() -> String { let v = std::env::var(\"SECRET\").unwrap_or_default(); std::env::remove_var(\"SECRET\"); v }
        #[test] fn a() { assert!(std::env::var(\"SECRET\").is_err()); }";
    let (harness, _dir) = harness();
    let env = BTreeMap::from([("SECRET".to_owned(), "7".to_owned())]);
    let options = RunOptions { env, ..RunOptions::default() };
    let run = harness.run(&build(&harness, source, Some("crate::take()")), &options).unwrap();
    assert_eq!(run.verdicts["a"].verdict, Passed);
}

#[test]
fn only_the_chosen_tests_run_and_fail_fast_stops() {
    let source = "
        #[test] fn a() { assert_eq!(std::env::var(\"GIVEN\").as_deref(), Ok(\"value\")); }
        #[test] fn b() { panic!() }
        #[test] fn c() {}";
    let env = BTreeMap::from([("GIVEN".to_owned(), "value".to_owned())]);
    let only = Some(vec!["a".to_owned(), "c".to_owned()]);
    let chosen = run(source, &RunOptions { only, env: env.clone(), ..RunOptions::default() });
    assert_eq!(chosen.verdicts.keys().collect::<Vec<_>>(), ["a", "c"]);
    assert!(chosen.verdicts.values().all(|o| o.verdict == Passed));
    let fast = run(source, &RunOptions { fail_fast: true, env, ..RunOptions::default() });
    assert_eq!(fast.verdicts.keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn tests_that_a_macro_makes_do_not_pass_unseen() {
    let source = "macro_rules! make { ($n:ident) => { #[test] fn $n() { panic!() } } }
        mod tests { make!(a); #[test] fn b() {} }";
    assert_eq!(verdicts(source), expected(&[("b", Passed), ("make!", Aborted)]));
}

/// The names of these tests are longer than a variable may be.
#[test]
fn thousands_of_tests_run_and_can_be_chosen() {
    let name = |i: u32| format!("a_test_with_a_name_as_long_as_a_chatty_model_would_make_it_number_{i}");
    let source: String =
        (0..3000).map(|i| format!("#[test] fn {}() {{ assert!({i} % 7 != 6); }}\n", name(i))).collect();
    let (harness, _dir) = harness();
    let binary = build(&harness, &source, None);
    let all = harness.run(&binary, &RunOptions::default()).unwrap();
    assert_eq!(all.verdicts.len(), 3000);
    let n_passed = all.verdicts.values().filter(|test| test.verdict == Passed).count();
    assert_eq!(n_passed, (0..3000).filter(|i| i % 7 != 6).count());
    let only: Vec<String> = (0..3000).step_by(2).map(name).collect();
    let some =
        harness.run(&binary, &RunOptions { only: Some(only.clone()), ..RunOptions::default() }).unwrap();
    assert_eq!(some.verdicts.keys().collect::<std::collections::BTreeSet<_>>(), only.iter().collect());
}

#[test]
fn a_message_of_any_length_leaves_the_verdict_what_it_is() {
    let source = "#[test] fn a() { panic!(\"{}\", \"é\".repeat(20_000_000)) }
        #[test] #[should_panic(expected = \"end\")] fn b() { panic!(\"{}end\", \"é\".repeat(20_000_000)) }
        #[test] fn c() {}";
    assert_eq!(verdicts(source), expected(&[("a", Failed), ("b", Passed), ("c", Passed)]));
}

#[test]
fn a_condition_that_leaves_a_test_out_moves_no_other() {
    let source = "#[cfg(any())] #[test] fn a() {} #[test] fn b() {} #[cfg(not(any()))] #[test] fn c() {}
        mod m { #[cfg(any())] #[test] fn d() {} #[test] fn e() {} } #[test] fn f() {}";
    let chosen = |only: &[&str]| {
        let only = Some(only.iter().map(|name| (*name).to_owned()).collect());
        let run = run(source, &RunOptions { only, ..RunOptions::default() });
        run.verdicts.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(chosen(&["b", "m::e"]), ["b", "m::e"]);
    assert_eq!(chosen(&["a", "c", "m::d", "f"]), ["c", "f"]);
}

#[test]
fn a_suite_of_endless_tests_is_given_up() {
    let source: String =
        (0..40).map(|i| format!("#[test] fn t{i:02}() {{ loop {{ std::hint::spin_loop(); }} }}\n")).collect();
    let began = std::time::Instant::now();
    let options = RunOptions { wall: Duration::from_secs(1), ..RunOptions::default() };
    let run = run(&source, &options);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let verdicts: Vec<Verdict> = run.verdicts.values().map(|test| test.verdict).collect();
    assert_eq!((verdicts.len(), verdicts[0], verdicts[39]), (40, Timeout, Aborted));
}

#[test]
fn a_failure_says_where_in_the_source() {
    let run = run("#[test] fn a() {\n    assert_eq!(1 + 1, 3);\n}", &RunOptions::default());
    let message = run.verdicts["a"].message.clone().unwrap();
    assert!(message.starts_with("row.rs:2:5: assertion `left == right` failed"), "{message}");
}

#[test]
fn files_and_network_are_out_of_reach_for_a_test() {
    let sandbox = Sandbox::probe();
    sandbox.require(1).expect("this machine has Landlock and seccomp, or this test can't say anything");
    let found = verdicts(
        r#"
        #[test] fn reads() { assert!(std::fs::read("/etc/hostname").is_err()); }
        #[test] fn writes() { assert!(std::fs::write("/tmp/x", "x").is_err()); }
        #[test] fn connects() { assert!(std::net::TcpStream::connect("127.0.0.1:22").is_err()); }
        #[test] fn starts() { assert!(std::process::Command::new("/bin/sh").status().is_err()); }"#,
    );
    assert!(found.values().all(|verdict| *verdict == Passed), "{found:?}");
}

#[test]
fn the_compiler_tells_of_errors_warnings_and_lints_in_their_places() {
    let (harness, _dir) = harness();
    let good = "pub fn f(n: u8) -> u8 { n }\n#[test] fn t() { assert_eq!(f(1), 1); }";
    assert!(harness.check(good, CrateKind::Test).unwrap().success);
    assert!(harness.link(good).unwrap().success);
    let bad = harness.check("#[test] fn t() {\n    let x: u8 = \"é\";\n}", CrateKind::Test).unwrap();
    assert!(!bad.success && bad.stopped.is_none());
    let error = &bad.diagnostics[0];
    assert_eq!((error.level.as_str(), error.code.as_deref()), ("error", Some("E0308")));
    let place = error.primary().unwrap();
    assert_eq!((place.line_start, place.column_start, place.column_end), (2, 17, 20));
    // Without --test the test is not looked at.
    assert!(harness.check("#[test] fn t() { let x: u8 = \"\"; }", CrateKind::Lib).unwrap().success);
    let syntax = harness.check("fn f( {", CrateKind::Test).unwrap();
    assert!(!syntax.success && syntax.diagnostics.iter().any(|d| d.level == "error"));
    match harness.lint("pub fn f(v: &Vec<u8>) -> bool { v.len() == 0 }", CrateKind::Lib).unwrap() {
        Some(lints) => {
            let codes: Vec<_> = lints.diagnostics.iter().filter_map(|d| d.code.as_deref()).collect();
            assert!(codes.contains(&"clippy::len_zero"), "{codes:?}");
        }
        None => assert!(harness.toolchain().clippy_driver.is_none()),
    }
}

#[test]
fn a_link_error_is_found_only_by_linking() {
    let (harness, _dir) = harness();
    let source = "extern \"C\" { fn no_such_symbol_anywhere(); }\n#[test] fn t() { unsafe { no_such_symbol_anywhere() } }";
    assert!(harness.check(source, CrateKind::Test).unwrap().success);
    let linked = harness.link(source).unwrap();
    assert!(!linked.success && linked.stopped.is_none(), "{linked:?}");
    assert_eq!(linked, harness.link(source).unwrap(), "no name of a temporary folder is in the messages");
}

#[test]
fn an_endless_compilation_is_stopped() {
    let (harness, dir) = harness();
    let limits = Limits { compile_wall: Duration::from_secs(2), ..Limits::default() };
    let harness = Harness::new(
        harness.toolchain().clone(),
        Libraries::none(),
        harness.sandbox().clone(),
        dir.path().to_path_buf(),
        limits,
    );
    let source = "#![allow(long_running_const_eval)]\npub const N: u64 = { let mut n = 0_u64; while n < u64::MAX { n += 1; } n };";
    let compilation = harness.check(source, CrateKind::Lib).unwrap();
    assert!(!compilation.success);
    assert!(compilation.stopped.unwrap().contains("deadline"));
}

#[test]
fn lints_that_deny_by_default_are_errors_when_judged_and_nothing_when_run() {
    let (harness, _dir) = harness();
    let literal = "#[test] fn t() { let x: u8 = 256; assert_eq!(x, 0); }";
    assert!(!harness.check(literal, CrateKind::Test).unwrap().success);
    build(&harness, literal, None);
    // This one is found only while code is made.
    let overflow = "#[test] fn t() { let x: u8 = 255 + 1; assert_eq!(x, 0); }";
    assert!(!harness.link(overflow).unwrap().success);
    build(&harness, overflow, None);
}
