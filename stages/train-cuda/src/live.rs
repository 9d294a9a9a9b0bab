//! What can be seen of a run while it goes on: events, `training_state.json`, `training.log` and TensorBoard scalars.
//!
//! Nothing here decides anything, and nothing of it enters a key: what can't be written is left out after one warning.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use record::event::EventKind;
use record::training::{StepRecord, TrainingState, TrainingStatus, ValidationRecord};
use stage_kit::{Context, Progress, StageError, files};

use crate::telemetry::Telemetry;
use crate::tfevents::EventFile;

pub(crate) const STATE_FILE: &str = "training_state.json";
pub(crate) const LOG_FILE: &str = "training.log";
const STATE_INTERVAL: Duration = Duration::from_millis(100);
/// The state file's history: the newest so many steps. `steps.jsonl` and the events have them all.
const HISTORY_MAX: usize = 1000;
/// The GPU is read once a second, and at least this often.
const STEPS_PER_READING: u64 = 10;

/// What does not change during a run.
#[derive(Debug, Clone)]
pub(crate) struct RunFacts {
    pub(crate) model_name: String,
    pub(crate) model_path: String,
    pub(crate) checkpoint_path: String,
    pub(crate) total_epochs: u64,
    pub(crate) steps_per_epoch: u64,
    pub(crate) total_steps: u64,
    pub(crate) batch_size: u64,
}

/// The live side of one run.
#[derive(Debug)]
pub(crate) struct Live<'c> {
    context: &'c Context,
    telemetry: Telemetry,
    progress: Progress<'c>,
    state: TrainingState,
    state_written: Option<Instant>,
    log: Option<File>,
    scalars: Option<EventFile>,
    started: Instant,
}

impl<'c> Live<'c> {
    pub(crate) fn new(context: &'c Context, facts: &RunFacts, telemetry: Telemetry) -> Self {
        let dir = context.live_dir();
        let mut live = Self {
            context,
            telemetry,
            progress: context.progress("steps", Some(facts.total_steps)),
            state: first_state(context, facts),
            state_written: None,
            log: None,
            scalars: None,
            started: Instant::now(),
        };
        let log = OpenOptions::new().create(true).append(true).open(dir.join(LOG_FILE));
        live.log = live.or_warn("write the log", log);
        live.scalars = live.or_warn("write TensorBoard events", EventFile::create(dir, now_s()));
        live.write_state();
        live
    }

    /// Steps of an earlier process, without their times.
    pub(crate) fn resumed(&mut self, steps: &[StepRecord]) {
        for record in steps {
            self.remember(record);
        }
        self.progress.resume_at(steps.len() as u64);
        self.write_state();
    }

    /// One optimizer step over `n_rows` rows that took `seconds`.
    pub(crate) fn step(&mut self, record: &StepRecord, n_rows: usize, seconds: f64) {
        self.remember(record);
        self.state.status = TrainingStatus::Running;
        self.state.tokens_per_second = record.tokens as f64 / seconds.max(1e-9);
        self.state.samples_per_second = n_rows as f64 / seconds.max(1e-9);
        self.context.event(EventKind::Step(record.clone()));
        self.progress.set(record.step);
        let StepRecord { step, epoch, loss, grad_norm, lr, label_tokens, tokens } = record;
        self.line(&format!(
            "step {step} epoch {epoch} loss {loss:.6} grad_norm {grad_norm:.6} lr {lr:.6e} label_tokens {label_tokens} tokens {tokens} {:.0} tokens/s",
            self.state.tokens_per_second
        ));
        self.plot(*step, &[("loss", *loss), ("lr", *lr), ("grad_norm", *grad_norm)]);
        if step.is_multiple_of(STEPS_PER_READING) {
            self.telemetry.poke();
        }
        if self.state_written.is_none_or(|at| at.elapsed() >= STATE_INTERVAL) {
            self.write_state();
        }
    }

    pub(crate) fn validation(&mut self, record: &ValidationRecord) {
        self.context.metric("val", record.loss, "nats/token", Some(record.step));
        self.line(&format!(
            "validation after step {}: loss {:.6} over {} label tokens",
            record.step, record.loss, record.label_tokens
        ));
        self.plot(record.step, &[("val", record.loss)]);
    }

    /// A line of `training.log` and an event.
    pub(crate) fn say(&mut self, message: &str) {
        self.context.log(message);
        self.line(message);
    }

    pub(crate) fn warn(&mut self, message: &str) {
        self.context.warn(message);
        self.line(&format!("warning: {message}"));
    }

    /// A warning that stays in the state, for whoever watches.
    pub(crate) fn alert(&mut self, message: &str) {
        self.warn(message);
        self.state.alerts.push(message.to_owned());
        self.write_state();
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub(crate) fn status(&mut self, status: TrainingStatus) {
        self.state.status = status;
        self.write_state();
    }

    /// The run ends by this error; what it said of itself before stays.
    pub(crate) fn ended_by(&mut self, e: &StageError) {
        match self.state.status {
            TrainingStatus::Failed(_) | TrainingStatus::Paused => {}
            _ => self.status(TrainingStatus::Failed(e.to_string())),
        }
    }

    /// Seconds of this process.
    pub(crate) fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn remember(&mut self, record: &StepRecord) {
        let s = &mut self.state;
        s.epoch = record.epoch;
        s.step = (record.step - 1) % s.steps_per_epoch + 1;
        s.loss = record.loss;
        s.learning_rate = record.lr;
        s.gradient_norm = record.grad_norm;
        push_bounded(&mut s.loss_history, record.loss);
        push_bounded(&mut s.lr_history, record.lr);
    }

    fn write_state(&mut self) {
        self.state.timestamp_ms = now_ms();
        self.state.gpu = self.telemetry.state();
        self.state_written = Some(Instant::now());
        if let Err(e) = files::replace_json(&self.context.live_dir().join(STATE_FILE), &self.state) {
            self.context.warn(&format!("the live state can't be shown: {e}"));
        }
    }

    fn line(&mut self, text: &str) {
        let Some(mut log) = self.log.take() else { return };
        let written = log.write_all(format!("{:.3} {text}\n", now_s()).as_bytes());
        self.log = self.or_warn("write the log", written.map(|()| log));
    }

    fn plot(&mut self, step: u64, values: &[(&str, f64)]) {
        let Some(mut scalars) = self.scalars.take() else { return };
        let written = scalars.scalars(now_s(), step, values);
        self.scalars = self.or_warn("write TensorBoard events", written.map(|()| scalars));
    }

    fn or_warn<T>(&self, what: &str, result: io::Result<T>) -> Option<T> {
        result.map_err(|e| self.context.warn(&format!("can't {what}, the run goes on without it: {e}"))).ok()
    }
}

fn push_bounded(values: &mut Vec<f64>, value: f64) {
    if values.len() == HISTORY_MAX {
        values.remove(0);
    }
    values.push(value);
}

fn first_state(context: &Context, facts: &RunFacts) -> TrainingState {
    TrainingState {
        timestamp_ms: now_ms(),
        epoch: 1,
        total_epochs: facts.total_epochs,
        step: 0,
        steps_per_epoch: facts.steps_per_epoch,
        loss: 0.0,
        loss_history: Vec::new(),
        learning_rate: 0.0,
        lr_history: Vec::new(),
        gradient_norm: 0.0,
        accuracy: 0.0,
        tokens_per_second: 0.0,
        samples_per_second: 0.0,
        start_timestamp_ms: now_ms(),
        gpu: None,
        sample: None,
        status: TrainingStatus::Initializing,
        alerts: Vec::new(),
        experiment_id: experiment_id(context.live_dir()).unwrap_or_else(|| context.stage().to_owned()),
        model_name: facts.model_name.clone(),
        model_path: facts.model_path.clone(),
        optimizer_name: "AdamW".to_owned(),
        batch_size: facts.batch_size,
        checkpoint_path: facts.checkpoint_path.clone(),
        executable_path: std::env::current_exe().map(|p| p.display().to_string()).unwrap_or_default(),
    }
}

/// `ID` of `.../ID/stages/NODE/live`.
fn experiment_id(live_dir: &Path) -> Option<String> {
    let stages = live_dir.ancestors().nth(2)?;
    (stages.file_name()? == "stages")
        .then(|| stages.parent()?.file_name().map(|n| n.to_string_lossy().into_owned()))?
}

/// Files of `live_dir` that belong into the output `log`: the log, the events, TensorBoard's.
pub(crate) fn log_files(live_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(live_dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == LOG_FILE || name == "events.jsonl" || name.starts_with("events.out.tfevents.") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn now_ms() -> u64 {
    (now_s() * 1e3) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_experiment_is_named_by_its_folder() {
        assert_eq!(experiment_id(Path::new("/x/experiments/e1/stages/train/live")).as_deref(), Some("e1"));
        assert_eq!(experiment_id(Path::new("/tmp/out.live")), None);
        assert_eq!(experiment_id(Path::new("live")), None);
    }

    #[test]
    fn the_state_s_history_is_bounded() {
        let mut values = Vec::new();
        (0..HISTORY_MAX + 2).for_each(|i| push_bounded(&mut values, i as f64));
        assert_eq!((values.len(), values[0]), (HISTORY_MAX, 2.0));
    }
}
