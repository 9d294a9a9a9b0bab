//! RMS norm: `rms_norm.cu`.

use super::access::{column_grid, group, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "rms_norm.cu", text: include_str!("../../../rms_norm.cu") };

/// Elements of a row that a thread holds, and threads of a block.
const HELD: usize = 32;
const THREADS: usize = 256;

/// Which kernels take rows of this width in such views, and blocks for all rows.
fn class(x: &Tensor, wide: bool) -> (&'static str, Grid) {
    let whole = wide && x.cols().is_multiple_of(group(&[x]));
    let (name, rows) = match (x.cols(), whole) {
        (cols, true) if cols <= 32 * HELD => ("warp", THREADS / 32),
        (cols, false) if cols <= 32 * HELD => ("warp_narrow", THREADS / 32),
        (cols, true) if cols <= THREADS * HELD => ("block", 1),
        (cols, false) if cols <= THREADS * HELD => ("block_narrow", 1),
        _ => ("long", 1),
    };
    (name, Grid::line(x.rows().div_ceil(rows), THREADS))
}

fn suffix(x: &Tensor, weight: &Tensor) -> String {
    format!("{}_{}", x.dtype().suffix(), weight.dtype().suffix())
}

/// `rstd = 1 / sqrt(mean(x^2) + eps)`, `out = x rstd weight`; `x`, `out`: `T x C`, `weight`: `1 x C`, `rstd`: `T x 1`
/// float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    out: &Tensor,
    rstd: &Tensor,
    eps: f32,
) -> Result<Work, CudaError> {
    let check = Check::new("rms_norm");
    operands(&check, x, weight, rstd)?;
    check.like("out", out, x)?;
    let wide = wide(&[x, weight, out]);
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(weight)
        .tensor(out)
        .int(out.pitch())
        .tensor(rstd)
        .int(x.rows())
        .int(x.cols())
        .float(eps)
        .int(usize::from(wide));
    let cost = Cost { flops: 4.0 * (x.rows() * x.cols()) as f64, bytes: bytes(&[x, weight, out, rstd]) };
    let (class, grid) = class(x, wide);
    Launch::prepare(
        x.memory().gpu(),
        &SOURCE,
        format!("rms_norm_{class}_{}", suffix(x, weight)),
        grid,
        args,
        cost,
    )
}

/// What goes into [`forward_add`], `T x C` each.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a> {
    pub x: &'a Tensor,
    pub addend: &'a Tensor,
    /// `x + addend`, rounded to its type; may be the view `x` or `addend`.
    pub sum: &'a Tensor,
}

/// `sum = x + addend`, then [`forward`] of `sum`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward_add(
    residual: Residual<'_>,
    weight: &Tensor,
    out: &Tensor,
    rstd: &Tensor,
    eps: f32,
) -> Result<Work, CudaError> {
    let check = Check::new("rms_norm_add");
    let Residual { x, addend, sum } = residual;
    operands(&check, x, weight, rstd)?;
    for (what, tensor) in [("addend", addend), ("sum", sum), ("out", out)] {
        check.like(what, tensor, x)?;
    }
    let wide = wide(&[x, addend, sum, weight, out]);
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(addend)
        .int(addend.pitch())
        .tensor(sum)
        .int(sum.pitch())
        .tensor(weight)
        .tensor(out)
        .int(out.pitch())
        .tensor(rstd)
        .int(x.rows())
        .int(x.cols())
        .float(eps)
        .int(usize::from(wide));
    let cost = Cost {
        flops: 5.0 * (x.rows() * x.cols()) as f64,
        bytes: bytes(&[x, addend, sum, weight, out, rstd]),
    };
    let (class, grid) = class(x, wide);
    let name = format!("rms_norm_add_{class}_{}", suffix(x, weight));
    Launch::prepare(x.memory().gpu(), &SOURCE, name, grid, args, cost)
}

/// `d_x = rstd (d_out w - x rstd^2 mean(x d_out w))`, added to `d_x` with `accumulate`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    d_out: &Tensor,
    d_x: &Tensor,
    accumulate: bool,
) -> Result<Work, CudaError> {
    let check = Check::new("rms_norm_grad");
    operands(&check, x, weight, rstd)?;
    check.like("d_out", d_out, x)?;
    check.like("d_x", d_x, x)?;
    let wide = wide(&[x, weight, d_out, d_x]);
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(weight)
        .tensor(rstd)
        .tensor(d_out)
        .int(d_out.pitch())
        .tensor(d_x)
        .int(d_x.pitch())
        .int(x.rows())
        .int(x.cols())
        .int(usize::from(accumulate))
        .int(usize::from(wide));
    let again = if accumulate { bytes(&[d_x]) } else { 0.0 };
    let cost = Cost {
        flops: 8.0 * (x.rows() * x.cols()) as f64,
        bytes: bytes(&[x, weight, rstd, d_out, d_x]) + again,
    };
    let (class, grid) = class(x, wide);
    let name = format!("rms_norm_grad_{class}_{}", suffix(x, weight));
    Launch::prepare(x.memory().gpu(), &SOURCE, name, grid, args, cost)
}

/// `d_weight += sum over rows of d_out x rstd`; `d_weight`: `1 x C` float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn weight_grad(x: &Tensor, rstd: &Tensor, d_out: &Tensor, d_weight: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("rms_norm_weight_grad");
    operands(&check, x, d_weight, rstd)?;
    check.dtype("d_weight", d_weight, Dtype::F32)?;
    check.like("d_out", d_out, x)?;
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(rstd)
        .tensor(d_out)
        .int(d_out.pitch())
        .tensor(d_weight)
        .int(x.rows())
        .int(x.cols())
        .int(usize::from(wide(&[x, d_out])));
    let cost = Cost { flops: 3.0 * (x.rows() * x.cols()) as f64, bytes: bytes(&[x, rstd, d_out, d_weight]) };
    let name = format!("rms_norm_weight_grad_{}", x.dtype().suffix());
    Launch::prepare(x.memory().gpu(), &SOURCE, name, column_grid(x.cols(), group(&[x])), args, cost)
}

fn operands(check: &Check, x: &Tensor, weight: &Tensor, rstd: &Tensor) -> Result<(), CudaError> {
    check.float("x", x)?;
    check.cols(x.cols())?;
    check.shape("weight", weight, 1, x.cols())?;
    let pair = matches!(
        (x.dtype(), weight.dtype()),
        (Dtype::F32, Dtype::F32) | (Dtype::Bf16, Dtype::Bf16 | Dtype::F32)
    );
    check.that(pair, || format!("x is {:?} and weight {:?}", x.dtype(), weight.dtype()))?;
    check.column("rstd", rstd, x.rows(), Dtype::F32)
}
