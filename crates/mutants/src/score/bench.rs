//! One passing suite on one mutant after the other.

use std::collections::BTreeMap;

use harness::{Harness, RunOptions, TestBinary, TestRun};
use record::mutation::{MutantStatus, Verdict};

use super::{MutantOutcome, ScoreError, ScoreOptions, env, failed};
use crate::Reach;

/// A suite that passes: what there is of it, which tests count, and what each reaches.
#[derive(Debug, Clone, Copy)]
pub struct Suite<'b> {
    pub binary: &'b TestBinary,
    pub tests: &'b [String],
    pub reach: &'b BTreeMap<String, Reach>,
}

/// Runs a suite on mutants under the switch.
#[derive(Debug)]
pub struct Bench<'b> {
    harness: &'b Harness,
    suite: Suite<'b>,
    options: &'b ScoreOptions,
    decoy: u32,
    /// Tests that were to run -> tests that do, or the one that tells a mutant from the function where there is none.
    tried: BTreeMap<Vec<String>, Result<Vec<String>, String>>,
    pub n_processes: u32,
}

impl<'b> Bench<'b> {
    /// `decoy` is that of the instrumented function.
    pub fn new(harness: &'b Harness, suite: Suite<'b>, options: &'b ScoreOptions, decoy: u32) -> Self {
        Self { harness, suite, options, decoy, tried: BTreeMap::new(), n_processes: 0 }
    }

    /// Runs the tests that reach the mutant's site. An error is the name of a test that fails on the unchanged function
    /// once it is run as on a mutant.
    ///
    /// # Errors
    /// A program can't be started.
    pub fn run_mutant(
        &mut self,
        mutant: u32,
        site: u32,
    ) -> Result<Result<MutantOutcome, String>, ScoreError> {
        let outcome = |status, killed_by| MutantOutcome { status, killed_by, in_source: false };
        let only = self.reaching(site);
        if only.is_empty() {
            return Ok(Ok(outcome(MutantStatus::NoCoverage, None)));
        }
        let only = match self.dependable(only)? {
            Ok(only) => only,
            Err(test) => return Ok(Err(test)),
        };
        Ok(Ok(match self.first_failure(mutant, &only)? {
            None => outcome(MutantStatus::Survived, None),
            Some((name, Verdict::Timeout)) => outcome(MutantStatus::Timeout, Some(name)),
            Some((name, _)) => outcome(MutantStatus::Killed, Some(name)),
        }))
    }

    /// All tests that fail on the mutant, where [`Bench::run_mutant`] stops at the first one.
    ///
    /// # Errors
    /// As there.
    pub fn failures(&mut self, mutant: u32, site: u32) -> Result<Result<Vec<String>, String>, ScoreError> {
        let only = match self.dependable(self.reaching(site))? {
            Ok(only) => only,
            Err(test) => return Ok(Err(test)),
        };
        let run = self.run(mutant, &only, false)?;
        let has_failed = |name: &String| failed(std::slice::from_ref(name), &run).is_some();
        Ok(Ok(only.into_iter().filter(has_failed).collect()))
    }

    fn reaching(&self, site: u32) -> Vec<String> {
        let reaches =
            |name: &&String| self.suite.reach.get(*name).is_some_and(|seen| seen.sites.contains(&site));
        self.suite.tests.iter().filter(reaches).cloned().collect()
    }

    /// Makes sure that what these tests say of a mutant is about the mutant: run in the same way with the switch on and
    /// the function as it is, they must pass. Tests that need another one before them are run with all the others.
    fn dependable(&mut self, only: Vec<String>) -> Result<Result<Vec<String>, String>, ScoreError> {
        if let Some(known) = self.tried.get(&only) {
            return Ok(known.clone());
        }
        let all = self.suite.tests.to_vec();
        let found = match self.first_failure(self.decoy, &only)? {
            None => Ok(only.clone()),
            Some((name, _)) if all == only => Err(name),
            Some(_) => match self.first_failure(self.decoy, &all)? {
                None => Ok(all),
                Some((name, _)) => Err(name),
            },
        };
        self.tried.insert(only, found.clone());
        Ok(found)
    }

    fn first_failure(
        &mut self,
        mutant: u32,
        only: &[String],
    ) -> Result<Option<(String, Verdict)>, ScoreError> {
        Ok(failed(only, &self.run(mutant, only, true)?))
    }

    fn run(&mut self, mutant: u32, only: &[String], fail_fast: bool) -> Result<TestRun, ScoreError> {
        let used = only.iter().filter_map(|name| self.suite.reach.get(name)).map(|seen| seen.ticks).max();
        let fuel = used.unwrap_or(0).saturating_mul(self.options.fuel_factor);
        let fuel = fuel.saturating_add(self.options.fuel_floor);
        let mut env = env(mutant, Some(fuel));
        // Whether a property fails is asked, not with which smallest input: looking for that costs more than all else.
        env.insert("PROPTEST_MAX_SHRINK_ITERS".to_owned(), "0".to_owned());
        let options = RunOptions { env, only: Some(only.to_vec()), wall: self.options.wall, fail_fast };
        self.n_processes += 1;
        Ok(self.harness.run(self.suite.binary, &options)?)
    }
}
