//! Sum of partial results: `sum_parts.cu`.

use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "sum_parts.cu", text: include_str!("../../../sum_parts.cu") };

/// `out = parts[0] + parts[1] + ...` in this order, added to `out` with `accumulate`; `parts`: `P x (R C)` float32 without
/// gaps, `out`: `R x C`, float32 or bfloat16.
///
/// # Errors
/// When shapes or types do not fit.
pub fn add(parts: &Tensor, out: &Tensor, accumulate: bool) -> Result<Work, CudaError> {
    let check = Check::new("sum_parts");
    let size = out.rows() * out.cols();
    check.shape("parts", parts, parts.rows(), size)?;
    check.dtype("parts", parts, Dtype::F32)?;
    check.dense("parts", parts)?;
    check.float("out", out)?;
    check.that(parts.rows() > 0, || "there are no parts".to_owned())?;
    let args = Args::new()
        .tensor(parts)
        .int(parts.rows())
        .long(size)
        .tensor(out)
        .int(out.pitch())
        .int(out.cols())
        .int(usize::from(accumulate));
    let again = if accumulate { bytes(&[out]) } else { 0.0 };
    let cost = Cost { flops: (parts.rows() * size) as f64, bytes: bytes(&[parts, out]) + again };
    let name = format!("sum_parts_{}", out.dtype().suffix());
    Launch::prepare(out.memory().gpu(), &SOURCE, name, Grid::items(size, 256), args, cost)
}
