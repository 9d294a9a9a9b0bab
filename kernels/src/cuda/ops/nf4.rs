//! NF4 back to numbers: `nf4.cu`.

use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "nf4.cu", text: include_str!("../../../nf4.cu") };

/// Numbers that share a largest magnitude.
const BLOCK: usize = 64;
/// Magnitudes that share a nested one.
const NESTED_BLOCK: usize = 256;
const THREADS: usize = 256;
/// Numbers that a thread of the wide kernel takes at once, and how often.
const WIDTH: usize = 8;
const TURNS: usize = 4;

/// `out[i] = bfloat16(level[codes[i]] absmax[i / 64])`, elements counted flat over the rows of `out` (`R x C`, bfloat16 or
/// float32, the rounded value in both); `codes`: `ceil(R C / 2)` bytes, the even element in the high nibble; `absmax`:
/// `ceil(R C / 64)` float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn dequantize(codes: &Tensor, absmax: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("nf4");
    let blocks = (out.rows() * out.cols()).div_ceil(BLOCK);
    flat(&check, "absmax", absmax, blocks, Dtype::F32)?;
    let maxima = |args: Args| args.tensor(absmax).optional(None).optional(None).optional(None).optional(None);
    prepare(&check, codes, out, maxima, bytes(&[absmax]))
}

/// As [`dequantize`], with magnitudes in 8 bits: `absmax[b] = table[absmax_codes[b]] nested_absmax[b / 256] + offset` in
/// float32, product and sum rounded apart. `absmax_codes`: `ceil(R C / 64)` bytes; `offset`: `1 x 1`; `nested_absmax`: one
/// for 256 of them; `table`: 256, all float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn dequantize_double(
    codes: &Tensor,
    absmax_codes: &Tensor,
    offset: &Tensor,
    nested_absmax: &Tensor,
    table: &Tensor,
    out: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("nf4_double");
    let blocks = (out.rows() * out.cols()).div_ceil(BLOCK);
    flat(&check, "absmax_codes", absmax_codes, blocks, Dtype::U8)?;
    flat(&check, "offset", offset, 1, Dtype::F32)?;
    flat(&check, "nested_absmax", nested_absmax, blocks.div_ceil(NESTED_BLOCK), Dtype::F32)?;
    flat(&check, "table", table, 256, Dtype::F32)?;
    let maxima = |args: Args| {
        args.optional(None).tensor(absmax_codes).tensor(offset).tensor(nested_absmax).tensor(table)
    };
    prepare(&check, codes, out, maxima, bytes(&[absmax_codes, nested_absmax]))
}

/// A view without gaps of `count` elements.
fn flat(check: &Check, what: &str, tensor: &Tensor, count: usize, dtype: Dtype) -> Result<(), CudaError> {
    check.dtype(what, tensor, dtype)?;
    check.dense(what, tensor)?;
    let found = tensor.rows() * tensor.cols();
    check.that(found == count, || format!("{what} has {found} elements, not {count}"))
}

fn prepare(
    check: &Check,
    codes: &Tensor,
    out: &Tensor,
    maxima: impl FnOnce(Args) -> Args,
    maxima_bytes: f64,
) -> Result<Work, CudaError> {
    let (rows, cols) = (out.rows(), out.cols());
    let count = rows * cols;
    check.float("out", out)?;
    flat(check, "codes", codes, count.div_ceil(2), Dtype::U8)?;
    let cost = Cost { flops: count as f64, bytes: bytes(&[codes, out]) + maxima_bytes };
    let args = maxima(Args::new().tensor(codes)).tensor(out).int(out.pitch());
    let groups = count / WIDTH;
    let wide = cols.is_multiple_of(WIDTH)
        && out.is_aligned(16)
        && codes.pointer().is_multiple_of(4)
        && groups <= i32::MAX as usize;
    let suffix = out.dtype().suffix();
    let (name, grid, args) = if wide {
        let grid = Grid::line(groups.div_ceil(THREADS * TURNS), THREADS);
        (format!("nf4_wide_{suffix}"), grid, args.int(groups).int(cols / WIDTH))
    } else {
        (format!("nf4_narrow_{suffix}"), Grid::items(count, THREADS), args.long(count).int(cols))
    };
    Launch::prepare(out.memory().gpu(), &SOURCE, name, grid, args, cost)
}
