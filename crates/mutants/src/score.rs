//! Runs a suite of tests against a function and its mutants. The only part of this crate that compiles and runs anything.

mod bench;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::{
    Build, Compilation, CrateKind, Harness, HarnessError, RunOptions, TestBinary, TestProgram, TestRun,
};
use record::corpus::CorpusRow;
use record::mutation::{Coverage, MutantCounts, MutantStatus, TestOutcome, Verdict};
use thiserror::Error;

use self::bench::Bench;

use crate::edits::Counted;
use crate::prune::{Verdict as Compiled, prune};
use crate::{Dropped, ENV_FUEL, ENV_MUTANT, Instrumented, MutantError, MutantSite, Program, Reach};

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

/// A row with its mutants, those that do not compile taken out. Serves every suite for that row.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub instrumented: Instrumented,
    pub dropped: Dropped,
    /// Compilations it took.
    pub n_compiles: u32,
    /// Why the function can't carry mutants (a `const fn` that is used in a constant, for example).
    pub not_instrumentable: Option<String>,
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
}

impl SuiteScore {
    /// Counts by status; `None` when no mutant was tried.
    pub fn counts(&self) -> Option<MutantCounts> {
        if !self.passed || self.mutants.is_empty() {
            return None;
        }
        let mut counts = MutantCounts::default();
        for mutant in &self.mutants {
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

impl Prepared {
    /// Makes the row's mutants and compiles them, once, without tests.
    ///
    /// # Errors
    /// The row does not parse or does not compile, or the compiler can't be run.
    pub fn new(harness: &Harness, row: &CorpusRow) -> Result<Self, ScoreError> {
        let instrumented = Instrumented::of(row)?;
        let no_tests = Some("");
        let pruned = prune(&instrumented, no_tests, |program| {
            let compilation = harness.check(&program.source, CrateKind::Lib)?;
            Ok::<_, ScoreError>(compiled(&compilation))
        });
        match pruned {
            Ok(pruned) => {
                let (dropped, n_compiles) = (pruned.dropped, pruned.n_compiles);
                Ok(Self { instrumented, dropped, n_compiles, not_instrumentable: None })
            }
            Err(ScoreError::Mutant(MutantError::NotInstrumentable(why))) => {
                let plain = harness.check(&instrumented.plain(no_tests).source, CrateKind::Lib)?;
                if !plain.success {
                    return Err(ScoreError::Row(first_error(&plain)));
                }
                Ok(Self {
                    instrumented,
                    dropped: Dropped::default(),
                    n_compiles: 1,
                    not_instrumentable: Some(why),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Mutants that compile.
    pub fn viable(&self) -> impl Iterator<Item = &MutantSite> {
        let able = self.not_instrumentable.is_none();
        self.instrumented.mutants.iter().filter(move |m| able && !self.dropped.mutants.contains(&m.id))
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

fn compiled(compilation: &Compilation) -> Compiled {
    let errors = compilation.diagnostics.iter().filter(|d| d.level == "error");
    let spans = errors.flat_map(|error| error.spans.iter().filter(|span| span.is_primary));
    Compiled {
        success: compilation.success,
        errors: spans.map(|span| span.byte_start..span.byte_end).collect(),
        message: Some(first_error(compilation)),
    }
}

fn first_error(compilation: &Compilation) -> String {
    let error = compilation.diagnostics.iter().find(|d| d.level == "error");
    let stopped = || compilation.stopped.clone().unwrap_or_else(|| "no error was given".to_owned());
    error.map_or_else(stopped, |error| error.message.clone())
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
    let wall = mutant_wall(longest, options.wall);
    for seen in reach.values() {
        score.entered |= seen.entered;
        score.branches.extend(&seen.branches);
        score.lines.extend(&seen.lines);
    }
    if !score.passed || !instrumented {
        return Ok(score);
    }
    let chosen = choose(prepared, options);
    let options = ScoreOptions { wall, ..options.clone() };
    let decoy = prepared.instrumented.decoy();
    let mut bench = Bench::new(harness, &binary, &reach, &options, decoy);
    for mutant in &prepared.instrumented.mutants {
        let outcome = if prepared.dropped.mutants.contains(&mutant.id) {
            MutantOutcome { status: MutantStatus::CompileError, killed_by: None }
        } else if chosen.contains(&mutant.id) {
            match bench.run_mutant(mutant, &mut score)? {
                Ok(outcome) => outcome,
                Err(test) => {
                    score.reject(&test);
                    return Ok(score);
                }
            }
        } else {
            MutantOutcome { status: MutantStatus::Ignored, killed_by: None }
        };
        score.mutants.push(outcome);
    }
    Ok(score)
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
    score.tests = binary.tests().iter().map(|name| merge(name, &runs, program)).collect();
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

/// What waits for ever ends here; the margin over a run that ends by itself is such that load does not decide.
fn mutant_wall(unchanged: Duration, most: Duration) -> Duration {
    const MARGIN: u32 = 100;
    const LEAST: Duration = Duration::from_secs(5);
    (unchanged * MARGIN).max(LEAST).min(most)
}

/// One verdict out of several runs. A message that is another in each run is left out.
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
    let is_stable = outcomes.iter().all(|outcome| outcome.message == first.message);
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
