//! Samples for the functions of a corpus: what they are, and what must not change them.

use std::fs;
use std::path::{Path, PathBuf};

use model::tokenizer::Tokenizer;
use record::generation::{FinishReason, GenerationSummary, GenerationTiming, Sample};
use serde_json::json;

use crate::support::{
    generate, generate_with, golden, row, rows, samples_manifest, tiny_model, write_corpus,
};

struct Setup {
    dir: tempfile::TempDir,
    model: PathBuf,
    corpus: PathBuf,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = rows();
        Self { model: tiny_model(dir.path(), 512), corpus: write_corpus(dir.path(), &[a, b], &[c]), dir }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, name: &str, more: &[&str], also: &[&str]) -> Vec<Sample> {
        let inputs = [("model", self.model.as_path()), ("corpus", self.corpus.as_path())];
        generate_with(&inputs, &self.out(name), &[&["max_new_tokens=12"], more].concat(), also)
    }
}

#[test]
fn every_function_of_the_splits_gets_its_samples_in_order() {
    let setup = Setup::new();
    let samples = setup.run("out", &["samples=2", "return_ids=true"], &[]);
    let names: Vec<(&str, u32)> = samples.iter().map(|s| (s.task_id.as_str(), s.sample_idx)).collect();
    assert_eq!(names, [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1)]);
    let tokenizer = Tokenizer::from_dir(&setup.model).unwrap();
    let manifest = samples_manifest(&setup.out("out"));
    for (sample, row) in samples.iter().zip(rows().iter().flat_map(|r| [r, r])) {
        let prompt = model::prompt::render(row, None);
        assert_eq!(sample.prompt_sha256, prompt.sha256());
        assert_eq!(sample.prompt_tokens as usize, prompt.encode(&tokenizer).unwrap().len());
        let ids = sample.completion_ids.clone().unwrap();
        assert_eq!(
            (sample.completion_tokens as usize, sample.completion.clone()),
            (ids.len(), tokenizer.decode(&ids).unwrap())
        );
        assert!(ids.iter().all(|&id| id < tokenizer.n_ids()), "a row without a token was drawn");
        assert_eq!((sample.round, sample.seed), (0, 42));
        assert_eq!(sample.template_sha256, model::prompt::template_sha256());
        assert_eq!((&sample.model_sha256, &sample.adapter_sha256), (&manifest.model_sha256, &None));
    }
    assert_eq!((manifest.n_tasks, manifest.n_samples, manifest.n_prompts_too_long), (3, 6, 0));
    let bytes = fs::read(setup.out("out").join("samples/samples.jsonl")).unwrap();
    assert_eq!(stage_kit::digest::sha256_hex(bytes), manifest.samples_sha256);
}

#[test]
fn neither_batch_nor_threads_nor_the_other_tasks_change_a_sample() {
    let setup = Setup::new();
    let alone = setup.run("one", &["samples=3"], &["--cpus", "1"]);
    assert_eq!(alone, setup.run("batched", &["samples=3", "batch=4"], &["--cpus", "2"]));
    assert_eq!(alone[..3], setup.run("limited", &["samples=3", "limit=1"], &[])[..]);
    assert_eq!(alone[3], setup.run("greedy", &["samples=1"], &[])[1]);
    let stress = setup.run("stress", &["samples=3", "splits=[\"stress\"]"], &[]);
    assert_eq!(alone[6..], stress[..]);
}

#[test]
fn the_seed_changes_drawn_samples_and_not_the_greedy_one() {
    let setup = Setup::new();
    let one = setup.run("one", &["samples=3"], &[]);
    let two = setup.run("two", &["samples=3"], &["--seed", "43"]);
    let pairs = || one.iter().zip(&two);
    assert!(pairs().filter(|(a, _)| a.sample_idx == 0).all(|(a, b)| a.completion == b.completion));
    assert!(pairs().filter(|(a, _)| a.sample_idx > 0).any(|(a, b)| a.completion != b.completion));
    assert_ne!(one[1].completion, one[2].completion, "two draws for one prompt are the same");
}

#[test]
fn a_stop_token_ends_a_completion_and_is_no_part_of_it() {
    let setup = Setup::new();
    let first = setup.run("free", &["return_ids=true", "ignore_stop=true", "limit=1"], &[]);
    let ids = first[0].completion_ids.clone().unwrap();
    let stop = ids[4];
    let at = ids.iter().position(|&id| id == stop).unwrap();
    let config = json!({"eos_token_id": [stop]}).to_string();
    fs::write(setup.model.join("generation_config.json"), config).unwrap();
    fs::remove_file(setup.model.join("manifest.json")).unwrap();
    let stopped = setup.run("stopped", &["return_ids=true", "limit=1"], &[]);
    assert_eq!(stopped[0].completion_ids.as_deref(), Some(&ids[..at]));
    assert_eq!(
        (first[0].finish_reason, stopped[0].finish_reason),
        (FinishReason::Length, FinishReason::Stop)
    );
}

#[test]
fn a_prompt_without_room_is_said_and_never_cut() {
    let dir = tempfile::tempdir().unwrap();
    let long = row("long", &format!("pub fn long() -> &'static str {{ \"{}\" }}", "abc xyz ".repeat(200)));
    let [a, b, _] = rows();
    let model = tiny_model(dir.path(), 120);
    let corpus = write_corpus(dir.path(), &[a, long], &[b]);
    let inputs = [("model", model.as_path()), ("corpus", corpus.as_path())];
    let out = dir.path().join("out");
    let samples = generate(&inputs, &out, &["max_new_tokens=500", "ignore_stop=true"]);
    assert_eq!(samples[1].finish_reason, FinishReason::PromptTooLong);
    assert_eq!((samples[1].completion.as_str(), samples[1].completion_tokens), ("", 0));
    assert!(samples[1].prompt_tokens > 120);
    for sample in [&samples[0], &samples[2]] {
        assert_eq!(
            (sample.finish_reason, sample.prompt_tokens + sample.completion_tokens),
            (FinishReason::Length, 120)
        );
    }
    assert_eq!(samples_manifest(&out).n_prompts_too_long, 1);
    let timings: Vec<GenerationTiming> =
        stage_kit::files::read_jsonl(&out.join("timings/timings.jsonl")).unwrap();
    assert_eq!(timings.len(), 2, "nothing was measured for a prompt that was not run");
}

#[test]
fn timings_are_measured_and_apart() {
    let setup = Setup::new();
    setup.run("out", &["samples=2"], &[]);
    let dir = setup.out("out").join("timings");
    let timings: Vec<GenerationTiming> = stage_kit::files::read_jsonl(&dir.join("timings.jsonl")).unwrap();
    assert_eq!(timings.len(), 6);
    assert!(timings.iter().all(|t| t.latency_ms > 0.0));
    let summary: GenerationSummary = stage_kit::files::read_json(&dir.join("summary.json")).unwrap();
    assert_eq!((summary.backend.as_str(), summary.device.as_str()), ("cpu", "cpu"));
    assert!(summary.tokens_per_s > 0.0 && summary.wall_s >= summary.extra["generating_s_of_this_process"]);
}

#[test]
fn a_base_in_4_bits_answers_otherwise() {
    let setup = Setup::new();
    let plain = setup.run("plain", &["return_ids=true"], &[]);
    let quantised = setup.run("nf4", &["return_ids=true", "base=nf4"], &[]);
    assert!(plain.iter().zip(&quantised).any(|(a, b)| a.completion_ids != b.completion_ids));
}

fn compile_results(dir: &Path, results: &serde_json::Value) -> PathBuf {
    let dir = dir.join("compile");
    fs::create_dir_all(&dir).unwrap();
    let file = json!({
        "schema_version": 1, "toolchain": "", "linter": null, "isolation": {"level": 0, "layers": []}, "samples": results
    });
    fs::write(dir.join("compile_results.json"), file.to_string()).unwrap();
    dir
}

fn result(task: &str, sample_idx: u32, type_checks: bool) -> serde_json::Value {
    json!({
        "task_id": task, "sample_idx": sample_idx, "round": 0, "tests": "#[test]\nfn t() { nope(); }", "refused": null,
        "parses": true, "type_checks": type_checks, "lint_clean": null, "links": null,
        "diagnostics": [{"level": "error", "code": "E0425", "message": "cannot find function `nope`",
                         "span": {"line_start": 2, "column_start": 10, "line_end": 2, "column_end": 14}}],
        "fixes": [], "facts": null, "similarity": null
    })
}

#[test]
fn feedback_asks_again_for_failures_alone_and_tells_why() {
    let setup = Setup::new();
    let results =
        json!([result("a", 0, true), result("a", 1, false), result("b", 0, false), result("c", 0, true)]);
    let feedback = compile_results(setup.dir.path(), &results);
    let inputs = [
        ("model", setup.model.as_path()),
        ("corpus", setup.corpus.as_path()),
        ("feedback", feedback.as_path()),
    ];
    let samples = generate(&inputs, &setup.out("out"), &["max_new_tokens=4", "samples=2"]);
    let names: Vec<(&str, u32, u32)> =
        samples.iter().map(|s| (s.task_id.as_str(), s.sample_idx, s.round)).collect();
    assert_eq!(names, [("a", 1, 1), ("b", 0, 1)]);
    let told = "```rust\n#[test]\nfn t() { nope(); }\n```\n\nerror[E0425]: cannot find function `nope` (line 2: `fn t() { nope(); }`)";
    assert_eq!(samples[1].prompt_sha256, model::prompt::render(&rows()[1], Some(told)).sha256());
    let none = compile_results(setup.dir.path(), &json!([result("a", 0, true)]));
    let inputs =
        [("model", setup.model.as_path()), ("corpus", setup.corpus.as_path()), ("feedback", none.as_path())];
    assert!(generate(&inputs, &setup.out("none"), &[]).is_empty(), "there was nothing to repair");
}

#[test]
fn a_stopped_run_goes_on_and_ends_with_the_same_bytes() {
    use rustix::process::{Pid, Signal, kill_process};
    let setup = Setup::new();
    let more = ["samples=60", "max_new_tokens=40", "ignore_stop=true"];
    let whole = setup.run("whole", &more[..], &[]);
    let inputs = [("model", setup.model.as_path()), ("corpus", setup.corpus.as_path())];
    let out = setup.out("resumed");
    let args = crate::support::args(&inputs, &out, &more);
    for signal in [Signal::TERM, Signal::KILL] {
        let path = std::env::var_os("CARGO_BIN_EXE_generate").unwrap();
        let mut child =
            std::process::Command::new(path).args(&args).stderr(std::process::Stdio::null()).spawn().unwrap();
        let done = || {
            let entries = fs::read_dir(out.join("resume")).into_iter().flatten().flatten();
            entries.map(|e| fs::read_to_string(e.path()).unwrap_or_default().lines().count()).sum::<usize>()
        };
        let before = done();
        while done() < before + 20 {
            assert!(
                child.try_wait().unwrap().is_none(),
                "the run ended before it was to be stopped: give it more samples"
            );
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let code = child.wait().unwrap().code();
        assert_eq!(code, (signal == Signal::TERM).then_some(130));
        assert!(!out.join("samples").exists());
    }
    let checkpoint = out.join("resume");
    fs::write(checkpoint.join("notes.txt"), "of somebody else").unwrap();
    fs::write(checkpoint.join("samples-0123456789abcdef.partial"), "{").unwrap();
    let resumed = generate(&inputs, &out, &more);
    assert!(whole == resumed, "the resumed run differs");
    let left: Vec<_> = fs::read_dir(&checkpoint).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["notes.txt"]);
    let file = "samples/samples.jsonl";
    assert_eq!(fs::read(setup.out("whole").join(file)).unwrap(), fs::read(out.join(file)).unwrap());
}

#[test]
fn token_tasks_need_no_tokenizer_and_carry_no_template() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = dir.path().join("tasks.jsonl");
    fs::write(&tasks, "{\"id\":\"x\",\"prompt_ids\":[1,2,3]}\n").unwrap();
    let model = golden("qwen2-tiny/model");
    let inputs = [("model", model.as_path()), ("tasks", tasks.as_path())];
    let samples =
        generate(&inputs, &dir.path().join("out"), &["max_new_tokens=3", "samples=2", "return_ids=true"]);
    assert_eq!(samples.len(), 2);
    assert_eq!((samples[0].completion.as_str(), samples[0].template_sha256.as_str()), ("", ""));
    assert_eq!(samples[0].completion_ids.as_ref().unwrap().len(), 3);
}
