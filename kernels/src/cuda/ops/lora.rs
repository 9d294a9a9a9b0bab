//! Low-rank adapters of a group of modules that share an input: `lora.cu`, and for the gradients `lora_grad.cu`,
//! `lora_grad_input.cu` and `lora_plain.cu`.
//!
//! A group has `n` modules (1 to 3) of rank `r` (1 to 1,024): `A_m` is `r x K`, `B_m` is `N_m x r`, both without gaps and of the
//! type of the activations. `u` is `T x (n r)` float32, the modules side by side; so is `d_u`, in float32 or bfloat16.
//! The way forward runs on tensor cores in bfloat16 when `K` is a multiple of 8 and rows start at multiples of 16 bytes; the
//! gradients do when `d_u` is in bfloat16, and refuse what does not fit there. Anything else takes plain loops.

mod fused;
mod grad;
mod input;
mod pack;
mod sum;
mod swiglu;

pub use fused::{Down, FUSED_SOURCE, Normed, down_norm, down_swiglu, takes_down};
pub use grad::{
    GRAD_SOURCE, Outer, PLAIN_SOURCE, Params, grad_down, grad_inner, grad_params, scratch_bytes, takes,
};
pub use input::{INPUT_SOURCE, NORM_COLS_MAX, Norm, grad_input, grad_norm};
pub use pack::{PackTable, Packing};
pub use sum::{SUM_SOURCE, Sums};
pub use swiglu::{Above, SWIGLU_SOURCE, SwiGlu, above_bytes, grad_swiglu, swiglu_bytes};

use super::{Check, StepScalars, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels of the way forward.
pub static SOURCE: Source = Source { name: "lora.cu", text: include_str!("../../../lora.cu") };

/// Modules of a group at most.
pub const MODULES_MAX: usize = 3;
/// The highest rank.
pub const RANK_MAX: usize = 1024;
/// Ranks that a block of a tensor-core kernel takes; where there are more, more blocks or turns do. The kernels inside of other
/// operations' passes take no more than these, but for a norm's gradient.
pub const RANKS: usize = 16;
/// Ranks that a block of a plain kernel takes.
const PLAIN_RANKS: usize = 64;
/// Tokens of a block of the tensor-core kernel, and where they are few.
const DOWN_TOKENS: usize = 32;
const DOWN_TOKENS_FEW: usize = 16;
const THREADS: usize = 256;

/// Which masks the adapters' inputs are multiplied by. The threshold and what kept elements are multiplied by come from
/// [`StepScalars::drop_threshold`].
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    /// `T x 2`, low half first.
    pub samples: &'a Tensor,
    /// `T x 1`.
    pub positions: &'a Tensor,
    pub layer: u32,
    /// Index of each module of the group in its layer.
    pub modules: &'a [u32],
}

/// `u_m = drop_m(x) A_m^T`. With `augmented`, a view of at least `n r` columns and of the type of `x` (the columns behind
/// it), also writes `u` there, rounded, and zeros into the columns after it.
///
/// # Errors
/// When shapes or types do not fit.
pub fn down(
    x: &Tensor,
    a: &[Tensor],
    u: &Tensor,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
    augmented: Option<&Tensor>,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_down");
    let rank = down_weights(&check, x, a)?;
    let width = a.len() * rank;
    stat(&check, "u", u, x.rows(), width)?;
    masks(&check, dropout, a.len(), x.rows())?;
    scalars_fit(&check, scalars)?;
    if let Some(view) = augmented {
        check.shape("augmented", view, x.rows(), view.cols())?;
        check.dtype("augmented", view, x.dtype())?;
        let fits = view.cols() >= width && view.cols().is_multiple_of(8);
        check.that(fits, || format!("augmented has {} columns for {width}", view.cols()))?;
    }
    let args = each(Args::new().tensor(x).int(x.pitch()), a).tensor(u).int(u.pitch());
    let args = args.optional(augmented).int(augmented.map_or(0, Tensor::pitch));
    let args = args.int(augmented.map_or(0, Tensor::cols));
    let (name, grid, args) = if on_tensor_cores(x, a) {
        let few = x.rows().div_ceil(DOWN_TOKENS) <= x.memory().gpu().properties().multiprocessors as usize;
        let (tokens, suffix) = if few { (DOWN_TOKENS_FEW, "_few") } else { (DOWN_TOKENS, "") };
        let blocks = [x.rows().div_ceil(tokens), rank.div_ceil(RANKS), 1];
        let grid = Grid { blocks, threads: down_threads(a.len()), shared: 0 };
        (format!("lora_down_mma_{}{suffix}", a.len()), grid, args.int(x.rows()))
    } else {
        let blocks = [x.rows(), a.len(), rank.div_ceil(PLAIN_RANKS)];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        (format!("lora_down_{}", x.dtype().suffix()), grid, args.int(a.len()))
    };
    let args = masking(args.int(x.cols()).int(rank), dropout).tensor(scalars);
    let more = augmented.map_or(0.0, |view| bytes(&[view]));
    let cost = Cost { flops: flops(x.rows(), width, x.cols()), bytes: bytes(&[x, u]) + weights(a) + more };
    Launch::prepare(x.memory().gpu(), &SOURCE, name, grid, args, cost)
}

/// `y[:, start..start + N_m] += lora_scale u_m B_m^T`; `cols`: start and `N_m` of each module in `y` (`T x N`).
///
/// # Errors
/// When shapes or types do not fit.
pub fn up(
    u: &Tensor,
    b: &[Tensor],
    y: &Tensor,
    cols: &[(usize, usize)],
    scalars: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_up");
    check.float("y", y)?;
    let rank = up_weights(&check, b, cols, y.cols(), Some(y.dtype()))?;
    stat(&check, "u", u, y.rows(), b.len() * rank)?;
    scalars_fit(&check, scalars)?;
    let args = each(Args::new().tensor(u).int(u.pitch()), b).tensor(y).int(y.pitch());
    let args = columns(args, cols).int(rank).tensor(scalars);
    let most = cols.iter().map(|c| c.1).max().unwrap_or(0);
    let blocks = [y.rows(), most.div_ceil(THREADS), b.len()];
    let total: usize = cols.iter().map(|c| c.1).sum();
    let cost = Cost {
        flops: flops(y.rows(), total, rank),
        bytes: 2.0 * (y.rows() * total * y.dtype().bytes()) as f64 + bytes(&[u]) + weights(b),
    };
    let name = format!("lora_up_{}", y.dtype().suffix());
    Launch::prepare(y.memory().gpu(), &SOURCE, name, Grid { blocks, threads: THREADS, shared: 0 }, args, cost)
}

/// Fills `tail` (`N x P` bfloat16, the columns behind a weight matrix): `lora_scale B_m` in rows `start..start + N_m` and
/// columns `m r..`, zeros elsewhere. `b` may be float32 or bfloat16.
///
/// # Errors
/// When shapes or types do not fit.
pub fn pack_b(
    b: &[Tensor],
    tail: &Tensor,
    cols: &[(usize, usize)],
    scalars: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_pack");
    check.dtype("tail", tail, Dtype::Bf16)?;
    let rank = up_weights(&check, b, cols, tail.rows(), None)?;
    let fits = tail.cols() >= b.len() * rank;
    check.that(fits, || format!("tail has {} columns for {}", tail.cols(), b.len() * rank))?;
    scalars_fit(&check, scalars)?;
    let args = each(Args::new(), b).tensor(tail).int(tail.pitch()).int(tail.rows()).int(tail.cols());
    let args = columns(args, cols).int(rank).tensor(scalars);
    let count = tail.rows() * tail.cols();
    let cost = Cost { flops: count as f64, bytes: bytes(&[tail]) + weights(b) };
    let name = format!("lora_pack_{}", b[0].dtype().suffix());
    Launch::prepare(tail.memory().gpu(), &SOURCE, name, Grid::items(count, THREADS), args, cost)
}

/// Threads of a block of the tensor-core kernel; as `down_warps` in `lora.cu`.
fn down_threads(modules: usize) -> usize {
    32 * if modules == 1 { 8 } else { 6 }
}

/// The rank of the factors `A_m`, which fit to `x`.
fn down_weights(check: &Check, x: &Tensor, a: &[Tensor]) -> Result<usize, CudaError> {
    check.float("x", x)?;
    let rank = a.first().map_or(0, Tensor::rows);
    group(check, a.len(), rank)?;
    for a in a {
        check.shape("a", a, rank, x.cols())?;
        check.dtype("a", a, x.dtype())?;
        check.dense("a", a)?;
    }
    Ok(rank)
}

/// The rank of the factors `B_m`, whose columns lie apart from each other among `width`.
fn up_weights(
    check: &Check,
    b: &[Tensor],
    cols: &[(usize, usize)],
    width: usize,
    dtype: Option<Dtype>,
) -> Result<usize, CudaError> {
    let rank = b.first().map_or(0, Tensor::cols);
    group(check, b.len(), rank)?;
    check.that(b.len() == cols.len(), || format!("{} factors for {} modules", b.len(), cols.len()))?;
    for (b_m, &(start, count)) in b.iter().zip(cols) {
        check.float("b", b_m)?;
        check.shape("b", b_m, count, rank)?;
        check.dtype("b", b_m, dtype.unwrap_or(b[0].dtype()))?;
        check.dense("b", b_m)?;
        check.that(start + count <= width, || format!("columns {start}..{} of {width}", start + count))?;
    }
    let mut sorted = cols.to_vec();
    sorted.sort_unstable();
    let apart = sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
    check.that(apart, || format!("modules share columns: {cols:?}"))?;
    Ok(rank)
}

fn group(check: &Check, modules: usize, rank: usize) -> Result<(), CudaError> {
    check.that((1..=MODULES_MAX).contains(&modules), || {
        format!("{modules} modules in a group, not 1 to {MODULES_MAX}")
    })?;
    check.that((1..=RANK_MAX).contains(&rank), || format!("a rank of {rank}, not 1 to {RANK_MAX}"))
}

/// A float32 matrix of this shape.
fn stat(check: &Check, what: &str, tensor: &Tensor, rows: usize, cols: usize) -> Result<(), CudaError> {
    check.shape(what, tensor, rows, cols)?;
    check.dtype(what, tensor, Dtype::F32)
}

/// Whether `d_u` (`T x width`) is in bfloat16: then tensor cores take it, and everything else must be bfloat16 too.
fn inner(check: &Check, d_u: &Tensor, tokens: usize, width: usize, others: Dtype) -> Result<bool, CudaError> {
    check.shape("d_u", d_u, tokens, width)?;
    if d_u.dtype() == Dtype::F32 {
        return Ok(false);
    }
    check.dtype("d_u", d_u, Dtype::Bf16)?;
    let fits = others == Dtype::Bf16 && d_u.is_aligned(4);
    check.that(fits, || format!("d_u in bfloat16, the rest in {others:?}"))?;
    Ok(true)
}

fn masks(
    check: &Check,
    dropout: Option<&Dropout<'_>>,
    modules: usize,
    tokens: usize,
) -> Result<(), CudaError> {
    let Some(dropout) = dropout else { return Ok(()) };
    for (what, tensor, cols) in [("samples", dropout.samples, 2), ("positions", dropout.positions, 1)] {
        check.shape(what, tensor, tokens, cols)?;
        check.dtype(what, tensor, Dtype::U32)?;
        check.dense(what, tensor)?;
    }
    let found = dropout.modules.len();
    check.that(found == modules, || format!("masks of {found} modules for {modules}"))
}

fn scalars_fit(check: &Check, scalars: &Tensor) -> Result<(), CudaError> {
    check.dtype("scalars", scalars, Dtype::U8)?;
    check.dense("scalars", scalars)?;
    let size = scalars.rows() * scalars.cols();
    let fits = size == StepScalars::BYTES && scalars.pointer().is_multiple_of(8);
    check.that(fits, || format!("scalars are {size} bytes, not {} at a multiple of 8", StepScalars::BYTES))
}

/// Whether a kernel on tensor cores takes these activations and factors `A_m`.
fn on_tensor_cores(x: &Tensor, a: &[Tensor]) -> bool {
    x.dtype() == Dtype::Bf16
        && x.cols().is_multiple_of(8)
        && x.is_aligned(16)
        && a.iter().all(|a| a.is_aligned(16))
}

/// The tensors of up to three modules, null for those that are not there.
fn each(args: Args, tensors: &[Tensor]) -> Args {
    (0..MODULES_MAX).fold(args, |args, m| args.optional(tensors.get(m)))
}

/// Start and number of the columns of up to three modules.
fn columns(args: Args, cols: &[(usize, usize)]) -> Args {
    (0..MODULES_MAX).fold(args, |args, m| {
        let (start, count) = cols.get(m).copied().unwrap_or_default();
        args.int(start).int(count)
    })
}

fn masking(args: Args, dropout: Option<&Dropout<'_>>) -> Args {
    let args = args.optional(dropout.map(|d| d.samples)).optional(dropout.map(|d| d.positions));
    let args = args.int(dropout.map_or(0, |d| d.layer as usize));
    (0..MODULES_MAX).fold(args, |args, m| {
        let module = dropout.and_then(|d| d.modules.get(m)).copied().unwrap_or_default();
        args.int(module as usize)
    })
}

fn weights(tensors: &[Tensor]) -> f64 {
    tensors.iter().map(|tensor| bytes(&[tensor])).sum()
}

/// Operations of a product with `m n` results of `k` terms.
fn flops(m: usize, n: usize, k: usize) -> f64 {
    2.0 * m as f64 * n as f64 * k as f64
}
