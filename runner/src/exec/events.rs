//! Follows a stage's `live/events.jsonl` while it grows.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use record::event::Event;

/// Reads what was appended since the last look; a torn last line waits for the next one.
#[derive(Debug)]
pub struct EventTail {
    path: PathBuf,
    offset: u64,
    pending: Vec<u8>,
}

impl EventTail {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, pending: Vec::new() }
    }

    /// Passes over what is there already.
    pub fn skip(&mut self) {
        self.offset = std::fs::metadata(&self.path).map_or(0, |m| m.len());
    }

    /// New events. Lines that are not events are left out: a stage of any language may write what it likes.
    pub fn poll(&mut self) -> Vec<Event> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return Vec::new();
        }
        let Ok(n) = file.read_to_end(&mut self.pending) else { return Vec::new() };
        self.offset += n as u64;
        let Some(end) = self.pending.iter().rposition(|b| *b == b'\n') else { return Vec::new() };
        let rest = self.pending.split_off(end + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        lines.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use record::event::EventKind;

    use super::*;

    #[test]
    fn torn_and_foreign_lines_are_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut tail = EventTail::new(&path);
        assert!(tail.poll().is_empty());
        let line = r#"{"time_ms":1,"event":{"progress":{"done":1,"total":2,"unit":"rows"}}}"#;
        std::fs::write(&path, format!("rubbish\n{line}\n{}", &line[..20])).unwrap();
        assert_eq!(tail.poll().len(), 1);
        std::fs::write(&path, format!("rubbish\n{line}\n{line}\n")).unwrap();
        let events = tail.poll();
        assert!(matches!(events[..], [Event { kind: EventKind::Progress { done: 1, .. }, .. }]));
    }
}
