//! Attention over packed sequences: `attention.cu`, and for bfloat16 with usual head dimensions `attention_flash.cu`,
//! `attention_flash_grad.cu`, `attention_wgmma.cu` and `attention_wgmma_kv.cu`.
//!
//! Which [`Version`] runs depends on types, head dimension, alignment of the views and the device, for each [`Part`], never on lengths or load.
//! `spans` is `T x 2` u32: the first token of each token's sequence and one past its last. Sequences follow one another, so
//! both columns never fall. Every token sees itself, whatever its span says; no span makes a kernel read outside its views.

use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Properties, Tensor, Work};

/// The plain kernels.
pub static SOURCE: Source = Source { name: "attention.cu", text: include_str!("../../../attention.cu") };
/// Forward on tensor cores.
pub static FLASH: Source =
    Source { name: "attention_flash.cu", text: include_str!("../../../attention_flash.cu") };
/// Backward on tensor cores.
pub static FLASH_GRAD: Source =
    Source { name: "attention_flash_grad.cu", text: include_str!("../../../attention_flash_grad.cu") };

/// Forward and the gradient by queries on the tensor cores of Hopper.
pub static WGMMA: Source =
    Source { name: "attention_wgmma.cu", text: include_str!("../../../attention_wgmma.cu") };
/// The gradient by keys and values, likewise.
pub static WGMMA_KV: Source =
    Source { name: "attention_wgmma_kv.cu", text: include_str!("../../../attention_wgmma_kv.cu") };

/// Query rows of a block on tensor cores.
const FLASH_ROWS: usize = 128;
/// Keys of a tile on tensor cores, and of a block of the gradient by keys and values where products are of one warp.
const FLASH_KEYS: usize = 64;
/// Keys of a block of the gradient by keys and values where products are of four warps.
const GROUP_KEYS: usize = 128;
/// Shared memory of such a block: stages of two tiles and their rows' numbers, gates, keys and values.
const GROUP_KEYS_SHARED: usize = 6 * (2 * 64 * 128 + 1024) + 1024 + 2 * GROUP_KEYS * 128;
/// Queries that a team takes at once in the gradient by keys and values.
const TEAM_QUERIES: usize = 32;
/// The greatest head dimension.
pub const MOST_DIM: usize = 256;

/// Implementations of the same functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Any type and head dimension.
    Plain,
    /// Products of one warp: bfloat16, head dimensions 32, 64 and 128, views aligned to 16 bytes, on devices whose blocks
    /// may have enough shared memory (128 KiB for the gradient by queries of 128).
    Warp,
    /// Products of four warps: of these, head dimension 64 on devices of compute capability 9.
    WarpGroup,
}

/// The kernels of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Forward,
    GradQ,
    GradKv,
}

impl Part {
    /// Bytes of shared memory that a block of [`Version::Warp`] takes.
    fn warp_shared(self, dim: usize) -> usize {
        match self {
            Part::Forward => (FLASH_ROWS + 4 * FLASH_KEYS) * dim * 2,
            Part::GradQ => (2 * FLASH_ROWS + 4 * FLASH_KEYS) * dim * 2,
            Part::GradKv => {
                let teams = if dim > 64 { 2 } else { 4 };
                2 * FLASH_KEYS * dim * 2 + teams * 2 * TEAM_QUERIES * (2 * dim * 2 + 3 * 4)
            }
        }
    }
}

impl Version {
    /// The fastest that can do this part on these views.
    #[must_use]
    pub fn best(part: Part, tensors: &[&Tensor], heads: Heads) -> Version {
        let usual = tensors.iter().all(|tensor| tensor.dtype() == Dtype::Bf16 && tensor.is_aligned(16));
        tensors.iter().fold(Version::WarpGroup, |best, tensor| {
            best.min(Version::on(tensor.memory().gpu().properties(), part, usual, heads.dim))
        })
    }

    /// The fastest on such a device; `usual`: bfloat16 at multiples of 16 bytes.
    fn on(device: &Properties, part: Part, usual: bool, dim: usize) -> Version {
        let fits = part.warp_shared(dim) <= device.shared_per_block as usize;
        if !usual || !matches!(dim, 32 | 64 | 128) || !fits {
            Version::Plain
        } else if device.compute_capability.0 == 9 && dim == 64 {
            Version::WarpGroup
        } else {
            Version::Warp
        }
    }

    /// The given version, if it can work on these views, else the best.
    fn choose(
        check: &Check,
        wanted: Option<Version>,
        part: Part,
        tensors: &[&Tensor],
        heads: Heads,
    ) -> Result<Version, CudaError> {
        let best = Version::best(part, tensors, heads);
        let version = wanted.unwrap_or(best);
        check.that(version <= best, || format!("{version:?} can't run here; {best:?} can"))?;
        Ok(version)
    }
}

/// Head counts of grouped-query attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub query: usize,
    /// Divides `query`: query head `h` uses key-value head `h / (query / kv)`.
    pub kv: usize,
    pub dim: usize,
}

impl Heads {
    /// Columns of queries.
    #[must_use]
    pub fn query_cols(&self) -> usize {
        self.query * self.dim
    }

    /// Columns of keys and values together.
    #[must_use]
    pub fn kv_cols(&self) -> usize {
        2 * self.kv * self.dim
    }

    /// `1 / sqrt(dim)`.
    pub(super) fn scale(&self) -> f32 {
        (1.0 / (self.dim as f64).sqrt()) as f32
    }

    pub(super) fn check(&self, check: &Check) -> Result<(), CudaError> {
        let usable = self.kv > 0
            && self.query > 0
            && self.query.is_multiple_of(self.kv)
            && (1..=MOST_DIM).contains(&self.dim);
        check.that(usable, || {
            format!("{self:?}: heads must divide evenly, and their dimension be 1 to {MOST_DIM}")
        })
    }
}

/// Operands of [`super::rope::apply`].
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    pub positions: &'a Tensor,
    pub table: &'a Tensor,
}

/// The order in which tiles are taken, longest first: no result depends on it, but a device is used better. Kernels for four
/// warps heed it.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// [`Tiles::queries`] on the device, a column of u32.
    pub queries: &'a Tensor,
    /// [`Tiles::keys`], likewise.
    pub keys: &'a Tensor,
}

/// Numbers of tiles, those with most to do first, the earlier of equal ones first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    /// Of 128 queries.
    pub queries: Vec<u32>,
    /// Of 128 keys.
    pub keys: Vec<u32>,
}

impl Tiles {
    /// Of tokens with these spans: first token of the sequence and one past its last, for each.
    #[must_use]
    pub fn longest_first(spans: &[u32]) -> Self {
        let spans = spans.as_chunks::<2>().0;
        let sorted = |rows: usize, length: &dyn Fn(usize, usize) -> usize| {
            let tile = |i: usize| length(i * rows, spans.len().min((i + 1) * rows) - 1);
            let mut order: Vec<u32> = (0..spans.len().div_ceil(rows) as u32).collect();
            order.sort_by_key(|&i| std::cmp::Reverse(tile(i as usize)));
            order
        };
        // Keys that the rows see, queries that see the keys: in tiles.
        let keys = |first: usize, last: usize| (last - first.min(spans[first][0] as usize)) / FLASH_KEYS;
        let queries = |first: usize, last: usize| {
            ((last + 1).max(spans[last][1] as usize) - first).div_ceil(FLASH_KEYS)
        };
        Tiles { queries: sorted(FLASH_ROWS, &keys), keys: sorted(GROUP_KEYS, &queries) }
    }

    /// How many tiles of queries and of keys so many tokens have.
    #[must_use]
    pub fn counts(tokens: usize) -> [usize; 2] {
        [tokens.div_ceil(FLASH_ROWS), tokens.div_ceil(GROUP_KEYS)]
    }
}

impl Order<'_> {
    fn check(order: Option<&Self>, check: &Check, tokens: usize) -> Result<(), CudaError> {
        let Some(Order { queries, keys }) = order else { return Ok(()) };
        let [query_tiles, key_tiles] = Tiles::counts(tokens);
        check.column("order of queries", queries, query_tiles, Dtype::U32)?;
        check.column("order of keys", keys, key_tiles, Dtype::U32)
    }
}

/// What both halves of the backward read.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// `T x query*dim`, float32 or bfloat16.
    pub q: &'a Tensor,
    /// `T x 2*kv*dim`, of the same type: keys, then values.
    pub kv: &'a Tensor,
    /// `T x 2` u32.
    pub spans: &'a Tensor,
    /// `T x query` float32, of [`forward`].
    pub lse: &'a Tensor,
    /// `T x query` float32, of [`delta`].
    pub delta: &'a Tensor,
    /// `T x query*dim`, of the type of `q`.
    pub d_out: &'a Tensor,
    pub heads: Heads,
    pub order: Option<Order<'a>>,
    /// The rotation that `q` and `kv` went through: with it, gradients are those by what went into it.
    pub turn: Option<Turn<'a>>,
}

/// `out = softmax(q k^T / sqrt(dim)) v`, causal inside each sequence, and `lse`, each row's log-sum-exp (natural
/// logarithm); `q`, `out`: `T x query*dim`, `kv`: `T x 2*kv*dim` (keys, then values), float32 or bfloat16; `spans`: `T x 2`
/// u32; `lse`: `T x query` float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward(
    q: &Tensor,
    kv: &Tensor,
    (spans, order): (&Tensor, Option<&Order<'_>>),
    out: &Tensor,
    lse: &Tensor,
    heads: Heads,
) -> Result<Work, CudaError> {
    forward_by(None, q, kv, (spans, order), (out, lse), heads)
}

/// [`forward`] by a version of the caller's choice.
///
/// # Errors
/// When shapes or types do not fit, or the version can't work on them.
pub fn forward_by(
    version: Option<Version>,
    q: &Tensor,
    kv: &Tensor,
    (spans, order): (&Tensor, Option<&Order<'_>>),
    (out, lse): (&Tensor, &Tensor),
    heads: Heads,
) -> Result<Work, CudaError> {
    let check = Check::new("attention");
    operands(&check, q, kv, spans, heads)?;
    like(&check, "out", out, q)?;
    statistic(&check, "lse", lse, q.rows(), heads)?;
    Order::check(order, &check, q.rows())?;
    let args = Args::new()
        .tensor(q)
        .int(q.pitch())
        .tensor(kv)
        .int(kv.pitch())
        .tensor(spans)
        .tensor(out)
        .int(out.pitch())
        .tensor(lse)
        .int(q.rows())
        .int(heads.query)
        .int(heads.kv);
    let shared = Part::Forward.warp_shared(heads.dim);
    let version = Version::choose(&check, version, Part::Forward, &[q, kv, out], heads)?;
    let (source, name, grid, args) = match version {
        Version::Plain => {
            let name = format!("attention_{}", q.dtype().suffix());
            (&SOURCE, name, plain_grid(q.rows() * heads.query), args.int(heads.dim))
        }
        Version::Warp => {
            let threads = if heads.dim > 64 { 256 } else { 128 };
            let grid = flash_grid(q.rows(), heads, threads, shared);
            (&FLASH, format!("attention_flash_{}", heads.dim), grid, args)
        }
        Version::WarpGroup => {
            let args = args.optional(order.map(|order| order.queries));
            (&WGMMA, "attention_wgmma".to_owned(), flash_grid(q.rows(), heads, 256, shared), args)
        }
    };
    let cost = Cost { flops: 0.0, bytes: bytes(&[q, kv, spans, out, lse]) };
    Launch::prepare(q.memory().gpu(), source, name, grid, args.float(heads.scale()), cost)
}

/// `delta[t,h] = sum over the head's columns of out d_out`; `out`, `d_out`: `T x query*dim`, float32 or bfloat16; `delta`:
/// `T x query` float32.
///
/// # Errors
/// When shapes or types do not fit.
pub fn delta(out: &Tensor, d_out: &Tensor, delta: &Tensor, heads: Heads) -> Result<Work, CudaError> {
    let check = Check::new("attention_delta");
    heads.check(&check)?;
    check.float("out", out)?;
    check.shape("out", out, out.rows(), heads.query_cols())?;
    like(&check, "d_out", d_out, out)?;
    statistic(&check, "delta", delta, out.rows(), heads)?;
    let args = Args::new()
        .tensor(out)
        .int(out.pitch())
        .tensor(d_out)
        .int(d_out.pitch())
        .tensor(delta)
        .int(out.rows())
        .int(heads.query)
        .int(heads.dim);
    let pairs = out.rows() * heads.query;
    let cost = Cost { flops: (2 * pairs * heads.dim) as f64, bytes: bytes(&[out, d_out, delta]) };
    let pack = 16 / out.dtype().bytes();
    let lanes = heads.dim / pack;
    let wide = heads.dim.is_multiple_of(pack)
        && lanes.is_power_of_two()
        && lanes <= 32
        && out.is_aligned(16)
        && d_out.is_aligned(16);
    let (kind, grid) =
        if wide { ("wide_", Grid::items(pairs * lanes, 256)) } else { ("", plain_grid(pairs)) };
    let name = format!("attention_delta_{kind}{}", out.dtype().suffix());
    Launch::prepare(out.memory().gpu(), &SOURCE, name, grid, args, cost)
}

/// Gradient by the queries, `T x query*dim`; probabilities are computed again from `lse`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn grad_q(saved: &Saved<'_>, d_q: &Tensor) -> Result<Work, CudaError> {
    grad_q_by(None, saved, d_q)
}

/// [`grad_q`] by a version of the caller's choice.
///
/// # Errors
/// When shapes or types do not fit, or the version can't work on them.
pub fn grad_q_by(version: Option<Version>, saved: &Saved<'_>, d_q: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("attention_grad_q");
    saved.check(&check)?;
    like(&check, "d_q", d_q, saved.q)?;
    let (rows, heads) = (saved.q.rows(), saved.heads);
    let shared = Part::GradQ.warp_shared(heads.dim);
    let version = saved.choose(&check, version, Part::GradQ, d_q)?;
    let grid = match version {
        Version::Plain => plain_grid(rows * heads.query),
        Version::Warp => flash_grid(rows, heads, if heads.dim > 64 { 256 } else { 128 }, shared),
        Version::WarpGroup => flash_grid(rows, heads, 256, shared),
    };
    saved.launch(&check, "grad_q", version, d_q, grid)
}

/// Gradient by keys and values, `T x 2*kv*dim`: the sum over the query heads of each group, in a fixed order.
///
/// # Errors
/// When shapes or types do not fit.
pub fn grad_kv(saved: &Saved<'_>, d_kv: &Tensor) -> Result<Work, CudaError> {
    grad_kv_by(None, saved, d_kv)
}

/// [`grad_kv`] by a version of the caller's choice.
///
/// # Errors
/// When shapes or types do not fit, or the version can't work on them.
pub fn grad_kv_by(version: Option<Version>, saved: &Saved<'_>, d_kv: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("attention_grad_kv");
    saved.check(&check)?;
    like(&check, "d_kv", d_kv, saved.kv)?;
    let (rows, heads) = (saved.q.rows(), saved.heads);
    let version = saved.choose(&check, version, Part::GradKv, d_kv)?;
    let (which, grid) = match version {
        Version::Plain => ("grad_kv", plain_grid(rows * heads.kv)),
        Version::Warp => {
            let blocks = [heads.kv, rows.div_ceil(FLASH_KEYS), 1];
            ("grad_kv", Grid { blocks, threads: 256, shared: Part::GradKv.warp_shared(heads.dim) })
        }
        Version::WarpGroup => group_grid(saved.q, heads),
    };
    saved.launch(&check, which, version, d_kv, grid)
}

/// The gradient by keys and values, for four warps: as many blocks share keys as the device has room for.
fn group_grid(q: &Tensor, heads: Heads) -> (&'static str, Grid) {
    let key_blocks = q.rows().div_ceil(GROUP_KEYS);
    let (blocks, room) = (heads.kv * key_blocks, 2 * multiprocessors(q));
    let (which, share) = if blocks * 4 <= room {
        ("grad_kv_4", 4)
    } else if blocks * 2 <= room {
        ("grad_kv_2", 2)
    } else {
        ("grad_kv", 1)
    };
    (which, Grid { blocks: [heads.kv, key_blocks, share], threads: 384, shared: GROUP_KEYS_SHARED })
}

impl<'a> Saved<'a> {
    /// Whether gradients into these tensors can be turned back: only kernels for four warps do that.
    #[must_use]
    pub fn turns(&self, results: [&Tensor; 2]) -> bool {
        let version = |part, result| Version::best(part, &[self.q, self.kv, self.d_out, result], self.heads);
        let [d_q, d_kv] = results;
        [version(Part::GradQ, d_q), version(Part::GradKv, d_kv)] == [Version::WarpGroup; 2]
    }

    /// Positions, table and its rows.
    fn turn_args(&self, check: &Check, version: Version, args: Args) -> Result<Args, CudaError> {
        let Some(Turn { positions, table }) = self.turn else {
            let none =
                if version == Version::WarpGroup { args.optional(None).optional(None).int(0) } else { args };
            return Ok(none);
        };
        check.that(version == Version::WarpGroup, || {
            format!("{version:?} kernels don't turn gradients back")
        })?;
        check.column("positions", positions, self.q.rows(), Dtype::U32)?;
        check.shape("table", table, table.rows(), self.heads.dim)?;
        check.dtype("table", table, Dtype::F32)?;
        check.dense("table", table)?;
        let fits = table.rows() > 0 && table.is_aligned(8);
        check.that(fits, || "the table is empty or not at a multiple of 8 bytes".to_owned())?;
        Ok(args.tensor(positions).tensor(table).int(table.rows()))
    }

    fn check(&self, check: &Check) -> Result<(), CudaError> {
        operands(check, self.q, self.kv, self.spans, self.heads)?;
        like(check, "d_out", self.d_out, self.q)?;
        statistic(check, "lse", self.lse, self.q.rows(), self.heads)?;
        statistic(check, "delta", self.delta, self.q.rows(), self.heads)?;
        Order::check(self.order.as_ref(), check, self.q.rows())
    }

    fn choose(
        &self,
        check: &Check,
        wanted: Option<Version>,
        part: Part,
        result: &Tensor,
    ) -> Result<Version, CudaError> {
        Version::choose(check, wanted, part, &[self.q, self.kv, self.d_out, result], self.heads)
    }

    fn launch(
        &self,
        check: &Check,
        which: &str,
        version: Version,
        result: &Tensor,
        grid: Grid,
    ) -> Result<Work, CudaError> {
        let Saved { q, kv, spans, lse, delta, d_out, heads, .. } = *self;
        let args = Args::new()
            .tensor(q)
            .int(q.pitch())
            .tensor(kv)
            .int(kv.pitch())
            .tensor(spans)
            .tensor(lse)
            .tensor(delta)
            .tensor(d_out)
            .int(d_out.pitch())
            .tensor(result)
            .int(result.pitch())
            .int(q.rows())
            .int(heads.query)
            .int(heads.kv);
        let args = self.turn_args(check, version, args)?;
        let (source, name, args) = match version {
            Version::Plain => {
                (&SOURCE, format!("attention_{which}_{}", q.dtype().suffix()), args.int(heads.dim))
            }
            Version::Warp => (&FLASH_GRAD, format!("attention_flash_{which}_{}", heads.dim), args),
            Version::WarpGroup => {
                let order = |order: Order<'a>| if which == "grad_q" { order.queries } else { order.keys };
                let args = args.optional(self.order.map(order));
                let source = if which == "grad_q" { &WGMMA } else { &WGMMA_KV };
                (source, format!("attention_wgmma_{which}"), args)
            }
        };
        let cost = Cost { flops: 0.0, bytes: bytes(&[q, kv, spans, lse, delta, d_out, result]) };
        Launch::prepare(q.memory().gpu(), source, name, grid, args.float(heads.scale()), cost)
    }
}

fn multiprocessors(tensor: &Tensor) -> usize {
    tensor.memory().gpu().properties().multiprocessors as usize
}

/// Tiles of queries of each head.
fn flash_grid(rows: usize, heads: Heads, threads: usize, shared: usize) -> Grid {
    Grid { blocks: [heads.query, rows.div_ceil(FLASH_ROWS), 1], threads, shared }
}

/// One warp an item, four a block.
fn plain_grid(items: usize) -> Grid {
    Grid::line(items.div_ceil(4), 128)
}

fn operands(check: &Check, q: &Tensor, kv: &Tensor, spans: &Tensor, heads: Heads) -> Result<(), CudaError> {
    heads.check(check)?;
    check.float("q", q)?;
    check.shape("q", q, q.rows(), heads.query_cols())?;
    check.shape("kv", kv, q.rows(), heads.kv_cols())?;
    check.dtype("kv", kv, q.dtype())?;
    span_rows(check, spans, q.rows())
}

/// `spans` is `rows x 2` u32 without gaps.
pub(super) fn span_rows(check: &Check, spans: &Tensor, rows: usize) -> Result<(), CudaError> {
    check.shape("spans", spans, rows, 2)?;
    check.dtype("spans", spans, Dtype::U32)?;
    check.dense("spans", spans)?;
    check.that(spans.is_aligned(8), || "spans is not aligned to 8 bytes".to_owned())
}

fn like(check: &Check, what: &str, tensor: &Tensor, other: &Tensor) -> Result<(), CudaError> {
    check.shape(what, tensor, other.rows(), other.cols())?;
    check.dtype(what, tensor, other.dtype())
}

fn statistic(check: &Check, what: &str, tensor: &Tensor, rows: usize, heads: Heads) -> Result<(), CudaError> {
    check.shape(what, tensor, rows, heads.query)?;
    check.dtype(what, tensor, Dtype::F32)?;
    check.dense(what, tensor)
}

#[cfg(test)]
mod tests {
    use super::{Part, Properties, Tiles, Version};

    const PARTS: [Part; 3] = [Part::Forward, Part::GradQ, Part::GradKv];

    /// What runs forward, for queries, for keys and values, on a device of this capability and KiB of shared memory.
    fn versions(compute_capability: (u32, u32), kib: u32, usual: bool, dim: usize) -> [Version; 3] {
        let device = Properties {
            name: "made up".to_owned(),
            compute_capability,
            multiprocessors: 64,
            shared_per_block: kib << 10,
            total_bytes: 8 << 30,
            driver: (13, 0),
        };
        PARTS.map(|part| Version::on(&device, part, usual, dim))
    }

    #[test]
    fn a_version_fits_the_device() {
        use Version::{Plain, Warp, WarpGroup};
        // 8.6, 8.9 and 12.0 have 99 KiB a block, 8.0 and 8.7 163, 9.0 and 10.0 227
        let (small, large) = ([(8, 6), (8, 9), (12, 0)], [((8, 0), 163), ((8, 7), 163), ((10, 0), 227)]);
        for capability in small {
            assert_eq!(versions(capability, 99, true, 128), [Warp, Plain, Warp], "{capability:?}");
            assert_eq!(versions(capability, 99, true, 64), [Warp; 3], "{capability:?}");
            assert_eq!(versions(capability, 99, true, 32), [Warp; 3], "{capability:?}");
        }
        for (capability, kib) in large {
            for dim in [32, 64, 128] {
                assert_eq!(versions(capability, kib, true, dim), [Warp; 3], "{capability:?} {dim}");
            }
        }
        assert_eq!(versions((9, 0), 227, true, 64), [WarpGroup; 3]);
        assert_eq!(versions((9, 0), 227, true, 128), [Warp; 3]);
        for dim in [1, 31, 48, 96, 256] {
            assert_eq!(versions((9, 0), 227, true, dim), [Plain; 3], "{dim}");
        }
        assert_eq!(versions((9, 0), 227, false, 64), [Plain; 3]);
        // a device of which nothing fits
        assert_eq!(versions((8, 0), 16, true, 64), [Plain; 3]);
    }

    #[test]
    fn tiles_with_most_to_do_come_first() {
        // Sequences of 300, 20 and 200 tokens.
        let ends = [(0, 300), (300, 320), (320, 520)];
        let spans: Vec<u32> = ends.iter().flat_map(|&(a, b)| (a..b).flat_map(move |_| [a, b])).collect();
        let tiles = Tiles::longest_first(&spans);
        // Seen by 5, 3, 5, 3 and 1 tiles of 64 queries.
        assert_eq!(tiles.keys, [0, 2, 1, 3, 4]);
        // See 2, 4, 6, 3 and 4 tiles of keys.
        assert_eq!(tiles.queries, [2, 1, 4, 3, 0]);
        assert_eq!(Tiles::counts(520), [tiles.queries.len(), tiles.keys.len()]);
        assert_eq!(Tiles::longest_first(&[]), Tiles { queries: Vec::new(), keys: Vec::new() });
    }
}
