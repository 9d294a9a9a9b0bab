//! A state as a file: the slabs as tensors, the run's history beside them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use engine::TrainState;
use record::training::{StepRecord, TokensFrom, ValidationRecord};
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(super) const HISTORY_KEY: &str = "history";
/// SHA-256 of the slabs and the history's text.
pub(super) const DIGEST_KEY: &str = "sha256";
pub(super) const SLABS: [&str; 3] = ["master", "m", "v"];
/// Longest header of a state that is read; the format's own bound.
const HEADER_MAX: u64 = 100_000_000;

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
    /// Name of the GPU of the newest process; `None` on the CPU.
    pub(crate) gpu: Option<String>,
    /// How many tokens went through the GPU at a time, and from which step on; empty on the CPU.
    pub(crate) tokens_at_a_time: Vec<TokensFrom>,
    /// Bytes by the plan of the process that memory ran out for.
    pub(crate) ran_out_bytes: Option<u64>,
    /// Seconds spent in earlier processes.
    pub(crate) wall_s: f64,
    /// An earlier process was stopped before the end.
    pub(crate) was_interrupted: bool,
}

impl History {
    pub(crate) fn steps_done(&self) -> u64 {
        self.steps.len() as u64
    }

    /// A process with this GPU and number of tokens goes on; whether they are what they were.
    pub(crate) fn goes_on_with(&mut self, gpu: Option<String>, tokens: Option<u64>) -> bool {
        let after_step = self.steps_done();
        let last = self.tokens_at_a_time.last().map(|last| last.tokens);
        let same = self.gpu == gpu && last == tokens;
        self.gpu = gpu;
        if let Some(tokens) = tokens.filter(|_| last != tokens) {
            self.tokens_at_a_time.retain(|from| from.after_step < after_step);
            self.tokens_at_a_time.push(TokensFrom { after_step, tokens });
        }
        same
    }

    /// The trained step with the lowest validation loss, the earlier one of equals. The loss before training is no candidate.
    pub(crate) fn best(&self) -> Option<Best> {
        let trained = self.validations.iter().filter(|v| v.step > 0);
        trained.fold(None, |best: Option<Best>, v| match best {
            Some(b) if b.loss <= v.loss => Some(b),
            _ => Some(Best { step: v.step, loss: v.loss }),
        })
    }

    /// Whether [`Self::best`] would be this validation, were it the next one.
    pub(crate) fn is_better(&self, next: &ValidationRecord) -> bool {
        next.step > 0 && self.best().is_none_or(|best| next.loss < best.loss)
    }
}

/// SHA-256 of each file of a folder with weights.
pub(super) type Digests = BTreeMap<String, String>;

/// [`History`] as it is stored: floats as their bits, since JSON readers may be off by one unit in the last place.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) fingerprint: String,
    /// By the name of the folder.
    pub(super) weights: BTreeMap<String, Digests>,
    optimizer_step: u64,
    table: BTreeMap<String, engine::Range>,
    /// step, epoch, loss, grad_norm, lr, label_tokens, tokens
    steps: Vec<[u64; 7]>,
    /// step, epoch, loss, label_tokens
    validations: Vec<[u64; 4]>,
    kept: Vec<u64>,
    gpu: Option<String>,
    tokens_at_a_time: Vec<TokensFrom>,
    ran_out_bytes: Option<u64>,
    wall_s: f64,
}

impl Stored {
    pub(super) fn new(
        fingerprint: &str,
        weights: BTreeMap<String, Digests>,
        history: &History,
        state: &TrainState,
    ) -> Self {
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
            weights,
            optimizer_step: state.step,
            table: state.table.clone(),
            steps: history.steps.iter().map(step).collect(),
            validations: history
                .validations
                .iter()
                .map(|v| [v.step, v.epoch, v.loss.to_bits(), v.label_tokens])
                .collect(),
            kept: history.kept.clone(),
            gpu: history.gpu.clone(),
            tokens_at_a_time: history.tokens_at_a_time.clone(),
            ran_out_bytes: history.ran_out_bytes,
            wall_s: history.wall_s,
        }
    }

    pub(super) fn history(&self) -> History {
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
            gpu: self.gpu.clone(),
            tokens_at_a_time: self.tokens_at_a_time.clone(),
            ran_out_bytes: self.ran_out_bytes,
            wall_s: self.wall_s,
            was_interrupted: true,
        }
    }
}

/// What stands in front of a state's slabs, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
}

/// The history of a state, without its slabs.
pub(super) fn header(path: &Path) -> Result<Stored, String> {
    let read = || {
        let mut file = File::open(path)?;
        let (mut length, mut bytes) = ([0; 8], Vec::new());
        file.read_exact(&mut length)?;
        file.take(u64::from_le_bytes(length).min(HEADER_MAX)).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|e: std::io::Error| e.to_string()).and_then(|bytes| history_in(&bytes))
}

fn history_in(header: &[u8]) -> Result<Stored, String> {
    parts_of(header).and_then(|(text, _)| serde_json::from_str(&text).map_err(|e| e.to_string()))
}

/// The history's text, and the hash that it and the slabs are to have.
fn parts_of(header: &[u8]) -> Result<(String, String), String> {
    let mut header: Header = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    let text = header.metadata.remove(HISTORY_KEY).ok_or("no history in it")?;
    Ok((text, header.metadata.remove(DIGEST_KEY).unwrap_or_default()))
}

pub(super) fn decode(bytes: &[u8]) -> Result<(Stored, TrainState), String> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let (length, rest) = bytes.split_first_chunk().ok_or("no header")?;
    let (text, sha256) = parts_of(&rest[..u64::from_le_bytes(*length) as usize])?;
    let [master, m, v] = SLABS.map(|name| tensors.tensor(name).map_err(|e| e.to_string()));
    let views = [master?, m?, v?];
    if views.iter().any(|v| v.dtype() != Dtype::F32) {
        return Err("slabs are not float32".to_owned());
    }
    if hash(views.each_ref().map(|view| [view.data()]), &text) != sha256 {
        return Err("its hash differs".to_owned());
    }
    let stored: Stored = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let [master, m, v] = [0, 1, 2].map(|i| floats(views[i].data()));
    let state = TrainState { step: stored.optimizer_step, master, m, v, table: stored.table.clone() };
    Ok((stored, state))
}

pub(super) fn le_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; size_of_val(values)];
    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
    bytes
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The hash of a state, its slabs in pieces.
pub(super) fn hash<P>(slabs: [P; 3], text: &str) -> String
where
    P: IntoIterator<Item: AsRef<[u8]>>,
{
    let mut hasher = Sha256::new();
    for piece in slabs.into_iter().flatten() {
        hasher.update(piece);
    }
    hasher.update(text);
    hex::encode(hasher.finalize())
}
