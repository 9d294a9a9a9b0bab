//! The gradient of SwiGLU with an adapter on its output: `lora_grad_swiglu.cu`.

use super::grad::{ALIGN, Job, Slices, UP_BLOCKS, part_bytes};
use super::sum::{Factor, Share, Sums};
use super::{Dropout, Outer, RANKS, flops, stat};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid};
use crate::cuda::ops::{Check, bytes};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SWIGLU_SOURCE: Source =
    Source { name: "lora_grad_swiglu.cu", text: include_str!("../../../../lora_grad_swiglu.cu") };

/// Features and threads of a block, tokens of a stage; bytes of a stage, and how many a block has.
const COLS: usize = 256;
const THREADS: usize = 256;
const TOKENS: usize = 16;
const STAGE: usize = 3 * TOKENS * 2 * COLS + 4 * TOKENS * 36 + TOKENS * 48 + 3 * 4 * TOKENS;
const STAGES: usize = 3;

/// SwiGLU with an adapter on its output, bfloat16.
#[derive(Debug, Clone, Copy)]
pub struct SwiGlu<'a> {
    /// `T x 2K`, gate first.
    pub gate_up: &'a Tensor,
    /// The gradient by the output, without the adapter's share: `T x K`.
    pub d_h: &'a Tensor,
    /// `T x 2K`, written; may be `gate_up`.
    pub d_gate_up: &'a Tensor,
    /// `r x K`.
    pub a: &'a Tensor,
    /// Adapters of gate and up, whose `d_B` comes out of the same pass.
    pub above: Option<Above<'a>>,
}

/// `d_B += lora_scale d_gate^T u_gate` for gate, and so for up.
#[derive(Debug, Clone, Copy)]
pub struct Above<'a> {
    /// `T x 2r` float32, of the way forward.
    pub u: &'a Tensor,
    /// `K x r` float32 each, added to; `r` at most [`RANKS`].
    pub d_b: [&'a Tensor; 2],
    /// At least [`above_bytes`], at a multiple of 16 bytes.
    pub scratch: &'a Tensor,
}

impl Above<'_> {
    fn check(&self, check: &Check, tokens: usize, features: usize) -> Result<usize, CudaError> {
        let rank = self.d_b[0].cols();
        check.that((1..=RANKS).contains(&rank), || format!("a rank of {rank} above, not up to {RANKS}"))?;
        stat(check, "u above", self.u, tokens, 2 * rank)?;
        for d_b in self.d_b {
            stat(check, "d_b above", d_b, features, rank)?;
            check.dense("d_b above", d_b)?;
        }
        let scratch = self.scratch;
        check.dense("scratch above", scratch)?;
        let found = scratch.rows() * scratch.cols() * scratch.dtype().bytes();
        let needed = above_bytes(tokens, features, rank);
        check.that(found >= needed && scratch.pointer().is_multiple_of(16), || {
            format!("scratch above has {found} bytes, not {needed} at a multiple of 16")
        })?;
        Ok(rank)
    }

    fn shares(&self, sums: &mut Sums, slices: Slices, rank: usize) -> Result<(), CudaError> {
        let count = self.d_b[0].rows() * rank;
        for (m, d_b) in self.d_b.into_iter().enumerate() {
            let offset = self.scratch.offset() + 4 * m * count;
            let parts = self.scratch.memory().tensor(offset, (1, count), count, Dtype::F32)?;
            let (stride, slices) = (2 * count, slices.count);
            sums.push(Share { parts, stride, slices, target: d_b.clone(), factor: Factor::Scale });
        }
        Ok(())
    }
}

/// How tokens are cut into slices: as many blocks as run at once where a multiprocessor holds two.
pub(super) fn slices(tokens: usize, features: usize) -> Slices {
    let most = (UP_BLOCKS / features.div_ceil(COLS).max(1)).clamp(1, 64);
    Slices::at_most(tokens, most, TOKENS)
}

/// Bytes of scratch memory that [`grad_swiglu`] needs besides; `cols`: start and `N_m` of the one module.
#[must_use]
pub fn swiglu_bytes(tokens: usize, features: usize, rank: usize, cols: &[(usize, usize)]) -> usize {
    part_bytes(tokens, slices(tokens, features).count, features, rank, cols)
}

/// Bytes of scratch memory that [`Above`] needs.
#[must_use]
pub fn above_bytes(tokens: usize, features: usize, rank: usize) -> usize {
    (4 * slices(tokens, features).count * 2 * features * rank).next_multiple_of(ALIGN)
}

/// The backward of `silu(gate) up` with an adapter on its output `h`, all in one pass: `d_h' = d_h + drop(d_u A)`, gradients of
/// gate and up from it, `d_A += d_u^T drop(h)`; and `d_B += lora_scale d_y^T u`. Pieces of work to run in this order, and what
/// is added by `sums` after them.
///
/// # Errors
/// When shapes or types do not fit, the rank is odd or above 16, or the scratch memory is too small.
pub fn grad_swiglu(
    outer: &Outer<'_>,
    swiglu: &SwiGlu<'_>,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
    sums: &mut Sums,
) -> Result<Vec<Work>, CudaError> {
    let check = Check::new("lora_grad_swiglu");
    let d_h = swiglu.d_h;
    let slices = slices(d_h.rows(), d_h.cols());
    let shape = (d_h.rows(), d_h.cols(), d_h.dtype());
    let job = Job::new(&check, outer, shape, slices, dropout, scalars)?;
    check.that(job.fast && job.rank <= RANKS && job.modules() == 1, || {
        format!("{} modules of rank {}, d_u of {:?}", job.modules(), job.rank, outer.d_u.dtype())
    })?;
    let pass = pass(&check, &job, outer, swiglu, (slices, sums))?;
    let up = job.up_mma()?;
    job.shares_of_a(sums, slices)?;
    job.shares_of_b(sums)?;
    Ok(vec![pass, up])
}

fn operands(check: &Check, swiglu: &SwiGlu<'_>, rank: usize) -> Result<Args, CudaError> {
    let SwiGlu { gate_up, d_h, d_gate_up, a, .. } = *swiglu;
    check.dtype("d_h", d_h, Dtype::Bf16)?;
    for (what, pair) in [("gate_up", gate_up), ("d_gate_up", d_gate_up)] {
        check.shape(what, pair, d_h.rows(), 2 * d_h.cols())?;
        check.dtype(what, pair, Dtype::Bf16)?;
    }
    check.shape("a", a, rank, d_h.cols())?;
    check.dtype("a", a, Dtype::Bf16)?;
    check.dense("a", a)?;
    let aligned = [gate_up, d_h, d_gate_up, a].iter().all(|t| t.is_aligned(16));
    check.that(aligned, || "rows do not start at multiples of 16 bytes".to_owned())?;
    let args = Args::new().tensor(gate_up).int(gate_up.pitch()).tensor(d_h).int(d_h.pitch());
    Ok(args.tensor(d_gate_up).int(d_gate_up.pitch()))
}

/// The pass over gate, up and `d_h`.
fn pass(
    check: &Check,
    job: &Job<'_>,
    outer: &Outer<'_>,
    swiglu: &SwiGlu<'_>,
    (slices, sums): (Slices, &mut Sums),
) -> Result<Work, CudaError> {
    let (d_u, above) = (outer.d_u, swiglu.above);
    let (tokens, features) = (swiglu.d_h.rows(), swiglu.d_h.cols());
    let args = operands(check, swiglu, job.rank)?.tensor(d_u).int(d_u.pitch());
    let args = args.tensor(swiglu.a).tensor(job.part_a());
    let rank_above = above.map_or(Ok(0), |above| above.check(check, tokens, features))?;
    let args = args.optional(above.map(|above| above.u)).int(above.map_or(0, |above| above.u.pitch()));
    let args = args.int(rank_above).optional(above.map(|above| above.scratch));
    let args = job.masked(args.int(tokens).int(slices.tokens));
    let blocks = [features.div_ceil(COLS), slices.count, 1];
    let grid = Grid { blocks, threads: THREADS, shared: STAGES * STAGE };
    let SwiGlu { gate_up, d_h, d_gate_up, .. } = *swiglu;
    let ranks = job.rank + 2 * rank_above;
    let cost = Cost {
        flops: 12.0 * (tokens * features) as f64 + flops(tokens, job.rank + ranks, features),
        bytes: bytes(&[gate_up, d_h, d_gate_up, d_u])
            + above.map_or(0.0, |above| bytes(&[above.u]))
            + (4 * slices.count * ranks * features) as f64,
    };
    let name = if above.is_some() { "lora_grad_swiglu_above_mma" } else { "lora_grad_swiglu_mma" };
    let work = job.prepare(&SWIGLU_SOURCE, name, grid, args, cost)?;
    above.map_or(Ok(()), |above| above.shares(sums, slices, rank_above))?;
    Ok(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_every_token() {
        for tokens in [0, 1, 15, 16, 17, 1000, 4096, 8192, 8193, 65_536] {
            for features in [8, 256, 264, 4864, 8960, 100_000] {
                let slices = slices(tokens, features);
                assert!(slices.count <= 64 && slices.tokens.is_multiple_of(TOKENS), "{tokens}: {slices:?}");
                assert!(slices.count * slices.tokens >= tokens, "{tokens}: {slices:?}");
                assert!(slices.count == 0 || (slices.count - 1) * slices.tokens < tokens, "{slices:?}");
            }
        }
        assert_eq!(slices(8192, 4864), Slices { count: 13, tokens: 640 });
        assert_eq!(slices(2048, 4864), Slices { count: 13, tokens: 160 });
    }
}
