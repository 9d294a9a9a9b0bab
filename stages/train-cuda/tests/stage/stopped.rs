//! A run that stops itself leaves the last state that is known to be good, or none; never the one that made it stop.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use record::training::{TrainingState, TrainingStatus};

use crate::support::{args, golden, made_up_rows, program, stderr, tensors, write_tokens};

/// Every step is saved.
const EACH: [&str; 5] = ["batch=1", "accumulation=1", "clip=0", "checkpoint_every=1", "dropout=0"];

struct Case {
    dir: tempfile::TempDir,
    more: Vec<&'static str>,
}

impl Case {
    fn new(more: &[&'static str], n_validation: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_tokens(
            &dir.path().join("tokens"),
            &made_up_rows(8, 1, 640),
            &made_up_rows(n_validation, 2, 640),
        );
        Self { dir, more: [more, &EACH[..]].concat() }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn command(&self, more: &[&str]) -> Command {
        let more = [&self.more[..], more].concat();
        program(&args(&golden("qwen2-tiny/model"), &self.dir.path().join("tokens"), &self.out(), &more))
    }

    fn run(&self, more: &[&str]) -> (Option<i32>, String) {
        Self::ended(self.command(more))
    }

    fn ended(mut command: Command) -> (Option<i32>, String) {
        let output = command.output().unwrap();
        let words = stderr(&output);
        (output.status.code(), words.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" "))
    }

    /// Losses that were seen, of all processes, with their steps.
    fn losses(&self) -> Vec<(u64, f64)> {
        let log = fs::read_to_string(self.out().join("live/training.log")).unwrap();
        let step = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = |name: &str| Some(words[words.iter().position(|w| *w == name)? + 1]);
            (words[1] == "step")
                .then(|| (at("step").unwrap().parse().unwrap(), at("loss").unwrap().parse().unwrap()))
        };
        log.lines().filter_map(step).collect()
    }

    fn status(&self) -> TrainingStatus {
        let state: TrainingState =
            stage_kit::files::read_json(&self.out().join("live/training_state.json")).unwrap();
        state.status
    }
}

fn number_after(text: &str, what: &str) -> u64 {
    let rest = text.split_once(what).unwrap_or_else(|| panic!("`{what}` is not in: {text}")).1;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Sorted; none where there is no such folder.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The state before the first NaN is the one that led to it.
#[test]
fn weights_that_make_a_loss_nan_are_not_kept() {
    let case = Case::new(&["adapter", "mode=lora", "lr=1e30", "warmup_ratio=0"], 4);
    let (code, said) = case.run(&[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("the loss is not finite after 1 step: training stops"), "{said}");
    assert!(said.contains("there is no good checkpoint in"), "{said}");
    assert_eq!(names(&case.out().join("resume")), Vec::<String>::new());
    assert!(matches!(case.status(), TrainingStatus::Failed(why) if why.contains("not finite")));
    let (code, said) = case.run(&[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(!said.contains("goes on after"), "{said}");
    let (code, said) = case.run(&["lr=1e-3", "epochs=1"]);
    assert_eq!(code, Some(0), "{said}");
}

/// Weights that grow at every step: finite for a while, then not.
#[test]
fn the_state_that_is_left_was_gone_on_from_with_a_finite_loss() {
    let growing = ["lr=200", "weight_decay=1", "warmup_ratio=1", "epochs=20", "select=last"];
    let case = Case::new(&[&["adapter", "mode=lora"], &growing[..]].concat(), 0);
    let (code, said) = case.run(&[]);
    assert_eq!(code, Some(3), "{said}");
    let stopped = number_after(&said, "is not finite after");
    let good = number_after(&said, "the last good checkpoint, of step");
    assert!(1 <= good && good < stopped, "{said}");
    let (_, next) = *case.losses().iter().find(|(step, _)| *step == good + 1).unwrap();
    assert!(next.is_finite());
    assert_eq!(names(&case.out().join("resume")), ["state.safetensors"]);
    let slabs = tensors(&case.out().join("resume/state.safetensors"));
    assert!(slabs["master"].1.iter().all(|value| value.is_finite()));

    let before = case.losses().len();
    let (code, again) = case.run(&[]);
    assert_eq!(code, Some(3), "{again}");
    assert!(again.contains(&format!("goes on after step {good} from")), "{again}");
    assert_eq!(case.losses()[before..].first(), Some(&(good + 1, next)), "the loss of that state");
    assert_eq!(number_after(&again, "is not finite after"), stopped, "{again}");
    assert_eq!(number_after(&again, "the last good checkpoint, of step"), good, "{again}");
}

/// Every number of it is finite: only its size tells that nothing is learned.
#[test]
fn weights_that_are_worse_than_guessing_are_not_kept() {
    let case = Case::new(&["model", "mode=full", "lr=1", "warmup_ratio=0.5", "epochs=9"], 4);
    let (code, said) = case.run(&[]);
    assert_eq!(code, Some(3), "{said}");
    for text in ["worse than guessing (6.461)", "training stops"] {
        assert!(said.contains(text), "`{text}` is not in: {said}");
    }
    assert!(matches!(case.status(), TrainingStatus::Failed(why) if why.contains("worse than guessing")));
    let losses = case.losses();
    let bad = |loss: f64| loss > 6.461_469 * 1.05;
    let good = number_after(&said, "the last good checkpoint, of step");
    let (step, next) = losses[good as usize];
    assert!(step == good + 1 && !bad(next), "step {step} had the loss {next}: {losses:?}");
    assert!(
        losses[good as usize + 1..].iter().all(|&(_, loss)| bad(loss)),
        "a later one was good: {losses:?}"
    );
}

/// Whoever watches sees why, and not a run that goes on.
#[test]
fn a_run_that_can_t_save_says_so_in_its_state() {
    let case = Case::new(&["adapter", "mode=lora", "epochs=1"], 4);
    // A file that grows beyond 358 or 717 kB, whatever this shell's blocks are, can't: weights fit, a state does not.
    let whole = case.command(&[]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 700; exec \"$0\" \"$@\""]).arg(whole.get_program());
    limited.args(whole.get_args()).env("CUDA_VISIBLE_DEVICES", "").env_remove("TESTFORGE_REQUEST");
    let (code, said) = Case::ended(limited);
    assert_eq!(code, Some(3), "{said}");
    let what = "can't write the checkpoint";
    assert!(said.contains(what), "{said}");
    let status = case.status();
    assert!(matches!(&status, TrainingStatus::Failed(why) if why.contains(what)), "{status:?}");
    let (code, said) = case.run(&[]);
    assert_eq!(code, Some(0), "{said}");
}

/// No step and no validation comes after the last update.
#[test]
fn the_last_step_s_weights_are_tried_before_they_are_written() {
    let more = ["adapter", "mode=lora", "lr=1e30", "warmup_ratio=0", "max_steps=1", "select=last"];
    let case = Case::new(&more, 0);
    let (code, said) = case.run(&[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("the loss of the last step's weights is not finite after 1 step"), "{said}");
    assert_eq!(names(&case.out()), ["live"], "a result, or a state, was left");
}
