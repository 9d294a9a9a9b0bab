//! Files by content.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::{CacheError, Entry, Result, Store};

/// Read and hashed at once, by several threads. Not over a memory map: a file that is cut short meanwhile would end the
/// process.
const CHUNK: usize = 4 << 20;
/// Below, threads cost more than they give.
const PARALLEL_FROM: usize = 1 << 18;

/// State of an object that an entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Intact,
    Missing,
    Damaged,
}

pub(crate) fn is_executable(meta: &Metadata) -> bool {
    meta.permissions().mode() & 0o100 != 0
}

impl Store {
    /// BLAKE3 of a file's content, hexadecimal; from the stat cache where the file did not change.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn hash_file(&self, path: &Path, meta: &Metadata) -> Result<String> {
        if let Some(digest) = self.stats.get(meta) {
            return Ok(digest);
        }
        let began = SystemTime::now();
        let digest = hash(path, meta.len()).map_err(|e| CacheError::io("read", path, e))?;
        self.stats.put(meta, &digest, began);
        Ok(digest)
    }

    pub(crate) fn blob_path(&self, digest: &str, executable: bool) -> PathBuf {
        let path = self.sharded("blobs", digest);
        // Mode bits belong to the inode, so that the two kinds can't share one.
        if executable { path.with_extension("x") } else { path }
    }

    /// Checks a blob's size and content; the content only when its time stamps changed since it was known.
    pub(crate) fn check_blob(&self, digest: &str, size: u64, executable: bool) -> Presence {
        let path = self.blob_path(digest, executable);
        let Ok(meta) = fs::symlink_metadata(&path) else { return Presence::Missing };
        let intact = meta.is_file()
            && meta.len() == size
            && self.hash_file(&path, &meta).is_ok_and(|found| found == digest);
        if intact {
            return Presence::Intact;
        }
        self.quarantine(&path, &format!("the cached blob {}", &digest[..12.min(digest.len())]));
        Presence::Damaged
    }

    /// Takes a finished file into the store. The file itself becomes read-only and may share its inode with the blob.
    /// Whoever does not want it `durable` syncs by itself.
    pub(crate) fn put_blob(&self, file: &Path, meta: &Metadata, durable: bool) -> Result<Entry> {
        let executable = is_executable(meta);
        let mode = if executable { 0o555 } else { 0o444 };
        let fail = |action| move |e| CacheError::io(action, file, e);
        if meta.nlink() > 1 {
            // The stage linked a file that belongs to somebody else: the store takes a copy.
            let copy = self.temporary("private");
            fs::copy(file, &copy).map_err(fail("copy"))?;
            fs::remove_file(file).map_err(fail("replace"))?;
            if fs::rename(&copy, file).is_err() {
                fs::copy(&copy, file).map_err(fail("copy"))?;
                let _ = fs::remove_file(&copy);
            }
        }
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).map_err(fail("make read-only"))?;
        let meta = fs::symlink_metadata(file).map_err(fail("read"))?;
        let digest = hash(file, meta.len()).map_err(fail("read"))?;
        let entry = |digest| Entry::File { digest, size: meta.len(), executable };
        if durable {
            File::open(file).and_then(|f| f.sync_all()).map_err(fail("sync"))?;
        }
        let blob = self.blob_path(&digest, executable);
        if blob.exists() && self.check_blob(&digest, meta.len(), executable) == Presence::Intact {
            self.seal(&meta, file, &[], &digest);
            return Ok(entry(digest));
        }
        let shard = blob.parent().unwrap_or(&self.root);
        if !shard.is_dir() {
            fs::create_dir_all(shard).map_err(|e| CacheError::io("create the folder", shard, e))?;
        }
        let temporary = self.temporary("blob");
        self.link_or_copy(file, &temporary, mode)?;
        fs::rename(&temporary, &blob).map_err(|e| CacheError::io("write", &blob, e))?;
        if durable {
            super::sync_dir(shard)?;
        }
        self.seal(&meta, file, &[&blob], &digest);
        Ok(entry(digest))
    }

    /// Gives a blob a second name at `target`: reflink, else hard link, else copy.
    pub(crate) fn place_blob(&self, digest: &str, executable: bool, target: &Path) -> Result<()> {
        let blob = self.blob_path(digest, executable);
        let before = fs::symlink_metadata(&blob).ok();
        self.link_or_copy(&blob, target, if executable { 0o555 } else { 0o444 })?;
        // A new link changes the inode's ctime.
        if let Some(before) = before.filter(|meta| self.stats.get(meta).as_deref() == Some(digest)) {
            self.seal(&before, &blob, &[target], digest);
        }
        Ok(())
    }

    /// Remembers the digest of a read-only file that the runner hashed, and of its copies, unless the file was written to
    /// since `hashed`.
    pub(super) fn seal(&self, hashed: &Metadata, file: &Path, copies: &[&Path], digest: &str) {
        let written = |meta: &Metadata| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
        let Ok(now) = fs::symlink_metadata(file) else { return };
        if written(&now) != written(hashed) {
            return;
        }
        self.stats.put_trusted(&now, digest);
        for meta in copies.iter().filter_map(|copy| fs::symlink_metadata(copy).ok()) {
            self.stats.put_trusted(&meta, digest);
        }
    }

    pub(crate) fn link_or_copy(&self, from: &Path, to: &Path, mode: u32) -> Result<()> {
        if self.reflinks.load(Ordering::Relaxed) {
            match reflink_copy::reflink(from, to) {
                Ok(()) => {
                    let permissions = fs::Permissions::from_mode(mode);
                    return fs::set_permissions(to, permissions).map_err(|e| CacheError::io("write", to, e));
                }
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => {
                    return Err(CacheError::io("write", to, e));
                }
                Err(_) => self.reflinks.store(false, Ordering::Relaxed),
            }
        }
        if fs::hard_link(from, to).is_ok() {
            return Ok(());
        }
        // Another file system, or an inode with as many links as it can have.
        let copied = fs::copy(from, to).and_then(|_| {
            File::open(to)?.sync_all()?;
            fs::set_permissions(to, fs::Permissions::from_mode(mode))
        });
        copied.map_err(|e| {
            let _ = fs::remove_file(to);
            CacheError::io("copy", to, e)
        })
    }
}

fn hash(path: &Path, size: u64) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path)?;
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(CHUNK).clamp(4096, CHUNK)];
    loop {
        crate::interrupt::check()?;
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled >= PARALLEL_FROM {
            hasher.update_rayon(&bytes[..filled]);
        } else {
            hasher.update(&bytes[..filled]);
        }
        if filled < bytes.len() {
            return Ok(hasher.finalize().to_hex().to_string());
        }
    }
}
