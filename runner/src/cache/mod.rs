//! The store beside a pipeline: content-addressed blobs and trees, action entries, locks, checkpoints.
//!
//! ```text
//! blobs/aa/HEX[.x]    content, read-only; .x: executable       actions/aa/KEY   what an action made, written last
//! trees/aa/HEX        one folder: name -> entry                 history/NODE     keys that a node ran under, oldest first
//! locks/KEY           kernel lock while an action runs          checkpoints/KEY  survives failure, outside every key
//! describe/ tools/    answers of programs, by their content     quarantine/      damaged files, kept for a look
//! stat                stat cache: may be deleted at any time    tmp/             half-written files, never read
//! ```
//! One file per fact and no database: no single corruption can spoil more than one entry.

mod action;
mod blob;
mod error;
mod lock;
mod materialize;
mod statcache;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use action::ActionEntry;
pub use error::CacheError;
pub use lock::FileLock;
pub use tree::{Entry, Tree, TreeDifference};

use statcache::StatCache;

pub type Result<T, E = CacheError> = std::result::Result<T, E>;

const VERSION: &str = "1\n";

/// An opened store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    stats: StatCache,
    reflinks: AtomicBool,
    counter: AtomicU64,
    quarantined: Mutex<Vec<String>>,
}

impl Store {
    /// Opens the store at `root`, making it where it does not exist.
    ///
    /// # Errors
    /// The folder can't be made, or another version of the runner made it.
    pub fn open(root: &Path) -> Result<Self> {
        for name in [
            "blobs",
            "trees",
            "actions",
            "history",
            "locks",
            "checkpoints",
            "describe",
            "tools",
            "quarantine",
            "tmp",
        ] {
            let dir = root.join(name);
            if !dir.is_dir() {
                fs::create_dir_all(&dir).map_err(|e| CacheError::io("create the folder", &dir, e))?;
            }
        }
        let store = Self {
            root: root.to_owned(),
            stats: StatCache::load(&root.join("stat")),
            reflinks: AtomicBool::new(true),
            counter: AtomicU64::new(0),
            quarantined: Mutex::new(Vec::new()),
        };
        store.check_version()?;
        Ok(store)
    }

    fn check_version(&self) -> Result<()> {
        let version = self.root.join("VERSION");
        match read_text(&version) {
            Ok(found) if found.trim() == VERSION.trim() => Ok(()),
            Ok(found) if !found.trim().is_empty() => {
                Err(CacheError::Version { path: version, found: found.trim().to_owned() })
            }
            // A lost write leaves an empty file.
            Ok(_) => self.write_atomically(&version, VERSION.as_bytes(), false),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // The cache declares itself as such to git.
                let _ = fs::write(self.root.join(".gitignore"), "*\n");
                self.write_atomically(&version, VERSION.as_bytes(), false)
            }
            Err(e) => Err(CacheError::io("read", &version, e)),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an action keeps what it needs to resume.
    pub fn checkpoint_dir(&self, key: &str) -> PathBuf {
        self.root.join("checkpoints").join(key)
    }

    /// A path in `tmp` that nobody else uses. Names carry the process, so that leftovers can be told.
    pub fn temporary(&self, label: &str) -> PathBuf {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{}-{n}-{label}", process_space(), std::process::id()))
    }

    /// Deletes what dead runners left in `tmp`. Best effort.
    pub fn sweep_temporary(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("tmp")) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let mut parts = name.to_str().unwrap_or_default().split('-');
            let ours = parts.next() == Some(process_space().as_str());
            let pid =
                parts.next().and_then(|p| p.parse::<i32>().ok()).and_then(rustix::process::Pid::from_raw);
            let dead = |pid| matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH));
            if ours && pid.is_some_and(dead) {
                remove_any(&entry.path());
            }
        }
    }

    /// Writes the stat cache back. Best effort: without it, files are hashed again.
    pub fn save(&self) {
        let _ = self.stats.save(&self.root.join("stat"), &self.temporary("stat"));
    }

    /// What was found damaged since the last call, in words.
    pub fn take_quarantined(&self) -> Vec<String> {
        self.quarantined.lock().map(|mut q| std::mem::take(&mut *q)).unwrap_or_default()
    }

    /// Moves a damaged file out of the way, and notes it for the user.
    fn quarantine(&self, path: &Path, what: &str) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let target = self.root.join("quarantine").join(format!("{name}-{}-{n}", std::process::id()));
        if fs::rename(path, &target).is_err() {
            let _ = fs::remove_file(path);
        }
        if let Ok(mut noted) = self.quarantined.lock() {
            noted.push(format!("{what} was damaged and is set aside as {}", target.display()));
        }
    }

    /// Bytes to `path` by way of `tmp`: a reader sees all of them or nothing.
    fn write_atomically(&self, path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
        let temporary = self.temporary("write");
        if let Some(parent) = path.parent().filter(|p| !p.is_dir()) {
            fs::create_dir_all(parent).map_err(|e| CacheError::io("create the folder", parent, e))?;
        }
        let written = fs::File::create(&temporary).and_then(|mut file| {
            std::io::Write::write_all(&mut file, bytes)?;
            if durable { file.sync_all() } else { Ok(()) }
        });
        let renamed = written.and_then(|()| fs::rename(&temporary, path));
        renamed.map_err(|e| {
            let _ = fs::remove_file(&temporary);
            CacheError::io("write", path, e)
        })?;
        if durable {
            sync_dir(path.parent().unwrap_or(&self.root))?;
        }
        Ok(())
    }

    /// A remembered answer: `kind` is `describe` or `tools`, `name` a digest.
    pub fn recall(&self, kind: &str, name: &str) -> Option<String> {
        read_text(&self.root.join(kind).join(name)).ok()
    }

    /// Remembers an answer. Best effort.
    pub fn remember(&self, kind: &str, name: &str, text: &str) {
        let _ = self.write_atomically(&self.root.join(kind).join(name), text.as_bytes(), false);
    }

    fn sharded(&self, kind: &str, name: &str) -> PathBuf {
        let shard = name.get(..2).unwrap_or("00");
        self.root.join(kind).join(shard).join(name)
    }
}

/// Folders within folders that an input or an output may have; a path of more is near the system's limit.
const DEEPEST: usize = 200;

/// Deletes a file or a folder, read-only and bottomless ones too. Best effort.
pub fn remove_any(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if !meta.is_dir() {
        let _ = fs::remove_file(path);
        return;
    }
    // The library descends with a frame of the stack and an open file for every level.
    let mut entries = walkdir::WalkDir::new(path).max_depth(DEEPEST + 2).into_iter();
    if entries.any(|e| e.is_ok_and(|e| e.depth() > DEEPEST)) {
        flatten(path);
    }
    let _ = fs::remove_dir_all(path);
}

/// Moves every folder below `top` right into it.
fn flatten(top: &Path) {
    let folders = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
    };
    let (mut pending, mut n) = (folders(top), 0_u64);
    while let Some(folder) = pending.pop() {
        for inner in folders(&folder) {
            let target = loop {
                n += 1;
                let target = top.join(format!("flattened-{n}"));
                if fs::symlink_metadata(&target).is_err() {
                    break target;
                }
            };
            if fs::rename(&inner, &target).is_ok() {
                pending.push(target);
            }
        }
    }
}

/// The space in which this process's id means something: another container's ids mean other processes.
fn process_space() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().chars().filter(char::is_ascii_digit).collect()
}

/// A file of the store. What is no plain file is damage: reading a pipe would wait for somebody who writes.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "is not a plain file"));
    }
    fs::read(path)
}

fn read_text(path: &Path) -> std::io::Result<String> {
    String::from_utf8(read(path)?).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}

fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| CacheError::io("sync the folder", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bottomless_folder_is_deleted_and_what_its_links_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("kept")).unwrap();
        fs::write(at("kept/file"), "x").unwrap();
        // From the inside out: a path of that depth could not be named.
        fs::create_dir(at("0")).unwrap();
        let levels = 1500;
        for i in 1..=levels {
            fs::create_dir(at(&i.to_string())).unwrap();
            fs::rename(at(&(i - 1).to_string()), at(&format!("{i}/d"))).unwrap();
            if i % 500 == 0 {
                std::os::unix::fs::symlink(at("kept"), at(&format!("{i}/link"))).unwrap();
                fs::write(at(&format!("{i}/flattened-{i}")), "in the way").unwrap();
            }
        }
        let top = at(&levels.to_string());
        let path = top.clone();
        // A stack that a call for every level would leave.
        let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(move || remove_any(&path));
        thread.unwrap().join().unwrap();
        assert!(fs::symlink_metadata(top).is_err());
        assert_eq!(fs::read_to_string(at("kept/file")).unwrap(), "x");
    }
}
