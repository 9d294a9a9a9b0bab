//! A pipeline in a temporary folder, and the runner started in it.

#![expect(clippy::unwrap_used, reason = "only tests use it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Project {
    dir: tempfile::TempDir,
}

pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        let all = format!("{}\n{}", self.out, self.err);
        assert!(all.contains(text), "`{text}` is not in:\n{all}");
        self
    }
}

impl Project {
    /// A folder with `pipeline.toml`. `schema = 1` is put in front.
    pub(crate) fn new(pipeline: &str) -> Self {
        let project = Self { dir: tempfile::tempdir().unwrap() };
        project.pipeline(pipeline);
        project
    }

    pub(crate) fn pipeline(&self, text: &str) {
        self.write("pipeline.toml", &format!("schema = 1\n{text}"));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn script(&self, name: &str, text: &str) {
        self.write(name, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("SIDE", self.path("side.log"))
            .env("NO_COLOR", "1");
        command
    }

    pub(crate) fn runner(&self, arguments: &[&str]) -> Outcome {
        self.runner_with(arguments, &[])
    }

    pub(crate) fn runner_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied()).stdin(Stdio::null());
        let output = command.output().unwrap();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Names that stages noted in `side.log` (a variable outside every key), since the last call.
    pub(crate) fn executed(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("side.log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("side.log"));
        text.lines().map(str::to_owned).collect()
    }

    /// A file of the newest experiment.
    pub(crate) fn newest(&self) -> PathBuf {
        let dirs = fs::read_dir(self.path("experiments")).unwrap().flatten().map(|e| e.path());
        let written = |d: &PathBuf| d.join("config.yaml").metadata().and_then(|m| m.modified()).ok();
        dirs.max_by_key(|d| (written(d), d.clone())).unwrap()
    }

    pub(crate) fn newest_text(&self, name: &str) -> String {
        let path = self.newest().join(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Every file of the store's blobs.
    pub(crate) fn blobs(&self) -> Vec<PathBuf> {
        files(&self.path(".testforge/blobs"))
    }
}

pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().flatten() {
        if entry.file_type().is_file() {
            found.push(entry.into_path());
        }
    }
    found
}

/// Waits for a condition, at most 20 s.
#[track_caller]
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and is not a zombie.
pub(crate) fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// One stage that copies `file:data` and notes that it ran; one that appends to it.
pub(crate) const TWO_STAGES: &str = r#"
[stage.copy]
run = ["sh", "-c", "echo copy >> $SIDE; mkdir {out.text}; cp {in.data}/a {out.text}/a"]
inputs = { data = "file:data" }
outputs = ["text"]
pass_env = ["SIDE"]
[stage.count]
run = ["sh", "-c", "echo count >> $SIDE; wc -c < {in.text}/a > {out.n}; echo {param.unit} >> {out.n}"]
inputs = { text = "copy.text" }
outputs = ["n"]
params = { unit = "bytes" }
env = ["FLAVOUR"]
pass_env = ["SIDE"]
"#;
