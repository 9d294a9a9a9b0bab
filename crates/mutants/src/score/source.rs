//! A suite on mutants that are written into the source, one program for each.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Harness, RunOptions, TestBinary, TestRun};
use record::mutation::{MutantStatus, Verdict};

use super::{MutantOutcome, Prepared, ScoreError, ScoreOptions, SuiteScore, build_source, env, failed};

/// Most mutants that are run this way for one suite: each is a program to compile. The others are left out and said to be.
pub(super) const MOST_IN_SOURCE: usize = 16;

/// A suite that passes, on mutants that the switch has no arm for.
#[derive(Debug)]
pub(super) struct SourceBench<'b> {
    pub(super) harness: &'b Harness,
    pub(super) prepared: &'b Prepared,
    pub(super) tests: Option<&'b str>,
    /// With the deadline of a mutant.
    pub(super) options: &'b ScoreOptions,
    /// Ticks that the hungriest test used on the function as it is.
    pub(super) ticks: u64,
    /// What came of the function as it is, run in this way: the test that fails there.
    pub(super) unchanged: Option<Option<String>>,
    pub(super) n_run: usize,
    pub(super) n_processes: u32,
}

impl SourceBench<'_> {
    /// An error is the name of a test that fails on the unchanged function once it is run in this way.
    pub(super) fn run_mutant(&mut self, id: u32) -> Result<Result<MutantOutcome, String>, ScoreError> {
        let outcome = |status, killed_by| MutantOutcome { status, killed_by, in_source: true };
        if self.n_run == MOST_IN_SOURCE {
            return Ok(Ok(outcome(MutantStatus::Ignored, None)));
        }
        self.n_run += 1;
        if self.unchanged.is_none() {
            let on_unchanged = self.first_failure(0)?.flatten();
            self.unchanged = Some(on_unchanged.map(|(name, _)| name));
        }
        if let Some(Some(test)) = &self.unchanged {
            return Ok(Err(test.clone()));
        }
        Ok(Ok(match self.first_failure(id)? {
            None => outcome(MutantStatus::CompileError, None),
            Some(None) => outcome(MutantStatus::Survived, None),
            Some(Some((name, Verdict::Timeout))) => outcome(MutantStatus::Timeout, Some(name)),
            Some(Some((name, _))) => outcome(MutantStatus::Killed, Some(name)),
        }))
    }

    /// `None`: the program does not compile.
    fn first_failure(&mut self, id: u32) -> Result<Option<Option<(String, Verdict)>>, ScoreError> {
        let Some(binary) = self.build(id)? else { return Ok(None) };
        let fuel = self.ticks.saturating_mul(self.options.fuel_factor);
        let options = RunOptions {
            env: env(0, Some(fuel.saturating_add(self.options.fuel_floor))),
            only: None,
            wall: self.options.wall,
            fail_fast: true,
        };
        let run = self.harness.run(&binary, &options)?;
        self.n_processes += 1;
        Ok(Some(failed(binary.tests(), &run)))
    }

    /// With fuel where that compiles, else with nothing but the deadline.
    fn build(&self, id: u32) -> Result<Option<TestBinary>, ScoreError> {
        let mut ignored = SuiteScore::default();
        let instrumented = &self.prepared.instrumented;
        if let Some(program) = instrumented.planted_with_fuel(id, self.tests)
            && let Some(binary) =
                build_source(self.harness, &program.source, Some(&program.hook), &mut ignored)?
        {
            return Ok(Some(binary));
        }
        let source = match id {
            0 => Some(instrumented.plain(self.tests).source),
            id => instrumented.planted(id, self.tests),
        };
        let Some(source) = source else { return Ok(None) };
        build_source(self.harness, &source, None, &mut ignored)
    }
}

/// Writes killed mutants into the source, one after the other, until one compiles, and runs the suite on it.
/// `Some(true)` when the suite fails on it, as it must; `None` when no case could be made.
///
/// # Errors
/// The compiler or a program can't be started.
pub fn planted_bug_is_found(
    harness: &Harness,
    prepared: &Prepared,
    tests: Option<&str>,
    score: &SuiteScore,
    options: &ScoreOptions,
) -> Result<Option<bool>, ScoreError> {
    const TRIES: usize = 3;
    let is_killed = |id: &&u32| {
        let outcome = score.mutants.get((**id as usize).wrapping_sub(1));
        outcome.is_some_and(|outcome| outcome.status == MutantStatus::Killed)
    };
    for id in score.killed().iter().filter(is_killed).take(TRIES) {
        if let Some(run) = run_planted(harness, prepared, *id, tests, options.wall)? {
            return Ok(Some(run.verdicts.values().any(|test| test.verdict != Verdict::Passed)));
        }
    }
    Ok(None)
}

/// Runs a suite on the function with one mutant written into its source: no switch, no probes, no fuel.
/// `None` when that does not compile.
///
/// # Errors
/// The compiler or a program can't be started.
pub fn run_planted(
    harness: &Harness,
    prepared: &Prepared,
    mutant: u32,
    tests: Option<&str>,
    wall: Duration,
) -> Result<Option<TestRun>, ScoreError> {
    let Some(source) = prepared.instrumented.planted(mutant, tests) else { return Ok(None) };
    let Some(binary) = build_source(harness, &source, None, &mut SuiteScore::default())? else {
        return Ok(None);
    };
    let options = RunOptions { env: BTreeMap::new(), only: None, wall, fail_fast: true };
    Ok(Some(harness.run(&binary, &options)?))
}
