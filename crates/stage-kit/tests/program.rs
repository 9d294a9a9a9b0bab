//! The protocol, seen from outside a stage program.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use record::Map;
use record::event::{Event, EventKind};
use record::protocol::{Description, PROTOCOL, REQUEST_VARIABLE, Request, Resources};
use serde_json::json;

fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().parent().unwrap().join("examples/echo-stage")
}

fn by_hand(dir: &Path, args: &[&str]) -> Output {
    fs::write(dir.join("in.txt"), "hello\n").unwrap();
    let ports = ["--input", "text=in.txt", "--output", "copies=out"];
    Command::new(program())
        .current_dir(dir)
        .env_remove(REQUEST_VARIABLE)
        .args(ports)
        .args(args)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    // The renderer wraps lines at the terminal's width.
    String::from_utf8_lossy(&output.stderr)
        .split_whitespace()
        .filter(|w| *w != "│")
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn by_hand_it_writes_its_output_and_leaves_no_scratch() {
    let dir = tempfile::tempdir().unwrap();
    let output = by_hand(dir.path(), &["--set", "times=3", "--set", "separator=1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(dir.path().join("out/copies.txt")).unwrap(), "hello1hello1hello");
    let mut names: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["in.txt", "out"]);
}

#[test]
fn an_output_that_exists_is_kept_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    assert!(by_hand(dir.path(), &[]).status.success());
    let again = by_hand(dir.path(), &["--set", "times=2"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("--overwrite"), "{}", stderr(&again));
    assert_eq!(fs::read_to_string(dir.path().join("out/copies.txt")).unwrap(), "hello");
    assert!(by_hand(dir.path(), &["--set", "times=2", "--overwrite"]).status.success());
    assert_eq!(fs::read_to_string(dir.path().join("out/copies.txt")).unwrap(), "hello hello");
}

/// Whether the work is done or fails.
#[test]
fn by_hand_no_file_of_anybody_else_is_deleted() {
    for (text, code) in [("in.txt", 0), ("missing.txt", 2)] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mine", "mine/folder"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("notes.txt"), "text").unwrap();
        }
        let input = format!("text={text}");
        let args = ["--checkpoint-dir", "mine", "--live-dir", "mine", "--input", &input];
        let output = by_hand(dir.path(), &args);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let mut left: Vec<_> =
            fs::read_dir(dir.path().join("mine")).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        left.retain(|name| code == 0 || name != "done.txt");
        assert_eq!(left, ["folder", "notes.txt"]);
        assert!(dir.path().join("mine/folder/notes.txt").exists());
    }
}

/// The input is absent too: what is said of the output was found before the work began.
#[test]
fn an_output_that_can_t_be_made_is_refused_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "text").unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
    let below_a_link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &below_a_link).unwrap();
    let long = format!("timings={}", "x".repeat(250));
    let output = |path| ["--output", path];
    for (args, expected) in [
        (&output("timings=/proc/x/y")[..], "/proc/x/y: the output `timings` can't be made: No such file"),
        (&output("timings=file/y"), "the output `timings` can't be made: Not a directory"),
        (&output("timings=file/y/z"), "a part of the path is a file: choose another path"),
        (&output("copies=file/y"), "the output `copies` can't be made: Not a directory"),
        (&output(&long), "the output `timings` can't be made: File name too long"),
        (&output("copies=dangling"), "the output exists already"),
        (&["--output", "copies=/proc/self", "--overwrite"], "the output `copies` can't be made"),
        (&["--output", "copies=/proc", "--overwrite"], "something is mounted there"),
        (&["--output", "copies=..", "--overwrite"], "has no name of its own"),
        (&output("timings=out"), "the output `copies` and the output `timings` are the same path"),
        (&output("timings=link/out"), "are the same path"),
        (&output("timings=out/y"), "the output `timings` lies in the output `copies`"),
        (
            &["--output", "timings=a", "--output", "copies=a/b"],
            "the output `copies` lies in the output `timings`",
        ),
        (
            &["--checkpoint-dir", "w", "--output", "copies=w/out"],
            "the output `copies` lies in the checkpoint folder",
        ),
        (&["--checkpoint-dir", "."], "the output `copies` lies in the checkpoint folder"),
        (&["--live-dir", "out/live"], "the live folder lies in the output `copies`"),
        (&["--checkpoint-dir", "/proc/x"], "/proc/x: the folder can't be made"),
        (&["--checkpoint-dir", "file/x"], "the folder can't be made: Not a directory"),
    ] {
        let output = by_hand(dir.path(), &[args, &["--input", "text=missing.txt"]].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected) && said.contains("help: "), "{args:?}: {said}");
        assert!(!said.contains("missing.txt"), "{args:?}: {said}");
    }
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["dangling", "file", "in.txt", "link"]);
}

#[test]
fn an_output_that_is_needed_is_asked_for_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.current_dir(dir.path()).env_remove(REQUEST_VARIABLE);
    let output = command.args(["--input", "text=missing.txt", "--output", "timings=t"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the output `copies` is missing"), "{}", stderr(&output));
}

/// Its path is the runner's, and no fault of the parameters.
#[test]
fn under_a_runner_an_output_that_can_t_be_made_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = request(dir.path(), json!({}));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&format!("{}/out", dir.path().display()), "/proc/x/out")).unwrap();
    let output = Command::new(program()).env(REQUEST_VARIABLE, &path).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("the output `copies` can't be made"), "{}", stderr(&output));
}

#[test]
fn what_a_killed_process_left_does_not_reach_the_output() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("out.partial")).unwrap();
    fs::write(dir.path().join("out.partial/stale.txt"), "of another run").unwrap();
    let output = by_hand(dir.path(), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(dir.path().join("out/copies.txt").exists());
    assert!(!dir.path().join("out/stale.txt").exists());
}

#[test]
fn wrong_requests_exit_2_and_name_the_culprit() {
    let dir = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (&["--set", "tims=3"][..], "there is no parameter `tims`"),
        (&["--set", "times=many"], "parameter times: `many` is not a whole number, 0 or more"),
        (&["--set", "times=1.5"], "`1.5` is not a whole number, 0 or more"),
        (&["--set", "times=-1"], "`-1`: invalid value"),
        (&["--set", "pause=nan"], "parameter pause: `nan` is not a finite number above 0"),
        (&["--set", "pause=1e400"], "`1e400` is not a finite number above 0"),
        (&["--set", "pause=true"], "`true` is not a finite number above 0"),
        (&["--set", "wait=3"], "`3`: invalid type"),
        (&["--set", "times"], "has no `=`"),
        (&["--input", "txt=a"], "there is no input `txt`"),
        (&["--input", "text=missing.txt"], "does not exist"),
        (&["--nonsense"], "--nonsense"),
    ] {
        let output = by_hand(dir.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
        assert!(!dir.path().join("out").exists());
    }
}

#[test]
fn a_gate_asked_for_and_not_met_exits_4_and_keeps_the_work() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(by_hand(dir.path(), &["--gate"]).status.code(), Some(4));
    assert!(dir.path().join("out/copies.txt").exists());
}

#[test]
fn the_description_lists_ports_and_parameters() {
    let output = Command::new(program()).arg("--describe").output().unwrap();
    let description: Description = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((description.name.as_str(), description.protocol), ("echo-stage", 2));
    assert_eq!(description.inputs[0].name, "text");
    assert_eq!(description.params["properties"]["times"]["default"], 1);
    assert_eq!(description.params["additionalProperties"], false);
}

fn request(dir: &Path, params: serde_json::Value) -> PathBuf {
    fs::write(dir.join("in.txt"), "hello\n").unwrap();
    let request = Request {
        protocol: PROTOCOL,
        stage: "echo".into(),
        key: "00".into(),
        inputs: Map::from([("text".into(), dir.join("in.txt"))]),
        outputs: Map::from([("copies".into(), dir.join("out"))]),
        params: serde_json::from_value(params).unwrap(),
        seed: 1,
        resources: Resources { cpus: 1, memory_mb: 100, gpus: 0 },
        scratch: dir.join("scratch"),
        checkpoint_dir: dir.join("checkpoint"),
        live_dir: dir.join("live"),
        deadline_ms: None,
    };
    let path = dir.join("request.json");
    fs::write(&path, serde_json::to_string(&request).unwrap()).unwrap();
    path
}

#[test]
fn under_a_runner_it_reads_the_request_and_appends_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = request(dir.path(), json!({ "times": 2 }));
    let output = Command::new(program()).env(REQUEST_VARIABLE, &path).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(dir.path().join("out/copies.txt")).unwrap(), "hello hello");
    let text = fs::read_to_string(dir.path().join("live/events.jsonl")).unwrap();
    let events: Vec<Event> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let last = &events.last().unwrap().kind;
    assert_eq!(last, &EventKind::Progress { done: 2, total: Some(2), unit: "copies".into() });
}

#[test]
fn a_damaged_request_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("request.json");
    fs::write(&path, "{\"protocol\": 1,\n \"stage\": }").unwrap();
    let output = Command::new(program()).env(REQUEST_VARIABLE, &path).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("request.json:2"), "{}", stderr(&output));
}

#[test]
fn a_signal_ends_it_with_130_and_nothing_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = request(dir.path(), json!({ "wait": true }));
    let mut child =
        Command::new(program()).env(REQUEST_VARIABLE, &path).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !dir.path().join("out.partial/copies.txt").exists() {
        assert!(Instant::now() < deadline, "the stage never started");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!dir.path().join("out").exists() && !dir.path().join("out.partial").exists());
}
