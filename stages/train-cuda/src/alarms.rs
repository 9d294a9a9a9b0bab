//! When a run is stopped, or its user warned, although every number of it is finite.

use record::training::StepRecord;

use crate::telemetry::Reading;

/// Steps whose mean loss is judged.
const WINDOW: usize = 10;
/// A mean this much above guessing, and above the first step, is no noise.
const WORSE: f64 = 1.05;
/// The gate of the report (P-GATE-004); a run that was given less and takes more is stopped.
const GATE_BYTES: u64 = 8 << 30;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Alarm {
    Warn(String),
    /// The run is to end; its weights are as good as before.
    Stop(String),
    /// The run is to end: its weights have become worse than none.
    Diverged(String),
}

/// What a run is watched for.
#[derive(Debug, Clone)]
pub(crate) struct Alarms {
    /// Cross-entropy of a model that knows nothing: the logarithm of the vocabulary's size.
    guessing: f64,
    /// Steps in which the learning rate rises.
    warm: u64,
    /// GPU memory that the run was allowed; 0: all.
    vram_limit: u64,
    was_hot: bool,
}

impl Alarms {
    pub(crate) fn new(vocab: usize, warm: u64, vram_limit: u64) -> Self {
        Self { guessing: (vocab as f64).ln(), warm, vram_limit, was_hot: false }
    }

    /// After a step; `seen` is what the GPU said of itself.
    pub(crate) fn look(&mut self, steps: &[StepRecord], seen: Option<&Reading>) -> Option<Alarm> {
        self.diverged(steps).or_else(|| self.memory(seen)).or_else(|| self.heat(seen))
    }

    /// Whether weights with this loss may be gone on from; `first` is the loss of the first step.
    pub(crate) fn is_good(&self, loss: f64, first: f64) -> bool {
        loss.is_finite() && loss <= self.bound(first)
    }

    /// Above it a mean is no noise.
    fn bound(&self, first: f64) -> f64 {
        self.guessing.max(first) * WORSE
    }

    /// A function of the losses alone, so that every run of the same key stops at the same step.
    fn diverged(&self, steps: &[StepRecord]) -> Option<Alarm> {
        let after = steps.len().checked_sub(self.warm as usize)?;
        if after < WINDOW {
            return None;
        }
        let mean = steps[steps.len() - WINDOW..].iter().map(|s| s.loss).sum::<f64>() / WINDOW as f64;
        (mean > self.bound(steps[0].loss)).then(|| {
            Alarm::Diverged(format!(
                "the mean loss of the last {WINDOW} steps is {mean:.3}: worse than guessing ({:.3}) and than the first step ({:.3})",
                self.guessing, steps[0].loss
            ))
        })
    }

    fn memory(&self, seen: Option<&Reading>) -> Option<Alarm> {
        let own = seen?.own_bytes?;
        let is_gated = (1..=GATE_BYTES).contains(&self.vram_limit);
        (is_gated && own > GATE_BYTES).then(|| {
            Alarm::Stop(format!(
                "this process holds {} MB of GPU memory, where {} MB were allowed and 8 GiB are the gate",
                own / 1_000_000,
                self.vram_limit / 1_000_000
            ))
        })
    }

    fn heat(&mut self, seen: Option<&Reading>) -> Option<Alarm> {
        let (now, limit) = (seen?.celsius?, seen?.slowdown_celsius?);
        if now < limit || self.was_hot {
            return None;
        }
        self.was_hot = true;
        Some(Alarm::Warn(format!("the GPU is at {now:.0} °C: from {limit:.0} °C on it slows itself down")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(losses: &[f64]) -> Vec<StepRecord> {
        let step = |(i, &loss): (usize, &f64)| StepRecord {
            step: i as u64 + 1,
            epoch: 1,
            loss,
            grad_norm: 1.0,
            lr: 1e-4,
            label_tokens: 1,
            tokens: 1,
        };
        losses.iter().enumerate().map(step).collect()
    }

    #[test]
    fn a_loss_worse_than_guessing_stops_after_the_warm_up() {
        let mut alarms = Alarms::new(1000, 3, 0);
        let mut losses = vec![2.0; 3];
        losses.extend([7.5; 9]);
        assert_eq!(alarms.look(&steps(&losses), None), None, "nine steps are no window");
        losses.push(7.5);
        let Some(Alarm::Diverged(why)) = alarms.look(&steps(&losses), None) else { panic!("goes on") };
        assert!(why.contains("7.500") && why.contains("6.908"), "{why}");
        // Random weights begin above guessing, and may stay there for a while.
        assert_eq!(alarms.look(&steps(&[7.2; 40]), None), None);
        assert_eq!(alarms.look(&[], None), None);
    }

    #[test]
    fn weights_are_good_while_their_loss_is_a_number_and_not_worse_than_guessing() {
        let alarms = Alarms::new(1000, 0, 0);
        for (loss, first, good) in [
            (6.9, 2.0, true),
            (7.4, 2.0, false),
            (7.4, 7.2, true),
            (f64::NAN, 2.0, false),
            (f64::INFINITY, 2.0, false),
            (2.0, f64::NAN, true),
        ] {
            assert_eq!(alarms.is_good(loss, first), good, "{loss} after {first}");
        }
    }

    #[test]
    fn memory_beyond_the_gate_stops_a_run_that_was_to_keep_below() {
        let holds = |own_bytes| Reading { own_bytes, used_bytes: Some(70 << 30), ..Reading::default() };
        let mut alarms = Alarms::new(1000, 0, 7_500_000_000);
        assert!(matches!(alarms.look(&[], Some(&holds(Some((8 << 30) + 1)))), Some(Alarm::Stop(_))));
        assert_eq!(alarms.look(&[], Some(&holds(Some(8 << 30)))), None);
        assert_eq!(alarms.look(&[], Some(&holds(None))), None, "what others hold stops nothing");
        for limit in [0, 20_000_000_000] {
            assert_eq!(Alarms::new(1000, 0, limit).look(&[], Some(&holds(Some(9 << 30)))), None, "{limit}");
        }
    }

    #[test]
    fn heat_warns_once() {
        let at =
            |celsius| Reading { celsius: Some(celsius), slowdown_celsius: Some(87.0), ..Reading::default() };
        let mut alarms = Alarms::new(1000, 0, 0);
        assert_eq!(alarms.look(&[], Some(&at(86.0))), None);
        assert!(matches!(alarms.look(&[], Some(&at(87.0))), Some(Alarm::Warn(why)) if why.contains("87 °C")));
        assert_eq!(alarms.look(&[], Some(&at(90.0))), None);
    }
}
