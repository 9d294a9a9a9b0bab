//! A stage can be replaced by any program: a shell script, a Python script, in the middle of the real ones.

use record::experiment::NodeState;
use testforge_tests::{Project, fixture};

/// Real tokenizing around two foreign stages.
const PIPELINE: &str = r#"
schema = 1

[stage.fetch-model]
run      = ["fetch-model"]
protocol = 2
outputs  = ["model"]
params   = { source = "embedded:tiny" }

[stage.filter]
run      = ["sh", "filter.sh", "{in.corpus}", "{out.corpus}"]
protocol = 0
inputs   = { corpus = "file:corpus" }
outputs  = ["corpus"]

[stage.tokenize-to-parquet]
run      = ["tokenize-to-parquet"]
protocol = 2
inputs   = { model = "fetch-model.model", corpus = "filter.corpus" }
outputs  = ["tokens"]

[stage.measure]
run      = ["python3", "measure.py"]
protocol = 1
code     = ["measure.py"]
inputs   = { tokens = "tokenize-to-parquet.tokens" }
outputs  = ["sizes"]
params   = { unit = "bytes" }
"#;

const FILTER: &str = "set -eu\nmkdir \"$2\"\ncp \"$1\"/* \"$2\"/\n";

const MEASURE: &str = r#"
import json, os
request = json.load(open(os.environ["TESTFORGE_REQUEST"]))
tokens, sizes = request["inputs"]["tokens"], request["outputs"]["sizes"]
names = sorted(os.listdir(tokens))
with open(os.path.join(request["live_dir"], "events.jsonl"), "a") as events:
    events.write(json.dumps({"time_ms": 1, "event": {"progress": {"done": 1, "total": 1, "unit": "files"}}}) + "\n")
os.mkdir(sizes)
with open(os.path.join(sizes, "sizes.json"), "w") as out:
    json.dump({"unit": request["params"]["unit"], "files": names}, out)
"#;

fn project() -> Project {
    let project = Project::new(PIPELINE);
    project.write("filter.sh", FILTER);
    project.write("measure.py", MEASURE);
    fixture::write_corpus(&project.path("corpus"));
    project
}

fn states(project: &Project, experiment: &str) -> Vec<(String, NodeState)> {
    let mut nodes: Vec<_> =
        project.experiment(experiment).nodes.into_iter().map(|n| (n.name, n.state)).collect();
    nodes.sort_by(|a, b| a.0.cmp(&b.0));
    nodes
}

#[test]
fn foreign_stages_run_between_ours_and_are_cached_like_them() {
    let project = project();
    project.run("one", &[]).expect_code(0);
    assert!(
        states(&project, "one").iter().all(|(_, s)| *s == NodeState::Done),
        "{:?}",
        states(&project, "one")
    );
    let sizes = project.read("experiments/one/stages/measure/sizes/sizes.json");
    assert!(sizes.contains("train.parquet") && sizes.contains("bytes"), "{sizes}");

    project.run("two", &["--require-cached"]).expect_code(0);
    assert!(
        states(&project, "two").iter().all(|(_, s)| *s == NodeState::Hit),
        "{:?}",
        states(&project, "two")
    );
}

#[test]
fn a_changed_script_reruns_its_stage_and_equal_output_cuts_the_rest_off() {
    let project = project();
    project.run("one", &[]).expect_code(0);
    project.write("filter.sh", &format!("{FILTER}# a comment\n"));
    project.runner(&["why", "filter"]).expect_code(0).expect_text("filter.sh");
    project.run("two", &[]).expect_code(0);
    let expected = [
        ("fetch-model", NodeState::Hit),
        ("filter", NodeState::Done),
        ("measure", NodeState::Hit),
        ("tokenize-to-parquet", NodeState::Hit),
    ];
    assert_eq!(states(&project, "two"), expected.map(|(n, s)| (n.to_owned(), s)));
}

#[test]
fn a_parameter_set_on_the_command_line_reruns_what_it_reaches() {
    let project = project();
    project.run("one", &[]).expect_code(0);
    project.run("two", &["--set", "measure.unit=kilobytes"]).expect_code(0);
    let rerun: Vec<_> = states(&project, "two").into_iter().filter(|(_, s)| *s == NodeState::Done).collect();
    assert_eq!(rerun, [("measure".to_owned(), NodeState::Done)]);
    assert!(project.read("experiments/two/stages/measure/sizes/sizes.json").contains("kilobytes"));
}

#[test]
fn a_stage_that_leaves_out_its_output_fails_and_the_rest_does_not_run() {
    let project = project();
    project.write("filter.sh", "exit 0\n");
    project.run("one", &[]).expect_code(3).expect_text("filter").expect_text("corpus");
    let states = states(&project, "one");
    assert!(states.contains(&("filter".to_owned(), NodeState::Failed)), "{states:?}");
    assert!(states.contains(&("tokenize-to-parquet".to_owned(), NodeState::Skipped)), "{states:?}");
}

#[test]
fn a_damaged_row_stops_the_run_and_names_file_and_line() {
    let project = project();
    let path = project.path("corpus/train.jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.insert_str(text.find('\n').unwrap() + 1, "{\"id\": \n");
    std::fs::write(&path, text).unwrap();
    project.run("one", &[]).expect_code(3).expect_text("train.jsonl:2");
}

#[test]
fn a_parameter_that_the_stage_does_not_have_is_refused_before_anything_runs() {
    let project = project();
    let result = project.run("one", &["--set", "tokenize-to-parquet.max_lenght=10"]).expect_code(2);
    result.expect_text("max_lenght").expect_text("max_length");
    assert!(!project.path("experiments/one/stages/fetch-model/model").exists());
}
