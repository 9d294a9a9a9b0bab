//! Builds the libraries that rows and generated tests may link, once, into one flat folder.
//!
//! The input is a small workspace with its lock. Cargo builds it with an environment of our own and with every path
//! replaced, so that the same lock and toolchain give the same bytes wherever it is built; `libs.json` says which file
//! is which, and what each hashes to.

mod artifacts;
mod cargo;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use record::Map;
use record::libs::{LIBS_SCHEMA_VERSION, PrebuiltLibs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Context, Outcome, PortSpec, Result, Stage, StageError, digest, files};

use artifacts::{Artifact, Dependency};
use cargo::Cargo;

/// The stage program.
#[derive(Debug)]
pub struct PrebuildLibs;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Never touch the network: every package must already lie in cargo's cache.
    pub offline: bool,
    /// How often fetching packages is tried before giving up.
    pub attempts: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self { offline: false, attempts: 3 }
    }
}

impl Stage for PrebuildLibs {
    type Params = Params;
    const NAME: &'static str = "prebuild-libs";
    const INPUTS: &'static [PortSpec] = &[PortSpec::required(
        "libs",
        "a folder with Cargo.toml, Cargo.lock and src/lib.rs naming the libraries",
    )];
    const OUTPUTS: &'static [PortSpec] =
        &[PortSpec::required("libs", "every library file, flat, and libs.json")];

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        let workspace = copy_workspace(context.input("libs")?, &context.scratch().join("workspace"))?;
        let cargo = Cargo::find(&workspace, &context.scratch().join("target"), context.resources().cpus)?;
        if !params.offline {
            cargo.fetch(params.attempts, context)?;
        }
        let dependencies = artifacts::read_metadata(&cargo.metadata(context)?)?;
        let built = cargo.build(&dependencies, context)?;
        let out = context.output_dir("libs")?;
        let libs = collect(&built, &dependencies.direct, cargo.rustc_version(), &out)?;
        files::write_json(&out.join("libs.json"), &libs)?;
        context.log(&format!("{} files, {} libraries to name", libs.files.len(), libs.externs.len()));
        Ok(Outcome::Done)
    }
}

/// Copies what cargo needs: the input may be read-only, and cargo must not find settings in the folders above it.
fn copy_workspace(from: &Path, to: &Path) -> Result<std::path::PathBuf> {
    for required in ["Cargo.toml", "Cargo.lock"] {
        let path = from.join(required);
        if !path.is_file() {
            return Err(StageError::usage(format!("the input `libs` has no {required}"))
                .at(path.display().to_string())
                .next("name the libraries in Cargo.toml and lock them: cargo generate-lockfile"));
        }
    }
    for entry in walkdir::WalkDir::new(from).sort_by_file_name() {
        let entry = entry.map_err(|e| StageError::failed(format!("can't list the input: {e}")))?;
        let inside = entry.path().strip_prefix(from).unwrap_or(entry.path());
        if inside.components().next().is_some_and(|first| first.as_os_str() == "target") {
            continue;
        }
        let target = to.join(inside);
        if entry.file_type().is_dir() {
            fs::create_dir_all(&target).map_err(|e| StageError::io("create the folder", &target, e))?;
        } else if entry.file_type().is_file() {
            let bytes = fs::read(entry.path()).map_err(|e| StageError::io("read", entry.path(), e))?;
            fs::write(&target, bytes).map_err(|e| StageError::io("write", &target, e))?;
        }
    }
    Ok(to.to_path_buf())
}

/// Copies the artifacts into `out` and describes them.
fn collect(built: &[Artifact], direct: &[Dependency], rustc: &str, out: &Path) -> Result<PrebuiltLibs> {
    let mut files = Map::new();
    for path in built.iter().flat_map(|artifact| &artifact.files).collect::<BTreeSet<_>>() {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let target = out.join(name);
        fs::copy(path, &target).map_err(|e| StageError::io("copy", path, e))?;
        let hash = digest::sha256_file(&target).map_err(|e| StageError::io("read", &target, e))?;
        files.insert(name.to_owned(), hash);
    }
    let mut externs = Map::new();
    let mut versions = Map::new();
    for dependency in direct {
        let file = built
            .iter()
            .find(|artifact| artifact.package == dependency.package)
            .and_then(|artifact| artifact.files.iter().find_map(|path| path.file_name()?.to_str()))
            .ok_or_else(|| {
                StageError::failed(format!("cargo built no library for `{}`", dependency.extern_name))
                    .next("the list may only name libraries")
            })?;
        externs.insert(dependency.extern_name.clone(), file.to_owned());
        versions.insert(dependency.name.clone(), dependency.version.clone());
    }
    Ok(PrebuiltLibs {
        schema_version: LIBS_SCHEMA_VERSION,
        rustc: rustc.to_owned(),
        externs,
        versions,
        files,
    })
}
