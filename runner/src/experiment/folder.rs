//! `experiments/ID/`: made once per run, locked while the run lasts.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{ActionEntry, FileLock, Store, remove_any};
use crate::error::{Result, RunnerError};

/// Committed folders that are not runs.
const RESERVED: [&str; 2] = ["records", "peers"];

/// An experiment's folder, held by this process.
#[derive(Debug)]
pub struct Folder {
    pub id: String,
    root: PathBuf,
    _lock: FileLock,
}

impl Folder {
    /// Opens `experiments/ID`, or makes the next free `PREFIX-NNN`.
    ///
    /// # Errors
    /// The id can't be a folder's name, another run holds it, or the disk refuses.
    pub fn create(experiments: &Path, id: Option<&str>, prefix: &str) -> Result<Self> {
        fs::create_dir_all(experiments).map_err(|e| RunnerError::io("create the folder", experiments, e))?;
        let id = match id {
            Some(id) => {
                check_id(id)?;
                let root = experiments.join(id);
                fs::create_dir_all(&root).map_err(|e| RunnerError::io("create the folder", &root, e))?;
                id.to_owned()
            }
            None => next_free(experiments, prefix)?,
        };
        let root = experiments.join(&id);
        let Some(lock) = FileLock::try_exclusive(&root.join(".lock"))? else {
            return Err(RunnerError::usage(
                format!("{}: another run is using this experiment", root.display()),
                "wait for it, or choose another name with --experiment",
            ));
        };
        Ok(Self { id, root, _lock: lock })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.root.join("stages").join(node)
    }

    /// Puts the outputs and the log of a cached action where a fresh run would have left them.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn place_hit(&self, store: &Store, node: &str, entry: &ActionEntry) -> Result<()> {
        let dir = self.node_dir(node);
        remove_any(&dir);
        fs::create_dir_all(&dir).map_err(|e| RunnerError::io("create the folder", &dir, e))?;
        for (name, output) in &entry.outputs {
            store.materialize(output, &dir.join(name))?;
        }
        if let Some(log) = entry.log.as_ref().filter(|log| store.check(log).is_ok()) {
            let logs = dir.join("logs");
            fs::create_dir_all(&logs).map_err(|e| RunnerError::io("create the folder", &logs, e))?;
            store.materialize(log, &logs.join("attempt-1.log"))?;
        }
        Ok(())
    }
}

/// As for names in a pipeline: a folder's name has an end.
const LONGEST_ID: usize = 100;

fn check_id(id: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain = !id.is_empty() && id.len() <= LONGEST_ID && !id.starts_with('.') && id.chars().all(fine);
    if !plain || RESERVED.contains(&id) {
        return Err(RunnerError::usage(
            format!("`{id}` can't be the name of an experiment"),
            "use at most 100 letters, digits, `-`, `_` and `.`; `records` and `peers` are taken",
        ));
    }
    Ok(())
}

fn next_free(experiments: &Path, prefix: &str) -> Result<String> {
    let entries = fs::read_dir(experiments).map_err(|e| RunnerError::io("list", experiments, e))?;
    let number = |name: &str| name.strip_prefix(prefix)?.strip_prefix('-')?.parse::<u32>().ok();
    let used = entries.flatten().filter_map(|e| number(e.file_name().to_str()?)).max().unwrap_or(0);
    let mut n = used;
    loop {
        n += 1;
        let id = format!("{prefix}-{n:03}");
        let root = experiments.join(&id);
        match fs::create_dir(&root) {
            Ok(()) => return Ok(id),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(RunnerError::io("create the folder", &root, e)),
        }
    }
}

/// The experiment whose record was written last.
pub fn latest(experiments: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(experiments).into_iter().flatten().flatten();
    let written = |e: fs::DirEntry| {
        Some((e.path().join("experiment.json").metadata().ok()?.modified().ok()?, e.path()))
    };
    entries.filter_map(written).max().map(|(_, path)| path)
}

/// The last attempt's log of a node.
pub fn node_log(experiment: &Path, node: &str) -> Option<PathBuf> {
    let logs = fs::read_dir(experiment.join("stages").join(node).join("logs")).ok()?.flatten();
    let number = |path: &PathBuf| -> Option<u32> {
        path.file_stem()?.to_str()?.strip_prefix("attempt-")?.parse().ok()
    };
    logs.map(|e| e.path()).filter(|p| number(p).is_some()).max_by_key(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_count_up_and_two_runs_do_not_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::create(dir.path(), None, "run").unwrap();
        assert_eq!(first.id, "run-001");
        assert_eq!(Folder::create(dir.path(), None, "run").unwrap().id, "run-002");
        assert!(Folder::create(dir.path(), Some("run-001"), "run").is_err(), "still held");
        drop(first);
        assert!(Folder::create(dir.path(), Some("run-001"), "run").is_ok());
        for wrong in ["", "../x", ".hidden", "records", "a b"] {
            assert!(Folder::create(dir.path(), Some(wrong), "run").is_err(), "{wrong}");
        }
    }
}
