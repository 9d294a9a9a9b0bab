//! The gradient by the input of adapters, alone and inside of what follows it: `lora_grad_input.cu` on tensor cores,
//! `lora_plain.cu` otherwise.

use super::{
    Dropout, PLAIN_SOURCE, THREADS, down_weights, each, flops, inner, masking, masks, scalars_fit, weights,
};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::ops::{Check, bytes};
use crate::cuda::{Cost, CudaError, Dtype, Gpu, Tensor, Work};

/// The kernels on tensor cores.
pub static INPUT_SOURCE: Source =
    Source { name: "lora_grad_input.cu", text: include_str!("../../../../lora_grad_input.cu") };

/// Tokens of a warp of the kernel that only adds to `d_x`, the most of these that leave a multiprocessor so many warps; its
/// features, warps of a block.
const INPUT_TOKENS: [usize; 3] = [128, 64, 32];
const INPUT_WARPS_WANTED: usize = 16;
const INPUT_COLS: usize = 32;
const INPUT_WARPS: usize = 4;
/// Tokens of a block of the kernel inside of RMS norm's gradient, and bytes of two of the widest rows of each.
const NORM_TOKENS: usize = 16;
const NORM_SHARED: usize = 2 * NORM_TOKENS * 2 * NORM_COLS_MAX;
/// The widest row of [`grad_norm`].
pub const NORM_COLS_MAX: usize = 1024;

/// `d_x += sum over modules of drop_m(d_u_m A_m)`; `d_x`: `T x K`, read and written once; `d_u`: `T x (n r)`, in bfloat16 for
/// the kernels on tensor cores, in float32 for the plain ones.
///
/// # Errors
/// When shapes or types do not fit.
pub fn grad_input(
    d_u: &Tensor,
    a: &[Tensor],
    d_x: &Tensor,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_grad_input");
    let (rank, fast) = operands(&check, d_u, a, d_x)?;
    masks(&check, dropout, a.len(), d_x.rows())?;
    scalars_fit(&check, scalars)?;
    let args = each(Args::new().tensor(d_u).int(d_u.pitch()), a).tensor(d_x).int(d_x.pitch());
    let (source, name, grid, args) = if fast {
        let items = |tokens: usize| d_x.cols().div_ceil(INPUT_COLS) * d_x.rows().div_ceil(tokens);
        let wanted = INPUT_WARPS_WANTED * d_x.memory().gpu().properties().multiprocessors as usize;
        let tokens = INPUT_TOKENS.into_iter().find(|&tokens| items(tokens) >= wanted);
        let tokens = tokens.unwrap_or(INPUT_TOKENS[INPUT_TOKENS.len() - 1]);
        let grid = Grid::line(items(tokens).div_ceil(INPUT_WARPS), 32 * INPUT_WARPS);
        let args = args.int(tokens).int(d_x.rows());
        (&INPUT_SOURCE, format!("lora_grad_input_mma_{}", a.len()), grid, args)
    } else {
        let blocks = [d_x.rows(), d_x.cols().div_ceil(THREADS), 1];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        let name = format!("lora_grad_input_{}", d_x.dtype().suffix());
        (&PLAIN_SOURCE, name, grid, args.int(a.len()))
    };
    let args = masking(args.int(d_x.cols()).int(rank), dropout).tensor(scalars);
    let cost = Cost {
        flops: flops(d_x.rows(), d_u.cols(), d_x.cols()),
        bytes: 2.0 * bytes(&[d_x]) + bytes(&[d_u]) + weights(a),
    };
    Launch::prepare(d_x.memory().gpu(), source, name, grid, args, cost)
}

/// The rank, and whether tensor cores take the operands: they do when `d_u` is in bfloat16.
fn operands(check: &Check, d_u: &Tensor, a: &[Tensor], d_x: &Tensor) -> Result<(usize, bool), CudaError> {
    let rank = down_weights(check, d_x, a)?;
    let fast = inner(check, d_u, d_x.rows(), a.len() * rank, d_x.dtype())?;
    let aligned = d_x.is_aligned(16) && a.iter().all(|a| a.is_aligned(16));
    let fits = d_x.cols().is_multiple_of(8) && rank.is_multiple_of(2) && aligned;
    check.that(!fast || fits, || {
        format!("tensor cores don't take {} features of rank {rank}, aligned: {aligned}", d_x.cols())
    })?;
    Ok((rank, fast))
}

/// A norm whose gradient follows, all but the columns `T x K` bfloat16.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// What went into the norm.
    pub x: &'a Tensor,
    /// `1 x K` bfloat16.
    pub weight: &'a Tensor,
    /// `T x 1` float32.
    pub rstd: &'a Tensor,
    /// The gradient by the norm's output, without the adapters' share.
    pub d_out: &'a Tensor,
    /// Added to.
    pub d_x: &'a Tensor,
    /// The norm's output, written once more on request.
    pub out: Option<&'a Tensor>,
}

/// `d' = d_out + sum over modules of drop_m(d_u_m A_m)`, then `d_x +=` the gradient of RMS norm by `x` at `d'`, in one pass.
/// `d_u`: `T x (n r)` bfloat16; at most [`NORM_COLS_MAX`] columns.
///
/// # Errors
/// When shapes or types do not fit.
pub fn grad_norm(
    norm: &Norm<'_>,
    d_u: &Tensor,
    a: &[Tensor],
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_grad_norm");
    let Norm { x, weight, rstd, d_out, d_x, out } = *norm;
    let (rank, fast) = operands(&check, d_u, a, d_out)?;
    let (tokens, features) = (x.rows(), x.cols());
    check.that(fast && features <= NORM_COLS_MAX, || {
        format!("{features} columns, d_u of {:?}", d_u.dtype())
    })?;
    for (what, tensor) in [("x", x), ("d_x", d_x)].into_iter().chain(out.map(|out| ("out", out))) {
        check.like(what, tensor, d_out)?;
        check.that(tensor.is_aligned(16), || {
            format!("rows of {what} do not start at multiples of 16 bytes")
        })?;
    }
    check.shape("weight", weight, 1, features)?;
    check.dtype("weight", weight, Dtype::Bf16)?;
    check.that(weight.is_aligned(16), || "weight does not start at a multiple of 16 bytes".to_owned())?;
    check.column("rstd", rstd, tokens, Dtype::F32)?;
    masks(&check, dropout, a.len(), tokens)?;
    scalars_fit(&check, scalars)?;
    let args = Args::new().tensor(x).int(x.pitch()).tensor(weight).tensor(rstd);
    let args = args.tensor(d_out).int(d_out.pitch()).tensor(d_x).int(d_x.pitch());
    let args = args.optional(out).int(out.map_or(0, Tensor::pitch)).tensor(d_u).int(d_u.pitch());
    let args = each(args, a).int(tokens).int(features).int(rank);
    let args = masking(args, dropout).tensor(scalars);
    let cost = Cost {
        flops: flops(tokens, d_u.cols(), features) + 8.0 * (tokens * features) as f64,
        bytes: bytes(&[x, d_out, d_x, d_x, d_u, rstd]) + out.map_or(0.0, |out| bytes(&[out])) + weights(a),
    };
    let gpu = x.memory().gpu();
    let (threads, suffix) = norm_threads(gpu, tokens.div_ceil(NORM_TOKENS));
    let line = Grid::line(tokens.div_ceil(NORM_TOKENS), threads);
    let grid = Grid { shared: NORM_SHARED, ..line };
    let name = format!("lora_grad_norm_mma_{}{suffix}", a.len());
    Launch::prepare(gpu, &INPUT_SOURCE, name, grid, args, cost)
}

/// Threads of a block that takes 16 rows: more where every block has a multiprocessor to itself. And the kernel's suffix.
pub(super) fn norm_threads(gpu: &Gpu, blocks: usize) -> (usize, &'static str) {
    if blocks <= gpu.properties().multiprocessors as usize { (512, "_wide") } else { (256, "") }
}
