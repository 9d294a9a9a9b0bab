//! The way forward of adapters inside of the operation that makes their input: `lora_down_fused.cu`.

use super::input::norm_threads;
use super::{
    Dropout, NORM_COLS_MAX, RANKS, down_weights, each, flops, masking, masks, scalars_fit, stat, weights,
};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::ops::{Check, bytes};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static FUSED_SOURCE: Source =
    Source { name: "lora_down_fused.cu", text: include_str!("../../../../lora_down_fused.cu") };

/// Tokens of a block; threads and shared memory of one behind SwiGLU; shared memory of a module's sums in a
/// part of a row behind a norm, and how many parts there are.
const TOKENS: usize = 16;
const SWIGLU_THREADS: usize = 256;
const SWIGLU_SHARED: usize = 4 * 6 * 16 * SWIGLU_THREADS;
const SUMS: usize = 4 * TOKENS * (RANKS + 8);
const NORM_PARTS: usize = 16;

/// Adapters and where their products go, as in [`super::down`]: bfloat16, a rank of at most [`RANKS`].
#[derive(Debug, Clone, Copy)]
pub struct Down<'a> {
    /// `T x K`, written.
    pub x: &'a Tensor,
    pub a: &'a [Tensor],
    /// `T x (n r)` float32.
    pub u: &'a Tensor,
    /// The columns behind `x`.
    pub augmented: &'a Tensor,
}

impl Down<'_> {
    fn check(&self, check: &Check, dropout: Option<&Dropout<'_>>) -> Result<usize, CudaError> {
        let Down { x, a, u, augmented } = *self;
        let rank = down_weights(check, x, a)?;
        let width = a.len() * rank;
        stat(check, "u", u, x.rows(), width)?;
        masks(check, dropout, a.len(), x.rows())?;
        check.shape("augmented", augmented, x.rows(), augmented.cols())?;
        for (what, tensor) in [("x", x), ("augmented", augmented)] {
            check.dtype(what, tensor, Dtype::Bf16)?;
        }
        check.that(augmented.cols() >= width, || {
            format!("augmented has {} columns for {width}", augmented.cols())
        })?;
        let aligned = x.is_aligned(16) && a.iter().all(|a| a.is_aligned(16));
        check.that(rank <= RANKS && x.cols().is_multiple_of(8) && aligned, || {
            format!("{} features of rank {rank}, aligned: {aligned}", x.cols())
        })?;
        Ok(rank)
    }

    /// Arguments from the factors on.
    fn args(&self, args: Args) -> Args {
        let Down { u, augmented, .. } = *self;
        let args = args.tensor(u).int(u.pitch()).tensor(augmented).int(augmented.pitch());
        args.int(augmented.cols())
    }

    fn finish(
        &self,
        (args, rank): (Args, usize),
        dropout: Option<&Dropout<'_>>,
        scalars: &Tensor,
        (name, read): (String, f64),
        (threads, shared): (usize, usize),
    ) -> Result<Work, CudaError> {
        let Down { x, a, u, augmented } = *self;
        let args = args.int(x.rows()).int(x.cols()).int(rank);
        let args = masking(args, dropout).tensor(scalars);
        let cost = Cost {
            flops: flops(x.rows(), u.cols(), x.cols()) + 6.0 * (x.rows() * x.cols()) as f64,
            bytes: read + bytes(&[x, u, augmented]) + weights(a),
        };
        let grid = Grid { shared, ..Grid::line(x.rows().div_ceil(TOKENS), threads) };
        Launch::prepare(x.memory().gpu(), &FUSED_SOURCE, name, grid, args, cost)
    }
}

/// Whether these kernels take adapters of this shape behind SwiGLU, or (`norm`) behind a norm.
#[must_use]
pub fn takes_down(features: usize, rank: usize, norm: bool) -> bool {
    features.is_multiple_of(8) && rank <= RANKS && (!norm || features <= NORM_COLS_MAX)
}

/// `x = silu(gate) up`, then [`super::down`] of it; `gate_up`: `T x 2K`, gate first. One module.
///
/// # Errors
/// When shapes or types do not fit.
pub fn down_swiglu(
    gate_up: &Tensor,
    down: &Down<'_>,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_down_swiglu");
    let rank = down.check(&check, dropout)?;
    let Down { x, a, .. } = *down;
    scalars_fit(&check, scalars)?;
    check.that(a.len() == 1, || format!("{} modules", a.len()))?;
    check.shape("gate_up", gate_up, x.rows(), 2 * x.cols())?;
    check.dtype("gate_up", gate_up, Dtype::Bf16)?;
    check.that(gate_up.is_aligned(16), || {
        "rows of gate_up do not start at multiples of 16 bytes".to_owned()
    })?;
    let args = Args::new().tensor(gate_up).int(gate_up.pitch()).tensor(x).int(x.pitch());
    let args = down.args(args.tensor(&a[0]));
    let named = ("lora_down_swiglu_mma".to_owned(), bytes(&[gate_up]));
    down.finish((args, rank), dropout, scalars, named, (SWIGLU_THREADS, SWIGLU_SHARED))
}

/// What a norm before adapters reads and writes besides its output.
#[derive(Debug, Clone, Copy)]
pub struct Normed<'a> {
    /// `T x K` bfloat16, at most [`NORM_COLS_MAX`] columns.
    pub of: &'a Tensor,
    /// `1 x K` bfloat16.
    pub weight: &'a Tensor,
    /// `T x 1` float32, written.
    pub rstd: &'a Tensor,
    pub eps: f32,
}

/// RMS norm into `x`, then [`super::down`] of it.
///
/// # Errors
/// When shapes or types do not fit.
pub fn down_norm(
    norm: &Normed<'_>,
    down: &Down<'_>,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_down_norm");
    let rank = down.check(&check, dropout)?;
    let (Down { x, a, .. }, Normed { of, weight, rstd, eps }) = (*down, *norm);
    scalars_fit(&check, scalars)?;
    check.that(x.cols() <= NORM_COLS_MAX, || format!("{} columns", x.cols()))?;
    check.like("input of the norm", of, x)?;
    check.shape("weight", weight, 1, x.cols())?;
    check.dtype("weight", weight, Dtype::Bf16)?;
    check.column("rstd", rstd, x.rows(), Dtype::F32)?;
    let aligned = of.is_aligned(16) && weight.is_aligned(16);
    check.that(aligned, || "rows do not start at multiples of 16 bytes".to_owned())?;
    let args = Args::new().tensor(of).int(of.pitch()).tensor(weight).tensor(x).int(x.pitch());
    let args = down.args(each(args.tensor(rstd).float(eps), a));
    let (threads, suffix) = norm_threads(x.memory().gpu(), x.rows().div_ceil(TOKENS));
    let named = (format!("lora_down_norm_mma_{}{suffix}", a.len()), bytes(&[of, weight, rstd]));
    let shared = a.len() * NORM_PARTS * SUMS;
    down.finish((args, rank), dropout, scalars, named, (threads, shared))
}
