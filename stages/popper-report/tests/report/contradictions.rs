//! Inputs that do not belong together, and readings that are none: an error with its place, or not tested; never a number.

use std::fs;

use popper_report::Params;
use record::report::CheckVerdict;
use serde_json::{Value, json};
use stage_kit::{ExitCode, digest::sha256_hex};

use crate::fixture::{Fate, Fixture};
use crate::{check, perfect, verdict};

/// Runs, and wants an error that says `part` and points at `place`.
fn refused(fixture: &Fixture, place: &str, part: &str) {
    let error = match fixture.run(Params::default()) {
        Ok(_) => panic!("taken without a word; expected `{part}`"),
        Err(error) => error,
    };
    assert!(error.to_string().contains(part), "expected `{part}`: {error}");
    assert!(error.place().unwrap_or_default().ends_with(place), "expected {place}: {:?}", error.place());
    assert!(!fixture.path("report").exists(), "nothing half-written");
}

/// The perfect fixture with one file changed is refused.
fn changed(file: &str, change: impl FnOnce(&mut Value), place: &str, part: &str) {
    let fixture = perfect();
    fixture.edit(file, change);
    refused(&fixture, place, part);
}

const COMPILE: &str = "compile/compile_results.json";
const RESULTS: &str = "mutation/test_results.json";

#[test]
fn a_sample_twice_is_refused_in_each_file() {
    for file in ["samples/samples.jsonl", "corpus/holdout.jsonl"] {
        let fixture = perfect();
        let text = fixture.source(file);
        fs::write(fixture.path(file), format!("{}\n{text}", text.lines().next().unwrap())).unwrap();
        refused(&fixture, file, "twice");
    }
    for file in [COMPILE, RESULTS] {
        let twice = |v: &mut Value| {
            let first = v["samples"][0].clone();
            v["samples"].as_array_mut().unwrap().push(first);
        };
        changed(file, twice, file, "twice");
    }
}

#[test]
fn fewer_or_more_results_than_samples_are_refused() {
    let drop_last = |v: &mut Value| drop(v["samples"].as_array_mut().unwrap().pop());
    changed(COMPILE, drop_last, COMPILE, "no result for sample 0 of round 0");
    changed(RESULTS, drop_last, RESULTS, "no result for sample 0 of round 0");
    let fixture = perfect();
    let text = fixture.source("samples/samples.jsonl");
    let (_, rest) = text.split_once('\n').unwrap();
    fs::write(fixture.path("samples/samples.jsonl"), rest).unwrap();
    refused(&fixture, "samples.jsonl", "no result for sample 0 of round 0");
}

#[test]
fn samples_of_another_corpus_are_refused() {
    let fixture = perfect();
    for file in ["samples/samples.jsonl", COMPILE, RESULTS, "mutation/selected.jsonl"] {
        let text = fixture.source(file).replace("\"std-0\"", "\"elsewhere-0\"");
        fs::write(fixture.path(file), text).unwrap();
    }
    refused(&fixture, "compile_results.json", "`elsewhere-0` is not in the corpus");
}

#[test]
fn a_function_that_is_not_the_one_of_its_hash_is_refused() {
    let other = |v: &mut Value| v["function_code"] = json!("pub fn std_0() {}");
    changed("corpus/holdout.jsonl", other, "holdout.jsonl", "is not the one that its sha256 names");
    let fixture = perfect();
    let mut hashes: Vec<&str> = fixture.rows.iter().map(|r| r.metadata.sha256.as_str()).collect();
    let manifest = |hashes: &[&str]| {
        json!({
            "schema_version": 1, "sources": [], "counts": {}, "property_share": {}, "toolchain": "", "shortfalls": [],
            "funnel": {"functions_seen": 0, "pairs_linked": 0, "dropped": {}, "duplicates_exact": 0, "duplicates_near": 0, "kept": 0},
            "leakage": {"exact": 0, "normalized": 0, "ngram13": 0, "nearest": []}, "holdout_sha256": hashes,
        })
    };
    fs::write(fixture.path("corpus/manifest.json"), manifest(&hashes).to_string()).unwrap();
    fixture.run(Params::default()).unwrap();
    fs::remove_dir_all(fixture.path("report")).unwrap();
    let other = sha256_hex("another holdout");
    hashes[0] = &other;
    fs::write(fixture.path("corpus/manifest.json"), manifest(&hashes).to_string()).unwrap();
    refused(&fixture, "holdout.jsonl", "are not those whose hashes manifest.json lists");
}

#[test]
fn samples_of_two_models_are_refused() {
    for field in ["model_sha256", "adapter_sha256", "tokenizer_sha256", "template_sha256"] {
        let other = |v: &mut Value| v[field] = json!(sha256_hex("other"));
        changed("samples/samples.jsonl", other, "samples.jsonl", "than the first one");
    }
}

#[test]
fn base_and_tuned_can_not_be_swapped() {
    let fixture = Fixture::new();
    fixture.evaluation("_base", |_| Fate::TypeError);
    fixture.evaluation("", |_| Fate::Passes);
    for kind in ["samples", "compile", "mutation"] {
        let [one, other, aside] =
            [kind.to_owned(), format!("{kind}_base"), format!("stage-{kind}")].map(|n| fixture.path(&n));
        fs::rename(&one, &aside).unwrap();
        fs::rename(&other, &one).unwrap();
        fs::rename(&aside, &other).unwrap();
    }
    refused(&fixture, "samples.jsonl", "generated with an adapter");
}

#[test]
fn a_base_of_another_model_template_or_prompt_is_refused() {
    for (field, part) in [
        ("model_sha256", "another model than the one that the adapter was put on"),
        ("template_sha256", "different tokenizers or templates"),
        ("tokenizer_sha256", "different tokenizers or templates"),
        ("prompt_sha256", "not the same work"),
    ] {
        let fixture = perfect();
        let path = fixture.path("samples_base/samples.jsonl");
        let mut rows: Vec<Value> = stage_kit::files::read_jsonl(&path).unwrap();
        rows.iter_mut().for_each(|row| row[field] = json!(sha256_hex("other")));
        stage_kit::files::write_jsonl(&path, rows).unwrap();
        refused(&fixture, "samples_base/samples.jsonl", part);
    }
}

#[test]
fn one_folder_for_two_inputs_is_no_second_run() {
    for (input, other) in
        [("compile_repeat", "compile"), ("adapter_repeat", "adapter"), ("mutation_base", "mutation")]
    {
        let fixture = perfect();
        fs::remove_dir_all(fixture.path(input)).unwrap();
        std::os::unix::fs::symlink(fixture.path(other), fixture.path(input)).unwrap();
        let error = fixture.run(Params::default()).unwrap_err();
        assert_eq!(error.code(), ExitCode::Usage);
        assert!(error.to_string().contains(&format!("`{other}` and `{input}` are the same")), "{error}");
    }
}

#[test]
fn weights_manifest_and_steps_must_be_of_one_training() {
    let other = || json!(sha256_hex("other"));
    let file = "adapter/manifest.json";
    changed(file, |v| v["weights_sha256"] = other(), "adapter", "that the training's manifest names");
    for field in ["model_sha256", "template_sha256", "tokenizer_sha256"] {
        changed(file, |v| v[field] = other(), "adapter", "was not generated with this adapter");
    }
    changed(
        file,
        |v| v["steps"] = json!(9),
        "steps.jsonl",
        "the last step is 3, the manifest of the weights says 9",
    );
    let fixture = perfect();
    fixture.training("_repeat", &[3.0, 2.0, 1.0], "other weights");
    refused(&fixture, "adapter_repeat", "was not generated with this adapter");
}

#[test]
fn steps_that_contradict_each_other_are_refused() {
    changed(COMPILE, |v| v["samples"][0]["parses"] = json!(false), COMPILE, "it type-checks although");
    changed(COMPILE, |v| v["samples"][0]["type_checks"] = Value::Null, COMPILE, "it links although");
    changed(COMPILE, |v| v["samples"][0]["similarity"]["bleu4"] = json!(7.0), COMPILE, "a similarity of 7");
    changed(
        COMPILE,
        |v| v["samples"][0]["refused"] = json!("no"),
        RESULTS,
        "one of compile and mutation results",
    );
    let first = |field: &'static str, value: Value| move |v: &mut Value| v["samples"][0][field] = value;
    changed(RESULTS, first("compiled", json!(false)), RESULTS, "one of compile and mutation results");
    changed(RESULTS, first("tests", json!([])), RESULTS, "it passed although it has no test");
    changed(RESULTS, first("runs", json!(0)), RESULTS, "none was run");
    changed(RESULTS, |v| v["samples"][0]["tests"][0]["verdict"] = json!("failed"), RESULTS, "did not pass");
    changed(RESULTS, first("passed", json!(false)), RESULTS, "it has mutants although");
    changed(
        RESULTS,
        |v| v["samples"][0]["coverage"]["branches_covered"] = json!(5),
        RESULTS,
        "5 of 4 branches or lines",
    );
    let selected = "mutation/selected.jsonl";
    changed(selected, |v| v["samples"][0]["sample_idx"] = json!(3), selected, "was chosen and did not pass");
    changed(selected, |v| v["mutants_killed"] = json!(11), selected, "more mutants than there are");
}

#[test]
fn numbers_that_are_none_are_refused_with_file_and_line() {
    for (file, from, to, place) in [
        ("checkpoints/steps.jsonl", "\"loss\":3.0", "\"loss\":NaN", "steps.jsonl:1"),
        ("checkpoints/steps.jsonl", "\"loss\":3.0", "\"loss\":1e999", "steps.jsonl:1"),
        ("checkpoints/steps.jsonl", "\"loss\":3.0", "\"loss\":null", "steps.jsonl:1"),
        ("timings/timings.jsonl", "400.0", "Infinity", "timings.jsonl:1"),
    ] {
        let fixture = perfect();
        let text = fixture.source(file);
        assert!(text.contains(from), "{text}");
        fs::write(fixture.path(file), text.replacen(from, to, 1)).unwrap();
        refused(&fixture, place, "not what it should be");
    }
}

#[test]
fn a_control_without_a_case_or_with_a_false_verdict_is_not_a_control_that_holds() {
    for (control, value) in [
        ("planted_bug", json!({"expected": "", "as_expected": 0, "cases": 0, "holds": null})),
        ("planted_bug", json!({"expected": "", "as_expected": 0, "cases": 0, "holds": true})),
        ("vacuous_test", json!({"expected": "", "as_expected": 3, "cases": 4, "holds": true})),
        ("vacuous_test", json!({"expected": "", "as_expected": 4, "cases": 4, "holds": null})),
    ] {
        let fixture = perfect();
        fixture.edit(RESULTS, |v| v["controls"][control] = value.clone());
        fixture.run(Params::default()).unwrap();
        let report = fixture.report();
        for id in ["x1", "x2", "v1", "g3"] {
            assert_eq!(verdict(&report, id), CheckVerdict::NotTested, "{id}: {value}");
            assert!(check(&report, id).measured.is_none(), "{id}");
        }
        assert!(!fixture.gates().passed);
    }
}

#[test]
fn results_of_another_run_with_the_same_numbers_are_refused() {
    let other = json!(sha256_hex("other"));
    changed(
        RESULTS,
        |v| v["samples"][3]["tests_sha256"] = other.clone(),
        RESULTS,
        "other tests were run than those that the compile results hold",
    );
    changed(
        COMPILE,
        |v| v["samples"][3]["completion_sha256"] = other.clone(),
        COMPILE,
        "another completion was compiled than the sample holds",
    );
}

/// Whoever writes these files by a program of their own may leave the digests out. Then nothing shows whose results they
/// are, and nothing that rests on them is worth a point, passes a gate, or stands beside another number.
#[test]
fn results_that_do_not_say_whose_they_are_count_for_nothing() {
    let fixture = perfect();
    fixture.edit(RESULTS, |v| drop(v["samples"][3].as_object_mut().unwrap().remove("tests_sha256")));
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    for id in ["x1", "x2", "x3", "x4", "v1", "v2", "g1", "g5", "r3"] {
        let check = check(&report, id);
        assert_eq!(check.verdict, CheckVerdict::NotTested, "{id}");
        assert!(
            check.detail.contains("do not name the tests that were run (`tests_sha256`)"),
            "{}",
            check.detail
        );
        assert!(check.measured.is_none());
    }
    assert_eq!(verdict(&report, "c2"), CheckVerdict::Corroborated);
    assert_eq!(report.gates[2].verdict, CheckVerdict::NotTested, "the mutation score");
    assert!(!fixture.gates().passed);
    assert!(report.comparison.iter().all(|c| !c.metric.starts_with("pass") || c.tuned.is_none()));
    for page in ["report.html", "report.md"] {
        assert!(fixture.text(page).contains("Nothing that rests on running tests was counted"), "{page}");
    }
    assert!(!fixture.text("metrics.jsonld").contains("\"passes\""));

    fixture.edit(COMPILE, |v| drop(v["samples"][3].as_object_mut().unwrap().remove("completion_sha256")));
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    for id in ["c1", "c2", "c3", "c4", "v3", "d1", "d2", "d3", "x1", "g2"] {
        assert_eq!(verdict(&report, id), CheckVerdict::NotTested, "{id}");
        assert!(check(&report, id).detail.contains("`completion_sha256`"), "{id}");
    }
    assert_eq!(report.gates[1].verdict, CheckVerdict::NotTested, "the compile rate");
    assert_eq!(verdict(&report, "r1"), CheckVerdict::Corroborated);
}

/// Sums of counts that a 32-bit number does not hold once came out as a score of 107 %.
#[test]
fn counts_of_mutants_are_summed_and_compared_as_they_are() {
    let fixture = perfect();
    fixture.edit(RESULTS, |v| {
        v["samples"][0]["mutants"]["killed"] = json!(4_000_000_000u32);
        v["samples"][0]["mutants"]["survived"] = json!(4_000_000_000u32);
    });
    fixture.run(Params::default()).unwrap();
    let x2 = check(&fixture.report(), "x2").measured.clone().unwrap();
    assert!((50.0..51.0).contains(&x2.value), "{x2:?}");
    changed(
        RESULTS,
        |v| v["samples"][0]["mutants"]["in_source"] = json!(1000),
        RESULTS,
        "mutants were run written into the source",
    );
}

#[test]
fn one_function_has_the_same_mutants_in_every_result() {
    let fixture = perfect();
    let first = fixture.rows[0].id.clone();
    fixture.edit(RESULTS, |v| {
        let samples = v["samples"].as_array_mut().unwrap();
        let mut again = samples.iter().find(|s| s["task_id"] == first.as_str()).unwrap().clone();
        again["sample_idx"] = json!(1);
        again["mutants"]["survived"] = json!(again["mutants"]["survived"].as_u64().unwrap() + 1);
        samples.push(again);
    });
    fixture.edit(COMPILE, |v| {
        let samples = v["samples"].as_array_mut().unwrap();
        let mut again = samples.iter().find(|s| s["task_id"] == first.as_str()).unwrap().clone();
        again["sample_idx"] = json!(1);
        samples.push(again);
    });
    let path = fixture.path("samples/samples.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.contains(&format!("{first:?}"))).unwrap();
    std::fs::write(&path, format!("{text}{}\n", line.replace("\"sample_idx\":0", "\"sample_idx\":1")))
        .unwrap();
    let _ = std::fs::remove_file(fixture.path("samples/manifest.json"));
    let error = fixture.run(Params::default()).unwrap_err();
    assert!(error.to_string().contains("mutants, and"), "{error}");
}

#[test]
fn a_base_whose_results_do_not_say_whose_they_are_is_not_compared() {
    let fixture = perfect();
    fixture.edit("mutation_base/test_results.json", |v| {
        for sample in v["samples"].as_array_mut().unwrap() {
            sample.as_object_mut().unwrap().remove("tests_sha256");
        }
    });
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    let pass = report.comparison.iter().find(|c| c.metric == "pass_rate").unwrap();
    assert!(pass.tuned.is_some() && pass.base.is_none() && pass.difference.is_none(), "{pass:?}");
    assert!(
        fixture.text("report.html").contains("because of the base model&#39;s results")
            || fixture.text("report.html").contains("because of the base model's results")
    );
}

#[test]
fn results_without_controls_are_refused() {
    for control in ["planted_bug", "vacuous_test", "shuffled_pairing"] {
        let fixture = perfect();
        fixture.edit(RESULTS, |v| drop(v["controls"].as_object_mut().unwrap().remove(control)));
        let error = fixture.run(Params::default()).unwrap_err();
        assert!(error.to_string().contains(&format!("missing field `{control}`")), "{error}");
        let (_, line) = error.place().unwrap().rsplit_once("test_results.json:").unwrap();
        assert!(line.parse::<u32>().unwrap() > 0, "{:?}", error.place());
    }
    let fixture = perfect();
    fixture.edit(RESULTS, |v| drop(v.as_object_mut().unwrap().remove("controls")));
    assert!(fixture.run(Params::default()).unwrap_err().to_string().contains("missing field `controls`"));
}

/// With several functions there is always a stranger.
#[test]
fn a_pairing_that_was_never_shuffled_is_no_control() {
    let never = json!({"expected": "", "as_expected": 0, "cases": 0, "holds": null});
    let fixture = perfect();
    fixture.edit(RESULTS, |v| v["controls"]["shuffled_pairing"] = never.clone());
    fixture.run(Params::default()).unwrap();
    assert_eq!(verdict(&fixture.report(), "x2"), CheckVerdict::NotTested);
    assert!(check(&fixture.report(), "x2").detail.contains("shuffled pairing: no case could be made"));
}

#[test]
fn what_a_broken_harness_measured_is_compared_with_nothing() {
    for (suffix, keeps_tuned) in [("", false), ("_base", true)] {
        let fixture = perfect();
        fixture.edit(&format!("mutation{suffix}/test_results.json"), |v| {
            v["controls"]["planted_bug"] =
                json!({"expected": "", "as_expected": 3, "cases": 4, "holds": false});
        });
        fixture.run(Params::default()).unwrap();
        let report = fixture.report();
        let row = |metric: &str| report.comparison.iter().find(|c| c.metric == metric).unwrap();
        for metric in ["pass_rate", "pass_rate_of_compiled", "mutation_score", "branch_coverage"] {
            assert_eq!(row(metric).tuned.is_some(), keeps_tuned, "{suffix} {metric}");
            assert_eq!(row(metric).base.is_some(), !keeps_tuned, "{suffix} {metric}");
            assert!(row(metric).difference.is_none(), "{suffix} {metric}");
        }
        assert!(row("compile_rate").difference.is_some(), "compiling needs no control");
        let assured = report.comparison.iter().find(|c| c.metric == "assured_yield");
        assert_eq!(assured.is_some_and(|c| c.tuned.is_some()), keeps_tuned);
        assert!(assured.is_none_or(|c| c.base.is_none()));
        let page = fixture.source("report/report.html");
        assert!(page.contains("does not hold (planted bug: 3 of 4 as known)"), "{suffix}");
        assert!(fixture.source("report/report.md").contains("planted bug: 3 of 4 as known"), "{suffix}");
    }
}

#[test]
fn two_runs_that_agree_prove_nothing_when_a_control_of_one_fails() {
    for suffix in ["", "_repeat"] {
        let fixture = perfect();
        fixture.edit(&format!("mutation{suffix}/test_results.json"), |v| {
            v["controls"]["vacuous_test"] =
                json!({"expected": "", "as_expected": 0, "cases": 4, "holds": false});
        });
        fixture.run(Params::default()).unwrap();
        let report = fixture.report();
        assert_eq!(
            verdict(&report, "r3"),
            CheckVerdict::NotTested,
            "{suffix}: {}",
            check(&report, "r3").detail
        );
    }
}

#[test]
fn a_reading_of_nothing_is_no_reading() {
    let fixture = perfect();
    fixture.costs(Some(0));
    fixture.edit("log/metrics.json", |v| v["wall_s"] = json!(0.0));
    let timings = fixture.source("timings/timings.jsonl");
    let (_, rest) = timings.split_once('\n').unwrap();
    fs::write(fixture.path("timings/timings.jsonl"), rest).unwrap();
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    for id in ["e1", "e2", "e3"] {
        assert_eq!(verdict(&report, id), CheckVerdict::NotTested, "{id}");
        assert!(check(&report, id).measured.is_none(), "{id}");
    }
    assert!(check(&report, "e3").detail.contains("19 of 20 first samples were timed"));
    assert_eq!(report.gates[3].measured, None);
}

#[test]
fn one_good_suite_does_not_speak_for_the_others() {
    let fixture = Fixture::new();
    fixture.evaluation("", |row| if row.id == "std-0" { Fate::Passes } else { Fate::Fails });
    fixture.run(Params::default()).unwrap();
    let report = fixture.report();
    let measured = |id: &str| check(&report, id).measured.as_ref().unwrap().value;
    // It kills 8 of 10 and covers 9 of 10 lines; one function of twenty.
    assert!((measured("x2") - 80.0).abs() < 1e-9);
    assert_eq!(verdict(&report, "x2"), CheckVerdict::Falsified, "{}", check(&report, "x2").detail);
    assert!((measured("v2") - 4.5).abs() < 1e-9, "{}", check(&report, "v2").detail);
    assert_eq!(verdict(&report, "v2"), CheckVerdict::Falsified);
}
