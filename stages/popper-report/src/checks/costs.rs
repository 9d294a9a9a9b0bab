//! e1 to e3: memory, time, latency. Read from volatile outputs: facts about one run on one machine.

use record::report::Measured;
use record::training::TrainingMetrics;
use scores::quantile;

use super::{Finding, Subject};

pub(crate) const GIB: f64 = (1u64 << 30) as f64;
pub(crate) const GPU_MEMORY_MAX_GIB: f64 = 8.0;
const HOURS_MAX: f64 = 4.0;
const LATENCY_MAX_S: f64 = 1.0;

fn one(value: f64, unit: &str) -> Measured {
    Measured { value, unit: unit.to_owned(), interval95: None, n: None }
}

/// Peak GPU memory of the training in GiB. A reading of 0 is no reading: a process on a GPU holds some. What a whole device
/// holds is a bound from above: over the limit it says nothing of the training.
pub(crate) fn gpu_memory_gib(subject: &Subject<'_>) -> Option<f64> {
    let log = &subject.inputs.log.as_ref()?.value;
    let peak = log.peak_vram_bytes.filter(|&bytes| bytes > 0)? as f64 / GIB;
    let may_be_of_others = is_of_device(log) && peak >= GPU_MEMORY_MAX_GIB;
    (!may_be_of_others).then_some(peak)
}

fn is_of_device(log: &TrainingMetrics) -> bool {
    log.peak_vram_scope.as_deref() == Some("device")
}

pub(super) fn gpu_memory(subject: &Subject<'_>) -> Finding {
    let Some(log) = &subject.inputs.log else { return Finding::missing("log") };
    let device = &log.value.device;
    let Some(peak) = gpu_memory_gib(subject) else {
        let why = match log.value.peak_vram_bytes {
            Some(bytes) if bytes > 0 => format!(
                "`{device}` held {:.2} GiB, others included: how much of it was the training's is not known",
                bytes as f64 / GIB
            ),
            _ => format!("no GPU memory was read: training ran on `{device}`"),
        };
        return Finding::not_tested(why).with([&log.evidence]);
    };
    let whose = if is_of_device(&log.value) { "others included" } else { "of the training process" };
    let part = if log.value.interrupted_and_resumed { ", after the last restart" } else { "" };
    let detail = format!("highest reading on {device}, {whose}{part}");
    Finding::new(peak < GPU_MEMORY_MAX_GIB, Some(one(peak, "GiB")), detail).with([&log.evidence])
}

pub(super) fn training_time(subject: &Subject<'_>) -> Finding {
    let Some(log) = &subject.inputs.log else { return Finding::missing("log") };
    let hours = log.value.wall_s / 3600.0;
    if hours <= 0.0 || log.value.steps == 0 {
        return Finding::not_tested("the log holds no time of a training").with([&log.evidence]);
    }
    if log.value.interrupted_and_resumed && hours < HOURS_MAX {
        return Finding::not_tested(
            "training was interrupted and resumed: the time of all its parts is not known",
        )
        .with([&log.evidence]);
    }
    let detail = format!("{} steps on {}", log.value.steps, log.value.device);
    Finding::new(hours < HOURS_MAX, Some(one(hours, "h")), detail).with([&log.evidence])
}

pub(super) fn latency(subject: &Subject<'_>) -> Finding {
    let Some(timings) = &subject.inputs.timings else { return Finding::missing("timings") };
    let holdout: std::collections::BTreeSet<&str> =
        subject.inputs.corpus.holdout.iter().map(|row| &*row.id).collect();
    let first = timings.value.iter().filter(|t| t.sample_idx == 0 && holdout.contains(&*t.task_id));
    let mut timed = std::collections::BTreeSet::new();
    let mut seconds = Vec::new();
    // A repair round draws again for the same task: the first time counts.
    for timing in first.filter(|t| t.latency_ms > 0.0) {
        if timed.insert(&*timing.task_id) {
            seconds.push(timing.latency_ms / 1e3);
        }
    }
    let Some(p50) = quantile(&seconds, 0.5) else {
        return Finding::not_tested("no first sample of a holdout function was timed")
            .with([&timings.evidence]);
    };
    let generated = subject.tuned.holdout().iter().filter(|f| f.is_generated()).count();
    if seconds.len() < generated {
        return Finding::not_tested(format!(
            "{} of {generated} first samples were timed: the median of the rest is not known",
            seconds.len()
        ))
        .with([&timings.evidence]);
    }
    let p95 = quantile(&seconds, 0.95).unwrap_or(p50);
    let device = subject.inputs.generation.as_ref().map_or("an unnamed device", |g| &g.device);
    let measured =
        Measured { value: p50, unit: "s".to_owned(), interval95: None, n: Some(seconds.len() as u64) };
    let detail = format!("median of {} first samples on {device}; p95 {p95:.2} s", seconds.len());
    Finding::new(p50 <= LATENCY_MAX_S, Some(measured), detail).with([&timings.evidence])
}
