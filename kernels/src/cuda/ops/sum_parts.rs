//! Sum of partial results: `sum_parts.cu`.

use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Finish, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "sum_parts.cu", text: include_str!("../../../sum_parts.cu") };

/// `out = parts[0] + parts[1] + ... + addend + bias` in this order; `parts`: `P x (R C)` float32 without gaps, `out` and the
/// addend (which may be `out` itself): `R x C`, `bias`: `1 x C`, all float32 or all bfloat16.
///
/// # Errors
/// When shapes or types do not fit.
pub fn add(parts: &Tensor, out: &Tensor, finish: Finish<'_>) -> Result<Work, CudaError> {
    let check = Check::new("sum_parts");
    let size = out.rows() * out.cols();
    check.shape("parts", parts, parts.rows(), size)?;
    check.dtype("parts", parts, Dtype::F32)?;
    check.dense("parts", parts)?;
    check.float("out", out)?;
    check.that(parts.rows() > 0, || "there are no parts".to_owned())?;
    let Finish { addend, bias } = finish;
    addend.map_or(Ok(()), |addend| check.like("addend", addend, out))?;
    bias.map_or(Ok(()), |bias| {
        check.shape("bias", bias, 1, out.cols()).and_then(|()| check.dtype("bias", bias, out.dtype()))
    })?;
    let args = Args::new()
        .tensor(parts)
        .int(parts.rows())
        .long(size)
        .tensor(out)
        .int(out.pitch())
        .int(out.cols())
        .optional(addend)
        .int(addend.map_or(0, Tensor::pitch))
        .optional(bias);
    let again = addend.map_or(0.0, |addend| bytes(&[addend]));
    let cost = Cost { flops: (parts.rows() * size) as f64, bytes: bytes(&[parts, out]) + again };
    let name = format!("sum_parts_{}", out.dtype().suffix());
    Launch::prepare(out.memory().gpu(), &SOURCE, name, Grid::items(size, 256), args, cost)
}
