//! Builds a list of libraries that needs no network: a package in a folder.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that goes wrong")]

use std::fs;
use std::path::Path;

use prebuild_libs::{Params, PrebuildLibs};
use record::libs::PrebuiltLibs;
use stage_kit::ContextBuilder;

fn list(root: &Path) {
    let files = [
        (
            "Cargo.toml",
            "[package]\nname = \"list\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n[dependencies]\ninner-lib = { path = \"inner\" }\n",
        ),
        ("src/lib.rs", ""),
        ("inner/Cargo.toml", "[package]\nname = \"inner-lib\"\nversion = \"1.2.3\"\nedition = \"2021\"\n"),
        ("inner/src/lib.rs", "pub fn two() -> u32 { assert!(file!().len() > 0); 2 }\n"),
        (
            "Cargo.lock",
            "version = 4\n\n[[package]]\nname = \"inner-lib\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"list\"\nversion = \"0.0.0\"\ndependencies = [\n \"inner-lib\",\n]\n",
        ),
    ];
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn build(root: &Path, list: &Path) -> stage_kit::Result<PrebuiltLibs> {
    let out = root.join("libs");
    let builder = ContextBuilder::new("prebuild-libs", root).input("libs", list).output("libs", &out);
    builder.run::<PrebuildLibs>(Params { offline: true, attempts: 1 })?;
    stage_kit::files::read_versioned(&out.join("libs.json"), record::libs::LIBS_SCHEMA_VERSION)
}

#[test]
fn the_same_list_gives_the_same_files_in_another_folder() {
    let dir = tempfile::tempdir().unwrap();
    list(&dir.path().join("list"));
    // Settings in a folder above must not count.
    fs::create_dir_all(dir.path().join("a/.cargo")).unwrap();
    fs::write(dir.path().join("a/.cargo/config.toml"), "[build]\nrustflags = [\"--cfg\", \"surprise\"]\n")
        .unwrap();
    let a = build(&dir.path().join("a"), &dir.path().join("list")).unwrap();
    let b = build(&dir.path().join("much/deeper/b"), &dir.path().join("list")).unwrap();
    assert_eq!(a.externs.keys().collect::<Vec<_>>(), ["inner_lib"]);
    assert_eq!(a.versions["inner-lib"], "1.2.3");
    assert!(a.files.contains_key(&a.externs["inner_lib"]), "{a:?}");
    assert_eq!(a, b);
}

#[test]
fn a_folder_without_a_lock_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    list(&dir.path().join("list"));
    fs::remove_file(dir.path().join("list/Cargo.lock")).unwrap();
    let error = build(dir.path(), &dir.path().join("list")).unwrap_err();
    assert!(error.to_string().contains("Cargo.lock"), "{error}");
}

#[test]
fn what_cargo_says_is_shown_when_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    list(&dir.path().join("list"));
    fs::write(dir.path().join("list/inner/src/lib.rs"), "pub fn two() -> u32 { \"two\" }").unwrap();
    let error = build(dir.path(), &dir.path().join("list")).unwrap_err();
    assert!(error.to_string().contains("inner-lib"), "{error}");
    assert!(!dir.path().join("libs").exists());
}
