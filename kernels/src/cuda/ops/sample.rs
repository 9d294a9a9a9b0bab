//! Greedy choice: `sample.cu`.

use super::access::{group, row_threads, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "sample.cu", text: include_str!("../../../sample.cu") };

/// No choice: a logit of the row is NaN, or none is allowed.
pub const NONE: u32 = u32::MAX;

/// `ids[i]` = the lowest column below `banned_from` with the greatest logit, [`NONE`] when one of these is NaN. `logits`:
/// `R x V` float32 or bfloat16, `ids`: `R x 1` u32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn argmax(logits: &Tensor, banned_from: Option<u32>, ids: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("argmax");
    check.float("logits", logits)?;
    check.cols(logits.cols())?;
    check.column("ids", ids, logits.rows(), Dtype::U32)?;
    let allowed = banned_from.map_or(logits.cols(), |id| (id as usize).min(logits.cols()));
    let args = Args::new()
        .tensor(logits)
        .int(logits.pitch())
        .tensor(ids)
        .int(allowed)
        .int(usize::from(wide(&[logits])));
    let cost = Cost { flops: 0.0, bytes: bytes(&[logits, ids]) };
    let grid = Grid::line(logits.rows(), row_threads(allowed, group(&[logits]), 1024));
    let name = format!("argmax_{}", logits.dtype().suffix());
    Launch::prepare(logits.memory().gpu(), &SOURCE, name, grid, args, cost)
}
