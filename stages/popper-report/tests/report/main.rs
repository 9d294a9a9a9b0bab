//! The stage over results of made-up runs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod contradictions;
mod fixture;

use std::fs;

use fixture::{Fate, Fixture, HOSTILE, contents};
use popper_report::Params;
use record::report::{Check, CheckVerdict, Report};
use stage_kit::{ExitCode, Outcome};

fn check<'r>(report: &'r Report, id: &str) -> &'r Check {
    report.checks.iter().find(|c| c.id == id).unwrap()
}

fn verdict(report: &Report, id: &str) -> CheckVerdict {
    check(report, id).verdict
}

fn value(report: &Report, id: &str) -> f64 {
    check(report, id).measured.as_ref().unwrap().value
}

/// A fixture where nothing goes wrong and nothing is missing.
fn perfect() -> Fixture {
    let fixture = Fixture::new();
    for suffix in ["", "_base", "_repeat"] {
        fixture.evaluation(suffix, |_| Fate::Passes);
    }
    for suffix in ["", "_repeat"] {
        fixture.training(suffix, &[3.0, 2.0, 1.0], "weights");
    }
    fixture.costs(Some(5 << 30));
    fixture
}

#[test]
fn a_perfect_run_earns_every_point() {
    let fixture = perfect();
    assert_eq!(fixture.run(Params { gate: true, ..Params::default() }).unwrap(), Outcome::Done);
    let report = fixture.report();
    assert_eq!(report.checks.len(), 26);
    assert_eq!(report.checks.iter().map(|c| c.points).sum::<u32>(), 100);
    for check in &report.checks {
        assert_eq!(check.verdict, CheckVerdict::Corroborated, "{}: {}", check.id, check.detail);
        assert!(!check.evidence.is_empty(), "{} has no evidence", check.id);
    }
    assert_eq!((report.score, report.points_not_tested, report.grade.as_str()), (100, 0, "A+"));
    assert!(fixture.gates().passed);
    // 7 killed and 1 timed out of 10 that compile; unviable and ignored ones do not count.
    assert!((value(&report, "x2") - 80.0).abs() < 1e-9);
    // From no test at all: 3 of 4 branches and 9 of 10 lines.
    assert!((value(&report, "v1") - 75.0).abs() < 1e-9);
    assert!((value(&report, "v2") - 90.0).abs() < 1e-9);
}

#[test]
fn what_was_not_given_is_not_tested_and_passes_no_gate() {
    let fixture = Fixture::new();
    fixture.evaluation("", |_| Fate::Passes);
    assert_eq!(fixture.run(Params { gate: true, ..Params::default() }).unwrap(), Outcome::GateNotMet);
    let report = fixture.report();
    for id in ["r1", "r2", "r3", "r4", "e1", "e2", "e3"] {
        assert_eq!(verdict(&report, id), CheckVerdict::NotTested, "{id}");
        assert!(check(&report, id).measured.is_none());
    }
    assert_eq!((report.score, report.points_not_tested), (70, 30));
    let gates = fixture.gates();
    assert!(!gates.passed);
    assert_eq!(gates.gates[3].verdict, CheckVerdict::NotTested);
    assert!(report.comparison.iter().all(|c| c.base.is_none() && c.difference.is_none()));
    assert_eq!(
        fixture.run(Params::default()).unwrap(),
        Outcome::Done,
        "without --gate the report is the work"
    );
}

#[test]
fn the_first_greedy_sample_decides_and_a_missing_one_fails() {
    let fixture = Fixture::new();
    let mut fates = Vec::new();
    for (i, row) in fixture.rows.iter().enumerate() {
        let first = match i {
            0 => Fate::NoSample,
            1..=4 => Fate::Garbage,
            5..=9 => Fate::TypeError,
            10..=14 => Fate::Fails,
            _ => Fate::Passes,
        };
        fates.push((0, 0, row, first));
        if first != Fate::NoSample {
            fates.push((1, 0, row, Fate::Passes));
            fates.push((0, 1, row, Fate::Passes));
        }
    }
    fixture.samples("", &fates, true);
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    assert!((value(&report, "c1") - 75.0).abs() < 1e-9);
    assert!((value(&report, "c2") - 50.0).abs() < 1e-9);
    assert!((value(&report, "x1") - 50.0).abs() < 1e-9, "five of the ten that type-check");
    assert_eq!(check(&report, "c1").measured.as_ref().unwrap().n, Some(20));
    assert!(check(&report, "c1").detail.contains("1 without a sample"));
    assert_eq!(
        verdict(&report, "g1"),
        CheckVerdict::Falsified,
        "the generic functions are the ones that fail"
    );
    assert_eq!(verdict(&report, "g4"), CheckVerdict::Corroborated);
    assert_eq!(report.gates[1].measured, Some(0.5));
}

#[test]
fn empty_denominators_are_not_tested() {
    let fixture = Fixture::new();
    fixture.evaluation("", |_| Fate::Garbage);
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    for id in ["c1", "c2", "c4", "g1", "g5"] {
        assert_eq!(verdict(&report, id), CheckVerdict::Falsified, "{id}");
    }
    for id in ["c3", "x1", "x2", "x3", "x4", "v1", "v2", "v3", "d1", "d2", "d3"] {
        assert_eq!(verdict(&report, id), CheckVerdict::NotTested, "{id}");
    }
    assert_eq!(report.score, 0);
    assert_eq!(report.gates[2].verdict, CheckVerdict::NotTested);
    assert!(!fixture.gates().passed);
}

#[test]
fn a_control_that_fails_takes_every_check_that_runs_tests_along() {
    let fixture = Fixture::new();
    let fates: Vec<_> = fixture.rows.iter().map(|row| (0, 0, row, Fate::Passes)).collect();
    fixture.samples("", &fates, false);
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    for id in ["x1", "x2", "x3", "x4", "v1", "v2", "g1", "g5"] {
        assert_eq!(verdict(&report, id), CheckVerdict::NotTested, "{id}");
        assert!(check(&report, id).detail.contains("planted bug"), "{id}");
    }
    assert_eq!(verdict(&report, "c2"), CheckVerdict::Corroborated);
    assert_eq!(report.gates[2].verdict, CheckVerdict::NotTested);
    assert!(fixture.text("report.html").contains("the harness is not to be trusted"));
}

#[test]
fn a_repeat_that_differs_falsifies_reproducibility() {
    let fixture = perfect();
    fixture.training("_repeat", &[3.0, 2.0 + 1e-15, 1.0], "other weights");
    let is_third = |id: &str| id == "std-2";
    fixture.evaluation("_repeat", |row| if is_third(&row.id) { Fate::Fails } else { Fate::Passes });
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    for id in ["r1", "r2", "r3"] {
        assert_eq!(verdict(&report, id), CheckVerdict::Falsified, "{id}");
    }
    assert!((value(&report, "r3") - 1.0).abs() < 1e-9);
    assert!(check(&report, "r3").detail.contains("std-2"));
}

#[test]
fn a_lock_of_another_compiler_or_adapter_is_falsified() {
    let fixture = perfect();
    let path = fixture.path("lock/reproducibility.lock");
    let lock = fs::read_to_string(&path).unwrap();
    let changes = [
        ("rustc 1.95.0", "rustc 1.90.0", "1.90.0"),
        ("adapters: 'sha256:", "adapters: 'sha256:00", "checksum of adapters is no digest"),
        ("{serde 1.0.0: abc}", "{}", "no dependencies"),
        ("{serde 1.0.0: abc}", "{serde 1.0.0: abd}", "serde 1.0.0"),
        ("{serde 1.0.0: abc}", "{serde 1.0.0: abc, more 1.0.0: abc}", "more 1.0.0"),
        ("seed: 42", "seed: 43", "seed is 43"),
        // A lock of something else, complete in itself, was once taken for this run's.
        ("adapters: 'sha256:", "model: 'sha256:", "no checksum `adapters`"),
        ("dataset: 'sha256:", "model: 'sha256:", "no checksum `dataset`"),
    ];
    for (from, to, word) in changes {
        fs::write(&path, lock.replace(from, to)).unwrap();
        fixture.run(Params::default()).unwrap();
        let report = fixture.report();
        assert_eq!(verdict(&report, "r4"), CheckVerdict::Falsified, "{from} -> {to}");
        assert!(check(&report, "r4").detail.contains(word), "{}", check(&report, "r4").detail);
    }
    fs::write(&path, &lock).unwrap();
    fixture.training("", &[3.0, 2.0, 1.0], "weights");
    fs::write(fixture.path("corpus/NOTICE"), "one file more").unwrap();
    fixture.run(Params::default()).unwrap();
    assert!(check(&fixture.report(), "r4").detail.contains("`dataset` is that of other files"));
}

#[test]
fn a_lock_that_can_not_be_compared_is_not_tested() {
    for missing in ["lock", "dependencies", "adapter"] {
        let fixture = perfect();
        fs::remove_dir_all(fixture.path(missing)).unwrap();
        if missing == "adapter" {
            fs::remove_dir_all(fixture.path("adapter_repeat")).unwrap();
        }
        fixture.run(Params::default()).unwrap();
        let report = fixture.report();
        assert_eq!(verdict(&report, "r4"), CheckVerdict::NotTested, "{missing}");
        assert!(check(&report, "r4").detail.contains(missing), "{}", check(&report, "r4").detail);
    }
    let fixture = perfect();
    fs::write(fixture.path("dependencies/Cargo.lock"), "[[package]\n").unwrap();
    let error = fixture.run(Params::default()).unwrap_err();
    assert!(error.to_string().contains("Cargo.lock: not a Cargo.lock"), "{error}");
}

#[test]
fn without_gpu_memory_the_efficiency_gate_is_not_tested() {
    let fixture = perfect();
    fixture.costs(None);
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    assert_eq!(verdict(&report, "e1"), CheckVerdict::NotTested);
    assert!(!fixture.gates().passed, "97 points and three gates are not enough");
    fixture.costs(Some(9 << 30));
    fixture.run(Params::default()).unwrap();
    assert_eq!(verdict(&fixture.report(), "e1"), CheckVerdict::Falsified);
}

/// Where the driver does not tell processes apart, a full device falsifies nothing, and one that is nearly empty proves enough.
#[test]
fn memory_of_a_whole_device_is_a_bound_from_above() {
    let fixture = perfect();
    let path = fixture.path("log/metrics.json");
    for (bytes, wanted, said) in [
        (5u64 << 30, CheckVerdict::Corroborated, "others included"),
        (70 << 30, CheckVerdict::NotTested, "`a device` held 70.00 GiB, others included"),
    ] {
        fixture.costs(Some(bytes));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"process\""));
        fs::write(&path, text.replace("\"process\"", "\"device\"")).unwrap();
        fixture.run(Params::default()).unwrap();
        let report = fixture.report();
        assert_eq!(verdict(&report, "e1"), wanted);
        assert!(check(&report, "e1").detail.contains(said), "{}", check(&report, "e1").detail);
        assert_eq!(fixture.gates().passed, wanted == CheckVerdict::Corroborated);
    }
}

#[test]
fn tuned_against_base_is_paired() {
    let fixture = Fixture::new();
    fixture.evaluation("", |_| Fate::Passes);
    fixture.evaluation("_base", |row| if row.id.ends_with('0') { Fate::Passes } else { Fate::TypeError });
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    let row = report.comparison.iter().find(|c| c.metric == "pass_rate").unwrap();
    let difference = row.difference.as_ref().unwrap();
    assert!((difference.value - 0.8).abs() < 1e-9);
    let [low, high] = difference.interval95.unwrap();
    assert!(0.5 < low && low < 0.8 && 0.8 < high && high <= 1.0, "{low} {high}");
    let same = report.comparison.iter().find(|c| c.metric == "parse_rate").unwrap();
    assert_eq!(same.difference.as_ref().unwrap().interval95, Some([0.0, 0.0]));
}

#[test]
fn any_drop_against_the_baseline_is_a_regression_and_the_report_is_kept() {
    let fixture = perfect();
    fixture.run(Params::default()).unwrap();
    fs::copy(fixture.path("report/report.json"), fixture.path("baseline")).unwrap();
    assert_eq!(fixture.run(Params::default()).unwrap(), Outcome::Done);
    assert!(fixture.text("hansei.md").contains("Nothing got worse"));
    fixture.evaluation("", |row| if row.id == "std-0" { Fate::Fails } else { Fate::Passes });
    assert_eq!(fixture.run(Params::default()).unwrap(), Outcome::Regression);
    let hansei = fixture.text("hansei.md");
    assert!(hansei.contains("x1 fell from 100.00 % to 95.00"), "{hansei}");
    assert!(hansei.contains("r3 was corroborated and is falsified"), "{hansei}");
}

#[test]
fn generated_text_can_not_break_the_pages() {
    let fixture = Fixture::new();
    fixture.evaluation("", |row| if row.id.starts_with("std") { Fate::Garbage } else { Fate::TypeError });
    fixture.run(Params { n_examples: 30, title: HOSTILE.to_owned(), ..Params::default() }).unwrap();
    let html = fixture.text("report.html");
    assert!(html.contains("&lt;script&gt;"), "the text is shown");
    for bad in ["<script", "<img", "<link", "src=\"", "href=\"http", "@import", "url(", "\u{1b}"] {
        assert!(!html.contains(bad), "{bad} stands in the page");
    }
    assert!(html.matches("<article").count() == 24);
}

#[test]
fn the_same_results_give_the_same_bytes() {
    let fixture = perfect();
    fixture.run(Params::default()).unwrap();
    let first = contents(&fixture.path("report"));
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    let expected = [
        "gates.json",
        "hansei.md",
        "metrics.json",
        "metrics.jsonld",
        "report.html",
        "report.json",
        "report.md",
    ];
    assert_eq!(names, expected);
    fixture.run(Params::default()).unwrap();
    assert!(contents(&fixture.path("report")) == first, "two reports differ");
}

#[test]
fn linked_data_names_function_and_weights() {
    let fixture = perfect();
    fixture.run(Params::default()).unwrap();
    let linked: serde_json::Value = serde_json::from_str(&fixture.text("metrics.jsonld")).unwrap();
    let nodes = linked["@graph"].as_array().unwrap();
    assert!(nodes.iter().all(|n| n["@id"].is_string() && n["@type"].is_string()));
    let tests = nodes.iter().filter(|n| n["@type"] == "GeneratedTests");
    assert_eq!(tests.clone().count(), 24);
    for node in tests {
        assert!(node["about"].as_str().unwrap().starts_with("crate:demo@1.0.0/src/lib.rs#"));
        assert_eq!(node["adapter"], format!("urn:sha256:{}", stage_kit::digest::sha256_hex("weights")));
    }
}

#[test]
fn one_flipped_byte_breaks_the_chain_from_weights_to_tests() {
    let fixture = perfect();
    let samples = fixture.path("samples/samples.jsonl");
    let bytes = fs::read(&samples).unwrap();
    let manifest = record::generation::SamplesManifest {
        schema_version: record::generation::SAMPLES_SCHEMA_VERSION,
        backend: "cpu".to_owned(),
        n_tasks: 24,
        n_samples: 24,
        n_prompts_too_long: 0,
        round: 0,
        seed: 42,
        model_sha256: String::new(),
        adapter_sha256: None,
        tokenizer_sha256: String::new(),
        template_sha256: String::new(),
        samples_sha256: stage_kit::digest::sha256_hex(&bytes),
        params: record::Map::new(),
    };
    stage_kit::files::write_json(&fixture.path("samples/manifest.json"), &manifest).unwrap();
    fixture.run(Params::default()).unwrap();

    let text = String::from_utf8(bytes).unwrap();
    fs::write(&samples, text.replacen("tests", "tesTs", 1)).unwrap();
    let error = fixture.run(Params::default()).unwrap_err();
    assert!(error.place().unwrap().ends_with("samples.jsonl"), "{error}");
    fs::write(&samples, text).unwrap();

    fs::write(fixture.path("adapter/adapter_model.safetensors"), "weightz").unwrap();
    let error = fixture.run(Params::default()).unwrap_err();
    assert!(error.to_string().contains("not generated with this adapter"), "{error}");
}

#[test]
fn bad_inputs_name_the_file_and_the_line() {
    let fixture = perfect();
    let path = fixture.path("corpus/holdout.jsonl");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{}\n{{\"id\": 1", good.lines().next().unwrap())).unwrap();
    let error = fixture.run(Params::default()).unwrap_err();
    assert!(error.place().unwrap().ends_with("holdout.jsonl:2"), "{error}");
    fs::write(&path, "").unwrap();
    assert!(fixture.run(Params::default()).unwrap_err().to_string().contains("the holdout is empty"));
    fs::write(&path, good).unwrap();

    let path = fixture.path("mutation/test_results.json");
    let results = fs::read_to_string(&path).unwrap();
    fs::write(&path, results.replacen("std-0", "std-9", 1)).unwrap();
    let error = fixture.run(Params::default()).unwrap_err();
    assert!(error.to_string().contains("different runs"), "{error}");
    fs::write(&path, results.replacen("\"schema_version\": 1", "\"schema_version\": 9", 1)).unwrap();
    assert!(fixture.run(Params::default()).unwrap_err().to_string().contains("schema_version is 9"));
    assert!(!fixture.path("report").exists(), "nothing half-written");
    fs::write(&path, results).unwrap();

    fs::remove_dir_all(fixture.path("compile_base")).unwrap();
    let error = fixture.run(Params::default()).unwrap_err();
    assert_eq!(error.code(), ExitCode::Usage);
    assert!(error.to_string().contains("compile_base"), "{error}");
}
