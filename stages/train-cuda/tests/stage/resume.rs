//! Stopped and started again, a run writes the same bytes as in one piece.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use record::training::TrainingMetrics;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{args, golden, made_up_rows, program, stderr, tree, write_tokens};

const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Setup {
    pub(crate) tokens: PathBuf,
    pub(crate) more: Vec<&'static str>,
    /// Shown the machine's GPUs.
    pub(crate) sees_gpu: bool,
}

impl Setup {
    fn args(&self, out: &Path) -> Vec<String> {
        args(&golden("qwen2-tiny/model"), &self.tokens, out, &self.more)
    }

    pub(crate) fn program(&self, out: &Path) -> Command {
        let mut program = program(&self.args(out));
        if self.sees_gpu {
            program.env_remove("CUDA_VISIBLE_DEVICES");
        }
        program
    }

    /// Outputs that are a function of the run's key.
    pub(crate) fn outputs(&self, out: &Path) -> BTreeMap<String, Vec<u8>> {
        let result = self.more[0];
        let named = |dir: &str| {
            let dir = dir.to_owned();
            tree(&out.join(&dir)).into_iter().map(move |(name, bytes)| (format!("{dir}/{name}"), bytes))
        };
        named(result).chain(named("checkpoints")).collect()
    }
}

pub(crate) fn setup(dir: &Path, more: Vec<&'static str>) -> Setup {
    let tokens = dir.join("tokens");
    write_tokens(&tokens, &made_up_rows(50, 1, 640), &made_up_rows(7, 2, 640));
    Setup { tokens, more, sees_gpu: false }
}

fn steps_seen(out: &Path) -> usize {
    let text = std::fs::read_to_string(out.join("live/events.jsonl")).unwrap_or_default();
    text.lines().filter(|l| l.contains(r#""step":{"#)).count()
}

/// Starts the program, sends `signal` once `more_steps` further steps are done, waits for its end.
pub(crate) fn stop_after(setup: &Setup, out: &Path, more_steps: usize, signal: Signal) -> Option<i32> {
    let before = steps_seen(out);
    let mut child: Child = setup.program(out).stderr(std::process::Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while steps_seen(out) < before + more_steps {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the run ended by itself ({status}) before it was to be stopped: give it more steps");
        }
        assert!(begun.elapsed() < PATIENCE, "no {more_steps} steps in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap().code()
}

pub(crate) fn complete(setup: &Setup, out: &Path) {
    let output = setup.program(out).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

pub(crate) fn compare(setup: &Setup, whole: &Path, resumed: &Path) {
    let (whole, resumed) = (setup.outputs(whole), setup.outputs(resumed));
    assert_eq!(whole.keys().collect::<Vec<_>>(), resumed.keys().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(*bytes == resumed[name], "{name} differs between the whole and the resumed run");
    }
}

fn metrics(out: &Path) -> TrainingMetrics {
    stage_kit::files::read_json(&out.join("log/metrics.json")).unwrap()
}

const LORA: [&str; 12] = [
    "adapter",
    "mode=lora",
    "batch=2",
    "accumulation=2",
    "epochs=12",
    "dropout=0.1",
    "save_every=10",
    "keep=2",
    "checkpoint_every=7",
    "validate_every=11",
    "lr=5e-3",
    "weight_decay=0.1",
];

#[test]
fn terminated_and_killed_a_run_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path(), LORA.to_vec());
    let (whole, resumed) = (dir.path().join("whole"), dir.path().join("resumed"));
    complete(&setup, &whole);
    assert_eq!(stop_after(&setup, &resumed, 9, Signal::TERM), Some(130));
    assert!(!resumed.join("adapter").exists(), "a stopped run leaves no output");
    assert_eq!(stop_after(&setup, &resumed, 15, Signal::KILL), None);
    assert_eq!(stop_after(&setup, &resumed, 12, Signal::INT), Some(130));
    complete(&setup, &resumed);
    compare(&setup, &whole, &resumed);
    assert!(metrics(&resumed).interrupted_and_resumed && !metrics(&whole).interrupted_and_resumed);
    let left = std::fs::read_dir(resumed.join("resume")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "the checkpoint is cleared on success");
}

#[test]
fn full_mode_resumes_too() {
    let dir = tempfile::tempdir().unwrap();
    let more =
        vec!["model", "mode=full", "batch=4", "accumulation=1", "epochs=8", "checkpoint_every=5", "lr=1e-3"];
    let setup = setup(dir.path(), more);
    let (whole, resumed) = (dir.path().join("whole"), dir.path().join("resumed"));
    complete(&setup, &whole);
    assert_eq!(stop_after(&setup, &resumed, 12, Signal::KILL), None);
    complete(&setup, &resumed);
    compare(&setup, &whole, &resumed);
}

/// What is changed after memory ran out, and how often states are saved, leaves the numbers alone.
#[test]
fn a_run_goes_on_with_another_limit_of_memory_and_other_times_of_saving() {
    let dir = tempfile::tempdir().unwrap();
    let first = setup(dir.path(), LORA.to_vec());
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    complete(&first, &whole);
    assert_eq!(stop_after(&first, &out, 9, Signal::TERM), Some(130));
    let mut more = LORA.to_vec();
    more.retain(|m| !m.starts_with("checkpoint_every="));
    more.extend(["checkpoint_every=3", "vram_limit_mb=4000", "preset=budget"]);
    let other = Setup { tokens: first.tokens.clone(), more, sees_gpu: false };
    let output = program(&other.args(&out)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("goes on after step"), "{}", stderr(&output));
    let (mut whole, mut resumed) = (first.outputs(&whole), other.outputs(&out));
    for outputs in [&mut whole, &mut resumed] {
        assert!(outputs.remove("adapter/manifest.json").is_some(), "it holds the parameters");
    }
    assert!(whole == resumed, "the result differs");
}

/// One parameter given wrongly costs nothing.
#[test]
fn a_checkpoint_of_other_parameters_is_not_used_and_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let first = setup(dir.path(), LORA.to_vec());
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    complete(&first, &whole);
    assert_eq!(stop_after(&first, &out, 9, Signal::TERM), Some(130));
    let mut more = LORA.to_vec();
    more.retain(|m| !m.starts_with("lr=") && !m.starts_with("epochs="));
    more.extend(["lr=1e-3", "epochs=6"]);
    let other = Setup { tokens: first.tokens.clone(), more, sees_gpu: false };
    assert_eq!(stop_after(&other, &out, 5, Signal::TERM), Some(130));
    assert_eq!(stop_after(&other, &out, 3, Signal::KILL), None);
    let checkpoint = out.join("resume");
    for name in ["notes.txt", "best-of-all"] {
        std::fs::write(checkpoint.join(name), "of somebody else").unwrap();
    }

    let output = first.program(&out).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("goes on after step") && said.contains("other parameters"), "{said}");
    compare(&first, &whole, &out);
    let mut left: Vec<_> = std::fs::read_dir(&checkpoint).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["best-of-all", "notes.txt"]);
}

#[test]
fn a_run_beside_the_checkpoint_of_another_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let first = setup(dir.path(), LORA.to_vec());
    let (fresh, out) = (dir.path().join("fresh"), dir.path().join("out"));
    assert_eq!(stop_after(&first, &out, 9, Signal::TERM), Some(130));
    let mut more = LORA.to_vec();
    more.retain(|m| !m.starts_with("lr=") && !m.starts_with("epochs="));
    more.extend(["lr=1e-3", "epochs=3"]);
    let other = Setup { tokens: first.tokens.clone(), more, sees_gpu: false };
    complete(&other, &fresh);
    assert_eq!(stop_after(&other, &out, 5, Signal::TERM), Some(130));
    let output = other.program(&out).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("goes on after step") && said.contains("belongs to other parameters"), "{said}");
    compare(&other, &fresh, &out);
}
