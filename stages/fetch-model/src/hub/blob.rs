//! Files in the hub's cache: a link in a snapshot, pointing at a blob whose name is the hash that the hub named.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use stage_kit::{Result, StageError};

/// Whether the bytes hash to the blob's name. A file that is no link can't be judged and passes.
pub(super) fn is_whole(path: &Path) -> Result<bool> {
    let failed = |e| StageError::io("read", path, e);
    let blob = fs::canonicalize(path).map_err(failed)?;
    let name = blob.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    matches(&blob, name).map_err(failed)
}

/// Whether a name is a hash: SHA-256 for large files, Git's blob hash for small ones.
pub(super) fn is_hash(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the bytes hash to `name`. Any other name can't be judged and passes.
pub(super) fn matches(path: &Path, name: &str) -> io::Result<bool> {
    if !is_hash(name) {
        return Ok(true);
    }
    let found = if name.len() == 64 {
        hash(path, Sha256::new())?
    } else {
        let size = fs::metadata(path)?.len();
        hash(path, Sha1::new_with_prefix(format!("blob {size}\0")))?
    };
    Ok(found.eq_ignore_ascii_case(name))
}

fn hash(path: &Path, mut hasher: impl Digest) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Deletes a link and the blob behind it. A file elsewhere, to which somebody made a link, stays.
pub(super) fn remove(path: &Path) -> Result<()> {
    let blob = fs::canonicalize(path).ok().filter(|b| b.parent().is_some_and(|dir| dir.ends_with("blobs")));
    if let Some(blob) = blob {
        delete(&blob)?;
    }
    delete(path)
}

fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StageError::io("delete", path, e)),
        _ => Ok(()),
    }
}
