//! Support for the end-to-end tests: the real programs, and a folder to run pipelines in.

#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails by panicking")]

pub mod fixture;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The folder of the programs, built once per test process in the profile of the tests.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let folder = test.parent().unwrap().parent().unwrap().to_owned();
        let mut cargo = Command::new("cargo");
        // Beside a test, libraries are built as for tests: without one, half of them would be built once more.
        cargo.args(["build", "--workspace", "--bins", "--test", "house", "--locked", "--quiet"]);
        cargo.current_dir(repository());
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let inherited = ["CARGO", "LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN"].contains(&text.as_ref());
            if inherited || text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        cargo.env("CARGO_TARGET_DIR", folder.parent().unwrap());
        assert!(cargo.status().unwrap().success(), "the programs do not build");
        folder
    })
}

/// The checkout that the tests were built from.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Golden values of the reference implementations.
pub fn golden(name: &str) -> PathBuf {
    repository().join("tests/data/golden").join(name)
}

/// A stage program or the runner, with an environment in which only what a test sets counts.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(programs().join(name));
    for variable in ["TESTFORGE_REQUEST", "TESTFORGE_CACHE", "HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "NO_COLOR"]
    {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// A folder with a pipeline in it.
#[derive(Debug)]
pub struct Project {
    dir: TempDir,
}

impl Project {
    pub fn new(pipeline: &str) -> Self {
        let project = Self { dir: tempfile::tempdir().unwrap() };
        project.write("pipeline.toml", pipeline);
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// A program in this folder.
    pub fn program(&self, name: &str) -> Command {
        let mut command = program(name);
        command.current_dir(self.dir.path());
        command
    }

    pub fn runner(&self, args: &[&str]) -> Finished {
        Finished::of(self.program("runner").args(args).output().unwrap())
    }

    /// `runner run --no-build --experiment ID ARGS`.
    pub fn run(&self, experiment: &str, args: &[&str]) -> Finished {
        let mut all = vec!["run", "pipeline.toml", "--no-build", "--experiment", experiment];
        all.extend(args);
        self.runner(&all)
    }

    /// The record of an experiment.
    pub fn experiment(&self, id: &str) -> record::experiment::ExperimentRecord {
        serde_json::from_str(&self.read(&format!("experiments/{id}/experiment.json"))).unwrap()
    }
}

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Both streams with line wraps and frame characters taken out.
    pub fn text(&self) -> String {
        let all = format!("{}\n{}", self.stdout, self.stderr);
        all.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn expect_text(self, part: &str) -> Self {
        let text = self.text();
        assert!(text.contains(part), "no `{part}` in:\n{}\n{}", self.stdout, self.stderr);
        self
    }
}

/// Waits until `ready` holds; fails the test after `seconds`.
#[track_caller]
pub fn wait_until(what: &str, seconds: u64, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends SIGINT, as Ctrl-C does, and waits for the end.
pub fn interrupt(mut child: Child) -> Finished {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let stderr = child
        .stderr
        .take()
        .map(|s| BufReader::new(s).lines().map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    let status = child.wait().unwrap();
    Finished { code: status.code(), stdout: String::new(), stderr: stderr.unwrap_or_default() }
}
