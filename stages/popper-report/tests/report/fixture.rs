//! Results of made-up runs, for the tests of the report alone.

use std::fs;
use std::path::{Path, PathBuf};

use record::compile::{
    COMPILE_SCHEMA_VERSION, CompileResult, CompileResults, Diagnostic, Isolation, Similarity, TestFacts,
};
use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};
use record::generation::{FinishReason, GenerationTiming, Sample};
use record::mutation::{
    Control, Controls, Coverage, MUTATION_SCHEMA_VERSION, MutantCounts, SampleResult, SelectedSample,
    SelectedSuite, TestOutcome, TestResults, Verdict,
};
use record::report::{Gates, Report};
use record::training::{StepRecord, TRAINING_SCHEMA_VERSION, TrainingManifest, TrainingMetrics};
use stage_kit::{ContextBuilder, Outcome, Result, digest::sha256_hex, files};

/// What happens to a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    NoSample,
    Garbage,
    TypeError,
    Fails,
    Passes,
}

pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) rows: Vec<CorpusRow>,
}

impl Fixture {
    /// Four strata of five functions, and two unsafe and two macro-using ones.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let strata = ["std", "async", "generics", "result"];
        let holdout: Vec<CorpusRow> = strata.iter().flat_map(|s| (0..5).map(|i| row(s, i))).collect();
        let stress: Vec<CorpusRow> =
            ["unsafe", "macros"].iter().flat_map(|s| (0..2).map(|i| row(s, i))).collect();
        fs::create_dir(dir.path().join("corpus")).unwrap();
        files::write_jsonl(&dir.path().join("corpus/holdout.jsonl"), &holdout).unwrap();
        files::write_jsonl(&dir.path().join("corpus/stress.jsonl"), &stress).unwrap();
        Self { dir, rows: holdout.into_iter().chain(stress).collect() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Samples, compile results and test results under the names with `suffix`, one sample per function.
    pub(crate) fn evaluation(&self, suffix: &str, fate: impl Fn(&CorpusRow) -> Fate) {
        let fates: Vec<(u32, u32, &CorpusRow, Fate)> =
            self.rows.iter().map(|row| (0, 0, row, fate(row))).collect();
        self.samples(suffix, &fates, true);
    }

    /// The same from (sample index, round, function, fate); `holds` is the planted-bug control's.
    pub(crate) fn samples(&self, suffix: &str, fates: &[(u32, u32, &CorpusRow, Fate)], holds: bool) {
        let fates: Vec<_> = fates.iter().filter(|f| f.3 != Fate::NoSample).collect();
        let weights = fs::read(self.path(&format!("adapter{suffix}/adapter_model.safetensors")));
        let weights = weights.unwrap_or_else(|_| b"weights".to_vec());
        let adapter = (suffix != "_base").then(|| sha256_hex(weights));
        let samples = fates.iter().map(|(idx, round, row, fate)| Sample {
            adapter_sha256: adapter.clone(),
            ..sample(*idx, *round, row, *fate)
        });
        files::write_jsonl(&self.folder(&format!("samples{suffix}")).join("samples.jsonl"), samples).unwrap();
        let isolation = Isolation { level: 2, layers: vec!["rlimits".to_owned()] };
        let compile = CompileResults {
            schema_version: COMPILE_SCHEMA_VERSION,
            toolchain: "rustc 1.95.0 (59807616e 2026-04-14)".to_owned(),
            linter: Some("clippy 0.1.95".to_owned()),
            isolation: isolation.clone(),
            samples: fates.iter().map(|(idx, round, row, fate)| compiled(*idx, *round, row, *fate)).collect(),
        };
        let results = TestResults {
            schema_version: MUTATION_SCHEMA_VERSION,
            toolchain: compile.toolchain.clone(),
            isolation,
            samples: fates.iter().map(|(idx, round, row, fate)| run(*idx, *round, row, *fate)).collect(),
            controls: Controls {
                planted_bug: control(Some(holds)),
                vacuous_test: control(Some(true)),
                shuffled_pairing: control(Some(true)),
            },
        };
        files::write_json(&self.folder(&format!("compile{suffix}")).join("compile_results.json"), &compile)
            .unwrap();
        let mutation = self.folder(&format!("mutation{suffix}"));
        files::write_json(&mutation.join("test_results.json"), &results).unwrap();
        let mut tasks = std::collections::BTreeSet::new();
        let accepted = fates.iter().filter(|f| f.3 == Fate::Passes && tasks.insert(&f.2.id));
        let accepted = accepted.map(|f| SelectedSuite {
            task_id: f.2.id.clone(),
            samples: vec![SelectedSample { sample_idx: f.0, round: f.1, tests: "t".to_owned(), adds: 8 }],
            mutants_killed: 8,
            mutants_viable: 10,
        });
        files::write_jsonl(&mutation.join("selected.jsonl"), accepted).unwrap();
    }

    /// A training of these losses with these weights.
    pub(crate) fn training(&self, suffix: &str, losses: &[f64], weights: &str) {
        let step = |(i, loss): (usize, &f64)| StepRecord {
            step: i as u64 + 1,
            epoch: 1,
            loss: *loss,
            grad_norm: 1.0,
            lr: 1e-4,
            label_tokens: 10,
            tokens: 20,
        };
        let checkpoints = self.folder(&format!("checkpoints{suffix}"));
        files::write_jsonl(&checkpoints.join("steps.jsonl"), losses.iter().enumerate().map(step)).unwrap();
        let adapter = self.folder(&format!("adapter{suffix}"));
        fs::write(adapter.join("adapter_model.safetensors"), weights).unwrap();
        files::write_json(&adapter.join("manifest.json"), &manifest(losses, weights)).unwrap();
    }

    /// Log, timings and lock of a run on a GPU.
    pub(crate) fn costs(&self, peak_vram_bytes: Option<u64>) {
        let log = TrainingMetrics {
            schema_version: TRAINING_SCHEMA_VERSION,
            backend: "cuda".to_owned(),
            device: "a device".to_owned(),
            wall_s: 600.0,
            tokens_per_s: 1000.0,
            steps: 3,
            final_loss: 1.0,
            best_validation_loss: None,
            max_grad_norm: 1.0,
            planned_peak_bytes: 1,
            peak_rss_bytes: None,
            peak_vram_bytes,
            peak_vram_scope: peak_vram_bytes.map(|_| "process".to_owned()),
            mean_gpu_utilization_percent: None,
            mfu: None,
            mfu_of_tflops: None,
            interrupted_and_resumed: false,
        };
        files::write_json(&self.folder("log").join("metrics.json"), &log).unwrap();
        let timing = |row: &CorpusRow| GenerationTiming {
            task_id: row.id.clone(),
            sample_idx: 0,
            latency_ms: 400.0,
            completion_tokens: 80,
        };
        files::write_jsonl(&self.folder("timings").join("timings.jsonl"), self.rows.iter().map(timing))
            .unwrap();
        let lock = format!(
            "schema_version: 1\nconfig: {{seed: 42, deterministic_algorithms: true, cudnn_benchmark: false, cudnn_deterministic: true}}\n\
             rust: rustc 1.95.0\ncuda: null\ncudnn: null\ntorch: null\ndependencies: {{serde 1.0.0: abc}}\n\
             hardware: {{cpu: a processor, gpu: null, driver: null}}\nchecksums: {{adapters: 'sha256:{}', dataset: 'sha256:{}'}}\n",
            sha256_hex("weights"),
            self.digest_of("corpus")
        );
        fs::write(self.folder("lock").join("reproducibility.lock"), lock).unwrap();
        let package = "[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n";
        fs::write(self.folder("dependencies").join("Cargo.lock"), package).unwrap();
    }

    /// As a lock takes it over a flat folder: `name\0sha256\n` of each file.
    fn digest_of(&self, folder: &str) -> String {
        let entries = fs::read_dir(self.path(folder)).unwrap().map(|e| e.unwrap().path());
        let files: std::collections::BTreeSet<_> = entries.collect();
        let line = |p: &std::path::PathBuf| {
            format!("{}\0{}\n", p.file_name().unwrap().to_str().unwrap(), sha256_hex(fs::read(p).unwrap()))
        };
        sha256_hex(files.iter().map(line).collect::<String>())
    }

    /// Changes a JSON file, or the first line of a JSONL file.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let text = self.source(name);
        let (first, rest) =
            if name.ends_with(".jsonl") { text.split_once('\n').unwrap() } else { (&*text, "") };
        let mut value = serde_json::from_str(first).unwrap();
        change(&mut value);
        fs::write(self.path(name), format!("{value}\n{rest}")).unwrap();
    }

    pub(crate) fn source(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs the stage over every folder that was made.
    pub(crate) fn run(&self, params: popper_report::Params) -> Result<Outcome> {
        let mut builder = ContextBuilder::new("popper-report", &self.path("stage"));
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !matches!(name.as_str(), "stage" | "report") {
                builder = builder.input(&name, self.path(&name));
            }
        }
        builder.output("report", self.path("report")).run::<popper_report::PopperReport>(params)
    }

    pub(crate) fn report(&self) -> Report {
        files::read_json(&self.path("report/report.json")).unwrap()
    }

    pub(crate) fn gates(&self) -> Gates {
        files::read_json(&self.path("report/gates.json")).unwrap()
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path("report").join(name)).unwrap()
    }
}

/// Every way that a text may break out of HTML.
pub(crate) const HOSTILE: &str = "</pre><script>alert('x')</script><img src=\"http://example.org\">\u{1b}[2J";

fn row(stratum: &str, i: u32) -> CorpusRow {
    let function_code = format!("pub fn {stratum}_{i}<T>(x: T) -> T {{ x }}");
    CorpusRow {
        id: format!("{stratum}-{i}"),
        metadata: RowMetadata {
            crate_name: "demo".to_owned(),
            version: "1.0.0".to_owned(),
            path: "src/lib.rs".to_owned(),
            item: format!("{stratum}_{i}"),
            lines: [1, 1],
            license: "MIT".to_owned(),
            complexity: 1,
            has_generics: stratum == "generics",
            has_lifetimes: stratum == "generics" && i == 0,
            is_async: stratum == "async",
            is_unsafe: stratum == "unsafe",
            uses_macros: stratum == "macros",
            returns_result: stratum == "result",
            source_class: SourceClass::Curated,
            property_class: None,
            oracle: Oracle::Human,
            link_tier: LinkTier::Curated,
            mutants_killed: 1,
            stratum: Some(stratum.to_owned()),
            sha256: sha256_hex(&function_code),
        },
        function_code,
        unit_tests: "#[test]\nfn t() {}".to_owned(),
        property_tests: None,
        context: RowContext::default(),
    }
}

fn sample(sample_idx: u32, round: u32, row: &CorpusRow, fate: Fate) -> Sample {
    Sample {
        task_id: row.id.clone(),
        sample_idx,
        round,
        seed: 42,
        prompt_sha256: sha256_hex("prompt"),
        completion: if fate == Fate::Garbage { HOSTILE.to_owned() } else { "tests".to_owned() },
        completion_ids: None,
        finish_reason: FinishReason::Stop,
        prompt_tokens: 10,
        completion_tokens: 10,
        model_sha256: sha256_hex("model"),
        adapter_sha256: Some(sha256_hex("weights")),
        tokenizer_sha256: sha256_hex("tokenizer"),
        template_sha256: sha256_hex("template"),
    }
}

fn tests(fate: Fate) -> &'static str {
    if fate == Fate::Garbage { "" } else { "#[test]\nfn test_empty_input() {}" }
}

fn compiled(sample_idx: u32, round: u32, row: &CorpusRow, fate: Fate) -> CompileResult {
    let parses = fate != Fate::Garbage;
    let type_checks = matches!(fate, Fate::Fails | Fate::Passes);
    let error = Diagnostic {
        level: "error".to_owned(),
        code: Some(if parses { "E0308" } else { "syntax" }.to_owned()),
        message: HOSTILE.to_owned(),
        span: None,
    };
    CompileResult {
        task_id: row.id.clone(),
        sample_idx,
        round,
        completion_sha256: sha256_hex(sample(sample_idx, round, row, fate).completion),
        tests: tests(fate).to_owned(),
        refused: None,
        parses,
        type_checks: parses.then_some(type_checks),
        lint_clean: type_checks.then_some(true),
        links: type_checks.then_some(true),
        diagnostics: if type_checks { vec![] } else { vec![error] },
        fixes: vec![],
        facts: parses.then(|| TestFacts {
            test_names: vec!["test_empty_input".to_owned()],
            n_assertions: 2,
            n_assertions_on_result: 1,
            n_tautologies: 0,
            calls_focal: true,
            has_edge_case: true,
            has_comment: true,
            strategy_names: vec!["input".to_owned()],
            redefines_focal: false,
        }),
        similarity: parses.then_some(Similarity { bleu4: 0.5, codebleu_compat: 0.6, codebleu: 0.4 }),
    }
}

fn run(sample_idx: u32, round: u32, row: &CorpusRow, fate: Fate) -> SampleResult {
    let compiled = matches!(fate, Fate::Fails | Fate::Passes);
    let passed = fate == Fate::Passes;
    let verdict = if passed { Verdict::Passed } else { Verdict::Failed };
    let test = TestOutcome { name: "test_empty_input".to_owned(), verdict, message: None };
    SampleResult {
        task_id: row.id.clone(),
        sample_idx,
        round,
        tests_sha256: sha256_hex(tests(fate)),
        stratum: row.metadata.stratum.clone(),
        compiled,
        passed,
        runs: 3,
        tests: if compiled { vec![test] } else { vec![] },
        mutants: passed.then_some(MutantCounts {
            killed: 7,
            timeout: 1,
            survived: 1,
            no_coverage: 1,
            unviable: 5,
            ignored: 2,
            in_source: 1,
        }),
        coverage: passed.then_some(Coverage {
            branches: 4,
            branches_covered: 3,
            branches_covered_baseline: 2,
            lines: 10,
            lines_covered: 9,
            lines_covered_baseline: 6,
        }),
    }
}

fn control(holds: Option<bool>) -> Control {
    let cases = if holds.is_some() { 4 } else { 0 };
    let as_expected = if holds == Some(true) { 4 } else { 0 };
    Control { expected: "as known".to_owned(), as_expected, cases, holds }
}

fn manifest(losses: &[f64], weights: &str) -> TrainingManifest {
    TrainingManifest {
        schema_version: TRAINING_SCHEMA_VERSION,
        kind: "adapter".to_owned(),
        mode: "lora".to_owned(),
        select: "best".to_owned(),
        selected_step: losses.len() as u64,
        steps: losses.len() as u64,
        epochs: 1,
        backend: "cpu".to_owned(),
        tokens_at_a_time: Vec::new(),
        model_sha256: sha256_hex("model"),
        base_model_sha256: sha256_hex("base"),
        base_model_sha256_after: Some(sha256_hex("base")),
        tokenizer_sha256: sha256_hex("tokenizer"),
        template_sha256: sha256_hex("template"),
        weights_sha256: sha256_hex(weights),
        n_trainable: 100,
        first_train_loss: losses[0],
        final_train_loss: losses[losses.len() - 1],
        validation_loss_before: Some(3.0),
        best_validation_loss: Some(2.0),
        params: [("rank".to_owned(), serde_json::json!(16))].into_iter().collect(),
    }
}

/// All bytes below a folder, by path.
pub(crate) fn contents(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}
