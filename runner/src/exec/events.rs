//! Follows a stage's `live/events.jsonl` while it grows.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use record::event::Event;
use rustix::fs::OFlags;

/// Bytes taken per look: whoever writes faster is read later, not into memory.
const MOST: u64 = 8 << 20;
/// A line longer than this is no event.
const LONGEST_LINE: usize = 1 << 20;

/// Reads what was appended since the last look; a torn last line waits for the next one.
#[derive(Debug)]
pub struct EventTail {
    path: PathBuf,
    offset: u64,
    pending: Vec<u8>,
    /// Inside a line that is too long.
    passing: bool,
}

impl EventTail {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, pending: Vec::new(), passing: false }
    }

    /// Passes over what is there already.
    pub fn skip(&mut self) {
        self.offset = std::fs::metadata(&self.path).map_or(0, |m| m.len());
    }

    /// How far it has read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// New events. Lines that are not events are left out: a stage of any language may write what it likes.
    pub fn poll(&mut self) -> Vec<Event> {
        let Some(mut file) = self.open() else { return Vec::new() };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return Vec::new();
        }
        let Ok(n) = file.take(MOST).read_to_end(&mut self.pending) else { return Vec::new() };
        self.offset += n as u64;
        let end = self.pending.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let mut lines = std::mem::take(&mut self.pending);
        self.pending = lines.split_off(end);
        let mut events: Vec<Option<Event>> =
            lines.split(|b| *b == b'\n').map(|line| serde_json::from_slice(line).ok()).collect();
        if end > 0 && std::mem::take(&mut self.passing) {
            events[0] = None;
        }
        if self.pending.len() > LONGEST_LINE {
            self.pending.clear();
            self.passing = true;
        }
        events.into_iter().flatten().collect()
    }

    /// Only a plain file: a pipe would hold the runner up, a link would lead it elsewhere.
    fn open(&self) -> Option<File> {
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path).ok()?;
        file.metadata().is_ok_and(|m| m.is_file()).then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use record::event::EventKind;

    use super::*;

    const LINE: &str = r#"{"time_ms":1,"event":{"progress":{"done":1,"total":2,"unit":"rows"}}}"#;

    #[test]
    fn torn_and_foreign_lines_are_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut tail = EventTail::new(&path);
        assert!(tail.poll().is_empty());
        std::fs::write(&path, format!("rubbish\n{LINE}\n{}", &LINE[..20])).unwrap();
        assert_eq!(tail.poll().len(), 1);
        std::fs::write(&path, format!("rubbish\n{LINE}\n{LINE}\n")).unwrap();
        let events = tail.poll();
        assert!(matches!(events[..], [Event { kind: EventKind::Progress { done: 1, .. }, .. }]));
    }

    #[test]
    fn an_endless_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut tail = EventTail::new(&path);
        let long = "x".repeat(2 * LONGEST_LINE);
        std::fs::write(&path, format!("{LINE}\n{long}")).unwrap();
        assert_eq!(tail.poll().len(), 1);
        assert!(tail.pending.is_empty());
        std::fs::write(&path, format!("{LINE}\n{long}{LINE}\n{LINE}\n")).unwrap();
        assert_eq!(tail.poll().len(), 1, "the end of the long line is no event of its own");
    }

    #[test]
    fn a_pipe_or_a_link_in_its_place_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        assert!(EventTail::new(&path).poll().is_empty());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(EventTail::new(&path).poll().is_empty());
    }
}
