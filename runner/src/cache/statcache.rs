//! (device, inode, size, mtime, ctime) -> content digest, so that unchanged files are not read again.
//!
//! A file that was changed within [`GRANULARITY`] of being hashed could change once more without a new time stamp; such
//! an answer is used once and not remembered. The cache is disposable.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds; file time stamps advance with the kernel's tick, at most 10 ms.
const GRANULARITY: i128 = 20_000_000;
const LIMIT: usize = 500_000;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    size: u64,
    mtime: i128,
    ctime: i128,
    digest: String,
    used: bool,
}

#[derive(Debug)]
pub(crate) struct StatCache {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<(u64, u64), Record>,
    dirty: bool,
}

impl StatCache {
    /// An unreadable or damaged file is an empty cache.
    pub(crate) fn load(path: &Path) -> Self {
        let text = super::read_text(path).unwrap_or_default();
        let records = text.lines().filter_map(parse).collect();
        Self { state: Mutex::new(State { records, dirty: false }) }
    }

    pub(crate) fn get(&self, meta: &Metadata) -> Option<String> {
        let mut state = self.state.lock().ok()?;
        let record = state.records.get_mut(&(meta.dev(), meta.ino()))?;
        let same = record.size == meta.len() && record.mtime == mtime(meta) && record.ctime == ctime(meta);
        same.then(|| {
            record.used = true;
            record.digest.clone()
        })
    }

    /// Remembers a digest whose computation began at `began`, after `meta` was taken, unless the file was too young then:
    /// a change in the same tick, while it was read, would leave the same time stamps.
    pub(crate) fn put(&self, meta: &Metadata, digest: &str, began: SystemTime) {
        let began = began.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
        if began - mtime(meta).max(ctime(meta)) > GRANULARITY {
            self.put_trusted(meta, digest);
        }
    }

    /// Remembers the digest of a file that nobody but the runner writes.
    pub(crate) fn put_trusted(&self, meta: &Metadata, digest: &str) {
        let record = Record {
            size: meta.len(),
            mtime: mtime(meta),
            ctime: ctime(meta),
            digest: digest.to_owned(),
            used: true,
        };
        if let Ok(mut state) = self.state.lock() {
            let old = state.records.insert((meta.dev(), meta.ino()), record.clone());
            state.dirty |= old.is_none_or(|old| Record { used: true, ..old } != record);
        }
    }

    pub(crate) fn save(&self, path: &Path, temporary: &Path) -> io::Result<()> {
        let Ok(mut state) = self.state.lock() else { return Ok(()) };
        if !state.dirty {
            return Ok(());
        }
        let crowded = state.records.len() > LIMIT;
        let mut text = String::new();
        for ((dev, ino), r) in &state.records {
            if r.used || !crowded {
                text.push_str(&format!("{dev} {ino} {} {} {} {}\n", r.size, r.mtime, r.ctime, r.digest));
            }
        }
        fs::write(temporary, text)?;
        fs::rename(temporary, path)?;
        state.dirty = false;
        Ok(())
    }
}

fn parse(line: &str) -> Option<((u64, u64), Record)> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let id = (next()?.parse().ok()?, next()?.parse().ok()?);
    let record = Record {
        size: next()?.parse().ok()?,
        mtime: next()?.parse().ok()?,
        ctime: next()?.parse().ok()?,
        digest: next().filter(|d| d.len() == 64)?.to_owned(),
        used: false,
    };
    Some((id, record))
}

fn mtime(meta: &Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

fn ctime(meta: &Metadata) -> i128 {
    i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_not_answered_from_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "one").unwrap();
        let digest = "0".repeat(64);
        let cache = StatCache::load(&dir.path().join("stat"));
        let (meta, began) = (fs::metadata(&file).unwrap(), SystemTime::now());
        std::thread::sleep(std::time::Duration::from_millis(50));
        cache.put(&meta, &digest, began);
        assert_eq!(cache.get(&meta), None, "too young when it was read, however long that took");
        cache.put_trusted(&fs::metadata(&file).unwrap(), &digest);
        assert_eq!(cache.get(&fs::metadata(&file).unwrap()), Some(digest.clone()));
        cache.save(&dir.path().join("stat"), &dir.path().join("tmp")).unwrap();
        let again = StatCache::load(&dir.path().join("stat"));
        assert_eq!(again.get(&fs::metadata(&file).unwrap()), Some(digest));
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::write(&file, "two").unwrap();
        assert_eq!(again.get(&fs::metadata(&file).unwrap()), None);
    }

    #[test]
    fn a_damaged_file_is_an_empty_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        fs::write(&path, "1 2 3\nnot numbers at all\n").unwrap();
        assert!(StatCache::load(&path).state.lock().unwrap().records.is_empty());
    }
}
