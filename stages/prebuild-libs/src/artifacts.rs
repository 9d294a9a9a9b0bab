//! What cargo says in JSON: the direct dependencies, and the files of each package. Pure.

use std::path::PathBuf;

use serde::Deserialize;
use stage_kit::{Result, StageError};

/// A dependency that the workspace's package names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// As in `use NAME::...`.
    pub(crate) extern_name: String,
    /// Cargo's id.
    pub(crate) package: String,
    pub(crate) name: String,
    pub(crate) version: String,
}

#[derive(Debug)]
pub(crate) struct Dependencies {
    /// Cargo's id of the package that is the list.
    pub(crate) root: String,
    pub(crate) direct: Vec<Dependency>,
    /// Of the whole graph; an upper bound of what is built.
    pub(crate) packages: u64,
}

/// The library files of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Artifact {
    pub(crate) package: String,
    pub(crate) files: Vec<PathBuf>,
}

/// Reads `cargo metadata --format-version 1`.
pub(crate) fn read_metadata(json: &str) -> Result<Dependencies> {
    let metadata: Metadata = serde_json::from_str(json).map_err(|e| {
        StageError::failed(format!("cargo's metadata is not readable: {e}")).next("update cargo")
    })?;
    let root = metadata.resolve.root.ok_or_else(|| {
        StageError::usage("the libraries' Cargo.toml names no package")
            .next("give it a [package]; a workspace of several packages has no list of its own")
    })?;
    let node = metadata.resolve.nodes.into_iter().find(|node| node.id == root);
    let mut direct = Vec::new();
    for dep in node.map(|node| node.deps).unwrap_or_default() {
        if let Some(package) = metadata.packages.iter().find(|package| package.id == dep.pkg) {
            direct.push(Dependency {
                extern_name: dep.name,
                package: dep.pkg,
                name: package.name.clone(),
                version: package.version.clone(),
            });
        }
    }
    direct.sort_by(|a, b| a.extern_name.cmp(&b.extern_name));
    Ok(Dependencies { root, direct, packages: metadata.packages.len() as u64 })
}

/// One line of `cargo build --message-format=json`: the library files of a package, if that is what it tells of.
/// Build scripts stay behind: nothing links them.
pub(crate) fn read_artifact(line: &str, root: &str) -> Option<Artifact> {
    let message: Message = serde_json::from_str(line).ok()?;
    let target = message.target?;
    let is_script = target.kind.iter().any(|kind| kind == "custom-build");
    if message.reason != "compiler-artifact" || is_script || message.package_id.as_deref() == Some(root) {
        return None;
    }
    let is_library = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "rlib" || e == "so" || e == "dylib" || e == "dll")
    };
    let files: Vec<PathBuf> = message.filenames.into_iter().filter(is_library).collect();
    Some(Artifact { package: message.package_id?, files }).filter(|artifact| !artifact.files.is_empty())
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    root: Option<String>,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<NodeDep>,
}

#[derive(Debug, Deserialize)]
struct NodeDep {
    name: String,
    pkg: String,
}

#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, package: &str, files: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"{package}","target":{{"kind":["{kind}"]}},"filenames":[{files}]}}"#
        )
    }

    #[test]
    fn libraries_are_kept_and_scripts_metadata_and_the_list_itself_are_not() {
        let library = line("lib", "p", r#""/t/liba-1.rlib","/t/liba-1.rmeta""#);
        let found = read_artifact(&library, "root").unwrap();
        assert_eq!(found, Artifact { package: "p".into(), files: vec!["/t/liba-1.rlib".into()] });
        assert!(read_artifact(&line("proc-macro", "p", r#""/t/libm.so""#), "root").is_some());
        assert!(read_artifact(&line("custom-build", "p", r#""/t/build""#), "root").is_none());
        assert!(read_artifact(&line("lib", "root", r#""/t/liblibs.rlib""#), "root").is_none());
        assert!(read_artifact(r#"{"reason":"build-finished","success":true}"#, "root").is_none());
        assert!(read_artifact("warning: text", "root").is_none());
    }

    #[test]
    fn direct_dependencies_carry_the_name_that_code_uses() {
        let json = r#"{"packages":[{"id":"a#1","name":"root","version":"0.0.0"},{"id":"b#2","name":"my-lib","version":"2.0.0"},
            {"id":"c#3","name":"deep","version":"3.0.0"}],
            "resolve":{"root":"a#1","nodes":[{"id":"a#1","deps":[{"name":"my_lib","pkg":"b#2"}]},
            {"id":"b#2","deps":[{"name":"deep","pkg":"c#3"}]}]}}"#;
        let found = read_metadata(json).unwrap();
        assert_eq!(found.packages, 3);
        let direct: Vec<_> = found.direct.iter().map(|d| (d.extern_name.as_str(), d.name.as_str())).collect();
        assert_eq!(direct, [("my_lib", "my-lib")]);
    }

    #[test]
    fn a_workspace_without_a_package_is_refused() {
        let error = read_metadata(r#"{"packages":[],"resolve":{"root":null,"nodes":[]}}"#).unwrap_err();
        assert!(error.to_string().contains("names no package"), "{error}");
    }
}
