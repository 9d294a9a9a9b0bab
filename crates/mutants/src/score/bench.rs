//! One passing suite on one mutant after the other.

use std::collections::BTreeMap;

use harness::{Harness, RunOptions, TestBinary};
use record::mutation::{MutantStatus, Verdict};

use super::{MutantOutcome, ScoreError, ScoreOptions, SuiteScore, env};
use crate::{MutantSite, Reach};

/// A suite that passes, with what it takes to run it on mutants.
pub(super) struct Bench<'b> {
    harness: &'b Harness,
    binary: &'b TestBinary,
    reach: &'b BTreeMap<String, Reach>,
    options: &'b ScoreOptions,
    decoy: u32,
    /// Tests that were to run -> tests that do, or the one that tells a mutant from the function where there is none.
    tried: BTreeMap<Vec<String>, Result<Vec<String>, String>>,
}

impl<'b> Bench<'b> {
    pub(super) fn new(
        harness: &'b Harness,
        binary: &'b TestBinary,
        reach: &'b BTreeMap<String, Reach>,
        options: &'b ScoreOptions,
        decoy: u32,
    ) -> Self {
        Self { harness, binary, reach, options, decoy, tried: BTreeMap::new() }
    }

    /// An error is the name of a test that fails on the unchanged function once it is run as on a mutant.
    pub(super) fn run_mutant(
        &mut self,
        mutant: &MutantSite,
        score: &mut SuiteScore,
    ) -> Result<Result<MutantOutcome, String>, ScoreError> {
        let reaches =
            |name: &&String| self.reach.get(*name).is_some_and(|seen| seen.sites.contains(&mutant.site));
        let only: Vec<String> = self.binary.tests().iter().filter(reaches).cloned().collect();
        if only.is_empty() {
            return Ok(Ok(MutantOutcome { status: MutantStatus::NoCoverage, killed_by: None }));
        }
        let only = match self.dependable(only, score)? {
            Ok(only) => only,
            Err(test) => return Ok(Err(test)),
        };
        Ok(Ok(match self.first_failure(mutant.id, &only, score)? {
            None => MutantOutcome { status: MutantStatus::Survived, killed_by: None },
            Some((name, Verdict::Timeout)) => {
                MutantOutcome { status: MutantStatus::Timeout, killed_by: Some(name) }
            }
            Some((name, _)) => MutantOutcome { status: MutantStatus::Killed, killed_by: Some(name) },
        }))
    }

    /// Makes sure that what these tests say of a mutant is about the mutant: run in the same way with the switch on and
    /// the function as it is, they must pass. Tests that need another one before them are run with all the others.
    fn dependable(
        &mut self,
        only: Vec<String>,
        score: &mut SuiteScore,
    ) -> Result<Result<Vec<String>, String>, ScoreError> {
        if let Some(known) = self.tried.get(&only) {
            return Ok(known.clone());
        }
        let all = self.binary.tests().to_vec();
        let found = match self.first_failure(self.decoy, &only, score)? {
            None => Ok(only.clone()),
            Some((name, _)) if all == only => Err(name),
            Some(_) => match self.first_failure(self.decoy, &all, score)? {
                None => Ok(all),
                Some((name, _)) => Err(name),
            },
        };
        self.tried.insert(only, found.clone());
        Ok(found)
    }

    fn first_failure(
        &self,
        mutant: u32,
        only: &[String],
        score: &mut SuiteScore,
    ) -> Result<Option<(String, Verdict)>, ScoreError> {
        let used = only.iter().filter_map(|name| self.reach.get(name)).map(|seen| seen.ticks).max();
        let fuel = used.unwrap_or(0).saturating_mul(self.options.fuel_factor);
        let fuel = fuel.saturating_add(self.options.fuel_floor);
        let options = RunOptions {
            env: env(mutant, Some(fuel)),
            only: Some(only.to_vec()),
            wall: self.options.wall,
            fail_fast: true,
        };
        let run = self.harness.run(self.binary, &options)?;
        score.n_processes += 1;
        let mut verdicts = only.iter().filter_map(|name| Some((name, run.verdicts.get(name)?.verdict)));
        let failed = verdicts.find(|(_, verdict)| !matches!(verdict, Verdict::Passed | Verdict::Ignored));
        Ok(failed.map(|(name, verdict)| (name.clone(), verdict)))
    }
}
