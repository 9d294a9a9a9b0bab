//! Bounded, isolated execution of one command: a compiler on untrusted text, or a program made from it.
//!
//! [`Sandbox::probe`] finds out what this machine can do; [`Sandbox::run`] applies all of it to every child.
//! Layers, from the one that is always there to the one that rarely is:
//! rlimits, a deadline, an empty environment, no standard input (level 0); Landlock and seccomp (1); user, network,
//! process and IPC namespaces (2); a control group with memory and process limits (3).
//!
//! What a child can do at each level, and what it can't, is written down in `tests/escape.rs`.

#![expect(unsafe_code, reason = "forks, confines the child and watches it through bare system calls")]
#![cfg(target_os = "linux")]

mod cgroup;
mod child;
mod command;
mod error;
mod filter;
mod launcher;
mod layers;
mod order;
mod rules;
mod watch;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

pub use command::{Command, Finished, Limits, Profile, Status};
pub use error::SandboxError;

use record::compile::Isolation;

use cgroup::Lease;
use launcher::{Launched, Launcher};
use layers::Layers;
use order::Files;
use watch::{Drain, Watched};

/// What this machine can put between a child and the rest of the system.
#[derive(Debug, Clone)]
pub struct Sandbox {
    layers: Layers,
    isolation: Isolation,
    /// `None` where it could not be started: then each command gets its own.
    launcher: Option<Arc<Launcher>>,
}

impl Sandbox {
    /// Tries every layer once, for real. Also makes the small process that starts every command: the less memory the
    /// program holds when it calls this, the faster commands start.
    #[must_use]
    pub fn probe() -> Self {
        let launcher = Launcher::start().ok().map(Arc::new);
        let layers = Layers::probe();
        let isolation = layers.isolation();
        Self { layers, isolation, launcher }
    }

    /// The same sandbox with the layers above `level` left off; for tests of what the lower layers hold alone.
    #[must_use]
    pub fn at_most(&self, level: u8) -> Self {
        let mut layers = self.layers.clone();
        if level < 3 {
            layers.cgroup = None;
        }
        if level < 2 {
            layers.namespaces = None;
        }
        if level < 1 {
            layers.landlock_abi = None;
            layers.seccomp = false;
        }
        let isolation = layers.isolation();
        Self { layers, isolation, launcher: self.launcher.clone() }
    }

    /// The level and layers that every [`Sandbox::run`] gets.
    #[must_use]
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// # Errors
    /// When the machine reaches less than `level`: the message names the missing layers.
    pub fn require(&self, level: u8) -> Result<(), SandboxError> {
        let reached = self.isolation.level;
        if reached >= level {
            return Ok(());
        }
        Err(SandboxError::Level { wanted: level, reached, missing: self.layers.missing(level) })
    }

    /// Runs the command to its end or its deadline; nothing of it is alive afterwards.
    ///
    /// # Errors
    /// When the child can't be started or watched. A child that fails, is killed or runs out of time is no error.
    pub fn run(&self, command: &Command) -> Result<Finished, SandboxError> {
        let system = SandboxError::system;
        let prepared = self.layers.prepare(command)?;
        let pipe = || watch::pipe().map_err(system("make a pipe"));
        let (from_init, status) = pipe()?;
        let (stdout, child_stdout) = pipe()?;
        let (stderr, child_stderr) = pipe()?;
        let (verdicts, child_verdicts) = match &command.verdict_fd_env {
            Some(_) => pipe().map(|(read, write)| (Some(read), Some(write)))?,
            None => (None, None),
        };
        let began = Instant::now();
        let files = Files {
            stdout: child_stdout.as_fd(),
            stderr: child_stderr.as_fd(),
            status: status.as_fd(),
            landlock: prepared.landlock.as_ref().map(AsFd::as_fd),
            verdicts: child_verdicts.as_ref().map(AsFd::as_fd),
            groups: prepared.group.iter().flat_map(Lease::members).map(AsFd::as_fd).collect(),
        };
        let mut watched = self.launch(command, &order::encode(command, &prepared, &files)?, &files)?;
        drop((status, child_stdout, child_stderr, child_verdicts));
        let keep = command.limits.output_bytes;
        let drain =
            |pipe: Option<OwnedFd>| Drain::new(pipe.map(File::from), keep).map_err(system("read a pipe"));
        let (mut out, mut err) = (drain(Some(stdout))?, drain(Some(stderr))?);
        let mut verdicts = drain(verdicts)?;
        let ended = watched.wait(&mut out, &mut err, &mut verdicts, began + command.limits.wall);
        let (status, cpu) = watched.end().map_err(system("wait for a child"))?;
        let wall = began.elapsed();
        drop(prepared);
        watch::drain_rest(&mut out);
        watch::drain_rest(&mut err);
        watch::drain_rest(&mut verdicts);
        let status = match ended.map_err(system("watch a child"))? {
            false => Status::TimedOut,
            true => reported(from_init.into(), status).map_err(system("read a pipe"))?,
        };
        let truncated = out.truncated || err.truncated || verdicts.truncated;
        Ok(Finished {
            status,
            stdout: out.bytes,
            stderr: err.bytes,
            verdicts: verdicts.bytes,
            truncated,
            wall,
            cpu,
        })
    }

    fn launch(&self, command: &Command, order: &[u8], files: &Files) -> Result<Watched, SandboxError> {
        let start = |source| SandboxError::Start { program: command.program.clone(), source };
        let own;
        let launcher = match &self.launcher {
            Some(launcher) => launcher.as_ref(),
            None => {
                own = Launcher::start().map_err(start)?;
                &own
            }
        };
        let Launched { pid, failure } = launcher.launch(order, files).map_err(start)?;
        let watched = pid.map(Watched::new);
        match (watched, failure) {
            (Some(watched), None) => Ok(watched),
            (_, failure) => Err(start(failure.unwrap_or_else(|| io::ErrorKind::Other.into()))),
        }
    }
}

/// The status that the init of the namespace saw, else the child's own.
fn reported(mut from_init: File, own: ExitStatus) -> io::Result<Status> {
    let mut bytes = Vec::new();
    from_init.read_to_end(&mut bytes)?;
    let status = bytes.try_into().map_or(own, |raw| ExitStatus::from_raw(i32::from_ne_bytes(raw)));
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Status::Exit(code),
        (None, Some(signal)) => Status::Signal(signal),
        (None, None) => Status::Signal(0),
    })
}
