//! Runs generated tests on the function and on its mutants.
//!
//! A suite counts only when all its tests pass on the function as it is, in each of several runs. Then every mutant that
//! its tests reach is run. Beside the samples the row's own tests are run, as the baseline of coverage and for controls
//! whose outcome is known beforehand.

mod controls;
mod html;
mod inputs;
mod report;
mod select;
mod work;

use std::time::{Duration, Instant};

use harness::{Harness, HarnessError, Libraries, Limits, Toolchain};
use mutants::score::{ScoreError, ScoreOptions};
use record::mutation::{MUTATION_SCHEMA_VERSION, MutationTimings, TestResults};
use sandbox::Sandbox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Context, Outcome, PortSpec, Result, Stage, StageError, files};

use crate::work::{Scored, Work};

/// The stage program.
#[derive(Debug)]
pub struct MutateScore;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The least isolation under which generated tests are run: 0 rlimits, 1 Landlock and seccomp, 2 namespaces, 3 a control group.
    pub min_isolation: u8,
    /// Run even where the machine reaches less.
    pub unsafe_no_sandbox: bool,
    /// Runs of each suite on the unchanged function; tests whose verdicts differ are flaky.
    pub runs: u32,
    /// Mutants of each function to run, spread over the operators by the seed; 0: all.
    pub limit: u32,
    /// A mutant may use this many times the loop fuel that the same tests use on the unchanged function, plus `fuel_floor`.
    pub fuel_factor: u64,
    /// Loop iterations that every mutant may use.
    pub fuel_floor: u64,
    /// Seconds after which a test process is stopped. Behind the fuel, for what does not loop; generous, so that a busy
    /// machine changes no verdict.
    pub test_timeout_s: u64,
    /// Seconds after which one compilation is stopped.
    pub compile_timeout_s: u64,
    /// Functions that the controls are tried on; 0: all.
    pub control_rows: u32,
}

impl Default for Params {
    fn default() -> Self {
        let options = ScoreOptions::default();
        Self {
            min_isolation: 1,
            unsafe_no_sandbox: false,
            runs: options.runs,
            limit: 0,
            fuel_factor: options.fuel_factor,
            fuel_floor: options.fuel_floor,
            test_timeout_s: options.wall.as_secs(),
            compile_timeout_s: 120,
            control_rows: 0,
        }
    }
}

impl Params {
    fn check(&self) -> Result<()> {
        let positive = [
            ("runs", u64::from(self.runs)),
            ("fuel_factor", self.fuel_factor),
            ("test_timeout_s", self.test_timeout_s),
            ("compile_timeout_s", self.compile_timeout_s),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => {
                Err(StageError::usage(format!("{name} is 0")).at(*name).next("give it 1 or more"))
            }
            None => Ok(()),
        }
    }

    fn options(&self, seed: u64) -> ScoreOptions {
        ScoreOptions {
            runs: self.runs,
            fuel_factor: self.fuel_factor,
            fuel_floor: self.fuel_floor,
            wall: Duration::from_secs(self.test_timeout_s),
            limit: self.limit as usize,
            seed,
        }
    }
}

impl Stage for MutateScore {
    type Params = Params;
    const NAME: &'static str = "mutate-score";
    const INPUTS: &'static [PortSpec] = &[
        PortSpec::required("samples", "samples.jsonl of `generate`"),
        PortSpec::required("corpus", "the corpus that the samples' tasks come from"),
        PortSpec::required("compile", "compile_results.json of the same samples"),
        PortSpec::required("libs", "the libraries of `prebuild-libs`"),
    ];
    const OUTPUTS: &'static [PortSpec] = &[
        PortSpec::required(
            "mutation",
            "test_results.json, mutation.json, mutation_report.html, coverage.json, selected.jsonl",
        ),
        PortSpec::volatile("timings", "summary.json: seconds and processes"),
    ];

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        params.check()?;
        let started = Instant::now();
        let harness = prepare(&params, context)?;
        let samples = inputs::samples(context.input("samples")?)?;
        let compiled = inputs::compiled(context.input("compile")?, &samples)?;
        let rows = inputs::rows(context.input("corpus")?, &samples)?;
        let options = params.options(context.seed());
        let work = Work { harness: &harness, context, options: &options, control_rows: params.control_rows };
        let scored = work.run(&rows, &samples, &compiled)?;
        write(context, &harness, &scored)?;
        if context.wants("timings") {
            let wall_s = started.elapsed().as_secs_f64();
            let timings = MutationTimings {
                schema_version: MUTATION_SCHEMA_VERSION,
                wall_s,
                suites: scored.n_suites,
                processes: scored.n_processes,
                processes_per_s: scored.n_processes as f64 / wall_s.max(1e-9),
            };
            files::write_json(&context.output_dir("timings")?.join("summary.json"), &timings)?;
        }
        Ok(Outcome::Done)
    }
}

fn prepare(params: &Params, context: &Context) -> Result<Harness> {
    let sandbox = Sandbox::probe();
    let isolation = sandbox.isolation();
    context.log(&format!("isolation level {}: {}", isolation.level, isolation.layers.join(", ")));
    if let Err(error) = sandbox.require(params.min_isolation) {
        if !params.unsafe_no_sandbox {
            return Err(StageError::failed(error.to_string()).at("min_isolation").next(
                "run where those layers exist, lower min_isolation, or set unsafe_no_sandbox = true and know what it means",
            ));
        }
        context.warn(&format!("{error}; going on, because unsafe_no_sandbox is set"));
    }
    let toolchain = Toolchain::find().map_err(|e| failed(e.into()))?;
    let libraries = Libraries::load(context.input("libs")?, &toolchain).map_err(|e| failed(e.into()))?;
    let limits = Limits { compile_wall: Duration::from_secs(params.compile_timeout_s), ..Limits::default() };
    Ok(Harness::new(toolchain, libraries, sandbox, context.scratch().join("jobs"), limits))
}

pub(crate) fn failed(error: ScoreError) -> StageError {
    let next = match &error {
        ScoreError::Harness(HarnessError::NoToolchain(_)) => "install Rust with rustup",
        ScoreError::Harness(HarnessError::Libraries { .. }) => "run `prebuild-libs` with this compiler",
        ScoreError::Harness(HarnessError::Io { .. }) => "check that disk and path",
        ScoreError::Row(_) | ScoreError::Mutant(_) => "build the corpus again",
        ScoreError::Harness(_) => {
            "run the stage again; if it stays so, check the compiler with a program of one line"
        }
    };
    StageError::failed(error.to_string()).next(next).because(error)
}

fn write(context: &Context, harness: &Harness, scored: &Scored<'_>) -> Result<()> {
    let dir = context.output_dir("mutation")?;
    let results = TestResults {
        schema_version: MUTATION_SCHEMA_VERSION,
        toolchain: harness.toolchain().version.clone(),
        isolation: harness.sandbox().isolation().clone(),
        samples: scored.results(),
        controls: scored.controls(),
    };
    summarize(context, &results);
    let mutation = report::mutation(scored);
    let selected = select::selected(scored);
    files::write_json(&dir.join("test_results.json"), &results)?;
    files::write_json(&dir.join("mutation.json"), &mutation)?;
    files::write_json(&dir.join("coverage.json"), &report::coverage(scored))?;
    files::write_jsonl(&dir.join("selected.jsonl"), &selected)?;
    let page = dir.join("mutation_report.html");
    std::fs::write(&page, html::page(&mutation, &results)).map_err(|e| StageError::io("write", &page, e))
}

fn summarize(context: &Context, results: &TestResults) {
    let n = results.samples.len();
    let passed = results.samples.iter().filter(|sample| sample.passed).count();
    let mut total = (0, 0);
    for counts in results.samples.iter().filter_map(|sample| sample.mutants) {
        total.0 += counts.killed + counts.timeout;
        total.1 += counts.killed + counts.timeout + counts.survived + counts.no_coverage;
    }
    let compiled = results.samples.iter().filter(|sample| sample.compiled).count();
    let (killed, viable) = total;
    context.log(&format!(
        "{n} samples: {compiled} compile, {passed} pass; those that pass kill {killed} of {viable} mutants"
    ));
    if n > 0 {
        context.metric("pass_rate", passed as f64 / n as f64, "share", None);
    }
    if viable > 0 {
        context.metric("mutation_score", f64::from(killed) / f64::from(viable), "share", None);
    }
    let controls = &results.controls;
    for (name, control) in [
        ("planted bug", &controls.planted_bug),
        ("vacuous test", &controls.vacuous_test),
        ("shuffled pairing", &controls.shuffled_pairing),
    ] {
        let (good, cases) = (control.as_expected, control.cases);
        match control.holds {
            Some(true) => context.log(&format!("control {name}: {good} of {cases} as expected")),
            Some(false) => context.warn(&format!("control {name}: only {good} of {cases} as expected")),
            None => context.warn(&format!("control {name}: no case could be made")),
        }
    }
}
