//! A row that is ready for suites: which of its mutants there are, and how each is run.

use std::collections::BTreeSet;

use harness::{Compilation, CrateKind, Harness};
use record::corpus::CorpusRow;
use record::mutation::Coverage;

use super::{ScoreError, SuiteScore};
use crate::edits::Counted;
use crate::prune::{Verdict as Compiled, prune};
use crate::side_by_side::compile_in_source;
use crate::{Dropped, Instrumented, MutantError, MutantSite};

/// A row with its mutants, those that do not compile taken out. Serves every suite for that row.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub instrumented: Instrumented,
    /// What does not compile under the switch.
    pub dropped: Dropped,
    /// Ids of the mutants that compile when each is written into the source. `None`: not asked, and what compiles under
    /// the switch is taken for them.
    pub in_source: Option<BTreeSet<u32>>,
    /// Compilations it took.
    pub n_compiles: u32,
    /// Why the function can't carry mutants (a `const fn` that is used in a constant, for example).
    pub not_instrumentable: Option<String>,
}

impl Prepared {
    /// Makes the row's mutants and compiles them, once, without tests. What compiles under the switch counts as a mutant.
    ///
    /// # Errors
    /// The row does not parse or does not compile, or the compiler can't be run.
    pub fn new(harness: &Harness, row: &CorpusRow) -> Result<Self, ScoreError> {
        let instrumented = Instrumented::of(row)?;
        let no_tests = Some("");
        let pruned = prune(&instrumented, no_tests, |program| check(harness, &program.source));
        match pruned {
            Ok(pruned) => {
                let (dropped, n_compiles) = (pruned.dropped, pruned.n_compiles);
                Ok(Self { instrumented, dropped, in_source: None, n_compiles, not_instrumentable: None })
            }
            Err(ScoreError::Mutant(MutantError::NotInstrumentable(why))) => {
                let plain = harness.check(&instrumented.plain(no_tests).source, CrateKind::Lib)?;
                if !plain.success {
                    return Err(ScoreError::Row(first_error(&plain)));
                }
                Ok(Self {
                    instrumented,
                    dropped: Dropped::default(),
                    in_source: None,
                    n_compiles: 1,
                    not_instrumentable: Some(why),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The same, and asks of every mutant whether it compiles when it is written into the source: that alone decides what
    /// counts. One that compiles there and not under the switch is run there; one that compiles under the switch alone
    /// is none.
    ///
    /// # Errors
    /// As [`Prepared::new`].
    pub fn judged(harness: &Harness, row: &CorpusRow) -> Result<Self, ScoreError> {
        let mut prepared = Self::new(harness, row)?;
        let all = prepared.instrumented.mutants.iter().map(|mutant| mutant.id).collect();
        let in_source = prepared.compile_in_source(harness, all)?;
        prepared.in_source = Some(in_source);
        Ok(prepared)
    }

    /// Those of some mutants that compile when each is written into the source.
    ///
    /// # Errors
    /// The compiler can't be run.
    pub fn compile_in_source(
        &mut self,
        harness: &Harness,
        mutants: Vec<u32>,
    ) -> Result<BTreeSet<u32>, ScoreError> {
        let mut n_compiles = 0;
        let found = compile_in_source(&self.instrumented, mutants, |source| {
            n_compiles += 1;
            check(harness, source)
        });
        self.n_compiles += n_compiles;
        found
    }

    /// Whether the switch has an arm for the mutant.
    pub fn has_switch(&self, id: u32) -> bool {
        self.not_instrumentable.is_none() && !self.dropped.mutants.contains(&id)
    }

    /// Whether the mutant compiles.
    pub fn is_viable(&self, id: u32) -> bool {
        self.in_source.as_ref().map_or_else(|| self.has_switch(id), |ids| ids.contains(&id))
    }

    /// Mutants that compile.
    pub fn viable(&self) -> impl Iterator<Item = &MutantSite> {
        self.instrumented.mutants.iter().filter(|mutant| self.is_viable(mutant.id))
    }

    /// Branches whose probes compile, by number.
    pub fn branches(&self) -> BTreeSet<u32> {
        self.counted(|counted| match counted {
            Counted::Branch(number) => Some(number),
            Counted::Line(_) => None,
        })
    }

    /// Lines whose probes compile, by number.
    pub fn lines(&self) -> BTreeSet<u32> {
        self.counted(|counted| match counted {
            Counted::Line(number) => Some(number),
            Counted::Branch(_) => None,
        })
    }

    fn counted(&self, which: impl Fn(Counted) -> Option<u32>) -> BTreeSet<u32> {
        if self.not_instrumentable.is_some() {
            return BTreeSet::new();
        }
        self.instrumented.counted(&self.dropped).into_iter().filter_map(which).collect()
    }

    /// Coverage of the function by a suite, beside that of the row's own tests.
    pub fn coverage(&self, score: &SuiteScore, baseline: Option<&SuiteScore>) -> Coverage {
        let (branches, lines) = (self.branches(), self.lines());
        let count = |set: &BTreeSet<u32>| u32::try_from(set.len()).unwrap_or(u32::MAX);
        let both =
            |all: &BTreeSet<u32>, some: &BTreeSet<u32>| count(&all.intersection(some).copied().collect());
        Coverage {
            branches: count(&branches),
            branches_covered: both(&branches, &score.branches),
            branches_covered_baseline: baseline.map_or(0, |base| both(&branches, &base.branches)),
            lines: count(&lines),
            lines_covered: both(&lines, &score.lines),
            lines_covered_baseline: baseline.map_or(0, |base| both(&lines, &base.lines)),
        }
    }
}

fn check(harness: &Harness, source: &str) -> Result<Compiled, ScoreError> {
    Ok(compiled(&harness.check(source, CrateKind::Lib)?))
}

fn compiled(compilation: &Compilation) -> Compiled {
    let errors = compilation.diagnostics.iter().filter(|d| d.level == "error");
    let spans = errors.flat_map(|error| error.spans.iter().filter(|span| span.is_primary));
    Compiled {
        success: compilation.success,
        errors: spans.map(|span| span.byte_start..span.byte_end).collect(),
        message: Some(first_error(compilation)),
    }
}

pub(super) fn first_error(compilation: &Compilation) -> String {
    let error = compilation.diagnostics.iter().find(|d| d.level == "error");
    let stopped = || compilation.stopped.clone().unwrap_or_else(|| "no error was given".to_owned());
    error.map_or_else(stopped, |error| error.message.clone())
}
