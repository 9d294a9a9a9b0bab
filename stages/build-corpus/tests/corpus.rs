//! The whole stage on small crates made up here; nothing comes from the network.
#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

use std::fs;
use std::path::{Path, PathBuf};

use build_corpus::{BuildCorpus, Params};
use record::corpus::{CORPUS_SCHEMA_VERSION, CorpusManifest, CorpusRow, LinkTier, SourceClass};
use stage_kit::{ContextBuilder, ExitCode, StageError, files};
use tempfile::TempDir;

const NUMBERS: &str = "//! Numbers.\n\n\
    const STEP: u32 = 3;\n\n\
    fn step(n: u32) -> u32 {\n    n + STEP\n}\n\n\
    /// Walks `times` steps from `start`, at most to `limit`.\n///\n/// # Examples\n/// ```\n/// # use numbers::walk;\n/// assert_eq!(walk(1, 2, 100), 7);\n/// assert_eq!(walk(1, 2, 5), 5);\n/// ```\n\
    pub fn walk(start: u32, times: u32, limit: u32) -> u32 {\n    let mut at = start;\n    for _ in 0..times {\n        at = step(at);\n        if at > limit {\n            return limit;\n        }\n    }\n    at\n}\n\n\
    pub fn untested(a: u8) -> u8 {\n    a\n}\n\n\
    #[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn walk_zero_steps() {\n        assert_eq!(walk(4, 0, 9), 4);\n    }\n\n    #[test]\n    fn step_adds_three() {\n        assert_eq!(step(1), 4);\n    }\n}\n";
const WORDS: &str = "/// How many words start with a capital.\npub fn capitals(text: &str) -> usize {\n    text.split(' ').filter(|w| w.chars().next().is_some_and(char::is_uppercase)).count()\n}\n\n\
    #[test]\nfn counts_capitals() {\n    assert_eq!(capitals(\"One two Three\"), 2);\n}\n";

struct World {
    dir: TempDir,
}

impl World {
    /// A source list `small` that names the crates: name, licence, source.
    fn new(crates: &[(&str, &str, &str)]) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let mut manifest = String::from(
            "[package]\nname = \"small\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[dependencies]\n",
        );
        let mut lock = String::from("version = 4\n");
        for (name, licence, source) in crates {
            manifest.push_str(&format!("{name} = {{ path = \"../../crates/{name}\" }}\n"));
            lock.push_str(&format!("\n[[package]]\nname = \"{name}\"\nversion = \"0.1.0\"\n"));
            let folder = format!("crates/{name}");
            world.write(
                &format!("{folder}/Cargo.toml"),
                &format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\nlicense = \"{licence}\"\nauthors = [\"A. Author\"]\n"),
            );
            world.write(&format!("{folder}/src/lib.rs"), source);
            world.write(&format!("{folder}/LICENSE"), "Do as you please.\n");
        }
        let names: Vec<String> = crates.iter().map(|(name, ..)| format!(" \"{name}\",\n")).collect();
        lock.push_str(&format!(
            "\n[[package]]\nname = \"small\"\nversion = \"0.0.0\"\ndependencies = [\n{}]\n",
            names.concat()
        ));
        world.write("sources/small/Cargo.toml", &manifest);
        world.write("sources/small/Cargo.lock", &lock);
        world
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn run_into(&self, out: &str, params: Params) -> Result<PathBuf, StageError> {
        let corpus = self.path(out);
        let mut context = ContextBuilder::new("build-corpus", &self.path(&format!("work-{out}")))
            .input("sources", self.path("sources"))
            .output("corpus", &corpus)
            .seed(7);
        for input in ["curated", "holdout"] {
            if self.path(input).exists() {
                context = context.input(input, self.path(input));
            }
        }
        context.run::<BuildCorpus>(params).map(|_| corpus)
    }

    fn run(&self) -> Result<PathBuf, StageError> {
        self.run_into("corpus", params())
    }
}

fn params() -> Params {
    Params { set: "small".to_owned(), train: 20, validation: 0, test: 0, min_rows: 0, ..Params::default() }
}

fn rows(corpus: &Path, split: &str) -> Vec<CorpusRow> {
    files::read_jsonl(&corpus.join(format!("{split}.jsonl"))).unwrap()
}

fn manifest(corpus: &Path) -> CorpusManifest {
    files::read_versioned(&corpus.join("manifest.json"), CORPUS_SCHEMA_VERSION).unwrap()
}

fn hand_written(function: &str, test: &str) -> String {
    format!(
        "// focal\n{function}\n\n#[cfg(test)]\nmod tests {{\n    use super::*;\n\n    #[test]\n    fn works() {{\n        {test}\n    }}\n}}\n"
    )
}

#[test]
fn functions_come_out_with_their_tests_and_stand_alone() {
    let world = World::new(&[("numbers", "MIT", NUMBERS), ("words", "Apache-2.0 OR GPL-3.0-only", WORDS)]);
    let corpus = world.run().unwrap();
    let train = rows(&corpus, "train");
    let mut ids: Vec<&str> = train.iter().map(|r| r.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["numbers-0.1.0/step", "numbers-0.1.0/walk", "words-0.1.0/capitals"]);
    let walk = train.iter().find(|r| r.id.ends_with("walk")).unwrap();
    assert_eq!(walk.context.items, ["const STEP: u32 = 3;", "fn step(n: u32) -> u32 {\n    n + STEP\n}"]);
    assert!(walk.function_code.starts_with("/// Walks `times` steps"), "{}", walk.function_code);
    assert!(!walk.function_code.contains("```"), "the example would give the tests away");
    assert!(
        walk.unit_tests.contains("fn walk_example()") && walk.unit_tests.contains("fn walk_zero_steps()")
    );
    assert_eq!((walk.metadata.complexity, walk.metadata.link_tier), (3, LinkTier::Name));
    assert_eq!(walk.metadata.source_class, SourceClass::Unit);
    assert!(walk.metadata.mutants_killed > 0);
    let manifest = manifest(&corpus);
    assert_eq!(manifest.counts["train"], 3);
    assert_eq!(manifest.funnel.dropped["no_linked_test"], 1);
    assert!(manifest.shortfalls.iter().any(|s| s.contains("3 of the 20")), "{:?}", manifest.shortfalls);
    let notice = fs::read_to_string(corpus.join("NOTICE")).unwrap();
    assert!(
        notice.contains("used under: Apache-2.0")
            && notice.contains("Do as you please.")
            && notice.contains("A. Author")
    );
    assert!(fs::read_to_string(corpus.join("DATASET_CARD.md")).unwrap().starts_with("---\nlicense:"));
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let world = World::new(&[("numbers", "MIT", NUMBERS), ("words", "MIT", WORDS)]);
    let first = world.run_into("one", params()).unwrap();
    let second = world.run_into("two", Params { jobs: 1, ..params() }).unwrap();
    for file in ["train.jsonl", "manifest.json", "NOTICE", "DATASET_CARD.md", "holdout.jsonl"] {
        assert_eq!(fs::read(first.join(file)).unwrap(), fs::read(second.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn a_crate_stands_in_one_split() {
    let world = World::new(&[("numbers", "MIT", NUMBERS), ("words", "MIT", WORDS)]);
    let corpus = world.run_into("corpus", Params { train: 2, validation: 1, test: 1, ..params() }).unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for split in ["train", "validation", "test"] {
        for row in rows(&corpus, split) {
            assert_eq!(*seen.entry(row.metadata.crate_name).or_insert(split), split);
        }
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn refused_licences_and_crates_that_do_not_parse_are_left_out_and_said() {
    let world = World::new(&[
        ("copyleft", "GPL-3.0-only", WORDS),
        ("broken", "MIT", "pub fn oops( {"),
        ("numbers", "MIT", NUMBERS),
    ]);
    let corpus = world.run().unwrap();
    assert!(rows(&corpus, "train").iter().all(|r| r.metadata.crate_name == "numbers"));
    let manifest = manifest(&corpus);
    assert_eq!(manifest.funnel.dropped["crate_licence_refused"], 1);
    assert_eq!(manifest.funnel.dropped["crate_unreadable"], 1);
    assert!(manifest.shortfalls.iter().any(|s| s.contains("copyleft") && s.contains("GPL-3.0-only")));
    assert_eq!(manifest.sources.len(), 1);
}

#[test]
fn the_same_function_in_two_crates_is_taken_once() {
    let renamed = WORDS.replace("text", "line");
    let world = World::new(&[("one", "MIT", WORDS), ("two", "MIT", &renamed)]);
    let corpus = world.run().unwrap();
    assert_eq!(rows(&corpus, "train").len(), 1);
    assert_eq!(manifest(&corpus).funnel.duplicates_exact, 1);
}

#[test]
fn what_the_holdout_holds_does_not_reach_training() {
    let world = World::new(&[("numbers", "MIT", NUMBERS), ("words", "MIT", WORDS)]);
    let copy = WORDS.split("\n\n").next().unwrap().replace("capitals", "big").replace("text", "t");
    world.write(
        "holdout/std/big.rs",
        &hand_written(copy.split_once('\n').unwrap().1, "assert_eq!(big(\"A b\"), 1);"),
    );
    let corpus = world.run().unwrap();
    assert!(rows(&corpus, "train").iter().all(|r| r.metadata.crate_name == "numbers"));
    let manifest = manifest(&corpus);
    assert_eq!(manifest.funnel.dropped["leak_normalized"], 1);
    assert_eq!((manifest.leakage.exact, manifest.leakage.normalized, manifest.leakage.ngram13), (0, 0, 0));
    assert_eq!(manifest.holdout_sha256.len(), 1);
    assert_eq!(manifest.leakage.nearest.len(), 1);
    assert_eq!(rows(&corpus, "holdout")[0].metadata.stratum.as_deref(), Some("std"));
}

#[test]
fn copies_of_the_holdout_are_kept_out_however_they_are_dressed() {
    let function = "pub fn squeeze(text: &str, gap: char) -> String {\n    let mut out = String::new();\n    let mut open = false;\n    for c in text.chars() {\n        if c == ' ' {\n            open = !out.is_empty();\n        } else {\n            if open {\n                out.push(gap);\n                open = false;\n            }\n            out.push(c);\n        }\n    }\n    out\n}";
    let test = "\n\n#[test]\nfn squeeze_works() {\n    assert_eq!(squeeze(\"a  b\", '-'), \"a-b\");\n}\n";
    let renamed = |code: &str| code.replace("text", "line").replace("out", "acc").replace("open", "gapped");
    let exact = format!("{function}{test}");
    let reformatted = format!("{}{test}", function.replace("\n    ", " ").replace("    ", ""));
    let changed = format!("{}{test}", renamed(function).replace("' '", "'\\t'")).replace("a  b", "a\\t\\tb");
    let helper = format!(
        "{}\n\npub fn shout(line: &str) -> String {{\n    let mut loud = compact(line, '_').to_uppercase();\n    loud.push('!');\n    loud\n}}\n\n#[test]\nfn shout_works() {{\n    assert_eq!(shout(\"a  b\"), \"A_B!\");\n}}\n",
        renamed(function).replace("squeeze", "compact").replace("pub fn", "fn")
    );
    let crates = [
        ("exact", "MIT", exact.as_str()),
        ("reformatted", "MIT", &reformatted),
        ("renamed", "MIT", &renamed(&exact)),
        ("changed", "MIT", &changed),
        ("helper", "MIT", &helper),
        ("numbers", "MIT", NUMBERS),
    ];
    let world = World::new(&crates);
    world.write(
        "holdout/std/squeeze.rs",
        &hand_written(function, "assert_eq!(squeeze(\" a  b\", '-'), \"a-b\");"),
    );
    let corpus = world.run().unwrap();
    let train = rows(&corpus, "train");
    assert!(!train.is_empty());
    let leaked: Vec<&str> =
        train.iter().map(|r| r.id.as_str()).filter(|id| !id.starts_with("numbers")).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[test]
fn odd_crates_are_left_out_or_read_in_part_and_counted() {
    let odd = format!(
        "#[path = \"elsewhere/words.rs\"]\npub mod words;\npub mod latin;\npub mod table;\n#[cfg(windows)]\npub mod gone;\npub mod broken;\npub mod built {{\n    include!(concat!(env!(\"OUT_DIR\"), \"/made.rs\"));\n}}\n\n{}",
        NUMBERS.replace("//! Numbers.", "")
    );
    let world = World::new(&[("odd", "MIT", &odd), ("derive", "MIT", "extern crate proc_macro;\n")]);
    world.write("crates/odd/src/elsewhere/words.rs", WORDS);
    world.write("crates/odd/src/broken.rs", "pub fn half( {");
    world.write("crates/odd/src/table.rs", &format!("// {}\n", "x".repeat(1 << 20)));
    world.write("crates/odd/build.rs", "fn main() { panic!(\"a build script must not run\") }\n");
    fs::write(world.path("crates/odd/src/latin.rs"), b"pub const E: &str = \"\xe9\";\n").unwrap();
    let manifest_of = |name: &str, more: &str| {
        format!(
            "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2018\"\nlicense = \"MIT\"\n{more}"
        )
    };
    world.write("crates/odd/Cargo.toml", &manifest_of("odd", "build = \"build.rs\"\n"));
    world.write("crates/derive/Cargo.toml", &manifest_of("derive", "\n[lib]\nproc-macro = true\n"));
    let corpus = world.run().unwrap();
    let mut ids: Vec<String> = rows(&corpus, "train").into_iter().map(|r| r.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["odd-0.1.0/step", "odd-0.1.0/walk", "odd-0.1.0/words::capitals"]);
    let manifest = manifest(&corpus);
    for reason in ["file_too_large", "file_not_utf8"] {
        assert_eq!(manifest.funnel.dropped[reason], 1, "{:?}", manifest.funnel.dropped);
    }
    assert!(manifest.funnel.dropped["file_unreadable"] >= 1, "broken.rs");
    assert!(manifest.shortfalls.iter().any(|s| s.contains("derive") && s.contains("no library")));
}

#[test]
fn the_order_of_the_sources_changes_nothing() {
    let (one, two) = (("numbers", "MIT", NUMBERS), ("words", "Apache-2.0 WITH LLVM-exception OR MIT", WORDS));
    let corpora = [[one, two], [two, one]].map(|crates| {
        let world = World::new(&crates);
        let corpus = world.run().unwrap();
        ["train.jsonl", "manifest.json", "NOTICE", "DATASET_CARD.md"]
            .map(|f| fs::read_to_string(corpus.join(f)).unwrap())
    });
    assert_eq!(corpora[0], corpora[1]);
    assert!(corpora[0][2].contains("used under: MIT"));
    assert!(corpora[0][3].contains("Apache-2.0 WITH LLVM-exception"), "{}", corpora[0][3]);
}

#[test]
fn hand_written_rows_go_into_train_and_stress() {
    let world = World::new(&[("numbers", "MIT", NUMBERS)]);
    world.write(
        "curated/half.rs",
        &hand_written(
            "pub fn half(n: u8) -> Option<u8> {\n    (n % 2 == 0).then(|| n / 2)\n}",
            "assert_eq!(half(4), Some(2));\n        assert_eq!(half(3), None);",
        ),
    );
    world.write(
        "holdout/unsafe/first.rs",
        &hand_written(
            "pub fn first(b: &[u8]) -> u8 {\n    if b.is_empty() { 0 } else { unsafe { *b.as_ptr() } }\n}",
            "assert_eq!((first(&[]), first(&[7])), (0, 7));",
        ),
    );
    let corpus = world.run().unwrap();
    assert!(
        rows(&corpus, "train")
            .iter()
            .any(|r| r.id == "curated/half" && r.metadata.source_class == SourceClass::Curated)
    );
    assert!(rows(&corpus, "holdout").is_empty());
    assert!(rows(&corpus, "stress")[0].metadata.is_unsafe);
}

#[test]
fn a_hand_written_row_that_does_not_hold_is_an_error_that_names_it() {
    let world = World::new(&[("numbers", "MIT", NUMBERS)]);
    world.write(
        "holdout/std/wrong.rs",
        &hand_written("pub fn two() -> u8 {\n    2\n}", "assert_eq!(two(), 3);"),
    );
    let error = world.run().unwrap_err();
    assert_eq!(error.code(), ExitCode::StageFailed);
    assert!(error.to_string().contains("holdout/std/wrong: test_fails"), "{error}");
    assert!(!world.path("corpus").exists());
}

/// Only tests that reach a mutant are run on it. A test that needs another one before it fails then whatever the function
/// does, and that is no kill here as it is none where generated tests are scored.
#[test]
fn a_test_that_fails_by_running_alone_kills_nothing() {
    let function = "pub fn clamp(x: i32, lo: i32, hi: i32) -> i32 {\n    if x < lo { lo } else if x > hi { hi } else { x }\n}";
    let tests = "#[cfg(test)]\nmod tests {\n    use super::*;\n    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};\n    \
                 static READY: AtomicBool = AtomicBool::new(false);\n\n    \
                 #[test]\n    fn a_prepares() {\n        READY.store(true, SeqCst);\n    }\n\n    \
                 #[test]\n    fn b_needs_it() {\n        for x in [1, 5, 12] {\n            let _ = clamp(x, 2, 9);\n        }\n        \
                 assert!(READY.load(SeqCst));\n    }\n}\n";
    let world = World::new(&[("words", "MIT", WORDS)]);
    world.write("curated/clamp.rs", &format!("// focal\n{function}\n\n{tests}"));
    let error = world.run().unwrap_err();
    assert!(error.to_string().contains("clamp: kills_no_mutant"), "{error}");
}

#[test]
fn a_test_that_a_condition_leaves_out_spoils_no_row() {
    let world = World::new(&[("words", "MIT", WORDS)]);
    let row = hand_written("pub fn half(n: u32) -> u32 { n / 2 }", "assert_eq!(half(8), 4);");
    world.write(
        "curated/half.rs",
        &row.replace(
            "#[test]",
            "#[cfg(windows)]\n    #[test]\n    fn elsewhere() { panic!() }\n\n    #[test]",
        ),
    );
    let train = rows(&world.run().unwrap(), "train");
    assert!(
        train.iter().any(|row| row.id.ends_with("half")),
        "{:?}",
        train.iter().map(|r| &r.id).collect::<Vec<_>>()
    );
}

/// A mutant that compiles beside the original alone is none: the switch keeps what a type is inferred from.
#[test]
fn only_mutants_that_compile_in_the_source_are_counted() {
    let function = "pub fn push_all(text: &str) {\n    let mut seen = Vec::new();\n    for c in text.chars() {\n        seen.push(c);\n    }\n    assert_eq!(seen.len(), text.chars().count());\n}";
    let world = World::new(&[("words", "MIT", WORDS)]);
    world.write("curated/push_all.rs", &hand_written(function, "push_all(\"abc\");"));
    let error = world.run().unwrap_err();
    assert!(error.to_string().contains("push_all: kills_no_mutant"), "{error}");
}

/// Test and validation get their rows although the crates that they were given first hold next to none.
#[test]
fn a_split_whose_crates_give_too_little_gets_another_crate_of_training() {
    let good = |n: usize| {
        format!(
            "/// Adds.\n/// ```\n/// assert_eq!(k{n}::plus_{n}(1), {});\n/// ```\npub fn plus_{n}(x: u64) -> u64 {{\n    x * {} + {n}\n}}\n",
            n + 3 + n,
            n + 3
        )
    };
    let names: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
    // Every second crate has a test that fails.
    let sources: Vec<String> = (0..12)
        .map(|n| if n % 2 == 0 { good(n) } else { good(n).replace("assert_eq!", "assert_ne!") })
        .collect();
    let crates: Vec<(&str, &str, &str)> =
        names.iter().zip(&sources).map(|(name, source)| (name.as_str(), "MIT", source.as_str())).collect();
    let world = World::new(&crates);
    for seed in [1, 2, 3] {
        let out = format!("corpus-{seed}");
        let corpus = world.path(&out);
        let sizes = Params { train: 4, validation: 1, test: 2, ..params() };
        ContextBuilder::new("build-corpus", &world.path(&format!("work-{out}")))
            .input("sources", world.path("sources"))
            .output("corpus", &corpus)
            .seed(seed)
            .run::<BuildCorpus>(sizes)
            .unwrap();
        let found = ["train", "validation", "test"].map(|split| rows(&corpus, split).len());
        assert_eq!((found[1], found[2]), (1, 2), "seed {seed}: {found:?}");
        // A crate stands in one split, so a good row may be one too many where it stands.
        let all: usize = found.iter().sum();
        assert!(all >= 4, "seed {seed}: {found:?}");
        assert_eq!(manifest(&corpus).funnel.kept, all as u64);
    }
}

#[test]
fn a_source_list_of_no_use_is_an_error_that_says_where() {
    let world = World::new(&[]);
    assert!(world.run().unwrap_err().to_string().contains("names no crate"));
    world.write("sources/small/Cargo.toml", "[package]\nname = \"small\"\nversion = = 1\n");
    let error = world.run().unwrap_err();
    assert!(error.place().unwrap().ends_with("Cargo.toml:3"), "{:?}", error.place());
    fs::remove_file(world.path("sources/small/Cargo.lock")).unwrap();
    let error = world.run().unwrap_err();
    assert_eq!(error.code(), ExitCode::Usage);
    assert!(error.place().unwrap().ends_with("Cargo.lock"));
    let world = World::new(&[("numbers", "MIT", NUMBERS)]);
    world.write("sources/small/Cargo.lock", "version = 4\n");
    assert!(
        world.run().unwrap_err().to_string().contains("cargo refuses"),
        "the lock does not match the manifest"
    );
}

#[test]
fn too_few_rows_and_wrong_parameters_are_refused() {
    let world = World::new(&[("words", "MIT", WORDS)]);
    let error = world.run_into("corpus", Params { min_rows: 9, ..params() }).unwrap_err();
    assert!(error.to_string().contains("1 rows were found, at least 9"), "{error}");
    for wrong in [
        Params { property_share: 1.5, ..params() },
        Params { runs: 0, ..params() },
        Params { set: "../small".to_owned(), ..params() },
        Params { train: 0, ..params() },
        Params { licences: vec!["Free for all".to_owned()], ..params() },
    ] {
        assert_eq!(world.run_into("corpus", wrong).unwrap_err().code(), ExitCode::Usage);
    }
}
