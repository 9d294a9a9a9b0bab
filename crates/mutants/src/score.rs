//! Runs a suite of tests against a function and its mutants. The only part of this crate that compiles and runs anything.

mod bench;
mod prepared;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::{Build, Harness, HarnessError, RunOptions, TestBinary, TestProgram, TestRun};
use record::mutation::{MutantCounts, MutantStatus, TestOutcome, Verdict};
use thiserror::Error;

pub use self::bench::{Bench, Suite};
pub use self::prepared::Prepared;
pub use self::source::{planted_bug_is_found, run_planted};

use self::prepared::first_error;
use self::source::SourceBench;
use crate::{ENV_FUEL, ENV_MUTANT, MutantError, Program, Reach};

#[derive(Debug, Error)]
pub enum ScoreError {
    #[error(transparent)]
    Harness(#[from] HarnessError),
    #[error(transparent)]
    Mutant(#[from] MutantError),
    /// The row's function and context do not compile by themselves.
    #[error("the row does not compile without its tests: {0}")]
    Row(String),
}

/// How suites are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreOptions {
    /// Runs of the suite on the unchanged function. Tests whose verdicts differ are flaky.
    pub runs: u32,
    /// A mutant's fuel: this many times what the same tests used on the unchanged function, plus [`Self::fuel_floor`].
    pub fuel_factor: u64,
    pub fuel_floor: u64,
    /// Deadline of one process, behind the fuel: for what does not tick. A mutant's is shorter where the function as it
    /// is takes a small part of it.
    pub wall: Duration,
    /// Mutants to run, chosen evenly over the operators; 0: all. The others are `Ignored`.
    pub limit: usize,
    /// Decides the choice when there is a limit.
    pub seed: u64,
}

impl ScoreOptions {
    /// The same with the deadline of a mutant of a function whose tests take so long. What waits for ever ends there; the
    /// margin over a run that ends by itself is such that load does not decide.
    #[must_use]
    pub fn for_mutants(&self, unchanged: Duration) -> Self {
        const MARGIN: u32 = 100;
        const LEAST: Duration = Duration::from_secs(5);
        Self { wall: (unchanged * MARGIN).max(LEAST).min(self.wall), ..self.clone() }
    }
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self {
            runs: 3,
            fuel_factor: 20,
            fuel_floor: 100_000,
            wall: Duration::from_secs(20),
            limit: 0,
            seed: 0,
        }
    }
}

/// What one suite did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SuiteScore {
    pub compiled: bool,
    /// The first compiler error.
    pub error: Option<String>,
    /// In the order of the source.
    pub tests: Vec<TestOutcome>,
    /// Compiled, has at least one test, and every test passed in every run.
    pub passed: bool,
    /// Some test called the function.
    pub entered: bool,
    /// By id: `mutants[i]` is mutant `i + 1`. Empty unless the suite passed: a failing test kills nothing.
    pub mutants: Vec<MutantOutcome>,
    /// Numbers of branches and lines of the function that the tests ran.
    pub branches: BTreeSet<u32>,
    pub lines: BTreeSet<u32>,
    /// Runs of the suite on the unchanged function.
    pub n_runs: u32,
    /// Processes that were run.
    pub n_processes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutantOutcome {
    pub status: MutantStatus,
    /// The first test that noticed.
    pub killed_by: Option<String>,
    /// It was to be run written into the source, because it does not compile under the switch.
    pub in_source: bool,
}

impl MutantOutcome {
    fn without_run(status: MutantStatus) -> Self {
        Self { status, killed_by: None, in_source: false }
    }
}

impl SuiteScore {
    /// Counts by status; `None` when no mutant was tried.
    pub fn counts(&self) -> Option<MutantCounts> {
        if !self.passed || self.mutants.is_empty() {
            return None;
        }
        let mut counts = MutantCounts::default();
        for mutant in &self.mutants {
            let was_run = !matches!(mutant.status, MutantStatus::CompileError | MutantStatus::Ignored);
            counts.in_source += u32::from(mutant.in_source && was_run);
            *match mutant.status {
                MutantStatus::Killed | MutantStatus::RuntimeError => &mut counts.killed,
                MutantStatus::Timeout => &mut counts.timeout,
                MutantStatus::Survived => &mut counts.survived,
                MutantStatus::NoCoverage => &mut counts.no_coverage,
                MutantStatus::CompileError => &mut counts.unviable,
                MutantStatus::Ignored | MutantStatus::Pending => &mut counts.ignored,
            } += 1;
        }
        Some(counts)
    }

    /// A suite with a test that fails although the function is the same says nothing of mutants.
    fn reject(&mut self, name: &str) {
        self.passed = false;
        self.mutants.clear();
        for test in self.tests.iter_mut().filter(|test| test.name == name) {
            test.verdict = Verdict::Flaky;
            test.message = Some(
                "passes, and fails on the same function when it is run as on a mutant: its verdict is not about the function"
                    .to_owned(),
            );
        }
    }

    /// Ids of the mutants that the suite noticed.
    pub fn killed(&self) -> BTreeSet<u32> {
        let noticed = |m: &MutantOutcome| matches!(m.status, MutantStatus::Killed | MutantStatus::Timeout);
        (1..).zip(&self.mutants).filter(|(_, mutant)| noticed(mutant)).map(|(id, _)| id).collect()
    }
}

/// Runs a suite on the unchanged function, and, when it passes, on every mutant that its tests reach.
/// `tests` as in [`subject::assemble`]: `None` is the row's own suite.
///
/// # Errors
/// The compiler or a program can't be started. Tests that do not compile are a [`SuiteScore`] that says so.
pub fn score_suite(
    harness: &Harness,
    prepared: &Prepared,
    tests: Option<&str>,
    options: &ScoreOptions,
) -> Result<SuiteScore, ScoreError> {
    let mut score = SuiteScore::default();
    let Some((binary, program)) = build(harness, prepared, tests, &mut score)? else { return Ok(score) };
    let instrumented = !program.hook.is_empty();
    score.compiled = true;
    let (reach, longest) = baseline(harness, &binary, &program, options, &mut score)?;
    for seen in reach.values() {
        score.entered |= seen.entered;
        score.branches.extend(&seen.branches);
        score.lines.extend(&seen.lines);
    }
    let has_mutants = prepared.not_instrumentable.is_none() || prepared.in_source.is_some();
    if !score.passed || !has_mutants {
        return Ok(score);
    }
    let mut options = options.for_mutants(longest);
    if !instrumented {
        let most = if options.limit == 0 { usize::MAX } else { options.limit };
        options.limit = most.min(source::MOST_IN_SOURCE);
    }
    let suite = Suite { binary: &binary, tests: binary.tests(), reach: &reach };
    let mut bench = Bench::new(harness, suite, &options, prepared.instrumented.decoy());
    let ticks = reach.values().map(|seen| seen.ticks).max().unwrap_or(0);
    let (unchanged, n_run, n_processes) = (None, 0, 0);
    let mut in_source =
        SourceBench { harness, prepared, tests, options: &options, ticks, unchanged, n_run, n_processes };
    let chosen = choose(prepared, &options);
    for mutant in &prepared.instrumented.mutants {
        let outcome = if !prepared.is_viable(mutant.id) {
            Ok(MutantOutcome::without_run(MutantStatus::CompileError))
        } else if !chosen.contains(&mutant.id) {
            Ok(MutantOutcome::without_run(MutantStatus::Ignored))
        } else if instrumented && !score.entered {
            Ok(MutantOutcome::without_run(MutantStatus::NoCoverage))
        } else if instrumented && prepared.has_switch(mutant.id) {
            bench.run_mutant(mutant.id, mutant.site)?
        } else {
            in_source.run_mutant(mutant.id)?
        };
        match outcome {
            Ok(outcome) => score.mutants.push(outcome),
            Err(test) => {
                score.reject(&test);
                break;
            }
        }
    }
    score.n_processes += bench.n_processes + in_source.n_processes;
    // Without probes nothing else tells whether the function was called.
    score.entered |= !score.killed().is_empty();
    Ok(score)
}

/// The first test that did not pass, in the order given.
fn failed(tests: &[String], run: &TestRun) -> Option<(String, Verdict)> {
    let mut verdicts = tests.iter().filter_map(|name| Some((name, run.verdicts.get(name)?.verdict)));
    let failed = verdicts.find(|(_, verdict)| !matches!(verdict, Verdict::Passed | Verdict::Ignored));
    failed.map(|(name, verdict)| (name.clone(), verdict))
}

/// The instrumented program; the plain one where instrumentation is in the way; nothing where the tests do not compile.
fn build(
    harness: &Harness,
    prepared: &Prepared,
    tests: Option<&str>,
    score: &mut SuiteScore,
) -> Result<Option<(TestBinary, Program)>, ScoreError> {
    if prepared.not_instrumentable.is_none() {
        let program = prepared.instrumented.program(tests, &prepared.dropped);
        if let Some(binary) = build_source(harness, &program.source, Some(&program.hook), score)? {
            return Ok(Some((binary, program)));
        }
    }
    let program = prepared.instrumented.plain(tests);
    let binary = build_source(harness, &program.source, None, score)?;
    Ok(binary.map(|binary| (binary, program)))
}

fn build_source(
    harness: &Harness,
    source: &str,
    hook: Option<&str>,
    score: &mut SuiteScore,
) -> Result<Option<TestBinary>, ScoreError> {
    let program = match TestProgram::new(source, hook) {
        Ok(program) => program,
        Err(HarnessError::Syntax { line, column, message }) => {
            score.error = Some(format!("line {line}, column {column}: {message}"));
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match harness.build(&program)? {
        Build::Ready(binary) => {
            score.error = None;
            Ok(Some(binary))
        }
        Build::Failed(compilation) => {
            score.error = Some(first_error(&compilation));
            Ok(None)
        }
    }
}

/// Runs the suite on the unchanged function and fills in verdicts; gives what each test reached.
fn baseline(
    harness: &Harness,
    binary: &TestBinary,
    program: &Program,
    options: &ScoreOptions,
    score: &mut SuiteScore,
) -> Result<(BTreeMap<String, Reach>, Duration), ScoreError> {
    let run_options = RunOptions { env: env(0, None), only: None, wall: options.wall, fail_fast: false };
    let mut runs = Vec::new();
    for _ in 0..options.runs.max(1) {
        let run = harness.run(binary, &run_options)?;
        // What takes for ever once needs no second look, and each takes the whole deadline.
        let hangs = run.verdicts.values().any(|test| test.verdict == Verdict::Timeout);
        runs.push(run);
        score.n_processes += 1;
        if hangs {
            break;
        }
    }
    score.n_runs = u32::try_from(runs.len()).unwrap_or(u32::MAX);
    let is_there = |name: &&String| !runs.iter().all(|run| run.absent.contains(*name));
    score.tests = binary.tests().iter().filter(is_there).map(|name| merge(name, &runs, program)).collect();
    score.passed = !score.tests.is_empty() && score.tests.iter().all(|test| test.verdict == Verdict::Passed);
    let mut reach: BTreeMap<String, Reach> = BTreeMap::new();
    for (name, text) in runs.iter().flat_map(|run| &run.extra) {
        if let Some(seen) = Reach::parse(text) {
            reach.entry(name.clone()).or_default().merge(&seen);
        }
    }
    let longest = runs.iter().map(|run| run.wall).max().unwrap_or_default();
    Ok((reach, longest))
}

/// One verdict out of several runs. What a failing test says is left out where it is another thing each time, and where no
/// second run bears it out: it may hold an address, or an order that chance made.
fn merge(name: &str, runs: &[TestRun], program: &Program) -> TestOutcome {
    let missing = || TestOutcome {
        name: name.to_owned(),
        verdict: Verdict::Aborted,
        message: Some("the test did not report".to_owned()),
    };
    let outcomes: Vec<TestOutcome> =
        runs.iter().map(|run| run.verdicts.get(name).cloned().unwrap_or_else(missing)).collect();
    let mut first = outcomes.first().cloned().unwrap_or_else(missing);
    if !outcomes.iter().all(|outcome| outcome.verdict == first.verdict) {
        let message = Some("the runs do not agree".to_owned());
        return TestOutcome { verdict: Verdict::Flaky, message, ..first };
    }
    let is_own = first.verdict == Verdict::Failed;
    let is_stable =
        outcomes.iter().all(|outcome| outcome.message == first.message) && (!is_own || outcomes.len() > 1);
    first.message = first.message.filter(|_| is_stable).map(|text| in_terms_of_the_tests(&text, program));
    first
}

/// `row.rs:120:9: ...` names a place in the whole crate: makes it a place in the tests, or in the function.
fn in_terms_of_the_tests(message: &str, program: &Program) -> String {
    const MAX_CHARS: usize = 400;
    let place = message.split_once(": ").and_then(|(place, text)| {
        let mut parts = place.rsplitn(3, ':');
        let column: u32 = parts.next()?.parse().ok()?;
        let line: u32 = parts.next()?.parse().ok()?;
        Some((line, column, text))
    });
    let text = match place {
        Some((line, column, text)) if program.tests_lines.contains(&line) => {
            format!("line {}, column {column}: {text}", line - program.tests_lines.start + 1)
        }
        Some((line, _, text)) if program.function_lines.contains(&line) => format!("in the function: {text}"),
        Some((_, _, text)) => text.to_owned(),
        None => message.to_owned(),
    };
    text.chars().take(MAX_CHARS).collect()
}

fn env(mutant: u32, fuel: Option<u64>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([(ENV_MUTANT.to_owned(), mutant.to_string())]);
    if let Some(fuel) = fuel {
        env.insert(ENV_FUEL.to_owned(), fuel.to_string());
    }
    env
}

/// Ids of the mutants to run: all that compile, or as many as the limit says, taken from the operators in turn.
fn choose(prepared: &Prepared, options: &ScoreOptions) -> BTreeSet<u32> {
    let mut strata: BTreeMap<&str, Vec<(u64, u32)>> = BTreeMap::new();
    for mutant in prepared.viable() {
        strata.entry(mutant.mutator).or_default().push((rank(options.seed, mutant.id), mutant.id));
    }
    let n_viable = strata.values().map(Vec::len).sum::<usize>();
    let wanted = if options.limit == 0 { n_viable } else { options.limit.min(n_viable) };
    for stratum in strata.values_mut() {
        stratum.sort_unstable_by(|a, b| b.cmp(a));
    }
    let mut chosen = BTreeSet::new();
    while chosen.len() < wanted {
        for stratum in strata.values_mut() {
            if chosen.len() < wanted {
                chosen.extend(stratum.pop().map(|(_, id)| id));
            }
        }
    }
    chosen
}

/// SplitMix64 of the seed and the mutant's id.
fn rank(seed: u64, id: u32) -> u64 {
    let mut z = seed.wrapping_add(u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod test {
    use harness::TestRun;
    use record::mutation::{TestOutcome, Verdict};

    use super::merge;
    use crate::Instrumented;

    fn run(verdict: Verdict, message: &str) -> TestRun {
        let outcome = TestOutcome { name: "t".to_owned(), verdict, message: Some(message.to_owned()) };
        TestRun { verdicts: [("t".to_owned(), outcome)].into(), ..TestRun::default() }
    }

    #[test]
    fn a_message_that_no_second_run_bears_out_is_left_out() {
        let row = crate::instrument::test::row("fn f() {}", &[], "");
        let program = Instrumented::of(&row).unwrap().plain(None);
        let merged = |runs: &[TestRun]| merge("t", runs, &program);
        let failed = |message| run(Verdict::Failed, message);
        assert_eq!(merged(&[failed("at 0x7f")]).message, None);
        assert_eq!(merged(&[failed("at 0x7f"), failed("at 0x7e")]).message, None);
        assert_eq!(merged(&[failed("no"), failed("no")]).message.as_deref(), Some("no"));
        let stopped = run(Verdict::Timeout, "out of loop fuel");
        assert_eq!(merged(std::slice::from_ref(&stopped)).message.as_deref(), Some("out of loop fuel"));
    }
}
