//! Compile, lint, link, build and run, each in the sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use record::mutation::{TestOutcome, Verdict};
use sandbox::{Command, Finished, Profile, Sandbox, Status};
use tempfile::TempDir;

use crate::compile::read_messages;
use crate::program::{RUNTIME, RUNTIME_NAME};
use crate::verdicts::{Report, given_up, not_run, unreported};
use crate::{Compilation, CrateKind, EDITION, HarnessError, Libraries, TestProgram, Toolchain};

/// The name of the compiled text in messages and in `file!()`.
const FILE: &str = "row.rs";
/// The compiler takes no other name for a library.
const RUNTIME_FILE: &str = "lib__testforge_runtime.rlib";
/// Room for what the hook says after each of many tests.
const VERDICT_BYTES: usize = 8 << 20;
/// Tests of one program that may be stopped at their deadline before the others are given up.
const MAX_STOPPED: usize = 3;
/// `PROPTEST_RNG_SEED` of every run: property tests draw the same cases each time.
pub const PROPTEST_SEED: &str = "6070118";

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
    path: PathBuf,
    tests: Vec<String>,
    hidden: Vec<String>,
    _dir: TempDir,
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
    /// Tests that are not in the program, because a condition left them out: the standard harness would not name them.
    pub absent: BTreeSet<String>,
    pub wall: Duration,
    /// Time on a CPU.
    pub cpu: Duration,
}

/// A compiler, its libraries and a sandbox.
#[derive(Debug, Clone)]
pub struct Harness {
    toolchain: Toolchain,
    libraries: Libraries,
    sandbox: Sandbox,
    scratch: PathBuf,
    limits: Limits,
    /// The folder with the compiled runtime, once a program was built. Clones share it.
    runtime: Arc<Mutex<Option<TempDir>>>,
}

impl Harness {
    /// `scratch` is a folder for temporary files; each call makes and deletes its own inside it.
    #[must_use]
    pub fn new(
        toolchain: Toolchain,
        libraries: Libraries,
        sandbox: Sandbox,
        scratch: PathBuf,
        limits: Limits,
    ) -> Self {
        Self { toolchain, libraries, sandbox, scratch, limits, runtime: Arc::default() }
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
    pub fn check(&self, source: &str, kind: CrateKind) -> Result<Compilation, HarnessError> {
        let dir = self.job(source)?;
        let mut args = vec!["--emit=metadata"];
        args.push(match kind {
            CrateKind::Lib => "--crate-type=lib",
            CrateKind::Test => "--test",
        });
        self.judge(&self.toolchain.rustc, dir.path(), &args)
    }

    /// The same through `clippy-driver` with its default lints; `None` when there is none.
    ///
    /// # Errors
    /// As [`Harness::check`].
    pub fn lint(&self, source: &str, kind: CrateKind) -> Result<Option<Compilation>, HarnessError> {
        let Some(driver) = &self.toolchain.clippy_driver else { return Ok(None) };
        let dir = self.job(source)?;
        // Without one of its own the linter would look for settings in the folders above.
        write(&dir.path().join("clippy.toml"), "")?;
        let mut args = vec!["--emit=metadata"];
        args.push(match kind {
            CrateKind::Lib => "--crate-type=lib",
            CrateKind::Test => "--test",
        });
        self.judge(driver, dir.path(), &args).map(Some)
    }

    /// `rustc --test` down to an executable: what `cargo test --no-run` would say.
    ///
    /// # Errors
    /// As [`Harness::check`].
    pub fn link(&self, source: &str) -> Result<Compilation, HarnessError> {
        let dir = self.job(source)?;
        self.judge(&self.toolchain.rustc, dir.path(), &["--emit=link", "--test", "-o", "row"])
    }

    /// Compiles and links a program of tests. Lints are off: they were judged elsewhere.
    ///
    /// # Errors
    /// As [`Harness::check`].
    pub fn build(&self, program: &TestProgram) -> Result<Build, HarnessError> {
        let runtime = self.runtime()?;
        let dir = self.job(&program.source)?;
        let mut runtime_extern = OsString::from(format!("--extern={RUNTIME_NAME}="));
        runtime_extern.push(&runtime);
        let args = [
            "--emit=link",
            "--crate-type=bin",
            "--crate-name=row",
            "--cfg",
            "test",
            "--cap-lints=allow",
            "-o",
            "row",
        ];
        let args: Vec<OsString> = args.iter().map(OsString::from).chain([runtime_extern]).collect();
        let compilation = self.compile(&self.toolchain.rustc, dir.path(), args, &[runtime])?;
        if !compilation.success {
            return Ok(Build::Failed(compilation));
        }
        let path = dir.path().join("row");
        let (tests, hidden) = (program.tests.clone(), program.hidden.clone());
        Ok(Build::Ready(TestBinary { path, tests, hidden, _dir: dir }))
    }

    /// Runs the program's tests, in one process as long as they let it live. A test whose process ends before it reports
    /// is run again alone, so that no other test's doing is laid to it; the tests after it go on in a new process.
    ///
    /// # Errors
    /// When the sandbox can't start the program.
    pub fn run(&self, binary: &TestBinary, options: &RunOptions) -> Result<TestRun, HarnessError> {
        let only: Option<BTreeSet<&String>> = options.only.as_ref().map(|only| only.iter().collect());
        let is_wanted = |name: &String| only.as_ref().is_none_or(|only| only.contains(name));
        let mut pending: Vec<String> = binary.tests.iter().filter(|name| is_wanted(name)).cloned().collect();
        let mut run = TestRun::default();
        for name in binary.hidden.iter().filter(|name| is_wanted(name)) {
            run.verdicts.insert(name.clone(), not_run(name));
        }
        let mut n_stopped = 0;
        while !pending.is_empty() {
            if n_stopped >= MAX_STOPPED {
                run.verdicts.extend(pending.drain(..).map(|name| (name.clone(), given_up(&name))));
                break;
            }
            let (report, finished) = self.once(binary, options, &pending)?;
            run.wall += finished.wall;
            run.cpu += finished.cpu;
            // What ran first had the process for itself; so had a single test.
            let was_alone = report.verdicts.is_empty();
            let (unfinished, done) = (report.unfinished.clone(), report.done);
            run.take(report);
            if done {
                if !(options.fail_fast && run.has_failure()) {
                    let not_begun = pending.iter().filter(|name| !run.verdicts.contains_key(*name));
                    run.absent = not_begun.cloned().collect();
                }
                break;
            }
            // With no test begun, the process ended before its `main`, or lost its pipe: the first one is tried alone.
            let culprit =
                unfinished.or_else(|| pending.iter().find(|name| !run.verdicts.contains_key(*name)).cloned());
            let stopped = options.fail_fast && run.has_failure();
            if let Some(name) = culprit.filter(|_| !stopped) {
                let outcome = match was_alone {
                    true => unreported(&name, finished.status),
                    false => self.alone(binary, options, &name, &mut run)?,
                };
                n_stopped += usize::from(outcome.verdict == Verdict::Timeout);
                run.verdicts.insert(name, outcome);
            }
            if options.fail_fast && run.has_failure() {
                break;
            }
            pending.retain(|name| !run.verdicts.contains_key(name));
        }
        Ok(run)
    }

    fn alone(
        &self,
        binary: &TestBinary,
        options: &RunOptions,
        name: &str,
        run: &mut TestRun,
    ) -> Result<TestOutcome, HarnessError> {
        let (mut report, finished) = self.once(binary, options, std::slice::from_ref(&name.to_owned()))?;
        run.wall += finished.wall;
        run.cpu += finished.cpu;
        run.extra.append(&mut report.extra);
        Ok(report.verdicts.remove(name).unwrap_or_else(|| unreported(name, finished.status)))
    }

    fn once(
        &self,
        binary: &TestBinary,
        options: &RunOptions,
        only: &[String],
    ) -> Result<(Report, Finished), HarnessError> {
        let nonce = nonce();
        let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
        let mut set = |name: &str, value: &str| env.insert(name.into(), value.into());
        set("RUST_BACKTRACE", "0");
        set("PROPTEST_RNG_SEED", PROPTEST_SEED);
        set("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
        set("PROPTEST_MAX_SHRINK_ITERS", "256");
        for (name, value) in &options.env {
            set(name, value);
        }
        set("TESTFORGE_NONCE", &nonce);
        set("TESTFORGE_ONLY", &selection(&binary.tests, only));
        if options.fail_fast {
            set("TESTFORGE_FAIL_FAST", "1");
        }
        let finished = self.sandbox.run(&Command {
            program: binary.path.clone(),
            args: Vec::new(),
            env,
            current_dir: PathBuf::from("/"),
            readable: Vec::new(),
            writable: Vec::new(),
            limits: sandbox::Limits {
                wall: options.wall,
                // The deadline decides; this one is for a process that escaped it.
                cpu_s: options.wall.as_secs().saturating_mul(4) + 10,
                memory_bytes: self.limits.run_memory_bytes,
                file_bytes: 1 << 20,
                processes: 64,
                output_bytes: self.limits.output_bytes.max(VERDICT_BYTES),
            },
            profile: Profile::Program,
            verdict_fd_env: Some("TESTFORGE_FD".to_owned()),
        })?;
        let mut report = Report::read(&finished.verdicts, &nonce);
        let folder = binary.path.parent().unwrap_or(&binary.path);
        for folder in [folder.canonicalize().as_deref().unwrap_or(folder), folder] {
            report.without_folder(&folder.to_string_lossy());
        }
        Ok((report, finished))
    }

    /// The library of the runtime, compiled when it is first needed.
    fn runtime(&self) -> Result<PathBuf, HarnessError> {
        let mut built = self.runtime.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(dir) = &*built {
            return Ok(dir.path().join(RUNTIME_FILE));
        }
        let dir = self.job(RUNTIME)?;
        let name = format!("--crate-name={RUNTIME_NAME}");
        let args = ["--emit=link", "--crate-type=rlib", &name, "-o", RUNTIME_FILE].map(OsString::from);
        let compilation = self.compile(&self.toolchain.rustc, dir.path(), args.into(), &[])?;
        if !compilation.success {
            let why = compilation.diagnostics.into_iter().map(|d| d.message).chain(compilation.stopped);
            return Err(HarnessError::Compiler(format!(
                "the test runtime: {}",
                why.collect::<Vec<_>>().join("; ")
            )));
        }
        Ok(built.insert(dir).path().join(RUNTIME_FILE))
    }

    /// A fresh folder with the text in it.
    fn job(&self, source: &str) -> Result<TempDir, HarnessError> {
        let fail =
            |source| HarnessError::Io { action: "create a folder in", path: self.scratch.clone(), source };
        std::fs::create_dir_all(&self.scratch).map_err(fail)?;
        let dir = tempfile::Builder::new().prefix("job-").tempdir_in(&self.scratch).map_err(fail)?;
        write(&dir.path().join(FILE), source)?;
        Ok(dir)
    }

    fn judge(&self, compiler: &Path, dir: &Path, args: &[&str]) -> Result<Compilation, HarnessError> {
        let args = args.iter().map(OsString::from).chain(["--crate-name=row".into()]);
        self.compile(compiler, dir, args.collect(), &[])
    }

    fn compile(
        &self,
        compiler: &Path,
        dir: &Path,
        args: Vec<OsString>,
        more_readable: &[PathBuf],
    ) -> Result<Compilation, HarnessError> {
        let dir = dir.canonicalize().map_err(|source| HarnessError::Io {
            action: "find",
            path: dir.to_path_buf(),
            source,
        })?;
        let mut all: Vec<OsString> = vec![FILE.into(), "--error-format=json".into()];
        all.push(format!("--edition={EDITION}").into());
        all.extend(args);
        let mut readable = self.toolchain.path.clone();
        readable.push(self.toolchain.sysroot.clone());
        readable.extend_from_slice(more_readable);
        if let Some(libs) = &self.libraries.dir {
            all.extend(["-L".into(), join("dependency=", libs)]);
            for (name, file) in &self.libraries.externs {
                all.extend(["--extern".into(), join(&format!("{name}="), file)]);
            }
            readable.push(libs.clone());
        }
        let env = [
            ("PATH".into(), self.toolchain.path_variable()),
            ("TMPDIR".into(), dir.clone().into()),
            ("LC_ALL".into(), "C".into()),
            ("RUST_BACKTRACE".into(), "0".into()),
        ];
        let command = Command {
            program: compiler.to_path_buf(),
            args: all,
            env: env.into(),
            current_dir: dir.clone(),
            readable,
            writable: vec![dir.clone()],
            limits: sandbox::Limits {
                wall: self.limits.compile_wall,
                cpu_s: self.limits.compile_wall.as_secs().saturating_mul(2) + 10,
                memory_bytes: self.limits.compile_memory_bytes,
                file_bytes: 1 << 30,
                processes: 512,
                output_bytes: self.limits.output_bytes,
            },
            profile: Profile::Tool,
            verdict_fd_env: None,
        };
        let first = compilation(&self.sandbox.run(&command)?, &dir)?;
        // Code that can't be linked can't be linked again; a linker that a full machine stopped can.
        if first.diagnostics.iter().any(|d| d.level == "error" && d.message.starts_with("linking with")) {
            return compilation(&self.sandbox.run(&command)?, &dir);
        }
        Ok(first)
    }
}

impl TestRun {
    fn take(&mut self, report: Report) {
        self.verdicts.extend(report.verdicts);
        self.extra.extend(report.extra);
    }

    fn has_failure(&self) -> bool {
        self.verdicts.values().any(|outcome| !matches!(outcome.verdict, Verdict::Passed | Verdict::Ignored))
    }
}

/// `dir` has another name each time: in messages it becomes `.`.
fn compilation(finished: &Finished, dir: &Path) -> Result<Compilation, HarnessError> {
    let stderr = String::from_utf8_lossy(&finished.stderr).replace(&*dir.to_string_lossy(), ".");
    let (diagnostics, rest) = read_messages(&stderr, FILE);
    let stopped = match finished.status {
        Status::Exit(0 | 1) => None,
        Status::Exit(101) => Some("the compiler crashed".to_owned()),
        Status::Exit(code) => Some(format!("the compiler ended with exit code {code}")),
        Status::Signal(signal) => {
            Some(format!("the compiler was ended by signal {signal} (memory or CPU limit)"))
        }
        Status::TimedOut => Some("the compiler was stopped at its deadline".to_owned()),
    };
    let success = finished.status == Status::Exit(0);
    let says_why = diagnostics.iter().any(|d| d.level == "error");
    if finished.status == Status::Exit(1) && !says_why && !finished.truncated {
        return Err(HarnessError::Compiler(rest.trim().to_owned()));
    }
    if let Some(missing) =
        diagnostics.iter().find(|d| d.message.contains("linker") && d.message.contains("not found"))
    {
        return Err(HarnessError::Compiler(format!("{}; install a C compiler", missing.message)));
    }
    Ok(Compilation { success, stopped, diagnostics })
}

fn join(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

fn write(path: &Path, text: &str) -> Result<(), HarnessError> {
    let fail = |source| HarnessError::Io { action: "write", path: path.to_path_buf(), source };
    std::fs::write(path, text).map_err(fail)
}

/// Which tests to run, as the runtime reads it. Names would not fit: a variable holds 128 KiB, and a generated suite may
/// have thousands of tests.
fn selection(tests: &[String], only: &[String]) -> String {
    let only: BTreeSet<&String> = only.iter().collect();
    let digit = |four: &[String]| {
        let chosen = four.iter().enumerate().filter(|(_, name)| only.contains(name));
        char::from_digit(chosen.fold(0, |bits, (i, _)| bits | 1 << i), 16).unwrap_or('0')
    };
    tests.chunks(4).map(digit).collect()
}

/// 128 bits that the program under test can't guess: the standard library's hash keys come from the system's random source.
fn nonce() -> String {
    let word = || std::hash::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", word(), word())
}
