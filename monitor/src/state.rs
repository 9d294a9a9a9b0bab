//! What there is to show, reduced from the trainer's state. Pure: no file, no clock.

use record::training::{GpuState, SamplePeek, TrainingState, TrainingStatus};
use serde::Serialize;

/// Everything that a view may show.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    pub timestamp_ms: u64,
    pub elapsed_s: u64,
    pub epoch: u64,
    pub total_epochs: u64,
    pub step: u64,
    pub steps_per_epoch: u64,
    /// `None` when the trainer has no finite loss yet.
    pub loss: Option<f64>,
    pub loss_trend: Trend,
    pub learning_rate: f64,
    pub gradient_norm: Option<f64>,
    pub tokens_per_second: f64,
    pub eta_seconds: Option<u64>,
    /// `None` without a GPU: never a made-up value.
    pub gpu: Option<GpuState>,
    pub sample: Option<SamplePeek>,
    pub status: TrainingStatus,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alerts: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trend {
    Falling,
    Flat,
    Rising,
}

impl Shown {
    pub fn is_over(&self) -> bool {
        matches!(self.status, TrainingStatus::Completed | TrainingStatus::Failed(_))
    }
}

/// Epoch and step are clamped to their totals: a step beyond its total is never shown.
pub fn reduce(state: &TrainingState) -> Shown {
    let elapsed_ms = state.timestamp_ms.saturating_sub(state.start_timestamp_ms);
    let epoch = state.epoch.min(state.total_epochs);
    let step = state.step.min(state.steps_per_epoch);
    let done = epoch.saturating_sub(1) * state.steps_per_epoch + step;
    let left = (state.total_epochs * state.steps_per_epoch).saturating_sub(done);
    let eta_seconds = (done > 0).then(|| left * elapsed_ms / done / 1000);
    Shown {
        timestamp_ms: state.timestamp_ms,
        elapsed_s: elapsed_ms / 1000,
        epoch,
        total_epochs: state.total_epochs,
        step,
        steps_per_epoch: state.steps_per_epoch,
        loss: Some(state.loss).filter(|l| l.is_finite()),
        loss_trend: trend(&state.loss_history),
        learning_rate: state.learning_rate,
        gradient_norm: Some(state.gradient_norm).filter(|g| g.is_finite()),
        tokens_per_second: state.tokens_per_second,
        eta_seconds,
        gpu: state.gpu.clone(),
        sample: state.sample.clone(),
        status: state.status.clone(),
        alerts: state.alerts.clone(),
    }
}

/// Compares the means of the two halves of the last ten losses; within 2 % is flat.
fn trend(history: &[f64]) -> Trend {
    let recent = &history[history.len().saturating_sub(10)..];
    let (old, new) = recent.split_at(recent.len() / 2);
    if old.is_empty() {
        return Trend::Flat;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    match mean(new) / mean(old) {
        ratio if ratio < 0.98 => Trend::Falling,
        ratio if ratio > 1.02 => Trend::Rising,
        _ => Trend::Flat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> TrainingState {
        TrainingState {
            timestamp_ms: 61_000,
            epoch: 2,
            total_epochs: 3,
            step: 10,
            steps_per_epoch: 20,
            loss: 1.5,
            loss_history: vec![3.0, 2.9, 2.0, 1.5],
            learning_rate: 2e-4,
            lr_history: vec![],
            gradient_norm: 0.7,
            accuracy: 0.0,
            tokens_per_second: 1000.0,
            samples_per_second: 0.0,
            start_timestamp_ms: 1_000,
            gpu: None,
            sample: None,
            status: TrainingStatus::Running,
            alerts: vec![],
            experiment_id: "x".into(),
            model_name: "tiny".into(),
            model_path: String::new(),
            optimizer_name: String::new(),
            batch_size: 4,
            checkpoint_path: String::new(),
            executable_path: String::new(),
        }
    }

    #[test]
    fn eta_follows_from_steps_done() {
        assert_eq!(reduce(&state()).eta_seconds, Some(60));
    }

    #[test]
    fn a_step_beyond_its_total_is_never_shown() {
        let beyond = TrainingState { step: 30, steps_per_epoch: 3, epoch: 9, ..state() };
        let shown = reduce(&beyond);
        assert_eq!((shown.step, shown.epoch), (3, 3));
    }

    #[test]
    fn trend_needs_two_percent() {
        assert_eq!(trend(&[3.0, 2.9, 2.0, 1.5]), Trend::Falling);
        assert_eq!(trend(&[1.0, 1.0, 1.01, 1.0]), Trend::Flat);
        assert_eq!(trend(&[1.0, 2.0]), Trend::Rising);
        assert_eq!(trend(&[]), Trend::Flat);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_not_shown() {
        assert_eq!(reduce(&TrainingState { loss: f64::NAN, ..state() }).loss, None);
    }
}
