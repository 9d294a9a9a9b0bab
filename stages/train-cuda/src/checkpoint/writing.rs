//! A state on its way to the disk, by a thread of its own: hashing and writing some hundred MB takes as long as ten steps.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use engine::TrainState;
use safetensors::tensor::{Dtype, View};
use stage_kit::{Result, StageError};

use super::state::{DIGEST_KEY, HISTORY_KEY, SLABS, hash, le_bytes};
use super::{Saved, sync};

/// The thread that writes, and what it writes.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) saved: Saved,
    /// A loss that was computed with its weights, or later ones, has come out well in the meantime.
    pub(super) is_good: bool,
    thread: JoinHandle<Result<()>>,
}

impl Writing {
    /// Starts to write `state` and the text of its history into `file`.
    ///
    /// # Errors
    /// When the system starts no thread.
    pub(super) fn start(file: PathBuf, saved: Saved, history: String, state: TrainState) -> Result<Self> {
        let at = file.clone();
        let thread = thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || write(&file, history, &state))
            .map_err(|e| StageError::io("start the thread that writes", &at, e))?;
        Ok(Self { saved, is_good: false, thread })
    }

    pub(super) fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until all of it is on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn wait(self) -> Result<()> {
        let panicked = |_| Err(StageError::internal("the thread that writes a checkpoint panicked"));
        self.thread.join().unwrap_or_else(panicked)
    }
}

/// A slab as a tensor, its bytes made when they are written.
struct Slab<'s> {
    values: &'s [f32],
    shape: [usize; 1],
}

impl View for Slab<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        le_bytes(self.values).into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

fn write(file: &Path, history: String, state: &TrainState) -> Result<()> {
    let slabs = [&state.master[..], &state.m, &state.v];
    let digest = hash(slabs.map(|values| values.chunks(1 << 18).map(le_bytes)), &history);
    let metadata = HashMap::from([(DIGEST_KEY.to_owned(), digest), (HISTORY_KEY.to_owned(), history)]);
    let views = SLABS.iter().zip(slabs).map(|(name, values)| (*name, Slab { values, shape: [values.len()] }));
    safetensors::serialize_to_file(views, Some(metadata), file).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => StageError::io("write the checkpoint", file, e),
        e => StageError::internal(format!("can't write the checkpoint: {e}")).at(file.display().to_string()),
    })?;
    sync(file)
}
