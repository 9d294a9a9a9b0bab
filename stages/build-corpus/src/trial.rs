//! Whether a row is to be believed: it compiles alone, passes every time, calls its function, and kills mutants of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::{Build, CrateKind, Harness, HarnessError, RunOptions, TestBinary, TestProgram, TestRun};
use mutants::score::{Bench, Prepared, ScoreError, ScoreOptions, Suite};
use mutants::{Instrumented, MutantError, Reach};
use record::corpus::{CorpusRow, SourceClass};
use record::mutation::{MutantStatus, Verdict};
use stage_kit::StageError;

use crate::properties::{self, Law};

/// One run of all tests of a row may take this long.
const MAX_WALL: Duration = Duration::from_secs(1);

/// What became of a row.
#[derive(Debug)]
pub enum Outcome {
    Kept(Box<CorpusRow>),
    /// For counting, and the first line that explains it.
    Dropped {
        reason: &'static str,
        detail: String,
    },
}

fn dropped(reason: &'static str, detail: impl Into<String>) -> Outcome {
    Outcome::Dropped { reason, detail: detail.into() }
}

fn unusable(error: HarnessError) -> StageError {
    StageError::failed(format!("a row can't be tried: {error}"))
        .at("the Rust compiler and the sandbox")
        .next("see `runner doctor` for what this machine lacks")
        .because(error)
}

/// Compiles and runs rows.
#[derive(Debug)]
pub struct Court {
    pub harness: Harness,
    /// Times that the tests must pass, each with other random inputs for property tests.
    pub runs: u32,
    /// Most mutants of a row that are run, spread evenly over the function; 0: all.
    pub max_mutants: usize,
}

#[derive(Debug, thiserror::Error)]
enum TrialError {
    #[error(transparent)]
    Harness(#[from] HarnessError),
    #[error(transparent)]
    Mutant(#[from] MutantError),
    #[error(transparent)]
    Score(#[from] ScoreError),
}

impl Court {
    /// Tries a row. With `laws`, those that hold become its property tests where it has none.
    ///
    /// # Errors
    /// The compiler or the sandbox can't be used; a row that fails is a [`Outcome::Dropped`].
    pub fn judge(&self, row: CorpusRow, laws: bool) -> Result<Outcome, StageError> {
        match self.try_row(row, laws) {
            Ok(outcome) => Ok(outcome),
            Err(TrialError::Mutant(error)) => Ok(dropped("not_instrumentable", error.to_string())),
            Err(TrialError::Score(ScoreError::Mutant(error))) => {
                Ok(dropped("not_instrumentable", error.to_string()))
            }
            Err(TrialError::Score(ScoreError::Harness(error))) => Err(unusable(error)),
            Err(TrialError::Score(ScoreError::Row(why))) => Ok(dropped("does_not_compile", why)),
            Err(TrialError::Harness(HarnessError::Syntax { message, .. })) => {
                Ok(dropped("does_not_parse", message))
            }
            Err(TrialError::Harness(error)) => Err(unusable(error)),
        }
    }

    fn try_row(&self, mut row: CorpusRow, laws: bool) -> Result<Outcome, TrialError> {
        if let Some(error) = self.compile_error(&row)? {
            return Ok(dropped("does_not_compile", error));
        }
        let laws = if laws && row.property_tests.is_none() {
            properties::laws(&row.function_code)
        } else {
            Vec::new()
        };
        let mut prepared = Prepared::new(&self.harness, &row)?;
        if let Some(why) = prepared.not_instrumentable {
            return Ok(dropped("not_instrumentable", why));
        }
        let (laws, program) = match self.with_laws(&row, laws, &prepared)? {
            Ok(ready) => ready,
            Err(why) => return Ok(dropped("not_instrumentable", why)),
        };
        let is_law = |name: &str| laws.iter().find(|law| name == format!("property_tests::{}", law.name));
        let first = self.run(&program, 0, None)?;
        let holding: BTreeSet<&str> = laws
            .iter()
            .filter(|l| passed(&first, &format!("property_tests::{}", l.name)))
            .map(|l| l.name.as_str())
            .collect();
        let kept = properties::keep(&laws, |law: &Law| holding.contains(law.name.as_str()));
        let names: Vec<String> = program
            .tests()
            .iter()
            .filter(|name| is_law(name).is_none_or(|law| kept.contains(&law)))
            .cloned()
            .collect();
        let (names, kept) = match self.repeat(&program, &first, names, kept)? {
            Repeated::Stable(names, kept) => (names, kept),
            Repeated::Unstable(outcome) => return Ok(outcome),
        };
        if !kept.is_empty() {
            row.property_tests = Some(properties::block(&kept));
            row.metadata.property_class = Some(SourceClass::Synthesized);
            if let Some(error) = self.compile_error(&row)? {
                return Ok(dropped("does_not_compile", error));
            }
        }
        self.kill(row, &mut prepared, &program, &first, &names)
    }

    fn compile_error(&self, row: &CorpusRow) -> Result<Option<String>, TrialError> {
        let compilation = self.harness.check(&subject::assemble(row, None).source, CrateKind::Test)?;
        if compilation.success {
            return Ok(None);
        }
        let first = compilation.diagnostics.iter().find(|d| d.level == "error");
        Ok(Some(first.map_or_else(|| compilation.stopped.clone().unwrap_or_default(), |d| d.message.clone())))
    }

    /// The program with all mutants and all tests of `row` in it, or why it can't be made.
    fn program(
        &self,
        row: &CorpusRow,
        prepared: &Prepared,
    ) -> Result<Result<TestBinary, String>, TrialError> {
        let instrumented = Instrumented::of(row)?;
        let program = instrumented.program(None, &prepared.dropped);
        let program = TestProgram::new(&program.source, Some(&program.hook))?;
        Ok(match self.harness.build(&program)? {
            Build::Ready(binary) => Ok(binary),
            Build::Failed(compilation) => {
                let error =
                    compilation.diagnostics.into_iter().find(|d| d.level == "error").map(|d| d.message);
                Err(error.or(compilation.stopped).unwrap_or_default())
            }
        })
    }

    /// The program with the laws that it compiles with: all, else those that ask nothing of a type, else none. A type that
    /// does not print or compare spoils laws, not the row.
    fn with_laws(
        &self,
        row: &CorpusRow,
        laws: Vec<Law>,
        prepared: &Prepared,
    ) -> Result<Result<(Vec<Law>, TestBinary), String>, TrialError> {
        let weakest: Vec<Law> = laws.iter().filter(|law| law.key == properties::NO_PANIC).cloned().collect();
        for laws in [laws, weakest].into_iter().filter(|laws| !laws.is_empty()) {
            let mut trial = row.clone();
            trial.property_tests = Some(properties::block(&laws.iter().collect::<Vec<_>>()));
            if let Ok(program) = self.program(&trial, prepared)? {
                return Ok(Ok((laws, program)));
            }
        }
        Ok(self.program(row, prepared)?.map(|program| (Vec::new(), program)))
    }

    fn run(&self, binary: &TestBinary, times: u32, only: Option<Vec<String>>) -> Result<TestRun, TrialError> {
        let mut options = RunOptions { only, wall: MAX_WALL * 10, ..RunOptions::default() };
        if times > 0 {
            options.env.insert("PROPTEST_RNG_SEED".to_owned(), (7919 * u64::from(times)).to_string());
        }
        Ok(self.harness.run(binary, &options)?)
    }

    /// Runs the tests again. A law that fails once is given up, any other test is not.
    fn repeat<'l>(
        &self,
        binary: &TestBinary,
        first: &TestRun,
        mut names: Vec<String>,
        mut kept: Vec<&'l Law>,
    ) -> Result<Repeated<'l>, TrialError> {
        let own = |kept: &[&Law], name: &str| !kept.iter().any(|l| name.ends_with(&format!("::{}", l.name)));
        for name in &names {
            if !passed(first, name) && own(&kept, name) {
                let detail = first.verdicts.get(name).and_then(|v| v.message.clone()).unwrap_or_default();
                return Ok(Repeated::Unstable(dropped("test_fails", format!("{name}: {detail}"))));
            }
        }
        // A busy machine may slow one run down; the function is slow when it is in every run.
        let mut quickest = first.wall;
        for times in 1..self.runs {
            let run = self.run(binary, times, Some(names.clone()))?;
            if let Some(name) = names.iter().find(|n| own(&kept, n) && !passed(&run, n)) {
                return Ok(Repeated::Unstable(dropped("flaky", name.clone())));
            }
            quickest = quickest.min(run.wall);
            kept.retain(|law| passed(&run, &format!("property_tests::{}", law.name)));
            names.retain(|name| passed(&run, name));
        }
        if quickest > MAX_WALL {
            return Ok(Repeated::Unstable(dropped("slow", format!("{} ms", quickest.as_millis()))));
        }
        Ok(Repeated::Stable(names, kept))
    }

    /// Counts the mutants that the tests kill, by the rules by which generated tests are scored: what fails with the
    /// function as it is kills nothing, and a mutant must compile in the source.
    fn kill(
        &self,
        mut row: CorpusRow,
        prepared: &mut Prepared,
        program: &TestBinary,
        first: &TestRun,
        names: &[String],
    ) -> Result<Outcome, TrialError> {
        let reach: BTreeMap<String, Reach> = names
            .iter()
            .filter_map(|name| Some((name.clone(), Reach::parse(first.extra.get(name)?)?)))
            .collect();
        if !reach.values().any(|seen| seen.entered) {
            return Ok(dropped("does_not_call_the_function", ""));
        }
        let reached = |site| reach.values().any(|seen| seen.sites.contains(&site));
        let mutants = prepared.instrumented.mutants.iter();
        let reached: Vec<(u32, u32)> = mutants
            .filter(|mutant| prepared.has_switch(mutant.id) && reached(mutant.site))
            .map(|mutant| (mutant.id, mutant.site))
            .collect();
        let options = ScoreOptions::default().for_mutants(first.wall);
        let suite = Suite { binary: program, tests: names, reach: &reach };
        let mut bench = Bench::new(&self.harness, suite, &options, prepared.instrumented.decoy());
        let mut killed = Vec::new();
        for (id, site) in spread(reached, self.max_mutants) {
            match bench.run_mutant(id, site)? {
                Ok(outcome) if matches!(outcome.status, MutantStatus::Killed | MutantStatus::Timeout) => {
                    killed.push(id);
                }
                Ok(_) => {}
                Err(test) => return Ok(dropped("not_about_the_function", test)),
            }
        }
        let killed = prepared.compile_in_source(&self.harness, killed)?.len();
        if killed == 0 {
            return Ok(dropped("kills_no_mutant", ""));
        }
        row.metadata.mutants_killed = u32::try_from(killed).unwrap_or(u32::MAX);
        Ok(Outcome::Kept(Box::new(row)))
    }
}

/// At most `most` of the items, evenly spaced; all for 0.
fn spread<T>(items: Vec<T>, most: usize) -> Vec<T> {
    let n = items.len();
    if most == 0 || n <= most {
        return items;
    }
    let chosen: BTreeSet<usize> = (0..most).map(|i| i * n / most).collect();
    items.into_iter().enumerate().filter(|(i, _)| chosen.contains(i)).map(|(_, item)| item).collect()
}

enum Repeated<'l> {
    Stable(Vec<String>, Vec<&'l Law>),
    Unstable(Outcome),
}

fn passed(run: &TestRun, name: &str) -> bool {
    run.verdicts.get(name).is_some_and(|v| v.verdict == Verdict::Passed)
}
