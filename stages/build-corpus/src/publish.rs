//! What is written: rows, manifest, attributions, data-set card.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use record::Map;
use record::corpus::{
    CORPUS_SCHEMA_VERSION, CorpusManifest, CorpusRow, CorpusSource, Funnel, Leakage, SourceClass,
};
use stage_kit::{Result, StageError, files};

use crate::handwritten::OWN_LICENCE;
use crate::sources::Source;

/// The rows of each split file.
pub type Splits = BTreeMap<&'static str, Vec<CorpusRow>>;

/// Everything that the manifest says beside the rows themselves.
#[derive(Debug)]
pub struct Account {
    pub funnel: Funnel,
    pub leakage: Leakage,
    pub toolchain: String,
    pub shortfalls: Vec<String>,
}

/// Writes the output folder.
///
/// # Errors
/// The folder can't be written.
pub fn write(dir: &Path, splits: &Splits, sources: &[Source], account: Account) -> Result<CorpusManifest> {
    for (name, rows) in splits {
        files::write_jsonl(&dir.join(format!("{name}.jsonl")), rows)?;
    }
    let manifest = manifest(splits, sources, account);
    files::write_json(&dir.join("manifest.json"), &manifest)?;
    text(&dir.join("NOTICE"), &notice(&manifest, sources))?;
    text(&dir.join("DATASET_CARD.md"), &card(&manifest))?;
    Ok(manifest)
}

fn text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| StageError::io("write", path, e))
}

fn manifest(splits: &Splits, sources: &[Source], account: Account) -> CorpusManifest {
    let counts: Map<u64> = splits.iter().map(|(n, rows)| ((*n).to_owned(), rows.len() as u64)).collect();
    let share = |rows: &Vec<CorpusRow>| {
        let with = rows.iter().filter(|r| r.property_tests.is_some()).count();
        if rows.is_empty() { 0.0 } else { with as f64 / rows.len() as f64 }
    };
    let mut holdout: Vec<String> = ["holdout", "stress"]
        .iter()
        .filter_map(|s| splits.get(s))
        .flatten()
        .map(|r| r.metadata.sha256.clone())
        .collect();
    holdout.sort();
    CorpusManifest {
        schema_version: CORPUS_SCHEMA_VERSION,
        sources: listed(splits, sources),
        counts,
        property_share: splits.iter().map(|(n, rows)| ((*n).to_owned(), share(rows))).collect(),
        funnel: account.funnel,
        leakage: account.leakage,
        holdout_sha256: holdout,
        toolchain: account.toolchain,
        shortfalls: account.shortfalls,
    }
}

/// Every source that gave a row, sorted.
fn listed(splits: &Splits, sources: &[Source]) -> Vec<CorpusSource> {
    let mut found = BTreeMap::<(String, String), (u64, BTreeSet<SourceClass>, String)>::new();
    for row in splits.values().flatten() {
        let key = (row.metadata.crate_name.clone(), row.metadata.version.clone());
        let entry = found.entry(key).or_insert_with(|| (0, BTreeSet::new(), row.metadata.license.clone()));
        entry.0 += 1;
        entry.1.insert(row.metadata.source_class);
        entry.1.extend(row.metadata.property_class);
    }
    let list = found.into_iter().map(|((crate_name, version), (rows, classes, license))| {
        let source = sources.iter().find(|s| s.name == crate_name && s.version == version);
        CorpusSource {
            checksum: source.and_then(|s| s.checksum.clone()),
            source_classes: classes.into_iter().collect(),
            crate_name,
            version,
            license,
            rows,
        }
    });
    list.collect()
}

fn notice(manifest: &CorpusManifest, sources: &[Source]) -> String {
    let mut out = String::from(
        "This corpus contains functions and tests taken from the packages below, each changed so that it stands alone:\n\
         documentation shortened, paths rewritten, attributes removed.\n",
    );
    let mut texts = BTreeMap::<&str, Vec<String>>::new();
    for listed in &manifest.sources {
        let Some(source) =
            sources.iter().find(|s| s.name == listed.crate_name && s.version == listed.version)
        else {
            out.push_str(&format!(
                "\n{} (written for this project)\n  licence: {OWN_LICENCE}\n",
                listed.crate_name
            ));
            continue;
        };
        out.push_str(&format!(
            "\n{} {}\n  licence: {}\n",
            source.name, source.version, source.licence.expression
        ));
        out.push_str(&format!("  used under: {}\n", source.licence.used.join(" AND ")));
        if !source.authors.is_empty() {
            out.push_str(&format!("  authors: {}\n", source.authors.join(", ")));
        }
        if let Some(repository) = &source.repository {
            out.push_str(&format!("  repository: {repository}\n"));
        }
        for (file, text) in &source.licence_texts {
            texts.entry(text.trim()).or_default().push(format!("{} {}: {file}", source.name, source.version));
        }
    }
    let mut texts: Vec<(&str, Vec<String>)> = texts.into_iter().collect();
    texts.sort_by(|a, b| a.1.cmp(&b.1));
    for (text, users) in texts {
        out.push_str(&format!("\n{}\n{}\n{0}\n\n{text}\n", "-".repeat(78), users.join("\n")));
    }
    out
}

fn card(manifest: &CorpusManifest) -> String {
    let mut licences: BTreeSet<&str> = BTreeSet::new();
    for source in &manifest.sources {
        let parts = source.license.split(" OR ").flat_map(|part| part.split(" AND "));
        licences.extend(parts.map(|part| part.trim_matches(['(', ')', ' '])));
    }
    let mut out = String::from(
        "---\nlicense: other\nlicense_name: mixed-permissive\nlicense_link: NOTICE\nlanguage:\n- en\ntags:\n- rust\n- code\n- unit-tests\ntask_categories:\n- text-generation\nconfigs:\n- config_name: default\n  data_files:\n",
    );
    for split in manifest.counts.keys() {
        out.push_str(&format!("  - split: {split}\n    path: {split}.jsonl\n"));
    }
    out.push_str("---\n\n# Rust functions with their tests\n\n");
    out.push_str("Each row is a Rust function, the items that it needs, and tests that compile with it, pass in repeated runs and kill at least one mutant of it.\n\n");
    out.push_str("| split | rows | with property tests |\n| --- | ---: | ---: |\n");
    for (split, rows) in &manifest.counts {
        let share = manifest.property_share.get(split).copied().unwrap_or_default();
        out.push_str(&format!("| {split} | {rows} | {:.1} % |\n", share * 100.0));
    }
    out.push_str("\nSplits other than holdout and stress come from published packages, a package whole in one split; `curated` rows are in train. Holdout and stress are written by hand and share no text with train.\n");
    out.push_str("Property tests of class `synthesized` were made from signatures and kept because they hold: they describe the function as it is.\n");
    if !manifest.shortfalls.is_empty() {
        out.push_str("\n## What is missing\n\n");
        manifest.shortfalls.iter().for_each(|s| out.push_str(&format!("- {s}\n")));
    }
    out.push_str("\n## Sources\n\n| package | version | licence | rows |\n| --- | --- | --- | ---: |\n");
    for s in &manifest.sources {
        out.push_str(&format!("| {} | {} | {} | {} |\n", s.crate_name, s.version, s.license, s.rows));
    }
    let licences: Vec<&str> = licences.into_iter().collect();
    out.push_str(&format!(
        "\nLicences that occur: {}. Texts and attributions: NOTICE.\n",
        licences.join(", ")
    ));
    out
}
