//! What is measured of a set of functions: rates with their 95 % intervals.

use std::collections::BTreeMap;

use record::compile::Similarity;
use record::mutation::{Coverage, SelectedSuite};
use record::report::Measured;
use scores::bootstrap::{self, Ratio, Settings};
use scores::interval::{Z95, wilson};

use crate::cohort::Function;

/// A rate over functions, comparable between models.
pub(crate) struct Measure {
    /// Its name in `metrics.json`.
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    pub(crate) of: fn(&Function<'_>) -> Ratio,
    /// Worth nothing where a control does not hold.
    pub(crate) rests_on_runs: bool,
}

const fn measure(key: &'static str, label: &'static str, of: fn(&Function<'_>) -> Ratio) -> Measure {
    Measure { key, label, of, rests_on_runs: false }
}

const fn run_measure(key: &'static str, label: &'static str, of: fn(&Function<'_>) -> Ratio) -> Measure {
    Measure { key, label, of, rests_on_runs: true }
}

/// The measures that tuned and base model are compared by.
pub(crate) const MEASURES: [Measure; 12] = [
    measure("parse_rate", "Parses", |f| Ratio::hit(f.parses())),
    measure("compile_rate", "Type-checks", |f| Ratio::hit(f.type_checks())),
    measure("lint_clean_rate", "No lints, of those that type-check", lint_clean),
    measure("link_rate", "Links", |f| Ratio::hit(f.links())),
    run_measure("pass_rate", "Passes, of all functions", |f| Ratio::hit(f.passes())),
    run_measure("pass_rate_of_compiled", "Passes, of those that type-check", pass_of_compiled),
    run_measure("mutation_score", "Mutants killed by passing tests", |f| f.mutants()),
    run_measure("branch_coverage", "Branches covered, mean of all functions", branches_covered),
    run_measure("line_coverage", "Lines covered, mean of all functions", lines_covered),
    measure("bleu4", "BLEU-4 to the reference tests", |f| similarity(f, |s| s.bleu4)),
    measure("codebleu", "CodeBLEU (strict)", |f| similarity(f, |s| s.codebleu)),
    measure("codebleu_compat", "CodeBLEU (as Python codebleu 0.7.0)", |f| {
        similarity(f, |s| s.codebleu_compat)
    }),
];

pub(crate) fn lint_clean(f: &Function<'_>) -> Ratio {
    let clean = f.compile.filter(|_| f.type_checks()).and_then(|c| c.lint_clean);
    clean.map_or(Ratio::default(), Ratio::hit)
}

pub(crate) fn pass_of_compiled(f: &Function<'_>) -> Ratio {
    if f.type_checks() { Ratio::hit(f.passes()) } else { Ratio::default() }
}

/// Share of the function's branches that its passing tests cover; 0 when they do not pass or there are none. Nothing for
/// a function without branches, and for one that can't be measured.
pub(crate) fn branches_covered(f: &Function<'_>) -> Ratio {
    if !f.passes() && f.metadata().complexity <= 1 {
        return Ratio::default();
    }
    covered(f, |c| (c.branches_covered, c.branches))
}

/// The same for its lines.
pub(crate) fn lines_covered(f: &Function<'_>) -> Ratio {
    covered(f, |c| (c.lines_covered, c.lines))
}

fn covered(f: &Function<'_>, of: impl Fn(&Coverage) -> (u32, u32)) -> Ratio {
    if !f.passes() {
        return Ratio::hit(false);
    }
    f.run.and_then(|run| run.coverage.as_ref()).map_or(Ratio::default(), |c| share(of(c)))
}

/// What the function's reference tests cover of it, of the functions whose generated tests pass.
pub(crate) fn covered_by_reference(f: &Function<'_>, of: impl Fn(&Coverage) -> (u32, u32)) -> Ratio {
    let coverage = f.run.filter(|_| f.passes()).and_then(|run| run.coverage.as_ref());
    coverage.map_or(Ratio::default(), |c| share(of(c)))
}

fn share((covered, all): (u32, u32)) -> Ratio {
    if all == 0 { Ratio::default() } else { Ratio::new(f64::from(covered) / f64::from(all), 1.0) }
}

fn similarity(f: &Function<'_>, of: impl Fn(&Similarity) -> f64) -> Ratio {
    let similarity = f.compile.and_then(|c| c.similarity.as_ref());
    similarity.map_or(Ratio::default(), |s| Ratio::new(of(s), 1.0))
}

/// Of the assured suite: which functions have one, and the mutants that it kills. In the order of the functions.
#[derive(Debug)]
pub(crate) struct Assured {
    /// Functions with an accepted suite, of all.
    pub(crate) yields: Rates,
    /// Mutants killed, of the functions that have one.
    pub(crate) mutants: Rates,
}

impl Assured {
    pub(crate) fn of(functions: &[Function<'_>], suites: &[SelectedSuite], seed: u64) -> Self {
        let suites: BTreeMap<&str, &SelectedSuite> = suites.iter().map(|s| (&*s.task_id, s)).collect();
        let suite = |f: &Function<'_>| suites.get(&*f.row.id).filter(|s| !s.samples.is_empty()).copied();
        let killed = |s: &SelectedSuite| Ratio::new(f64::from(s.mutants_killed), f64::from(s.mutants_viable));
        Self {
            yields: Rates::of(functions, |f| Ratio::hit(suite(f).is_some()), seed),
            mutants: Rates::of(functions, |f| suite(f).map_or(Ratio::default(), killed), seed),
        }
    }
}

/// A list of ratios and how to draw from it.
#[derive(Debug, Clone)]
pub(crate) struct Rates {
    pub(crate) ratios: Vec<Ratio>,
    settings: Settings,
}

impl Rates {
    pub(crate) fn of(functions: &[Function<'_>], of: impl Fn(&Function<'_>) -> Ratio, seed: u64) -> Self {
        Self { ratios: functions.iter().map(of).collect(), settings: Settings::new(seed) }
    }

    /// One value per function, all of equal weight.
    pub(crate) fn of_values(values: &[f64], seed: u64) -> Self {
        let ratios = values.iter().map(|&v| Ratio::new(v, 1.0)).collect();
        Self { ratios, settings: Settings::new(seed) }
    }

    /// Functions that have a denominator.
    pub(crate) fn n(&self) -> u64 {
        self.ratios.iter().filter(|r| r.denominator > 0.0).count() as u64
    }

    /// The pooled rate, times `scale`. Its interval is Wilson's where every function is one trial, else the bootstrap's
    /// over functions; none for a single function.
    pub(crate) fn measured(&self, unit: &str, scale: f64) -> Option<Measured> {
        let rate = bootstrap::rate(&self.ratios)?;
        let n = self.n();
        let is_trial = |r: &Ratio| {
            r.denominator == 0.0 || (r.denominator == 1.0 && (r.numerator == 0.0 || r.numerator == 1.0))
        };
        let interval = if self.ratios.iter().all(is_trial) {
            let hits = self.ratios.iter().map(|r| r.numerator).sum::<f64>();
            wilson(hits as u64, n, Z95)
        } else if n > 1 {
            bootstrap::rate_interval(&self.ratios, self.settings)
        } else {
            None
        };
        let interval95 = interval.map(|i| [i.low * scale, i.high * scale]);
        Some(Measured { value: rate * scale, unit: unit.to_owned(), interval95, n: Some(n) })
    }

    /// This rate minus the other one, functions drawn in pairs.
    pub(crate) fn minus(&self, base: &Self, unit: &str) -> Option<Measured> {
        let (value, i) = bootstrap::paired_difference(&self.ratios, &base.ratios, self.settings)?;
        let n = self.ratios.iter().zip(&base.ratios);
        let n = n.filter(|(t, b)| t.denominator > 0.0 || b.denominator > 0.0).count() as u64;
        Some(Measured { value, unit: unit.to_owned(), interval95: Some([i.low, i.high]), n: Some(n) })
    }
}
