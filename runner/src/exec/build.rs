//! The pipeline's `[build]` command: once before a run, where a program is missing or older than its sources.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use record::exit::ExitCode;
use rustix::process::{Pid, Signal};

use super::Cancellation;
use super::process::signal;
use crate::config::Pipeline;
use crate::error::{Result, RunnerError};
use crate::resolve::{Stale, Surroundings, stale};

/// Set by `cargo run` for its child; a nested cargo that sees them runs build scripts again.
const CARGO_VARIABLES: [&str; 3] = ["CARGO", "LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN"];
const CARGO_PREFIXES: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];

/// Why a build is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildNeed {
    Missing(String),
    Stale(Stale),
}

impl std::fmt::Display for BuildNeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(program) => write!(f, "the program `{program}` is not built"),
            Self::Stale(stale) => {
                write!(f, "{} is older than its source {}", stale.program.display(), stale.source.display())
            }
        }
    }
}

/// The first program of the pipeline that the build command must make; `None`: all are up to date.
pub fn build_need(pipeline: &Pipeline, surroundings: &Surroundings) -> Option<BuildNeed> {
    let names = pipeline.stages.values().filter_map(|s| s.run.first()).map(|a| &a.value);
    let mut names: Vec<&String> = names.filter(|name| !name.contains('/')).collect();
    names.sort();
    names.dedup();
    names.into_iter().find_map(|name| match surroundings.find_program(&pipeline.dir, name) {
        None => Some(BuildNeed::Missing(name.clone())),
        Some(program) => stale(&program).map(BuildNeed::Stale),
    })
}

/// Runs the build command with its output on standard error.
///
/// # Errors
/// It can't be started, fails, or the run is interrupted.
pub fn run_build(
    pipeline: &Pipeline,
    command: &[String],
    surroundings: &Surroundings,
    cancellation: &Cancellation,
) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let shown = command.join(" ");
    let failed = |reason: String| {
        RunnerError::new(
            ExitCode::StageFailed,
            format!("the build command `{shown}` {reason}"),
            "repair the build, or run with --no-build to use the programs as they are",
        )
    };
    let kept = surroundings.environment.iter().filter(|(name, _)| !is_cargo_variable(name));
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(&pipeline.dir)
        .env_clear()
        .envs(kept)
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .process_group(0)
        .spawn()
        .map_err(|e| failed(format!("can't be started: {e}")))?;
    let group = Pid::from_child(&child);
    let mut asked = false;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if asked => {
                let _ = status;
                return Err(RunnerError::interrupted());
            }
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(format!("failed ({status})"))),
            Ok(None) => {}
            Err(e) => return Err(failed(format!("was lost: {e}"))),
        }
        if cancellation.urgent() {
            signal(group, Signal::KILL);
        } else if cancellation.asked() && !asked {
            asked = true;
            signal(group, Signal::TERM);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_cargo_variable(name: &OsString) -> bool {
    let text = name.to_string_lossy();
    CARGO_VARIABLES.iter().any(|v| name.as_os_str() == OsStr::new(v))
        || CARGO_PREFIXES.iter().any(|prefix| text.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_sets_for_its_child_is_removed() {
        for name in ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN"] {
            assert!(is_cargo_variable(&name.into()), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "PATH", "RUSTFLAGS"] {
            assert!(!is_cargo_variable(&name.into()), "{name}");
        }
    }
}
