//! Kernel locks: freed by the kernel when their holder dies.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{CacheError, Result, Store};

/// Held until dropped.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// `None`: somebody else holds it.
    ///
    /// # Errors
    /// The lock file can't be made.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        // For reading too: a pipe in its place is then opened without waiting for a reader.
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(|e| CacheError::io("open the lock", path, e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(CacheError::io("lock", path, e.into())),
        }
    }
}

impl Store {
    /// One runner executes an action at a time.
    ///
    /// # Errors
    /// The lock file can't be made.
    pub fn try_lock(&self, key: &str) -> Result<Option<FileLock>> {
        FileLock::try_exclusive(&self.root.join("locks").join(key))
    }
}
