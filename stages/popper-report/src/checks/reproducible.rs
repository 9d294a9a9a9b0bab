//! r1 to r3: does doing it again give the same?

use std::collections::BTreeMap;

use record::report::{Evidence, Measured};
use record::training::StepRecord;

use super::{Finding, RestsOn, Subject, distrust};

pub(super) fn losses(subject: &Subject<'_>) -> Finding {
    let (Some(first), Some(again)) = (&subject.inputs.training.steps, &subject.inputs.training_repeat.steps)
    else {
        return Finding::missing(missing(
            subject.inputs.training.steps.is_none(),
            "checkpoints",
            "checkpoints_repeat",
        ));
    };
    compare_losses(&first.value, &again.value).with([&first.evidence, &again.evidence])
}

fn missing(first: bool, name: &'static str, repeat: &'static str) -> &'static str {
    if first { name } else { repeat }
}

fn compare_losses(first: &[StepRecord], again: &[StepRecord]) -> Finding {
    if first.is_empty() && again.is_empty() {
        return Finding::not_tested("no step was recorded");
    }
    let largest = first.iter().zip(again).map(|(a, b)| (a.loss - b.loss).abs()).fold(0.0, f64::max);
    let differ = first.iter().zip(again).filter(|(a, b)| a.loss.to_bits() != b.loss.to_bits()).count();
    let measured = Measured {
        value: largest,
        unit: "nats".to_owned(),
        interval95: None,
        n: Some(first.len().min(again.len()) as u64),
    };
    let (a, b) = (first.len(), again.len());
    if a != b {
        return Finding::new(false, Some(measured), format!("{a} steps the first time, {b} the second"));
    }
    let detail = if differ == 0 {
        format!("all {a} steps are bit-equal")
    } else {
        format!("{differ} of {a} steps differ")
    };
    Finding::new(differ == 0, Some(measured), detail)
}

pub(super) fn weights(subject: &Subject<'_>) -> Finding {
    let (first, again) = (&subject.inputs.training.weights, &subject.inputs.training_repeat.weights);
    if first.is_empty() || again.is_empty() {
        return Finding::missing(missing(first.is_empty(), "adapter", "adapter_repeat"));
    }
    let by_name = |files: &[Evidence]| -> BTreeMap<String, String> {
        let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        files.iter().map(|e| (name(&e.path), e.sha256.clone())).collect()
    };
    let (a, b) = (by_name(first), by_name(again));
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differ: Vec<&str> =
        names.iter().filter(|name| a.get(**name) != b.get(**name)).map(|name| name.as_str()).collect();
    let measured = Measured {
        value: differ.len() as f64,
        unit: "files that differ".to_owned(),
        interval95: None,
        n: Some(names.len() as u64),
    };
    let detail = if differ.is_empty() {
        "the digests of all weight files are equal".to_owned()
    } else {
        format!("these differ: {}", differ.join(", "))
    };
    Finding::new(differ.is_empty(), Some(measured), detail).with(first).with(again)
}

pub(super) fn results(subject: &Subject<'_>) -> Finding {
    let Some(again) = &subject.inputs.repeat else {
        return Finding::missing("compile_repeat, mutation_repeat");
    };
    if let Some(why) = distrust(again, RestsOn::Running) {
        return Finding::not_tested(format!("of the repeat: {why}")).with([&again.mutation.evidence]);
    }
    let first = &subject.inputs.tuned;
    let compiled = differences(&first.compile.value.samples, &again.compile.value.samples, |s| {
        (s.task_id.clone(), s.sample_idx, s.round)
    });
    let run = differences(&first.mutation.value.samples, &again.mutation.value.samples, |s| {
        (s.task_id.clone(), s.sample_idx, s.round)
    });
    let n = first.compile.value.samples.len().max(again.compile.value.samples.len());
    if n == 0 {
        return Finding::not_tested("there are no samples");
    }
    let differ: std::collections::BTreeSet<_> = compiled.iter().chain(&run).collect();
    let measured = Measured {
        value: differ.len() as f64,
        unit: "samples that differ".to_owned(),
        interval95: None,
        n: Some(n as u64),
    };
    let detail = match differ.first() {
        None => "compile results and test results of every sample are equal".to_owned(),
        Some((task, idx, round)) => format!(
            "{} in compiling, {} in running; the first is sample {idx} of round {round} of {task}",
            compiled.len(),
            run.len()
        ),
    };
    Finding::new(differ.is_empty(), Some(measured), detail).with([
        &first.compile.evidence,
        &first.mutation.evidence,
        &again.compile.evidence,
        &again.mutation.evidence,
    ])
}

/// Keys whose values differ, or that one side lacks.
fn differences<T: PartialEq, K: Ord>(first: &[T], again: &[T], key: impl Fn(&T) -> K) -> Vec<K> {
    let mut left: BTreeMap<K, &T> = again.iter().map(|value| (key(value), value)).collect();
    let mut differ: Vec<K> =
        first.iter().filter(|value| left.remove(&key(value)) != Some(*value)).map(&key).collect();
    differ.extend(left.into_keys());
    differ
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> StepRecord {
        StepRecord { step, epoch: 1, loss, grad_norm: 1.0, lr: 1e-4, label_tokens: 10, tokens: 20 }
    }

    #[test]
    fn one_step_that_differs_by_one_bit_is_enough() {
        let first = [step(1, 2.0), step(2, 1.5)];
        assert_eq!(compare_losses(&first, &first).holds, Some(true));
        let again = [step(1, 2.0), step(2, f64::from_bits(1.5f64.to_bits() + 1))];
        assert_eq!(compare_losses(&first, &again).holds, Some(false));
        assert_eq!(compare_losses(&first, &first[..1]).holds, Some(false));
        assert_eq!(compare_losses(&[], &[]).holds, None);
    }

    #[test]
    fn differences_see_values_and_missing_keys() {
        let key = |v: &(u32, u32)| v.0;
        assert!(differences(&[(1, 1), (2, 2)], &[(2, 2), (1, 1)], key).is_empty());
        assert_eq!(differences(&[(1, 1), (2, 2)], &[(2, 3), (4, 4)], key), [1, 2, 4]);
    }
}
