//! Finished samples of this run in the checkpoint folder, one line each, so that a restart goes on where it was stopped.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;

use record::generation::Sample;
use serde::{Deserialize, Serialize};
use stage_kit::{Context, Result, StageError};

/// A sample and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) sample: Sample,
    pub(crate) latency_ms: f64,
}

/// Task, sample, round.
pub(crate) type Key = (String, u32, u32);

/// The journal of one run.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    pub(crate) done: BTreeMap<Key, Line>,
}

impl Journal {
    /// Opens the journal of the run that `fingerprint` names. Lines that a kill left torn are generated again. Of journals of
    /// other runs the longest is left: whoever gave one parameter wrongly goes on with the right one.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn open(context: &Context, fingerprint: &str) -> Result<Self> {
        let dir = context.checkpoint_dir();
        let own = format!("samples-{}.jsonl", &fingerprint[..fingerprint.len().min(16)]);
        keep_one_other(context, &own)?;
        let path = dir.join(own);
        let done = read(&path).map_err(|e| StageError::io("read", &path, e))?;
        let partial = path.with_extension("partial");
        let written = write(&partial, done.values()).and_then(|()| fs::rename(&partial, &path));
        written.map_err(|e| StageError::io("write", &path, e))?;
        let file =
            OpenOptions::new().append(true).open(&path).map_err(|e| StageError::io("open", &path, e))?;
        Ok(Self { path, file, done })
    }

    /// Adds a finished sample.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn add(&mut self, line: Line) -> Result<()> {
        let text = text(&line).and_then(|text| self.file.write_all(text.as_bytes()));
        text.map_err(|e| StageError::io("write", &self.path, e))?;
        self.done.insert(key(&line.sample), line);
        Ok(())
    }
}

fn keep_one_other(context: &Context, own: &str) -> Result<()> {
    let dir = context.checkpoint_dir();
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| StageError::io("list", dir, e))?.flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if name.starts_with("samples-") && name.ends_with(".jsonl") && name != own {
            let done = read(&path).map_err(|e| StageError::io("read", &path, e))?.len();
            others.push((done, path));
        }
    }
    others.sort();
    let kept = others.pop();
    for (done, path) in &others {
        fs::remove_file(path).map_err(|e| StageError::io("delete", path, e))?;
        context.warn(&format!(
            "{}: its {done} samples belong to other parameters or inputs: deleted, there are more of another run",
            path.display()
        ));
    }
    if let Some((done, path)) = kept {
        context.warn(&format!(
            "{}: its {done} samples belong to other parameters or inputs: not used, and kept until a run succeeds here",
            path.display()
        ));
    }
    Ok(())
}

pub(crate) fn key(sample: &Sample) -> Key {
    (sample.task_id.clone(), sample.sample_idx, sample.round)
}

fn text(line: &Line) -> io::Result<String> {
    Ok(serde_json::to_string(line)? + "\n")
}

fn write<'l>(path: &PathBuf, lines: impl Iterator<Item = &'l Line>) -> io::Result<()> {
    let mut file = File::create(path)?;
    for line in lines {
        file.write_all(text(line)?.as_bytes())?;
    }
    Ok(())
}

fn read(path: &PathBuf) -> io::Result<BTreeMap<Key, Line>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e),
    };
    let mut done = BTreeMap::new();
    for line in BufReader::new(file).split(b'\n') {
        if let Ok(line) = serde_json::from_slice::<Line>(&line?) {
            done.insert(key(&line.sample), line);
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::generation::FinishReason;
    use stage_kit::ContextBuilder;

    fn line(sample_idx: u32) -> Line {
        let sample = Sample {
            task_id: "a".into(),
            sample_idx,
            round: 0,
            seed: 1,
            prompt_sha256: String::new(),
            completion: "x\n".into(),
            completion_ids: None,
            finish_reason: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: 1,
            model_sha256: String::new(),
            adapter_sha256: None,
            tokenizer_sha256: String::new(),
            template_sha256: String::new(),
        };
        Line { sample, latency_ms: 1.0 }
    }

    #[test]
    fn a_torn_line_is_forgotten_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let context = ContextBuilder::new("generate", dir.path()).build().unwrap();
        let mut journal = Journal::open(&context, "f").unwrap();
        journal.add(line(0)).unwrap();
        journal.add(line(1)).unwrap();
        let text = fs::read_to_string(&journal.path).unwrap();
        fs::write(&journal.path, &text[..text.len() - 5]).unwrap();
        let mut journal = Journal::open(&context, "f").unwrap();
        assert_eq!(journal.done.len(), 1);
        journal.add(line(2)).unwrap();
        assert_eq!(Journal::open(&context, "f").unwrap().done.len(), 2);
    }

    #[test]
    fn another_run_s_journal_is_not_used_and_the_longest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let context = ContextBuilder::new("generate", dir.path()).build().unwrap();
        let done = |fingerprint| Journal::open(&context, fingerprint).unwrap().done.len();
        let mut journal = Journal::open(&context, "f").unwrap();
        (0..2).for_each(|n| journal.add(line(n)).unwrap());
        let mut journal = Journal::open(&context, "g").unwrap();
        assert!(journal.done.is_empty());
        journal.add(line(0)).unwrap();
        assert_eq!((done("f"), done("g")), (2, 1), "each has its own");
        // Two mistakes after each other: the first run's samples are still there.
        assert_eq!(done("h"), 0);
        assert_eq!((done("f"), done("g")), (2, 0));
    }
}
