//! The real program twice on the same inputs, in surroundings that have nothing in common: what it writes is the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use harness::Toolchain;
use serde_json::{Value, json};
use stage_kit::digest::sha256_hex;

fn row(id: &str, function: &str, tests: &str) -> Value {
    json!({
        "id": id, "function_code": function, "unit_tests": tests, "property_tests": null,
        "context": {"imports": [], "items": []},
        "metadata": {
            "crate": "c", "version": "1.0.0", "path": "src/lib.rs", "item": id, "lines": [1, 3], "license": "MIT",
            "complexity": 2, "has_generics": false, "has_lifetimes": false, "is_async": false, "is_unsafe": false,
            "uses_macros": false, "returns_result": false, "source_class": "curated", "oracle": "human",
            "link_tier": "curated", "mutants_killed": 1, "stratum": "std", "sha256": "",
        },
    })
}

const CLAMP: &str = "pub fn clamp(x: i32, lo: i32, hi: i32) -> i32 {
    if x < lo { lo } else if x > hi { hi } else { x }
}";
const CLAMP_TESTS: &str =
    "#[test]\nfn all() { assert_eq!(clamp(-5, 2, 9), 2); assert_eq!(clamp(12, 2, 9), 9); }";
const LETTER: &str = "pub fn letter(upper: bool) -> char { if upper { 65 as char } else { 'a' } }";
const LETTER_TESTS: &str = "#[test]\nfn both() { assert_eq!((letter(true), letter(false)), ('A', 'a')); }";

/// Suites whose messages would say where, when and by whom they were run.
const SUITES: [(&str, &str); 10] = [
    ("a/clamp", CLAMP_TESTS),
    ("a/clamp", "#[test]\nfn says_its_path() { panic!(\"{:?}\", std::env::current_exe()); }"),
    (
        "a/clamp",
        "#[test]\nfn says_its_arguments() { panic!(\"{:?}\", std::env::args().collect::<Vec<_>>()); }",
    ),
    (
        "a/clamp",
        "#[test]\nfn says_its_variables() { panic!(\"{:?}\", std::env::vars().filter(|v| !v.0.contains(\"NONCE\")).collect::<Vec<_>>()); }",
    ),
    (
        "a/clamp",
        "#[test]\nfn says_its_folders() { panic!(\"{:?} {:?}\", std::env::current_dir(), std::env::temp_dir()); }",
    ),
    (
        "a/clamp",
        "#[test]\nfn says_its_place() { panic!(\"{} {} {} {}\", file!(), line!(), module_path!(), std::any::type_name::<fn()>()); }",
    ),
    (
        "a/clamp",
        "#[test]\nfn says_its_thread() { let t = std::thread::current(); panic!(\"{:?} {:?}\", t.name(), t.id()); }",
    ),
    (
        "a/clamp",
        "#[test]\nfn says_where_things_lie() { let x = Box::new(clamp(1, 2, 3)); panic!(\"{:p} {:p}\", &*x, &x); }",
    ),
    (
        "a/clamp",
        "#[test]\nfn says_an_order() { let m: std::collections::HashSet<i32> = (0..40).collect(); panic!(\"{m:?}\"); }",
    ),
    ("b/letter", LETTER_TESTS),
];

fn inputs(root: &Path) {
    let lines = |values: &[Value]| values.iter().map(|v| format!("{v}\n")).collect::<String>();
    let write = |name: &str, text: String| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let rows = [row("a/clamp", CLAMP, CLAMP_TESTS), row("b/letter", LETTER, LETTER_TESTS)];
    write("corpus/holdout.jsonl", lines(&rows));
    let (mut samples, mut compiled) = (Vec::new(), Vec::new());
    for (i, (task, tests)) in SUITES.iter().enumerate() {
        samples.push(json!({
            "task_id": task, "sample_idx": i, "round": 0, "seed": 1, "prompt_sha256": "", "completion": tests,
            "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1, "model_sha256": "",
            "adapter_sha256": null, "tokenizer_sha256": "", "template_sha256": "",
        }));
        compiled.push(json!({
            "task_id": task, "sample_idx": i, "round": 0, "completion_sha256": sha256_hex(tests), "tests": tests,
            "refused": null, "parses": true, "type_checks": true, "lint_clean": true, "links": true, "diagnostics": [],
            "fixes": [], "facts": null, "similarity": null,
        }));
    }
    write("samples/samples.jsonl", lines(&samples));
    let results = json!({"schema_version": 1, "toolchain": "", "linter": null,
        "isolation": {"level": 1, "layers": []}, "samples": compiled});
    write("compile/compile_results.json", results.to_string());
    let rustc = Toolchain::find().unwrap().version;
    let libs = json!({"schema_version": 1, "rustc": rustc, "externs": {}, "versions": {}, "files": {}});
    write("libs/libs.json", libs.to_string());
}

/// Runs the program below `umask` in the folder `at` with the variables given and nothing else but `PATH`.
fn run(
    root: &Path,
    at: &Path,
    umask: &str,
    cpus: &str,
    variables: &[(&str, &str)],
) -> BTreeMap<String, Vec<u8>> {
    let out = at.join("out");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
    command
        .arg(std::env::var_os("CARGO_BIN_EXE_mutate-score").expect("cargo names the program for its tests"));
    for input in ["samples", "corpus", "compile", "libs"] {
        command.arg("--input").arg(format!("{input}={}", root.join(input).display()));
    }
    command.arg("--output").arg(format!("mutation={}", out.display()));
    command.args(["--output", "timings=timings", "--cpus", cpus, "--set", "runs=2"]).current_dir(at);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("RUSTC", Toolchain::find().unwrap().rustc).envs(variables.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap());
    files.map(|f| (f.file_name().to_string_lossy().into_owned(), fs::read(f.path()).unwrap())).collect()
}

#[test]
fn neither_folder_nor_variables_nor_threads_show_in_the_results() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    inputs(root);
    let (here, there) = (root.join("here"), root.join("there/with a space/ünd mehr"));
    for folder in [&here, &there] {
        fs::create_dir_all(folder.join("tmp")).unwrap();
    }
    let other_tmp = there.join("tmp").display().to_string();
    let one = run(root, &here, "022", "1", &[("HOME", "/"), ("LANG", "C"), ("TZ", "UTC")]);
    let two = run(
        root,
        &there,
        "077",
        "4",
        &[
            ("HOME", &other_tmp),
            ("TMPDIR", &other_tmp),
            ("LANG", "tr_TR.UTF-8"),
            ("LC_ALL", "de_DE.UTF-8"),
            ("TZ", "Asia/Tokyo"),
            ("RUST_BACKTRACE", "full"),
            ("RUSTFLAGS", "-C opt-level=3"),
            ("RUST_TEST_THREADS", "7"),
            ("PROPTEST_CASES", "1"),
            ("TESTFORGE_MUTANT", "1"),
            ("CARGO_MANIFEST_DIR", "/nowhere"),
        ],
    );
    let names: Vec<&String> = one.keys().collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert_eq!(names, two.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        let (a, b) = (String::from_utf8_lossy(bytes), String::from_utf8_lossy(&two[name]));
        let differs = a.lines().zip(b.lines()).find(|(a, b)| a != b);
        assert!(*bytes == two[name], "{name}: {differs:?}");
    }
    let results = String::from_utf8_lossy(&one["test_results.json"]);
    assert!(results.contains("Ok(\\\"./row\\\")") && !results.contains(&*root.to_string_lossy()));
}
