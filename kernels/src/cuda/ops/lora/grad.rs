//! Gradients of adapters: `lora_grad.cu` on tensor cores, `lora_plain.cu` otherwise.

use super::{
    Dropout, RANKS, THREADS, columns, down_weights, each, flops, masking, masks, on_tensor_cores,
    scalars_fit, stat, up_weights, weights,
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

/// Columns of a stage of the kernel that reads `d_y`, and tokens of it.
const UP_COLS: usize = 256;
const UP_TOKENS: usize = 64;
const UP_THREADS: usize = 128;
/// Features of a block of the kernel that reads `x`.
const DOWN_COLS: usize = 64;
const DOWN_THREADS: usize = 128;
/// Tokens and features of a warp of the kernel that adds to `d_x`.
const INPUT_TOKENS: usize = 128;
const INPUT_COLS: usize = 32;
const INPUT_WARPS: usize = 4;
/// Parts of the scratch memory start at multiples of this.
const ALIGN: usize = 256;

/// What [`grad_params`] reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    /// `T x K`.
    pub x: &'a Tensor,
    /// `T x (n r)` float32, of the way forward.
    pub u: &'a Tensor,
    /// `T x N`, of the type of `x`.
    pub d_y: &'a Tensor,
    /// `N_m x r` each, of the type of `x`.
    pub b: &'a [Tensor],
    /// Start and `N_m` of each module in `d_y`.
    pub cols: &'a [(usize, usize)],
    /// `T x (n r)` float32, written.
    pub d_u: &'a Tensor,
    /// `r x K` float32 each, added to.
    pub d_a: &'a [Tensor],
    /// `N_m x r` float32 each, added to.
    pub d_b: &'a [Tensor],
    /// At least [`scratch_bytes`], at a multiple of 16 bytes.
    pub scratch: &'a Tensor,
}

/// How tokens are cut into slices: depends on their number alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slices {
    count: usize,
    tokens: usize,
}

impl Slices {
    fn of(tokens: usize) -> Self {
        let most = match tokens {
            0..=4096 => 16,
            4097..=8192 => 32,
            _ => 64,
        };
        let size = tokens.div_ceil(most).next_multiple_of(UP_TOKENS).max(UP_TOKENS);
        Slices { count: tokens.div_ceil(size), tokens: size }
    }
}

/// Stages side by side in a block of the kernel that reads `d_y`: the wider, the fewer partial sums of `d_u`.
fn halves(cols: &[(usize, usize)]) -> usize {
    if cols.iter().any(|c| c.1 >= 2048) { 2 } else { 1 }
}

fn tiles(cols: &[(usize, usize)]) -> usize {
    cols.iter().map(|c| c.1.div_ceil(UP_COLS * halves(cols))).sum()
}

fn total(cols: &[(usize, usize)]) -> usize {
    cols.iter().map(|c| c.1).sum()
}

/// Words of [`Parts`].
fn parts(tokens: usize, features: usize, rank: usize, cols: &[(usize, usize)]) -> [usize; 4] {
    let Slices { count: slices, tokens: slice } = Slices::of(tokens);
    [
        tiles(cols) * tokens * rank,
        cols.len() * rank.next_multiple_of(RANKS) * slices * slice / 2,
        slices * cols.len() * rank * features,
        slices * total(cols) * rank,
    ]
}

/// Bytes of scratch memory that [`grad_params`] needs; `cols`: start and `N_m` of each module.
#[must_use]
pub fn scratch_bytes(tokens: usize, features: usize, rank: usize, cols: &[(usize, usize)]) -> usize {
    parts(tokens, features, rank, cols).iter().map(|count| (4 * count).next_multiple_of(ALIGN)).sum()
}

/// `d_u_m = lora_scale d_y_m B_m`, `d_B_m += lora_scale d_y_m^T u_m`, `d_A_m += d_u_m^T drop_m(x)`: pieces of work to run in
/// this order. Sums over tokens go over slices whose number depends on `T` alone, then over the slices in order.
///
/// # Errors
/// When shapes or types do not fit, or the scratch memory is too small.
pub fn grad_params(
    p: &Params<'_>,
    dropout: Option<&Dropout<'_>>,
    scalars: &Tensor,
) -> Result<Vec<Work>, CudaError> {
    let check = Check::new("lora_grad_params");
    let job = Job::new(&check, p, dropout, scalars)?;
    let fast = on_tensor_cores(p.x, &[])
        && job.rank.is_multiple_of(2)
        && p.d_y.is_aligned(16)
        && p.cols.iter().all(|c| c.0.is_multiple_of(8) && c.1.is_multiple_of(8))
        && (!job.rank.is_multiple_of(8) || p.b.iter().all(|b| b.is_aligned(16)));
    let mut works = if fast {
        vec![job.up_mma()?, job.sum_u()?, job.down_mma()?]
    } else {
        vec![job.plain_u()?, job.plain_b()?, job.plain_a()?]
    };
    works.push(job.sum()?);
    Ok(works)
}

/// The scratch memory.
struct Parts {
    /// Partial sums of `d_u`.
    u: Tensor,
    /// `d_u` transposed, in bfloat16.
    left: Tensor,
    /// Partial sums of `d_A` and `d_B`.
    a: Tensor,
    b: Tensor,
}

/// Checked operands of [`grad_params`].
struct Job<'a> {
    p: &'a Params<'a>,
    dropout: Option<&'a Dropout<'a>>,
    scalars: &'a Tensor,
    rank: usize,
    slices: Slices,
    parts: Parts,
}

impl<'a> Job<'a> {
    fn new(
        check: &Check,
        p: &'a Params<'a>,
        dropout: Option<&'a Dropout<'a>>,
        scalars: &'a Tensor,
    ) -> Result<Self, CudaError> {
        check.float("x", p.x)?;
        let (tokens, features) = (p.x.rows(), p.x.cols());
        check.shape("d_y", p.d_y, tokens, p.d_y.cols())?;
        check.dtype("d_y", p.d_y, p.x.dtype())?;
        let rank = up_weights(check, p.b, p.cols, p.d_y.cols(), Some(p.x.dtype()))?;
        let modules = p.b.len();
        stat(check, "u", p.u, tokens, modules * rank)?;
        stat(check, "d_u", p.d_u, tokens, modules * rank)?;
        let gradients = [p.d_a.len(), p.d_b.len()];
        check.that(gradients == [modules; 2], || {
            format!("gradients of {gradients:?} factors for {modules} modules")
        })?;
        for (m, (d_a, d_b)) in p.d_a.iter().zip(p.d_b).enumerate() {
            stat(check, "d_a", d_a, rank, features)?;
            stat(check, "d_b", d_b, p.cols[m].1, rank)?;
            check.dense("d_a", d_a)?;
            check.dense("d_b", d_b)?;
        }
        masks(check, dropout, modules, tokens)?;
        scalars_fit(check, scalars)?;
        let parts = scratch(check, p, rank)?;
        Ok(Job { p, dropout, scalars, rank, slices: Slices::of(tokens), parts })
    }

    fn prepare(
        &self,
        source: &'static Source,
        name: impl Into<String>,
        grid: Grid,
        args: Args,
        cost: Cost,
    ) -> Result<Work, CudaError> {
        Launch::prepare(self.p.x.memory().gpu(), source, name, grid, args, cost)
    }

    fn modules(&self) -> usize {
        self.p.b.len()
    }

    /// The plain kernels of this type.
    fn plain(&self, name: &str) -> String {
        format!("{name}_{}", self.p.x.dtype().suffix())
    }

    /// `d_u` by column tiles and `d_B` by slices, `d_y` read once.
    fn up_mma(&self) -> Result<Work, CudaError> {
        let Params { u, d_y, b, cols, .. } = *self.p;
        let halves = halves(cols);
        let args = each(Args::new().tensor(d_y).int(d_y.pitch()).tensor(u).int(u.pitch()), b);
        let args = columns(args.tensor(&self.parts.u).tensor(&self.parts.b), cols);
        let args = args.int(d_y.rows()).int(self.slices.tokens).int(self.rank).int(halves);
        let blocks = [tiles(cols), self.slices.count, self.rank.div_ceil(RANKS)];
        let stages = 2 * UP_TOKENS * UP_COLS * 2;
        let shared = stages + (UP_TOKENS + halves * UP_COLS) * RANKS * 2;
        let grid = Grid { blocks, threads: UP_THREADS, shared };
        self.prepare(&GRAD_SOURCE, "lora_grad_up_mma", grid, args, self.up_cost(2.0))
    }

    /// `products` of `d_y` with something of rank `r`.
    fn up_cost(&self, products: f64) -> Cost {
        let Params { d_y, b, u, cols, .. } = *self.p;
        let read = (d_y.rows() * total(cols) * d_y.dtype().bytes()) as f64;
        Cost {
            flops: products * flops(d_y.rows(), total(cols), self.rank),
            bytes: read + bytes(&[u, &self.parts.b]) + weights(b),
        }
    }

    fn sum_u(&self) -> Result<Work, CudaError> {
        let Params { d_u, cols, .. } = *self.p;
        let Parts { u, left, .. } = &self.parts;
        let args = Args::new().tensor(u).tensor(d_u).int(d_u.pitch()).tensor(left);
        let args = columns(args, cols).int(d_u.rows()).int(self.rank);
        let args = args.int(halves(cols)).tensor(self.scalars);
        let Slices { count, tokens } = self.slices;
        let blocks = [count * tokens / UP_TOKENS, self.items(), 1];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        let cost = Cost { flops: u.cols() as f64, bytes: bytes(&[u, d_u, left]) };
        self.prepare(&GRAD_SOURCE, "lora_sum_u", grid, args, cost)
    }

    /// Modules times groups of 16 ranks.
    fn items(&self) -> usize {
        self.modules() * self.rank.div_ceil(RANKS)
    }

    fn down_args(&self, left: Args) -> Args {
        let args = left.tensor(&self.parts.a).int(self.modules());
        let args = args.int(self.p.x.rows()).int(self.slices.tokens);
        masking(args.int(self.p.x.cols()).int(self.rank), self.dropout).tensor(self.scalars)
    }

    fn down_cost(&self) -> Cost {
        let Params { x, d_u, .. } = *self.p;
        Cost { flops: flops(x.rows(), d_u.cols(), x.cols()), bytes: bytes(&[x, d_u, &self.parts.a]) }
    }

    fn down_mma(&self) -> Result<Work, CudaError> {
        let x = self.p.x;
        let args = self.down_args(Args::new().tensor(x).int(x.pitch()).tensor(&self.parts.left));
        let blocks = [self.items(), self.slices.count, x.cols().div_ceil(DOWN_COLS)];
        let grid = Grid { blocks, threads: DOWN_THREADS, shared: 0 };
        self.prepare(&GRAD_SOURCE, "lora_grad_down_mma", grid, args, self.down_cost())
    }

    fn plain_u(&self) -> Result<Work, CudaError> {
        let Params { d_y, b, d_u, cols, .. } = *self.p;
        let args = each(Args::new().tensor(d_y).int(d_y.pitch()), b).tensor(d_u).int(d_u.pitch());
        let args = columns(args, cols).int(self.rank).tensor(self.scalars);
        let grid = Grid { blocks: [d_y.rows(), self.modules(), 1], threads: THREADS, shared: 0 };
        self.prepare(&PLAIN_SOURCE, self.plain("lora_grad_u"), grid, args, self.up_cost(1.0))
    }

    fn plain_b(&self) -> Result<Work, CudaError> {
        let Params { d_y, u, cols, .. } = *self.p;
        let args = Args::new().tensor(d_y).int(d_y.pitch()).tensor(u).int(u.pitch());
        let args = columns(args.tensor(&self.parts.b), cols);
        let args = args.int(d_y.rows()).int(self.slices.tokens).int(self.rank);
        let most = cols.iter().map(|c| c.1).max().unwrap_or(0);
        let blocks = [most.div_ceil(32), self.slices.count, self.modules()];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        self.prepare(&PLAIN_SOURCE, self.plain("lora_grad_b"), grid, args, self.up_cost(1.0))
    }

    fn plain_a(&self) -> Result<Work, CudaError> {
        let Params { x, d_u, .. } = *self.p;
        let args = Args::new().tensor(x).int(x.pitch()).tensor(d_u).int(d_u.pitch());
        let args = self.down_args(args);
        let blocks = [self.p.x.cols().div_ceil(32), self.slices.count, self.modules()];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        self.prepare(&PLAIN_SOURCE, self.plain("lora_grad_a"), grid, args, self.down_cost())
    }

    /// `d_A` and `d_B` from their slices.
    fn sum(&self) -> Result<Work, CudaError> {
        let Params { x, cols, d_a, d_b, .. } = *self.p;
        let Parts { a: part_a, b: part_b, .. } = &self.parts;
        let args = each(each(Args::new().tensor(part_a).tensor(part_b), d_a), d_b);
        let args = columns(args, cols).int(self.modules()).int(self.slices.count).int(x.cols());
        let args = args.int(self.rank).int(usize::from(self.dropout.is_some())).tensor(self.scalars);
        let most = cols.iter().map(|c| c.1).max().unwrap_or(0).max(x.cols()) * self.rank;
        let blocks = [most.div_ceil(THREADS), 2 * self.modules(), 1];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        let cost = Cost {
            flops: (part_a.cols() + part_b.cols()) as f64,
            bytes: bytes(&[part_a, part_b]) + 2.0 * (weights(d_a) + weights(d_b)),
        };
        self.prepare(&GRAD_SOURCE, "lora_sum", grid, args, cost)
    }
}

/// The parts of the scratch memory.
fn scratch(check: &Check, p: &Params<'_>, rank: usize) -> Result<Parts, CudaError> {
    let (tokens, features, given) = (p.x.rows(), p.x.cols(), p.scratch);
    check.dense("scratch", given)?;
    let found = given.rows() * given.cols() * given.dtype().bytes();
    let needed = scratch_bytes(tokens, features, rank, p.cols);
    let fits = found >= needed && given.pointer().is_multiple_of(16);
    check.that(fits, || format!("scratch has {found} bytes, not {needed} at a multiple of 16"))?;
    let mut offset = given.offset();
    let [u, left, a, b] = parts(tokens, features, rank, p.cols).map(|count| {
        let start = offset;
        offset += (4 * count).next_multiple_of(ALIGN);
        given.memory().tensor(start, (1, count), count, Dtype::F32)
    });
    Ok(Parts { u: u?, left: left?, a: a?, b: b? })
}

/// `d_x += sum over modules of drop_m(d_u_m A_m)`; `d_x`: `T x K`, read and written once.
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
    let rank = down_weights(&check, d_x, a)?;
    stat(&check, "d_u", d_u, d_x.rows(), a.len() * rank)?;
    masks(&check, dropout, a.len(), d_x.rows())?;
    scalars_fit(&check, scalars)?;
    let args = each(Args::new().tensor(d_u).int(d_u.pitch()), a).tensor(d_x).int(d_x.pitch());
    let pairs = rank.is_multiple_of(2) && d_u.is_aligned(8);
    let (source, name, grid, args) = if on_tensor_cores(d_x, a) && pairs {
        let items = d_x.cols().div_ceil(INPUT_COLS) * d_x.rows().div_ceil(INPUT_TOKENS);
        let grid = Grid::line(items.div_ceil(INPUT_WARPS), 32 * INPUT_WARPS);
        (&GRAD_SOURCE, format!("lora_grad_input_mma_{}", a.len()), grid, args.int(d_x.rows()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_every_token_and_are_at_most_64() {
        for tokens in [0, 1, 63, 64, 65, 1000, 4096, 4097, 8192, 8193, 65_536] {
            let slices = Slices::of(tokens);
            assert!(slices.count <= 64 && slices.tokens.is_multiple_of(UP_TOKENS), "{tokens}: {slices:?}");
            assert!(slices.count * slices.tokens >= tokens, "{tokens}: {slices:?}");
            assert!(slices.count == 0 || (slices.count - 1) * slices.tokens < tokens, "{tokens}: {slices:?}");
        }
        assert_eq!(Slices::of(8192), Slices { count: 32, tokens: 256 });
    }

    #[test]
    fn scratch_holds_all_partial_sums() {
        // 4 + 1 tiles of 256 columns, 16 slices of 64 tokens.
        let needed = 4 * (5 * 1000 * 16 + 2 * 16 * 1024 / 2 + 16 * 2 * 16 * 96 + 16 * 1032 * 16);
        assert_eq!(scratch_bytes(1000, 96, 16, &[(0, 1024), (1024, 8)]), needed);
    }
}
