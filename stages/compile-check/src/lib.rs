//! Asks the real compiler about every sample: does it parse, type-check, lint, link?
//!
//! Each sample is a crate of its own, so that no neighbour can change its verdict; equal texts for equal tasks are
//! compiled once. The raw verdict never changes: suggestions that the compiler calls machine-applicable are tried beside it
//! and recorded as such.

mod check;
mod inputs;
mod places;
pub mod policy;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Harness, HarnessError, Libraries, Limits, Toolchain, parallel_map};
use record::compile::{COMPILE_SCHEMA_VERSION, CompileResults};
use sandbox::Sandbox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Context, Outcome, PortSpec, Result, Stage, StageError, files};

/// The stage program.
#[derive(Debug)]
pub struct CompileCheck;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The least isolation under which generated code is compiled: 0 rlimits, 1 Landlock and seccomp, 2 namespaces, 3 a control group.
    pub min_isolation: u8,
    /// Compile even where the machine reaches less.
    pub unsafe_no_sandbox: bool,
    /// Seconds after which one compilation is stopped. Generous: no ordinary test comes near.
    pub compile_timeout_s: u64,
    /// Try the compiler's machine-applicable suggestions on what does not type-check.
    pub fixes: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { min_isolation: 1, unsafe_no_sandbox: false, compile_timeout_s: 120, fixes: true }
    }
}

impl Stage for CompileCheck {
    type Params = Params;
    const NAME: &'static str = "compile-check";
    const INPUTS: &'static [PortSpec] = &[
        PortSpec::required("samples", "samples.jsonl of `generate`"),
        PortSpec::required("corpus", "the corpus that the samples' tasks come from"),
        PortSpec::required("libs", "the libraries of `prebuild-libs`"),
    ];
    const OUTPUTS: &'static [PortSpec] =
        &[PortSpec::required("compile", "compile_results.json: what the compiler says of every sample")];

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        if params.compile_timeout_s == 0 {
            return Err(StageError::usage("compile_timeout_s is 0")
                .at("compile_timeout_s")
                .next("give it some seconds"));
        }
        let harness = prepare(&params, context)?;
        let samples = inputs::samples(context.input("samples")?)?;
        let tasks = inputs::tasks(context.input("corpus")?, &samples)?;
        let threads = usize::try_from(context.resources().cpus).unwrap_or(1);
        let work = inputs::distinct(&samples, threads);
        let progress = context.progress("texts", Some(work.len() as u64));
        let texts: Vec<(&str, &str)> =
            work.keys().map(|(task, text)| (task.as_str(), text.as_str())).collect();
        let judged = parallel_map(threads, &texts, |_, (task, text)| {
            if context.is_cancelled() {
                return Ok(None);
            }
            let (row, focal) = &tasks[*task];
            let judged = check::judge(&harness, row, focal, text, params.fixes).map(Some);
            progress.inc(1);
            judged
        });
        context.check_cancelled()?;
        let mut results = BTreeMap::new();
        for (sample_idxs, judged) in work.values().zip(judged) {
            let Some(judged) = judged.map_err(failed)? else { continue };
            for idx in sample_idxs {
                let sample = &samples[*idx];
                results.insert(*idx, judged.result(sample));
            }
        }
        let results = CompileResults {
            schema_version: COMPILE_SCHEMA_VERSION,
            toolchain: harness.toolchain().version.clone(),
            linter: harness.toolchain().linter.clone(),
            isolation: harness.sandbox().isolation().clone(),
            samples: results.into_values().collect(),
        };
        summarize(&results, context);
        files::write_json(&context.output_dir("compile")?.join("compile_results.json"), &results)?;
        Ok(Outcome::Done)
    }
}

fn prepare(params: &Params, context: &Context) -> Result<Harness> {
    let sandbox = Sandbox::probe();
    let isolation = sandbox.isolation();
    context.log(&format!("isolation level {}: {}", isolation.level, isolation.layers.join(", ")));
    if let Err(error) = sandbox.require(params.min_isolation) {
        if !params.unsafe_no_sandbox {
            return Err(StageError::failed(format!("{error}"))
                .at("min_isolation")
                .next("run where those layers exist, lower min_isolation, or set unsafe_no_sandbox = true and know what it means"));
        }
        context.warn(&format!("{error}; going on, because unsafe_no_sandbox is set"));
    }
    let toolchain = Toolchain::find().map_err(failed)?;
    if toolchain.clippy_driver.is_none() {
        context
            .warn("no clippy-driver beside the compiler: lints are not tested (rustup component add clippy)");
    }
    let libraries = Libraries::load(context.input("libs")?, &toolchain).map_err(failed)?;
    let limits = Limits { compile_wall: Duration::from_secs(params.compile_timeout_s), ..Limits::default() };
    Ok(Harness::new(toolchain, libraries, sandbox, context.scratch().join("jobs"), limits))
}

fn failed(error: HarnessError) -> StageError {
    let next = match &error {
        HarnessError::NoToolchain(_) => "install Rust with rustup",
        HarnessError::Libraries { .. } => "run `prebuild-libs` with this compiler",
        HarnessError::Io { .. } => "check that disk and path",
        _ => "run the stage again; if it stays so, check the compiler with a program of one line",
    };
    StageError::failed(error.to_string()).next(next).because(error)
}

fn summarize(results: &CompileResults, context: &Context) {
    let n = results.samples.len();
    let count = |test: fn(&record::compile::CompileResult) -> bool| {
        results.samples.iter().filter(|s| test(s)).count()
    };
    let type_checks = count(|s| s.type_checks == Some(true));
    let links = count(|s| s.links == Some(true));
    let parses = count(|s| s.parses);
    let refused = count(|s| s.refused.is_some());
    context.log(&format!(
        "{n} samples: {parses} parse, {refused} refused, {type_checks} type-check, {links} link"
    ));
    if n > 0 {
        context.metric("type_check_rate", type_checks as f64 / n as f64, "share", None);
    }
}
