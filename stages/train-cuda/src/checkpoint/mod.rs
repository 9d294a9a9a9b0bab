//! What a restart needs, in the stage's checkpoint folder: the optimizer's slabs and the run's history in a state, and the
//! weights of the best and of the kept steps in `best-N/` and `step-N/`.
//!
//! There are up to two states. `newest.safetensors` is the last that was saved: a restart goes on from it. It replaces
//! `state.safetensors` only when a loss that was computed with its weights, or with those of a step after it, has come out
//! well, and is deleted when a loss was not finite: what made it so never takes the place of what did not.
//!
//! Every file gets its name only when it is whole and on the disk; a state is written while training goes on.
//! Weights are written before the state that names them and
//! deleted after the last state that names them, so a kill at any moment leaves a state whose folders exist.

pub(crate) mod places;
mod state;
mod writing;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use engine::TrainState;
use stage_kit::{Result, StageError, digest};

use crate::weights::Trained;
pub(crate) use state::History;
use state::{Digests, Stored, decode, header};
use writing::Writing;

/// The last state that is known to be good.
const GOOD_FILE: &str = "state.safetensors";
/// A later one, of which that is not known yet.
const NEWEST_FILE: &str = "newest.safetensors";
/// Folders for what is not whole yet.
const NEWEST_PARTIAL: &str = "newest.partial";
const WEIGHTS_PARTIAL: &str = "weights.partial";

/// What was found of an earlier process.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// It can't be used; why.
    Useless(String),
    State(Box<Loaded>),
}

impl Found {
    /// Of the run that goes on. One from the beginning takes nothing over, the tokens at a time neither: they are those of
    /// any such run.
    pub(crate) fn history(&self) -> Option<&History> {
        match self {
            Self::State(loaded) => Some(&loaded.history),
            Self::Nothing | Self::Useless(_) => None,
        }
    }
}

/// A state, as it was saved.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) history: History,
    pub(crate) state: TrainState,
    /// Why it is not a later one.
    pub(crate) passed_over: Option<String>,
}

/// A state on the disk.
#[derive(Debug, Clone)]
struct Saved {
    step: u64,
    /// The folders with weights that it names.
    folders: Vec<PathBuf>,
}

/// The states of one run in its folder, [`places::own`].
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Hash of everything that decides the run.
    fingerprint: String,
    good: Option<Saved>,
    newest: Option<Saved>,
    /// What becomes the newest.
    writing: Option<Writing>,
    /// Of every folder with weights, by its name.
    weights: BTreeMap<String, Digests>,
    /// Folders with weights that the next state is going to name.
    unnamed: Vec<PathBuf>,
}

impl Store {
    pub(crate) fn new(dir: &Path, fingerprint: String) -> Self {
        let (good, newest, writing) = (None, None, None);
        let (weights, unnamed) = (BTreeMap::new(), Vec::new());
        Self { dir: dir.to_owned(), fingerprint, good, newest, writing, weights, unnamed }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn best_dir(&self, step: u64) -> PathBuf {
        self.dir.join(format!("best-{step}"))
    }

    pub(crate) fn step_dir(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step}"))
    }

    /// The step of the last state that is known to be good.
    pub(crate) fn good_step(&self) -> Option<u64> {
        self.good.as_ref().map(|saved| saved.step)
    }

    /// The step that a restart goes on from.
    pub(crate) fn newest_step(&self) -> Option<u64> {
        self.newest.as_ref().or(self.good.as_ref()).map(|saved| saved.step)
    }

    /// What a process left that was killed while it wrote.
    fn remove_partial(&self) -> Result<()> {
        remove(&self.dir.join(NEWEST_PARTIAL))?;
        remove(&self.dir.join(WEIGHTS_PARTIAL))
    }

    fn is_ours(&self, stored: &Stored) -> bool {
        stored.fingerprint == self.fingerprint
    }

    /// Looks for the newest state of an earlier process with the same fingerprint.
    ///
    /// # Errors
    /// Only when a file is there and can't be read at all, or what is not whole can't be deleted.
    pub(crate) fn load(&mut self) -> Result<Found> {
        self.remove_partial()?;
        let mut passed_over = None;
        for file in [NEWEST_FILE, GOOD_FILE] {
            let (stored, state) = match self.read(file)? {
                Some(Ok(pair)) => pair,
                Some(Err(why)) => {
                    passed_over.get_or_insert(why);
                    continue;
                }
                None => continue,
            };
            let history = stored.history();
            let saved = self.saved(&history);
            self.weights = stored.weights;
            if file == NEWEST_FILE {
                self.newest = Some(saved);
                let good = header(&self.dir.join(GOOD_FILE)).ok().filter(|stored| self.is_ours(stored));
                self.good = good.map(|stored| {
                    self.weights.extend(stored.weights.clone());
                    self.saved(&stored.history())
                });
            } else {
                self.good = Some(saved);
                remove(&self.dir.join(NEWEST_FILE))?;
            }
            return Ok(Found::State(Box::new(Loaded { history, state, passed_over })));
        }
        Ok(passed_over.map_or(Found::Nothing, Found::Useless))
    }

    /// A state and the weights that it names, checked; `None`: there is none.
    fn read(&self, file: &str) -> Result<Option<std::result::Result<(Stored, TrainState), String>>> {
        let path = self.dir.join(file);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StageError::io("read the checkpoint", &path, e)),
        };
        let (stored, state) = match decode(&bytes) {
            Ok(pair) => pair,
            Err(what) => return Ok(Some(Err(format!("it is damaged ({what})")))),
        };
        if !self.is_ours(&stored) {
            return Ok(Some(Err("it belongs to other parameters, inputs or seed".to_owned())));
        }
        let folders = self.saved(&stored.history()).folders;
        Ok(Some(match folders.iter().find_map(|folder| fault(folder, &stored.weights)) {
            Some(why) => Err(why),
            None => Ok((stored, state)),
        }))
    }

    fn saved(&self, history: &History) -> Saved {
        let best = history.best().map(|b| self.best_dir(b.step));
        let folders = history.kept.iter().map(|&n| self.step_dir(n)).chain(best).collect();
        Saved { step: history.steps_done(), folders }
    }

    /// Saves a state as the newest one, then deletes the weights that no state names.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn save(&mut self, history: &History, state: TrainState) -> Result<()> {
        self.start_saving(history, state)?;
        self.settle()
    }

    /// As [`Self::save`], while other things go on: [`Self::settle`] ends it.
    ///
    /// # Errors
    /// The disk's, about the state before it too.
    pub(crate) fn start_saving(&mut self, history: &History, state: TrainState) -> Result<()> {
        self.settle()?;
        let saved = self.saved(history);
        let named = |name: &str| saved.folders.iter().any(|dir| dir.ends_with(name));
        let weights = self.weights.iter().filter(|(name, _)| named(name));
        let weights = weights.map(|(name, digests)| (name.clone(), digests.clone())).collect();
        let stored = Stored::new(&self.fingerprint, weights, history, &state);
        let text = serde_json::to_string(&stored)
            .map_err(|e| StageError::internal(format!("can't write the run's history: {e}")))?;
        let partial = self.dir.join(NEWEST_PARTIAL);
        remove(&partial)?;
        fs::create_dir(&partial).map_err(|e| StageError::io("create the folder", &partial, e))?;
        self.writing = Some(Writing::start(partial.join(NEWEST_FILE), saved, text, state)?);
        self.unnamed.clear();
        Ok(())
    }

    /// Waits for the state that is being written: it is the newest then.
    ///
    /// # Errors
    /// The disk's: what became of the state says [`Self::newest_step`].
    pub(crate) fn settle(&mut self) -> Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let (saved, is_good) = (writing.saved.clone(), writing.is_good);
        let partial = self.dir.join(NEWEST_PARTIAL);
        let written = writing.wait();
        let named = written.and_then(|()| rename(&partial.join(NEWEST_FILE), &self.dir.join(NEWEST_FILE)));
        let removed = remove(&partial);
        named?;
        self.newest = Some(saved);
        let flushed = sync(&self.dir);
        let done = if is_good { self.prove() } else { self.clean() };
        flushed.and(removed).and(done)
    }

    /// [`Self::settle`], where nothing is left to wait for.
    ///
    /// # Errors
    /// As [`Self::settle`].
    pub(crate) fn settle_if_done(&mut self) -> Result<()> {
        if self.writing.as_ref().is_some_and(Writing::is_done) { self.settle() } else { Ok(()) }
    }

    /// Notes in the state that a restart would go on from, where there is one, that memory ran out with a plan of so many bytes.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn note_ran_out(&mut self, bytes: u64) -> Result<()> {
        self.settle()?;
        for file in [NEWEST_FILE, GOOD_FILE] {
            if let Some(Ok((stored, state))) = self.read(file)? {
                return self.save(&History { ran_out_bytes: Some(bytes), ..stored.history() }, state);
            }
        }
        Ok(())
    }

    /// The newest state is good: it takes the place of the last good one, as soon as it is on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn prove(&mut self) -> Result<()> {
        if let Some(writing) = &mut self.writing {
            writing.is_good = true;
        }
        let Some(saved) = self.newest.clone() else { return Ok(()) };
        rename(&self.dir.join(NEWEST_FILE), &self.dir.join(GOOD_FILE))?;
        (self.good, self.newest) = (Some(saved), None);
        sync(&self.dir)?;
        self.clean()
    }

    /// The newest state is not good: what is left is the last one that was.
    ///
    /// # Errors
    /// It can't be deleted.
    pub(crate) fn reject(&mut self) -> Result<()> {
        // What could not be written is no state.
        let _ = self.settle();
        if self.newest.is_none() {
            return Ok(());
        }
        remove(&self.dir.join(NEWEST_FILE))?;
        self.newest = None;
        // It is gone; weights that stay go with the next state.
        let _ = sync(&self.dir).and_then(|()| self.clean());
        Ok(())
    }

    /// Writes the weights of `step` into `best-N/` or `step-N/`, whole or not at all.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn save_weights(&mut self, dir: &Path, trained: &Trained) -> Result<()> {
        let partial = self.dir.join(WEIGHTS_PARTIAL);
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(|e| StageError::io("create the folder", &partial, e))?;
        trained.save(&partial)?;
        let mut digests = Digests::new();
        for path in files(&partial)? {
            sync(&path)?;
            let sha256 = digest::sha256_file(&path).map_err(|e| StageError::io("read", &path, e))?;
            digests.insert(name_of(&path), sha256);
        }
        sync(&partial)?;
        remove(dir)?;
        rename(&partial, dir)?;
        sync(&self.dir)?;
        self.weights.insert(name_of(dir), digests);
        self.unnamed.push(dir.to_owned());
        Ok(())
    }

    /// Deletes what an earlier, other run left here.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.remove_partial()?;
        remove(&self.dir.join(NEWEST_FILE))?;
        remove(&self.dir.join(GOOD_FILE))?;
        (self.good, self.newest) = (None, None);
        self.weights.clear();
        self.unnamed.clear();
        self.clean()
    }

    fn clean(&mut self) -> Result<()> {
        let states = [&self.good, &self.newest].into_iter().flatten();
        let states = states.chain(self.writing.as_ref().map(|writing| &writing.saved));
        let keep = states.flat_map(|saved| saved.folders.clone()).chain(self.unnamed.iter().cloned());
        let keep: Vec<PathBuf> = keep.collect();
        for entry in fs::read_dir(&self.dir).map_err(|e| StageError::io("list", &self.dir, e))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if is_weights(&name) && !keep.contains(&entry.path()) {
                remove(&entry.path())?;
                self.weights.remove(&*name);
            }
        }
        Ok(())
    }
}

impl Drop for Store {
    /// A run that ends by an error keeps the state that it was about to save.
    fn drop(&mut self) {
        let _ = self.settle();
    }
}

/// Whether this program gives such a name to something in its checkpoint folder.
pub(crate) fn is_ours(name: &str) -> bool {
    [NEWEST_FILE, GOOD_FILE, NEWEST_PARTIAL, WEIGHTS_PARTIAL].contains(&name)
        || is_weights(name)
        || places::is_run(name)
}

/// `best-N` or `step-N`.
fn is_weights(name: &str) -> bool {
    let number = name.strip_prefix("best-").or_else(|| name.strip_prefix("step-"));
    number.is_some_and(|n| n.parse::<u64>().is_ok())
}

/// What is wrong with a folder of weights.
fn fault(folder: &Path, weights: &BTreeMap<String, Digests>) -> Option<String> {
    if !folder.is_dir() {
        return Some(format!("{} is gone", folder.display()));
    }
    let Some(digests) = weights.get(&name_of(folder)) else {
        return Some(format!("it does not say what {} holds", folder.display()));
    };
    let wrong = |(file, sha256): (&String, &String)| {
        let path = folder.join(file);
        (digest::sha256_file(&path).ok().as_ref() != Some(sha256)).then_some(path)
    };
    digests.iter().find_map(wrong).map(|path| format!("{} is damaged", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| StageError::io("rename into place", to, e))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    list().map_err(|e| StageError::io("list", dir, e))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| StageError::io("flush", path, e))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StageError::io("delete", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
