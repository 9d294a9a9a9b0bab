//! Tokens chosen on the device: a few words of each row come and go instead of its logits.

use kernels::cuda::{CudaError, Dtype, Gpu, Memory, Pinned, Tensor, Work, ops::sample};
use kernels::sample::{Draw, WORDS};

/// Room for the draws and the tokens of some rows, on both sides.
#[derive(Debug)]
pub(super) struct Choices {
    memory: Memory,
    host: Pinned,
    rows: usize,
}

impl Choices {
    pub(super) fn new(gpu: &Gpu, rows: usize) -> Result<Self, CudaError> {
        let bytes = rows * (WORDS + 1) * 4;
        Ok(Choices { memory: gpu.alloc(bytes, "draws of tokens")?, host: gpu.pinned(bytes)?, rows })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// The work on all rows of `logits`, and where its tokens come to lie. The first call compiles the kernel.
    pub(super) fn work(&self, logits: &Tensor) -> Result<(Work, Tensor), CudaError> {
        let rows = logits.rows();
        let given = self.memory.dense(rows, WORDS, Dtype::U32)?;
        let ids = self.memory.tensor(rows * WORDS * 4, (rows, 1), 1, Dtype::U32)?;
        Ok((sample::choose(logits, &given, &ids)?, ids))
    }

    /// The tokens of as many rows of logits as there are draws. Waits for them.
    pub(super) fn make(
        &mut self,
        gpu: &Gpu,
        logits: &Tensor,
        draws: &[Draw],
    ) -> Result<Vec<Option<u32>>, CudaError> {
        let rows = draws.len();
        let words = draws.iter().flat_map(Draw::words);
        // Nothing reads the host's memory any more: the last call has waited.
        for (target, word) in self.host.as_mut_slice().as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *target = word.to_le_bytes();
        }
        let bytes = rows * WORDS * 4;
        self.host.copy_to(bytes, &self.memory, 0)?;
        let (work, ids) = self.work(logits)?;
        work.run()?;
        self.host.copy_from(bytes, &ids, rows * 4)?;
        gpu.synchronize()?;
        let found = self.host.as_slice()[bytes..].as_chunks::<4>().0.iter().take(rows);
        let found = found.map(|b| u32::from_le_bytes(*b));
        Ok(found.map(|id| (id != sample::NONE).then_some(id)).collect())
    }
}
