//! What an operation takes over from a later step, whose operands are ready when it runs.

use super::lower::{Lowering, saved_of};
use crate::backend::BackendError;
use crate::plan::{BufferId, Mat, Op, Plan};
use kernels::cuda::Tensor;
use std::collections::BTreeMap;

/// The group whose outputs' gradient a buffer holds, and its rank-r products: both stay as they are from the operation that
/// writes the gradient to the one that sums the gradients of the adapters.
pub(super) fn reader_of(plan: &Plan, d_y: Mat) -> Option<(usize, Mat)> {
    let mut found = None;
    let mut writes: BTreeMap<BufferId, Vec<usize>> = BTreeMap::new();
    for (i, op) in plan.ops().enumerate() {
        if let Op::LoraGradParams { group, u, d_y: same, .. } = *op
            && same == d_y
        {
            if found.is_some() {
                return None;
            }
            found = Some((i, group, u));
        }
        let access = op.access(&plan.groups);
        for mat in access.writes.iter().chain(&access.updates) {
            writes.entry(mat.buffer).or_default().push(i);
        }
    }
    let (reads, group, u) = found?;
    let [written] = writes.get(&d_y.buffer)?[..] else { return None };
    let made = writes.get(&u.buffer)?;
    (written < reads && made.iter().all(|&i| i < written)).then_some((group, u))
}

/// The operations that touch a buffer, in order.
fn touching(plan: &Plan, buffer: BufferId) -> Vec<Op> {
    let touches = |op: &&Op| {
        let access = op.access(&plan.groups);
        let mut all = access.reads.iter().chain(&access.writes).chain(&access.updates);
        all.any(|mat| mat.buffer == buffer)
    };
    plan.ops().filter(touches).copied().collect()
}

impl Lowering<'_> {
    /// Positions and table by which gradients of attention in this buffer are turned back as they are written: the operation
    /// that would do it is the first that touches them afterwards, and the kernels can.
    pub(super) fn turn(&self, gradient: Mat) -> Result<Option<(Tensor, Tensor)>, BackendError> {
        if self.fusion.is_none() {
            return Ok(None);
        }
        let [
            Op::AttentionGradQ { q, kv, lse, delta, d_out, d_q, heads, .. },
            Op::AttentionGradKv { d_kv, .. },
            Op::Rope { x, positions, table, dim, inverse: true },
            ..,
        ] = touching(self.plan, gradient.buffer)[..]
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
