//! Exit codes of every program.

/// What a program's exit status means; the same in the runner, the stages and the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Ok = 0,
    /// A fault of the program itself.
    Internal = 1,
    /// The command line, the configuration or a parameter is wrong; nothing was done.
    Usage = 2,
    /// A stage could not do its work (damaged input, full disk, a failed child program).
    StageFailed = 3,
    /// The work was done and a gate was not met.
    GateNotMet = 4,
    /// A verification found a difference.
    VerificationMismatch = 5,
    /// The same command may succeed later.
    Retryable = 75,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
