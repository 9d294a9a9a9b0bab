//! Sums over slices of tokens that wait to be added to gradients of adapters: `lora_sum.cu`.

use super::scalars_fit;
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::ops::Check;
use crate::cuda::{Cost, CudaError, Tensor, Work};

/// The kernel.
pub static SUM_SOURCE: Source = Source { name: "lora_sum.cu", text: include_str!("../../../../lora_sum.cu") };

/// Threads of a block, elements of a block, entries of a launch, 8-byte words of an entry.
const THREADS: usize = 256;
const BLOCK: usize = 4 * THREADS;
const ENTRIES: usize = 32;
const ENTRY: usize = 5;

/// What the sum of the slices is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    One,
    Kept,
    Scale,
}

/// A gradient and the slices of what is added to it.
#[derive(Debug, Clone)]
pub(super) struct Share {
    /// The first slice's first element; slices lie `stride` elements apart.
    pub parts: Tensor,
    pub stride: usize,
    pub slices: usize,
    /// Without gaps.
    pub target: Tensor,
    pub factor: Factor,
}

impl Share {
    fn count(&self) -> usize {
        self.target.rows() * self.target.cols()
    }

    /// `SumEntry` of `lora_sum.cu`.
    fn entry(&self, first: usize) -> [u64; ENTRY] {
        let wide = [self.count(), self.stride].iter().all(|n| n.is_multiple_of(4))
            && [&self.parts, &self.target].iter().all(|t| t.pointer().is_multiple_of(16));
        let factor = match self.factor {
            Factor::One => 0,
            Factor::Kept => 1,
            Factor::Scale => 2,
        };
        let pair = |low: usize, high: usize| u64::from(low as u32) | u64::from(high as u32) << 32;
        let [count, slices] = [pair(self.count(), self.stride), pair(self.slices, factor)];
        [self.parts.pointer(), self.target.pointer(), count, slices, pair(first, usize::from(wide))]
    }
}

/// What kernels left in their scratch memory: that memory must not change before [`Sums::take`] has run.
#[derive(Debug, Default)]
pub struct Sums {
    shares: Vec<Share>,
}

impl Sums {
    #[must_use]
    pub fn new() -> Self {
        Sums::default()
    }

    pub(super) fn push(&mut self, share: Share) {
        self.shares.push(share);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Adds everything to the gradients, in one launch for up to 32 of them; nothing waits any more.
    ///
    /// # Errors
    /// When the scalars do not fit, or the device fails.
    pub fn take(&mut self, scalars: &Tensor) -> Result<Vec<Work>, CudaError> {
        scalars_fit(&Check::new("lora_sum"), scalars)?;
        let shares = std::mem::take(&mut self.shares);
        shares.chunks(ENTRIES).map(|shares| launch(shares, scalars)).collect()
    }
}

fn launch(shares: &[Share], scalars: &Tensor) -> Result<Work, CudaError> {
    let (mut entries, mut first, mut cost) = ([0; ENTRIES * ENTRY], 0, Cost::default());
    for (entry, share) in entries.chunks_exact_mut(ENTRY).zip(shares) {
        entry.copy_from_slice(&share.entry(first));
        first += share.count().div_ceil(BLOCK);
        cost.flops += (share.slices * share.count()) as f64;
        cost.bytes += 4.0 * ((share.slices + 2) * share.count()) as f64;
    }
    let args = Args::new().words(&entries).int(shares.len()).tensor(scalars);
    let args = shares.iter().fold(args, |args, share| args.keep(&share.parts).keep(&share.target));
    Launch::prepare(scalars.memory().gpu(), &SUM_SOURCE, "lora_sum", Grid::line(first, THREADS), args, cost)
}
