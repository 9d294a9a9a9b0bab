//! The choice of tokens: `sample.cu`.

use super::access::wide;
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};
use crate::sample::{MOST_LOGITS, WORDS};

/// The kernels.
pub static SOURCE: Source = Source { name: "sample.cu", text: include_str!("../../../sample.cu") };

/// No token.
pub const NONE: u32 = u32::MAX;

/// Threads of a block, which takes a row.
const THREADS: usize = 1024;

/// `ids[i]` = what [`crate::sample::choose`] chooses from row `i`, [`NONE`] where it chooses nothing. `logits`: `R x V` float32
/// or bfloat16, at most [`MOST_LOGITS`] columns; `draws`: `R x 8` u32, [`crate::sample::Draw::words`] of each row; `ids`:
/// `R x 1` u32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn choose(logits: &Tensor, draws: &Tensor, ids: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("choose");
    check.float("logits", logits)?;
    check
        .that(logits.cols() <= MOST_LOGITS, || format!("{} columns; at most {MOST_LOGITS}", logits.cols()))?;
    check.shape("draws", draws, logits.rows(), WORDS)?;
    check.dtype("draws", draws, Dtype::U32)?;
    check.dense("draws", draws)?;
    check.that(draws.is_aligned(8), || "draws do not start at a multiple of 8 bytes".to_owned())?;
    check.column("ids", ids, logits.rows(), Dtype::U32)?;
    let args = Args::new()
        .tensor(logits)
        .int(logits.pitch())
        .tensor(draws)
        .tensor(ids)
        .int(logits.cols())
        .int(usize::from(wide(&[logits])));
    let cost = Cost { flops: 0.0, bytes: bytes(&[logits, draws, ids]) };
    let name = format!("choose_{}", logits.dtype().suffix());
    Launch::prepare(logits.memory().gpu(), &SOURCE, name, Grid::line(logits.rows(), THREADS), args, cost)
}
