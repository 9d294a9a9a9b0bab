//! Softmax: `softmax.cu`.

use super::access::{group, row_threads, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "softmax.cu", text: include_str!("../../../softmax.cu") };

fn grid(x: &Tensor) -> Grid {
    Grid::line(x.rows(), row_threads(x.cols(), group(&[x]), 512))
}

/// `out = softmax(x)` over each row; both `T x C`, float32 or bfloat16.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward(x: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("softmax");
    check.float("x", x)?;
    check.cols(x.cols())?;
    check.like("out", out, x)?;
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(out)
        .int(out.pitch())
        .int(x.cols())
        .int(usize::from(wide(&[x, out])));
    let cost = Cost { flops: 5.0 * (x.rows() * x.cols()) as f64, bytes: bytes(&[x, x, out]) };
    let name = format!("softmax_{}", x.dtype().suffix());
    Launch::prepare(x.memory().gpu(), &SOURCE, name, grid(x), args, cost)
}

/// `d_x = out (d_out - sum(out d_out))`; all `T x C` of one type.
///
/// # Errors
/// When shapes or types do not fit.
pub fn backward(out: &Tensor, d_out: &Tensor, d_x: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("softmax_grad");
    check.float("out", out)?;
    check.cols(out.cols())?;
    check.like("d_out", d_out, out)?;
    check.like("d_x", d_x, out)?;
    let args = Args::new()
        .tensor(out)
        .int(out.pitch())
        .tensor(d_out)
        .int(d_out.pitch())
        .tensor(d_x)
        .int(d_x.pitch())
        .int(out.cols())
        .int(usize::from(wide(&[out, d_out, d_x])));
    let cost = Cost { flops: 4.0 * (out.rows() * out.cols()) as f64, bytes: bytes(&[out, d_out, d_x]) };
    let name = format!("softmax_grad_{}", out.dtype().suffix());
    Launch::prepare(out.memory().gpu(), &SOURCE, name, grid(out), args, cost)
}
