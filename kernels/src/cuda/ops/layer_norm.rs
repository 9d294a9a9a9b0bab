//! Layer norm: `layer_norm.cu`.

use super::access::{column_grid, group, row_threads, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "layer_norm.cu", text: include_str!("../../../layer_norm.cu") };

/// What the forward keeps of each row, `T x 1` float32.
#[derive(Debug, Clone, Copy)]
pub struct Statistics<'a> {
    pub mean: &'a Tensor,
    /// `1 / sqrt(variance + eps)`.
    pub rstd: &'a Tensor,
}

fn operands(check: &Check, x: &Tensor, statistics: Statistics<'_>) -> Result<(), CudaError> {
    check.float("x", x)?;
    check.cols(x.cols())?;
    check.column("mean", statistics.mean, x.rows(), Dtype::F32)?;
    check.column("rstd", statistics.rstd, x.rows(), Dtype::F32)
}

fn vector(check: &Check, what: &str, tensor: &Tensor, x: &Tensor) -> Result<(), CudaError> {
    check.shape(what, tensor, 1, x.cols())?;
    check.dtype(what, tensor, x.dtype())
}

fn grid(x: &Tensor) -> Grid {
    Grid::line(x.rows(), row_threads(x.cols(), group(&[x]), 256))
}

/// `out = (x - mean) rstd weight + bias`; `x`, `out`: `T x C`, `weight`, `bias`: `1 x C`, all of one type.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    out: &Tensor,
    statistics: Statistics<'_>,
    eps: f32,
) -> Result<Work, CudaError> {
    let check = Check::new("layer_norm");
    operands(&check, x, statistics)?;
    vector(&check, "weight", weight, x)?;
    vector(&check, "bias", bias, x)?;
    check.like("out", out, x)?;
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(weight)
        .tensor(bias)
        .tensor(out)
        .int(out.pitch())
        .tensor(statistics.mean)
        .tensor(statistics.rstd)
        .int(x.cols())
        .float(eps)
        .int(usize::from(wide(&[x, weight, bias, out])));
    let cost = Cost { flops: 7.0 * (x.rows() * x.cols()) as f64, bytes: bytes(&[x, weight, bias, out]) };
    let name = format!("layer_norm_{}", x.dtype().suffix());
    Launch::prepare(x.memory().gpu(), &SOURCE, name, grid(x), args, cost)
}

/// `d_x = rstd (d_out w - mean(d_out w) - n mean(d_out w n))` with `n = (x - mean) rstd`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    statistics: Statistics<'_>,
    d_out: &Tensor,
    d_x: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("layer_norm_grad");
    operands(&check, x, statistics)?;
    vector(&check, "weight", weight, x)?;
    check.like("d_out", d_out, x)?;
    check.like("d_x", d_x, x)?;
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(weight)
        .tensor(statistics.mean)
        .tensor(statistics.rstd)
        .tensor(d_out)
        .int(d_out.pitch())
        .tensor(d_x)
        .int(d_x.pitch())
        .int(x.cols())
        .int(usize::from(wide(&[x, weight, d_out, d_x])));
    let cost = Cost { flops: 12.0 * (x.rows() * x.cols()) as f64, bytes: bytes(&[x, weight, d_out, d_x]) };
    let name = format!("layer_norm_grad_{}", x.dtype().suffix());
    Launch::prepare(x.memory().gpu(), &SOURCE, name, grid(x), args, cost)
}

/// `d_weight += sum over rows of d_out (x - mean) rstd`, `d_bias += sum over rows of d_out`; both `1 x C` float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn weight_grad(
    x: &Tensor,
    statistics: Statistics<'_>,
    d_out: &Tensor,
    d_weight: &Tensor,
    d_bias: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("layer_norm_weight_grad");
    operands(&check, x, statistics)?;
    check.like("d_out", d_out, x)?;
    for (what, tensor) in [("d_weight", d_weight), ("d_bias", d_bias)] {
        check.shape(what, tensor, 1, x.cols())?;
        check.dtype(what, tensor, Dtype::F32)?;
    }
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(statistics.mean)
        .tensor(statistics.rstd)
        .tensor(d_out)
        .int(d_out.pitch())
        .tensor(d_weight)
        .tensor(d_bias)
        .int(x.rows())
        .int(x.cols())
        .int(usize::from(wide(&[x, d_out])));
    let cost = Cost { flops: 5.0 * (x.rows() * x.cols()) as f64, bytes: bytes(&[x, d_out]) };
    let name = format!("layer_norm_weight_grad_{}", x.dtype().suffix());
    Launch::prepare(x.memory().gpu(), &SOURCE, name, column_grid(x.cols(), group(&[x])), args, cost)
}
