//! Cross-entropy and the sum of losses: `cross_entropy.cu`.

use super::access::{group, row_threads, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source =
    Source { name: "cross_entropy.cu", text: include_str!("../../../cross_entropy.cu") };

/// The label of a row without a loss.
pub const NONE: u32 = u32::MAX;

/// `loss = lse(logits) - logits[label]`; with `gradient`, `logits` become `(softmax - onehot) inv_labels`, `inv_labels` from
/// `scalars`. `logits`: `R x V` float32 or bfloat16, `labels`: `R x 1` u32, `loss`: `R x 1` float32. Rows with the label
/// [`NONE`] have no loss and a gradient of zeros; a label beyond the columns makes its loss NaN.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward(
    logits: &Tensor,
    labels: &Tensor,
    loss: &Tensor,
    scalars: &Tensor,
    gradient: bool,
) -> Result<Work, CudaError> {
    let check = Check::new("cross_entropy");
    check.float("logits", logits)?;
    check.cols(logits.cols())?;
    check.column("labels", labels, logits.rows(), Dtype::U32)?;
    check.column("loss", loss, logits.rows(), Dtype::F32)?;
    check.scalars(scalars)?;
    let args = Args::new()
        .tensor(logits)
        .int(logits.pitch())
        .tensor(labels)
        .tensor(loss)
        .tensor(scalars)
        .int(logits.cols())
        .int(usize::from(gradient))
        .int(usize::from(wide(&[logits])));
    let passes = if gradient { 3.0 } else { 1.0 };
    let cost = Cost {
        flops: 4.0 * (logits.rows() * logits.cols()) as f64,
        bytes: passes * bytes(&[logits]) + bytes(&[labels, loss]),
    };
    let grid = Grid::line(logits.rows(), row_threads(logits.cols(), group(&[logits]), 512));
    let name = format!("cross_entropy_{}", logits.dtype().suffix());
    Launch::prepare(logits.memory().gpu(), &SOURCE, name, grid, args, cost)
}

/// `sum = sum of losses`, in float64 and a fixed order, rounded once; `losses`: `R x 1`, `sum`: `1 x 1` float32. A sum that is
/// not finite sets `flag` (`1 x 1` u32) to 1.
///
/// # Errors
/// When shapes or types do not fit.
pub fn sum_loss(losses: &Tensor, sum: &Tensor, flag: Option<&Tensor>) -> Result<Work, CudaError> {
    let check = Check::new("sum_loss");
    check.column("losses", losses, losses.rows(), Dtype::F32)?;
    check.column("sum", sum, 1, Dtype::F32)?;
    check.flag(flag)?;
    let args = Args::new().tensor(losses).int(losses.rows()).tensor(sum).optional(flag);
    let cost = Cost { flops: losses.rows() as f64, bytes: bytes(&[losses, sum]) };
    Launch::prepare(sum.memory().gpu(), &SOURCE, "sum_loss", Grid::line(1, 1024), args, cost)
}
