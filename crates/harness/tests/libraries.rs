//! Rows that use the prebuilt libraries: asynchronous tests and property tests, for real.
//!
//! Builds `corpus/libs` into cargo's folder for test data (once; later runs find it there).

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use harness::{Build, Harness, Libraries, Limits, RunOptions, TestProgram, TestRun, Toolchain};
use record::libs::{LIBS_SCHEMA_VERSION, PrebuiltLibs};
use record::mutation::Verdict::{self, Failed, Passed};
use sandbox::Sandbox;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// What `prebuild-libs` makes, without its care for equal bytes on other machines.
fn libraries() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("libs");
        let toolchain = Toolchain::find().unwrap();
        let mut cargo = Command::new(toolchain.sysroot.join("bin/cargo"));
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/libs/Cargo.toml");
        cargo
            .args(["build", "--release", "--locked", "--message-format=json", "--manifest-path"])
            .arg(manifest);
        cargo.arg("--target-dir").arg(root.join("target"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_PKG")
                || name == "RUSTFLAGS"
                || name == "CARGO_MANIFEST_DIR"
            {
                cargo.env_remove(name);
            }
        }
        let output = cargo.env("RUSTC", &toolchain.rustc).env("RUSTC_WRAPPER", "").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let flat = root.join("flat");
        let _ = std::fs::remove_dir_all(&flat);
        std::fs::create_dir_all(&flat).unwrap();
        let mut libs = PrebuiltLibs {
            schema_version: LIBS_SCHEMA_VERSION,
            rustc: toolchain.version,
            externs: BTreeMap::new(),
            versions: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let message: serde_json::Value = serde_json::from_str(line).unwrap();
            for file in message["filenames"].as_array().into_iter().flatten().filter_map(|f| f.as_str()) {
                let path = Path::new(file);
                if path.extension().is_none_or(|e| e != "rlib" && e != "so") {
                    continue;
                }
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let bytes = std::fs::read(path).unwrap();
                std::fs::write(flat.join(&name), &bytes).unwrap();
                for wanted in ["tokio", "proptest"] {
                    if message["target"]["name"] == wanted {
                        libs.externs.insert(wanted.to_owned(), name.clone());
                    }
                }
                libs.files.insert(name, hex::encode(Sha256::digest(bytes)));
            }
        }
        std::fs::write(flat.join("libs.json"), serde_json::to_string(&libs).unwrap()).unwrap();
        flat
    })
}

fn harness() -> (Harness, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let toolchain = Toolchain::find().unwrap();
    let libraries = Libraries::load(libraries(), &toolchain).unwrap();
    (Harness::new(toolchain, libraries, Sandbox::probe(), dir.path().to_path_buf(), Limits::default()), dir)
}

fn run(source: &str) -> TestRun {
    let (harness, _dir) = harness();
    match harness.build(&TestProgram::new(source, None).unwrap()).unwrap() {
        Build::Ready(binary) => {
            let options = RunOptions { wall: Duration::from_secs(10), ..RunOptions::default() };
            harness.run(&binary, &options).unwrap()
        }
        Build::Failed(compilation) => panic!("{compilation:#?}"),
    }
}

fn verdicts(run: &TestRun) -> Vec<(&str, Verdict)> {
    run.verdicts.iter().map(|(name, outcome)| (name.as_str(), outcome.verdict)).collect()
}

#[test]
fn asynchronous_tests_run_and_sleeping_costs_nothing() {
    let run = run(r#"
        use std::time::Duration;
        use tokio::time::{sleep, timeout};
        pub async fn slow(n: u32) -> u32 { sleep(Duration::from_secs(3600)).await; n + 1 }
        #[cfg(test)]
        mod tests {
            use super::*;
            #[tokio::test] async fn waits() { assert_eq!(slow(1).await, 2); }
            #[tokio::test] async fn fails() { assert_eq!(slow(1).await, 3); }
            #[tokio::test] #[should_panic(expected = "late")] async fn panics() {
                timeout(Duration::from_secs(1), slow(1)).await.expect("late");
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn threads() {
                assert_eq!(tokio::spawn(async { 7 }).await.unwrap(), 7);
            }
            #[tokio::test] async fn fallible() -> Result<(), String> { Err("no".into()) }
        }"#);
    let expected =
        [("fails", Failed), ("fallible", Failed), ("panics", Passed), ("threads", Passed), ("waits", Passed)];
    assert_eq!(verdicts(&run), expected);
    assert!(run.wall < Duration::from_secs(10), "{:?}", run.wall);
}

#[test]
fn a_test_that_steers_the_clock_itself_behaves_as_under_cargo() {
    let run = run(r#"
        use std::time::Duration;
        #[tokio::test] async fn pauses() { tokio::time::pause(); tokio::time::sleep(Duration::from_secs(3600)).await; }
        #[tokio::test(start_paused = true)] async fn paused() { tokio::time::advance(Duration::from_secs(9)).await; }
        #[tokio::test] async fn not_paused() { tokio::time::advance(Duration::from_secs(9)).await; }"#);
    assert_eq!(verdicts(&run), [("not_paused", Failed), ("paused", Passed), ("pauses", Passed)]);
}

#[test]
fn property_tests_run_and_draw_the_same_cases_every_time() {
    let source = r#"
        pub fn double(n: u32) -> u32 { n.wrapping_mul(2) }
        #[cfg(test)]
        mod property_tests {
            use super::*;
            use proptest::prelude::*;
            proptest! {
                #![proptest_config(ProptestConfig::with_cases(64))]
                #[test]
                fn even(n in 0..1000u32, _m: u8) { prop_assert_eq!(double(n) % 2, 0); }
                /// Fails on some number that the seed chooses.
                #[test]
                fn small(n: u32) { prop_assert!(double(n) < 1_000, "n = {}", n); }
                #[test]
                #[should_panic]
                fn panics(v in prop::collection::vec(0..9u8, 1..4)) { assert!(v.is_empty()); }
            }
            #[test]
            fn closure_form() { proptest!(|(n in 0..9u32)| { prop_assert!(double(n) < 18); }); }
            #[test]
            fn closure_fails() { proptest!(|(n: u64)| { prop_assert!(n < 1000, "n = {}", n); }); }
        }"#;
    let (first, second) = (run(source), run(source));
    let expected = [
        ("property_tests::closure_fails", Failed),
        ("property_tests::closure_form", Passed),
        ("property_tests::even", Passed),
        ("property_tests::panics", Passed),
        ("property_tests::small", Failed),
    ];
    assert_eq!(verdicts(&first), expected);
    assert_eq!(first.verdicts, second.verdicts, "the messages name the same counterexamples");
}

#[test]
fn a_damaged_library_and_one_of_another_compiler_are_refused() {
    let toolchain = Toolchain::find().unwrap();
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(libraries()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    assert!(Libraries::load(copy.path(), &toolchain).is_ok());
    let other = Toolchain { version: "rustc 1.0.0".to_owned(), ..toolchain.clone() };
    let message = Libraries::load(copy.path(), &other).unwrap_err().to_string();
    assert!(message.contains("another compiler"), "{message}");
    let victim = Libraries::load(copy.path(), &toolchain).unwrap().externs["tokio"].clone();
    let mut bytes = std::fs::read(&victim).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&victim, bytes).unwrap();
    let message = Libraries::load(copy.path(), &toolchain).unwrap_err().to_string();
    assert!(message.contains("damaged") && message.contains("libtokio"), "{message}");
    std::fs::remove_file(&victim).unwrap();
    assert!(Libraries::load(copy.path(), &toolchain).is_err());
    let nothing = tempfile::tempdir().unwrap();
    let message = Libraries::load(nothing.path(), &toolchain).unwrap_err().to_string();
    assert!(message.contains("libs.json") && message.contains("prebuild-libs"), "{message}");
}
