//! From checks to a verdict: gates, tiers, comparison with the base model, hypotheses.

use record::report::{Check, CheckVerdict, Comparison, Gate, Gates, Measured, Tier};
use record::report::{REPORT_SCHEMA_VERSION, Report};
use scores::{mean, pass_at_k};

use crate::checks::{self, RestsOn, Subject, costs};
use crate::cohort::Cohort;
use crate::hypotheses;
use crate::inputs::{Evaluation, Inputs};
use crate::measures::{Assured, MEASURES, Rates};

pub(crate) const ASSURED_YIELD: &str = "assured_yield";
pub(crate) const ASSURED_MUTATION_SCORE: &str = "assured_mutation_score";

/// The whole report, without its pages.
pub(crate) fn report(subject: &Subject<'_>) -> Report {
    let checks = checks::all(subject);
    let score = checks::score(&checks);
    Report {
        schema_version: REPORT_SCHEMA_VERSION,
        score,
        points_not_tested: checks::points(&checks, CheckVerdict::NotTested),
        grade: checks::grade(score).to_owned(),
        gates: gates(subject, &checks, score),
        tiers: tiers(subject, &checks, score),
        comparison: comparison(subject),
        controls: Some(subject.inputs.tuned.mutation.value.controls.clone()),
        hypotheses: hypotheses::all(subject),
        checks,
    }
}

pub(crate) fn gates_file(report: &Report) -> Gates {
    let passed = report.gates.iter().all(|g| g.verdict == CheckVerdict::Corroborated);
    Gates { schema_version: REPORT_SCHEMA_VERSION, passed, gates: report.gates.clone() }
}

pub(crate) fn check<'c>(checks: &'c [Check], id: &str) -> Option<&'c Check> {
    checks.iter().find(|c| c.id == id)
}

fn value(checks: &[Check], id: &str) -> Option<f64> {
    check(checks, id).and_then(|c| c.measured.as_ref()).map(|m| m.value)
}

fn gates(subject: &Subject<'_>, checks: &[Check], score: u32) -> Vec<Gate> {
    let gate =
        |id: &str, rule: &str, measured: Option<f64>, threshold: f64, holds: fn(f64, f64) -> bool| Gate {
            id: id.to_owned(),
            rule: rule.to_owned(),
            measured,
            threshold,
            verdict: match measured {
                None => CheckVerdict::NotTested,
                Some(m) if holds(m, threshold) => CheckVerdict::Corroborated,
                Some(_) => CheckVerdict::Falsified,
            },
        };
    let at_least: fn(f64, f64) -> bool = |m, t| m >= t;
    let share = |id: &str| value(checks, id).map(|percent| percent / 100.0);
    vec![
        gate(
            "P-GATE-001",
            "score of at least 90, or the adapter is rejected",
            Some(f64::from(score)),
            90.0,
            at_least,
        ),
        gate("P-GATE-002", "compile rate of at least 0.90", share("c2"), 0.90, at_least),
        gate("P-GATE-003", "mutation score of at least 0.70", share("x2"), 0.70, at_least),
        gate(
            "P-GATE-004",
            "at most 8 GiB of GPU memory in training",
            costs::gpu_memory_gib(subject),
            costs::GPU_MEMORY_MAX_GIB,
            |m, t| m <= t,
        ),
    ]
}

/// How a tier's value compares: which way is better, and where minimum, target and stretch lie.
struct Scale {
    metric: &'static str,
    unit: &'static str,
    is_more_better: bool,
    /// Exclusive bounds are written with `<` or `>` in the founding specification; rates include theirs.
    is_strict: bool,
    steps: [f64; 3],
}

const fn rate(metric: &'static str, unit: &'static str, steps: [f64; 3]) -> Scale {
    Scale { metric, unit, is_more_better: true, is_strict: false, steps }
}

const fn above(metric: &'static str, unit: &'static str, steps: [f64; 3]) -> Scale {
    Scale { metric, unit, is_more_better: true, is_strict: true, steps }
}

const fn below(metric: &'static str, unit: &'static str, steps: [f64; 3]) -> Scale {
    Scale { metric, unit, is_more_better: false, is_strict: true, steps }
}

fn tiers(subject: &Subject<'_>, checks: &[Check], score: u32) -> Vec<Tier> {
    let log = subject.inputs.log.as_ref().map(|l| &l.value);
    let hours = value(checks, "e2");
    let measured = [
        (rate("compile rate", "%", [85.0, 92.0, 97.0]), value(checks, "c2")),
        (rate("pass rate, of those that type-check", "%", [80.0, 88.0, 95.0]), value(checks, "x1")),
        (rate("mutation score", "%", [60.0, 72.0, 80.0]), value(checks, "x2")),
        (rate("branch coverage delta", "pp", [5.0, 12.0, 18.0]), value(checks, "v1")),
        (rate("Popper score", "points", [80.0, 90.0, 95.0]), Some(f64::from(score))),
        (below("training time", "h", [6.0, 3.0, 1.5]), hours),
        (below("GPU memory", "GiB", [10.0, 7.0, 5.0]), costs::gpu_memory_gib(subject)),
        (above("GPU utilisation", "%", [50.0, 70.0, 85.0]), log.and_then(|l| l.mean_gpu_utilization_percent)),
        (
            above("generation", "tok/s", [50.0, 100.0, 200.0]),
            subject.inputs.generation.as_ref().map(|g| g.tokens_per_s),
        ),
        (below("15 epochs of the mini corpus", "s", [60.0, 30.0, 15.0]), None),
    ];
    measured.into_iter().map(|(scale, value)| tier(&scale, value)).collect()
}

fn tier(scale: &Scale, measured: Option<f64>) -> Tier {
    let sign = match (scale.is_more_better, scale.is_strict) {
        (true, true) => ">",
        (true, false) => "≥",
        (false, _) => "<",
    };
    let reaches = |v: f64, step: f64| match (scale.is_more_better, scale.is_strict) {
        (true, true) => v > step,
        (true, false) => v >= step,
        (false, _) => v < step,
    };
    let reached = measured.map_or("not tested", |v| {
        let names = ["minimum", "target", "stretch"];
        let best = names.into_iter().zip(scale.steps).rev().find(|(_, step)| reaches(v, *step));
        best.map_or("below", |(name, _)| name)
    });
    let [minimum, target, stretch] = scale.steps.map(|step| format!("{sign} {step}"));
    Tier {
        metric: scale.metric.to_owned(),
        measured,
        unit: scale.unit.to_owned(),
        minimum,
        target,
        stretch,
        reached: reached.to_owned(),
    }
}

/// Whether what running tests said of these samples counts.
fn is_trusted(evaluation: &Evaluation) -> bool {
    checks::distrust(evaluation, RestsOn::Running).is_none()
}

/// Tuned beside base, every measure; a difference where both exist. What rests on running tests stays out where the
/// controls do not hold.
fn comparison(subject: &Subject<'_>) -> Vec<Comparison> {
    let base = subject.inputs.base.as_ref();
    let base = base.map(|b| (Cohort::new(&subject.inputs.corpus, b), b));
    let mut rows: Vec<Comparison> = MEASURES
        .iter()
        .map(|measure| {
            let rates = |cohort: &Cohort<'_>| Rates::of(&cohort.holdout(), measure.of, subject.seed);
            let rests_on = if measure.rests_on_runs { RestsOn::Running } else { RestsOn::Compiling };
            let counts = |evaluation: &Evaluation| checks::distrust(evaluation, rests_on).is_none();
            let tuned = counts(&subject.inputs.tuned).then(|| rates(&subject.tuned));
            let base = base.as_ref().filter(|(_, base)| counts(base)).map(|(cohort, _)| rates(cohort));
            Comparison {
                metric: measure.key.to_owned(),
                tuned: tuned.as_ref().and_then(|t| t.measured("rate", 1.0)),
                base: base.as_ref().and_then(|b| b.measured("rate", 1.0)),
                difference: tuned.zip(base).and_then(|(tuned, base)| tuned.minus(&base, "rate")),
            }
        })
        .collect();
    for k in [1, 2, 4, 8, 16] {
        let tuned = pass_at(subject.inputs, &subject.inputs.tuned, k, subject.seed);
        let base = subject.inputs.base.as_ref().and_then(|b| pass_at(subject.inputs, b, k, subject.seed));
        let Some(tuned) = tuned else { continue };
        let difference = base.as_ref().and_then(|b| tuned.minus(b, "rate"));
        rows.push(Comparison {
            metric: format!("pass_at_{k}"),
            tuned: tuned.measured("rate", 1.0),
            base: base.and_then(|b| b.measured("rate", 1.0)),
            difference,
        });
    }
    rows.extend(assured(subject));
    rows
}

/// Yield and mutation score of the assured suites, which decide nothing.
fn assured(subject: &Subject<'_>) -> Vec<Comparison> {
    let functions = subject.tuned.holdout();
    let of = |evaluation: &Evaluation| {
        let suites = evaluation.selected.as_ref().filter(|_| is_trusted(evaluation))?;
        Some(Assured::of(&functions, &suites.value, subject.seed))
    };
    let Some(tuned) = of(&subject.inputs.tuned) else { return Vec::new() };
    let base = subject.inputs.base.as_ref().and_then(of);
    let row = |metric: &str, part: fn(&Assured) -> &Rates| Comparison {
        metric: metric.to_owned(),
        tuned: part(&tuned).measured("rate", 1.0),
        base: base.as_ref().and_then(|b| part(b).measured("rate", 1.0)),
        difference: base.as_ref().and_then(|b| part(&tuned).minus(part(b), "rate")),
    };
    vec![row(ASSURED_YIELD, |a| &a.yields), row(ASSURED_MUTATION_SCORE, |a| &a.mutants)]
}

/// pass@k over the first round's samples; `None` when there is one sample a function, or a function has fewer than `k`.
fn pass_at(inputs: &Inputs, evaluation: &Evaluation, k: u64, seed: u64) -> Option<Rates> {
    if !is_trusted(evaluation) {
        return None;
    }
    let cohort = Cohort::new(&inputs.corpus, evaluation);
    let samples = &evaluation.mutation.value.samples;
    let mut counts: std::collections::BTreeMap<&str, (u64, u64)> = std::collections::BTreeMap::new();
    for sample in samples.iter().filter(|s| s.round == 0) {
        let (n, passed) = counts.entry(&sample.task_id).or_default();
        *n += 1;
        *passed += u64::from(sample.compiled && sample.passed);
    }
    let holdout = cohort.holdout();
    let counts: Vec<(u64, u64)> = holdout.iter().filter_map(|f| counts.get(&*f.row.id).copied()).collect();
    if counts.len() < holdout.len() || counts.iter().all(|(n, _)| *n <= 1) {
        return None;
    }
    let rates: Option<Vec<f64>> = counts.iter().map(|&(n, passed)| pass_at_k(n, passed, k)).collect();
    let rates = rates?;
    mean(&rates)?;
    Some(Rates::of_values(&rates, seed))
}

/// The verdict in one sentence.
pub(crate) fn sentence(subject: &Subject<'_>, report: &Report) -> String {
    if let Some(why) = checks::distrust(&subject.inputs.tuned, RestsOn::Running) {
        return format!("Nothing that rests on running tests was counted: {why}.");
    }
    let named = |verdict: CheckVerdict| -> Vec<&str> {
        report.gates.iter().filter(|g| g.verdict == verdict).map(|g| gate_name(&g.id)).collect()
    };
    let (failed, untested) = (named(CheckVerdict::Falsified), named(CheckVerdict::NotTested));
    let holdout = subject.tuned.holdout();
    let passing = holdout.iter().filter(|f| f.passes()).count();
    let basis = format!(
        "its first answer passes for {passing} of {} functions it has never seen, and {} of 100 points are corroborated",
        holdout.len(),
        report.score
    );
    let not_tested = untested.join(", ");
    match (failed.is_empty(), untested.is_empty()) {
        (true, true) => format!("The model stood every gate: {basis}."),
        (true, false) => format!(
            "No gate is falsified, but not every gate was tested ({not_tested}), so the model is not accepted: {basis}."
        ),
        (false, true) => format!("The model is rejected ({}): {basis}.", failed.join(", ")),
        (false, false) => {
            format!("The model is rejected ({}; not tested: {not_tested}): {basis}.", failed.join(", "))
        }
    }
}

/// What a gate is about, in a word or two.
pub(crate) fn gate_name(id: &str) -> &'static str {
    match id {
        "P-GATE-001" => "score",
        "P-GATE-002" => "compile rate",
        "P-GATE-003" => "mutation score",
        _ => "GPU memory",
    }
}

/// Flat values for comparison between runs.
pub(crate) fn metrics(subject: &Subject<'_>, report: &Report) -> record::report::Metrics {
    let mut metrics = record::Map::new();
    let one = |value: f64, unit: &str| Measured { value, unit: unit.to_owned(), interval95: None, n: None };
    metrics.insert("popper_score".to_owned(), one(f64::from(report.score), "points"));
    metrics.insert("points_not_tested".to_owned(), one(f64::from(report.points_not_tested), "points"));
    for row in &report.comparison {
        let named = [("tuned", &row.tuned), ("base", &row.base), ("difference", &row.difference)];
        for (name, measured) in named.into_iter().filter_map(|(n, m)| m.clone().map(|m| (n, m))) {
            metrics.insert(format!("{name}.{}", row.metric), measured);
        }
    }
    for check in &report.checks {
        if let Some(measured) = &check.measured {
            metrics.insert(format!("check.{}", check.id), measured.clone());
        }
    }
    if let Some(generation) = &subject.inputs.generation {
        metrics.insert("generation.tokens_per_s".to_owned(), one(generation.tokens_per_s, "tok/s"));
    }
    if let Some(log) = &subject.inputs.log {
        metrics.insert("training.tokens_per_s".to_owned(), one(log.value.tokens_per_s, "tok/s"));
        metrics.insert("training.wall_s".to_owned(), one(log.value.wall_s, "s"));
    }
    if let Some(manifest) = &subject.inputs.training.manifest {
        metrics.insert("training.final_loss".to_owned(), one(manifest.final_train_loss, "nats/token"));
        if let Some(loss) = manifest.best_validation_loss {
            metrics.insert("training.best_validation_loss".to_owned(), one(loss, "nats/token"));
        }
    }
    record::report::Metrics { schema_version: REPORT_SCHEMA_VERSION, metrics }
}

pub(crate) fn verdict_word(verdict: CheckVerdict) -> &'static str {
    match verdict {
        CheckVerdict::Corroborated => "corroborated",
        CheckVerdict::Falsified => "falsified",
        CheckVerdict::NotTested => "not tested",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_at_their_borders() {
        let compile = rate("c", "%", [85.0, 92.0, 97.0]);
        let reached = |v| tier(&compile, v).reached;
        assert_eq!(reached(Some(97.0)), "stretch");
        assert_eq!(reached(Some(96.9)), "target");
        assert_eq!(reached(Some(85.0)), "minimum");
        assert_eq!(reached(Some(84.9)), "below");
        assert_eq!(reached(None), "not tested");
        let time = below("t", "h", [6.0, 3.0, 1.5]);
        assert_eq!(tier(&time, Some(1.4)).reached, "stretch");
        assert_eq!(tier(&time, Some(3.0)).reached, "minimum");
        assert_eq!(tier(&time, Some(6.0)).reached, "below");
        assert_eq!(tier(&time, None).target, "< 3");
    }
}
