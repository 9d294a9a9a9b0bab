//! Files in the hub's cache: a link in a snapshot, pointing at a blob whose name is the hash that the hub named.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use stage_kit::{Result, StageError};

/// Whether the bytes hash to the blob's name: SHA-256 for large files, Git's blob hash for small ones.
///
/// A blob of any other name, or a file that is no link, can't be judged and passes.
pub(super) fn is_whole(path: &Path) -> Result<bool> {
    let failed = |e| StageError::io("read", path, e);
    let blob = fs::canonicalize(path).map_err(failed)?;
    let name = blob.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(true);
    }
    let found = match name.len() {
        64 => hash(&blob, Sha256::new()).map_err(failed)?,
        40 => {
            let size = fs::metadata(&blob).map_err(failed)?.len();
            hash(&blob, Sha1::new_with_prefix(format!("blob {size}\0"))).map_err(failed)?
        }
        _ => return Ok(true),
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

/// Deletes a link and the blob behind it.
pub(super) fn remove(path: &Path) -> Result<()> {
    if let Ok(blob) = fs::canonicalize(path) {
        delete(&blob)?;
    }
    delete(path)
}

/// Deletes what interrupted downloads left.
pub(super) fn remove_parts(blobs: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(blobs) else { return Ok(()) };
    for path in entries.flatten().map(|e| e.path()) {
        if path.extension().is_some_and(|e| e == "part") {
            delete(&path)?;
        }
    }
    Ok(())
}

fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StageError::io("delete", path, e)),
        _ => Ok(()),
    }
}
