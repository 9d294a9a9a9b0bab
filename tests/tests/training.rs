//! Training through the runner: interrupted and resumed equals uninterrupted; two runs are the same bytes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Stdio;

use record::experiment::NodeState;
use record::training::TrainingStatus;
use testforge_tests::{Finished, Project, fixture, interrupt, wait_until};

const PIPELINE: &str = r#"
schema = 1

[stage.fetch-model]
run      = ["fetch-model"]
protocol = 2
outputs  = ["model"]
params   = { source = "embedded:tiny" }

[stage.tokenize-to-parquet]
run      = ["tokenize-to-parquet"]
protocol = 2
inputs   = { model = "fetch-model.model", corpus = "file:corpus" }
outputs  = ["tokens"]

[stage.train]
run       = ["train-cuda"]
protocol  = 2
inputs    = { model = "fetch-model.model", tokens = "tokenize-to-parquet.tokens" }
outputs   = ["adapter", "checkpoints", "log"]
params    = { mode = "lora", device = "cpu", precision = "float32", epochs = 12, batch = 1, accumulation = 1, lr = 1e-3 }
resources = { cpus = 2 }
"#;

fn project() -> Project {
    let project = Project::new(PIPELINE);
    fixture::write_corpus(&project.path("corpus"));
    project
}

/// Output name -> digest of the training node.
fn outputs(project: &Project, experiment: &str) -> record::Map<String> {
    let record = project.experiment(experiment);
    let node = record.nodes.into_iter().find(|n| n.name == "train").unwrap();
    assert_eq!(node.state, NodeState::Done, "{:?}", node.message);
    node.outputs
}

#[test]
fn interrupted_and_resumed_equals_uninterrupted() {
    let (whole, cut) = (project(), project());
    whole.run("one", &[]).expect_code(0);

    let args = ["run", "pipeline.toml", "--no-build", "--experiment", "one"];
    let child =
        cut.program("runner").args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let state = cut.path("experiments/one/stages/train/live/training_state.json");
    wait_until("five steps of training", 120, || {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        let parsed = serde_json::from_str::<record::training::TrainingState>(&text);
        parsed.is_ok_and(|s| s.loss_history.len() >= 5 && s.status == TrainingStatus::Running)
    });
    let stopped = interrupt(child);
    assert_eq!(stopped.code, Some(130), "{}", stopped.stderr);

    cut.run("two", &[]).expect_code(0);
    let (one, two) = (outputs(&whole, "one"), outputs(&cut, "two"));
    for name in ["adapter", "checkpoints"] {
        assert_eq!(one[name], two[name], "output `{name}` differs after a resume");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let (two, one) = (project(), project());
    two.run("x", &[]).expect_code(0);
    one.write("pipeline.toml", &PIPELINE.replace("cpus = 2", "cpus = 1"));
    one.run("x", &[]).expect_code(0);
    assert_eq!(outputs(&two, "x")["adapter"], outputs(&one, "x")["adapter"]);
    assert_eq!(outputs(&two, "x")["checkpoints"], outputs(&one, "x")["checkpoints"]);
}

#[test]
fn asking_for_a_gpu_that_can_not_be_used_is_an_error_that_says_what_to_do() {
    let project = project();
    // The stage is shown no GPU, whatever the machine has.
    project.write("pipeline.toml", &format!("{PIPELINE}pass_env  = [\"CUDA_VISIBLE_DEVICES\"]\n"));
    let args = ["run", "pipeline.toml", "--no-build", "--experiment", "one", "--set", "train.device=cuda"];
    let run = project.program("runner").args(args).env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
    Finished::of(run).expect_code(3).expect_text("no NVIDIA GPU can be used").expect_text("device=cpu");
}
