//! The runner itself is killed, raced and starved.

use std::fs;

use crate::support::{Project, TWO_STAGES, alive, wait_for};

const SLOW: &str = r#"
[stage.quick]
run = ["sh", "-c", "echo quick >> $SIDE; echo 1 > {out.o}"]
outputs = ["o"]
pass_env = ["SIDE"]
[stage.slow]
run = ["sh", "stage.sh", "{in.x}", "{out.o}"]
inputs = { x = "quick.o" }
code = ["stage.sh"]
outputs = ["o"]
pass_env = ["SIDE"]
"#;

#[test]
fn kill_9_leaves_a_working_store_and_no_stage_behind() {
    let project = Project::new(SLOW);
    project.write("stage.sh", "echo $$ > pid; if [ -e go ]; then cp $1 $2; else sleep 300; fi");
    let mut child = project.start(&["run"]);
    wait_for("the slow stage", || fs::read_to_string(project.path("pid")).is_ok_and(|t| t.ends_with('\n')));
    child.kill().unwrap();
    child.wait().unwrap();
    let pid = project.read("pid");
    wait_for("the guard to end the stage", || !alive(&pid));
    project.runner(&["status"]).expect(0).says("killed while running");
    project.write("go", "");
    project.runner(&["run"]).expect(0).says("1 done, 1 hits");
    assert_eq!(project.executed(), ["quick"]);
}

#[test]
fn a_stage_left_by_a_dead_runner_is_ended_before_the_same_action_runs_again() {
    let project = Project::new(SLOW);
    project.write(
        "stage.sh",
        "trap '' TERM; echo $$ >> pids; if [ -e go ]; then cp $1 $2; else while true; do sleep 0.1; done; fi",
    );
    let mut child = project.start(&["run", "--experiment", "e"]);
    wait_for("the slow stage", || fs::read_to_string(project.path("pids")).is_ok_and(|t| t.ends_with('\n')));
    child.kill().unwrap();
    child.wait().unwrap();
    project.write("go", "");
    project.runner(&["run", "--experiment", "e"]).expect(0);
    let pids = project.read("pids");
    assert_eq!(pids.lines().count(), 2);
    assert!(!pids.lines().any(alive), "the old one is gone when the new one is done");
}

/// Kills the runner at many moments of a run; whatever is in the store afterwards must be whole.
#[test]
fn killed_at_any_moment_the_next_run_is_right() {
    let project = Project::new(TWO_STAGES);
    for n in 0..25u64 {
        project.write("data/a", &format!("content {n}"));
        let mut child = project.start(&["run"]);
        std::thread::sleep(std::time::Duration::from_millis(n * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        if n % 5 == 4 {
            project.runner(&["run"]).expect(0);
            assert_eq!(project.newest_text("stages/copy/text/a"), format!("content {n}"));
            assert_eq!(
                project.newest_text("stages/count/n").trim(),
                format!("{}\nbytes", 9 + (n > 9) as u32).trim()
            );
            project.runner(&["run"]).expect(0).says("0 done, 2 hits");
        }
    }
    assert!(crate::support::files(&project.path(".testforge/quarantine")).is_empty());
}

#[test]
fn two_runners_execute_an_action_once() {
    let project = Project::new(SLOW);
    project.write("stage.sh", "echo slow >> $SIDE; sleep 0.5; cp $1 $2");
    let children: Vec<_> = (0..3).map(|_| project.start(&["run"])).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let ran = project.executed();
    assert_eq!(ran.iter().filter(|n| *n == "slow").count(), 1, "{ran:?}");
    for id in ["run-001", "run-002", "run-003"] {
        assert_eq!(project.read(&format!("experiments/{id}/stages/slow/o")).trim(), "1");
    }
}

#[test]
fn an_experiment_in_use_is_refused() {
    let project = Project::new(SLOW);
    let event = r#"{"time_ms":1,"event":{"progress":{"done":3,"total":8,"unit":"rows"}}}"#;
    let script = format!(
        "echo '{event}' >> $(dirname $TESTFORGE_REQUEST)/events.jsonl; echo started > started; sleep 2; cp $1 $2"
    );
    project.write("stage.sh", &script);
    let child = project.start(&["run", "--experiment", "mine"]);
    wait_for("the stage", || project.path("started").exists());
    project.runner(&["run", "--experiment", "mine"]).expect(2).says("another run is using this experiment");
    project.runner(&["status"]).expect(0).says("experiment mine: running").says("3/8 rows");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

/// A small disk of its own for the cache, in a namespace that ends with the test.
#[test]
fn a_full_disk_is_said_with_the_next_step() {
    let project = Project::new(
        "[stage.s]\nrun = [\"sh\", \"-c\", \"head -c 1000000 /dev/zero > {out.o}\"]\noutputs = [\"o\"]",
    );
    fs::create_dir(project.path(".testforge")).unwrap();
    let script =
        format!("mount -t tmpfs -o size=256k none .testforge && exec {} run", env!("CARGO_BIN_EXE_runner"));
    let shell = std::process::Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .current_dir(project.path(""))
        .env("HOME", project.path(""))
        .output();
    let text = shell.as_ref().map_or_else(ToString::to_string, |o| {
        String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr)
    });
    let tested = shell.is_ok() && !text.contains("unshare") && !text.contains("mount:");
    assert!(tested, "NOT TESTED: a full disk needs user and mount namespaces: {text}");
    assert_eq!(shell.unwrap().status.code(), Some(3), "{text}");
    assert!(text.contains("No space left on device") && text.contains("free some space"), "{text}");
    project.runner(&["run"]).expect(0).says("1 done");
}

/// A limit on file sizes stands for a full disk: writing fails in the middle of a file.
#[test]
fn a_store_that_can_t_be_written_loses_nothing() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "hello");
    let runner = env!("CARGO_BIN_EXE_runner");
    let starved = std::process::Command::new("sh")
        .args(["-c", &format!("trap '' XFSZ; ulimit -f 2; exec {runner} run")])
        .current_dir(project.path(""))
        .env("SIDE", project.path("side.log"))
        .env("HOME", project.path(""))
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&starved.stdout), String::from_utf8_lossy(&starved.stderr));
    assert_eq!(starved.status.code(), Some(3), "{text}");
    assert!(text.contains("can't write"), "{text}");
    project.executed();
    project.runner(&["run"]).expect(0);
    assert_eq!(project.newest_text("stages/count/n").trim(), "5\nbytes");
    project.runner(&["run"]).expect(0).says("2 hits");
}

#[test]
fn a_cache_of_another_format_is_refused() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "hello");
    project.write(".testforge/VERSION", "99\n");
    project.runner(&["run"]).expect(2).says("the cache has format 99");
}

#[test]
fn a_cache_whose_format_was_lost_is_used() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "hello");
    project.runner(&["run"]).expect(0);
    for left in ["", "1"] {
        project.write(".testforge/VERSION", left);
        project.runner(&["run"]).expect(0).says("2 hits");
    }
}

#[test]
fn leftovers_of_dead_runners_are_swept() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "hello");
    let space = fs::read_link("/proc/self/ns/pid").unwrap();
    let space: String = space.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    project.write(&format!(".testforge/tmp/{space}-2147483647-0-scratch/file"), "x");
    project.write(".testforge/tmp/1-2147483647-0-scratch/file", "of another container");
    project.runner(&["run"]).expect(0);
    let left = crate::support::files(&project.path(".testforge/tmp"));
    assert_eq!(left, [project.path(".testforge/tmp/1-2147483647-0-scratch/file")]);
}
