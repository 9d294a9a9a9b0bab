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
mod layers;
mod rules;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

pub use command::{Command, Finished, Limits, Profile, Status};
pub use error::SandboxError;

use record::compile::Isolation;

use layers::Layers;
use watch::{Drain, Watched};

/// What this machine can put between a child and the rest of the system.
#[derive(Debug, Clone)]
pub struct Sandbox {
    layers: Layers,
    isolation: Isolation,
}

impl Sandbox {
    /// Tries every layer once, for real.
    #[must_use]
    pub fn probe() -> Self {
        let layers = Layers::probe();
        let isolation = layers.isolation();
        Self { layers, isolation }
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
        Self { layers, isolation }
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
        let start = |source| SandboxError::Start { program: command.program.clone(), source };
        let (mut prepared, group) = self.layers.prepare(command)?;
        let (from_init, to_parent) = watch::pipe().map_err(system("make a pipe"))?;
        prepared.status = Some(to_parent);
        let mut process = std::process::Command::new(&command.program);
        process.args(&command.args).env_clear().envs(&command.env).current_dir(&command.current_dir);
        process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut verdict_pipe = None;
        if let Some(variable) = &command.verdict_fd_env {
            let (read, write) = watch::pipe().map_err(system("make a pipe"))?;
            process.env(variable, OsString::from(write.as_raw_fd().to_string()));
            prepared.verdicts = Some(write);
            verdict_pipe = Some(File::from(read));
        }
        // SAFETY: `apply` makes system calls only, on what was prepared here.
        unsafe { process.pre_exec(move || prepared.apply()) };

        let began = Instant::now();
        let mut child = process.spawn().map_err(start)?;
        // The child's ends of the pipes live in `process`.
        drop(process);
        let watched = Watched::new(child.id());
        let keep = command.limits.output_bytes;
        let mut out = Drain::new(child.stdout.take(), keep).map_err(system("read a pipe"))?;
        let mut err = Drain::new(child.stderr.take(), keep).map_err(system("read a pipe"))?;
        let mut verdicts = Drain::new(verdict_pipe, keep).map_err(system("read a pipe"))?;
        let ended = watched.wait(&mut out, &mut err, &mut verdicts, began + command.limits.wall);
        watched.kill_group();
        let status = child.wait().map_err(system("wait for a child"))?;
        let wall = began.elapsed();
        drop(group);
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
        })
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
