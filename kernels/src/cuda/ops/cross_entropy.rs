//! Cross-entropy and the sum of losses: `cross_entropy.cu`.

use super::access::{group, row_threads, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source =
    Source { name: "cross_entropy.cu", text: include_str!("../../../cross_entropy.cu") };

/// Bytes of a group of elements, and at most of what the kernel declares as shared memory itself.
const GROUP_BYTES: usize = 16;
const STATIC_SHARED: usize = 1024;
/// Threads that a multiprocessor holds.
const THREADS_AT_ONCE: usize = 2048;

/// The label of a row without a loss.
pub const NONE: u32 = u32::MAX;

/// `loss = lse(logits) - logits[label]`; with `gradient`, `logits` become `softmax - onehot`, the gradient of the sum of losses.
/// `logits`: `R x V` float32 or bfloat16, `labels`: `R x 1` u32, `loss`: `R x 1` float32. Rows with the label
/// [`NONE`] have no loss and a gradient of zeros; a label beyond the columns makes its loss NaN.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward(logits: &Tensor, labels: &Tensor, loss: &Tensor, gradient: bool) -> Result<Work, CudaError> {
    let check = Check::new("cross_entropy");
    check.float("logits", logits)?;
    check.cols(logits.cols())?;
    check.column("labels", labels, logits.rows(), Dtype::U32)?;
    check.column("loss", loss, logits.rows(), Dtype::F32)?;
    let group = group(&[logits]);
    let threads = row_threads(logits.cols(), group, if gradient { 1024 } else { 512 });
    let keep = if gradient { kept(logits, threads, group) } else { 0 };
    let args = Args::new()
        .tensor(logits)
        .int(logits.pitch())
        .tensor(labels)
        .tensor(loss)
        .int(logits.rows())
        .int(logits.cols())
        .int(usize::from(gradient))
        .int(keep)
        .int(usize::from(wide(&[logits])));
    let passes = if gradient { 2.0 } else { 1.0 };
    let cost = Cost {
        flops: 4.0 * (logits.rows() * logits.cols()) as f64,
        bytes: passes * bytes(&[logits]) + bytes(&[labels, loss]),
    };
    let shared = keep * threads * GROUP_BYTES;
    let grid = Grid { shared, ..Grid::line(logits.rows().min(at_once(logits, threads, shared)), threads) };
    let name = format!("cross_entropy_{}", logits.dtype().suffix());
    Launch::prepare(logits.memory().gpu(), &SOURCE, name, grid, args, cost)
}

/// Groups of a row that each thread keeps in shared memory between its two reads.
fn kept(logits: &Tensor, threads: usize, group: usize) -> usize {
    if !wide(&[logits]) || !logits.cols().is_multiple_of(group) {
        return 0;
    }
    let room = logits.memory().gpu().properties().shared_per_block as usize;
    let most = room.saturating_sub(STATIC_SHARED) / (threads * GROUP_BYTES);
    logits.cols().div_ceil(threads * group).min(most)
}

/// Blocks that run at once; each takes several rows where it keeps some of them.
fn at_once(logits: &Tensor, threads: usize, shared: usize) -> usize {
    if shared == 0 {
        return usize::MAX;
    }
    let device = logits.memory().gpu().properties();
    let room = device.shared_per_block as usize + STATIC_SHARED;
    let each = (room / (shared + 2 * STATIC_SHARED)).clamp(1, THREADS_AT_ONCE.div_ceil(threads));
    device.multiprocessors as usize * each
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
