//! Whether a row is to be believed: it compiles alone, passes every time, calls its function, and kills mutants of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::{Build, CrateKind, Harness, HarnessError, RunOptions, TestBinary, TestProgram, TestRun};
use mutants::score::{Bench, Prepared, ScoreError, ScoreOptions, Suite};
use mutants::{Instrumented, MutantError, Reach};
use record::corpus::{CorpusRow, SourceClass};
use record::mutation::Verdict;
use stage_kit::StageError;

use crate::properties::{self, Law};

/// A row's program, and the laws in it.
struct Ready {
    laws: Vec<Law>,
    binary: TestBinary,
    /// The compiler found nothing wrong in the row and these laws when there were no mutants in it.
    is_checked: bool,
}

/// What the compiler says of a row and its laws.
struct Asked {
    /// The names of the laws that hold an error.
    wrong: BTreeSet<String>,
    /// There are errors outside the laws.
    outside: bool,
    is_clean: bool,
}

/// Times that the compiler is asked which laws are wrong: an error of one of its phases hides those of the next.
const MAX_ROUNDS: u32 = 3;
/// One run of all tests of a row may take this long on a CPU, and this long in all.
const MAX_CPU: Duration = Duration::from_secs(1);
const MAX_WALL: Duration = Duration::from_secs(5);

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

    fn try_row(&self, row: CorpusRow, laws: bool) -> Result<Outcome, TrialError> {
        let laws = if laws && row.property_tests.is_none() { properties::laws(&row) } else { Vec::new() };
        let mut prepared = Prepared::new(&self.harness, &row)?;
        if let Some(why) = prepared.not_instrumentable {
            return Ok(dropped("not_instrumentable", why));
        }
        let Ready { laws, binary: program, is_checked } = match self.with_laws(&row, laws, &prepared)? {
            Ok(ready) => ready,
            Err(outcome) => return Ok(outcome),
        };
        let is_law = |name: &str| laws.iter().find(|law| name == format!("property_tests::{}", law.name));
        let first = self.run(&program, 0, None)?;
        let holding: BTreeSet<&str> = laws
            .iter()
            .filter(|l| passed(&first, &format!("property_tests::{}", l.name)))
            .map(|l| l.name.as_str())
            .collect();
        let kept = properties::holding(&laws, |law: &Law| holding.contains(law.name.as_str()));
        let names: Vec<String> = program
            .tests()
            .iter()
            .filter(|name| !first.absent.contains(*name))
            .filter(|name| is_law(name).is_none_or(|law| kept.contains(&law)))
            .cloned()
            .collect();
        let (names, kept) = match self.repeat(&program, &first, names, kept)? {
            Repeated::Stable(names, kept) => (names, kept),
            Repeated::Unstable(outcome) => return Ok(outcome),
        };
        let outcome = self.kill(row, &mut prepared, &program, &first, names, kept)?;
        if let Outcome::Kept(row) = &outcome
            && !is_checked
            && let Some(error) = self.compile_error(row)?
        {
            // Whatever was compiled until here had mutants in it.
            return Ok(dropped("does_not_compile", error));
        }
        Ok(outcome)
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

    /// The program with the laws that it compiles with: those in which the compiler finds an error are given up. A type that
    /// does not print or compare spoils laws, not the row. An error is the row's own.
    fn with_laws(
        &self,
        row: &CorpusRow,
        mut laws: Vec<Law>,
        prepared: &Prepared,
    ) -> Result<Result<Ready, Outcome>, TrialError> {
        for _ in 0..MAX_ROUNDS {
            if laws.is_empty() {
                break;
            }
            let mut trial = row.clone();
            trial.property_tests = Some(properties::blocks(&laws));
            let asked = self.ask(&trial, &laws)?;
            if asked.outside
                && let Some(error) = self.compile_error(row)?
            {
                return Ok(Err(dropped("does_not_compile", error)));
            }
            laws.retain(|law| !asked.wrong.contains(&law.name));
            if laws.is_empty() || (!asked.is_clean && asked.wrong.is_empty()) {
                break;
            }
            trial.property_tests = Some(properties::blocks(&laws));
            if let Ok(binary) = self.program(&trial, prepared)? {
                return Ok(Ok(Ready { laws, binary, is_checked: asked.is_clean }));
            }
            if asked.is_clean {
                break;
            }
        }
        match self.program(row, prepared)? {
            Ok(binary) => Ok(Ok(Ready { laws: Vec::new(), binary, is_checked: false })),
            Err(why) => {
                let reason = self.compile_error(row)?.map(|error| dropped("does_not_compile", error));
                Ok(Err(reason.unwrap_or_else(|| dropped("not_instrumentable", why))))
            }
        }
    }

    /// Asks the compiler of a row with laws, without mutants.
    fn ask(&self, trial: &CorpusRow, laws: &[Law]) -> Result<Asked, TrialError> {
        let placed = subject::assemble(trial, None);
        let compilation = self.harness.check(&placed.source, CrateKind::Test)?;
        let errors = compilation.diagnostics.iter().filter(|d| d.level == "error");
        let at: Vec<usize> = errors.filter_map(|error| Some(error.primary()?.line_start)).collect();
        let lines = placed.property_lines.map_or(0..0, |lines| lines.start as usize..lines.end as usize);
        let mut asked = Asked {
            wrong: BTreeSet::new(),
            outside: at.iter().any(|line| !lines.contains(line)),
            is_clean: compilation.success,
        };
        let mut start = lines.start;
        for law in laws {
            let end = start + properties::block(&[law]).lines().count();
            if at.iter().any(|line| (start..end).contains(line)) {
                asked.wrong.insert(law.name.clone());
            }
            start = end;
        }
        Ok(asked)
    }

    fn run(&self, binary: &TestBinary, times: u32, only: Option<Vec<String>>) -> Result<TestRun, TrialError> {
        let mut options = RunOptions { only, wall: MAX_CPU * 10, ..RunOptions::default() };
        // Whether a law fails is asked, not with which smallest input.
        options.env.insert("PROPTEST_MAX_SHRINK_ITERS".to_owned(), "0".to_owned());
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
        // A busy machine slows every run down: what counts is the time on a CPU, and a pause that is much too long.
        let mut quickest = (first.cpu, first.wall);
        for times in 1..self.runs {
            let run = self.run(binary, times, Some(names.clone()))?;
            if let Some(name) = names.iter().find(|n| own(&kept, n) && !passed(&run, n)) {
                return Ok(Repeated::Unstable(dropped("flaky", name.clone())));
            }
            quickest = (quickest.0.min(run.cpu), quickest.1.min(run.wall));
            kept.retain(|law| passed(&run, &format!("property_tests::{}", law.name)));
            names.retain(|name| passed(&run, name));
        }
        if quickest.0 > MAX_CPU || quickest.1 > MAX_WALL {
            let detail = format!("{} ms on a CPU of {}", quickest.0.as_millis(), quickest.1.as_millis());
            return Ok(Repeated::Unstable(dropped("slow", detail)));
        }
        Ok(Repeated::Stable(names, kept))
    }

    /// Counts the mutants that the tests kill, by the rules by which generated tests are scored: what fails with the
    /// function as it is kills nothing, and a mutant must compile in the source. Of the laws those stay that kill.
    fn kill(
        &self,
        mut row: CorpusRow,
        prepared: &mut Prepared,
        program: &TestBinary,
        first: &TestRun,
        mut names: Vec<String>,
        mut laws: Vec<&Law>,
    ) -> Result<Outcome, TrialError> {
        let kills = loop {
            match self.kills(prepared, program, first, &names, &laws)? {
                Ok(kills) => break kills,
                Err(test) if laws.iter().any(|law| of_law(law) == test) => {
                    names.retain(|name| *name != test);
                    laws.retain(|law| of_law(law) != test);
                }
                Err(test) => return Ok(dropped("not_about_the_function", test)),
            }
        };
        let kept =
            properties::keep(&laws, |law| kills.iter().any(|(_, failed)| failed.contains(&of_law(law))));
        let is_kept = |name: &String| {
            laws.iter().all(|law| of_law(law) != *name) || kept.iter().any(|law| of_law(law) == *name)
        };
        let is_entered = |name: &String| reach(first, name).is_some_and(|seen| seen.entered);
        if !names.iter().filter(|name| is_kept(name)).any(is_entered) {
            return Ok(dropped("does_not_call_the_function", ""));
        }
        let killed = kills.iter().filter(|(_, failed)| failed.iter().any(is_kept)).map(|(id, _)| *id);
        let killed = prepared.compile_in_source(&self.harness, killed.collect())?.len();
        if killed == 0 {
            return Ok(dropped("kills_no_mutant", ""));
        }
        if !kept.is_empty() {
            row.property_tests = Some(properties::block(&kept));
            row.metadata.property_class = Some(SourceClass::Synthesized);
        }
        row.metadata.mutants_killed = u32::try_from(killed).unwrap_or(u32::MAX);
        Ok(Outcome::Kept(Box::new(row)))
    }

    /// Mutants with the tests that fail on them. An error is a test that fails with the function as it is, too.
    fn kills(
        &self,
        prepared: &Prepared,
        program: &TestBinary,
        first: &TestRun,
        names: &[String],
        laws: &[&Law],
    ) -> Result<Result<Kills, String>, TrialError> {
        let reach: BTreeMap<String, Reach> =
            names.iter().filter_map(|name| Some((name.clone(), reach(first, name)?))).collect();
        let sites: BTreeSet<u32> = reach.values().flat_map(|seen| seen.sites.iter().copied()).collect();
        let mutants = prepared.instrumented.mutants.iter();
        let mutants = mutants.filter(|mutant| prepared.has_switch(mutant.id) && sites.contains(&mutant.site));
        let options = ScoreOptions::default().for_mutants(first.wall);
        let suite = Suite { binary: program, tests: names, reach: &reach };
        let mut bench = Bench::new(&self.harness, suite, &options, prepared.instrumented.decoy());
        let strong: Vec<String> =
            laws.iter().filter(|law| law.key != properties::NO_PANIC).map(|law| of_law(law)).collect();
        let mut noticed = BTreeSet::new();
        let mut kills = Vec::new();
        for mutant in spread(mutants.collect(), self.max_mutants) {
            // Which laws kill has to be asked test by test; whether anything does ends with the first.
            let failed = if laws.is_empty() || noticed.len() >= properties::MAX_LAWS {
                bench
                    .run_mutant(mutant.id, mutant.site)?
                    .map(|outcome| outcome.killed_by.into_iter().collect())
            } else {
                bench.failures(mutant.id, mutant.site)?
            };
            let failed: Vec<String> = match failed {
                Ok(failed) => failed,
                Err(test) => return Ok(Err(test)),
            };
            noticed.extend(failed.iter().filter(|name| strong.contains(name)).cloned());
            kills.push((mutant.id, failed));
        }
        Ok(Ok(kills))
    }
}

type Kills = Vec<(u32, Vec<String>)>;

/// The name of a law's test.
fn of_law(law: &Law) -> String {
    format!("property_tests::{}", law.name)
}

fn reach(run: &TestRun, name: &str) -> Option<Reach> {
    run.extra.get(name).and_then(|text| Reach::parse(text))
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
