//! Reads samples and the rows that they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use harness::parallel_map;
use record::corpus::CorpusRow;
use record::generation::Sample;
use stage_kit::{Result, StageError, files};
use subject::{FocalFn, extract_code};

/// (task, test code) -> the samples with that code.
pub(crate) type Distinct = BTreeMap<(String, String), Vec<usize>>;

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

/// The row and the focal function of every task that a sample names.
pub(crate) fn tasks(dir: &Path, samples: &[Sample]) -> Result<BTreeMap<String, (CorpusRow, FocalFn)>> {
    let wanted: BTreeSet<&str> = samples.iter().map(|sample| sample.task_id.as_str()).collect();
    let mut tasks = BTreeMap::new();
    for path in row_files(dir)? {
        for (i, row) in files::read_jsonl::<CorpusRow>(&path)?.into_iter().enumerate() {
            if !wanted.contains(row.id.as_str()) {
                continue;
            }
            let focal = FocalFn::of(&row).map_err(|e| {
                StageError::failed(format!("row `{}`: {e}", row.id))
                    .at(format!("{}:{}", path.display(), i + 1))
                    .next("build the corpus again")
            })?;
            if let Some((row, _)) = tasks.insert(row.id.clone(), (row, focal)) {
                return Err(StageError::failed(format!("the row `{}` occurs twice", row.id))
                    .at(format!("{}:{}", path.display(), i + 1))
                    .next("build the corpus again"));
            }
        }
    }
    match wanted.iter().find(|task| !tasks.contains_key(**task)) {
        Some(task) => {
            Err(StageError::failed(format!("no row of the corpus has the id `{task}` that a sample names"))
                .at(dir.display().to_string())
                .next("give the corpus that the samples were generated from"))
        }
        None => Ok(tasks),
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

pub(crate) fn distinct(samples: &[Sample], threads: usize) -> Distinct {
    let texts = parallel_map(threads, samples, |_, sample| extract_code(&sample.completion));
    let mut distinct = Distinct::new();
    for (i, (sample, text)) in samples.iter().zip(texts).enumerate() {
        distinct.entry((sample.task_id.clone(), text)).or_default().push(i);
    }
    distinct
}
