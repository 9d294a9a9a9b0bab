//! The real program twice on the same inputs, in surroundings that have nothing in common: what it writes is the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::Toolchain;
use serde_json::{Value, json};

/// Code whose messages might name folders, variables, or an order.
const COMPLETIONS: [&str; 10] = [
    "#[test]\nfn adds() { assert_eq!(add(1, 2), 3); }",
    "fn adds( {",
    "#[test]\nfn t() { let x: String = add(1, 2); }",
    "#[test]\nfn t() { let unused = add(1, 2); let m = HashMap::new(); }",
    "use no_such_crate::thing;\n#[test]\nfn t() { assert_eq!(add(1, 2), 3); }",
    "extern crate no_such_crate;\n#[test]\nfn t() { assert_eq!(add(1, 2), 3); }",
    "unsafe extern \"C\" { fn no_such_symbol() -> i32; }\n#[test]\nfn t() { assert_eq!(unsafe { no_such_symbol() }, add(1, 2)); }",
    "mod elsewhere;\n#[test]\nfn t() { assert_eq!(add(1, 2), 3); }",
    "#[test]\nfn t() { let s = concat!(file!(), module_path!()); compile_error!(\"no\"); assert_eq!(s.len() as i32, add(1, 2)); }",
    "trait A { fn f(&self); } impl A for u8 { fn f(&self) {} } impl A for u16 { fn f(&self) {} }\n#[test]\nfn t() { add(1, 2).f(); }",
];

fn inputs(root: &Path) {
    let write = |name: &str, text: String| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let row = json!({
        "id": "add", "function_code": "pub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}",
        "unit_tests": COMPLETIONS[0], "property_tests": null,
        "context": {"imports": ["use std::collections::HashMap;"], "items": []},
        "metadata": {
            "crate": "c", "version": "1.0.0", "path": "src/lib.rs", "item": "add", "lines": [1, 3], "license": "MIT",
            "complexity": 1, "has_generics": false, "has_lifetimes": false, "is_async": false, "is_unsafe": false,
            "uses_macros": false, "returns_result": false, "source_class": "curated", "oracle": "human",
            "link_tier": "curated", "mutants_killed": 1, "sha256": "",
        },
    });
    write("corpus/holdout.jsonl", format!("{row}\n"));
    let sample = |(i, text): (usize, &&str)| {
        let sample = json!({
            "task_id": "add", "sample_idx": i, "round": 0, "seed": 1, "prompt_sha256": "", "completion": text,
            "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1, "model_sha256": "",
            "adapter_sha256": null, "tokenizer_sha256": "", "template_sha256": "",
        });
        format!("{sample}\n")
    };
    write("samples/samples.jsonl", COMPLETIONS.iter().enumerate().map(sample).collect());
    let rustc = Toolchain::find().unwrap().version;
    let libs = json!({"schema_version": 1, "rustc": rustc, "externs": {}, "versions": {}, "files": {}});
    write("libs/libs.json", libs.to_string());
}

fn run(root: &Path, at: &Path, umask: &str, cpus: &str, variables: &[(&str, &str)]) -> String {
    let out = at.join("out");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
    command
        .arg(std::env::var_os("CARGO_BIN_EXE_compile-check").expect("cargo names the program for its tests"));
    for input in ["samples", "corpus", "libs"] {
        command.arg("--input").arg(format!("{input}={}", root.join(input).display()));
    }
    command.arg("--output").arg(format!("compile={}", out.display()));
    command.args(["--cpus", cpus]).current_dir(at);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("RUSTC", Toolchain::find().unwrap().rustc).envs(variables.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    fs::read_to_string(out.join("compile_results.json")).unwrap()
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
            ("CLIPPY_CONF_DIR", &other_tmp),
            ("CLIPPY_ARGS", "-Wclippy::pedantic"),
            ("RUSTC_BOOTSTRAP", "1"),
            ("CARGO_MANIFEST_DIR", "/nowhere"),
        ],
    );
    let differs = one.lines().zip(two.lines()).find(|(a, b)| a != b);
    assert_eq!(one, two, "{differs:?}");
    assert!(!one.contains(&*root.to_string_lossy()), "no folder of this run");
    let results: Value = serde_json::from_str(&one).unwrap();
    let of = |i: usize, what: &str| results["samples"][i][what].clone();
    assert_eq!((of(0, "links"), of(2, "type_checks")), (json!(true), json!(false)));
    assert!(of(6, "refused").is_string(), "{}", of(6, "refused"));
}
