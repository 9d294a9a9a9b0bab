//! Finished samples of this run in the checkpoint folder, one line each, so that a restart goes on where it was stopped.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use record::generation::Sample;
use serde::{Deserialize, Serialize};
use stage_kit::{Context, Result, StageError, digest};

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
    /// Goes into the hash of each line.
    run: String,
    file: File,
    pub(crate) done: BTreeMap<Key, Line>,
}

impl Journal {
    /// Opens the journal of the run that `fingerprint` names. From a line on that is damaged, or that a kill left torn, samples
    /// are generated again. Of journals of other runs the longest is left: whoever gave one parameter wrongly goes on with the
    /// right one.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn open(context: &Context, fingerprint: &str) -> Result<Self> {
        let dir = context.checkpoint_dir();
        let run = fingerprint[..fingerprint.len().min(16)].to_owned();
        keep_one_other(context, &run)?;
        let path = dir.join(file_name(&run));
        let Found { done, damaged } = read(&path, &run).map_err(|e| StageError::io("read", &path, e))?;
        if let Some((line, after)) = damaged {
            let follow = if after == 0 { String::new() } else { format!(", and the {after} after it") };
            context.warn(&format!(
                "{}: line {line} is not as it was written: its sample is generated again{follow}",
                path.display()
            ));
        }
        let partial = path.with_extension("partial");
        let written = write(&partial, &run, done.values()).and_then(|()| fs::rename(&partial, &path));
        written.map_err(|e| StageError::io("write", &path, e))?;
        let file =
            OpenOptions::new().append(true).open(&path).map_err(|e| StageError::io("open", &path, e))?;
        Ok(Self { path, run, file, done })
    }

    /// Adds a finished sample.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn add(&mut self, line: Line) -> Result<()> {
        let text = text(&self.run, &line).and_then(|text| self.file.write_all(text.as_bytes()));
        text.map_err(|e| StageError::io("write", &self.path, e))?;
        self.done.insert(key(&line.sample), line);
        Ok(())
    }
}

fn file_name(run: &str) -> String {
    format!("samples-{run}.jsonl")
}

/// The run whose journal has this name.
fn run_of(name: &str) -> Option<&str> {
    name.strip_prefix("samples-")?.strip_suffix(".jsonl")
}

/// A journal, or one that was being written.
pub(crate) fn is_journal(name: &str) -> bool {
    run_of(name).is_some()
        || name.strip_suffix("partial").is_some_and(|n| run_of(&format!("{n}jsonl")).is_some())
}

fn keep_one_other(context: &Context, own: &str) -> Result<()> {
    let dir = context.checkpoint_dir();
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| StageError::io("list", dir, e))?.flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let Some(run) = run_of(&name).filter(|&run| run != own) else { continue };
        let found = read(&path, run).map_err(|e| StageError::io("read", &path, e))?;
        match found.done.len() {
            0 if found.damaged.is_none() => delete(&path)?,
            done => others.push((done, path)),
        }
    }
    others.sort();
    let kept = others.pop();
    for (done, path) in &others {
        delete(path)?;
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

fn delete(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|e| StageError::io("delete", path, e))
}

pub(crate) fn key(sample: &Sample) -> Key {
    (sample.task_id.clone(), sample.sample_idx, sample.round)
}

/// What lies between a line's hash and its value: each is `{"sha256":"...","line":{...}}`.
const AROUND: [&str; 3] = ["{\"sha256\":\"", "\",\"line\":", "}"];

/// Of the value's text and of the run, so that no line of another one passes for this one's.
fn hash(run: &str, value: &str) -> String {
    digest::sha256_hex(format!("{run} {value}"))
}

fn text(run: &str, line: &Line) -> io::Result<String> {
    let (value, [open, between, close]) = (serde_json::to_string(line)?, AROUND);
    Ok(format!("{open}{}{between}{value}{close}\n", hash(run, &value)))
}

/// `None`: it is not as it was written.
fn parse(run: &str, bytes: &[u8]) -> Option<Line> {
    let [open, between, close] = AROUND;
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix(open)?.strip_suffix(close)?;
    let (sha256, value) = text.split_once(between)?;
    if hash(run, value) != sha256 {
        return None;
    }
    serde_json::from_str(value).ok()
}

fn write<'l>(path: &Path, run: &str, lines: impl Iterator<Item = &'l Line>) -> io::Result<()> {
    let mut file = File::create(path)?;
    for line in lines {
        file.write_all(text(run, line)?.as_bytes())?;
    }
    Ok(())
}

/// What a journal holds up to the first line that is not as it was written.
#[derive(Debug, Default)]
struct Found {
    done: BTreeMap<Key, Line>,
    /// Number of that line, from 1, and how many follow it.
    damaged: Option<(usize, usize)>,
}

fn read(path: &Path, run: &str) -> io::Result<Found> {
    let mut found = Found::default();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(e),
    };
    let lines: Vec<&[u8]> = bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|&b| b == b'\n').collect();
    if bytes.is_empty() {
        return Ok(found);
    }
    for (i, line) in lines.iter().enumerate() {
        let Some(line) = parse(run, line) else {
            found.damaged = Some((i + 1, lines.len() - i - 1));
            break;
        };
        found.done.insert(key(&line.sample), line);
    }
    Ok(found)
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

    /// Any byte of it, and any way to read it wrongly afterwards.
    #[test]
    fn a_damaged_line_and_what_follows_are_forgotten_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let context = ContextBuilder::new("generate", dir.path()).build().unwrap();
        let mut journal = Journal::open(&context, "f").unwrap();
        (0..4).for_each(|n| journal.add(line(n)).unwrap());
        let whole = fs::read(&journal.path).unwrap();
        let starts: Vec<usize> =
            [0].into_iter().chain((1..whole.len()).filter(|&i| whole[i - 1] == b'\n')).collect();
        assert_eq!(starts.len(), 4);
        // The end of the second line too, which makes one of two.
        for at in starts[1]..starts[2] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&journal.path, &bytes).unwrap();
            let left: Vec<Key> = Journal::open(&context, "f").unwrap().done.into_keys().collect();
            assert_eq!(left, [key(&line(0).sample)], "byte {at}");
        }
        let said = fs::read_to_string(context.live_dir().join("events.jsonl")).unwrap();
        assert_eq!(said.matches("line 2 is not as it was written").count(), starts[2] - starts[1], "{said}");
        assert!(said.contains("its sample is generated again, and the 2 after it"), "{said}");
        fs::write(&journal.path, &whole).unwrap();
        assert_eq!(Journal::open(&context, "f").unwrap().done.len(), 4);
        // Of another run, brought under this one's name.
        fs::write(context.checkpoint_dir().join(file_name("g")), &whole).unwrap();
        assert!(Journal::open(&context, "g").unwrap().done.is_empty());
    }

    #[test]
    fn a_journal_without_a_sample_is_nobody_s() {
        let dir = tempfile::tempdir().unwrap();
        let context = ContextBuilder::new("generate", dir.path()).build().unwrap();
        for fingerprint in ["f", "g", "g"] {
            assert!(Journal::open(&context, fingerprint).unwrap().done.is_empty());
        }
        let left: Vec<_> =
            fs::read_dir(context.checkpoint_dir()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["samples-g.jsonl"]);
        let said = fs::read_to_string(context.live_dir().join("events.jsonl")).unwrap();
        assert_eq!(said, "");
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
