//! Rows written by hand: one `.rs` file each, the function marked by a line `// focal` above it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};
use stage_kit::digest::sha256_hex;
use stage_kit::{Result, StageError};
use subject::closure::{Breadth, Closer};
use subject::complexity;
use subject::extract::config::Config;
use subject::extract::{CaseKind, CrateFiles, Focal, Krate};

/// Licence of what is written for this project.
pub const OWN_LICENCE: &str = "MIT OR Apache-2.0";
const MARK: &str = "// focal";

/// Reads every `.rs` file under `dir`, in the order of their paths. In the holdout the folder of a file is its stratum.
///
/// # Errors
/// A file that does not parse, has no marked function, or no test; the message names it.
pub fn load(
    dir: &Path,
    collection: &str,
    externs: &BTreeSet<String>,
    strata: bool,
) -> Result<Vec<CorpusRow>> {
    let mut rows = Vec::new();
    for path in files(dir)? {
        let inside = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path).map_err(|e| StageError::io("read", &path, e))?;
        let row = row(&inside, &text, collection, externs, strata);
        rows.push(row.map_err(|why| {
            StageError::failed(why).at(path.display().to_string()).next(
                "a hand-written row is a Rust file: items, a function under a line `// focal`, and `#[cfg(test)] mod tests`",
            )
        })?);
    }
    Ok(rows)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.map_err(|e| {
            StageError::failed(format!("can't list the folder: {e}"))
                .at(dir.display().to_string())
                .next("check the path")
        })?;
        if entry.file_type().is_file() && entry.path().extension().is_some_and(|e| e == "rs") {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

fn row(
    path: &str,
    text: &str,
    collection: &str,
    externs: &BTreeSet<String>,
    strata: bool,
) -> std::result::Result<CorpusRow, String> {
    let marked = text.lines().position(|l| l.trim() == MARK).ok_or("no line `// focal`")? as u32 + 1;
    let files = CrateFiles {
        name: "row".to_owned(),
        root: path.to_owned(),
        files: [(path.to_owned(), text.to_owned())].into(),
        integration_tests: Vec::new(),
        config: Config::default(),
    };
    let krate = Krate::read(&files).map_err(|e| e.to_string())?;
    let functions = krate.functions();
    // Documentation may stand above the mark, the function's end never does.
    let below = |f: &&Focal| krate.lines_of(**f)[1] > marked;
    let focal = functions.iter().filter(below).min_by_key(|f| krate.lines_of(**f)[1]).copied();
    let focal = focal.ok_or("no function below `// focal`")?;
    let cases: Vec<usize> = (0..krate.cases.len()).collect();
    if !krate.cases.iter().any(|c| c.kind == CaseKind::Unit) {
        return Err("no `#[test]`".to_owned());
    }
    let alone = Closer::new(&krate, externs.clone())
        .close(focal, &cases, Breadth::Generous)
        .map_err(|e| e.to_string())?;
    let shape = complexity::measure(&alone.function_code).map_err(|e| e.to_string())?;
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let stratum = stem.split_once('/').map(|(folder, _)| folder.to_owned()).filter(|_| strata);
    if strata && stratum.is_none() {
        return Err("it lies in no stratum's folder".to_owned());
    }
    Ok(CorpusRow {
        id: format!("{collection}/{stem}"),
        metadata: RowMetadata {
            crate_name: collection.to_owned(),
            version: "0".to_owned(),
            path: path.to_owned(),
            item: krate.path_of(focal),
            lines: krate.lines_of(focal),
            license: OWN_LICENCE.to_owned(),
            complexity: shape.complexity,
            has_generics: shape.has_generics,
            has_lifetimes: shape.has_lifetimes,
            is_async: shape.is_async,
            is_unsafe: shape.is_unsafe,
            uses_macros: shape.uses_macros,
            returns_result: shape.returns_result,
            source_class: SourceClass::Curated,
            property_class: alone.property_tests.is_some().then_some(SourceClass::Curated),
            oracle: Oracle::Human,
            link_tier: LinkTier::Curated,
            mutants_killed: 0,
            stratum,
            sha256: sha256_hex(&alone.function_code),
        },
        function_code: alone.function_code,
        unit_tests: alone.unit_tests,
        property_tests: alone.property_tests,
        context: RowContext { imports: alone.imports, items: alone.items },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_one(text: &str) -> Result<Vec<CorpusRow>> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("std")).unwrap();
        fs::write(dir.path().join("std/one.rs"), text).unwrap();
        load(dir.path(), "holdout", &BTreeSet::new(), true)
    }

    #[test]
    fn a_file_is_a_row() {
        let rows = load_one(
            "const N: u8 = 1;\n\n/// Adds one.\n// focal\npub fn next(n: u8) -> u8 {\n    n + N\n}\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn adds() {\n        assert_eq!(next(1), 2);\n    }\n}\n",
        )
        .unwrap();
        assert_eq!(rows[0].id, "holdout/std/one");
        assert_eq!(rows[0].metadata.stratum.as_deref(), Some("std"));
        assert_eq!(rows[0].function_code, "/// Adds one.\npub fn next(n: u8) -> u8 {\n    n + N\n}");
        assert_eq!(rows[0].context.items, ["const N: u8 = 1;"]);
        assert_eq!(rows[0].unit_tests, "#[test]\nfn adds() {\n    assert_eq!(next(1), 2);\n}");
    }

    #[test]
    fn a_file_without_mark_test_or_syntax_is_refused_by_name() {
        for (text, reason) in [
            ("fn f() {}", "no line `// focal`"),
            ("// focal\nfn f() {}", "no `#[test]`"),
            ("// focal\nconst A: u8 = 1;", "no function below"),
            ("// focal\nfn f( {", "does not parse"),
        ] {
            let error = load_one(text).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            assert!(error.place().unwrap().ends_with("std/one.rs"));
        }
    }
}
