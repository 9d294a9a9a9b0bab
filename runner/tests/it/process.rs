//! Stages that misbehave: exit codes, signals, hangs, children left behind.

use std::fs;
use std::time::Instant;

use crate::support::{Project, alive, wait_for};

fn one(script: &str, keys: &str) -> Project {
    let project = Project::new(&format!(
        "[stage.s]\nrun = [\"sh\", \"stage.sh\", \"{{out.o}}\"]\noutputs = [\"o\"]\ncode = [\"stage.sh\"]\npass_env = [\"SIDE\"]\n{keys}\n"
    ));
    project.write("stage.sh", script);
    project
}

#[test]
fn a_failing_stage_shows_its_last_lines_its_log_and_the_next_step() {
    let project = one("echo out; echo the reason >&2; exit 7", "");
    let run = project.runner(&["run"]).expect(3);
    run.says("s FAILED: exit code 7").says("| the reason").says("next:");
    run.says("experiments/run-001/stages/s/logs/attempt-1.log");
    project.runner(&["log", "s"]).expect(0).says("the reason");
    project.runner(&["status"]).expect(0).says("failed").says("exit code 7");
    project.runner(&["log", "sx"]).expect(2).says("did you mean `s`?");
}

#[test]
fn a_killed_stage_names_the_signal() {
    one("kill -9 $$", "").runner(&["run"]).expect(3).says("signal 9 (SIGKILL)");
    one("kill -11 $$", "").runner(&["run"]).expect(3).says("SIGSEGV");
}

#[test]
fn a_missing_output_is_a_failure() {
    let project = one("exit 0", "");
    project.runner(&["run"]).expect(3).says("did not write its output `o`");
    project.runner(&["plan"]).expect(0).says("never ran");
}

#[test]
fn a_program_that_is_not_there_or_not_executable() {
    Project::new("[stage.s]\nrun = [\"no-such-program\"]\noutputs = [\"o\"]")
        .runner(&["run"])
        .expect(2)
        .says("pipeline.toml:3:8: stage `s`: there is no program `no-such-program`");
    let project = Project::new("[stage.s]\nrun = [\"./plain.txt\"]\noutputs = [\"o\"]");
    project.write("plain.txt", "x");
    project.runner(&["run"]).expect(2).says("can't be executed");
}

#[test]
fn a_hanging_stage_is_stopped_with_everything_it_started() {
    let script = "trap '' TERM; sleep 300 & echo $! > $SIDE; setsid sleep 301 & echo $! >> $SIDE; echo waiting; while true; do sleep 1; done";
    let project = one(script, "timeout = \"300ms\"\ngrace = \"200ms\"");
    let started = Instant::now();
    project.runner(&["run"]).expect(3).says("stopped after its timeout of 0.3 s").says("| waiting");
    assert!(started.elapsed().as_secs() < 15);
    for pid in project.executed() {
        assert!(!alive(&pid), "process {pid} is left");
    }
}

#[test]
fn a_stage_may_use_its_grace_period() {
    let script = "trap 'echo saved > $SIDE; exit 1' TERM; while true; do sleep 0.05; done";
    let project = one(script, "timeout = \"300ms\"\ngrace = \"10s\"");
    project.runner(&["run"]).expect(3).says("timeout");
    assert_eq!(project.executed(), ["saved"]);
}

#[test]
fn children_left_behind_by_a_good_stage_are_ended() {
    let script =
        "sleep 300 & echo $! > $SIDE; setsid sleep 301 & echo $! >> $SIDE; sleep 0.1; echo fine > $1";
    let project = one(script, "");
    let started = Instant::now();
    project.runner(&["run"]).expect(0);
    assert!(started.elapsed().as_secs() < 15, "the children held the pipes");
    let pids = project.executed();
    assert_eq!(pids.len(), 2);
    for pid in pids {
        assert!(!alive(&pid), "process {pid} is left");
    }
}

#[test]
fn ctrl_c_leaves_nothing_running_and_nothing_broken() {
    for (signal, name) in [(rustix::process::Signal::INT, "INT"), (rustix::process::Signal::TERM, "TERM")] {
        let script = "echo $$ > $SIDE; if [ -e go ]; then echo fine > $1; else sleep 300; fi";
        let project = one(script, "grace = \"2s\"");
        let child = project.start(&["run"]);
        wait_for("the stage", || project.path("side.log").exists());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{name}");
        for pid in project.executed() {
            assert!(!alive(&pid), "process {pid} is left");
        }
        project.runner(&["status"]).expect(0).says("interrupted");
        project.write("go", "");
        project.runner(&["run"]).expect(0).says("1 done");
    }
}

#[test]
fn exit_75_is_tried_again_and_other_failures_are_not() {
    let script = "echo try >> $SIDE; [ $(wc -l < $SIDE) -ge 3 ] || exit 75; echo fine > $1";
    let project = one(script, "");
    project.runner(&["run"]).expect(0).says("attempt 1 asks to be tried again").says("attempt 2");
    assert_eq!(project.executed().len(), 3);
    assert!(project.newest().join("stages/s/logs/attempt-3.log").exists());
    let project = one("echo try >> $SIDE; exit 75", "retries = 1");
    project.runner(&["run"]).expect(3).says("exit code 75 (attempt 2)");
    assert_eq!(project.executed().len(), 2);
}

#[test]
fn checkpoints_survive_failure_and_are_cleared_on_success() {
    let project = Project::new(
        r#"
[stage.s]
run = ["sh", "-c", '''
dir=$(sed -n 's/.*"checkpoint_dir": "\(.*\)".*/\1/p' "$TESTFORGE_REQUEST")
echo "$dir" >> "$SIDE"
if [ -e "$dir/step" ]; then cp "$dir/step" {out.o}; else echo 41 > "$dir/step"; exit 1; fi
''']
outputs = ["o"]
pass_env = ["SIDE"]
"#,
    );
    project.runner(&["run"]).expect(3);
    project.runner(&["run"]).expect(0);
    assert_eq!(project.newest_text("stages/s/o").trim(), "41");
    let dirs = project.executed();
    assert_eq!(dirs[0], dirs[1]);
    assert!(!std::path::Path::new(&dirs[0]).exists());
}

#[test]
fn keep_going_runs_what_does_not_need_the_failed_stage() {
    let pipeline = r#"
[stage.bad]
run = ["sh", "-c", "exit 1"]
outputs = ["o"]
[stage.needs-bad]
run = ["sh", "-c", "cp {in.x} {out.o}"]
inputs = { x = "bad.o" }
outputs = ["o"]
[stage.good]
run = ["sh", "-c", "sleep 0.2; echo 1 > {out.o}"]
outputs = ["o"]
[stage.needs-good]
run = ["sh", "-c", "echo reached >> $SIDE; cp {in.x} {out.o}"]
inputs = { x = "good.o" }
outputs = ["o"]
pass_env = ["SIDE"]
"#;
    let project = Project::new(pipeline);
    project.runner(&["run", "--jobs", "2"]).expect(3).says("needs bad");
    assert!(project.executed().is_empty());
    project.runner(&["run", "--keep-going"]).expect(3).says("needs-bad");
    assert_eq!(project.executed(), ["reached"]);
}

#[test]
fn resources_and_jobs_bound_what_runs_at_once() {
    let stage = |n: u32, keys: &str| {
        format!(
            "[stage.s{n}]\nrun = [\"sh\", \"-c\", \"echo + >> $SIDE; sleep 0.3; echo - >> $SIDE; echo {n} > {{out.o}}\"]\noutputs = [\"o\"]\npass_env = [\"SIDE\"]\n{keys}\n"
        )
    };
    let most = |project: &Project| {
        let (mut now, mut most) = (0, 0);
        for line in project.executed() {
            now += if line == "+" { 1 } else { -1 };
            most = most.max(now);
        }
        most
    };
    let greedy =
        Project::new(&(stage(1, "resources = { cpus = 9999 }") + &stage(2, "resources = { cpus = 9999 }")));
    greedy.runner(&["run"]).expect(0);
    assert_eq!(most(&greedy), 1);
    let jobs = Project::new(&(stage(1, "") + &stage(2, "")));
    jobs.runner(&["run", "--jobs", "1"]).expect(0);
    assert_eq!(most(&jobs), 1);
    let free = Project::new(&(stage(1, "") + &stage(2, "")));
    free.runner(&["run"]).expect(0);
    if std::thread::available_parallelism().unwrap().get() > 1 {
        assert_eq!(most(&free), 2);
    }
}

#[test]
fn gpus_are_handed_out_by_id_or_refused() {
    let project = Project::new(
        "[stage.s]\nrun = [\"sh\", \"-c\", \"echo $CUDA_VISIBLE_DEVICES > {out.o}\"]\noutputs = [\"o\"]\nresources = { gpus = 1 }",
    );
    project
        .runner_with(&["run"], &[("CUDA_VISIBLE_DEVICES", "")])
        .expect(3)
        .says("asks for 1 GPU(s)")
        .says("embedded");
    project.runner_with(&["run"], &[("CUDA_VISIBLE_DEVICES", "5,6")]).expect(0);
    assert_eq!(project.newest_text("stages/s/o").trim(), "5");
}

#[test]
fn the_environment_is_empty_but_for_what_is_named() {
    let project = Project::new(
        "[stage.s]\nrun = [\"sh\", \"-c\", \"env | cut -d= -f1 | sort > {out.o}\"]\noutputs = [\"o\"]\npass_env = [\"GIVEN\"]",
    );
    project.runner_with(&["run"], &[("GIVEN", "1"), ("NOT_GIVEN", "1")]).expect(0);
    let names = project.newest_text("stages/s/o");
    assert!(names.contains("GIVEN\n") && !names.contains("NOT_GIVEN"), "{names}");
    for name in ["PATH", "HOME", "LANG", "TMPDIR", "TESTFORGE_REQUEST"] {
        assert!(names.lines().any(|l| l == name), "{name} is missing in {names}");
    }
}

#[test]
fn secrets_reach_the_stage_and_nothing_else() {
    let script = "echo \"token is $TOKEN\"; printf 'x%sy' \"$TOKEN\" >&2; dir=$(dirname \"$TESTFORGE_REQUEST\"); echo \"{\\\"time_ms\\\":1,\\\"event\\\":{\\\"log\\\":{\\\"message\\\":\\\"has $TOKEN\\\"}}}\" >> $dir/events.jsonl; echo ${#TOKEN} > $1";
    let project = one(script, "secrets = [\"TOKEN\"]");
    let run = project.runner_with(&["run"], &[("TOKEN", "hush-hush-1234")]).expect(0);
    assert_eq!(project.newest_text("stages/s/o").trim(), "14");
    run.says("has ***");
    assert!(!run.out.contains("hush") && !run.err.contains("hush"));
    for file in crate::support::files(&project.path("")) {
        let bytes = fs::read(&file).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("hush-hush"), "{}", file.display());
    }
    project.runner_with(&["run"], &[("TOKEN", "another-value")]).expect(0).says("1 hits");

    let leaky = one("echo $TOKEN > $1", "secrets = [\"TOKEN\"]");
    leaky
        .runner_with(&["run"], &[("TOKEN", "hush-hush-1234")])
        .expect(3)
        .says("the value of the secret TOKEN");
}

#[test]
fn another_platform_is_refused_when_the_stage_executes() {
    let project = one("echo 1 > $1", "platform = { arch = \"pdp11\" }");
    project.runner(&["plan"]).expect(0);
    project.runner(&["run"]).expect(3).says("the stage wants \"pdp11\"");
}
