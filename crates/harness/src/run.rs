//! Compile, lint, link, build and run, each in the sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use record::mutation::TestOutcome;
use sandbox::Sandbox;

use crate::{Compilation, CrateKind, HarnessError, Libraries, TestProgram, Toolchain};

/// Deadlines and sizes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub compile_wall: Duration,
    pub compile_memory_bytes: u64,
    pub run_memory_bytes: u64,
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compile_wall: Duration::from_secs(120),
            compile_memory_bytes: 6 << 30,
            run_memory_bytes: 2 << 30,
            output_bytes: 1 << 20,
        }
    }
}

/// How to run a built program.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Beside what the harness itself sets (`TESTFORGE_MUTANT`, `TESTFORGE_FUEL`, ...).
    pub env: BTreeMap<String, String>,
    /// `None`: every test.
    pub only: Option<Vec<String>>,
    /// For one process. Generous: loop fuel decides hangs, this is for what fuel does not see.
    pub wall: Duration,
    /// Stop after the first test that does not pass; the others are absent from the verdicts.
    pub fail_fast: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { env: BTreeMap::new(), only: None, wall: Duration::from_secs(20), fail_fast: false }
    }
}

/// A program that was built. Deletes its folder when dropped.
#[derive(Debug)]
pub struct TestBinary {
    pub(crate) path: PathBuf,
    pub(crate) tests: Vec<String>,
}

impl TestBinary {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn tests(&self) -> &[String] {
        &self.tests
    }
}

#[derive(Debug)]
pub enum Build {
    Ready(TestBinary),
    Failed(Compilation),
}

/// The verdicts of one run.
#[derive(Debug, Clone, Default)]
pub struct TestRun {
    /// By test name.
    pub verdicts: BTreeMap<String, TestOutcome>,
    /// What the hook said after each test that reported, by test name.
    pub extra: BTreeMap<String, String>,
    pub wall: Duration,
}

/// A compiler, its libraries and a sandbox.
#[derive(Debug, Clone)]
pub struct Harness {
    toolchain: Toolchain,
    libraries: Libraries,
    sandbox: Sandbox,
    scratch: PathBuf,
    limits: Limits,
}

impl Harness {
    /// `scratch` is a folder for temporary files; each call makes and deletes its own inside it.
    #[must_use]
    pub fn new(toolchain: Toolchain, libraries: Libraries, sandbox: Sandbox, scratch: PathBuf, limits: Limits) -> Self {
        Self { toolchain, libraries, sandbox, scratch, limits }
    }

    #[must_use]
    pub fn toolchain(&self) -> &Toolchain {
        &self.toolchain
    }

    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    #[must_use]
    pub fn libraries(&self) -> &Libraries {
        &self.libraries
    }

    /// Parses, resolves, type- and borrow-checks; writes metadata only.
    ///
    /// # Errors
    /// When the compiler can't be run; code that does not compile is a [`Compilation`] without success.
    pub fn check(&self, _source: &str, _kind: CrateKind) -> Result<Compilation, HarnessError> {
        Err(self.unavailable())
    }

    /// The same through `clippy-driver` with its default lints; `None` when there is none.
    ///
    /// # Errors
    /// As [`Harness::check`].
    pub fn lint(&self, _source: &str, _kind: CrateKind) -> Result<Option<Compilation>, HarnessError> {
        Err(self.unavailable())
    }

    /// `rustc --test` down to an executable: what `cargo test --no-run` would say.
    ///
    /// # Errors
    /// As [`Harness::check`].
    pub fn link(&self, _source: &str) -> Result<Compilation, HarnessError> {
        Err(self.unavailable())
    }

    /// Compiles and links a program of tests.
    ///
    /// # Errors
    /// As [`Harness::check`].
    pub fn build(&self, _program: &TestProgram) -> Result<Build, HarnessError> {
        Err(self.unavailable())
    }

    /// Runs the program's tests in fresh processes until each has a verdict.
    ///
    /// # Errors
    /// When the sandbox can't start the program.
    pub fn run(&self, _binary: &TestBinary, _options: &RunOptions) -> Result<TestRun, HarnessError> {
        Err(self.unavailable())
    }

    fn unavailable(&self) -> HarnessError {
        HarnessError::Compiler(format!("{} is not wired to {:?} yet, {:?}", self.scratch.display(), self.libraries, self.limits))
    }
}
