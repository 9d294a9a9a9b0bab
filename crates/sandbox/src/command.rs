//! What to run, within which limits, and how it ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// What kind of program the child is; decides which system calls it may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A trusted tool on untrusted input (a compiler): may start children and read system folders.
    Tool,
    /// An untrusted program: a single process that sees its own file and the system's shared libraries.
    Program,
}

/// Bounds of one execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From start to end; everything is killed afterwards.
    pub wall: Duration,
    /// CPU seconds of one process.
    pub cpu_s: u64,
    /// Address space of one process; with a cgroup, the memory of all of them together.
    pub memory_bytes: u64,
    /// Size of any one file written.
    pub file_bytes: u64,
    /// Processes and threads, where the machine lets them be bounded.
    pub processes: u64,
    /// Kept of stdout, of stderr and of the verdict pipe, each; the rest is read and dropped.
    pub output_bytes: usize,
}

/// One command. The environment is cleared first; stdin is null.
#[derive(Debug, Clone)]
pub struct Command {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: BTreeMap<OsString, OsString>,
    pub current_dir: PathBuf,
    /// Files and folders that may be read and executed, beside the program and what its [`Profile`] brings.
    pub readable: Vec<PathBuf>,
    /// Folders that may be read and written.
    pub writable: Vec<PathBuf>,
    pub limits: Limits,
    pub profile: Profile,
    /// Opens a pipe for verdicts: the child finds its number in the variable with this name.
    pub verdict_fd_env: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Exit(i32),
    Signal(i32),
    TimedOut,
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct Finished {
    pub status: Status,
    /// The first `output_bytes` of it.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What came through the verdict pipe.
    pub verdicts: Vec<u8>,
    /// Some output was dropped.
    pub truncated: bool,
    pub wall: Duration,
    /// Time on a CPU, of the command and of what it waited for: unlike `wall` it says little of what else the machine does.
    pub cpu: Duration,
}
