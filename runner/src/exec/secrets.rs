//! Values that must not reach a file: masked in captured text, refused in outputs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const MASK: &[u8] = b"***";
/// Shorter values would match by chance.
const SHORTEST: usize = 4;

/// Secret values with their variables' names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    values: Vec<(String, Vec<u8>)>,
}

impl Secrets {
    pub(crate) fn new(variables: impl IntoIterator<Item = (String, OsString)>) -> Self {
        let mut values: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in variables {
            // A value of several lines is masked line by line, since captured text is too; events are JSON.
            for line in value.as_bytes().split(|b| *b == b'\n').filter(|l| l.len() >= SHORTEST) {
                let quoted = std::str::from_utf8(line).ok().and_then(|l| serde_json::to_string(l).ok());
                let escaped = quoted.map(|q| q.as_bytes()[1..q.len() - 1].to_vec()).filter(|q| q != line);
                values.extend(escaped.map(|q| (name.clone(), q)));
                values.push((name.clone(), line.to_vec()));
            }
        }
        // Longer ones first: one secret may be a part of another.
        values.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then_with(|| a.cmp(b)));
        Self { values }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn longest(&self) -> usize {
        self.values.first().map_or(0, |(_, v)| v.len())
    }

    pub(crate) fn mask(&self, bytes: &[u8]) -> Vec<u8> {
        self.mask_front(bytes, true).0
    }

    /// Masks as far as it can be known: a secret that may go on after `bytes` is left for the next call, unless they
    /// `ended`. Returns the masked text and how many bytes it stands for.
    pub(crate) fn mask_front(&self, bytes: &[u8], ended: bool) -> (Vec<u8>, usize) {
        if self.is_empty() {
            return (bytes.to_vec(), bytes.len());
        }
        let certain = if ended { bytes.len() } else { (bytes.len() + 1).saturating_sub(self.longest()) };
        let mut masked = Vec::with_capacity(certain);
        let mut at = 0;
        while at < certain {
            let here = &bytes[at..];
            match self.values.iter().find(|(_, value)| here.starts_with(value)) {
                Some((_, value)) => {
                    masked.extend_from_slice(MASK);
                    at += value.len();
                }
                None => {
                    masked.push(bytes[at]);
                    at += 1;
                }
            }
        }
        (masked, at)
    }

    /// The variable whose value stands in `bytes`, if one does.
    fn found_within(&self, bytes: &[u8]) -> Option<String> {
        self.values.iter().find(|(_, v)| find(bytes, v).is_some()).map(|(name, _)| name.clone())
    }

    /// The variable whose value stands in the file, if one does.
    pub(crate) fn found_in(&self, path: &Path) -> io::Result<Option<String>> {
        let mut file = File::open(path)?;
        let mut window: Vec<u8> = Vec::new();
        let mut chunk = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut chunk)?;
            if n == 0 {
                return Ok(None);
            }
            window.extend_from_slice(&chunk[..n]);
            if let Some(name) = self.found_within(&window) {
                return Ok(Some(name));
            }
            let keep = window.len().min(self.longest().saturating_sub(1));
            window.drain(..window.len() - keep);
        }
    }

    /// The first file below `path` that holds a secret, in its name, its content or where it links to, with the
    /// variable's name.
    pub(crate) fn found_below(&self, path: &Path) -> Option<(PathBuf, String)> {
        if self.is_empty() {
            return None;
        }
        let entries = walkdir::WalkDir::new(path).sort_by_file_name().into_iter().flatten();
        entries.into_iter().find_map(|entry| {
            let kind = entry.file_type();
            let named = self.found_within(entry.file_name().as_bytes());
            let name = named.or_else(|| {
                if kind.is_symlink() {
                    let target = fs::read_link(entry.path()).ok()?;
                    self.found_within(target.as_os_str().as_bytes())
                } else if kind.is_file() {
                    self.found_in(entry.path()).ok().flatten()
                } else {
                    None
                }
            })?;
            Some((entry.into_path(), name))
        })
    }

    /// Rewrites the files below `dir` with secrets masked; what can't be masked, such as a name, is removed. Best effort.
    pub(crate) fn mask_files(&self, dir: &Path) {
        while let Some((file, _)) = self.found_below(dir) {
            let named = file.file_name().is_none_or(|name| self.found_within(name.as_bytes()).is_some());
            let plain = fs::symlink_metadata(&file).is_ok_and(|m| m.is_file());
            if named || !plain || self.mask_file(&file).is_err() {
                crate::cache::remove_any(&file);
                if fs::symlink_metadata(&file).is_ok() {
                    return;
                }
            }
        }
    }

    fn mask_file(&self, path: &Path) -> io::Result<()> {
        let mut from = File::open(path)?;
        let masked_path = path.with_extension("masked");
        let mut to = io::BufWriter::new(File::create(&masked_path)?);
        let (mut pending, mut chunk) = (Vec::new(), vec![0; 1 << 20]);
        loop {
            let n = from.read(&mut chunk)?;
            pending.extend_from_slice(&chunk[..n]);
            let (masked, used) = self.mask_front(&pending, n == 0);
            to.write_all(&masked)?;
            pending.drain(..used);
            if n == 0 {
                break;
            }
        }
        to.flush()?;
        fs::rename(&masked_path, path)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|b| b == first).map(|i| i + from) {
        if haystack[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[&str]) -> Secrets {
        Secrets::new(values.iter().map(|v| ("TOKEN".to_owned(), OsString::from(v))))
    }

    #[test]
    fn every_occurrence_is_masked_longest_first() {
        let s = secrets(&["abcd", "abcdef"]);
        assert_eq!(s.mask(b"xabcdefabcdy"), b"x******y");
        assert_eq!(secrets(&["ab"]).mask(b"ab"), b"ab", "too short to be told from text");
    }

    #[test]
    fn a_secret_that_may_go_on_waits_for_its_end() {
        let s = secrets(&["abcdef"]);
        let text = b"xxabcdefyy";
        for cut in 0..text.len() {
            let (mut masked, used) = s.mask_front(&text[..cut], false);
            masked.extend(s.mask(&text[used..]));
            assert_eq!(masked, b"xx***yy", "cut at {cut}");
        }
    }

    #[test]
    fn a_secret_is_known_in_json_and_in_names() {
        let s = secrets(&["pass\"word\nsecond line"]);
        assert_eq!(s.mask(br#"{"m":"pass\"word\nsecond line"}"#), br#"{"m":"***\n***"}"#);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("of second line.txt"), "").unwrap();
        assert!(s.found_below(dir.path()).is_some());
        fs::write(dir.path().join("log"), "second line".repeat(200_000)).unwrap();
        std::os::unix::fs::symlink("second line", dir.path().join("link")).unwrap();
        s.mask_files(dir.path());
        assert_eq!(s.found_below(dir.path()), None);
        assert_eq!(fs::read_to_string(dir.path().join("log")).unwrap(), "***".repeat(200_000));
    }

    #[test]
    fn a_secret_across_reads_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let mut bytes = vec![b'x'; (1 << 20) - 3];
        bytes.extend_from_slice(b"hidden-value");
        fs::write(&file, bytes).unwrap();
        let s = secrets(&["hidden-value"]);
        assert_eq!(s.found_in(&file).unwrap().as_deref(), Some("TOKEN"));
        s.mask_files(dir.path());
        assert_eq!(s.found_in(&file).unwrap(), None);
    }
}
