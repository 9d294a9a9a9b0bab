//! Stored entries back to files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{CacheError, Entry, Result, Store, remove_any};

impl Store {
    /// Puts an entry at `target`, replacing what is there.
    ///
    /// # Errors
    /// An object is missing (it was there when [`Store::check`] looked), or the disk refuses.
    pub fn materialize(&self, entry: &Entry, target: &Path) -> Result<()> {
        remove_any(target);
        self.place(entry, target)
    }

    fn place(&self, entry: &Entry, target: &Path) -> Result<()> {
        match entry {
            Entry::File { digest, executable, .. } => self.place_blob(digest, *executable, target),
            Entry::Link { target: to } => std::os::unix::fs::symlink(to, target)
                .map_err(|e| CacheError::io("create the link", target, e)),
            Entry::Dir { digest } => {
                let tree = self
                    .tree(digest)
                    .ok_or_else(|| CacheError::Missing { what: format!("tree {}", &digest[..12]) })?;
                fs::create_dir_all(target).map_err(|e| CacheError::io("create the folder", target, e))?;
                for (name, entry) in &tree.entries {
                    self.place(entry, &target.join(name))?;
                }
                Ok(())
            }
        }
    }

    /// Gives finished files at `from` a second name at `to`, folders included. For views.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn link_tree(&self, from: &Path, to: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(from).map_err(|e| CacheError::io("read", from, e))?;
        if meta.is_dir() {
            fs::create_dir_all(to).map_err(|e| CacheError::io("create the folder", to, e))?;
            for entry in fs::read_dir(from).map_err(|e| CacheError::io("list", from, e))?.flatten() {
                self.link_tree(&entry.path(), &to.join(entry.file_name()))?;
            }
            return Ok(());
        }
        remove_any(to);
        if meta.is_symlink() {
            let target = fs::read_link(from).map_err(|e| CacheError::io("read the link", from, e))?;
            return std::os::unix::fs::symlink(target, to)
                .map_err(|e| CacheError::io("create the link", to, e));
        }
        let known = self.stats.get(&meta);
        self.link_or_copy(from, to, meta.mode() & 0o777)?;
        if let Some(digest) = known {
            self.seal(&meta, from, &[to], &digest);
        }
        Ok(())
    }
}
