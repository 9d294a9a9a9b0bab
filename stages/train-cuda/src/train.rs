//! The training loop: steps, validations, checkpoints, in an order that a restart repeats exactly.

use std::time::Instant;

use engine::backend::BackendError;
use engine::{AdamW, EngineError, MicroBatch, Trainer};
use model::config::Config;
use record::training::{StepRecord, TrainingStatus, ValidationRecord};
use stage_kit::{Context, Result, StageError};

use crate::alarms::{Alarm, Alarms};
use crate::checkpoint::{History, Store};
use crate::counted;
use crate::feed::{Feed, micro_batch};
use crate::live::Live;
use crate::params::{Params, TrainMode};
use crate::schedule::{Position, Schedule, order, steps_per_epoch};
use crate::tokens::TokenFile;
use crate::weights::Trained;

/// Passes of a validation on a GPU between two looks at whether the run is to stop; on a CPU each takes seconds.
const RUNS_AT_ONCE: usize = 16;

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Length {
    pub(crate) steps_per_epoch: u64,
    /// After `max_steps`, if that is less.
    pub(crate) total: u64,
}

impl Length {
    pub(crate) fn of(n_rows: usize, params: &Params) -> Self {
        let steps_per_epoch = steps_per_epoch(n_rows, params.rows_per_step());
        let all = steps_per_epoch.saturating_mul(params.epochs());
        let total = if params.max_steps > 0 { all.min(params.max_steps) } else { all };
        Self { steps_per_epoch, total }
    }

    /// Epochs that are at least begun.
    pub(crate) fn epochs(&self) -> u64 {
        self.total.div_ceil(self.steps_per_epoch)
    }
}

/// The rows of a run.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) train: TokenFile,
    /// `None`: no file, or none with a label.
    pub(crate) validation: Option<TokenFile>,
}

impl Data {
    /// Refuses a run in which all rows of some optimizer step are without a label: its loss would be 0 / 0.
    ///
    /// # Errors
    /// Names the step and its rows.
    pub(crate) fn check_steps(&self, params: &Params, seed: u64, length: Length) -> Result<()> {
        let rows = &self.train.rows;
        if rows.iter().all(|row| row.n_label_tokens() > 0) {
            return Ok(());
        }
        for epoch in 0..length.epochs() {
            let order = order(rows.len(), seed, epoch, params.shuffle);
            let steps = (epoch * length.steps_per_epoch + 1..=length.total)
                .zip(order.chunks(params.rows_per_step().max(1)));
            for (step, chunk) in steps {
                if chunk.iter().any(|&i| rows[i].n_label_tokens() > 0) {
                    continue;
                }
                let ids: Vec<String> = chunk.iter().take(4).map(|&i| format!("`{}`", rows[i].id)).collect();
                let more = if chunk.len() > ids.len() { ", ..." } else { "" };
                return Err(StageError::failed(format!(
                    "no row of step {step} has a label to learn: {}{more}",
                    ids.join(", ")
                ))
                .at(self.train.path.display().to_string())
                .next("leave such rows out, or set a larger batch or accumulation"));
            }
        }
        Ok(())
    }
}

/// A run in progress.
pub(crate) struct Run<'c> {
    pub(crate) context: &'c Context,
    pub(crate) params: &'c Params,
    pub(crate) data: &'c Data,
    pub(crate) config: &'c Config,
    pub(crate) base_model_name: Option<String>,
    pub(crate) length: Length,
    pub(crate) trainer: Trainer,
    pub(crate) store: Store,
    pub(crate) live: Live<'c>,
    pub(crate) history: History,
    pub(crate) feed: Feed<'c>,
    /// What the trainer takes by its plan.
    pub(crate) planned_bytes: u64,
    pub(crate) alarms: Alarms,
    /// Time and tokens of this process's steps alone.
    pub(crate) stepping: Stepping,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("length", &self.length)
            .field("history", &self.history)
            .finish_non_exhaustive()
    }
}

/// Time spent in optimizer steps, with what is done about each before the next, and the tokens that went through them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stepping {
    /// The end of the step before, when nothing but such work came after it: the next one may be under way.
    since: Option<Instant>,
    pub(crate) seconds: f64,
    pub(crate) tokens: u64,
    /// Those with a loss.
    pub(crate) label_tokens: u64,
    /// Sum of the squares of the rows' lengths.
    pub(crate) squares: u64,
}

impl Stepping {
    /// When the step that is about to be waited for began.
    fn begin(&mut self) -> Instant {
        self.since.take().unwrap_or_else(Instant::now)
    }

    /// A step that began then has ended: its seconds. After a pause the next one begins anew.
    fn end(&mut self, begun: Instant, is_pause: bool) -> f64 {
        let now = Instant::now();
        let seconds = (now - begun).as_secs_f64();
        self.seconds += seconds;
        self.since = (!is_pause).then_some(now);
        seconds
    }

    /// Share of the tokens that carry a loss.
    pub(crate) fn labelled(&self) -> f64 {
        self.label_tokens as f64 / (self.tokens as f64).max(1.0)
    }

    /// Length of the row that the mean token lies in.
    pub(crate) fn mean_length(&self) -> f64 {
        self.squares as f64 / (self.tokens as f64).max(1.0)
    }
}

impl Run<'_> {
    /// Trains until the last step.
    ///
    /// # Errors
    /// Interrupted (a state was saved), a loss that is not finite (the last good state is kept), the disk's.
    pub(crate) fn go(&mut self) -> Result<()> {
        let schedule = Schedule::new(
            self.params.lr(),
            self.params.warmup_ratio,
            self.params.min_lr_ratio,
            self.length.total,
        );
        loop {
            self.keep_house()?;
            let done = self.history.steps_done();
            if done == self.length.total {
                self.live.telemetry().steady(false);
                let saved = self.store.settle();
                return saved.map_err(|e| self.not_saved(e));
            }
            self.stop_if_cancelled()?;
            self.step(done, schedule.lr(done))?;
        }
    }

    fn step(&mut self, done: u64, lr: f64) -> Result<()> {
        let begun = self.stepping.begin();
        let (rows, rule) = (self.feed.rows_after(done), self.optimizer(lr));
        // What is done between two steps would hide a part of the second one from the count of its time.
        let is_pause = self.is_house_due(done + 1);
        let outcome = self.feed.take(done, self.trainer.packer()).and_then(|now| {
            let next = |packer| if is_pause { None } else { self.feed.look_ahead(done + 1, packer) };
            self.trainer.step_and_prepare(&now, &rule, next)
        });
        let outcome = match outcome {
            Ok((outcome, ahead)) => {
                self.feed.keep(done + 1, ahead);
                outcome
            }
            Err(e) => return Err(self.step_failed(e)),
        };
        let seconds = self.stepping.end(begun, is_pause);
        let position = Position::of(done, self.length.steps_per_epoch);
        self.stepping.tokens += outcome.tokens;
        self.stepping.label_tokens += outcome.label_tokens;
        let record = StepRecord {
            step: self.history.steps_done() + 1,
            epoch: position.epoch + 1,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            lr,
            label_tokens: outcome.label_tokens,
            tokens: outcome.tokens,
        };
        self.stepping.squares +=
            rows.iter().map(|&i| self.data.train.rows[i].input_ids.len().pow(2) as u64).sum::<u64>();
        self.live.step(&record, rows.len(), seconds);
        let loss = record.loss;
        self.history.steps.push(record);
        // The first step of a process loads kernels; what is busy then tells nothing.
        self.live.telemetry().steady(true);
        let saved = self.store.settle_if_done();
        saved.map_err(|e| self.not_saved(e))?;
        if self.is_good(loss) {
            self.store.prove()?;
        }
        self.heed_alarms()
    }

    /// Whether the weights with this loss may be gone on from.
    fn is_good(&self, loss: f64) -> bool {
        self.alarms.is_good(loss, self.history.steps.first().map_or(loss, |first| first.loss))
    }

    fn heed_alarms(&mut self) -> Result<()> {
        let seen = self.live.telemetry().summary();
        match self.alarms.look(&self.history.steps, seen.last.as_ref()) {
            None => Ok(()),
            Some(Alarm::Warn(message)) => {
                self.live.alert(&message);
                Ok(())
            }
            Some(Alarm::Stop(message)) => {
                self.live.alert(&message);
                let kept = self.kept();
                self.live.status(TrainingStatus::Failed(message.clone()));
                Err(StageError::failed(format!("{message}: training stops"))
                    .next(format!("{kept}; lower `vram_limit_mb`, or give the GPU to this run alone")))
            }
            Some(Alarm::Diverged(message)) => {
                self.live.alert(&message);
                let good = self.last_good();
                self.live.status(TrainingStatus::Failed(message.clone()));
                Err(StageError::failed(format!("{message}: training stops")).next(format!(
                    "{good}; lower `lr` or lengthen the warm-up where the loss rose; see {} for the steps before",
                    self.context.live_dir().display()
                )))
            }
        }
    }

    /// Saves the state and says where it is.
    fn kept(&mut self) -> String {
        let saved = self.save_state_now();
        self.said(saved)
    }

    fn said(&mut self, saved: Result<()>) -> String {
        match saved {
            Ok(()) => self.left(),
            Err(e) => format!("its state could not be saved ({e}); {}", self.left()),
        }
    }

    fn not_saved(&mut self, e: StageError) -> StageError {
        let left = self.left();
        e.next(format!("{left}; make room on that disk and start again"))
    }

    /// The state that a restart goes on from.
    fn left(&mut self) -> String {
        let failed = self.store.settle().err();
        let failed = failed.map(|e| format!("the newest state could not be saved ({e}); "));
        let left = match self.store.newest_step() {
            Some(step) => format!("the state after step {step} is in {}", self.store.dir().display()),
            None => "no state was saved before".to_owned(),
        };
        failed.unwrap_or_default() + &left
    }

    /// Drops the state that led to where the run is, and says what is left.
    fn last_good(&mut self) -> String {
        let dir = self.store.dir().display().to_string();
        if let Err(e) = self.store.reject() {
            return format!("the newest state in {dir} is not good and can't be deleted ({e}): delete it");
        }
        match self.store.good_step() {
            Some(step) => format!("the last good checkpoint, of step {step}, is in {dir}"),
            None => format!("there is no good checkpoint in {dir}: no state was saved that went well"),
        }
    }

    fn optimizer(&self, lr: f64) -> AdamW {
        let p = self.params;
        AdamW { lr, beta1: p.beta1, beta2: p.beta2, eps: p.eps, weight_decay: p.weight_decay, clip: p.clip }
    }

    /// Whether more than a few lines are to be written after so many steps.
    fn is_house_due(&self, done: u64) -> bool {
        done == self.length.total
            || self.is_validation_due(done)
            || self.is_step_kept(done)
            || self.is_state_due(done)
    }

    fn is_state_due(&self, done: u64) -> bool {
        let every = self.params.checkpoint_every;
        done > 0 && every > 0 && done.is_multiple_of(every)
    }

    /// What is due between two steps and not yet in the history: a validation, a kept step, a saved state.
    fn keep_house(&mut self) -> Result<()> {
        let done = self.history.steps_done();
        let mut save = false;
        if self.is_validation_due(done) && self.history.validations.last().is_none_or(|v| v.step != done) {
            self.validate(done)?;
            save = done > 0;
        }
        if done == self.length.total && self.data.validation.is_none() {
            self.try_last_weights()?;
        }
        if self.is_step_kept(done) && self.history.kept.last() != Some(&done) {
            let (dir, trained) = (self.store.step_dir(done), self.trained()?);
            self.store.save_weights(&dir, &trained)?;
            self.history.kept.push(done);
            let extra = self.history.kept.len().saturating_sub(self.params.keep as usize);
            self.history.kept.drain(..extra);
            save = true;
        }
        if save || self.is_state_due(done) {
            self.save_state()?;
            let validation = self.history.validations.last().filter(|v| v.step == done);
            if validation.is_some_and(|v| self.is_good(v.loss)) {
                self.store.prove()?;
            }
        }
        Ok(())
    }

    /// No step and no validation is to come that would show what the last update has made of the weights.
    fn try_last_weights(&mut self) -> Result<()> {
        let train = &self.data.train;
        let all: Vec<usize> = (0..train.rows.len()).collect();
        let runs = self.feed.packing.cut(&all, |i| train.rows[i].input_ids.len());
        let has_labels = |run: &&[usize]| run.iter().any(|&i| train.rows[i].n_label_tokens() > 0);
        let Some(run) = runs.into_iter().find(has_labels) else { return Ok(()) };
        match self.trainer.evaluate(&micro_batch(run.iter().map(|&i| (i, &train.rows[i])))) {
            Ok(loss) if loss.sum.is_finite() => Ok(()),
            Ok(_) => Err(self.not_finite("the loss of the last step's weights")),
            Err(e) => Err(self.step_failed(e)),
        }
    }

    fn is_validation_due(&self, done: u64) -> bool {
        let every = self.params.validate_every;
        self.data.validation.is_some()
            && (done.is_multiple_of(self.length.steps_per_epoch)
                || done == self.length.total
                || (every > 0 && done.is_multiple_of(every)))
    }

    fn is_step_kept(&self, done: u64) -> bool {
        let every = self.params.save_every;
        done > 0 && (done == self.length.total || (every > 0 && done.is_multiple_of(every)))
    }

    /// Mean loss over the validation rows; keeps the weights when it is the lowest yet.
    fn validate(&mut self, done: u64) -> Result<()> {
        let Some(validation) = &self.data.validation else { return Ok(()) };
        let (mut sum, mut label_tokens) = (0.0, 0);
        let all: Vec<usize> = (0..validation.rows.len()).collect();
        let mut runs = self.feed.packing.cut(&all, |i| validation.rows[i].input_ids.len());
        runs.retain(|rows| rows.iter().any(|&i| validation.rows[i].n_label_tokens() > 0));
        let at_once = if self.feed.packing.tokens().is_some() { RUNS_AT_ONCE } else { 1 };
        for runs in runs.chunks(at_once) {
            self.stop_if_cancelled()?;
            let batch = |rows: &&[usize]| micro_batch(rows.iter().map(|&i| (i, &validation.rows[i])));
            let batches: Vec<MicroBatch> = runs.iter().map(batch).collect();
            let losses = match self.trainer.evaluate_all(&batches) {
                Ok(losses) => losses,
                Err(e) => return Err(self.step_failed(e)),
            };
            for loss in losses {
                sum += loss.sum;
                label_tokens += loss.label_tokens;
            }
        }
        let loss = sum / label_tokens as f64;
        if !loss.is_finite() {
            return Err(self.not_finite("the validation loss"));
        }
        let record = ValidationRecord {
            step: done,
            epoch: done.div_ceil(self.length.steps_per_epoch),
            loss,
            label_tokens,
        };
        // Into the history after its weights are on the disk: a state that is saved when reading them fails must not name them.
        if self.history.is_better(&record) {
            let (dir, trained) = (self.store.best_dir(done), self.trained()?);
            self.store.save_weights(&dir, &trained)?;
        }
        self.live.validation(&record);
        self.history.validations.push(record);
        Ok(())
    }

    /// The weights as they are now.
    fn trained(&mut self) -> Result<Trained> {
        self.read_trained()
            .map_err(|e| self.step_failed(e))?
            .ok_or_else(|| StageError::internal("the trainer has no adapter"))
    }

    fn read_trained(&self) -> std::result::Result<Option<Trained>, EngineError> {
        if self.params.mode == TrainMode::Full {
            return Ok(Some(Trained::Model(self.trainer.weights()?, Box::new(self.config.clone()))));
        }
        let Some(mut adapter) = self.trainer.adapter()? else { return Ok(None) };
        adapter.config.dropout = self.params.dropout;
        adapter.config.base_model_name.clone_from(&self.base_model_name);
        Ok(Some(Trained::Adapter(adapter)))
    }

    /// Starts to save the state.
    fn save_state(&mut self) -> Result<()> {
        // Memory holds one state at a time.
        let earlier = self.store.settle();
        earlier.map_err(|e| self.not_saved(e))?;
        let before = self.history.wall_s;
        self.history.wall_s += self.live.elapsed_s();
        let state = self.trainer.state().map_err(engine_error);
        let saved = state.and_then(|state| self.store.start_saving(&self.history, state));
        self.history.wall_s = before;
        saved
    }

    /// As [`Self::save_state`], and waits until it is on the disk.
    fn save_state_now(&mut self) -> Result<()> {
        // Whatever became of the one before it: this one is newer.
        let _ = self.store.settle();
        self.save_state()?;
        self.store.settle()
    }

    fn stop_if_cancelled(&mut self) -> Result<()> {
        if !self.context.is_cancelled() {
            return Ok(());
        }
        self.save_state_now()?;
        let done = self.history.steps_done();
        self.live.status(TrainingStatus::Paused);
        self.live.say(&format!(
            "stopped by a signal after step {done}; the state is saved in {}",
            self.store.dir().display()
        ));
        Err(StageError::interrupted())
    }

    fn step_failed(&mut self, e: EngineError) -> StageError {
        match e {
            EngineError::NonFinite { what, .. } => self.not_finite(what),
            EngineError::Backend(ref backend) if backend.is_out_of_memory() => self.out_of_memory(&e),
            EngineError::Backend(ref backend) if backend.is_device_trouble() => self.device_lost(&e),
            e => {
                self.live.status(TrainingStatus::Failed(e.to_string()));
                engine_error(e)
            }
        }
    }

    /// Somebody else took the memory that a step needs. The state before it is whole, unless its update was begun already, and
    /// a new process plans anew.
    fn out_of_memory(&mut self, e: &EngineError) -> StageError {
        let done = self.history.steps_done();
        self.history.ran_out_bytes = Some(self.planned_bytes);
        // Where the update was begun, the state on the disk counts: it learns what ran out.
        let saved = self.save_state_now();
        let saved = saved.or_else(|e| self.store.note_ran_out(self.planned_bytes).and(Err(e)));
        let kept = self.said(saved);
        let message = format!("{e}, after {}", counted(done, "step"));
        self.live.alert(&message);
        self.live.status(TrainingStatus::Failed(message.clone()));
        StageError::retryable(message).next(format!(
            "{kept}; start again: training goes on from what there is with less memory, with fewer tokens at a time if it must"
        ))
    }

    /// Nothing can be read from such a device any more: the newest state on the disk counts.
    fn device_lost(&mut self, e: &EngineError) -> StageError {
        let done = self.history.steps_done();
        let message = format!("the GPU does not answer after {}: {e}", counted(done, "step"));
        self.live.alert(&message);
        self.live.status(TrainingStatus::Failed(message.clone()));
        StageError::failed(message).next(format!(
            "look at the GPU with `runner doctor` and nvidia-smi; {}: the same command goes on from what there is",
            self.left()
        ))
    }

    /// The weights as they are may be what is wrong: the last state that is known to be good counts.
    fn not_finite(&mut self, what: &str) -> StageError {
        let done = self.history.steps_done();
        let message = format!("{what} is not finite after {}: training stops", counted(done, "step"));
        let good = self.last_good();
        self.live.status(TrainingStatus::Failed(message.clone()));
        StageError::failed(message)
            .next(format!("{good}; lower `lr`, lengthen the warm-up or look at the rows of this step"))
    }
}

/// Others hold so much of the GPU that no work can start.
pub(crate) fn is_without_context(e: &EngineError) -> bool {
    matches!(e, EngineError::Backend(backend) if backend.is_without_context())
}

/// What to do when a GPU is full before there is any work.
pub(crate) const MAKE_ROOM: &str = "free memory of the GPU (nvidia-smi shows who holds it) and start again, take another GPU (--set device=cuda:N), or compute on the CPU (about 100 times slower): --set device=cpu";

/// The error of a GPU that is full before there is any work.
pub(crate) fn without_context(message: String) -> StageError {
    StageError::retryable(message).at("train-cuda parameter device").next(MAKE_ROOM)
}

/// An error of the engine as the stage's.
pub(crate) fn engine_error(e: EngineError) -> StageError {
    if let EngineError::Backend(backend) = &e
        && backend.is_unusable_device()
    {
        return StageError::usage(e.to_string())
            .at("train-cuda parameter device")
            .next("see `runner doctor`, or compute on the CPU (about 100 times slower): --set device=cpu");
    }
    if is_without_context(&e) {
        return without_context(e.to_string());
    }
    if let EngineError::Backend(BackendError::Cuda(cuda)) = &e
        && cuda.out_of_memory()
    {
        return StageError::retryable(e.to_string()).next(
            "free memory of the GPU (nvidia-smi shows who holds it) and start again: training goes on from its last saved state",
        );
    }
    let next = match &e {
        EngineError::Backend(backend) if backend.is_device_trouble() => {
            "look at the GPU with `runner doctor` and nvidia-smi, then start again: training goes on from its last saved state"
        }
        _ => "check the model's files and the parameters",
    };
    StageError::failed(e.to_string()).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_step_is_from_the_end_of_the_one_before_but_for_pauses() {
        let wait = || std::thread::sleep(std::time::Duration::from_millis(40));
        let mut stepping = Stepping::default();
        let begun = stepping.begin();
        let first = stepping.end(begun, false);
        wait();
        let begun = stepping.begin();
        let second = stepping.end(begun, true);
        wait();
        let begun = stepping.begin();
        let third = stepping.end(begun, false);
        assert!(first < 0.04 && second >= 0.04 && third < 0.04, "{first} {second} {third}");
        assert_eq!(stepping.seconds, first + second + third);
    }

    #[test]
    fn a_run_s_length() {
        let params = |epochs, max_steps| Params {
            batch: Some(2),
            accumulation: Some(2),
            epochs: Some(epochs),
            max_steps,
            ..Params::default()
        };
        assert_eq!(Length::of(9, &params(2, 0)), Length { steps_per_epoch: 3, total: 6 });
        let cut = Length::of(9, &params(2, 4));
        assert_eq!((cut.total, cut.epochs()), (4, 2));
        assert_eq!(Length::of(9, &params(2, 99)).total, 6);
    }

    #[test]
    fn the_recipe_has_1500_steps() {
        let length = Length::of(8000, &Params::default());
        assert_eq!((length.steps_per_epoch, length.total), (500, 1500));
    }
}
