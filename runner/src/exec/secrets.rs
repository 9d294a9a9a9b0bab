//! Values that must not reach a file: masked in captured text, refused in outputs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
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
            // A value of several lines is masked line by line, since captured text is too.
            for line in value.as_bytes().split(|b| *b == b'\n').filter(|l| l.len() >= SHORTEST) {
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

    pub(crate) fn longest(&self) -> usize {
        self.values.first().map_or(0, |(_, v)| v.len())
    }

    pub(crate) fn mask(&self, bytes: &[u8]) -> Vec<u8> {
        let mut masked = bytes.to_vec();
        for (_, value) in &self.values {
            let mut from = 0;
            while let Some(at) = find(&masked[from..], value).map(|i| i + from) {
                masked.splice(at..at + value.len(), MASK.iter().copied());
                from = at + MASK.len();
            }
        }
        masked
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
            if let Some((name, _)) = self.values.iter().find(|(_, v)| find(&window, v).is_some()) {
                return Ok(Some(name.clone()));
            }
            let keep = window.len().min(self.longest().saturating_sub(1));
            window.drain(..window.len() - keep);
        }
    }

    /// The first file below `path` that holds a secret, with the variable's name.
    pub(crate) fn found_below(&self, path: &Path) -> Option<(PathBuf, String)> {
        if self.is_empty() {
            return None;
        }
        let files = walkdir::WalkDir::new(path).sort_by_file_name().into_iter().flatten();
        files.filter(|e| e.file_type().is_file()).find_map(|entry| {
            let name = self.found_in(entry.path()).ok().flatten()?;
            Some((entry.into_path(), name))
        })
    }

    /// Rewrites the files below `dir` with secrets masked. Best effort.
    pub(crate) fn mask_files(&self, dir: &Path) {
        while let Some((file, _)) = self.found_below(dir) {
            let masked = fs::read(&file).map(|bytes| self.mask(&bytes));
            if masked.and_then(|bytes| fs::write(&file, bytes)).is_err() {
                let _ = fs::remove_file(&file);
            }
        }
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
