//! Embedding: `embed.cu`.

use super::access::{Walk, wide};
use super::{Check, bytes};
use crate::cuda::compile::Source;
use crate::cuda::launch::{Args, Grid, Launch};
use crate::cuda::{Cost, CudaError, Dtype, Tensor, Work};

/// The kernels.
pub static SOURCE: Source = Source { name: "embed.cu", text: include_str!("../../../embed.cu") };

/// `out[t] = table[ids[t]]`; `ids`: `T x 1` u32, `table`: `V x C`, `out`: `T x C`, each float32 or bfloat16. An id beyond the
/// table takes its last row.
///
/// # Errors
/// When shapes or types do not fit.
pub fn forward(ids: &Tensor, table: &Tensor, out: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("embed");
    check.column("ids", ids, out.rows(), Dtype::U32)?;
    check.float("table", table)?;
    check.float("out", out)?;
    check.shape("out", out, ids.rows(), table.cols())?;
    check.that(table.rows() > 0, || "the table has no rows".to_owned())?;
    let walk = Walk::rows(&check, (out.rows(), out.cols()), &[table, out])?;
    let args = Args::new()
        .tensor(ids)
        .tensor(table)
        .int(table.pitch())
        .int(table.rows())
        .tensor(out)
        .int(out.pitch());
    let read = (out.rows() * out.cols() * table.dtype().bytes()) as f64;
    let cost = Cost { flops: 0.0, bytes: read + bytes(&[ids, out]) };
    let name = format!("embed_{}_{}", table.dtype().suffix(), out.dtype().suffix());
    Launch::prepare(out.memory().gpu(), &SOURCE, name, walk.grid(), walk.args(args), cost)
}

/// Which tokens have which id, for [`grad`]. Made by [`runs`] on the host.
#[derive(Debug, Clone, Copy)]
pub struct Runs<'a> {
    /// `T x 1` u32: tokens sorted by (id, token); only as many as the last entry of `starts` says.
    pub order: &'a Tensor,
    /// `(T + 1) x 1` u32: where in `order` each distinct id starts, then where the last one ends.
    pub starts: &'a Tensor,
    /// `1 x 1` u32: how many distinct ids there are.
    pub count: &'a Tensor,
}

/// `d_table[ids[t]] += d_out[t]` in float32, tokens in ascending order; `d_out`: `T x C`, `d_table`: `V x C` float32. Tokens
/// that `runs` does not list add nothing.
///
/// # Errors
/// When shapes or types do not fit.
pub fn grad(ids: &Tensor, runs: Runs<'_>, d_out: &Tensor, d_table: &Tensor) -> Result<Work, CudaError> {
    let check = Check::new("embed_grad");
    let (tokens, cols) = (d_out.rows(), d_out.cols());
    check.column("ids", ids, tokens, Dtype::U32)?;
    check.column("order", runs.order, tokens, Dtype::U32)?;
    check.column("starts", runs.starts, tokens + 1, Dtype::U32)?;
    check.column("count", runs.count, 1, Dtype::U32)?;
    check.float("d_out", d_out)?;
    check.dtype("d_table", d_table, Dtype::F32)?;
    check.shape("d_table", d_table, d_table.rows(), cols)?;
    check.cols(cols)?;
    check.that(d_table.rows() > 0, || "the table has no rows".to_owned())?;
    let args = Args::new()
        .tensor(ids)
        .tensor(runs.order)
        .tensor(runs.starts)
        .tensor(runs.count)
        .tensor(d_out)
        .int(d_out.pitch())
        .tensor(d_table)
        .int(d_table.pitch())
        .int(tokens)
        .int(d_table.rows())
        .int(cols)
        .int(usize::from(wide(&[d_out, d_table])));
    let groups = cols.div_ceil(4);
    let threads = groups.next_multiple_of(32).clamp(32, 256);
    let grid = Grid { blocks: [tokens, groups.div_ceil(threads), 1], threads, shared: 0 };
    let cost = Cost { flops: (tokens * cols) as f64, bytes: bytes(&[d_out]) * 3.0 };
    let name = format!("embed_grad_{}", d_out.dtype().suffix());
    Launch::prepare(d_out.memory().gpu(), &SOURCE, name, grid, args, cost)
}

/// Order and starts of [`Runs`] for these ids, and how many distinct ones there are. Both lists are as long as what they
/// hold; the rest of the device's tensors is not read.
#[must_use]
pub fn runs(ids: &[u32]) -> (Vec<u32>, Vec<u32>, u32) {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&token| ids[token as usize]);
    let mut starts = Vec::new();
    let mut last = None;
    for (position, &token) in order.iter().enumerate() {
        let id = ids[token as usize];
        if last != Some(id) {
            starts.push(position as u32);
            last = Some(id);
        }
    }
    let count = starts.len() as u32;
    starts.push(ids.len() as u32);
    (order, starts, count)
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn tokens_of_one_id_stay_in_order() {
        let (order, starts, count) = runs(&[7, 3, 7, 7, 0]);
        assert_eq!(order, [4, 1, 0, 2, 3]);
        assert_eq!(starts, [0, 1, 2, 5]);
        assert_eq!(count, 3);
        assert_eq!(runs(&[]), (vec![], vec![0], 0));
    }
}
