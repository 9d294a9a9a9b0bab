//! What an operation takes over from a later step, whose operands are ready when it runs.

use super::lower::{Lowering, saved_of};
use crate::backend::BackendError;
use crate::plan::{Mat, Op};
use kernels::cuda::Tensor;

impl Lowering<'_> {
    /// Positions and table by which gradients of attention in this buffer are turned back as they are written: the operation
    /// that would do it is the first that touches them afterwards, and the kernels can.
    pub(super) fn turn(&self, gradient: Mat) -> Result<Option<(Tensor, Tensor)>, BackendError> {
        let Some(fusion) = &self.fusion else { return Ok(None) };
        let [
            Op::AttentionGradQ { q, kv, lse, delta, d_out, d_q, heads, .. },
            Op::AttentionGradKv { d_kv, .. },
            Op::Rope { x, positions, table, dim, inverse: true },
            ..,
        ] = fusion.facts.touching(gradient.buffer)[..]
        else {
            return Ok(None);
        };
        let keys = d_kv.columns(0, d_kv.cols / 2);
        let covers = x.col0 == d_q.col0 && keys.col0 == d_q.col0 + d_q.cols && x.cols == d_q.cols + keys.cols;
        let (d_q, d_kv) = (self.tensor(d_q)?, self.tensor(d_kv)?);
        let (positions, table) = (self.tensor(positions)?, self.tensor(table)?);
        let t = |mat| self.tensor(mat);
        let saved = [t(q)?, t(kv)?, self.spans()?, t(lse)?, t(delta)?, t(d_out)?];
        let fits = covers && dim == heads.dim && table.is_aligned(8);
        let turns = fits && saved_of(&saved, None, None, heads).turns([&d_q, &d_kv]);
        Ok(turns.then_some((positions, table)))
    }
}
