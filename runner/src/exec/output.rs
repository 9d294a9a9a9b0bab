//! What a stage prints: masked, line by line, into one log per attempt; the last lines stay at hand.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::secrets::Secrets;

const TAIL: usize = 20;
/// A line longer than this is written in pieces.
const LONGEST_LINE: usize = 64 * 1024;

/// Bytes of one attempt's log; what comes after is only seen in the last lines.
const LARGEST_LOG: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

struct Sink {
    written: u64,
    file: Option<File>,
    tail: VecDeque<String>,
}

impl Sink {
    fn write(&mut self, line: &[u8]) {
        self.written += line.len() as u64;
        let full = self.written > LARGEST_LOG;
        if let Some(file) = &mut self.file {
            let written =
                if full { writeln!(file, "\n[the log ends here: 64 MiB]") } else { file.write_all(line) };
            // A full disk ends the log, not the stage.
            if full || written.is_err() {
                self.file = None;
            }
        }
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        if !text.is_empty() {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(text);
        }
    }
}

/// Copies the pipes of one process into its log.
pub(crate) struct LogCapture {
    sink: Arc<Mutex<Sink>>,
    done: Receiver<()>,
    readers: usize,
}

impl LogCapture {
    pub(crate) fn start(
        log: &Path,
        secrets: &Secrets,
        pipes: Vec<Box<dyn Read + Send>>,
    ) -> std::io::Result<Self> {
        let sink =
            Arc::new(Mutex::new(Sink { written: 0, file: Some(File::create(log)?), tail: VecDeque::new() }));
        let (send, done) = channel();
        let readers = pipes.len();
        for pipe in pipes {
            let (sink, secrets, send) = (Arc::clone(&sink), secrets.clone(), send.clone());
            std::thread::spawn(move || {
                copy(pipe, &secrets, &sink);
                let _ = send.send(());
            });
        }
        Ok(Self { sink, done, readers })
    }

    /// Waits for the pipes to close, but not long: a process that fled may hold them. Returns the last lines.
    pub(crate) fn finish(self) -> Vec<String> {
        for _ in 0..self.readers {
            if self.done.recv_timeout(Duration::from_secs(2)).is_err() {
                break;
            }
        }
        let Ok(mut sink) = self.sink.lock() else { return Vec::new() };
        if let Some(file) = sink.file.take() {
            let _ = file.sync_all();
        }
        sink.tail.iter().cloned().collect()
    }
}

fn copy(mut pipe: Box<dyn Read + Send>, secrets: &Secrets, sink: &Mutex<Sink>) {
    let mut pending: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let n = match pipe.read(&mut chunk) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        pending.extend_from_slice(&chunk[..n]);
        let (masked, used) = take(&pending, n == 0, secrets);
        if used > 0 {
            pending.drain(..used);
            if let Ok(mut sink) = sink.lock() {
                masked.split_inclusive(|b| *b == b'\n').for_each(|line| sink.write(line));
            }
        }
        if n == 0 {
            return;
        }
    }
}

/// What may be written, masked, and how many bytes that stands for: whole lines, or the front of an endless one without
/// what may be half a secret.
fn take(pending: &[u8], ended: bool, secrets: &Secrets) -> (Vec<u8>, usize) {
    let lines = pending.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    if ended || pending.len() - lines > LONGEST_LINE {
        return secrets.mask_front(pending, ended);
    }
    // No secret holds the end of a line.
    (secrets.mask(&pending[..lines]), lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_masked_and_the_tail_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let secrets = Secrets::new([("T".to_owned(), "s3cret".into())]);
        let text: String = (0..30).map(|i| format!("line {i} s3cret\n")).collect();
        let pipe = Box::new(std::io::Cursor::new(text + "no newline s3cret"));
        let tail = LogCapture::start(&log, &secrets, vec![pipe]).unwrap().finish();
        assert_eq!(tail.len(), TAIL);
        assert_eq!(tail.last().unwrap(), "no newline ***");
        let written = std::fs::read_to_string(&log).unwrap();
        assert!(written.starts_with("line 0 ***\n") && !written.contains("s3cret"));
    }

    #[test]
    fn a_flood_ends_the_log_and_the_tail_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let flood = std::io::repeat(b'x').take(LARGEST_LOG + 1000).chain(std::io::Cursor::new("\nthe end\n"));
        let tail = LogCapture::start(&log, &Secrets::default(), vec![Box::new(flood)]).unwrap();
        while tail.sink.lock().unwrap().written < LARGEST_LOG + 1009 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(tail.finish().last().unwrap(), "the end");
        let kept = std::fs::read(&log).unwrap();
        assert!(kept.len() as u64 <= LARGEST_LOG + 100 && kept.ends_with(b"[the log ends here: 64 MiB]\n"));
    }

    #[test]
    fn an_endless_line_never_cuts_a_secret() {
        let secrets = Secrets::new([("T".to_owned(), "s3cret".into())]);
        let wait = |text: &str, ended| take(text.as_bytes(), ended, &secrets).1;
        assert_eq!([wait("abc", false), wait("abc\nd", false), wait("abc", true)], [0, 4, 3]);
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let text = "xs3crety".repeat(100_000);
        for shift in 0..8 {
            let pipe = Box::new(std::io::Cursor::new("-".repeat(shift) + &text));
            LogCapture::start(&log, &secrets, vec![pipe]).unwrap().finish();
            let written = std::fs::read_to_string(&log).unwrap();
            assert_eq!(written, "-".repeat(shift) + &"x***y".repeat(100_000), "shift {shift}");
        }
    }
}
