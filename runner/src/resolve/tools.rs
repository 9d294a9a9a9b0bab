//! Versions of the tools that a stage declares. Asked once and remembered until the tool's file, or what decides which
//! toolchain a rustup proxy runs, changes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::capture;
use crate::cache::Store;

const LIMIT: Duration = Duration::from_secs(30);

/// The tool's version text, as the stage itself would see it.
pub(crate) fn version(
    store: &Store,
    dir: &Path,
    tool: &str,
    environment: &[(OsString, OsString)],
) -> Result<String, String> {
    let variable =
        |name: &str| environment.iter().find(|(k, _)| k == OsStr::new(name)).map(|(_, v)| v.clone());
    let path = variable("PATH").unwrap_or_default();
    let found = if tool.contains('/') {
        Some(dir.join(tool)).filter(|p| p.is_file())
    } else {
        std::env::split_paths(&path).map(|d| d.join(tool)).find(|p| p.is_file())
    };
    let program = found.ok_or("not found on PATH")?;
    let mut evidence = format!("{tool}\n{}\n", stamp(&program));
    evidence.push_str(&format!("{:?}\n", variable("RUSTUP_TOOLCHAIN")));
    for file in toolchain_files(dir, variable("RUSTUP_HOME"), variable("HOME")) {
        evidence.push_str(&stamp(&file));
        evidence.push('\n');
    }
    let name = blake3::hash(evidence.as_bytes()).to_hex().to_string();
    if let Some(known) = store.recall("tools", &name) {
        return Ok(known);
    }
    let last = Path::new(tool).file_name().unwrap_or_default();
    let argument = if last == "rustc" || last == "cargo" { "-vV" } else { "--version" };
    let text = capture(&program, &[argument.into()], dir, environment, LIMIT)?.trim().to_owned();
    store.remember("tools", &name, &text);
    Ok(text)
}

fn stamp(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(m) => format!(
            "{} {} {} {}.{:09} {}",
            path.display(),
            m.dev(),
            m.ino(),
            m.mtime(),
            m.mtime_nsec(),
            m.len()
        ),
        Err(_) => format!("{} -", path.display()),
    }
}

/// Files that decide which toolchain a proxy runs, and what that toolchain is.
fn toolchain_files(dir: &Path, rustup: Option<OsString>, home: Option<OsString>) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        dir.ancestors().flat_map(|d| [d.join("rust-toolchain.toml"), d.join("rust-toolchain")]).collect();
    let rustup = rustup.map(PathBuf::from).or_else(|| home.map(|h| PathBuf::from(h).join(".rustup")));
    if let Some(rustup) = rustup {
        files.push(rustup.join("settings.toml"));
        let hashes = fs::read_dir(rustup.join("update-hashes")).into_iter().flatten().flatten();
        let mut hashes: Vec<PathBuf> = hashes.map(|e| e.path()).collect();
        hashes.sort();
        files.extend(hashes);
    }
    files
}
