//! Selection, matrix, swapped stages, gates, the experiment's folder, output for programs.

use std::fs;

use serde_json::Value;

use crate::support::{Project, TWO_STAGES};

const CHAIN: &str = r#"
[stage.a]
run = ["sh", "-c", "echo a >> $SIDE; echo {param.n} > {out.o}"]
params = { n = 1 }
outputs = ["o"]
pass_env = ["SIDE"]
[stage.b]
run = ["sh", "-c", "echo b >> $SIDE; cp {in.x} {out.o}"]
inputs = { x = "a.o" }
outputs = ["o"]
pass_env = ["SIDE"]
[stage.c]
run = ["sh", "-c", "echo c >> $SIDE; cp {in.x} {out.o}"]
inputs = { x = "b.o" }
outputs = ["o"]
pass_env = ["SIDE"]
"#;

#[test]
fn a_run_needs_the_tools_of_its_own_stages_alone() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "-c", "echo a > {out.o}"]
outputs = ["o"]
[stage.b]
run = ["sh", "-c", "cp {in.x} {out.o}"]
inputs = { x = "a.o" }
outputs = ["o"]
tools = ["no-such-tool"]
"#,
    );
    project.runner(&["plan", "--until", "a"]).expect(0);
    project.runner(&["run", "--until", "a"]).expect(0);
    project.runner(&["why", "a"]).expect(0);
    for command in
        [&["run", "--until", "b"][..], &["run", "--only", "b"], &["plan", "--only", "b"], &["why", "b"]]
    {
        project.runner(command).expect(2).says("stage `b`: the tool `no-such-tool`: not found on PATH");
    }
}

#[test]
fn only_from_and_until() {
    let project = Project::new(CHAIN);
    project
        .runner(&["run", "--only", "b"])
        .expect(2)
        .says("`a` is not selected, and its result is not cached");
    project.runner(&["run", "--until", "b"]).expect(0);
    assert_eq!(project.executed(), ["a", "b"]);
    project.runner(&["run", "--only", "c"]).expect(0).says("1 done, 2 hits");
    assert_eq!(project.executed(), ["c"]);
    project.runner(&["run", "--from", "b", "--force", "b"]).expect(0);
    assert_eq!(project.executed(), ["b"], "c is cut off: b came out as before");
    project.runner(&["run", "--force", "a", "--until", "a"]).expect(0);
    assert_eq!(project.executed(), ["a"]);
    project.runner(&["run", "--from", "c", "--until", "a"]).expect(2).says("no stage is selected");
    project.runner(&["run", "--only", "a", "--force", "c"]).expect(2).says("not among those that run");
}

#[test]
fn require_cached_runs_nothing() {
    let project = Project::new(CHAIN);
    project
        .runner(&["run", "--require-cached"])
        .expect(5)
        .says("3 of 3 stages are not cached")
        .says("a: never ran");
    project.runner(&["run"]).expect(0);
    project.executed();
    project.runner(&["run", "--require-cached"]).expect(0).says("3 hits");
    project.runner(&["run", "--require-cached", "--set", "a.n=2"]).expect(5).says("params.n changed: 1 -> 2");
    assert!(project.executed().is_empty());
}

#[test]
fn a_matrix_makes_instances_and_a_later_stage_takes_them_all() {
    let project = Project::new(
        r#"
[stage.sweep]
run = ["sh", "-c", "echo sweep >> $SIDE; mkdir {out.adapter}; echo {param.rank} {param.lr} {param.fixed} > {out.adapter}/w"]
matrix = { rank = [8, 16], lr = [2e-4, 6e-4] }
params = { fixed = "f" }
outputs = ["adapter"]
pass_env = ["SIDE"]
[stage.all]
run = ["sh", "-c", "for d in {in.adapters}/*; do echo $(basename $d) $(cat $d/w); done > {out.o}"]
inputs = { adapters = "sweep[*].adapter" }
outputs = ["o"]
[stage.one]
run = ["sh", "-c", "cat {in.adapter}/w > {out.o}"]
inputs = { adapter = "sweep[rank=16,lr=2e-4].adapter" }
outputs = ["o"]
"#,
    );
    project.runner(&["run"]).expect(0).says("sweep[rank=8,lr=2e-4]").says("6 done");
    assert_eq!(project.executed().len(), 4);
    let all = project.newest_text("stages/all/o");
    assert!(all.contains("rank=8,lr=6e-4 8 0.0006 f"), "{all}");
    assert_eq!(all.lines().count(), 4);
    assert_eq!(project.newest_text("stages/one/o").trim(), "16 0.0002 f");
    project.runner(&["run", "--only", "sweep[rank=8,lr=2e-4]", "--force", "sweep[rank=8,lr=2e-4]"]).expect(0);
    assert_eq!(project.executed().len(), 1);
    project.runner(&["log", "sweep[rank=8,lr=2e-4]"]).expect(0);
    let text = project.read("pipeline.toml");
    fs::write(project.path("pipeline.toml"), text.replace("[8, 16]", "[8, 32]")).unwrap();
    project.runner(&["plan"]).expect(2).says("there is no instance `rank=16,lr=2e-4` of `sweep`");
    fs::write(project.path("pipeline.toml"), text.replace("sweep[*].adapter", "sweep.adapter")).unwrap();
    project.runner(&["plan"]).expect(2).says("write \"sweep[*].adapter\"");
}

#[test]
fn a_stage_is_swapped_for_a_shell_script_and_for_python() {
    let project = Project::new(
        "[stage.s]\nrun = [\"./stages/s.sh\"]\noutputs = [\"o\"]\nparams = { text = \"hi\" }\n[stage.t]\nrun = [\"sh\", \"-c\", \"cp {in.x} {out.o}\"]\ninputs = { x = \"s.o\" }\noutputs = [\"o\"]",
    );
    project.script(
        "stages/s.sh",
        "out=$(sed -n 's/.*\"o\": \"\\(.*\\)\".*/\\1/p' \"$TESTFORGE_REQUEST\"); echo HI > \"$out\"",
    );
    project.runner(&["run"]).expect(0);
    assert_eq!(project.newest_text("stages/t/o"), "HI\n");
    let python = std::process::Command::new("python3").arg("--version").output();
    assert!(python.is_ok(), "NOT TESTED: the Python half of this test needs python3");
    let text = project.read("pipeline.toml").replace("[\"./stages/s.sh\"]", "[\"python3\", \"stages/s.py\"]");
    fs::write(project.path("pipeline.toml"), text).unwrap();
    project.write(
        "stages/s.py",
        "import json, os\nrequest = json.load(open(os.environ['TESTFORGE_REQUEST']))\nopen(request['outputs']['o'], 'w').write(request['params']['text'].upper() + '\\n')\n",
    );
    let run = project.runner(&["run"]).expect(0);
    run.says("1 done, 1 hits").says("warning: stage `s` runs a script of `python3` without `code`");
    run.says("run changed: ./stages/s.sh -> python3 stages/s.py");
}

#[test]
fn events_become_progress() {
    let project = Project::new(
        r#"
[stage.s]
run = ["sh", "-c", '''
live=$(dirname "$TESTFORGE_REQUEST")
for n in 1 2 3; do echo "{\"time_ms\":1,\"event\":{\"progress\":{\"done\":$n,\"total\":3,\"unit\":\"rows\"}}}" >> $live/events.jsonl; sleep 0.15; done
echo "{\"time_ms\":1,\"event\":{\"warning\":{\"message\":\"odd row\"}}}" >> $live/events.jsonl
echo 1 > {out.o}''']
outputs = ["o"]
"#,
    );
    let run = project.runner(&["run", "--format", "json"]).expect(0);
    let events: Vec<Value> = run.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"open"));
    assert_eq!(kinds.last(), Some(&"close"));
    assert!(
        events.iter().any(|e| e["event"] == "progress" && e["done"] == 3 && e["unit"] == "rows"),
        "{}",
        run.out
    );
    assert!(events.iter().any(|e| e["event"] == "warning" && e["text"] == "odd row"));
    assert_eq!(events.last().unwrap()["run"]["exit_code"], 0);
    assert_eq!(events.last().unwrap()["run"]["nodes"][0]["state"], "done");
    let fault = project.runner(&["run", "--format", "json", "--only", "x"]).expect(2);
    let fault: Value = serde_json::from_str(fault.out.trim()).unwrap();
    assert_eq!(fault["exit_code"], 2);
    for arguments in
        [&["run", "--format", "json", "--nonsense"][..], &["plan", "--format=json", "--only"][..]]
    {
        let fault: Value = serde_json::from_str(project.runner(arguments).expect(2).out.trim()).unwrap();
        assert_eq!(
            (&fault["event"], &fault["exit_code"]),
            (&Value::from("error"), &Value::from(2)),
            "{arguments:?}"
        );
    }
}

fn gated(passed: bool, enforce: bool) -> Project {
    let verdict = if passed { "corroborated" } else { "falsified" };
    Project::new(&format!(
        r#"
gate = "report.report/gates.json"
enforce_gate = {enforce}
[stage.report]
run = ["sh", "-c", "mkdir {{out.report}}; cp gates.json {{out.report}}; echo page > {{out.report}}/report.html"]
outputs = ["report"]
params = {{ passed = {passed}, verdict = "{verdict}" }}
"#
    ))
}

#[test]
fn an_unmet_gate_exits_4_or_is_only_reported() {
    let gates = |passed: bool, verdict: &str| {
        format!(
            r#"{{"schema_version":1,"passed":{passed},"gates":[{{"id":"G1","rule":"compile rate >= 0.85","measured":0.5,"threshold":0.85,"verdict":"{verdict}"}}]}}"#
        )
    };
    let project = gated(true, true);
    project.write("gates.json", &gates(true, "corroborated"));
    project
        .runner(&["run"])
        .expect(0)
        .says("gate: report.report/gates.json met")
        .says("report: experiments/run-001/report.html");
    let project = gated(false, true);
    project.write("gates.json", &gates(false, "falsified"));
    let run = project.runner(&["run"]).expect(4);
    run.says("NOT met").says("not met: G1 (compile rate >= 0.85): measured 0.5");
    project.runner(&["run"]).expect(4).says("1 hits");
    let project = gated(false, false);
    project.write("gates.json", &gates(false, "falsified"));
    project.runner(&["run"]).expect(0).says("reported, not enforced");
    let record: Value = serde_json::from_str(&project.newest_text("experiment.json")).unwrap();
    assert_eq!(record["outcome"], "gate_not_met");
    project.write("gates.json", "not json");
    project.runner(&["run", "--force", "report"]).expect(3).says("gates.json: not a gates file");
    project.runner(&["status"]).expect(0).says("failed");
    let project = gated(false, true);
    project.write("gates.json", r#"{"passed": false, "by": "hand"}"#);
    project.runner(&["run"]).expect(4).says("NOT met");
    project.write("gates.json", r#"{"passed": "no"}"#);
    let faulty = project.runner(&["run", "--force", "report"]).expect(3);
    faulty.says("`passed` is neither true nor false").says("report: experiments/");
    assert!(project.newest().join("reproducibility.lock").exists());
}

const EVALUATED: &str = r#"
[stage.trainer-base]
run = ["./trainer"]
outputs = ["adapter", "checkpoints", "log"]
params = { who = "base" }
volatile = ["log"]
[stage.trainer]
run = ["./trainer"]
outputs = ["adapter", "checkpoints", "log"]
params = { who = "tuned" }
volatile = ["log"]
[stage.check]
run = ["sh", "-c", "mkdir {out.compile}; echo '{{}}' > {out.compile}/compile_results.json; cp -r {in.a} {out.compile}/a"]
inputs = { a = "trainer.adapter" }
outputs = ["compile"]
[view]
"extra/first.json" = "check.compile/compile_results.json"
"#;

fn evaluated() -> Project {
    let project = Project::new(EVALUATED);
    project.script(
        "trainer",
        r#"out() { sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p" "$TESTFORGE_REQUEST"; }
mkdir -p "$(out adapter)" "$(out checkpoints)/step-4" "$(out checkpoints)/best" "$(out log)"
out who > "$(out adapter)/adapter_model.safetensors"
echo w > "$(out checkpoints)/best/adapter_model.safetensors"
out who > "$(out log)/training.log"; echo '{"backend":"cpu"}' > "$(out log)/metrics.json""#,
    );
    project
}

#[test]
fn the_experiment_s_folder_has_the_expected_view() {
    let project = evaluated();
    project.runner(&["run", "--experiment", "e1"]).expect(0);
    let root = project.path("experiments/e1");
    for file in [
        "config.yaml",
        "reproducibility.lock",
        "experiment.json",
        "training.log",
        "metrics.json",
        "checkpoints/best/adapter_model.safetensors",
        "checkpoints/step-4",
        "evaluation/compile_results.json",
        "extra/first.json",
        "stages/trainer/live/request.json",
    ] {
        assert!(root.join(file).exists(), "{file} is missing");
    }
    assert_eq!(
        project.read("experiments/e1/training.log").trim(),
        "tuned",
        "the stage named like its program comes first"
    );
    let record: Value = serde_json::from_str(&project.read("experiments/e1/experiment.json")).unwrap();
    assert_eq!(record["outcome"], "succeeded");
    assert_eq!(record["metrics"]["final_loss"], Value::Null);
    let config = project.read("experiments/e1/config.yaml");
    assert_eq!(record["config_hash"].as_str().unwrap().len(), 64);
    assert!(config.contains("who: tuned"));
}

#[test]
fn lock_verify_names_every_changed_field() {
    let project = evaluated();
    project.runner(&["run"]).expect(0);
    project.runner(&["lock", "verify"]).expect(0).says("every field of the lock is as it was");
    let path = project.newest().join("reproducibility.lock");
    let lock = fs::read_to_string(&path).unwrap();
    assert!(lock.contains("adapters: sha256:"), "{lock}");
    assert!(lock.contains("trainer.adapter: blake3:"), "{lock}");
    assert!(!lock.contains("trainer.log"), "volatile outputs are not locked: {lock}");
    for (from, to, field) in [
        ("seed: 42", "seed: 43", "config.seed"),
        ("cudnn_benchmark: false", "cudnn_benchmark: true", "config.cudnn_benchmark"),
        ("rust: ", "rust: x", "rust"),
        ("cpu: ", "cpu: x", "hardware.cpu"),
        ("adapters: sha256:", "adapters: sha256:0", "checksums.adapters"),
        ("check.compile: blake3:", "check.compile: blake3:0", "checksums.check.compile"),
        ("torch: null", "torch: 2.1", "torch"),
        ("schema_version: 1", "schema_version: 2", "schema_version"),
    ] {
        fs::write(&path, lock.replacen(from, to, 1)).unwrap();
        project.runner(&["lock", "verify"]).expect(5).says(field).says("1 field(s) differ");
    }
    // Read as the output `txt` of a node, it would be this file.
    project.write("outside/txt", "not of the experiment");
    for name in ["../../../outside.txt", &project.path("outside.txt").display().to_string()] {
        let planted = format!("checksums:\n  {name}: blake3:{}", "0".repeat(64));
        fs::write(&path, lock.replacen("checksums:", &planted, 1)).unwrap();
        let said = project.runner(&["lock", "verify"]).expect(5);
        said.says(&format!("checksums.{name}: blake3:{} -> (absent)", "0".repeat(64)));
    }
    fs::write(&path, &lock).unwrap();
    project.write("Cargo.lock", "[[package]]\nname = \"x\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n");
    project.runner(&["lock", "verify"]).expect(5).says("dependencies.x 1.0.0");
    fs::remove_file(project.path("Cargo.lock")).unwrap();
    let file = project.newest().join("stages/check/compile/compile_results.json");
    fs::remove_file(&file).unwrap();
    fs::write(&file, "tampered").unwrap();
    project.runner(&["lock", "verify"]).expect(5).says("checksums.check.compile");
    fs::write(&path, "][").unwrap();
    project.runner(&["lock", "verify"]).expect(2).says("not a reproducibility.lock");
    // As while a run lasts, and after one that was killed.
    fs::remove_file(path).unwrap();
    project.runner(&["lock", "verify"]).expect(2).says("it is written when a run has ended");
}

/// Seconds; minutes, if putting them in order went through all that is left for every one.
#[test]
fn ten_thousand_stages_are_put_in_order() {
    let stage = |i: usize| {
        let from =
            i.checked_sub(1).map_or(String::new(), |n| format!("inputs = {{ i = \"s{}.o\" }}\n", n / 2));
        format!("[stage.s{i}]\nrun = [\"sh\"]\noutputs = [\"o\"]\n{from}")
    };
    let project = Project::new(&(0..10_000).map(stage).collect::<String>());
    let began = std::time::Instant::now();
    let graph = project.runner(&["graph"]).expect(0);
    assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(graph.out.lines().filter(|line| !line.starts_with(' ')).count(), 10_000);
}

#[test]
fn graph_and_status() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "x");
    project.runner(&["graph"]).expect(0).says("text <- copy.text").says("data <- file:data");
    project.runner(&["graph", "--format", "dot"]).expect(0).says("\"copy\" -> \"count\" [label = \"text\"];");
    project.runner(&["status"]).expect(2).says("no experiment here");
    project.runner(&["run"]).expect(0);
    let status = project.runner(&["status"]).expect(0);
    status.says("succeeded");
    assert!(!status.out.contains("never ran"), "why it ran is no news once it is done: {}", status.out);
    project.runner(&["status", "--experiment", "nope"]).expect(2).says("no experiment `nope`");
    project.runner(&["doctor"]).expect(0).says("rustc").says("disk");
}
