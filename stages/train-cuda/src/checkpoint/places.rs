//! Where in the stage's checkpoint folder a run keeps its states, and what becomes of the states of other runs.
//!
//! A run takes the folder itself, or a folder of its own in it where the states of another run lie there: nothing is moved,
//! and whoever gave one parameter wrongly goes on with the right one. Of other runs the one that went furthest is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use stage_kit::{Result, StageError};

use super::state::{Stored, header};
use super::{GOOD_FILE, NEWEST_FILE, is_weights, name_of, remove, sync};

/// Before the first digits of the fingerprint of a run that has a folder of its own.
const PREFIX: &str = "run-";
const DIGITS: usize = 16;

/// A state of other parameters, inputs or seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) dir: PathBuf,
    pub(crate) step: u64,
}

/// What was done about the states of other runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Others {
    pub(crate) kept: Option<Other>,
    pub(crate) deleted: Vec<Other>,
}

/// Whether a run's own folder has such a name.
pub(super) fn is_run(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX);
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The folder of the run with this fingerprint, made where it is not there.
///
/// # Errors
/// The disk's.
pub(crate) fn own(root: &Path, fingerprint: &str) -> Result<PathBuf> {
    let apart = root.join(format!("{PREFIX}{}", &fingerprint[..fingerprint.len().min(DIGITS)]));
    let there = headers(root);
    let is_ours = there.iter().any(|stored| stored.fingerprint == fingerprint);
    if is_ours || (there.is_empty() && !has_state(&apart)) {
        return Ok(root.to_owned());
    }
    if !apart.is_dir() {
        fs::create_dir(&apart).map_err(|e| StageError::io("create the folder", &apart, e))?;
        sync(root)?;
    }
    Ok(apart)
}

/// Keeps the furthest state of another run than the one in the folder `own`, and deletes the others.
///
/// # Errors
/// The disk's.
pub(crate) fn keep_one_other(root: &Path, own: &Path) -> Result<Others> {
    let mut all = Vec::new();
    for dir in folders(root)?.into_iter().filter(|dir| dir != own) {
        match has_state(&dir) {
            true => all.push(dir),
            false if dir == root => {}
            false => remove(&dir)?,
        }
    }
    let step = |dir: &Path| headers(dir).iter().map(|s| s.history().steps_done()).max().unwrap_or(0);
    let mut all: Vec<_> =
        all.into_iter().map(|dir| (step(&dir), saved_at(&dir), Other { step: step(&dir), dir })).collect();
    all.sort_by_key(|(step, at, _)| (*step, *at));
    let kept = all.pop().map(|(_, _, other)| other);
    let deleted: Vec<Other> = all.into_iter().map(|(_, _, other)| other).collect();
    for other in &deleted {
        delete(root, &other.dir)?;
    }
    Ok(Others { kept, deleted })
}

/// The states first: what is left of a folder without them is nothing.
fn delete(root: &Path, dir: &Path) -> Result<()> {
    remove(&dir.join(NEWEST_FILE))?;
    remove(&dir.join(GOOD_FILE))?;
    if dir != root {
        return remove(dir);
    }
    entries(root)?.into_iter().filter(|path| is_weights(&name_of(path))).try_for_each(|path| remove(&path))
}

/// The checkpoint folder, and the folders of runs in it.
fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut all = entries(root)?;
    all.retain(|path| path.is_dir() && is_run(&name_of(path)));
    all.push(root.to_owned());
    all.sort();
    Ok(all)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(dir).map_err(|e| StageError::io("list", dir, e))?;
    Ok(list.flatten().map(|entry| entry.path()).collect())
}

fn has_state(dir: &Path) -> bool {
    [NEWEST_FILE, GOOD_FILE].iter().any(|file| dir.join(file).exists())
}

/// What can be read of the states of a folder, the newest first.
fn headers(dir: &Path) -> Vec<Stored> {
    [NEWEST_FILE, GOOD_FILE].iter().filter_map(|file| header(&dir.join(file)).ok()).collect()
}

fn saved_at(dir: &Path) -> Option<SystemTime> {
    let modified = |file: &&str| fs::metadata(dir.join(file)).and_then(|m| m.modified()).ok();
    [NEWEST_FILE, GOOD_FILE].iter().filter_map(modified).max()
}

#[cfg(test)]
mod tests {
    use super::super::History;
    use super::super::tests::{history, later, state, store_of};
    use super::*;

    /// Fingerprints.
    const A: &str = "aaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccc";
    const D: &str = "dddddddddddddddd";
    const E: &str = "eeeeeeeeeeeeeeee";

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = entries(dir).unwrap().iter().map(|path| name_of(path)).collect();
        names.sort();
        names
    }

    /// A run with this fingerprint saves a state after `2 + more` steps.
    fn run(root: &Path, fingerprint: &str, more: u64) -> (PathBuf, Others) {
        let own = own(root, fingerprint).unwrap();
        let others = keep_one_other(root, &own).unwrap();
        let (history, state) = if more == 0 { (history(), state()) } else { later(more) };
        store_of(&own, fingerprint).save(&history, state.clone()).unwrap();
        (own, others)
    }

    #[test]
    fn a_run_leaves_the_state_of_another_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (own_a, others) = run(root, A, 3);
        assert_eq!((own_a.as_path(), others), (root, Others::default()));
        let kept = |dir: &Path, step| Some(Other { dir: dir.to_owned(), step });
        let (own_b, others) = run(root, B, 0);
        assert_eq!((&own_b, &others.kept), (&root.join(format!("run-{B}")), &kept(root, 5)));
        let (again, others) = run(root, A, 4);
        assert_eq!((again.as_path(), &others.kept), (root, &kept(&own_b, 2)));
        let (again, others) = run(root, B, 1);
        assert_eq!((&again, &others.kept), (&own_b, &kept(root, 6)));
        assert_eq!(others.deleted, []);
        assert_eq!(names(root), ["best-1", "newest.safetensors", &format!("run-{B}")]);
    }

    #[test]
    fn of_others_the_furthest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        run(root, A, 3);
        run(root, B, 0);
        // Two mistakes after each other do not delete what was there before them.
        let (own_c, others) = run(root, C, 9);
        assert_eq!(others.kept.unwrap().dir, root);
        assert_eq!(others.deleted, [Other { dir: root.join(format!("run-{B}")), step: 2 }]);
        assert_eq!(names(root), ["best-1", "newest.safetensors", &format!("run-{C}")]);
        // Of a run that ended before its first state; and what is not ours.
        fs::create_dir(root.join(format!("run-{E}"))).unwrap();
        fs::create_dir(root.join("run-notes")).unwrap();
        fs::create_dir(root.join("notes")).unwrap();
        let (_, others) = run(root, D, 0);
        assert_eq!((others.kept.unwrap().dir, others.deleted[0].dir.as_path()), (own_c, root));
        assert_eq!(names(root), ["notes", &format!("run-{C}"), &format!("run-{D}"), "run-notes"]);
        // What has a folder of its own keeps it where the other has gone.
        assert_eq!(own(root, D).unwrap(), root.join(format!("run-{D}")));
        assert_eq!(own(root, E).unwrap(), root);
    }

    #[test]
    fn a_state_that_can_t_be_read_is_nobody_s() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        run(root, A, 0);
        fs::write(root.join(NEWEST_FILE), "nothing").unwrap();
        assert_eq!(own(root, B).unwrap(), root);
        let mut store = store_of(root, A);
        store.save(&History { kept: vec![], ..history() }, state()).unwrap();
        store.prove().unwrap();
        fs::write(root.join(NEWEST_FILE), "nothing").unwrap();
        assert_eq!(
            own(root, B).unwrap(),
            root.join(format!("run-{B}")),
            "the older state is that of another run"
        );
    }
}
