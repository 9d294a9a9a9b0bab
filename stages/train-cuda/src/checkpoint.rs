//! What a restart needs, in the stage's checkpoint folder: the optimizer's slabs and the run's history in `state.safetensors`,
//! and the weights of the best and of the kept steps in `best-N/` and `step-N/`.
//!
//! Every file gets its name only when it is whole. Weights are written before the state that names them and deleted after the
//! state that names them no more, so a kill at any moment leaves a state whose folders exist.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use engine::TrainState;
use record::training::{StepRecord, ValidationRecord};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stage_kit::{Result, StageError};

use crate::weights::Trained;

const STATE_FILE: &str = "state.safetensors";
const HISTORY_KEY: &str = "history";
const SLABS: [&str; 3] = ["master", "m", "v"];

/// The validation with the lowest loss so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) loss: f64,
}

/// Everything that a run has to remember beside the slabs.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) steps: Vec<StepRecord>,
    pub(crate) validations: Vec<ValidationRecord>,
    /// Steps whose `step-N/` is kept, ascending.
    pub(crate) kept: Vec<u64>,
    /// Seconds spent in earlier processes.
    pub(crate) wall_s: f64,
    /// An earlier process was stopped before the end.
    pub(crate) was_interrupted: bool,
}

impl History {
    pub(crate) fn steps_done(&self) -> u64 {
        self.steps.len() as u64
    }

    /// The trained step with the lowest validation loss, the earlier one of equals. The loss before training is no candidate.
    pub(crate) fn best(&self) -> Option<Best> {
        let trained = self.validations.iter().filter(|v| v.step > 0);
        trained.fold(None, |best: Option<Best>, v| match best {
            Some(b) if b.loss <= v.loss => Some(b),
            _ => Some(Best { step: v.step, loss: v.loss }),
        })
    }
}

/// [`History`] as it is stored: floats as their bits, since JSON readers may be off by one unit in the last place.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    fingerprint: String,
    slabs_sha256: String,
    optimizer_step: u64,
    table: BTreeMap<String, engine::Range>,
    /// step, epoch, loss, grad_norm, lr, label_tokens, tokens
    steps: Vec<[u64; 7]>,
    /// step, epoch, loss, label_tokens
    validations: Vec<[u64; 4]>,
    kept: Vec<u64>,
    wall_s: f64,
}

impl Stored {
    fn new(fingerprint: &str, slabs_sha256: String, history: &History, state: &TrainState) -> Self {
        let step = |r: &StepRecord| {
            [
                r.step,
                r.epoch,
                r.loss.to_bits(),
                r.grad_norm.to_bits(),
                r.lr.to_bits(),
                r.label_tokens,
                r.tokens,
            ]
        };
        Self {
            fingerprint: fingerprint.to_owned(),
            slabs_sha256,
            optimizer_step: state.step,
            table: state.table.clone(),
            steps: history.steps.iter().map(step).collect(),
            validations: history
                .validations
                .iter()
                .map(|v| [v.step, v.epoch, v.loss.to_bits(), v.label_tokens])
                .collect(),
            kept: history.kept.clone(),
            wall_s: history.wall_s,
        }
    }

    fn history(&self) -> History {
        let step = |&[step, epoch, loss, grad_norm, lr, label_tokens, tokens]: &[u64; 7]| StepRecord {
            step,
            epoch,
            loss: f64::from_bits(loss),
            grad_norm: f64::from_bits(grad_norm),
            lr: f64::from_bits(lr),
            label_tokens,
            tokens,
        };
        let validation = |&[step, epoch, loss, label_tokens]: &[u64; 4]| ValidationRecord {
            step,
            epoch,
            loss: f64::from_bits(loss),
            label_tokens,
        };
        History {
            steps: self.steps.iter().map(step).collect(),
            validations: self.validations.iter().map(validation).collect(),
            kept: self.kept.clone(),
            wall_s: self.wall_s,
            was_interrupted: true,
        }
    }
}

/// What was found of an earlier process.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// It can't be used; why.
    Useless(String),
    State(Box<(History, TrainState)>),
}

/// The checkpoint folder of one run.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Hash of everything that decides the run.
    fingerprint: String,
}

impl Store {
    pub(crate) fn new(dir: &Path, fingerprint: String) -> Self {
        Self { dir: dir.to_owned(), fingerprint }
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

    /// Looks for the state of an earlier process with the same fingerprint.
    ///
    /// # Errors
    /// Only when the file is there and can't be read at all.
    pub(crate) fn load(&self) -> Result<Found> {
        let path = self.dir.join(STATE_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(e) => return Err(StageError::io("read the checkpoint", &path, e)),
        };
        let (stored, state) = match decode(&bytes) {
            Ok(pair) => pair,
            Err(what) => return Ok(Found::Useless(format!("it is damaged ({what})"))),
        };
        if stored.fingerprint != self.fingerprint {
            return Ok(Found::Useless("it belongs to other parameters, inputs or seed".to_owned()));
        }
        let history = stored.history();
        let best = history.best().map(|b| self.best_dir(b.step));
        let folders = history.kept.iter().map(|&n| self.step_dir(n)).chain(best);
        match folders.into_iter().find(|dir| !dir.is_dir()) {
            Some(dir) => Ok(Found::Useless(format!("{} is gone", dir.display()))),
            None => Ok(Found::State(Box::new((history, state)))),
        }
    }

    /// Replaces the state, then deletes the weights that it no longer names.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn save(&self, history: &History, state: &TrainState) -> Result<()> {
        let path = self.dir.join(STATE_FILE);
        let partial = self.dir.join(format!("{STATE_FILE}.partial"));
        let slabs = [&state.master, &state.m, &state.v].map(|s| le_bytes(s));
        let stored = Stored::new(&self.fingerprint, hash(&slabs), history, state);
        let text = serde_json::to_string(&stored)
            .map_err(|e| StageError::internal(format!("can't write the run's history: {e}")))?;
        let views = SLABS.iter().zip(&slabs).map(|(name, bytes)| {
            TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)
                .map(|view| (*name, view))
                .map_err(|e| StageError::internal(format!("can't store the slab {name}: {e}")))
        });
        let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_>>()?;
        safetensors::serialize_to_file(
            views,
            Some(HashMap::from([(HISTORY_KEY.to_owned(), text)])),
            &partial,
        )
        .map_err(|e| safetensors_error(&partial, e))?;
        sync(&partial)?;
        fs::rename(&partial, &path).map_err(|e| StageError::io("replace", &path, e))?;
        sync(&self.dir)?;
        self.clean(history)
    }

    /// Writes the weights of `step` into `best-N/` or `step-N/`, whole or not at all.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn save_weights(&self, dir: &Path, trained: &Trained) -> Result<()> {
        let partial = self.dir.join("weights.partial");
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(|e| StageError::io("create the folder", &partial, e))?;
        trained.save(&partial)?;
        remove(dir)?;
        fs::rename(&partial, dir).map_err(|e| StageError::io("rename into place", dir, e))
    }

    /// Deletes what an earlier, other run left here.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn clear(&self) -> Result<()> {
        remove(&self.dir.join(STATE_FILE))?;
        self.clean(&History::default())
    }

    fn clean(&self, history: &History) -> Result<()> {
        let best = history.best().map(|b| self.best_dir(b.step));
        let keep: Vec<PathBuf> = history.kept.iter().map(|&n| self.step_dir(n)).chain(best).collect();
        for entry in fs::read_dir(&self.dir).map_err(|e| StageError::io("list", &self.dir, e))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let number = name.strip_prefix("best-").or_else(|| name.strip_prefix("step-"));
            let ours = number.is_some_and(|n| n.parse::<u64>().is_ok());
            if ours && !keep.contains(&entry.path()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<(Stored, TrainState), String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let text = metadata.metadata().as_ref().and_then(|m| m.get(HISTORY_KEY)).ok_or("no history in it")?;
    let stored: Stored = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let [master, m, v] = SLABS.map(|name| tensors.tensor(name).map_err(|e| e.to_string()));
    let views = [master?, m?, v?];
    if views.iter().any(|v| v.dtype() != Dtype::F32) {
        return Err("slabs are not float32".to_owned());
    }
    if hash(&[views[0].data(), views[1].data(), views[2].data()]) != stored.slabs_sha256 {
        return Err("the slabs' hash differs".to_owned());
    }
    let [master, m, v] = [0, 1, 2].map(|i| floats(views[i].data()));
    let state = TrainState { step: stored.optimizer_step, master, m, v, table: stored.table.clone() };
    Ok((stored, state))
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn hash(slabs: &[impl AsRef<[u8]>; 3]) -> String {
    let mut hasher = Sha256::new();
    for slab in slabs {
        hasher.update(slab.as_ref());
    }
    hex::encode(hasher.finalize())
}

fn safetensors_error(path: &Path, e: safetensors::SafeTensorError) -> StageError {
    match e {
        safetensors::SafeTensorError::IoError(e) => StageError::io("write the checkpoint", path, e),
        e => StageError::internal(format!("can't write the checkpoint: {e}")).at(path.display().to_string()),
    }
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
mod tests {
    use super::*;

    fn history() -> History {
        let step = |step, loss| StepRecord {
            step,
            epoch: 1,
            loss,
            grad_norm: 0.1 + 0.2,
            lr: 1e-4,
            label_tokens: 7,
            tokens: 9,
        };
        let validation = |step, loss| ValidationRecord { step, epoch: 1, loss, label_tokens: 5 };
        History {
            steps: vec![step(1, 1.0 / 3.0), step(2, f64::MIN_POSITIVE)],
            validations: vec![validation(0, 0.5), validation(1, 2.0), validation(2, 2.0)],
            kept: vec![],
            wall_s: 1.5,
            was_interrupted: true,
        }
    }

    fn state() -> TrainState {
        let table = BTreeMap::from([("w".to_owned(), engine::Range { start: 0, len: 3 })]);
        TrainState { step: 2, master: vec![1.0, -0.0, 1e-40], m: vec![0.5; 3], v: vec![0.25; 3], table }
    }

    fn store(dir: &Path) -> Store {
        fs::create_dir_all(dir.join("best-1")).unwrap();
        Store::new(dir, "f".into())
    }

    #[test]
    fn a_state_comes_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.save(&history(), &state()).unwrap();
        let Found::State(pair) = store.load().unwrap() else { panic!("no state") };
        assert_eq!(*pair, (history(), state()));
        assert_eq!(pair.1.master[1].to_bits(), (-0.0f32).to_bits());
    }

    #[test]
    fn best_is_the_lowest_loss_after_training_began() {
        assert_eq!(history().best(), Some(Best { step: 1, loss: 2.0 }));
        assert_eq!(History::default().best(), None);
    }

    #[test]
    fn other_parameters_and_damage_are_told_apart_from_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ours = store(dir.path());
        assert!(matches!(ours.load().unwrap(), Found::Nothing));
        ours.save(&history(), &state()).unwrap();
        let other = Store::new(dir.path(), "g".into());
        assert!(matches!(other.load().unwrap(), Found::Useless(why) if why.contains("other parameters")));
        let path = dir.path().join(STATE_FILE);
        let whole = fs::read(&path).unwrap();
        for n in [0, 1, 7, 8, 100, whole.len() - 1] {
            fs::write(&path, &whole[..n]).unwrap();
            assert!(
                matches!(ours.load().unwrap(), Found::Useless(why) if why.contains("damaged")),
                "cut to {n} bytes"
            );
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(matches!(ours.load().unwrap(), Found::Useless(why) if why.contains("hash")));
        fs::write(&path, whole).unwrap();
        fs::remove_dir_all(dir.path().join("best-1")).unwrap();
        assert!(matches!(ours.load().unwrap(), Found::Useless(why) if why.contains("gone")));
    }

    #[test]
    fn saving_deletes_the_weights_that_are_named_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for name in ["best-9", "step-3", "notes", "step-x"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        store.save(&history(), &state()).unwrap();
        let left = |name: &str| dir.path().join(name).exists();
        assert!(left("best-1") && left("notes") && left("step-x") && !left("best-9") && !left("step-3"));
    }
}
