//! The rules of the house: who may depend on whom, where `unsafe` may stand, how large a file may grow.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every allowed edge between packages of the workspace. `dev` edges count too.
const EDGES: &[(&str, &[&str])] = &[
    ("record", &[]),
    ("stage-kit", &["record"]),
    ("runner", &["record"]),
    ("monitor", &["record"]),
    ("kernels", &[]),
    ("model", &["record"]),
    ("engine", &["record", "model", "kernels"]),
    ("subject", &["record"]),
    ("sandbox", &["record"]),
    ("harness", &["record", "subject", "sandbox"]),
    ("mutants", &["record", "subject", "harness", "sandbox"]),
    ("scores", &["record"]),
    ("fetch-model", &["record", "stage-kit", "model"]),
    ("build-corpus", &["record", "stage-kit", "subject", "mutants", "harness", "sandbox"]),
    ("prebuild-libs", &["record", "stage-kit"]),
    ("tokenize-to-parquet", &["record", "stage-kit", "model"]),
    ("train-cuda", &["record", "stage-kit", "model", "engine", "kernels"]),
    ("generate", &["record", "stage-kit", "model", "engine", "kernels"]),
    ("compile-check", &["record", "stage-kit", "subject", "harness", "sandbox", "scores"]),
    ("mutate-score", &["record", "stage-kit", "subject", "mutants", "harness", "sandbox", "scores"]),
    ("popper-report", &["record", "stage-kit", "scores"]),
    ("testforge-tests", &["record"]),
];

/// Packages that may contain `unsafe`.
const UNSAFE_ALLOWED: &[&str] = &["kernels", "sandbox"];
const LINES_MAX: usize = 600;
const MAIN_LINES_MAX: usize = 40;

#[test]
fn dependencies_point_in_the_allowed_direction() {
    let packages = packages();
    let names: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        EDGES.iter().map(|(name, to)| (*name, to.iter().copied().collect())).collect();
    assert_eq!(
        names,
        allowed.keys().copied().collect(),
        "the table of edges lists other packages than the workspace has"
    );
    let mut wrong = Vec::new();
    for (name, dir) in &packages {
        for dependency in dependencies(dir) {
            if names.contains(dependency.as_str()) && !allowed[name.as_str()].contains(dependency.as_str()) {
                wrong.push(format!("{name} -> {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "edges that the house does not allow: {wrong:?}");
}

/// On a GPU both training and generation compute in bfloat16, or tuned and base model would be judged by other numbers than
/// they were trained with; the small profile runs on the CPU, in float32.
#[test]
fn the_shipped_recipe_computes_in_bfloat16_and_the_small_one_in_float32() {
    let text = fs::read_to_string(testforge_tests::repository().join("pipeline.toml")).unwrap();
    let pipeline: toml::Table = text.parse().unwrap();
    let param = |stages: &toml::Value, stage: &str, name: &str| {
        stages.get(stage).and_then(|s| s.get("params")?.get(name)?.as_str().map(str::to_owned))
    };
    for stage in ["generate", "generate-repeat", "generate-base"] {
        let recipe = &pipeline["stage"];
        assert_eq!(param(recipe, stage, "device").as_deref(), Some("cuda"), "{stage}");
        assert_eq!(param(recipe, stage, "precision").as_deref(), Some("bfloat16"), "{stage}");
        let small = &pipeline["profile"]["embedded"]["stage"];
        assert_eq!(param(small, stage, "device").as_deref(), Some("cpu"), "{stage}");
        assert_eq!(param(small, stage, "precision").as_deref(), Some("float32"), "{stage}");
    }
    for stage in ["train-cuda", "train-cuda-repeat"] {
        let precision = param(&pipeline["stage"], stage, "precision");
        assert!(precision.is_none_or(|p| p == "bfloat16"), "{stage}: bfloat16 is the default");
    }
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut found = Vec::new();
    for (name, dir) in packages() {
        if UNSAFE_ALLOWED.contains(&name.as_str()) {
            continue;
        }
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        if !manifest.contains("[lints]\nworkspace = true") {
            found.push(format!("{name} does not take the workspace's lints"));
        }
        for file in rust_files(&dir) {
            let text = fs::read_to_string(&file).unwrap();
            if text.contains(concat!("(unsafe", "_code")) {
                found.push(file.display().to_string());
            }
        }
    }
    assert!(found.is_empty(), "unsafe code outside {UNSAFE_ALLOWED:?}: {found:?}");
}

#[test]
fn files_stay_small() {
    let mut large = Vec::new();
    for (name, dir) in packages() {
        for file in rust_files(&dir) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            let is_stage_main = dir.starts_with(root().join("stages")) && file.ends_with("src/main.rs");
            let max = if is_stage_main { MAIN_LINES_MAX } else { LINES_MAX };
            if lines > max {
                large.push(format!("{name}: {} has {lines} lines, at most {max}", file.display()));
            }
        }
    }
    assert!(large.is_empty(), "{}", large.join("\n"));
}

#[test]
fn architecture_names_every_room() {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    for (name, dir) in packages() {
        let relative = dir.strip_prefix(root()).unwrap().display().to_string();
        let named = text.contains(&format!("`{relative}`")) || relative.starts_with("stages/");
        assert!(named, "docs/ARCHITECTURE.md does not mention `{relative}` ({name})");
    }
}

#[test]
fn every_stage_has_a_page() {
    for (name, dir) in packages() {
        if dir.starts_with(root().join("stages")) {
            assert!(dir.join("README.md").is_file(), "stages/{name} has no README.md");
        }
    }
}

#[test]
fn ignored_files_are_the_specified_ones() {
    let text = fs::read_to_string(root().join(".gitignore")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let specified = [
        "checkpoints/",
        "adapters/",
        "*.safetensors",
        "*.gguf",
        "*.bin",
        ".cache/huggingface/",
        "runs/",
        "logs/",
        "tensorboard/",
        "eval_results/",
        "generated_tests/",
        "models/",
        "*.ckpt",
    ];
    for line in specified {
        assert!(lines.contains(&line), ".gitignore lacks `{line}`");
    }
    assert_eq!(lines.last(), Some(&"!tests/data/**"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Package name -> folder, of every package that the workspace's members name.
fn packages() -> BTreeMap<String, PathBuf> {
    let root = root();
    let mut dirs = vec![root.join("runner"), root.join("kernels"), root.join("monitor"), root.join("tests")];
    for parent in ["stages", "crates"] {
        let entries = fs::read_dir(root.join(parent)).unwrap();
        dirs.extend(entries.map(|e| e.unwrap().path()).filter(|p| p.join("Cargo.toml").is_file()));
    }
    let name = |dir: &Path| manifest(dir)["package"]["name"].as_str().unwrap().to_owned();
    dirs.into_iter().map(|dir| (name(&dir), dir)).collect()
}

fn manifest(dir: &Path) -> toml::Table {
    fs::read_to_string(dir.join("Cargo.toml")).unwrap().parse().unwrap()
}

fn dependencies(dir: &Path) -> BTreeSet<String> {
    let manifest = manifest(dir);
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let keys = tables.iter().filter_map(|t| manifest.get(*t)?.as_table()).flat_map(|t| t.keys().cloned());
    keys.collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()) {
            match () {
                () if entry.is_dir() && entry.file_name().is_some_and(|n| n != "target" && n != "data") => {
                    open.push(entry)
                }
                () if entry.extension().is_some_and(|e| e == "rs") => files.push(entry),
                () => {}
            }
        }
    }
    files.sort();
    files
}
