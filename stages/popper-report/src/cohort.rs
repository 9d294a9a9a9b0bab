//! The functions that are judged, each with its greedy first sample.

use std::collections::BTreeMap;

use record::compile::{CompileResult, TestFacts};
use record::corpus::{CorpusRow, RowMetadata};
use record::generation::{FinishReason, Sample};
use record::mutation::SampleResult;
use scores::bootstrap::Ratio;

use crate::checks::{RestsOn, distrust};
use crate::inputs::{Corpus, Evaluation};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// The functions that gates and most checks look at.
    Holdout,
    /// Unsafe and macro-heavy functions, for g4 and g5.
    Stress,
}

/// A function of the corpus and what became of its first sample (index 0, round 0).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function<'i> {
    pub(crate) row: &'i CorpusRow,
    pub(crate) split: Split,
    /// Both `None` when nothing was generated for it: that counts as a failure.
    pub(crate) compile: Option<&'i CompileResult>,
    /// `None` too when what came of running tests does not count.
    pub(crate) run: Option<&'i SampleResult>,
    /// `None` too when the samples were not given.
    pub(crate) sample: Option<&'i Sample>,
}

impl<'i> Function<'i> {
    pub(crate) fn metadata(&self) -> &'i RowMetadata {
        &self.row.metadata
    }

    pub(crate) fn facts(&self) -> Option<&'i TestFacts> {
        self.compile.and_then(|c| c.facts.as_ref())
    }

    /// Facts of a sample that parses and holds at least one test.
    pub(crate) fn facts_of_tests(&self) -> Option<&'i TestFacts> {
        self.facts().filter(|facts| !facts.test_names.is_empty())
    }

    /// A sample for which the model ran: its prompt was not too long.
    pub(crate) fn is_generated(&self) -> bool {
        self.sample.is_some_and(|s| s.finish_reason != FinishReason::PromptTooLong)
    }

    pub(crate) fn parses(&self) -> bool {
        self.compile.is_some_and(|c| c.parses)
    }

    pub(crate) fn type_checks(&self) -> bool {
        self.compile.is_some_and(|c| c.type_checks == Some(true))
    }

    pub(crate) fn links(&self) -> bool {
        self.compile.is_some_and(|c| c.links == Some(true))
    }

    pub(crate) fn passes(&self) -> bool {
        self.run.is_some_and(|run| run.compiled && run.passed)
    }

    /// Mutants killed (timeouts too) of those that compile and are not ignored. Nothing when the tests do not pass.
    pub(crate) fn mutants(&self) -> Ratio {
        self.run.and_then(|run| run.mutants.as_ref()).map_or(Ratio::default(), |m| {
            let killed = f64::from(m.killed) + f64::from(m.timeout);
            Ratio::new(killed, killed + f64::from(m.survived) + f64::from(m.no_coverage))
        })
    }
}

/// All functions, holdout first, in the corpus's order.
#[derive(Debug)]
pub(crate) struct Cohort<'i> {
    functions: Vec<Function<'i>>,
    /// Whether what came of running tests counts; else no function has a run.
    pub(crate) counts_runs: bool,
}

impl<'i> Cohort<'i> {
    pub(crate) fn new(corpus: &'i Corpus, evaluation: &'i Evaluation) -> Self {
        let counts_runs = distrust(evaluation, RestsOn::Running).is_none();
        let is_first = |idx: u32, round: u32| idx == 0 && round == 0;
        let compile: BTreeMap<&str, &CompileResult> = evaluation
            .compile
            .value
            .samples
            .iter()
            .filter(|s| is_first(s.sample_idx, s.round))
            .map(|s| (&*s.task_id, s))
            .collect();
        let run: BTreeMap<&str, &SampleResult> = evaluation
            .mutation
            .value
            .samples
            .iter()
            .filter(|s| counts_runs && is_first(s.sample_idx, s.round))
            .map(|s| (&*s.task_id, s))
            .collect();
        let samples = evaluation.samples.iter().filter(|s| is_first(s.sample_idx, s.round));
        let sample: BTreeMap<&str, &Sample> = samples.map(|s| (&*s.task_id, s)).collect();
        let function = |row: &'i CorpusRow, split| Function {
            row,
            split,
            compile: compile.get(&*row.id).copied(),
            run: run.get(&*row.id).copied(),
            sample: sample.get(&*row.id).copied(),
        };
        let holdout = corpus.holdout.iter().map(|row| function(row, Split::Holdout));
        let stress = corpus.stress.iter().map(|row| function(row, Split::Stress));
        Self { functions: holdout.chain(stress).collect(), counts_runs }
    }

    pub(crate) fn of(&self, split: Split) -> Vec<Function<'i>> {
        self.functions.iter().filter(|f| f.split == split).copied().collect()
    }

    pub(crate) fn holdout(&self) -> Vec<Function<'i>> {
        self.of(Split::Holdout)
    }

    /// Functions of the split for which nothing was generated.
    pub(crate) fn n_without_sample(&self, split: Split) -> usize {
        self.of(split).iter().filter(|f| f.compile.is_none()).count()
    }

    /// Strata of the holdout in order of appearance of their names, sorted.
    pub(crate) fn strata(&self) -> BTreeMap<String, Vec<Function<'i>>> {
        let mut strata: BTreeMap<String, Vec<Function<'i>>> = BTreeMap::new();
        for function in &self.functions {
            let name = function.metadata().stratum.clone().unwrap_or_else(|| "none".to_owned());
            strata.entry(name).or_default().push(*function);
        }
        strata
    }
}
