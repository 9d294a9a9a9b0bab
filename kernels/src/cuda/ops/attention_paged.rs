//! Attention over a cache of keys and values, for generation: `attention_paged.cu`.

use super::attention::{Heads, span_rows};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source =
    Source { name: "attention_paged.cu", text: include_str!("../../../attention_paged.cu") };

/// Query heads that a block takes at once.
const BATCH: usize = 8;
const WARPS: usize = 4;
/// Bytes of a tile of keys or values on its way to a block.
const STREAM_TILE: usize = 16 << 10;
/// Into how many parts the rows seen are cut at most, and how many rows a part has at least.
const MOST_PARTS: usize = 64;
const LEAST_ROWS: usize = 128;
/// Shared memory of a block that every device has.
const SHARED: usize = 98 << 10;

/// Rows of a part for that many rows seen.
fn part_rows(seen: usize) -> usize {
    seen.div_ceil(MOST_PARTS).next_multiple_of(LEAST_ROWS).max(LEAST_ROWS)
}

/// Parts of any token that sees at most `most` rows.
fn parts(most: usize) -> usize {
    most.div_ceil(LEAST_ROWS).clamp(1, MOST_PARTS)
}

/// Columns of float32 scratch that [`forward`] needs for each token; 0 when it needs none.
#[must_use]
pub fn scratch_cols(heads: Heads, most: usize) -> usize {
    match parts(most) {
        1 => 0,
        parts => heads.query * parts * (heads.dim + 2),
    }
}

/// How a block reads keys and values; depends on type, head dimension and alignment alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Wide,
    TensorCores,
}

impl Way {
    fn of(q: &Tensor, cache: &Tensor, heads: Heads) -> Self {
        let pack = 16 / q.dtype().bytes();
        let wide = heads.dim.is_multiple_of(pack) && matches!(heads.dim / pack, 8 | 16 | 32);
        if !wide || !cache.is_aligned(16) {
            Way::Plain
        } else if q.dtype() == Dtype::Bf16 && matches!(heads.dim, 64 | 128) && q.is_aligned(4) {
            Way::TensorCores
        } else {
            Way::Wide
        }
    }

    fn kernel(self, heads: Heads, suffix: &str) -> String {
        match self {
            Way::Plain => format!("attention_paged_{suffix}"),
            Way::Wide => format!("attention_paged_wide_{suffix}"),
            Way::TensorCores => format!("attention_paged_mma_{}", heads.dim),
        }
    }

    /// Bytes of shared memory: scores, queries and sums, and what is on its way.
    fn shared(self, heads: Heads, most: usize) -> usize {
        let scores = 4 * BATCH * part_rows(most);
        let heads = 4 * BATCH * heads.dim * (1 + WARPS);
        match self {
            Way::Plain => scores + heads,
            Way::Wide => scores + heads + 2 * STREAM_TILE,
            Way::TensorCores => scores + 2 * STREAM_TILE,
        }
    }
}

/// Attention of each token over its span of the cache; `q`, `out`: `T x query*dim`, `cache`: `R x 2*kv*dim` (keys, then
/// values), float32 or bfloat16; `spans`: `T x 2` u32, first row and rows seen; `scratch`: at least `T` times
/// [`scratch_cols`] float32 without gaps.
///
/// `most` bounds the rows that any token sees: of a longer span only the first `most` rows are read, and none beyond the
/// cache. A token's result depends on what it sees alone, not on `most` or other tokens. A token that sees nothing gets 0.
/// The two works run one after the other.
///
/// # Errors
/// When shapes or types do not fit, or `most` is too large for a block's shared memory.
pub fn forward(
    q: &Tensor,
    cache: &Tensor,
    spans: &Tensor,
    scratch: &Tensor,
    out: &Tensor,
    heads: Heads,
    most: usize,
) -> Result<[Work; 2], CudaError> {
    let check = Check::new("attention_paged");
    heads.check(&check)?;
    check.float("q", q)?;
    check.shape("q", q, q.rows(), heads.query_cols())?;
    check.shape("out", out, q.rows(), heads.query_cols())?;
    check.dtype("out", out, q.dtype())?;
    check.shape("cache", cache, cache.rows(), heads.kv_cols())?;
    check.dtype("cache", cache, q.dtype())?;
    span_rows(&check, spans, q.rows())?;
    check.dtype("scratch", scratch, Dtype::F32)?;
    check.dense("scratch", scratch)?;
    let (given, needed) = (scratch.rows() * scratch.cols(), q.rows() * scratch_cols(heads, most));
    check.that(given >= needed, || format!("scratch has {given} numbers of the {needed} needed"))?;
    let most = most.min(cache.rows());
    let way = Way::of(q, cache, heads);
    let shared = way.shared(heads, most);
    check.that(shared <= SHARED, || format!("{most} rows of the cache are more than a block can take"))?;
    let suffix = q.dtype().suffix();
    let args = Args::new()
        .tensor(q)
        .int(q.pitch())
        .tensor(cache)
        .int(cache.pitch())
        .int(cache.rows())
        .tensor(spans)
        .tensor(out)
        .int(out.pitch())
        .tensor(scratch)
        .int(most)
        .int(heads.query)
        .int(heads.kv);
    let args = if way == Way::TensorCores { args } else { args.int(heads.dim) }.float(heads.scale());
    let gpu = q.memory().gpu();
    let blocks = [q.rows(), heads.kv, parts(most)];
    let grid = Grid { blocks, threads: 32 * WARPS, shared };
    let cost = Cost { flops: 0.0, bytes: bytes(&[q, spans, out]) };
    let first = Launch::prepare(gpu, &SOURCE, way.kernel(heads, suffix), grid, args, cost)?;
    if parts(most) == 1 {
        return Ok([first, Work::Nothing]);
    }
    let args = Args::new()
        .tensor(scratch)
        .tensor(spans)
        .tensor(out)
        .int(out.pitch())
        .int(cache.rows())
        .int(most)
        .int(parts(most))
        .int(heads.query)
        .int(heads.dim);
    let blocks = [q.rows() * heads.query, 1, 1];
    let grid = Grid { blocks, threads: 32 * WARPS, shared: 4 * WARPS * heads.dim };
    let name = format!("attention_paged_join_{suffix}");
    Ok([first, Launch::prepare(gpu, &SOURCE, name, grid, args, Cost::default())?])
}

/// `cache[rows[t]] = kv[t]`; `kv`: `T x C`, `cache`: `R x C` of the same type; `rows`: `T x 1` u32. A token whose row is
/// `R` or more is not written. Rows of one call differ from each other.
///
/// # Errors
/// When shapes or types do not fit.
pub fn cache_write(kv: &Tensor, rows: &Tensor, cache: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("cache_write");
    check.float("kv", kv)?;
    check.shape("cache", cache, cache.rows(), kv.cols())?;
    check.dtype("cache", cache, kv.dtype())?;
    check.shape("rows", rows, kv.rows(), 1)?;
    check.dtype("rows", rows, Dtype::U32)?;
    check.dense("rows", rows)?;
    let args = Args::new()
        .tensor(kv)
        .int(kv.pitch())
        .tensor(rows)
        .tensor(cache)
        .int(cache.pitch())
        .int(cache.rows())
        .int(kv.cols());
    let cost = Cost { flops: 0.0, bytes: 2.0 * bytes(&[kv]) + bytes(&[rows]) };
    let name = format!("cache_write_{}", kv.dtype().suffix());
    Launch::prepare(kv.memory().gpu(), &SOURCE, name, Grid::line(kv.rows(), 128), args, cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_what_is_seen() {
        for most in [0usize, 1, 127, 128, 129, 8192, 8193, 32_768, 100_000] {
            for seen in [most, most / 2, most.saturating_sub(1)] {
                assert!(part_rows(seen) <= part_rows(most));
                assert!(seen.div_ceil(part_rows(seen)) <= parts(most), "{seen} of {most}");
            }
        }
        assert_eq!(part_rows(32_768), 512);
    }
}
