//! Rows picked by an index: `rows.cu`.

use super::access::Walk;
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "rows.cu", text: include_str!("../../../rows.cu") };

/// An index that names no row.
pub const NONE: u32 = u32::MAX;

fn suffix(tensor: &Tensor) -> Result<&'static str, CudaError> {
    match tensor.dtype() {
        Dtype::Bf16 => Ok("b2"),
        Dtype::F32 | Dtype::U32 => Ok("b4"),
        Dtype::U8 => Err(CudaError::shape("rows", "rows of bytes are not copied")),
    }
}

/// `out[i] = x[index[i]]`; zeros where the index is [`NONE`] or beyond the rows. `x`: any rows `x C`, `out`: `R x C` of the
/// same type (not bytes), `index`: `R x 1` u32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn gather(x: &Tensor, index: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("gather");
    check.column("index", index, out.rows(), Dtype::U32)?;
    check.dtype("out", out, x.dtype())?;
    check.shape("out", out, out.rows(), x.cols())?;
    let walk = Walk::rows(&check, (out.rows(), out.cols()), &[x, out])?;
    let args = Args::new().tensor(x).int(x.pitch()).int(x.rows()).tensor(index).tensor(out).int(out.pitch());
    let cost = Cost { flops: 0.0, bytes: 2.0 * bytes(&[out]) + bytes(&[index]) };
    let name = format!("rows_gather_{}", suffix(x)?);
    Launch::prepare(out.memory().gpu(), &SOURCE, name, walk.grid(), walk.args(args), cost)
}

/// `out[index[i]] = x[i]`, skipped where the index is [`NONE`] or beyond the rows; other rows of `out` stay. No row may be
/// named twice.
///
/// # Errors
/// When shapes or types do not fit.
pub fn put(x: &Tensor, index: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("put");
    check.column("index", index, x.rows(), Dtype::U32)?;
    check.dtype("out", out, x.dtype())?;
    check.shape("out", out, out.rows(), x.cols())?;
    let walk = Walk::rows(&check, (x.rows(), x.cols()), &[x, out])?;
    let args =
        Args::new().tensor(x).int(x.pitch()).tensor(index).tensor(out).int(out.pitch()).int(out.rows());
    let cost = Cost { flops: 0.0, bytes: 2.0 * bytes(&[x]) + bytes(&[index]) };
    let name = format!("rows_put_{}", suffix(x)?);
    Launch::prepare(out.memory().gpu(), &SOURCE, name, walk.grid(), walk.args(args), cost)
}

/// Every element becomes 0, between gaps too.
///
/// # Errors
/// When the view holds bytes.
pub fn zero(out: &Tensor) -> Result<Work, CudaError> {
    if out.is_dense() {
        return Work::zero(out);
    }
    let check = Check::new("zero");
    let walk = Walk::rows(&check, (out.rows(), out.cols()), &[out])?;
    let args = Args::new().tensor(out).int(out.pitch());
    let name = format!("rows_zero_{}", suffix(out)?);
    let cost = Cost { flops: 0.0, bytes: bytes(&[out]) };
    Launch::prepare(out.memory().gpu(), &SOURCE, name, walk.grid(), walk.args(args), cost)
}

/// `d_x = 0`, then `d_x[index[i]] = d_out[i]`: the gradient of [`gather`] where no row is named twice. Two pieces of work, in
/// this order; [`scatter_inverse`] needs one.
///
/// # Errors
/// When shapes or types do not fit.
pub fn scatter(d_out: &Tensor, index: &Tensor, d_x: &Tensor) -> Result<[Work; 2], CudaError> {
    Ok([zero(d_x)?, put(d_out, index, d_x)?])
}

/// [`scatter`] in one pass over `d_x`: `inverse` (`rows of d_x x 1` u32) says which row of `d_out` each row takes, [`NONE`] for
/// zeros.
///
/// # Errors
/// When shapes or types do not fit.
pub fn scatter_inverse(d_out: &Tensor, inverse: &Tensor, d_x: &Tensor) -> Result<Work, CudaError> {
    gather(d_out, inverse, d_x)
}
