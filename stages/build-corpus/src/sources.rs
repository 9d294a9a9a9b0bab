//! The crates that rows come from: a manifest and its lock, brought and checked by cargo.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use stage_kit::{Context, Result, StageError};
use subject::extract::CrateFiles;
use subject::extract::config::Config;

use crate::licence::{self, Accepted};

/// Files larger than this are tables, not functions.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A crate that may give rows.
#[derive(Debug, Clone)]
pub struct Source {
    pub name: String,
    pub version: String,
    pub licence: Accepted,
    /// The lock file's checksum; none for a crate given by path.
    pub checksum: Option<String>,
    pub authors: Vec<String>,
    pub repository: Option<String>,
    pub files: CrateFiles,
    /// Licence texts found in the crate: file name, text.
    pub licence_texts: Vec<(String, String)>,
    /// Rust files that were not read, and why.
    pub skipped: Vec<(String, &'static str)>,
}

/// What came out of a source list.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Sorted by name and version.
    pub crates: Vec<Source>,
    /// Crates that may not be used: name and reason.
    pub refused: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Option<Resolve>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    #[serde(default)]
    authors: Vec<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    src_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
    root: Option<String>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    dependencies: Vec<String>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Reads the source list in `dir` (a `Cargo.toml` and its `Cargo.lock`); cargo brings the crates and checks their checksums.
///
/// # Errors
/// The list is missing or broken, names no crate, or cargo can't bring what it names.
pub fn load(dir: &Path, allowed: &[String], context: &Context) -> Result<Sources> {
    let manifest = dir.join("Cargo.toml");
    let lock = dir.join("Cargo.lock");
    for path in [&manifest, &lock] {
        if !path.is_file() {
            return Err(StageError::usage("a source list needs a Cargo.toml and its Cargo.lock")
                .at(path.display().to_string())
                .next("check the parameter `set`, or make the lock with `cargo generate-lockfile`"));
        }
    }
    let checksums = checksums(&lock)?;
    let metadata = metadata(dir, context)?;
    let resolve = metadata.resolve.ok_or_else(|| broken(&manifest, "cargo resolved nothing"))?;
    let root = resolve.root.ok_or_else(|| broken(&manifest, "it is a workspace, not a package"))?;
    let direct: BTreeSet<&String> =
        resolve.nodes.iter().filter(|n| n.id == root).flat_map(|n| &n.dependencies).collect();
    let features: BTreeMap<&String, &Vec<String>> =
        resolve.nodes.iter().map(|n| (&n.id, &n.features)).collect();
    let mut sources = Sources::default();
    for package in metadata.packages.iter().filter(|p| direct.contains(&p.id)) {
        let licence = match licence::accept(package.license.as_deref(), allowed) {
            Ok(licence) => licence,
            Err(licence::LicenceError::Unknown(name)) => {
                return Err(StageError::usage(format!("`{name}` is not the name of an SPDX licence"))
                    .at("build-corpus parameter licences")
                    .next("write names such as MIT or Apache-2.0"));
            }
            Err(error) => {
                sources.refused.push((format!("{} {}", package.name, package.version), error.to_string()));
                continue;
            }
        };
        let checksum = checksums.get(&(package.name.clone(), package.version.clone())).cloned().flatten();
        let features = features.get(&package.id).map(|f| f.iter().cloned().collect()).unwrap_or_default();
        match read(package, licence, checksum, features) {
            Some(source) => sources.crates.push(source),
            None => sources.refused.push((
                format!("{} {}", package.name, package.version),
                "it has no library that another crate could call (a procedural macro, or programs alone)"
                    .to_owned(),
            )),
        }
    }
    sources.crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    if sources.crates.is_empty() && sources.refused.is_empty() {
        return Err(broken(&manifest, "it names no crate"));
    }
    Ok(sources)
}

fn broken(path: &Path, why: &str) -> StageError {
    StageError::failed(format!("the source list is of no use: {why}"))
        .at(path.display().to_string())
        .next("name crates under [dependencies] and run `cargo generate-lockfile` beside it")
}

fn checksums(lock: &Path) -> Result<BTreeMap<(String, String), Option<String>>> {
    let text = fs::read_to_string(lock).map_err(|e| StageError::io("read", lock, e))?;
    let parsed: Lock = toml::from_str(&text).map_err(|e| {
        StageError::failed(format!("not a lock file: {}", e.message()))
            .at(lock.display().to_string())
            .next("make it again with `cargo generate-lockfile`")
    })?;
    Ok(parsed.package.into_iter().map(|p| ((p.name, p.version), p.checksum)).collect())
}

/// Runs cargo on a copy: the input may be read-only, and cargo wants a target.
fn metadata(dir: &Path, context: &Context) -> Result<Metadata> {
    let copy = context.scratch().join("sources");
    let src = copy.join("src");
    fs::create_dir_all(&src).map_err(|e| StageError::io("create the folder", &src, e))?;
    for name in ["Cargo.toml", "Cargo.lock"] {
        let text =
            fs::read_to_string(dir.join(name)).map_err(|e| StageError::io("read", &dir.join(name), e))?;
        let text = if name == "Cargo.toml" { absolute_paths(&text, dir)? } else { text };
        fs::write(copy.join(name), text).map_err(|e| StageError::io("write", &copy.join(name), e))?;
    }
    let lib = src.join("lib.rs");
    fs::write(&lib, "").map_err(|e| StageError::io("write", &lib, e))?;
    let output = cargo()
        .args(["metadata", "--locked", "--format-version", "1", "--quiet"])
        .current_dir(&copy)
        .output()
        .map_err(|e| {
            StageError::failed(format!("can't start cargo: {e}")).next("install Rust, or put cargo on PATH")
        })?;
    if !output.status.success() {
        return Err(cargo_failed(dir, &String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| {
        StageError::failed(format!("cargo said something unexpected: {e}"))
            .at("cargo metadata")
            .next("check the version of cargo")
    })
}

/// Variables of an outer cargo would leak into the inner one.
fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let leaks = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_");
        if leaks || ["CARGO", "LD_LIBRARY_PATH", "RUSTFLAGS", "CARGO_TARGET_DIR"].contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command
}

fn cargo_failed(dir: &Path, stderr: &str) -> StageError {
    let reason: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty()).take(6).collect();
    let reason = reason.join("; ");
    let place = dir.join("Cargo.toml").display().to_string();
    let network = ["network failure", "failed to download", "Could not resolve", "timed out", "spurious"];
    if !stderr.contains("--locked") && network.iter().any(|n| stderr.contains(n)) {
        return StageError::retryable(format!("cargo can't bring the sources: {reason}"))
            .at(place)
            .next("check the network, or fill CARGO_HOME where there is one (`cargo fetch --locked`), then run again");
    }
    StageError::failed(format!("cargo refuses the source list: {reason}"))
        .at(place)
        .next("mend the manifest, and make its lock again with `cargo generate-lockfile`")
}

/// Crates given by `path = "..."` stay where they are.
fn absolute_paths(text: &str, dir: &Path) -> Result<String> {
    let place = dir.join("Cargo.toml").display().to_string();
    let mut manifest: toml::Table = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        StageError::failed(format!("not TOML: {}", e.message()))
            .at(format!("{place}:{line}"))
            .next("mend that line")
    })?;
    let dir = fs::canonicalize(dir).map_err(|e| StageError::io("find", dir, e))?;
    if let Some(dependencies) = manifest.get_mut("dependencies").and_then(toml::Value::as_table_mut) {
        for (_, dependency) in dependencies.iter_mut() {
            if let Some(path) = dependency.get_mut("path") {
                let given = path.as_str().unwrap_or_default().to_owned();
                *path = toml::Value::String(dir.join(given).display().to_string());
            }
        }
    }
    // Its own workspace, so that no folder above is asked.
    manifest.entry("workspace").or_insert_with(|| toml::Value::Table(toml::Table::new()));
    toml::to_string(&manifest).map_err(|e| StageError::internal(format!("can't write a manifest: {e}")))
}

/// `None` when the package has no library.
fn read(
    package: &Package,
    licence: Accepted,
    checksum: Option<String>,
    features: BTreeSet<String>,
) -> Option<Source> {
    let folder = package.manifest_path.parent()?;
    let is_lib =
        |t: &&Target| t.kind.iter().any(|k| matches!(k.as_str(), "lib" | "rlib" | "dylib" | "cdylib"));
    let lib = package.targets.iter().find(is_lib)?;
    let inside = |path: &Path| path.strip_prefix(folder).ok().map(|p| p.to_string_lossy().replace('\\', "/"));
    let root = inside(&lib.src_path)?;
    let mut skipped = Vec::new();
    let mut files = BTreeMap::new();
    let mut licence_texts = Vec::new();
    for entry in
        walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().filter_map(std::result::Result::ok)
    {
        let Some(path) = inside(entry.path()).filter(|_| entry.file_type().is_file()) else { continue };
        let is_rust = path.ends_with(".rs");
        if path.starts_with("target/") || (!is_rust && !is_licence(&path)) {
            continue;
        }
        let is_large = entry.metadata().is_ok_and(|m| m.len() > MAX_FILE_BYTES);
        let text = if is_large { None } else { fs::read_to_string(entry.path()).ok() };
        let Some(text) = text else {
            if is_rust {
                skipped.push((path, if is_large { "file_too_large" } else { "file_not_utf8" }));
            }
            continue;
        };
        if is_rust {
            files.insert(path, text);
        } else {
            licence_texts.push((path, text));
        }
    }
    let integration_tests = package.targets.iter().filter(|t| t.kind.iter().any(|k| k == "test"));
    let integration_tests = integration_tests.filter_map(|t| inside(&t.src_path)).collect();
    let config = Config { features, test: false };
    let name = lib.name.replace('-', "_");
    Some(Source {
        name: package.name.clone(),
        version: package.version.clone(),
        licence,
        checksum,
        authors: package.authors.clone(),
        repository: package.repository.clone(),
        files: CrateFiles { name, root, files, integration_tests, config },
        licence_texts,
        skipped,
    })
}

fn is_licence(path: &str) -> bool {
    let upper = path.to_ascii_uppercase();
    !path.contains('/')
        && ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE", "COPYRIGHT"]
            .iter()
            .any(|n| upper.starts_with(n))
}
