//! The Rust compiler in use.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::HarnessError;

/// Where a linker is looked for, before any folder that holds the caller's own `cc`.
const STANDARD_PATH: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// A compiler, called directly: a rustup proxy would look for its toolchain in the environment that is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub clippy_driver: Option<PathBuf>,
    /// `rustc -vV`.
    pub version: String,
    /// `clippy-driver --version`.
    pub linter: Option<String>,
    pub sysroot: PathBuf,
    /// Folders for `PATH`: the linker is found through it.
    pub path: Vec<PathBuf>,
}

impl Toolchain {
    /// The compiler named by `RUSTC`, else the one on `PATH`.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub fn find() -> Result<Self, HarnessError> {
        let named = std::env::var_os("RUSTC").filter(|name| !name.is_empty());
        let named = named.unwrap_or_else(|| on_path_or_in_home("rustc"));
        let sysroot = PathBuf::from(answer(Path::new(&named), &["--print", "sysroot"])?);
        let real = sysroot.join("bin/rustc");
        let rustc = if real.is_file() { real } else { which(&named).unwrap_or_else(|| named.into()) };
        let version = answer(&rustc, &["-vV"])?;
        let clippy_driver = Some(sysroot.join("bin/clippy-driver")).filter(|path| path.is_file());
        let (clippy_driver, linter) = match clippy_driver {
            // A linter that does not start counts as none.
            Some(path) => match answer(&path, &["--version"]) {
                Ok(version) => (Some(path), Some(version)),
                Err(_) => (None, None),
            },
            None => (None, None),
        };
        let mut path: Vec<PathBuf> = STANDARD_PATH.iter().map(PathBuf::from).collect();
        if let Some(dir) = which("cc".as_ref()).and_then(|cc| cc.parent().map(Path::to_path_buf))
            && !path.contains(&dir)
        {
            path.push(dir);
        }
        Ok(Self { rustc, clippy_driver, version, linter, sysroot, path })
    }

    pub(crate) fn path_variable(&self) -> OsString {
        std::env::join_paths(&self.path).unwrap_or_default()
    }
}

fn answer(program: &Path, args: &[&str]) -> Result<String, HarnessError> {
    let none =
        |why: String| HarnessError::NoToolchain(format!("`{} {}` {why}", program.display(), args.join(" ")));
    let output = Command::new(program).args(args).output().map_err(|e| none(format!("can't be run: {e}")))?;
    if !output.status.success() {
        return Err(none(format!("failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A program started with few variables may have no `PATH` that leads to rustup's folder.
fn on_path_or_in_home(name: &str) -> OsString {
    if let Some(found) = which(name.as_ref()) {
        return found.into();
    }
    let homes = std::env::var_os("CARGO_HOME").map(PathBuf::from).into_iter();
    let homes = homes.chain(std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let found = homes.map(|home| home.join("bin").join(name)).find(|path| path.is_file());
    found.map_or_else(|| name.into(), PathBuf::into_os_string)
}

fn which(name: &std::ffi::OsStr) -> Option<PathBuf> {
    if Path::new(name).components().count() > 1 {
        return Some(PathBuf::from(name));
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}
