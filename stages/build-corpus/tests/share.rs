//! The share of rows with property tests, with a stand-in for the library that makes them: what it draws is real.
#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

use std::fs;
use std::path::Path;
use std::process::Command;

use build_corpus::{BuildCorpus, Params};
use record::corpus::{CORPUS_SCHEMA_VERSION, CorpusManifest, CorpusRow, SourceClass};
use serde_json::json;
use sha2::{Digest, Sha256};
use stage_kit::{ContextBuilder, files};

const PROPTEST: &str = r#"
pub trait Strategy { type Value; fn draw(&self, state: &mut u64) -> Self::Value; }
pub struct Any;
pub fn any<T>() -> Any { Any }
pub fn next(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) as u32
}
impl Strategy for Any { type Value = u32; fn draw(&self, state: &mut u64) -> u32 { next(state) } }
impl Strategy for std::ops::Range<u32> {
    type Value = u32;
    fn draw(&self, state: &mut u64) -> u32 { self.start + next(state) % (self.end - self.start) }
}
pub mod prelude { pub use crate::{any, prop_assert, prop_assert_eq, prop_assert_ne, prop_assume, proptest, Strategy}; }
#[macro_export]
macro_rules! proptest { ($($(#[$meta:meta])* fn $name:ident($($value:ident in $from:expr),*) $body:block)*) => { $(
    $(#[$meta])* fn $name() {
        let mut state = std::env::var("PROPTEST_RNG_SEED").map_or(1, |seed| seed.parse().unwrap());
        for _ in 0..64 {
            $(let $value = $crate::Strategy::draw(&$from, &mut state);)*
            let case = || -> Result<(), String> { $body; Ok(()) };
            case().unwrap();
        }
    } )* };
}
#[macro_export]
macro_rules! prop_assert { ($holds:expr) => { if !$holds { return Err(stringify!($holds).to_string()); } }; }
#[macro_export]
macro_rules! prop_assert_eq { ($a:expr, $b:expr) => { if $a != $b { return Err(String::new()); } }; }
#[macro_export]
macro_rules! prop_assert_ne { ($a:expr, $b:expr) => { if $a == $b { return Err(String::new()); } }; }
#[macro_export]
macro_rules! prop_assume { ($holds:expr) => { if !$holds { return Ok(()); } }; }
"#;

/// A function of a number, of which laws hold.
fn lawful(n: u32) -> String {
    format!(
        "/// ```\n/// assert_eq!(k::plus_{n}(2), {});\n/// ```\npub fn plus_{n}(x: u32) -> u32 {{\n    (x / {n}) ^ {n}\n}}\n",
        (2 / n) ^ n
    )
}

/// A function of something that no strategy makes, with an example that holds of no other number.
fn lawless(n: u32) -> String {
    format!(
        "#[test]\nfn push_{n}_works() {{\n    let mut all = vec![1, 5];\n    push_{n}(&mut all);\n    assert_eq!(all.last(), Some(&{}));\n}}\n\npub fn push_{n}(all: &mut Vec<u32>) {{\n    let sum: u32 = all.iter().sum();\n    all.push(sum * {n});\n}}\n",
        6 * n
    )
}

/// Six crates of so many lawful and lawless functions each.
fn world(root: &Path, n_lawful: u32, n_lawless: u32) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let (mut dependencies, mut lock, mut names) = (String::new(), "version = 4\n".to_owned(), String::new());
    for number in 0..6 {
        let name = format!("k{number}");
        let part = |n: u32, of: fn(u32) -> String| -> String {
            (0..n).map(|i| of(3 + 7 * number + i).replace("k::", &format!("{name}::"))).collect()
        };
        let package = format!("name = \"{name}\"\nversion = \"0.1.0\"\n");
        write(&format!("crates/{name}/src/lib.rs"), &(part(n_lawful, lawful) + &part(n_lawless, lawless)));
        write(
            &format!("crates/{name}/Cargo.toml"),
            &format!("[package]\n{package}edition = \"2021\"\nlicense = \"MIT\"\n"),
        );
        dependencies += &format!("{name} = {{ path = \"../../crates/{name}\" }}\n");
        lock += &format!("\n[[package]]\n{package}");
        names += &format!(" \"{name}\",\n");
    }
    let own = "[package]\nname = \"small\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[dependencies]\n";
    write("sources/small/Cargo.toml", &format!("{own}{dependencies}"));
    lock += &format!("\n[[package]]\nname = \"small\"\nversion = \"0.0.0\"\ndependencies = [\n{names}]\n");
    write("sources/small/Cargo.lock", &lock);
    write("proptest.rs", PROPTEST);
    fs::create_dir_all(root.join("libs")).unwrap();
    let made = Command::new("rustc")
        .args([
            "--crate-type",
            "rlib",
            "--edition",
            "2021",
            "--crate-name",
            "proptest",
            "--cap-lints",
            "allow",
        ])
        .args(["-o", "libs/libproptest.rlib", "proptest.rs"])
        .current_dir(root)
        .status();
    assert!(made.unwrap().success());
    let digest = hex::encode(Sha256::digest(fs::read(root.join("libs/libproptest.rlib")).unwrap()));
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let libs = json!({
        "schema_version": 1,
        "rustc": String::from_utf8(rustc.stdout).unwrap().trim(),
        "externs": {"proptest": "libproptest.rlib"},
        "versions": {"proptest": "1.0.0"},
        "files": {"libproptest.rlib": digest},
    });
    write("libs/libs.json", &libs.to_string());
}

/// Rows with and without property tests in train, validation and test, and the manifest.
fn build(root: &Path, seed: u64, wanted: [u64; 3]) -> ([[usize; 2]; 3], CorpusManifest) {
    let out = root.join(format!("corpus-{seed}"));
    let [train, validation, test] = wanted;
    ContextBuilder::new("build-corpus", &root.join(format!("work-{seed}")))
        .input("sources", root.join("sources"))
        .input("libs", root.join("libs"))
        .output("corpus", &out)
        .seed(seed)
        .run::<BuildCorpus>(Params { set: "small".to_owned(), train, validation, test, ..Params::default() })
        .unwrap();
    let counts = ["train", "validation", "test"].map(|split| {
        let rows: Vec<CorpusRow> = files::read_jsonl(&out.join(format!("{split}.jsonl"))).unwrap();
        for row in &rows {
            let class = row.property_tests.as_ref().map(|_| SourceClass::Synthesized);
            assert_eq!(row.metadata.property_class, class);
            assert!(row.metadata.mutants_killed > 0);
        }
        let with = rows.iter().filter(|row| row.property_tests.is_some()).count();
        [with, rows.len() - with]
    });
    (counts, files::read_versioned(&out.join("manifest.json"), CORPUS_SCHEMA_VERSION).unwrap())
}

#[test]
fn each_split_has_the_share_of_property_tests_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    world(dir.path(), 4, 2);
    let (counts, manifest) = build(dir.path(), 1, [10, 5, 5]);
    assert_eq!(counts, [[6, 4], [3, 2], [3, 2]], "{:?}", manifest.shortfalls);
    assert!(manifest.shortfalls.iter().all(|s| s.contains("synthesized")), "{:?}", manifest.shortfalls);
    assert_eq!(manifest.property_share["train"], 0.6);
}

#[test]
fn rows_are_left_out_rather_than_the_share_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    world(dir.path(), 1, 4);
    let (counts, manifest) = build(dir.path(), 1, [20, 0, 0]);
    // Six rows with property tests suffice for ten; four times as many hold without.
    assert_eq!(counts[0], [6, 4], "{:?}", manifest.shortfalls);
    let said = |what: &str| manifest.shortfalls.iter().any(|s| s.starts_with("train: ") && s.contains(what));
    assert!(
        said("10 of the 20 rows") && said("10 more rows hold and were left out"),
        "{:?}",
        manifest.shortfalls
    );
    assert_eq!(manifest.funnel.kept, 10);
}
