//! c, x, v and g: do the generated tests compile, run and mean something?

use scores::bootstrap::{self, Ratio};

use super::{Finding, Subject};
use crate::cohort::{Function, Split};
use crate::measures::{
    Rates, branches_covered, covered_by_reference, lines_covered, lint_clean, pass_of_compiled,
};

const PERCENT: &str = "%";

impl Subject<'_> {
    /// A rate over the holdout, in percent.
    fn rate(&self, of: impl Fn(&Function<'_>) -> Ratio, least: f64, detail: String) -> Finding {
        let measured = Rates::of(&self.tuned.holdout(), of, self.seed).measured(PERCENT, 100.0);
        Finding::at_least(measured, least, detail)
    }

    fn without_sample(&self, split: Split) -> String {
        match self.tuned.n_without_sample(split) {
            0 => String::new(),
            n => format!("; {n} without a sample count as failures"),
        }
    }

    fn has_samples(&self) -> bool {
        self.tuned.n_without_sample(Split::Holdout) < self.tuned.holdout().len()
    }

    /// c1, c2, c4: of all holdout functions.
    fn of_all(&self, of: fn(&Function<'_>) -> bool, least: f64, what: &str) -> Finding {
        let evidence = [&self.inputs.tuned.compile.evidence];
        if !self.has_samples() {
            return Finding::not_tested("no holdout function has a sample").with(evidence);
        }
        let holdout = self.tuned.holdout();
        let k = holdout.iter().filter(|f| of(f)).count();
        let missing = self.without_sample(Split::Holdout);
        let detail = format!("{k} of {} holdout functions {what}{missing}", holdout.len());
        self.rate(|f| Ratio::hit(of(f)), least, detail).with(evidence)
    }

    /// A share of the samples that parse and hold at least one test.
    fn of_tests(&self, of: impl Fn(&record::compile::TestFacts) -> bool, least: f64, what: &str) -> Finding {
        let ratio =
            |f: &Function<'_>| f.facts_of_tests().map_or(Ratio::default(), |facts| Ratio::hit(of(facts)));
        let holdout = self.tuned.holdout();
        let (k, n) =
            holdout.iter().map(ratio).fold((0.0, 0.0), |(k, n), r| (k + r.numerator, n + r.denominator));
        let detail = if n == 0.0 {
            "no sample parses and holds a test".to_owned()
        } else {
            format!("{k} of {n} samples that parse and hold a test {what}")
        };
        self.rate(ratio, least, detail).with([&self.inputs.tuned.compile.evidence])
    }

    /// g1 to g5: compile and pass, among the functions with a property.
    fn of_kind(&self, split: Split, has: fn(&Function<'_>) -> bool, kind: &str) -> Finding {
        let chosen: Vec<Function<'_>> = self.tuned.of(split).into_iter().filter(|f| has(f)).collect();
        let set = if split == Split::Holdout { "holdout" } else { "stress set" };
        if chosen.iter().all(|f| f.compile.is_none()) {
            return Finding::not_tested(format!("no sample of {kind} functions in the {set}"));
        }
        let k = chosen.iter().filter(|f| f.passes()).count();
        let missing = match chosen.iter().filter(|f| f.compile.is_none()).count() {
            0 => String::new(),
            n => format!("; {n} without a sample count as failures"),
        };
        let detail = format!(
            "{k} of {} {kind} functions of the {set} have a suite that passes{missing}",
            chosen.len()
        );
        let measured = Rates::of(&chosen, |f| Ratio::hit(f.passes()), self.seed).measured(PERCENT, 100.0);
        Finding::at_least(measured, 80.0, detail).with([&self.inputs.tuned.mutation.evidence])
    }
}

pub(super) fn parses(s: &Subject<'_>) -> Finding {
    s.of_all(|f| f.parses(), 95.0, "have tests that parse")
}

pub(super) fn type_checks(s: &Subject<'_>) -> Finding {
    s.of_all(|f| f.type_checks(), 90.0, "have tests that type-check")
}

pub(super) fn links(s: &Subject<'_>) -> Finding {
    s.of_all(|f| f.links(), 90.0, "have tests that link")
}

pub(super) fn lints(s: &Subject<'_>) -> Finding {
    let evidence = [&s.inputs.tuned.compile.evidence];
    if s.inputs.tuned.compile.value.linter.is_none() {
        return Finding::not_tested("no linter was found when the tests were compiled").with(evidence);
    }
    let n = Rates::of(&s.tuned.holdout(), lint_clean, s.seed).n();
    let detail = if n == 0 {
        "nothing type-checks, so nothing was linted".to_owned()
    } else {
        format!("of {n} samples that type-check")
    };
    s.rate(lint_clean, 90.0, detail).with(evidence)
}

pub(super) fn passes(s: &Subject<'_>) -> Finding {
    let n = Rates::of(&s.tuned.holdout(), pass_of_compiled, s.seed).n();
    let k = s.tuned.holdout().iter().filter(|f| f.passes()).count();
    let detail = if n == 0 {
        "nothing type-checks, so nothing ran".to_owned()
    } else {
        format!("{k} of {n} suites that type-check pass; of all {} functions: {k}", s.tuned.holdout().len())
    };
    s.rate(pass_of_compiled, 85.0, detail).with([&s.inputs.tuned.mutation.evidence])
}

pub(super) fn kills(s: &Subject<'_>) -> Finding {
    let evidence = [&s.inputs.tuned.mutation.evidence];
    let holdout = s.tuned.holdout();
    let rates = Rates::of(&holdout, |f| f.mutants(), s.seed);
    let Some(measured) = rates.measured(PERCENT, 100.0) else {
        return Finding::not_tested("no suite passes, or its function has no mutant that compiles")
            .with(evidence);
    };
    let (killed, mutants) =
        rates.ratios.iter().fold((0.0, 0.0), |(k, n), r| (k + r.numerator, n + r.denominator));
    // Rows of the corpus have mutants that compile, or they would not be rows: only what ran can show otherwise.
    let with_mutants = holdout.iter().filter(|f| !f.passes() || f.mutants().denominator > 0.0).count();
    let killing = rates.ratios.iter().filter(|r| r.numerator > 0.0).count();
    let share = killing as f64 / with_mutants.max(1) as f64;
    let detail = format!(
        "{killed} of {mutants} mutants killed by {} suites that pass; {killing} of {with_mutants} functions with mutants \
         have a suite that kills at least one ({:.0} %){}",
        rates.n(),
        share * 100.0,
        in_source(&holdout)
    );
    Finding::new(measured.value >= 70.0 && share >= 0.90, Some(measured), detail).with(evidence)
}

/// How many of the mutants were run another way than the rest.
fn in_source(functions: &[Function<'_>]) -> String {
    let of = |f: &Function<'_>| f.run.and_then(|run| run.mutants).map_or(0, |mutants| mutants.in_source);
    match functions.iter().map(of).sum::<u32>() {
        0 => String::new(),
        n => format!(
            "; {n} of them do not compile under the switch and were written into the source, each for itself"
        ),
    }
}

pub(super) fn asserts_result(s: &Subject<'_>) -> Finding {
    s.of_tests(|facts| facts.n_assertions_on_result > 0, 95.0, "assert something about the result")
}

pub(super) fn tautologies(s: &Subject<'_>) -> Finding {
    let evidence = [&s.inputs.tuned.compile.evidence];
    let holdout = s.tuned.holdout();
    let asserting: Vec<_> =
        holdout.iter().filter_map(Function::facts).filter(|f| f.n_assertions > 0).collect();
    if asserting.is_empty() {
        return Finding::not_tested("no sample that parses holds an assertion").with(evidence);
    }
    let n_bad = asserting.iter().filter(|facts| facts.n_tautologies > 0).count();
    let measured = record::report::Measured {
        value: n_bad as f64,
        unit: "samples".to_owned(),
        interval95: None,
        n: Some(asserting.len() as u64),
    };
    let detail = format!("{n_bad} of {} samples with assertions hold a tautology", asserting.len());
    Finding::new(n_bad == 0, Some(measured), detail).with(evidence)
}

pub(super) fn branches(s: &Subject<'_>) -> Finding {
    let reference = |f: &Function<'_>| covered_by_reference(f, |c| (c.branches_covered_baseline, c.branches));
    coverage(s, branches_covered, reference, 5.0, "branches")
}

pub(super) fn lines(s: &Subject<'_>) -> Finding {
    let reference = |f: &Function<'_>| covered_by_reference(f, |c| (c.lines_covered_baseline, c.lines));
    coverage(s, lines_covered, reference, 10.0, "lines")
}

/// Measured from no test at all: the model is given none, and the reference tests are held back.
fn coverage(
    s: &Subject<'_>,
    of: fn(&Function<'_>) -> Ratio,
    reference: impl Fn(&Function<'_>) -> Ratio,
    least: f64,
    what: &str,
) -> Finding {
    let evidence = [&s.inputs.tuned.mutation.evidence];
    let holdout = s.tuned.holdout();
    let reference = Rates::of(&holdout, reference, s.seed);
    let Some(by_reference) = bootstrap::rate(&reference.ratios) else {
        return Finding::not_tested(format!("no suite that passes was measured for {what}")).with(evidence);
    };
    let measured = Rates::of(&holdout, of, s.seed).measured("pp", 100.0);
    let detail = format!(
        "mean share of the {what} of each function, 0 where its suite does not pass; baseline: no test. \
         Reference tests, which the model does not see, cover {:.1} % in the {} functions whose suite passes",
        by_reference * 100.0,
        reference.n()
    );
    Finding::at_least(measured, least, detail).with(evidence)
}

pub(super) fn edge_cases(s: &Subject<'_>) -> Finding {
    s.of_tests(|facts| facts.has_edge_case, 70.0, "reach the function with an edge case")
}

pub(super) fn generics(s: &Subject<'_>) -> Finding {
    s.of_kind(Split::Holdout, |f| f.metadata().has_generics, "generic")
}

pub(super) fn lifetimes(s: &Subject<'_>) -> Finding {
    s.of_kind(Split::Holdout, |f| f.metadata().has_lifetimes, "lifetime")
}

pub(super) fn asynchronous(s: &Subject<'_>) -> Finding {
    s.of_kind(Split::Holdout, |f| f.metadata().is_async, "async")
}

pub(super) fn unsafe_code(s: &Subject<'_>) -> Finding {
    s.of_kind(Split::Stress, |f| f.metadata().is_unsafe, "unsafe")
}

pub(super) fn macros(s: &Subject<'_>) -> Finding {
    s.of_kind(Split::Stress, |f| f.metadata().uses_macros, "macro-using")
}
