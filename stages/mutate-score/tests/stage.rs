//! The stage on a small corpus whose outcome is known by hand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use harness::Toolchain;
use mutate_score::{MutateScore, Params};
use record::compile::{COMPILE_SCHEMA_VERSION, CompileResult, CompileResults, Isolation};
use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};
use record::generation::{FinishReason, Sample};
use record::libs::{LIBS_SCHEMA_VERSION, PrebuiltLibs};
use record::mutation::{CoverageReport, MutantStatus, MutationReport, SelectedSuite, TestResults, Verdict};
use stage_kit::digest::sha256_hex;
use stage_kit::{ContextBuilder, ExitCode, StageError, files};

const CLAMP: &str = "pub fn clamp(x: i32, lo: i32, hi: i32) -> i32 {
    if x < lo { lo } else if x > hi { hi } else { x }
}";
const CLAMP_TESTS: &str = "#[test]
fn all_three_ways() {
    assert_eq!(clamp(-5, 2, 9), 2);
    assert_eq!(clamp(12, 2, 9), 9);
    assert_eq!(clamp(4, 2, 9), 4);
}";
const SUM: &str = "pub fn sum(n: u32) -> u32 {
    let mut total = 0;
    for i in 0..n {
        total += i;
    }
    total
}";
const SUM_TESTS: &str = "#[test]\nfn sums() { assert_eq!(sum(5), 10); }";

fn row(id: &str, function: &str, tests: &str) -> CorpusRow {
    CorpusRow {
        id: id.into(),
        function_code: function.into(),
        unit_tests: tests.into(),
        property_tests: None,
        context: RowContext::default(),
        metadata: RowMetadata {
            crate_name: "c".into(),
            version: "1.0.0".into(),
            path: "src/lib.rs".into(),
            item: id.into(),
            lines: [1, 3],
            license: "MIT".into(),
            complexity: 3,
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
            mutants_killed: 1,
            stratum: Some("std".into()),
            sha256: String::new(),
        },
    }
}

fn sample(task: &str, sample_idx: u32, tests: &str) -> Sample {
    Sample {
        task_id: task.into(),
        sample_idx,
        round: 0,
        seed: 1,
        prompt_sha256: String::new(),
        completion: tests.into(),
        completion_ids: None,
        finish_reason: FinishReason::Stop,
        prompt_tokens: 1,
        completion_tokens: 1,
        model_sha256: String::new(),
        adapter_sha256: None,
        tokenizer_sha256: String::new(),
        template_sha256: String::new(),
    }
}

fn compiled(sample: &Sample, links: bool) -> CompileResult {
    CompileResult {
        task_id: sample.task_id.clone(),
        sample_idx: sample.sample_idx,
        round: sample.round,
        completion_sha256: sha256_hex(&sample.completion),
        tests: sample.completion.clone(),
        refused: None,
        parses: true,
        type_checks: Some(links),
        lint_clean: None,
        links: Some(links),
        diagnostics: Vec::new(),
        fixes: Vec::new(),
        facts: None,
        similarity: None,
    }
}

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    /// Samples: (task, index, tests, links).
    fn new(rows: &[CorpusRow], samples: &[(&str, u32, &str, bool)]) -> Self {
        let case = Self { dir: tempfile::tempdir().unwrap() };
        for folder in ["samples", "corpus", "compile", "libs"] {
            fs::create_dir(case.path(folder)).unwrap();
        }
        let all: Vec<Sample> = samples.iter().map(|(task, i, tests, _)| sample(task, *i, tests)).collect();
        let results = all.iter().zip(samples).map(|(sample, (.., links))| compiled(sample, *links));
        let results = CompileResults {
            schema_version: COMPILE_SCHEMA_VERSION,
            toolchain: String::new(),
            linter: None,
            isolation: Isolation { level: 0, layers: Vec::new() },
            samples: results.collect(),
        };
        files::write_jsonl(&case.path("samples/samples.jsonl"), &all).unwrap();
        files::write_jsonl(&case.path("corpus/holdout.jsonl"), rows).unwrap();
        files::write_json(&case.path("compile/compile_results.json"), &results).unwrap();
        let libs = PrebuiltLibs {
            schema_version: LIBS_SCHEMA_VERSION,
            rustc: Toolchain::find().unwrap().version,
            externs: Default::default(),
            versions: Default::default(),
            files: Default::default(),
        };
        files::write_json(&case.path("libs/libs.json"), &libs).unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, output: &str) -> Result<PathBuf, StageError> {
        let root: &Path = self.dir.path();
        let mut builder = ContextBuilder::new("mutate-score", &root.join(format!("run-{output}")));
        for input in ["samples", "corpus", "compile", "libs"] {
            builder = builder.input(input, root.join(input));
        }
        let out = self.path(output);
        builder
            .output("mutation", &out)
            .output("timings", self.path(&format!("{output}-timings")))
            .run::<MutateScore>(Params::default())?;
        Ok(out)
    }
}

fn rows() -> Vec<CorpusRow> {
    vec![row("a/clamp", CLAMP, CLAMP_TESTS), row("b/sum", SUM, SUM_TESTS)]
}

#[test]
fn verdicts_mutants_coverage_and_controls_come_out_as_counted_by_hand() {
    let below = "#[test]\nfn below() { assert_eq!(clamp(-5, 2, 9), 2); }";
    let above = "#[test]\nfn above() { assert_eq!(clamp(12, 2, 9), 9); }";
    let wrong = "#[test]\nfn wrong() { assert_eq!(clamp(4, 2, 9), 5); }";
    let case = Case::new(
        &rows(),
        &[
            ("a/clamp", 0, below, true),
            ("a/clamp", 1, above, true),
            ("a/clamp", 2, wrong, true),
            ("a/clamp", 3, below, true),
            ("b/sum", 0, "#[test]\nfn broken() { sum(\"x\") }", false),
            ("b/sum", 1, SUM_TESTS, true),
        ],
    );
    let out = case.run("first").unwrap();
    let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
    let states: Vec<(bool, bool)> = results.samples.iter().map(|s| (s.compiled, s.passed)).collect();
    assert_eq!(
        states,
        [(true, true), (true, true), (true, false), (true, true), (false, false), (true, true)]
    );
    // Three return values and four comparisons; `below` does not reach the second `if`.
    let counts = results.samples[0].mutants.unwrap();
    assert_eq!((counts.killed, counts.survived, counts.no_coverage), (4, 1, 2));
    assert_eq!(
        results.samples[0],
        record::mutation::SampleResult { sample_idx: 0, ..results.samples[3].clone() }
    );
    let coverage = results.samples[0].coverage.unwrap();
    assert_eq!((coverage.branches, coverage.branches_covered, coverage.branches_covered_baseline), (3, 1, 3));
    assert_eq!(results.samples[2].tests[0].verdict, Verdict::Failed);
    assert_eq!((results.samples[2].mutants, results.samples[2].coverage), (None, None));
    let controls = &results.controls;
    for control in [&controls.planted_bug, &controls.vacuous_test, &controls.shuffled_pairing] {
        assert_eq!(
            (control.as_expected, control.cases, control.holds),
            (2, 2, Some(true)),
            "{}",
            control.expected
        );
    }

    let report: MutationReport = files::read_json(&out.join("mutation.json")).unwrap();
    assert_eq!((report.schema_version.as_str(), report.files.len()), ("2", 2));
    let statuses = |file: &str| report.files[file].mutants.iter().map(|m| m.status).collect::<Vec<_>>();
    assert!(statuses("a/clamp.rs").contains(&MutantStatus::Survived));
    assert!(
        statuses("b/sum.rs").iter().all(|s| *s == MutantStatus::NoCoverage),
        "its first sample does not compile"
    );

    let selected: Vec<SelectedSuite> = files::read_jsonl(&out.join("selected.jsonl")).unwrap();
    assert_eq!(selected.iter().map(|s| s.task_id.as_str()).collect::<Vec<_>>(), ["a/clamp", "b/sum"]);
    let chosen: Vec<u32> = selected[0].samples.iter().map(|s| s.sample_idx).collect();
    assert_eq!(chosen, [1], "`above` kills all that `below` kills, and more");

    let coverage: CoverageReport = files::read_json(&out.join("coverage.json")).unwrap();
    assert_eq!(coverage.functions["a/clamp"].branches.iter().filter(|b| b.covered).count(), 1);
    assert!(!coverage.functions["b/sum"].passed);
    let page = fs::read_to_string(out.join("mutation_report.html")).unwrap();
    assert!(page.contains("x &lt; lo") && !page.contains("<script") && !page.contains("http"));

    let second = case.run("second").unwrap();
    for file in
        ["test_results.json", "mutation.json", "mutation_report.html", "coverage.json", "selected.jsonl"]
    {
        assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(second.join(file)).unwrap(), "{file} differs");
    }
    assert!(case.path("first-timings/summary.json").exists());
}

/// What is known beforehand and comes out otherwise: the reference itself is broken, or the harness is.
#[test]
fn a_reference_that_fails_or_kills_nothing_breaks_the_control() {
    let wrong = "#[test]\nfn wrong() { assert_eq!(clamp(1, 2, 9), 1); }";
    let blind = "#[test]\nfn blind() { let _ = clamp(1, 2, 9); }";
    let uncompiled = "#[test]\nfn uncompiled() { clamp(\"x\"); }";
    let hanging = "#[test]\nfn hanging() { loop { clamp(1, 2, 9); } }";
    for tests in [wrong, blind, uncompiled, hanging] {
        let rows = vec![row("a/clamp", CLAMP, tests), row("b/sum", SUM, SUM_TESTS)];
        let case = Case::new(&rows, &[("a/clamp", 0, CLAMP_TESTS, true), ("b/sum", 0, SUM_TESTS, true)]);
        let out = case.run("out").unwrap();
        let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
        let control = &results.controls.planted_bug;
        assert_eq!((control.as_expected, control.cases, control.holds), (1, 2, Some(false)), "{tests}");
        assert_eq!(results.controls.vacuous_test.holds, Some(true), "{tests}");
    }
    let broken = vec![
        row("a/clamp", CLAMP, CLAMP_TESTS),
        row("b/sum", "pub fn sum(n: u32) -> u32 { n + \"\" }", SUM_TESTS),
    ];
    let case = Case::new(&broken, &[("a/clamp", 0, CLAMP_TESTS, true), ("b/sum", 0, SUM_TESTS, true)]);
    let out = case.run("out").unwrap();
    let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
    assert_eq!((results.controls.planted_bug.cases, results.controls.planted_bug.holds), (2, Some(false)));
    let page = fs::read_to_string(out.join("mutation_report.html")).unwrap();
    assert!(page.contains("<b class=\"bad\">no</b>"));
}

/// A row in whose context another row's function stands understands that row's tests: they are no stranger's.
#[test]
fn tests_of_a_function_that_the_row_knows_are_not_taken_for_a_strangers() {
    let outer = "pub fn outer(x: u32) -> u32 { inner(x) * 2 }";
    let tests = "#[test]\nfn doubles() { assert_eq!(outer(3), 8); }";
    let inner = "pub fn inner(x: u32) -> u32 { x + 1 }";
    let with = |mut row: CorpusRow, item: &str| {
        row.context.items.push(item.to_owned());
        row
    };
    let inner_tests = "#[test]\nfn adds() { assert_eq!(inner(3), 4); }";
    let rows = vec![
        with(row("a/inner", inner, inner_tests), outer),
        with(row("b/outer", outer, tests), inner),
        row("c/sum", SUM, SUM_TESTS),
    ];
    let samples =
        [("a/inner", 0, inner_tests, true), ("b/outer", 0, tests, true), ("c/sum", 0, SUM_TESTS, true)];
    let case = Case::new(&rows, &samples);
    let out = case.run("out").unwrap();
    let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
    let control = &results.controls.shuffled_pairing;
    assert_eq!((control.as_expected, control.cases, control.holds), (3, 3, Some(true)));
}

/// `65 as char` has no mutant under the switch; in the source it has three.
#[test]
fn mutants_that_compile_in_the_source_alone_are_run_counted_and_said() {
    let letter = "pub fn letter(upper: bool) -> char { if upper { 65 as char } else { 'a' } }";
    let tests = "#[test]\nfn upper() { assert_eq!(letter(true), 'A'); }";
    let case = Case::new(&[row("a/letter", letter, tests)], &[("a/letter", 0, tests, true)]);
    let out = case.run("out").unwrap();
    let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
    let counts = results.samples[0].mutants.unwrap();
    assert_eq!((counts.unviable, counts.in_source), (0, 3), "{counts:?}");
    let report: MutationReport = files::read_json(&out.join("mutation.json")).unwrap();
    let of_literal =
        report.files["a/letter.rs"].mutants.iter().filter(|m| m.mutator_name == "IntegerLiteral");
    for mutant in of_literal {
        assert_eq!(
            (mutant.status, mutant.killed_by.as_slice()),
            (MutantStatus::Killed, &["upper".to_owned()][..])
        );
        assert_eq!(
            mutant.status_reason.as_deref(),
            Some("run in the source: it does not compile under the switch")
        );
    }
    let page = fs::read_to_string(out.join("mutation_report.html")).unwrap();
    assert!(page.contains("3 of them do not compile under the switch"), "{page}");
}

#[test]
fn hangs_aborts_and_early_exits_are_verdicts_and_stop_nothing() {
    let tests = "#[test]\nfn hangs() { loop { sum(3); } }\n#[test]\nfn leaves() { std::process::exit(0); }\n\
                 #[test]\nfn aborts() { std::process::abort(); }\n#[test]\nfn sums() { assert_eq!(sum(5), 10); }";
    let case = Case::new(&rows(), &[("b/sum", 0, tests, true)]);
    let out = case.run("out").unwrap();
    let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
    let verdicts: Vec<Verdict> = results.samples[0].tests.iter().map(|t| t.verdict).collect();
    assert_eq!(verdicts, [Verdict::Timeout, Verdict::Aborted, Verdict::Aborted, Verdict::Passed]);
    assert!(!results.samples[0].passed);
}

#[test]
fn damaged_and_missing_inputs_name_their_place() {
    let case = Case::new(&rows(), &[("a/clamp", 0, CLAMP_TESTS, true)]);
    fs::write(case.path("samples/samples.jsonl"), "{\"task_id\":").unwrap();
    let error = case.run("out").unwrap_err();
    assert!(error.place().unwrap().contains("samples.jsonl:1"), "{error}");
    assert!(!case.path("out").exists());

    let case = Case::new(&rows(), &[("no/such", 0, CLAMP_TESTS, true)]);
    let error = case.run("out").unwrap_err();
    assert!(error.to_string().contains("no/such") && error.code() == ExitCode::StageFailed, "{error}");

    let case = Case::new(&rows(), &[("a/clamp", 0, CLAMP_TESTS, true)]);
    let path = case.path("compile/compile_results.json");
    let mut results: CompileResults = files::read_json(&path).unwrap();
    results.samples.clear();
    files::write_json(&path, &results).unwrap();
    assert!(case.run("out").unwrap_err().to_string().contains("no result for sample 0"));

    let case = Case::new(&rows(), &[("a/clamp", 0, CLAMP_TESTS, true)]);
    let other = CLAMP_TESTS.replace("-5", "-6");
    files::write_jsonl(&case.path("samples/samples.jsonl"), &[sample("a/clamp", 0, &other)]).unwrap();
    let error = case.run("out").unwrap_err();
    assert!(error.to_string().contains("not those of its completion"), "{error}");

    let twice = [row("a/clamp", CLAMP, CLAMP_TESTS), row("a/clamp", SUM, CLAMP_TESTS)];
    let case = Case::new(&twice, &[("a/clamp", 0, CLAMP_TESTS, true)]);
    let error = case.run("out").unwrap_err();
    assert!(error.to_string().contains("occurs twice"), "{error}");
    assert!(error.place().unwrap().ends_with("holdout.jsonl:2"), "{error}");
}

/// Thousands of tests in one sample, more than a variable could name, are one suite like any other.
#[test]
fn a_sample_with_thousands_of_tests_ends_no_stage() {
    let many: String = (0..2500)
        .map(|i| format!("#[test]\nfn the_sum_of_the_first_numbers_is_what_it_is_for_case_{i}() {{ assert_eq!(sum(5), 10); }}\n"))
        .collect();
    let case = Case::new(&rows(), &[("b/sum", 0, many.trim_end(), true)]);
    let out = case.run("out").unwrap();
    let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
    assert_eq!((results.samples[0].tests.len(), results.samples[0].passed), (2500, true));
}

#[test]
fn parameters_of_zero_are_refused() {
    let case = Case::new(&rows(), &[]);
    let error = ContextBuilder::new("mutate-score", case.dir.path())
        .output("mutation", case.path("out"))
        .run::<MutateScore>(Params { runs: 0, ..Params::default() })
        .unwrap_err();
    assert_eq!(error.code(), ExitCode::Usage);
}

#[test]
fn no_samples_is_an_empty_result_whose_controls_are_not_tested() {
    let case = Case::new(&rows(), &[]);
    let out = case.run("out").unwrap();
    let results: TestResults = files::read_json(&out.join("test_results.json")).unwrap();
    assert!(results.samples.is_empty());
    assert_eq!(results.controls.planted_bug.holds, None);
}
