//! The stage as a whole, on samples of every kind.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that goes wrong")]

use std::fs;
use std::path::Path;

use compile_check::{CompileCheck, Params};
use harness::Toolchain;
use record::compile::{COMPILE_SCHEMA_VERSION, CompileResult, CompileResults};
use record::corpus::CorpusRow;
use record::generation::Sample;
use record::libs::{LIBS_SCHEMA_VERSION, PrebuiltLibs};
use stage_kit::{ContextBuilder, StageError, files};
use tempfile::TempDir;

fn row(id: &str, function: &str, unit_tests: &str) -> CorpusRow {
    serde_json::from_value(serde_json::json!({
        "id": id,
        "function_code": function,
        "unit_tests": unit_tests,
        "property_tests": null,
        "context": {"imports": ["use std::collections::HashMap;"], "items": []},
        "metadata": {
            "crate": "c", "version": "1.0.0", "path": "src/lib.rs", "item": "add", "lines": [1, 3], "license": "MIT",
            "complexity": 1, "has_generics": false, "has_lifetimes": false, "is_async": false, "is_unsafe": false,
            "uses_macros": false, "returns_result": false, "source_class": "curated", "oracle": "human",
            "link_tier": "curated", "mutants_killed": 1, "sha256": "",
        },
    }))
    .unwrap()
}

fn sample(task: &str, sample_idx: u32, completion: &str) -> Sample {
    serde_json::from_value(serde_json::json!({
        "task_id": task, "sample_idx": sample_idx, "round": 0, "seed": 1, "prompt_sha256": "",
        "completion": completion, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1,
        "model_sha256": "", "adapter_sha256": null, "tokenizer_sha256": "", "template_sha256": "",
    }))
    .unwrap()
}

const OWN_TESTS: &str = "#[test]\nfn adds() {\n    assert_eq!(add(1, 2), 3);\n}";

struct Inputs(TempDir);

impl Inputs {
    fn new(completions: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for name in ["samples", "corpus", "libs"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let samples = completions.iter().enumerate().map(|(i, text)| sample("add", i as u32, text));
        files::write_jsonl(&root.join("samples/samples.jsonl"), samples).unwrap();
        let add = row("add", "pub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}", OWN_TESTS);
        files::write_jsonl(&root.join("corpus/holdout.jsonl"), [add]).unwrap();
        let libs = PrebuiltLibs {
            schema_version: LIBS_SCHEMA_VERSION,
            rustc: Toolchain::find().unwrap().version,
            externs: Default::default(),
            versions: Default::default(),
            files: Default::default(),
        };
        files::write_json(&root.join("libs/libs.json"), &libs).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, params: Params) -> Result<CompileResults, StageError> {
        let root: &Path = self.0.path();
        let mut builder = ContextBuilder::new("compile-check", root).output("compile", root.join("compile"));
        for name in ["samples", "corpus", "libs"] {
            builder = builder.input(name, root.join(name));
        }
        builder.run::<CompileCheck>(params)?;
        files::read_versioned(&root.join("compile/compile_results.json"), COMPILE_SCHEMA_VERSION)
    }
}

fn judge(completions: &[&str]) -> Vec<CompileResult> {
    let results = Inputs::new(completions).run(Params::default()).unwrap();
    assert!(results.toolchain.starts_with("rustc "));
    assert!(results.isolation.level >= 1);
    results.samples
}

#[test]
fn each_sample_is_judged_as_it_deserves_and_in_order() {
    let fenced = format!("Here you are:\n\n```rust\n{OWN_TESTS}\n```\n");
    let samples = judge(&[
        OWN_TESTS,
        &fenced,
        "fn adds( {",
        "#[test]\nfn t() {\n    let x: String = add(1, 2);\n    assert_eq!(x, \"3\");\n}",
        "#[test]\nfn t() {\n    let unused = 1;\n    assert_eq!(add(1, 2), 3);\n}",
        "#[test]\nfn t() {\n    std::process::exit(add(0, 0));\n}",
        "",
        "I am sorry, but I can't do that.",
        "#[test]\nfn t() {\n    let x: u8 = 255 + 1;\n    assert_eq!(add(1, 2), 3 + x as i32);\n}",
        OWN_TESTS,
    ]);
    assert_eq!(samples.iter().map(|s| s.sample_idx).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    let verdicts: Vec<_> = samples.iter().map(|s| (s.parses, s.type_checks, s.links)).collect();
    let good = (true, Some(true), Some(true));
    let expected = [
        good,
        good,
        (false, None, None),
        (true, Some(false), None),
        good,
        (true, None, None),
        (true, Some(false), None),
        (false, None, None),
        (true, Some(true), Some(false)),
        good,
    ];
    assert_eq!(verdicts, expected);
    assert_eq!(samples[1].tests, OWN_TESTS);
    assert_eq!(samples[2].diagnostics[0].code.as_deref(), Some("syntax"));
    let mismatch = &samples[3].diagnostics[0];
    let place = mismatch.span.unwrap();
    assert_eq!((mismatch.code.as_deref(), place.line_start, place.column_start), (Some("E0308"), 3, 21));
    assert!(samples[5].refused.as_deref().unwrap().contains("std::process"));
    assert!(samples[5].facts.as_ref().unwrap().calls_focal);
    assert_eq!(samples[6].diagnostics[0].code.as_deref(), Some("no_test"));
    let similarity = samples[0].similarity.unwrap();
    assert!(
        (similarity.bleu4 - 1.0).abs() < 1e-9 && (similarity.codebleu - 1.0).abs() < 1e-9,
        "{similarity:?}"
    );
    if samples[0].lint_clean.is_some() {
        assert_eq!((samples[0].lint_clean, samples[4].lint_clean), (Some(true), Some(false)));
        let lint = &samples[4].diagnostics[0];
        assert_eq!((lint.code.as_deref(), lint.span.unwrap().line_start), (Some("unused_variables"), 3));
    }
}

#[test]
fn a_suggestion_is_tried_and_the_raw_verdict_stays() {
    let samples = judge(&[
        // Two mistakes of different kinds, which the compiler sees one after the other.
        "#[test]\nfn t() {\n    let sum = 0;\n    sum += add(1, 2);\n    let x: f64 = 3;\n    assert_eq!(f64::from(sum), x);\n}",
        // Mended in one place, wrong in another.
        "#[test]\nfn t() {\n    let x: f64 = 3;\n    assert_eq!(add(1, 2), \"3\", \"{x}\");\n}",
        "#[test]\nfn t() {\n    assert_eq!(subtract(1, 2), 3);\n}",
    ]);
    for sample in &samples {
        assert_eq!(sample.type_checks, Some(false), "the raw verdict stays: {sample:?}");
    }
    let mended: Vec<_> = samples.iter().map(|s| s.fixes.last().map(|f| f.type_checks)).collect();
    assert_eq!(mended, [Some(true), Some(false), None]);
    let fixed = &samples[0].fixes.last().unwrap().tests;
    assert_eq!(*fixed, samples[0].tests.replace("let sum", "let mut sum").replace("= 3;", "= 3.0;"));
}

#[test]
fn attacks_at_compile_time_come_to_nothing() {
    let samples = judge(&[
        "#[test]\nfn t() { assert!(include_str!(\"/etc/hostname\").len() > add(0, 0) as usize); }",
        // Put together by a macro, so that the policy does not see it.
        "macro_rules! call { ($name:ident) => { $name!(\"/etc/hostname\") } }\n#[test]\nfn t() { call!(include); assert_eq!(add(1, 2), 3); }",
    ]);
    assert!(samples[0].refused.is_some());
    assert_eq!(
        (samples[1].refused.as_deref(), samples[1].type_checks),
        (None, Some(false)),
        "{:?}",
        samples[1]
    );
}

#[test]
fn text_that_nests_as_deep_as_it_is_long_breaks_nothing() {
    let deep = |open: &str, middle: &str, close: &str, n: usize| {
        let (open, close) = (open.repeat(n), close.repeat(n));
        format!("#[test]\nfn t() {{ let x = {open}{middle}{close}; assert_eq!(add(1, 2), 3); }}")
    };
    let texts = [
        deep("!", "true", "", 5_000),
        deep("(", "1", ")", 1_000),
        deep("[", "", "]", 1_000),
        deep("Some::<Vec<", "u8", ">>", 1_000),
        deep("{", "", "}", 1_000),
        "fn f(".repeat(3_000),
        "!".repeat(10_000),
        "(".repeat(10_000),
        OWN_TESTS.to_owned(),
    ];
    let samples = judge(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(samples.len(), texts.len());
    assert_eq!(samples.last().unwrap().links, Some(true));
    assert!(samples[5..8].iter().all(|s| !s.parses));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let inputs = Inputs::new(&[OWN_TESTS, "#[test]\nfn t() { assert_eq!(add(1), 1); }", "no"]);
    inputs.run(Params::default()).unwrap();
    let first = fs::read(inputs.path("compile/compile_results.json")).unwrap();
    inputs.run(Params::default()).unwrap();
    assert_eq!(first, fs::read(inputs.path("compile/compile_results.json")).unwrap());
}

#[test]
fn an_endless_compilation_ends_and_is_told() {
    let endless = "#[test]\nfn t() {\n    #[allow(long_running_const_eval)]\n    const N: u64 = { let mut n = 0_u64; while n < u64::MAX { n += 1; } n };\n    assert_eq!(add(1, 2), N as i32);\n}";
    let params = Params { compile_timeout_s: 3, fixes: false, ..Params::default() };
    let samples = Inputs::new(&[endless, OWN_TESTS]).run(params).unwrap().samples;
    assert_eq!((samples[0].type_checks, samples[1].type_checks), (Some(false), Some(true)));
    assert!(samples[0].diagnostics.iter().any(|d| d.code.as_deref() == Some("stopped")), "{:?}", samples[0]);
}

#[test]
fn bad_input_is_named() {
    let unreachable = Params { min_isolation: 9, ..Params::default() };
    let message = Inputs::new(&[OWN_TESTS]).run(unreachable).unwrap_err().to_string();
    assert!(message.contains("level 9 is required"), "{message}");

    let inputs = Inputs::new(&[OWN_TESTS]);
    fs::write(inputs.path("samples/samples.jsonl"), "{\"task_id\": 3}\n").unwrap();
    let message = inputs.run(Params::default()).unwrap_err().to_string();
    assert!(message.contains("samples.jsonl:1"), "{message}");

    let inputs = Inputs::new(&[OWN_TESTS]);
    files::write_jsonl(&inputs.path("samples/samples.jsonl"), [sample("nobody", 0, OWN_TESTS)]).unwrap();
    let message = inputs.run(Params::default()).unwrap_err().to_string();
    assert!(message.contains("`nobody`"), "{message}");

    let inputs = Inputs::new(&[OWN_TESTS]);
    fs::remove_file(inputs.path("libs/libs.json")).unwrap();
    let message = inputs.run(Params::default()).unwrap_err().to_string();
    assert!(message.contains("libs.json"), "{message}");
    assert!(!inputs.path("compile").exists());

    let none = Inputs::new(&[]).run(Params::default()).unwrap();
    assert!(none.samples.is_empty());
}
