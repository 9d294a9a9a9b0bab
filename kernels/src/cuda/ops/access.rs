//! How kernels reach elements: `groups.cuh`.

use super::{Check, StepScalars};
use crate::cuda::launch::{Args, Grid};
use crate::cuda::{CudaError, Dtype, Tensor};

/// Threads of a block that walks groups.
const THREADS: usize = 256;
/// Groups that a thread takes.
const ITEMS: usize = 2;
/// Columns that offsets inside a row are computed for.
const COLS_MAX: usize = 1 << 30;

/// Elements of a group: 16 bytes of the largest type.
pub(super) fn group(tensors: &[&Tensor]) -> usize {
    16 / tensors.iter().map(|t| t.dtype().bytes()).max().unwrap_or(4)
}

/// Every row of every view starts at a multiple of 16 bytes.
pub(super) fn wide(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.is_aligned(16))
}

/// Threads of a block that takes a row, at most `most`: four groups of `group` elements each.
pub(super) fn row_threads(cols: usize, group: usize, most: usize) -> usize {
    cols.div_ceil(4 * group).next_multiple_of(32).clamp(32, most)
}

/// Blocks of `column_sums`.
pub(super) fn column_grid(cols: usize, group: usize) -> Grid {
    Grid::line(cols.div_ceil(2 * group), 1024)
}

/// Groups of the rows of some views, dealt out to threads.
#[derive(Debug)]
pub(super) struct Walk {
    cols: usize,
    groups: usize,
    total: usize,
    wide: bool,
}

impl Walk {
    /// Row by row.
    pub(super) fn rows(
        check: &Check,
        (rows, cols): (usize, usize),
        tensors: &[&Tensor],
    ) -> Result<Self, CudaError> {
        Self::new(check, (rows, cols), group(tensors), wide(tensors))
    }

    /// Views of one shape; as one long row where none has gaps.
    pub(super) fn elements(check: &Check, tensors: &[&Tensor]) -> Result<Self, CudaError> {
        let (rows, cols) = tensors.first().map_or((0, 0), |t| (t.rows(), t.cols()));
        if tensors.iter().all(|t| t.is_dense()) && rows * cols <= COLS_MAX {
            let wide = tensors.iter().all(|t| t.pointer().is_multiple_of(16));
            return Self::new(check, (1, rows * cols), group(tensors), wide);
        }
        Self::rows(check, (rows, cols), tensors)
    }

    fn new(check: &Check, (rows, cols): (usize, usize), group: usize, wide: bool) -> Result<Self, CudaError> {
        check.cols(cols)?;
        let groups = cols.div_ceil(group).max(1);
        let total = if cols == 0 { 0 } else { rows * groups };
        check.that(total < 1 << 31, || format!("{rows} x {cols} elements are too many for one launch"))?;
        Ok(Walk { cols, groups, total, wide })
    }

    /// Element by element, unless something else is aligned too.
    pub(super) fn narrow_unless(self, aligned: bool) -> Self {
        Walk { wide: self.wide && aligned, ..self }
    }

    /// The last four arguments of such a kernel: columns, walk, divisor, wide.
    pub(super) fn args(&self, args: Args) -> Args {
        args.int(self.cols)
            .long(self.total | (self.groups << 32))
            .long(divisor(self.groups as u32) as usize)
            .int(usize::from(self.wide))
    }

    pub(super) fn grid(&self) -> Grid {
        Grid::items(self.total.div_ceil(ITEMS), THREADS)
    }
}

/// `Divisor` of `groups.cuh`: factor in the low half, shift in the high half.
fn divisor(d: u32) -> u64 {
    let shift = u64::from(d).next_power_of_two().trailing_zeros();
    let factor = ((1u64 << 32) * ((1u64 << shift) - u64::from(d)) / u64::from(d)) + 1;
    factor | (u64::from(shift) << 32)
}

impl Check {
    /// Offsets inside a row fit the kernels' 32 bits.
    pub(super) fn cols(&self, cols: usize) -> Result<(), CudaError> {
        self.that(cols <= COLS_MAX, || format!("{cols} columns; at most {COLS_MAX}"))
    }

    /// `what` is a column of indices or numbers without gaps.
    pub(super) fn column(
        &self,
        what: &str,
        tensor: &Tensor,
        rows: usize,
        dtype: Dtype,
    ) -> Result<(), CudaError> {
        self.shape(what, tensor, rows, 1)?;
        self.dtype(what, tensor, dtype)?;
        self.dense(what, tensor)
    }

    /// `what` has the shape and the type of `model`.
    pub(super) fn like(&self, what: &str, tensor: &Tensor, model: &Tensor) -> Result<(), CudaError> {
        self.shape(what, tensor, model.rows(), model.cols())?;
        self.dtype(what, tensor, model.dtype())
    }

    /// [`StepScalars`] on the device: `1 x 72` bytes.
    pub(super) fn scalars(&self, tensor: &Tensor) -> Result<(), CudaError> {
        self.shape("scalars", tensor, 1, StepScalars::BYTES)?;
        self.dtype("scalars", tensor, Dtype::U8)?;
        self.that(tensor.is_aligned(8), || "scalars do not start at a multiple of 8 bytes".to_owned())
    }

    /// A flag of one u32, when there is one.
    pub(super) fn flag(&self, flag: Option<&Tensor>) -> Result<(), CudaError> {
        flag.map_or(Ok(()), |flag| self.column("flag", flag, 1, Dtype::U32))
    }
}

#[cfg(test)]
mod tests {
    use super::divisor;

    #[test]
    fn multiplication_divides() {
        let divide = |n: u32, d: u32| {
            let packed = divisor(d);
            let (factor, shift) = (packed & 0xFFFF_FFFF, packed >> 32);
            (((u64::from(n) * factor) >> 32) as u32 + n) >> shift
        };
        for d in (1..2000u32).chain([4864, 18_992, 37_984, 65_535, 65_536, 65_537, (1 << 28) - 1, 1 << 28]) {
            let edges = (0..50u32)
                .map(|k| d.saturating_mul(k).min(1 << 31))
                .flat_map(|n| [n.saturating_sub(1), n, n + 1]);
            let large = (0..50u32).map(|k| (1 << 31) - 1 - k * 7919);
            for n in edges.chain(large).filter(|&n| n < 1 << 31) {
                assert_eq!(divide(n, d), n / d, "{n} / {d}");
            }
        }
    }
}
