//! Gradients of the factors of adapters: `lora_grad.cu` on tensor cores, `lora_plain.cu` otherwise.

use super::sum::{Factor, Share, Sums};
use super::{
    Dropout, PLAIN_RANKS, RANKS, THREADS, columns, each, flops, inner, masking, masks, scalars_fit, stat,
    up_weights, weights,
};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::ops::{Check, bytes};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels on tensor cores.
pub static GRAD_SOURCE: Source =
    Source { name: "lora_grad.cu", text: include_str!("../../../../lora_grad.cu") };
/// The plain kernels.
pub static PLAIN_SOURCE: Source =
    Source { name: "lora_plain.cu", text: include_str!("../../../../lora_plain.cu") };

/// Columns of a block of the kernel that reads `d_y`, and tokens of a stage of it.
const UP_COLS: usize = 256;
const UP_TOKENS: usize = 64;
const UP_THREADS: usize = 128;
/// Blocks that it wants.
pub(super) const UP_BLOCKS: usize = 264;
/// Up to this rank the slices of `d_B` don't depend on it; above, fewer of them keep their memory small.
const RANKS_IN_ALL_SLICES: usize = 64;
/// Features of a block of the kernel that reads `x`.
const DOWN_COLS: usize = 64;
const DOWN_THREADS: usize = 128;
/// Blocks of it that run at once.
const DOWN_BLOCKS: usize = 528;
/// Parts of the scratch memory start at multiples of this.
pub(super) const ALIGN: usize = 256;

/// What [`grad_params`] reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    /// `T x K`.
    pub x: &'a Tensor,
    pub outer: Outer<'a>,
}

impl Params<'_> {
    fn slices(&self) -> Slices {
        let rank = self.outer.d_b.first().map_or(1, Tensor::cols);
        Slices::of_a(self.x.rows(), self.x.cols(), rank, self.outer.d_b.len())
    }
}

/// The same without the input.
#[derive(Debug, Clone, Copy)]
pub struct Outer<'a> {
    /// `T x (n r)` float32, of the way forward.
    pub u: &'a Tensor,
    /// `T x N`, of the type of `x`.
    pub d_y: &'a Tensor,
    /// Start and `N_m` of each module in `d_y`.
    pub cols: &'a [(usize, usize)],
    /// `T x (n r)`: bfloat16 takes the kernels on tensor cores, float32 the plain ones.
    pub d_u: &'a Tensor,
    /// `r x K` float32 each, added to.
    pub d_a: &'a [Tensor],
    /// `N_m x r` float32 each, added to.
    pub d_b: &'a [Tensor],
    /// At least [`scratch_bytes`], or [`super::swiglu_bytes`]; at a multiple of 16 bytes.
    pub scratch: &'a Tensor,
}

/// How tokens are cut into slices: depends on shapes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slices {
    pub count: usize,
    pub tokens: usize,
}

impl Slices {
    /// At most `most` slices, a multiple of `unit` tokens each.
    pub(super) fn at_most(tokens: usize, most: usize, unit: usize) -> Self {
        let size = tokens.div_ceil(most).next_multiple_of(unit).max(unit);
        Slices { count: tokens.div_ceil(size), tokens: size }
    }

    /// Of the sums of `d_A`: as many blocks as run at once.
    fn of_a(tokens: usize, features: usize, rank: usize, modules: usize) -> Self {
        let blocks = features.div_ceil(DOWN_COLS) * items(modules, rank);
        Self::at_most(tokens, (DOWN_BLOCKS / blocks.max(1)).clamp(1, 64), UP_TOKENS)
    }

    /// Of the sums of `d_B`: few where many columns, or ranks beyond [`RANKS_IN_ALL_SLICES`], make enough blocks.
    fn of_b(tokens: usize, rank: usize, cols: &[(usize, usize)]) -> Self {
        let groups = if rank > RANKS_IN_ALL_SLICES { rank.div_ceil(RANKS) } else { 1 };
        let blocks = groups * tiles(cols);
        Self::at_most(tokens, UP_BLOCKS.div_ceil(blocks.max(1)).min(64), UP_TOKENS)
    }
}

fn tiles(cols: &[(usize, usize)]) -> usize {
    cols.iter().map(|c| c.1.div_ceil(UP_COLS)).sum()
}

/// Modules times groups of 16 ranks.
fn items(modules: usize, rank: usize) -> usize {
    modules * rank.div_ceil(RANKS)
}

fn total(cols: &[(usize, usize)]) -> usize {
    cols.iter().map(|c| c.1).sum()
}

/// Words of the partial sums of `d_A`, in so many slices, and `d_B`.
fn parts(
    tokens: usize,
    slices_a: usize,
    features: usize,
    rank: usize,
    cols: &[(usize, usize)],
) -> [usize; 2] {
    let slices_b = Slices::of_b(tokens, rank, cols).count;
    [slices_a * cols.len() * rank * features, slices_b * total(cols) * rank]
}

/// Bytes of these partial sums.
pub(super) fn part_bytes(
    tokens: usize,
    slices_a: usize,
    features: usize,
    rank: usize,
    cols: &[(usize, usize)],
) -> usize {
    let parts = parts(tokens, slices_a, features, rank, cols);
    parts.iter().map(|count| (4 * count).next_multiple_of(ALIGN)).sum()
}

/// Bytes of scratch memory that [`grad_params`] needs; `cols`: start and `N_m` of each module.
#[must_use]
pub fn scratch_bytes(tokens: usize, features: usize, rank: usize, cols: &[(usize, usize)]) -> usize {
    part_bytes(tokens, Slices::of_a(tokens, features, rank, cols.len()).count, features, rank, cols)
}

/// Whether the kernels on tensor cores take adapters of this shape, with rows at multiples of 16 bytes.
#[must_use]
pub fn takes(features: usize, rank: usize, cols: &[(usize, usize)]) -> bool {
    let eights = cols.iter().all(|c| c.0.is_multiple_of(8) && c.1.is_multiple_of(8));
    features.is_multiple_of(8) && rank.is_multiple_of(2) && eights
}

/// `d_u_m = lora_scale d_y_m B_m` by plain loops; `d_y`: `T x N`, `d_u`: `T x (n r)` float32, `cols`: start and `N_m` of each
/// module in `d_y`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn grad_inner(
    d_y: &Tensor,
    b: &[Tensor],
    cols: &[(usize, usize)],
    d_u: &Tensor,
    scalars: &Tensor,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_grad_u");
    check.float("d_y", d_y)?;
    let rank = up_weights(&check, b, cols, d_y.cols(), Some(d_y.dtype()))?;
    stat(&check, "d_u", d_u, d_y.rows(), b.len() * rank)?;
    scalars_fit(&check, scalars)?;
    let args = each(Args::new().tensor(d_y).int(d_y.pitch()), b).tensor(d_u).int(d_u.pitch());
    let args = columns(args, cols).int(rank).tensor(scalars);
    let blocks = [d_y.rows(), b.len(), rank.div_ceil(PLAIN_RANKS)];
    let grid = Grid { blocks, threads: THREADS, shared: 0 };
    let cost = Cost {
        flops: flops(d_y.rows(), total(cols), rank),
        bytes: (d_y.rows() * total(cols) * d_y.dtype().bytes()) as f64 + bytes(&[d_u]) + weights(b),
    };
    let name = format!("lora_grad_u_{}", d_y.dtype().suffix());
    Launch::prepare(d_y.memory().gpu(), &PLAIN_SOURCE, name, grid, args, cost)
}

/// `d_B_m += lora_scale d_y_m^T u_m`, `d_A_m += d_u_m^T drop_m(x)`: pieces of work to run in this order, and what is added by
/// `sums` after them. Sums over tokens go over slices whose number depends on shapes alone, then over the slices in order.
///
/// # Errors
/// When shapes or types do not fit, or the scratch memory is too small.
pub fn grad_params(
    p: &Params<'_>,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
    sums: &mut Sums,
) -> Result<Vec<Work>, CudaError> {
    let check = Check::new("lora_grad_params");
    check.float("x", p.x)?;
    let slices = p.slices();
    let shape = (p.x.rows(), p.x.cols(), p.x.dtype());
    let job = Job::new(&check, &p.outer, shape, slices, dropout, scalars)?;
    let down = job.down(&check, p.x, slices)?;
    let up = if job.fast { job.up_mma()? } else { job.plain_b()? };
    job.shares_of_b(sums)?;
    job.shares_of_a(sums, slices)?;
    Ok(vec![up, down])
}

/// As [`grad_params`] for the factors `A_m` alone.
///
/// # Errors
/// As there.
pub fn grad_down(
    p: &Params<'_>,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
    sums: &mut Sums,
) -> Result<Work, CudaError> {
    let check = Check::new("lora_grad_down");
    check.float("x", p.x)?;
    let slices = p.slices();
    let shape = (p.x.rows(), p.x.cols(), p.x.dtype());
    let job = Job::new(&check, &p.outer, shape, slices, dropout, scalars)?;
    job.shares_of_a(sums, slices)?;
    job.down(&check, p.x, slices)
}

/// The scratch memory: partial sums.
struct Parts {
    a: Tensor,
    b: Tensor,
}

/// Checked operands.
pub(super) struct Job<'a> {
    p: &'a Outer<'a>,
    dropout: Option<&'a Dropout<'a>>,
    scalars: &'a Tensor,
    tokens: usize,
    features: usize,
    pub(super) rank: usize,
    pub(super) fast: bool,
    slices_b: Slices,
    parts: Parts,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        check: &Check,
        p: &'a Outer<'a>,
        (tokens, features, dtype): (usize, usize, Dtype),
        slices_a: Slices,
        dropout: Option<&'a Dropout<'a>>,
        scalars: &'a Tensor,
    ) -> Result<Self, CudaError> {
        check.shape("d_y", p.d_y, tokens, p.d_y.cols())?;
        check.dtype("d_y", p.d_y, dtype)?;
        let rank = up_weights(check, p.d_b, p.cols, p.d_y.cols(), Some(Dtype::F32))?;
        let modules = p.d_b.len();
        stat(check, "u", p.u, tokens, modules * rank)?;
        let fast = inner(check, p.d_u, tokens, modules * rank, dtype)?;
        check.that(p.d_a.len() == modules, || format!("{} gradients of A for {modules}", p.d_a.len()))?;
        for d_a in p.d_a {
            stat(check, "d_a", d_a, rank, features)?;
            check.dense("d_a", d_a)?;
        }
        check.that(!fast || (takes(features, rank, p.cols) && p.d_y.is_aligned(16)), || {
            format!("tensor cores don't take {features} features, rank {rank}, columns {:?}", p.cols)
        })?;
        masks(check, dropout, modules, tokens)?;
        scalars_fit(check, scalars)?;
        let parts = scratch(check, p, (tokens, features, rank), slices_a)?;
        let slices_b = Slices::of_b(tokens, rank, p.cols);
        Ok(Job { p, dropout, scalars, tokens, features, rank, fast, slices_b, parts })
    }

    pub(super) fn prepare(
        &self,
        source: &'static Source,
        name: impl Into<String>,
        grid: Grid,
        args: Args,
        cost: Cost,
    ) -> Result<Work, CudaError> {
        Launch::prepare(self.p.d_y.memory().gpu(), source, name, grid, args, cost)
    }

    pub(super) fn modules(&self) -> usize {
        self.p.d_b.len()
    }

    /// The plain kernels of this type.
    fn plain(&self, name: &str) -> String {
        format!("{name}_{}", self.p.d_y.dtype().suffix())
    }

    pub(super) fn up_mma(&self) -> Result<Work, CudaError> {
        let Outer { u, d_y, cols, .. } = *self.p;
        let args = Args::new().tensor(d_y).int(d_y.pitch()).tensor(u).int(u.pitch());
        let args = columns(args.tensor(&self.parts.b), cols);
        let args = args.int(self.tokens).int(self.slices_b.tokens).int(self.rank);
        let blocks = [tiles(cols), self.slices_b.count, self.rank.div_ceil(RANKS)];
        let shared = 2 * UP_TOKENS * UP_COLS * 2 + UP_TOKENS * RANKS * 2;
        let grid = Grid { blocks, threads: UP_THREADS, shared };
        self.prepare(&GRAD_SOURCE, "lora_grad_up_mma", grid, args, self.up_cost())
    }

    /// Of the product of `d_y` with `u`.
    fn up_cost(&self) -> Cost {
        let Outer { d_y, u, cols, .. } = *self.p;
        let read = (self.tokens * total(cols) * d_y.dtype().bytes()) as f64;
        let part = (self.slices_b.count * total(cols) * self.rank * 4) as f64;
        Cost { flops: flops(self.tokens, total(cols), self.rank), bytes: read + bytes(&[u]) + part }
    }

    fn down_args(&self, x: &Tensor, slices: Slices) -> Args {
        let d_u = self.p.d_u;
        let args = Args::new().tensor(x).int(x.pitch()).tensor(d_u).int(d_u.pitch());
        let args = args.tensor(&self.parts.a).int(self.modules()).int(self.tokens).int(slices.tokens);
        masking(args.int(self.features).int(self.rank), self.dropout).tensor(self.scalars)
    }

    fn down_cost(&self, x: &Tensor, slices: Slices) -> Cost {
        let d_u = self.p.d_u;
        let part = (slices.count * d_u.cols() * self.features * 4) as f64;
        Cost { flops: flops(self.tokens, d_u.cols(), self.features), bytes: bytes(&[x, d_u]) + part }
    }

    fn down(&self, check: &Check, x: &Tensor, slices: Slices) -> Result<Work, CudaError> {
        if !self.fast {
            return self.plain_a(x, slices);
        }
        check.that(x.is_aligned(16), || "rows of x do not start at multiples of 16 bytes".to_owned())?;
        let blocks = [items(self.modules(), self.rank), slices.count, self.features.div_ceil(DOWN_COLS)];
        let grid = Grid { blocks, threads: DOWN_THREADS, shared: 0 };
        let args = self.down_args(x, slices);
        self.prepare(&GRAD_SOURCE, "lora_grad_down_mma", grid, args, self.down_cost(x, slices))
    }

    /// The part of the scratch memory that holds slices of `d_A`.
    pub(super) fn part_a(&self) -> &Tensor {
        &self.parts.a
    }

    /// Arguments that end a kernel with masks.
    pub(super) fn masked(&self, args: Args) -> Args {
        masking(args.int(self.features).int(self.rank), self.dropout).tensor(self.scalars)
    }

    /// Modules times groups of the ranks that a block takes.
    fn plain_items(&self) -> usize {
        self.modules() * self.rank.div_ceil(PLAIN_RANKS)
    }

    fn plain_b(&self) -> Result<Work, CudaError> {
        let Outer { d_y, u, cols, .. } = *self.p;
        let args = Args::new().tensor(d_y).int(d_y.pitch()).tensor(u).int(u.pitch());
        let args = columns(args.tensor(&self.parts.b), cols);
        let args = args.int(self.tokens).int(self.slices_b.tokens).int(self.rank);
        let most = cols.iter().map(|c| c.1).max().unwrap_or(0);
        let blocks = [most.div_ceil(32), self.slices_b.count, self.plain_items()];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        self.prepare(&PLAIN_SOURCE, self.plain("lora_grad_b"), grid, args, self.up_cost())
    }

    fn plain_a(&self, x: &Tensor, slices: Slices) -> Result<Work, CudaError> {
        let blocks = [self.features.div_ceil(32), slices.count, self.plain_items()];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        let args = self.down_args(x, slices);
        self.prepare(&PLAIN_SOURCE, self.plain("lora_grad_a"), grid, args, self.down_cost(x, slices))
    }

    /// `d_A` from its slices.
    pub(super) fn shares_of_a(&self, sums: &mut Sums, slices: Slices) -> Result<(), CudaError> {
        let (count, stride) = (self.rank * self.features, self.modules() * self.rank * self.features);
        let factor = if self.dropout.is_some() { Factor::Kept } else { Factor::One };
        for (m, d_a) in self.p.d_a.iter().enumerate() {
            let parts = self.parts.a.columns(m * count, count)?;
            sums.push(Share { parts, stride, slices: slices.count, target: d_a.clone(), factor });
        }
        Ok(())
    }

    /// `d_B` from its slices.
    pub(super) fn shares_of_b(&self, sums: &mut Sums) -> Result<(), CudaError> {
        let (mut before, stride) = (0, total(self.p.cols) * self.rank);
        for (d_b, columns) in self.p.d_b.iter().zip(self.p.cols) {
            let count = columns.1 * self.rank;
            let parts = self.parts.b.columns(before, count)?;
            let slices = self.slices_b.count;
            sums.push(Share { parts, stride, slices, target: d_b.clone(), factor: Factor::Scale });
            before += count;
        }
        Ok(())
    }
}

/// The parts of the scratch memory.
fn scratch(
    check: &Check,
    p: &Outer<'_>,
    (tokens, features, rank): (usize, usize, usize),
    slices_a: Slices,
) -> Result<Parts, CudaError> {
    let given = p.scratch;
    check.dense("scratch", given)?;
    let found = given.rows() * given.cols() * given.dtype().bytes();
    let needed = part_bytes(tokens, slices_a.count, features, rank, p.cols);
    let fits = found >= needed && given.pointer().is_multiple_of(16);
    check.that(fits, || format!("scratch has {found} bytes, not {needed} at a multiple of 16"))?;
    let mut offset = given.offset();
    let [a, b] = parts(tokens, slices_a.count, features, rank, p.cols).map(|count| {
        let start = offset;
        offset += (4 * count).next_multiple_of(ALIGN);
        given.memory().tensor(start, (1, count), count, Dtype::F32)
    });
    Ok(Parts { a: a?, b: b? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_every_token_and_are_at_most_64() {
        let narrow = [(0, 8)];
        for tokens in [0, 1, 63, 64, 65, 1000, 4096, 4097, 8192, 8193, 65_536] {
            let of_a = [(16, 3), (1024, 3)].map(|(rank, modules)| Slices::of_a(tokens, 896, rank, modules));
            let of_b = [16, 1024].map(|rank| Slices::of_b(tokens, rank, &narrow));
            for slices in of_a.into_iter().chain(of_b) {
                assert!(
                    slices.count <= 64 && slices.tokens.is_multiple_of(UP_TOKENS),
                    "{tokens}: {slices:?}"
                );
                assert!(slices.count * slices.tokens >= tokens, "{tokens}: {slices:?}");
                assert!(
                    slices.count == 0 || (slices.count - 1) * slices.tokens < tokens,
                    "{tokens}: {slices:?}"
                );
            }
        }
        assert_eq!(Slices::of_a(8192, 896, 16, 3), Slices { count: 12, tokens: 704 });
        assert_eq!(Slices::of_a(8192, 896, 16, 1), Slices { count: 32, tokens: 256 });
        let gate_up = [(0, 4864), (4864, 4864)];
        for rank in [1, 16, 64] {
            assert_eq!(Slices::of_b(8192, rank, &gate_up), Slices { count: 7, tokens: 1216 });
        }
        assert_eq!(Slices::of_b(8192, 128, &gate_up), Slices { count: 1, tokens: 8192 });
    }

    #[test]
    fn scratch_holds_all_partial_sums() {
        // 16 slices of 64 tokens; d_B wants 264 / 5 slices of its 4 + 1 tiles and gets the 16 that there are.
        let needed = 4 * (16 * 2 * 16 * 96 + 16 * 1032 * 16);
        assert_eq!(scratch_bytes(1000, 96, 16, &[(0, 1024), (1024, 8)]), needed);
    }
}
