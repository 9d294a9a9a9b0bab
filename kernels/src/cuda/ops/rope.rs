//! Rotary position embedding: `rope.cu`.

use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "rope.cu", text: include_str!("../../../rope.cu") };

/// Rotates the halves `(i, i + dim/2)` of every head of `x` by the angle of its row's position, in place; back with
/// `inverse`. `x`: `T x n*dim`, float32 or bfloat16; `positions`: `T x 1` u32; `table`: `P x dim` float32, `dim/2` cosines,
/// then `dim/2` sines. A position of `P` or more takes the last row.
///
/// # Errors
/// When shapes or types do not fit.
pub fn apply(
    x: &Tensor,
    positions: &Tensor,
    table: &Tensor,
    dim: usize,
    inverse: bool,
) -> Result<Work, CudaError> {
    let check = Check::new("rope");
    check.float("x", x)?;
    let whole = dim > 0 && dim.is_multiple_of(2) && x.cols().is_multiple_of(dim);
    check.that(whole, || format!("{} columns are not heads of {dim}, an even number", x.cols()))?;
    check.shape("positions", positions, x.rows(), 1)?;
    check.dtype("positions", positions, Dtype::U32)?;
    check.dense("positions", positions)?;
    check.shape("table", table, table.rows(), dim)?;
    check.dtype("table", table, Dtype::F32)?;
    check.dense("table", table)?;
    check.that(table.rows() > 0, || "the table is empty".to_owned())?;
    let (heads, half) = (x.cols() / dim, dim / 2);
    let pack = 16 / x.dtype().bytes();
    let wide = half.is_multiple_of(pack) && x.is_aligned(16) && table.is_aligned(16);
    let items = x.rows() * heads * half / if wide { pack } else { 1 };
    check.that(items < 1 << 30, || format!("{} x {} is too large", x.rows(), x.cols()))?;
    let args = Args::new()
        .tensor(x)
        .int(x.pitch())
        .tensor(positions)
        .tensor(table)
        .int(table.rows())
        .int(items)
        .int(heads)
        .int(half)
        .int(usize::from(inverse));
    let cost =
        Cost { flops: 3.0 * (x.rows() * x.cols()) as f64, bytes: 2.0 * bytes(&[x]) + bytes(&[positions]) };
    let name = format!("rope_{}{}", if wide { "wide_" } else { "" }, x.dtype().suffix());
    Launch::prepare(x.memory().gpu(), &SOURCE, name, Grid::items(items, 256), args, cost)
}
