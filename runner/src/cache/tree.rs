//! Folders by content: one object per folder, names sorted, no times and no owners.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::blob::{Presence, is_executable};
use super::{CacheError, DEEPEST, Result, Store, read};

/// From here on files are not made durable one by one.
const MANY: usize = 50;

/// A file, a folder or a relative symbolic link, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    File { digest: String, size: u64, executable: bool },
    Dir { digest: String },
    Link { target: String },
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { digest, executable: false, .. } => write!(f, "file:{digest}"),
            Self::File { digest, executable: true, .. } => write!(f, "exec:{digest}"),
            Self::Dir { digest } => write!(f, "dir:{digest}"),
            Self::Link { target } => write!(f, "link:{target}"),
        }
    }
}

/// One folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    pub entries: BTreeMap<String, Entry>,
}

/// A path that differs between two trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeDifference {
    Added(String),
    Removed(String),
    Changed(String),
}

impl fmt::Display for TreeDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(path) => write!(f, "{path} (new)"),
            Self::Removed(path) => write!(f, "{path} (gone)"),
            Self::Changed(path) => write!(f, "{path}"),
        }
    }
}

impl Tree {
    fn encode(&self) -> (String, Vec<u8>) {
        // Maps with string keys always have a JSON form.
        let mut bytes = b"testforge tree\n".to_vec();
        bytes.extend(serde_json::to_vec(self).unwrap_or_default());
        (blake3::hash(&bytes).to_hex().to_string(), bytes)
    }
}

impl Store {
    /// Digest of a file or folder of the workspace; links are followed. Folders are remembered as trees, so that a later
    /// comparison can name files; the files' content is not stored.
    ///
    /// # Errors
    /// Names what can't be read.
    pub fn digest_input(&self, path: &Path) -> Result<Entry> {
        self.digest_at(path, true, &mut Vec::new())
    }

    /// Digest of an output as it lies in a folder, comparable with what was stored: links count as links.
    ///
    /// # Errors
    /// Names what can't be read.
    pub fn digest_output(&self, path: &Path) -> Result<Entry> {
        self.digest_at(path, false, &mut Vec::new())
    }

    fn digest_at(&self, path: &Path, follow: bool, above: &mut Vec<(u64, u64)>) -> Result<Entry> {
        use std::os::unix::fs::MetadataExt;
        let meta = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
        let meta = meta.map_err(|e| CacheError::io("read", path, e))?;
        if meta.is_symlink() {
            return link(path, above.len());
        }
        if meta.is_file() {
            let digest = self.hash_file(path, &meta)?;
            return Ok(Entry::File { digest, size: meta.len(), executable: is_executable(&meta) });
        }
        if !meta.is_dir() {
            return Err(CacheError::Unsupported {
                path: path.to_owned(),
                reason: "neither a file nor a folder".into(),
            });
        }
        let id = (meta.dev(), meta.ino());
        if above.contains(&id) {
            return Err(CacheError::Unsupported {
                path: path.to_owned(),
                reason: "a link to a folder above it".into(),
            });
        }
        depth_allowed(path, above.len())?;
        above.push(id);
        let mut tree = Tree::default();
        for name in names(path)? {
            let entry = self.digest_at(&path.join(&name), follow, above)?;
            tree.entries.insert(name, entry);
        }
        above.pop();
        self.put_tree(&tree, false)
    }

    /// A folder put together of outputs of several nodes.
    ///
    /// # Errors
    /// The store can't be written.
    pub fn digest_collection(&self, entries: BTreeMap<String, Entry>) -> Result<Entry> {
        self.put_tree(&Tree { entries }, false)
    }

    /// Takes a stage's finished output into the store.
    ///
    /// # Errors
    /// Names the file that can't be stored: unreadable, a link that leads out, a socket, a full disk.
    pub fn ingest(&self, path: &Path) -> Result<Entry> {
        let files = walkdir::WalkDir::new(path).into_iter().take(MANY + 1).count();
        if files <= MANY {
            return self.ingest_at(path, 0, true);
        }
        // One call for the whole file system instead of several for each file: first what the stage wrote, so that no
        // blob is there before its content, then the blobs.
        sync_file_system(path)?;
        let entry = self.ingest_at(path, 0, false)?;
        sync_file_system(&self.root)?;
        Ok(entry)
    }

    fn ingest_at(&self, path: &Path, depth: usize, durable: bool) -> Result<Entry> {
        let meta = fs::symlink_metadata(path).map_err(|e| CacheError::io("read", path, e))?;
        if meta.is_symlink() {
            return link(path, depth);
        }
        if meta.is_file() {
            return self.put_blob(path, &meta, durable);
        }
        if !meta.is_dir() {
            return Err(CacheError::Unsupported {
                path: path.to_owned(),
                reason: "neither a file nor a folder".into(),
            });
        }
        depth_allowed(path, depth)?;
        let mut tree = Tree::default();
        for name in names(path)? {
            let entry = self.ingest_at(&path.join(&name), depth + 1, durable)?;
            tree.entries.insert(name, entry);
        }
        self.put_tree(&tree, durable)
    }

    fn put_tree(&self, tree: &Tree, durable: bool) -> Result<Entry> {
        let (digest, bytes) = tree.encode();
        let path = self.sharded("trees", &digest);
        match read(&path) {
            Ok(found) if found == bytes => return Ok(Entry::Dir { digest }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            _ => self.quarantine(&path, &format!("the cached tree {}", &digest[..12])),
        }
        self.write_atomically(&path, &bytes, durable)?;
        Ok(Entry::Dir { digest })
    }

    /// `None`: missing or damaged.
    pub fn tree(&self, digest: &str) -> Option<Tree> {
        let path = self.sharded("trees", digest);
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(_) => Vec::new(),
        };
        if blake3::hash(&bytes).to_hex().as_str() != digest {
            self.quarantine(&path, &format!("the cached tree {}", &digest[..12.min(digest.len())]));
            return None;
        }
        serde_json::from_slice(bytes.strip_prefix(b"testforge tree\n")?).ok()
    }

    /// Checks that everything an entry stands for is in the store, unharmed. Says what is not.
    pub fn check(&self, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Link { .. } => Ok(()),
            Entry::File { digest, size, executable } => match self.check_blob(digest, *size, *executable) {
                Presence::Intact => Ok(()),
                Presence::Missing => Err(format!("blob {} is missing from the cache", &digest[..12])),
                Presence::Damaged => Err(format!("blob {} was damaged in the cache", &digest[..12])),
            },
            Entry::Dir { digest } => {
                let tree = self
                    .tree(digest)
                    .ok_or_else(|| format!("tree {} is missing or damaged", &digest[..12]))?;
                // All of it, so that every damage is found and said at once.
                let results: Vec<Result<(), String>> = tree.entries.values().map(|e| self.check(e)).collect();
                results.into_iter().collect()
            }
        }
    }

    /// Files that differ, as far as both trees are known.
    pub fn compare(&self, before: &str, after: &str) -> Vec<TreeDifference> {
        let mut found = Vec::new();
        if let (Some(a), Some(b)) = (before.strip_prefix("dir:"), after.strip_prefix("dir:")) {
            self.compare_dirs(a, b, "", &mut found);
        }
        found
    }

    fn compare_dirs(&self, before: &str, after: &str, prefix: &str, found: &mut Vec<TreeDifference>) {
        let (Some(old), Some(new)) = (self.tree(before), self.tree(after)) else { return };
        let names: BTreeSet<&String> = old.entries.keys().chain(new.entries.keys()).collect();
        for name in names {
            let path = format!("{prefix}{name}");
            match (old.entries.get(name), new.entries.get(name)) {
                (a, b) if a == b => {}
                (Some(Entry::Dir { digest: a }), Some(Entry::Dir { digest: b })) => {
                    self.compare_dirs(a, b, &format!("{path}/"), found);
                }
                (None, _) => found.push(TreeDifference::Added(path)),
                (_, None) => found.push(TreeDifference::Removed(path)),
                _ => found.push(TreeDifference::Changed(path)),
            }
        }
    }
}

fn depth_allowed(path: &Path, depth: usize) -> Result<()> {
    if depth <= DEEPEST {
        return Ok(());
    }
    Err(CacheError::Unsupported {
        path: path.to_owned(),
        reason: format!("more than {DEEPEST} folders within each other"),
    })
}

fn link(path: &Path, depth: usize) -> Result<Entry> {
    let target = fs::read_link(path).map_err(|e| CacheError::io("read the link", path, e))?;
    let unsupported =
        |reason: &str| CacheError::Unsupported { path: path.to_owned(), reason: reason.to_owned() };
    let text = target.to_str().ok_or_else(|| unsupported("a link whose target is not UTF-8"))?;
    if depth == 0 {
        return Err(unsupported("a symbolic link instead of an output"));
    }
    let mut level = depth as i64 - 1;
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => level -= 1,
            std::path::Component::Normal(_) => level += 1,
            std::path::Component::CurDir => {}
            _ => level = i64::MIN / 2,
        }
        if level < 0 {
            return Err(unsupported("a symbolic link that leads out of the output"));
        }
    }
    Ok(Entry::Link { target: text.to_owned() })
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| CacheError::io("list", dir, e))? {
        let entry = entry.map_err(|e| CacheError::io("list", dir, e))?;
        let name = entry.file_name().into_string().map_err(|name| CacheError::Unsupported {
            path: dir.join(name),
            reason: "a file name that is not UTF-8".to_owned(),
        })?;
        found.push(name);
    }
    Ok(found)
}

fn sync_file_system(path: &Path) -> Result<()> {
    let synced = fs::File::open(path).and_then(|at| Ok(rustix::fs::syncfs(at)?));
    synced.map_err(|e| CacheError::io("sync", path, e))
}
