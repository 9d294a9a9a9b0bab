//! Where a stage writes: refused before the work begins, where the work could not be kept when it is done.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use record::protocol::Request;

use crate::{Result, StageError};

/// Makes sure that every output and every folder of the request can be written. Of outputs nothing is left.
///
/// # Errors
/// A path that can't be made, or one that lies in another: a usage error by hand.
pub(crate) fn prepare(request: &Request, by_hand: bool) -> Result<()> {
    apart(request)?;
    for (name, path) in &request.outputs {
        let refused = |e| refused(&format!("the output `{name}` can't be made"), path, e, by_hand);
        let partial = partial_name(path);
        // Files of a process that was killed would mix with this one's.
        remove(&partial)
            .or_else(|e| if e.kind() == io::ErrorKind::NotADirectory { Ok(()) } else { Err(e) })
            .and_then(|()| fs::create_dir_all(&partial))
            .and_then(|()| fs::remove_dir(&partial))
            .and_then(|()| replaceable(path))
            .map_err(refused)?;
    }
    for dir in [&request.scratch, &request.checkpoint_dir, &request.live_dir] {
        fs::create_dir_all(dir).map_err(|e| refused("the folder can't be made", dir, e, by_hand))?;
    }
    Ok(())
}

/// What is written until the stage has succeeded.
pub(crate) fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// Something has this name; a link to nothing too.
pub(crate) fn is_taken(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Deletes a file, a link or a whole folder, where there is one.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// An output that exists is deleted when the work is done, which no folder that is mounted lets happen. (Some file systems give
/// files other numbers of devices than their folders.)
fn replaceable(path: &Path) -> io::Result<()> {
    let (Ok(there), Some(parent)) = (path.symlink_metadata(), path.parent()) else { return Ok(()) };
    match there.is_dir() && there.dev() != parent.metadata()?.dev() {
        false => Ok(()),
        true => Err(io::Error::new(io::ErrorKind::ResourceBusy, "something is mounted there")),
    }
}

fn refused(what: &str, path: &Path, e: io::Error, by_hand: bool) -> StageError {
    let is_full = matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let next = match e.kind() {
        _ if is_full => "free some space on that disk, then run again",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a part of the path is a file: choose another path"
        }
        io::ErrorKind::PermissionDenied => "choose another path, or change the permissions of this one",
        io::ErrorKind::ResourceBusy => "choose a path below it",
        _ => "choose another path",
    };
    let message = format!("{what}: {e}");
    let error = if by_hand && !is_full { StageError::usage(message) } else { StageError::failed(message) };
    error.at(path.display().to_string()).next(next)
}

/// An output takes its name, and the checkpoint is emptied, when the work is done: neither may lie in the other.
fn apart(request: &Request) -> Result<()> {
    let outputs = request.outputs.iter().map(|(name, path)| (format!("the output `{name}`"), path));
    let folders = [
        ("the scratch folder", &request.scratch),
        ("the checkpoint folder", &request.checkpoint_dir),
        ("the live folder", &request.live_dir),
    ];
    let folders = folders.into_iter().map(|(what, path)| (what.to_owned(), path));
    let all: Vec<(String, &PathBuf, PathBuf)> =
        outputs.chain(folders).map(|(what, path)| (what, path, resolved(path))).collect();
    for (i, (what, path, real)) in all.iter().take(request.outputs.len()).enumerate() {
        if path.file_name().is_none() {
            return Err(StageError::usage(format!("{what} has no name of its own"))
                .at(path.display().to_string())
                .next("name a folder that the output shall become"));
        }
        for (other, _, other_real) in &all[i + 1..] {
            let how = match (real.starts_with(other_real), other_real.starts_with(real)) {
                (true, true) => format!("{what} and {other} are the same path"),
                (true, false) => format!("{what} lies in {other}"),
                (false, true) => format!("{other} lies in {what}"),
                (false, false) => continue,
            };
            return Err(StageError::usage(how)
                .at(path.display().to_string())
                .next("give each a path of its own, with none of them in another"));
        }
    }
    Ok(())
}

/// The path with links followed as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let mut rest: Vec<&OsStr> = Vec::new();
    let mut there = path;
    loop {
        if let Ok(real) = there.canonicalize() {
            return rest.into_iter().rev().fold(real, |path, part| path.join(part));
        }
        let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else { return path.to_owned() };
        rest.push(name);
        there = parent;
    }
}
