//! The factors `B` of many weights behind these weights, in one launch: `lora.cu`.

use super::{MODULES_MAX, SOURCE, THREADS, scalars_fit, up_weights, weights};
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::ops::{Check, bytes};
use crate::cuda::{Cost, CudaError, Dtype, Gpu, Tensor, Work};

/// Bytes of an entry on the device.
const ENTRY: usize = 72;

/// A weight's adapters: as the arguments of [`super::pack_b`], `B_m` in bfloat16, columns of the tail a multiple of 8.
#[derive(Debug, Clone)]
pub struct Packing {
    pub b: Vec<Tensor>,
    pub tail: Tensor,
    pub cols: Vec<(usize, usize)>,
}

impl Packing {
    /// Whether the launch for all takes it; others go one by one.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        let tail = &self.tail;
        tail.dtype() == Dtype::Bf16 && tail.cols().is_multiple_of(8) && tail.is_aligned(16)
    }

    fn check(&self, check: &Check) -> Result<usize, CudaError> {
        let tail = &self.tail;
        check.that(self.is_regular(), || "rows of the tail are not whole groups of 16 bytes".to_owned())?;
        let rank = up_weights(check, &self.b, &self.cols, tail.rows(), Some(Dtype::Bf16))?;
        let fits = tail.cols() >= self.b.len() * rank;
        check.that(fits, || format!("tail has {} columns for {}", tail.cols(), self.b.len() * rank))?;
        Ok(rank)
    }

    /// `PackEntry` of `lora.cu`.
    fn entry(&self, rank: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENTRY);
        for m in 0..MODULES_MAX {
            out.extend(self.b.get(m).map_or(0, Tensor::pointer).to_le_bytes());
        }
        out.extend(self.tail.pointer().to_le_bytes());
        let of = |m: usize| self.cols.get(m).copied().unwrap_or_default();
        let numbers = [self.tail.pitch(), self.tail.rows(), self.tail.cols(), rank];
        let starts = (0..MODULES_MAX).map(|m| of(m).0);
        let counts = (0..MODULES_MAX).map(|m| of(m).1);
        for number in numbers.into_iter().chain(starts).chain(counts) {
            out.extend((number as u32).to_le_bytes());
        }
        out
    }
}

/// Many of them, listed on the device.
#[derive(Debug)]
pub struct PackTable {
    entries: Vec<Packing>,
    table: Tensor,
}

impl PackTable {
    /// Checks the entries and lists them.
    ///
    /// # Errors
    /// When shapes or types do not fit, or the device fails.
    pub fn new(gpu: &Gpu, entries: Vec<Packing>) -> Result<Self, CudaError> {
        let check = Check::new("lora_pack_all");
        let mut all = Vec::with_capacity(entries.len() * ENTRY);
        for entry in &entries {
            all.extend(entry.entry(entry.check(&check)?));
        }
        let table = gpu.alloc(all.len(), "which adapters lie behind which weights")?;
        let table = table.dense(1, all.len(), Dtype::U8)?;
        table.upload_u8(&all)?;
        Ok(PackTable { entries, table })
    }

    /// Bytes of the list.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.cols()
    }

    /// As [`super::pack_b`] for each entry.
    ///
    /// # Errors
    /// When the scalars do not fit.
    pub fn pack(&self, scalars: &Tensor) -> Result<Work, CudaError> {
        scalars_fit(&Check::new("lora_pack_all"), scalars)?;
        let mut args = Args::new().tensor(&self.table).tensor(scalars);
        let (mut most, mut cost) = (0, Cost::default());
        for Packing { b, tail, .. } in &self.entries {
            args = b.iter().fold(args.keep(tail), Args::keep);
            most = most.max(tail.rows() * tail.cols() / 8);
            cost.bytes += bytes(&[tail]) + weights(b);
            cost.flops += (tail.rows() * tail.cols()) as f64;
        }
        let grid =
            Grid { blocks: [most.div_ceil(THREADS), self.entries.len(), 1], threads: THREADS, shared: 0 };
        Launch::prepare(self.table.memory().gpu(), &SOURCE, "lora_pack_all", grid, args, cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_as_long_as_the_struct_of_the_kernel() {
        assert_eq!(ENTRY, 8 * (MODULES_MAX + 1) + 4 * (4 + 2 * MODULES_MAX));
    }
}
