//! A corpus of a few rows, made in a moment.

use std::fs;
use std::path::Path;

use record::Map;
use record::corpus::{
    CORPUS_SCHEMA_VERSION, CorpusManifest, CorpusRow, Funnel, Leakage, LinkTier, Oracle, RowContext,
    RowMetadata, SourceClass,
};
use sha2::{Digest, Sha256};

/// Name, function, tests.
const FUNCTIONS: &[(&str, &str, &str)] = &[
    (
        "clamp_sum",
        "pub fn clamp_sum(a: i32, b: i32, max: i32) -> i32 {\n    let sum = a + b;\n    if sum > max { max } else { sum }\n}",
        "#[test]\nfn test_below_max() {\n    assert_eq!(clamp_sum(1, 2, 10), 3);\n}\n\n#[test]\nfn test_above_max() {\n    assert_eq!(clamp_sum(7, 8, 10), 10);\n}\n",
    ),
    (
        "count_vowels",
        "pub fn count_vowels(text: &str) -> usize {\n    text.chars().filter(|c| \"aeiou\".contains(*c)).count()\n}",
        "#[test]\nfn test_counts_each_vowel() {\n    assert_eq!(count_vowels(\"education\"), 5);\n    assert_eq!(count_vowels(\"\"), 0);\n}\n",
    ),
    (
        "first_even",
        "pub fn first_even(values: &[u32]) -> Option<u32> {\n    values.iter().copied().find(|v| v % 2 == 0)\n}",
        "#[test]\nfn test_finds_the_first() {\n    assert_eq!(first_even(&[3, 4, 6]), Some(4));\n    assert_eq!(first_even(&[]), None);\n}\n",
    ),
    (
        "parse_pair",
        "pub fn parse_pair(text: &str) -> Result<(i64, i64), String> {\n    let (a, b) = text.split_once(',').ok_or(\"no comma\")?;\n    let number = |s: &str| s.trim().parse::<i64>().map_err(|e| e.to_string());\n    Ok((number(a)?, number(b)?))\n}",
        "#[test]\nfn test_reads_both_numbers() {\n    assert_eq!(parse_pair(\"1, -2\"), Ok((1, -2)));\n    assert!(parse_pair(\"1\").is_err());\n    assert!(parse_pair(\"1,x\").is_err());\n}\n",
    ),
    (
        "repeat_char",
        "pub fn repeat_char(c: char, n: usize) -> String {\n    let mut text = String::new();\n    for _ in 0..n {\n        text.push(c);\n    }\n    text\n}",
        "#[test]\nfn test_repeats() {\n    assert_eq!(repeat_char('x', 3), \"xxx\");\n    assert_eq!(repeat_char('x', 0), \"\");\n}\n",
    ),
    (
        "median_of_three",
        "pub fn median_of_three(a: i32, b: i32, c: i32) -> i32 {\n    a.max(b).min(a.min(b).max(c))\n}",
        "#[test]\nfn test_takes_the_middle() {\n    assert_eq!(median_of_three(3, 1, 2), 2);\n    assert_eq!(median_of_three(1, 1, 5), 1);\n}\n",
    ),
];

/// All rows of the fixture; the last two are the holdout.
pub fn rows() -> Vec<CorpusRow> {
    FUNCTIONS.iter().map(|(name, function, tests)| row(name, function, tests)).collect()
}

/// Writes a corpus folder as build-corpus does: four rows to train on, one of them also to validate, two held out.
///
/// # Panics
/// When the folder can't be written.
pub fn write_corpus(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let rows = rows();
    let (train, holdout) = rows.split_at(rows.len() - 2);
    let (train, validation) = train.split_at(train.len() - 1);
    let splits =
        [("train", train), ("validation", validation), ("test", &[]), ("holdout", holdout), ("stress", &[])];
    for (name, rows) in splits {
        let lines: String = rows.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
        fs::write(dir.join(format!("{name}.jsonl")), lines).unwrap();
    }
    let mut holdout_sha256: Vec<String> = holdout.iter().map(|r| r.metadata.sha256.clone()).collect();
    holdout_sha256.sort();
    let manifest = CorpusManifest {
        schema_version: CORPUS_SCHEMA_VERSION,
        sources: vec![],
        counts: splits.iter().map(|(name, rows)| ((*name).to_owned(), rows.len() as u64)).collect(),
        property_share: Map::new(),
        funnel: Funnel::default(),
        leakage: Leakage::default(),
        holdout_sha256,
        toolchain: String::new(),
        shortfalls: vec![],
    };
    fs::write(dir.join("manifest.json"), serde_json::to_string_pretty(&manifest).unwrap()).unwrap();
}

fn row(name: &str, function: &str, tests: &str) -> CorpusRow {
    CorpusRow {
        id: format!("fixture/{name}"),
        function_code: function.to_owned(),
        unit_tests: tests.to_owned(),
        property_tests: None,
        context: RowContext::default(),
        metadata: RowMetadata {
            crate_name: "fixture".to_owned(),
            version: "0.1.0".to_owned(),
            path: "src/lib.rs".to_owned(),
            item: name.to_owned(),
            lines: [1, function.lines().count() as u32],
            license: "MIT OR Apache-2.0".to_owned(),
            complexity: 2,
            has_generics: false,
            has_lifetimes: false,
            is_async: false,
            is_unsafe: false,
            uses_macros: false,
            returns_result: function.contains("-> Result"),
            source_class: SourceClass::Curated,
            property_class: None,
            oracle: Oracle::Human,
            link_tier: LinkTier::Curated,
            mutants_killed: 1,
            stratum: Some("std".to_owned()),
            sha256: hex::encode(Sha256::digest(function)),
        },
    }
}
