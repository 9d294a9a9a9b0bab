//! The trait of a stage program and its `main`.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use record::exit::ExitCode;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::{self, Call};
use crate::{Context, Result, StageError};

/// A stage program.
///
/// `Params` has `#[serde(deny_unknown_fields, default)]` and a `Default`, so that every parameter has one documented default.
pub trait Stage {
    type Params: Serialize + DeserializeOwned + JsonSchema + Default;
    const NAME: &'static str;
    const INPUTS: &'static [PortSpec];
    const OUTPUTS: &'static [PortSpec];
    /// Short command-line options beside `--input`, `--output` and `--set`.
    const ALIASES: &'static [Alias] = &[];
    /// What `--help` says after the parameters.
    const MORE_HELP: &'static str = "";

    /// Whether a name in the checkpoint folder is one that this program gives. By hand the folder may hold other files, which
    /// stay when the work is done.
    fn is_checkpoint(_name: &str) -> bool {
        false
    }

    /// Does the work: reads inputs, writes into [`Context::output_dir`], returns. Called once.
    ///
    /// # Errors
    /// A [`StageError`] says what, where and the next step; nothing half-written remains.
    fn run(params: Self::Params, context: &Context) -> Result<Outcome>;
}

/// How a stage ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The work was done, and a gate that was asked for is not met: exit code 4.
    GateNotMet,
    /// The work was done, and its result is worse than the one it was compared with: exit code 3, outputs kept.
    Regression,
}

/// An input or output, as the program declares it.
#[derive(Debug, Clone, Copy)]
pub struct PortSpec {
    pub name: &'static str,
    pub description: &'static str,
    pub required: bool,
    pub volatile: bool,
}

impl PortSpec {
    pub const fn required(name: &'static str, description: &'static str) -> Self {
        Self { name, description, required: true, volatile: false }
    }

    pub const fn optional(name: &'static str, description: &'static str) -> Self {
        Self { name, description, required: false, volatile: false }
    }

    /// An output of wall-clock values; optional.
    pub const fn volatile(name: &'static str, description: &'static str) -> Self {
        Self { name, description, required: false, volatile: true }
    }
}

/// `--option VALUE` (or a bare `--option` for [`Target::Flag`]) for a port or a parameter.
#[derive(Debug, Clone, Copy)]
pub struct Alias {
    pub option: &'static str,
    pub target: Target,
}

#[derive(Debug, Clone, Copy)]
pub enum Target {
    Input(&'static str),
    Output(&'static str),
    Param(&'static str),
    /// Sets a boolean parameter.
    Flag(&'static str),
}

/// The whole of a stage program's `main`.
pub fn main<S: Stage>() -> std::process::ExitCode {
    match call::<S>() {
        Ok(code) => code.into(),
        Err(error) => {
            let code = error.code();
            let _ = writeln!(std::io::stderr(), "{:?}", miette::Report::new(error));
            code.into()
        }
    }
}

fn call<S: Stage>() -> Result<ExitCode> {
    let call = match cli::parse::<S>(std::env::args_os())? {
        Call::Run(call) => *call,
        Call::Print { text, code } => {
            let _ = match code {
                ExitCode::Ok => std::io::stdout().write_all(text.as_bytes()),
                _ => std::io::stderr().write_all(text.as_bytes()),
            };
            return Ok(code);
        }
    };
    let cancelled = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&cancelled))
            .map_err(|e| StageError::internal(format!("can't listen for signals: {e}")))?;
    }
    let params = cli::params::<S>(&call.request.params)?;
    let scratch = call.request.scratch.clone();
    let context = Context::new(call.request, call.by_hand, call.overwrite, cancelled);
    let outcome = context.and_then(|context| execute::<S>(params, &context));
    if call.by_hand {
        let _ = std::fs::remove_dir_all(scratch);
    }
    match outcome? {
        Outcome::Done => Ok(ExitCode::Ok),
        Outcome::GateNotMet => Ok(ExitCode::GateNotMet),
        Outcome::Regression => Ok(ExitCode::StageFailed),
    }
}

pub(crate) fn execute<S: Stage>(params: S::Params, context: &Context) -> Result<Outcome> {
    let missing = S::OUTPUTS.iter().find(|output| output.required && !context.wants(output.name));
    let asked = missing.map_or(Ok(()), |output| Err(context.no_output(output.name)));
    let outcome = asked
        .and_then(|()| S::run(params, context))
        .and_then(|outcome| context.commit(S::is_checkpoint).map(|()| outcome));
    if outcome.is_err() {
        context.discard();
    }
    outcome
}
