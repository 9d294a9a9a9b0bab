//! Calls of cargo with an environment of our own.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use stage_kit::{Context, Result, StageError};

use crate::artifacts::{Artifact, Dependencies, read_artifact};

/// Passed on: where cargo and rustup keep their things, and how to reach the network.
const KEPT: [&str; 16] = [
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "TMPDIR",
];
/// Settings of cargo's network and registries, given as variables.
const KEPT_PREFIXES: [&str; 5] =
    ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];
/// In cargo's words on a failure that may pass.
const NETWORK_WORDS: [&str; 4] =
    ["failed to download", "spurious network error", "Could not connect", "timed out"];
/// Lines of cargo's own words that an error shows.
const SHOWN_LINES: usize = 20;

/// Cargo and rustc of one toolchain, on one workspace.
#[derive(Debug)]
pub(crate) struct Cargo {
    cargo: PathBuf,
    rustc: PathBuf,
    rustc_version: String,
    sysroot: PathBuf,
    home: PathBuf,
    workspace: PathBuf,
    target: PathBuf,
    jobs: u32,
}

impl Cargo {
    pub(crate) fn find(workspace: &Path, target: &Path, jobs: u32) -> Result<Self> {
        let workspace = absolute(workspace)?;
        fs::create_dir_all(target).map_err(|e| StageError::io("create the folder", target, e))?;
        let target = absolute(target)?;
        let named = env::var_os("RUSTC").filter(|name| !name.is_empty()).map(PathBuf::from);
        let named = named.unwrap_or_else(|| beside_home("rustc"));
        let sysroot = PathBuf::from(answer(&named, &["--print", "sysroot"])?);
        let inside = |name: &str| Some(sysroot.join("bin").join(name)).filter(|path| path.is_file());
        let rustc = inside("rustc").unwrap_or(named);
        let cargo = inside("cargo").unwrap_or_else(|| beside_home("cargo"));
        let rustc_version = answer(&rustc, &["-vV"])?;
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home =
            home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).unwrap_or_default();
        Ok(Self { cargo, rustc, rustc_version, sysroot, home, workspace, target, jobs: jobs.max(1) })
    }

    /// `rustc -vV`.
    pub(crate) fn rustc_version(&self) -> &str {
        &self.rustc_version
    }

    /// Brings every locked package that cargo's cache lacks; tried again with growing pauses, because networks fail.
    pub(crate) fn fetch(&self, attempts: u32, context: &Context) -> Result<()> {
        let (cached, _) = self.call(&["fetch", "--locked", "--offline"], |_| {})?;
        if cached.success() {
            return Ok(());
        }
        let mut pause = Duration::from_secs(2);
        for attempt in 1.. {
            let (status, words) = self.call(&["fetch", "--locked"], |_| {})?;
            context.check_cancelled()?;
            if status.success() {
                return Ok(());
            }
            let error = self.failure("cargo can't fetch the libraries", &words);
            // A lock that does not fit will not fit later either.
            if attempt >= attempts.max(1) || words.contains("--locked") {
                return Err(error);
            }
            context.warn(&format!("{error}; trying again in {} s", pause.as_secs()));
            std::thread::sleep(pause);
            pause *= 2;
        }
        Ok(())
    }

    pub(crate) fn metadata(&self, context: &Context) -> Result<String> {
        let mut json = String::new();
        let args = ["metadata", "--format-version=1", "--locked", "--offline", "--quiet"];
        let (status, words) = self.call(&args, |line| json.push_str(line))?;
        context.check_cancelled()?;
        if !status.success() {
            return Err(self.failure("cargo can't read the list of libraries", &words));
        }
        Ok(json)
    }

    /// Builds everything.
    pub(crate) fn build(&self, dependencies: &Dependencies, context: &Context) -> Result<Vec<Artifact>> {
        let progress = context.progress("packages", Some(dependencies.packages));
        let mut artifacts = Vec::new();
        let jobs = self.jobs.to_string();
        let args = ["build", "--release", "--locked", "--offline", "--message-format=json", "--jobs", &jobs];
        let (status, words) = self.call(&args, |line| {
            if let Some(artifact) = read_artifact(line, &dependencies.root) {
                artifacts.push(artifact);
                progress.inc(1);
            }
        })?;
        context.check_cancelled()?;
        if !status.success() {
            return Err(self.failure("the libraries do not build", &words));
        }
        artifacts.sort_by(|a, b| a.package.cmp(&b.package));
        Ok(artifacts)
    }

    /// Runs cargo; each line of its stdout goes to `line`. Returns what it wrote to stderr.
    fn call(&self, args: &[&str], mut line: impl FnMut(&str)) -> Result<(ExitStatus, String)> {
        let words = self.target.join("cargo.stderr");
        let stderr = File::create(&words).map_err(|e| StageError::io("create", &words, e))?;
        let start = |e| StageError::io("start", &self.cargo, e);
        let mut child = Command::new(&self.cargo)
            .args(args)
            .env_clear()
            .envs(self.environment())
            .current_dir(&self.workspace)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(start)?;
        if let Some(stdout) = child.stdout.take() {
            for text in BufReader::new(stdout).lines() {
                line(&text.map_err(|e| StageError::io("read from", &self.cargo, e))?);
            }
        }
        let status = child.wait().map_err(start)?;
        let text = fs::read(&words).map_err(|e| StageError::io("read", &words, e))?;
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let is_kept = |name: &str| KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|p| name.starts_with(p));
        let mut environment: Vec<_> =
            env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)).collect();
        let mut set = |name: &str, value: OsString| environment.push((name.into(), value));
        set("RUSTC", self.rustc.clone().into());
        set("CARGO_TARGET_DIR", self.target.clone().into());
        set("CARGO_INCREMENTAL", "0".into());
        set("CARGO_TERM_COLOR", "never".into());
        // Set, though empty: they stand above what configuration files in the folders above say.
        set("RUSTC_WRAPPER", OsString::new());
        set("RUSTC_WORKSPACE_WRAPPER", OsString::new());
        set("CARGO_ENCODED_RUSTFLAGS", self.flags());
        environment
    }

    /// Replaces every path that differs between machines. A later prefix wins over an earlier one.
    fn flags(&self) -> OsString {
        let mut prefixes = vec![
            (self.home.clone(), "/cargo".to_owned()),
            (self.sysroot.clone(), "/rust".to_owned()),
            (self.workspace.clone(), "/libs".to_owned()),
            (self.target.clone(), "/target".to_owned()),
        ];
        // Below this folder a registry's own name stands, which depends on how it is reached.
        let registries = fs::read_dir(self.home.join("registry/src")).into_iter().flatten().flatten();
        prefixes.extend(registries.map(|entry| (entry.path(), "/cargo/registry".to_owned())));
        let mut flags = OsString::new();
        for (from, to) in prefixes {
            for from in [from.canonicalize().ok(), Some(from)].into_iter().flatten() {
                if !flags.is_empty() {
                    flags.push("\x1f");
                }
                flags.push("--remap-path-prefix=");
                flags.push(from);
                flags.push("=");
                flags.push(&to);
            }
        }
        flags
    }

    fn failure(&self, what: &str, words: &str) -> StageError {
        let lines: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        let next = if words.contains("--locked") {
            "make the lock fit the list again: cargo generate-lockfile in the folder of the libraries"
        } else {
            "check the network and the list of libraries; what cargo said stands above"
        };
        let text = format!("{what}:\n{shown}");
        let is_network = NETWORK_WORDS.iter().any(|word| words.contains(word));
        if is_network { StageError::retryable(text) } else { StageError::failed(text) }.next(next)
    }
}

/// The program on `PATH`, else in cargo's home.
fn beside_home(name: &str) -> PathBuf {
    let on_path =
        env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let homes = env::var_os("CARGO_HOME").map(PathBuf::from).into_iter();
    let homes = homes.chain(env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let found =
        on_path.chain(homes.map(|home| home.join("bin"))).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| PathBuf::from(name))
}

fn answer(program: &Path, args: &[&str]) -> Result<String> {
    let none = |why: String| {
        StageError::usage(format!("`{} {}` {why}", program.display(), args.join(" ")))
            .next("install Rust with rustup, or set RUSTC to a compiler")
    };
    let output = Command::new(program).args(args).output().map_err(|e| none(format!("can't be run: {e}")))?;
    if !output.status.success() {
        return Err(none(format!("failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| StageError::io("find", path, e))
}
