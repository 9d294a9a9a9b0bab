//! r4 through the real programs: a run is held against the lock of an earlier one, and a lock of anything else scores 0.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use record::Map;
use record::libs::{LIBS_SCHEMA_VERSION, PrebuiltLibs};
use record::report::{Check, CheckVerdict, Report};
use testforge_tests::{Project, fixture};

const PIPELINE: &str = r#"
schema = 1

[stage.fetch-model]
run      = ["fetch-model"]
protocol = 2
outputs  = ["model"]
params   = { source = "embedded:tiny" }

[stage.build-corpus]
run      = ["sh", "-c", "mkdir \"$1\" && cp \"$0\"/* \"$1\"/", "{in.rows}", "{out.corpus}"]
protocol = 0
inputs   = { rows = "file:rows" }
outputs  = ["corpus"]

[stage.tokenize-to-parquet]
run      = ["tokenize-to-parquet"]
protocol = 2
inputs   = { model = "fetch-model.model", corpus = "build-corpus.corpus" }
outputs  = ["tokens"]

[stage.train-cuda]
run      = ["train-cuda"]
protocol = 2
inputs   = { model = "fetch-model.model", tokens = "tokenize-to-parquet.tokens" }
outputs  = ["adapter", "checkpoints", "log"]
params   = { mode = "lora", device = "cpu", precision = "float32", epochs = 1, batch = 1, accumulation = 1, lr = 1e-3 }

[stage.generate]
run      = ["generate"]
protocol = 2
inputs   = { model = "fetch-model.model", adapter = "train-cuda.adapter", corpus = "build-corpus.corpus" }
outputs  = ["samples", "timings"]
params   = { samples = 1, device = "cpu", base = "float32", precision = "float32", max_new_tokens = 8 }

[stage.compile-check]
run      = ["compile-check"]
protocol = 2
inputs   = { samples = "generate.samples", corpus = "build-corpus.corpus", libs = "file:libs" }
outputs  = ["compile"]
pass_env = ["RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "HOME"]

[stage.mutate-score]
run      = ["mutate-score"]
protocol = 2
inputs   = { samples = "generate.samples", corpus = "build-corpus.corpus", compile = "compile-check.compile", libs = "file:libs" }
outputs  = ["mutation", "timings"]
pass_env = ["RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "HOME"]

[stage.popper-report]
run      = ["popper-report"]
protocol = 2
outputs  = ["report"]
[stage.popper-report.inputs]
corpus       = "build-corpus.corpus"
samples      = "generate.samples"
compile      = "compile-check.compile"
mutation     = "mutate-score.mutation"
adapter      = "train-cuda.adapter"
dependencies = "file:Cargo.lock"
"#;

const CARGO_LOCK: &str = "version = 4\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nsource = \"registry+https://example.invalid/index\"\nchecksum = \"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\n";

fn project() -> Project {
    let project = Project::new(PIPELINE);
    fixture::write_corpus(&project.path("rows"));
    project.write("Cargo.lock", CARGO_LOCK);
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let libs = PrebuiltLibs {
        schema_version: LIBS_SCHEMA_VERSION,
        rustc: String::from_utf8(rustc.stdout).unwrap(),
        externs: Map::new(),
        versions: Map::new(),
        files: Map::new(),
    };
    project.write("libs/libs.json", &serde_json::to_string(&libs).unwrap());
    project
}

/// r4 and the score of an experiment.
fn r4(project: &Project, experiment: &str) -> (Check, u32) {
    let text = project.read(&format!("experiments/{experiment}/stages/popper-report/report/report.json"));
    let report: Report = serde_json::from_str(&text).unwrap();
    let check = report.checks.into_iter().find(|check| check.id == "r4").unwrap();
    (check, report.score)
}

fn against(project: &Project, experiment: &str, lock: &str) -> (Check, u32) {
    let input = format!("popper-report.inputs.lock=file:{lock}");
    project.run(experiment, &["--set", &input]).expect_code(0);
    r4(project, experiment)
}

/// The lock with the first line that `is_it` finds changed, which must be there.
fn tampered(lock: &str, is_it: impl Fn(&str) -> bool, change: impl Fn(&str) -> String) -> String {
    let at = lock.lines().position(is_it).unwrap();
    lock.lines()
        .enumerate()
        .map(|(i, line)| if i == at { change(line) } else { line.to_owned() } + "\n")
        .collect()
}

/// The line with another digit at its end.
fn other_digit(line: &str) -> String {
    let end = line.rfind(|c: char| c.is_ascii_hexdigit()).unwrap();
    let other = if &line[end..=end] == "0" { "1" } else { "0" };
    format!("{}{other}{}", &line[..end], &line[end + 1..])
}

#[test]
fn a_run_is_held_against_the_lock_of_an_earlier_one() {
    let project = project();
    project.run("one", &[]).expect_code(0);
    let (check, without) = r4(&project, "one");
    assert_eq!(check.verdict, CheckVerdict::NotTested, "{}", check.detail);
    let lock = project.read("experiments/one/reproducibility.lock");

    let (check, with) = against(&project, "two", "experiments/one/reproducibility.lock");
    assert_eq!((check.verdict, with), (CheckVerdict::Corroborated, without + 5), "{}", check.detail);
    // The second run's own lock is as good as the first one's.
    let (check, _) = against(&project, "three", "experiments/two/reproducibility.lock");
    assert_eq!(check.verdict, CheckVerdict::Corroborated, "{}", check.detail);

    let starts = |field: &'static str| move |line: &str| line.trim_start().starts_with(field);
    let cases = [
        ("seed", tampered(&lock, starts("seed:"), |line| line.replace("42", "43")), "its seed is 43"),
        (
            "rust",
            tampered(&lock, starts("rust:"), |line| line.replace("rustc 1.", "rustc 9.")),
            "it names `rustc 9.",
        ),
        ("adapter", tampered(&lock, starts("adapters:"), other_digit), "`adapters` is that of other files"),
        ("corpus", tampered(&lock, starts("dataset:"), other_digit), "`dataset` is that of other files"),
        ("package", tampered(&lock, starts("serde 1.0.0:"), other_digit), "dependencies differ: serde 1.0.0"),
        (
            "missing",
            tampered(&lock, starts("adapters:"), |_| String::new()),
            "it holds no checksum `adapters`",
        ),
    ];
    for (name, text, why) in cases {
        assert_ne!(text, lock, "{name}");
        project.write(&format!("locks/{name}.lock"), &text);
        let (check, score) = against(&project, &format!("tampered-{name}"), &format!("locks/{name}.lock"));
        assert_eq!((check.verdict, score), (CheckVerdict::Falsified, without), "{name}: {}", check.detail);
        assert!(check.detail.contains(why), "{name}: {}", check.detail);
    }
    project.write("locks/half.lock", &lock[..lock.len() / 2]);
    let half = project.run("half", &["--set", "popper-report.inputs.lock=file:locks/half.lock"]);
    half.expect_code(3).expect_text("half.lock");
}

/// Another training is no reproduction, whatever its lock says of itself.
#[test]
fn the_lock_of_another_training_scores_nothing() {
    let project = project();
    project.run("one", &["--set", "train-cuda.lr=2e-3"]).expect_code(0);
    let (check, _) = against(&project, "two", "experiments/one/reproducibility.lock");
    assert_eq!(check.verdict, CheckVerdict::Falsified);
    assert!(check.detail.contains("the checksum of `adapters` is that of other files"), "{}", check.detail);
    assert!(!check.detail.contains("dataset"), "{}", check.detail);
}
