//! The 26 checks, 100 points.

pub(crate) mod costs;
mod locked;
mod readable;
mod reproducible;
mod works;

use std::collections::BTreeSet;

use record::mutation::{Control, Controls, TestResults};
use record::report::{Check, CheckVerdict, Evidence, Measured};

use crate::cohort::Cohort;
use crate::inputs::{Evaluation, Inputs};

/// What the checks look at.
pub(crate) struct Subject<'i> {
    pub(crate) inputs: &'i Inputs,
    pub(crate) tuned: Cohort<'i>,
    pub(crate) seed: u64,
}

/// A check's fixed part.
pub(crate) struct Spec {
    pub(crate) id: &'static str,
    pub(crate) points: u32,
    claim: &'static str,
    threshold: &'static str,
    judge: fn(&Subject<'_>) -> Finding,
    rests_on: RestsOn,
}

/// What a check's numbers were taken from. They are worth nothing when it can't be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestsOn {
    /// Neither of the two.
    Other,
    /// What the compiler said of generated tests.
    Compiling,
    /// What came of running them.
    Running,
}

/// What a check found.
pub(crate) struct Finding {
    measured: Option<Measured>,
    /// `None`: not tested.
    holds: Option<bool>,
    detail: String,
    evidence: Vec<Evidence>,
}

impl Finding {
    pub(crate) fn new(holds: bool, measured: Option<Measured>, detail: impl Into<String>) -> Self {
        Self { measured, holds: Some(holds), detail: detail.into(), evidence: Vec::new() }
    }

    pub(crate) fn not_tested(reason: impl Into<String>) -> Self {
        Self { measured: None, holds: None, detail: reason.into(), evidence: Vec::new() }
    }

    /// Not tested, because an input was not given.
    pub(crate) fn missing(input: &str) -> Self {
        Self::not_tested(format!("the input `{input}` was not given"))
    }

    /// `measured` against a least value; not tested without a measurement.
    pub(crate) fn at_least(measured: Option<Measured>, least: f64, detail: impl Into<String>) -> Self {
        match measured {
            Some(m) => Self::new(m.value >= least, Some(m), detail),
            None => Self::not_tested(detail),
        }
    }

    pub(crate) fn with<'e>(mut self, evidence: impl IntoIterator<Item = &'e Evidence>) -> Self {
        self.evidence.extend(evidence.into_iter().cloned());
        self
    }
}

const fn spec(
    id: &'static str,
    points: u32,
    claim: &'static str,
    threshold: &'static str,
    judge: fn(&Subject<'_>) -> Finding,
) -> Spec {
    Spec { id, points, claim, threshold, judge, rests_on: RestsOn::Other }
}

const fn compile_spec(
    id: &'static str,
    points: u32,
    claim: &'static str,
    threshold: &'static str,
    judge: fn(&Subject<'_>) -> Finding,
) -> Spec {
    Spec { id, points, claim, threshold, judge, rests_on: RestsOn::Compiling }
}

const fn run_spec(
    id: &'static str,
    points: u32,
    claim: &'static str,
    threshold: &'static str,
    judge: fn(&Subject<'_>) -> Finding,
) -> Spec {
    Spec { id, points, claim, threshold, judge, rests_on: RestsOn::Running }
}

/// The groups by the first letter of a check's id.
pub(crate) const GROUPS: [(char, &str); 7] = [
    ('r', "Reproducible"),
    ('c', "Compiles"),
    ('x', "Executes and means something"),
    ('v', "Covers"),
    ('e', "Efficient"),
    ('g', "Generalises"),
    ('d', "Documented"),
];

pub(crate) const SPECS: [Spec; 26] = [
    spec("r1", 5, "Training again gives the same loss at every step", "max |Δ| = 0", reproducible::losses),
    spec("r2", 5, "Training again gives the same weights", "0 files differ", reproducible::weights),
    run_spec("r3", 5, "Evaluating again gives the same results", "0 samples differ", reproducible::results),
    spec("r4", 5, "The environment is locked", "the lock is complete and agrees", locked::environment),
    compile_spec("c1", 5, "Generated tests parse", "≥ 95 %", works::parses),
    compile_spec("c2", 5, "Generated tests type-check", "≥ 90 %", works::type_checks),
    compile_spec("c3", 5, "Tests that type-check raise no lint", "≥ 90 %", works::lints),
    compile_spec("c4", 5, "Generated tests link", "≥ 90 %", works::links),
    run_spec("x1", 5, "Tests that type-check pass on the correct function", "≥ 85 %", works::passes),
    run_spec(
        "x2",
        5,
        "Passing tests fail on mutants",
        "score ≥ 70 %, and ≥ 1 kill for ≥ 90 % of functions",
        works::kills,
    ),
    run_spec("x3", 5, "Tests assert something about the function's result", "≥ 95 %", works::asserts_result),
    run_spec("x4", 5, "No assertion is a tautology", "0 samples", works::tautologies),
    run_spec("v1", 5, "Tests cover branches that had no test before", "≥ +5 pp", works::branches),
    run_spec("v2", 5, "Tests cover lines that had no test before", "≥ +10 pp", works::lines),
    compile_spec("v3", 5, "Tests reach the function with an edge case", "≥ 70 %", works::edge_cases),
    spec("e1", 3, "Training stays below 8 GiB of GPU memory", "< 8 GiB", costs::gpu_memory),
    spec("e2", 4, "Training takes less than four hours", "< 4 h", costs::training_time),
    spec("e3", 3, "Generation takes at most a second per function", "p50 ≤ 1 s", costs::latency),
    run_spec("g1", 2, "Works for generic functions", "≥ 80 % pass", works::generics),
    run_spec("g2", 2, "Works for functions with lifetimes", "≥ 80 % pass", works::lifetimes),
    run_spec("g3", 2, "Works for async functions", "≥ 80 % pass", works::asynchronous),
    run_spec("g4", 2, "Works for unsafe functions (stress set)", "≥ 80 % pass", works::unsafe_code),
    run_spec("g5", 2, "Works for functions that use macros (stress set)", "≥ 80 % pass", works::macros),
    compile_spec("d1", 2, "Test names are at least two words", "≥ 90 %, none like `test1`", readable::names),
    compile_spec("d2", 2, "Tests carry a comment", "≥ 50 %", readable::comments),
    compile_spec(
        "d3",
        1,
        "Names of property-test variables are longer than a letter",
        "≥ 80 %",
        readable::strategies,
    ),
];

/// Judges all of them, in order.
pub(crate) fn all(subject: &Subject<'_>) -> Vec<Check> {
    SPECS.iter().map(|spec| check(spec, subject)).collect()
}

fn check(spec: &Spec, subject: &Subject<'_>) -> Check {
    let tuned = &subject.inputs.tuned;
    let evidence = match spec.rests_on {
        RestsOn::Compiling => &tuned.compile.evidence,
        _ => &tuned.mutation.evidence,
    };
    let finding = match distrust(tuned, spec.rests_on) {
        Some(why) => Finding::not_tested(why).with([evidence]),
        None => (spec.judge)(subject),
    };
    let verdict = match finding.holds {
        Some(true) => CheckVerdict::Corroborated,
        Some(false) => CheckVerdict::Falsified,
        None => CheckVerdict::NotTested,
    };
    Check {
        id: spec.id.to_owned(),
        points: spec.points,
        claim: spec.claim.to_owned(),
        measured: finding.measured,
        threshold: spec.threshold.to_owned(),
        verdict,
        detail: finding.detail,
        evidence: finding.evidence,
    }
}

/// The controls by name.
pub(crate) fn controls(controls: &Controls) -> [(&'static str, &Control); 3] {
    [
        ("planted bug", &controls.planted_bug),
        ("vacuous test", &controls.vacuous_test),
        ("shuffled pairing", &controls.shuffled_pairing),
    ]
}

/// Why numbers that rest on this are not to be counted. `None`: they are.
pub(crate) fn distrust(evaluation: &Evaluation, rests_on: RestsOn) -> Option<String> {
    if rests_on == RestsOn::Other {
        return None;
    }
    let compiled = &evaluation.compile.value.samples;
    let unnamed = compiled.iter().filter(|s| s.completion_sha256.is_empty()).count();
    // Without samples there is nothing that a digest could be of.
    if unnamed > 0 && evaluation.samples_evidence.is_some() {
        return Some(format!(
            "{unnamed} of {} compile results do not name the completion that was compiled (`completion_sha256`): nothing shows \
             that they are of these samples",
            compiled.len()
        ));
    }
    if rests_on == RestsOn::Compiling {
        return None;
    }
    let run = &evaluation.mutation.value.samples;
    let unnamed = run.iter().filter(|s| s.tests_sha256.is_empty()).count();
    if unnamed > 0 {
        return Some(format!(
            "{unnamed} of {} test results do not name the tests that were run (`tests_sha256`): nothing shows that they are of \
             these samples",
            run.len()
        ));
    }
    let broken = broken_controls(&evaluation.mutation.value);
    (!broken.is_empty())
        .then(|| format!("a control does not hold ({}): the harness is not to be trusted", broken.join("; ")))
}

/// Controls that do not bear the harness out: by name, and why.
pub(crate) fn broken_controls(results: &TestResults) -> Vec<String> {
    let functions: BTreeSet<&str> = results.samples.iter().map(|sample| &*sample.task_id).collect();
    let fault = |(name, c): (&str, &Control)| {
        if c.cases > 0 {
            (c.as_expected != c.cases || c.holds != Some(true))
                .then(|| format!("{name}: {} of {} as known", c.as_expected, c.cases))
        } else {
            // One function alone can't be paired with another one's tests.
            let may_lack = name == "shuffled pairing" && c.holds.is_none() && functions.len() < 2;
            (!may_lack).then(|| format!("{name}: no case could be made"))
        }
    };
    controls(&results.controls).into_iter().filter_map(fault).collect()
}

/// Points of the corroborated checks.
pub(crate) fn score(checks: &[Check]) -> u32 {
    points(checks, CheckVerdict::Corroborated)
}

pub(crate) fn points(checks: &[Check], verdict: CheckVerdict) -> u32 {
    checks.iter().filter(|c| c.verdict == verdict).map(|c| c.points).sum()
}

pub(crate) fn grade(score: u32) -> &'static str {
    match score {
        95.. => "A+",
        90.. => "A",
        85.. => "B+",
        80.. => "B",
        70.. => "C",
        _ => "F",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_six_checks_make_a_hundred_points_in_seven_groups() {
        assert_eq!(SPECS.len(), 26);
        assert_eq!(SPECS.iter().map(|s| s.points).sum::<u32>(), 100);
        for spec in &SPECS {
            assert!(GROUPS.iter().any(|(letter, _)| spec.id.starts_with(*letter)), "{}", spec.id);
        }
    }

    #[test]
    fn grades_at_their_borders() {
        let grades = [(100, "A+"), (95, "A+"), (94, "A"), (90, "A"), (89, "B+"), (85, "B+"), (84, "B")];
        let rest = [(80, "B"), (79, "C"), (70, "C"), (69, "F"), (0, "F")];
        for (points, expected) in grades.into_iter().chain(rest) {
            assert_eq!(grade(points), expected, "{points}");
        }
    }
}
