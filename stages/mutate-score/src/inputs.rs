//! Reads samples, what the compiler said of them, and the rows that they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use record::compile::{COMPILE_SCHEMA_VERSION, CompileResult, CompileResults};
use record::corpus::CorpusRow;
use record::generation::Sample;
use stage_kit::{Result, StageError, files};

pub(crate) fn samples(dir: &Path) -> Result<Vec<Sample>> {
    let path = dir.join("samples.jsonl");
    let samples: Vec<Sample> = files::read_jsonl(&path)?;
    let mut seen = BTreeSet::new();
    for (i, sample) in samples.iter().enumerate() {
        if !seen.insert((&sample.task_id, sample.sample_idx, sample.round)) {
            let (task, idx, round) = (&sample.task_id, sample.sample_idx, sample.round);
            return Err(StageError::failed(format!(
                "sample {idx} of task `{task}`, round {round}, occurs twice"
            ))
            .at(format!("{}:{}", path.display(), i + 1))
            .next("generate the samples again"));
        }
    }
    Ok(samples)
}

/// What the compiler said, in the order of the samples.
pub(crate) fn compiled(dir: &Path, samples: &[Sample]) -> Result<Vec<CompileResult>> {
    let path = dir.join("compile_results.json");
    let results: CompileResults = files::read_versioned(&path, COMPILE_SCHEMA_VERSION)?;
    let mut by_sample: BTreeMap<(String, u32, u32), CompileResult> = BTreeMap::new();
    for result in results.samples {
        by_sample.insert((result.task_id.clone(), result.sample_idx, result.round), result);
    }
    let mut found = Vec::with_capacity(samples.len());
    for sample in samples {
        let key = (sample.task_id.clone(), sample.sample_idx, sample.round);
        let Some(result) = by_sample.remove(&key) else {
            let (task, idx, round) = key;
            return Err(StageError::failed(format!(
                "no result for sample {idx} of task `{task}`, round {round}"
            ))
            .at(path.display().to_string())
            .next("give the output `compile` of compile-check on these samples"));
        };
        if result.tests != subject::extract_code(&sample.completion) {
            let (task, idx, round) = key;
            return Err(StageError::failed(format!(
                "the tests of sample {idx} of task `{task}`, round {round}, are not those of its completion"
            ))
            .at(path.display().to_string())
            .next("give the output `compile` of compile-check on these samples"));
        }
        found.push(result);
    }
    Ok(found)
}

/// The rows that samples name, by id.
pub(crate) fn rows(dir: &Path, samples: &[Sample]) -> Result<BTreeMap<String, CorpusRow>> {
    let wanted: BTreeSet<&str> = samples.iter().map(|sample| sample.task_id.as_str()).collect();
    let mut rows = BTreeMap::new();
    for path in row_files(dir)? {
        for (i, row) in files::read_jsonl::<CorpusRow>(&path)?.into_iter().enumerate() {
            if !wanted.contains(row.id.as_str()) {
                continue;
            }
            if let Some(row) = rows.insert(row.id.clone(), row) {
                return Err(StageError::failed(format!("the row `{}` occurs twice", row.id))
                    .at(format!("{}:{}", path.display(), i + 1))
                    .next("build the corpus again"));
            }
        }
    }
    match wanted.iter().find(|task| !rows.contains_key(**task)) {
        Some(task) => {
            Err(StageError::failed(format!("no row of the corpus has the id `{task}` that a sample names"))
                .at(dir.display().to_string())
                .next("give the corpus that the samples were generated from"))
        }
        None => Ok(rows),
    }
}

fn row_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| StageError::io("list", dir, e))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
    paths.sort();
    if paths.is_empty() {
        return Err(StageError::failed("the corpus holds no .jsonl file")
            .at(dir.display().to_string())
            .next("give the output `corpus` of build-corpus"));
    }
    Ok(paths)
}
