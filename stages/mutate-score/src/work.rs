//! Runs rows and samples, many at once; results keep the order of the inputs.

use std::collections::BTreeMap;

use harness::{Harness, parallel_map};
use mutants::score::{Prepared, ScoreError, ScoreOptions, SuiteScore, score_suite};
use record::compile::CompileResult;
use record::corpus::CorpusRow;
use record::generation::Sample;
use record::mutation::{Controls, SampleResult};
use stage_kit::digest::sha256_hex;
use stage_kit::{Context, Progress, Result};

use crate::controls::{self, RowControls};
use crate::failed;

/// What it takes to run suites.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work<'w> {
    pub harness: &'w Harness,
    pub context: &'w Context,
    pub options: &'w ScoreOptions,
    pub control_rows: u32,
}

/// A row, ready for suites.
#[derive(Debug)]
pub(crate) struct ReadyRow<'r> {
    pub row: &'r CorpusRow,
    /// An error when the row can't be compiled without its tests.
    pub prepared: Result<Prepared, String>,
    /// The row's own tests.
    pub own: Option<SuiteScore>,
    pub controls: RowControls,
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Scored<'r> {
    /// By task id.
    pub rows: BTreeMap<&'r str, ReadyRow<'r>>,
    pub samples: Vec<ScoredSample<'r>>,
    pub n_suites: u64,
    pub n_processes: u64,
}

#[derive(Debug)]
pub(crate) struct ScoredSample<'r> {
    pub sample: &'r Sample,
    pub compile: &'r CompileResult,
    /// `None`: the compiler refused it.
    pub score: Option<SuiteScore>,
}

/// Test code that may be run: nothing refused, everything linked.
pub(crate) fn is_compiled(compile: &CompileResult) -> bool {
    compile.refused.is_none() && compile.links == Some(true)
}

impl<'w> Work<'w> {
    pub(crate) fn run<'r>(
        &self,
        rows: &'r BTreeMap<String, CorpusRow>,
        samples: &'r [Sample],
        compiled: &'r [CompileResult],
    ) -> Result<Scored<'r>> {
        let mut distinct: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (i, compile) in compiled.iter().enumerate().filter(|(_, compile)| is_compiled(compile)) {
            distinct.entry((&compile.task_id, &compile.tests)).or_default().push(i);
        }
        let texts: Vec<(&str, &str)> = distinct.keys().copied().collect();
        let progress = self.context.progress("suites", Some((rows.len() + texts.len()) as u64));
        let rows = self.rows(rows, &progress)?;
        let threads = self.threads();
        let scores = parallel_map(threads, &texts, |_, (task, tests)| {
            let prepared = rows.get(task).and_then(|row| row.prepared.as_ref().ok());
            let score = match prepared {
                Some(prepared) if !self.context.is_cancelled() => {
                    score_suite(self.harness, prepared, Some(tests), self.options).map(Some)
                }
                _ => Ok(None),
            };
            progress.inc(1);
            score
        });
        self.context.check_cancelled()?;
        let mut by_sample: BTreeMap<usize, SuiteScore> = BTreeMap::new();
        let mut n_processes = rows.values().map(|row| u64::from(row.n_processes())).sum();
        for (sample_idxs, score) in distinct.values().zip(scores) {
            let Some(score) = score.map_err(failed)? else { continue };
            n_processes += u64::from(score.n_processes);
            by_sample.extend(sample_idxs.iter().map(|i| (*i, score.clone())));
        }
        let n_suites = rows.values().map(ReadyRow::n_suites).sum::<u64>() + texts.len() as u64;
        let samples = samples.iter().zip(compiled).enumerate();
        let samples = samples.map(|(i, (sample, compile))| ScoredSample {
            sample,
            compile,
            score: by_sample.remove(&i),
        });
        let samples = samples.collect();
        self.warn_of_disagreement(&samples);
        Ok(Scored { rows, samples, n_suites, n_processes })
    }

    fn threads(&self) -> usize {
        usize::try_from(self.context.resources().cpus).unwrap_or(1)
    }

    fn rows<'r>(
        &self,
        rows: &'r BTreeMap<String, CorpusRow>,
        progress: &Progress<'_>,
    ) -> Result<BTreeMap<&'r str, ReadyRow<'r>>> {
        let all: Vec<&CorpusRow> = rows.values().collect();
        let n_controlled = if self.control_rows == 0 { all.len() } else { self.control_rows as usize };
        let ready = parallel_map(self.threads(), &all, |i, row| {
            let stranger = controls::stranger(&all, i).filter(|_| i < n_controlled);
            let ready = self.row(row, i < n_controlled, stranger);
            progress.inc(1);
            ready
        });
        self.context.check_cancelled()?;
        let mut by_id = BTreeMap::new();
        for ready in ready {
            let ready = ready.map_err(failed)?;
            self.warn_of_row(&ready);
            by_id.insert(ready.row.id.as_str(), ready);
        }
        Ok(by_id)
    }

    fn row<'r>(
        &self,
        row: &'r CorpusRow,
        controlled: bool,
        stranger: Option<&CorpusRow>,
    ) -> Result<ReadyRow<'r>, ScoreError> {
        let mut ready = ReadyRow {
            row,
            prepared: Err("not run".to_owned()),
            own: None,
            controls: RowControls::default(),
        };
        if self.context.is_cancelled() {
            return Ok(ready);
        }
        let prepared = match Prepared::judged(self.harness, row) {
            Ok(prepared) => prepared,
            Err(error @ (ScoreError::Row(_) | ScoreError::Mutant(_))) => {
                ready.prepared = Err(error.to_string());
                // A row of the corpus compiles, or it would not be one.
                ready.controls.planted_bug = controlled.then_some(false);
                return Ok(ready);
            }
            Err(error) => return Err(error),
        };
        let own = score_suite(self.harness, &prepared, None, self.options)?;
        if controlled {
            ready.controls = controls::run(self, &prepared, &own, stranger)?;
        }
        ready.own = Some(own);
        ready.prepared = Ok(prepared);
        Ok(ready)
    }

    fn warn_of_row(&self, ready: &ReadyRow<'_>) {
        let id = &ready.row.id;
        match (&ready.prepared, &ready.own) {
            (Err(why), _) => self.context.warn(&format!("row `{id}`: {why}; its samples can't be run")),
            (Ok(prepared), own) => {
                if let Some(why) = &prepared.not_instrumentable {
                    self.context.warn(&format!("row `{id}` can't carry its mutants: {why}; some are written into the source, each for itself"));
                }
                if let Some(own) = own.as_ref().filter(|own| !own.passed && !own.tests.is_empty()) {
                    let name = own.tests.iter().find(|t| t.verdict != record::mutation::Verdict::Passed);
                    let name = name.map(|test| test.name.as_str()).unwrap_or_default();
                    self.context.warn(&format!("row `{id}`: its own test `{name}` does not pass here"));
                }
            }
        }
    }

    /// Code that compile-check linked and that does not build here would be a fault of one of the two.
    fn warn_of_disagreement(&self, samples: &Vec<ScoredSample<'_>>) {
        for scored in samples {
            if let Some(error) =
                scored.score.as_ref().filter(|score| !score.compiled).and_then(|s| s.error.as_ref())
            {
                let (task, idx) = (&scored.sample.task_id, scored.sample.sample_idx);
                self.context.warn(&format!(
                    "sample {idx} of `{task}` linked before and does not build for a run: {error}"
                ));
            }
        }
    }
}

impl ReadyRow<'_> {
    fn n_processes(&self) -> u32 {
        self.own.as_ref().map_or(0, |own| own.n_processes) + self.controls.n_processes
    }

    fn n_suites(&self) -> u64 {
        u64::from(self.own.is_some()) + u64::from(self.controls.n_suites)
    }
}

impl Scored<'_> {
    /// Per sample, in the order of samples.jsonl.
    pub(crate) fn results(&self) -> Vec<SampleResult> {
        self.samples.iter().map(|scored| self.result(scored)).collect()
    }

    fn result(&self, scored: &ScoredSample<'_>) -> SampleResult {
        let row = self.rows.get(scored.sample.task_id.as_str());
        let score = scored.score.as_ref();
        let passed = score.is_some_and(|score| score.passed);
        let prepared = row.and_then(|row| row.prepared.as_ref().ok());
        let coverage = match (prepared, score) {
            (Some(prepared), Some(score)) if passed && prepared.not_instrumentable.is_none() => {
                Some(prepared.coverage(score, row.and_then(|row| row.own.as_ref())))
            }
            _ => None,
        };
        SampleResult {
            task_id: scored.sample.task_id.clone(),
            sample_idx: scored.sample.sample_idx,
            round: scored.sample.round,
            tests_sha256: sha256_hex(&scored.compile.tests),
            stratum: row.and_then(|row| row.row.metadata.stratum.clone()),
            compiled: is_compiled(scored.compile),
            passed,
            runs: score.map_or(0, |score| score.n_runs),
            tests: score.map(|score| score.tests.clone()).unwrap_or_default(),
            mutants: score.and_then(SuiteScore::counts),
            coverage,
        }
    }

    pub(crate) fn controls(&self) -> Controls {
        controls::sum(self.rows.values().map(|row| &row.controls))
    }

    /// The sample that decides for each function: the first one of the first round.
    pub(crate) fn raw(&self) -> BTreeMap<&str, &ScoredSample<'_>> {
        let mut raw: BTreeMap<&str, &ScoredSample<'_>> = BTreeMap::new();
        for scored in &self.samples {
            let rank = |s: &ScoredSample<'_>| (s.sample.round, s.sample.sample_idx);
            let first = raw.entry(scored.sample.task_id.as_str()).or_insert(scored);
            if rank(scored) < rank(first) {
                *first = scored;
            }
        }
        raw
    }
}
