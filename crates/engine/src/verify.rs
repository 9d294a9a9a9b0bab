//! Proves of a placed plan that every read finds what the plan wrote.
//!
//! Independent of [`crate::place`]: it plays the plan through, remembering who wrote each byte of the arena last. A read
//! must find all its elements written, and not written over by another buffer since; operands of one operation (of a
//! whole block, when a backend claims it) must not share bytes; shapes must fit.

use crate::place::{Placement, Slot};
use crate::plan::{BufferId, Form, Heads, Mat, Op, Place, Plan, Role, Rows, Step};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VerifyError {
    #[error("operation {index} ({op}): {message}")]
    Shape { index: usize, op: String, message: String },
    #[error("operation {index} ({op}) reads `{buffer}` before it is written, or after it was written over")]
    Unwritten { index: usize, op: String, buffer: String },
    #[error("operation {index} ({op}): `{first}` and `{second}` share bytes")]
    Overlap { index: usize, op: String, first: String, second: String },
    #[error("`{buffer}` has no place in the arena, or one outside of it")]
    Unplaced { buffer: String },
    #[error("the output `{buffer}` is not there at the end")]
    LostOutput { buffer: String },
}

/// Checks a plan and its placement.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(plan: &Plan, placement: &Placement) -> Result<(), VerifyError> {
    let mut memory = Memory { plan, placement, written: BTreeMap::new() };
    memory.check_places()?;
    let mut index = 0;
    for step in &plan.steps {
        for (i, op) in step.ops.iter().enumerate() {
            check_shapes(plan, op).map_err(|message| VerifyError::Shape {
                index: index + i,
                op: op.name(),
                message,
            })?;
        }
        if placement.claims.contains(&step.block) {
            memory.check_disjoint(index, &step.block.to_string(), &operands(plan, &step.ops))?;
        }
        memory.play(index, step)?;
        index += step.ops.len();
    }
    for output in &plan.outputs {
        if !memory.holds(*output) {
            return Err(VerifyError::LostOutput { buffer: plan.get(output.buffer).name.clone() });
        }
    }
    Ok(())
}

/// Buffers in the arena that operations touch.
fn operands(plan: &Plan, ops: &[Op]) -> BTreeSet<BufferId> {
    let mut found = BTreeSet::new();
    for op in ops {
        let access = op.access(&plan.groups);
        let all = access.reads.iter().chain(&access.writes).chain(&access.updates);
        found.extend(all.map(|mat| mat.buffer).filter(|&id| plan.get(id).place == Place::Arena));
    }
    found
}

/// What lies in the arena: buffers with the parts of them that were written and not written over.
struct Memory<'a> {
    plan: &'a Plan,
    placement: &'a Placement,
    written: BTreeMap<BufferId, Vec<Mat>>,
}

impl Memory<'_> {
    fn name(&self, id: BufferId) -> String {
        self.plan.get(id).name.clone()
    }

    fn check_places(&self) -> Result<(), VerifyError> {
        let all: Vec<Op> = self.plan.ops().copied().collect();
        for id in operands(self.plan, &all) {
            let needed =
                crate::place::buffer_bytes(self.plan, id, &self.plan.capacity, &self.placement.layout);
            let fits =
                self.placement.slots.get(&id).is_some_and(|slot| {
                    slot.bytes >= needed && slot.offset + slot.bytes <= self.placement.peak
                });
            if !fits {
                return Err(VerifyError::Unplaced { buffer: self.name(id) });
            }
        }
        Ok(())
    }

    fn slot(&self, id: BufferId) -> Option<&Slot> {
        self.placement.slots.get(&id)
    }

    fn share_bytes(&self, a: BufferId, b: BufferId) -> bool {
        let (Some(a), Some(b)) = (self.slot(a), self.slot(b)) else { return false };
        a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
    }

    fn check_disjoint(&self, index: usize, op: &str, ids: &BTreeSet<BufferId>) -> Result<(), VerifyError> {
        for (n, &first) in ids.iter().enumerate() {
            for &second in ids.iter().skip(n + 1) {
                if self.share_bytes(first, second) {
                    return Err(VerifyError::Overlap {
                        index,
                        op: op.to_owned(),
                        first: self.name(first),
                        second: self.name(second),
                    });
                }
            }
        }
        Ok(())
    }

    fn play(&mut self, start: usize, step: &Step) -> Result<(), VerifyError> {
        for (i, op) in step.ops.iter().enumerate() {
            let index = start + i;
            self.check_disjoint(index, &op.name(), &operands(self.plan, std::slice::from_ref(op)))?;
            let access = op.access(&self.plan.groups);
            for &mat in access.reads.iter().chain(&access.updates) {
                if !self.holds(mat) {
                    let buffer = self.name(mat.buffer);
                    return Err(VerifyError::Unwritten { index, op: op.name(), buffer });
                }
            }
            for mat in access.writes.into_iter().chain(access.updates) {
                self.write(mat);
            }
        }
        Ok(())
    }

    fn write(&mut self, mat: Mat) {
        if self.plan.get(mat.buffer).place != Place::Arena {
            return;
        }
        let lost: Vec<BufferId> = self
            .written
            .keys()
            .copied()
            .filter(|&id| id != mat.buffer && self.share_bytes(id, mat.buffer))
            .collect();
        for id in lost {
            self.written.remove(&id);
        }
        let parts = self.written.entry(mat.buffer).or_default();
        if !parts.contains(&mat) {
            parts.push(mat);
        }
    }

    /// Whether every element of a view was written. Parameters, inputs and caches hold from the start.
    fn holds(&self, mat: Mat) -> bool {
        let buffer = self.plan.get(mat.buffer);
        if buffer.place != Place::Arena {
            return true;
        }
        let Some(parts) = self.written.get(&mat.buffer) else { return false };
        let in_chunks = buffer.rows == Rows::LossRows;
        let wanted: Vec<Rows> = match mat.rows {
            Rows::LossRows if in_chunks => {
                let capacity = &self.plan.capacity;
                (0..capacity.loss_rows.div_ceil(capacity.chunk) as u32).map(Rows::Chunk).collect()
            }
            rows => vec![rows],
        };
        wanted.iter().all(|rows| {
            let columns = parts
                .iter()
                .filter(|part| part.rows == *rows || part.rows == buffer.rows)
                .map(|part| (part.col0, part.col0 + part.cols));
            covers(columns.collect(), mat.col0, mat.col0 + mat.cols)
        })
    }
}

/// Whether intervals cover `start..end`.
fn covers(mut intervals: Vec<(usize, usize)>, start: usize, end: usize) -> bool {
    intervals.sort_unstable();
    let mut reached = start;
    for (from, to) in intervals {
        if from <= reached {
            reached = reached.max(to);
        }
    }
    reached >= end
}

type Checked = Result<(), String>;

fn need(condition: bool, message: &str) -> Checked {
    if condition { Ok(()) } else { Err(message.to_owned()) }
}

fn same_shape(mats: &[Mat]) -> Checked {
    let same = mats.windows(2).all(|pair| pair[0].rows == pair[1].rows && pair[0].cols == pair[1].cols);
    need(same, "operands differ in shape")
}

fn indices(mat: Mat, rows: Rows, cols: usize) -> Checked {
    let fits = mat.role == Role::Index && mat.rows == rows && mat.cols == cols;
    need(fits, "an index operand has a wrong shape or role")
}

fn check_shapes(plan: &Plan, op: &Op) -> Checked {
    let access = op.access(&plan.groups);
    for mat in access.reads.iter().chain(&access.writes).chain(&access.updates) {
        let buffer = plan.get(mat.buffer);
        need(mat.col0 + mat.cols <= buffer.cols, "a view reaches past its buffer's columns")?;
        let chunk_of = matches!((mat.rows, buffer.rows), (Rows::Chunk(_), Rows::LossRows));
        need(mat.rows == buffer.rows || chunk_of, "a view has other rows than its buffer")?;
    }
    match *op {
        Op::Gemm { a, b, c, form, .. } => check_gemm(plan, [a, b, c], form),
        Op::Lora { .. } | Op::LoraGradInner { .. } | Op::LoraGradParams { .. } | Op::LoraGradInput { .. } => {
            check_lora(plan, op)
        }
        Op::AttentionPacked { .. }
        | Op::AttentionDelta { .. }
        | Op::AttentionGradQ { .. }
        | Op::AttentionGradKv { .. }
        | Op::CacheWrite { .. }
        | Op::AttentionPaged { .. } => check_attention(op),
        _ => check_rows(op),
    }
}

fn check_gemm(plan: &Plan, [a, b, c]: [Mat; 3], form: Form) -> Checked {
    let rows = |mat: Mat| plan.capacity.rows(mat.rows);
    let inner = match form {
        Form::Nt => a.cols == b.cols && c.rows == a.rows && c.cols == rows(b),
        Form::Nn => a.cols == rows(b) && c.rows == a.rows && c.cols == b.cols,
        Form::Tn => a.rows == b.rows && rows(c) == a.cols && c.cols == b.cols,
    };
    need(inner, "shapes of the product disagree")
}

fn check_rows(op: &Op) -> Checked {
    match *op {
        Op::Embed { ids, table, out } | Op::EmbedGrad { ids, d_out: out, d_table: table } => {
            indices(ids, out.rows, 1)?;
            need(table.cols == out.cols, "table and rows differ in width")
        }
        Op::RmsNorm { x, weight, out, rstd, .. } => {
            same_shape(&[x, out])?;
            need(
                weight.cols == x.cols && rstd.rows == x.rows && rstd.cols == 1,
                "weight or rstd does not fit",
            )
        }
        Op::RmsNormGrad { x, weight, rstd, d_out, d_x, .. } => {
            same_shape(&[x, d_out, d_x])?;
            need(
                weight.cols == x.cols && rstd.rows == x.rows && rstd.cols == 1,
                "weight or rstd does not fit",
            )
        }
        Op::RmsNormWeightGrad { x, rstd, d_out, d_weight } => {
            same_shape(&[x, d_out])?;
            need(d_weight.cols == x.cols && rstd.rows == x.rows, "weight or rstd does not fit")
        }
        Op::AddBias { y, bias } | Op::BiasGrad { d_y: y, d_bias: bias } => {
            need(bias.cols == y.cols && bias.rows == Rows::Const(1), "the bias does not fit")
        }
        Op::Rope { x, positions, table, dim, .. } => {
            indices(positions, x.rows, 1)?;
            let fits = dim > 0 && dim % 2 == 0 && x.cols % dim == 0 && table.cols == dim;
            need(fits, "heads do not fit the columns")
        }
        Op::SwiGlu { gate_up, out } => {
            need(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols, "gate and up do not fit")
        }
        Op::SwiGluGrad { gate_up, d_out, d_gate_up } => {
            same_shape(&[gate_up, d_gate_up])?;
            need(gate_up.rows == d_out.rows && gate_up.cols == 2 * d_out.cols, "gate and up do not fit")
        }
        Op::Add { a, b, out } => same_shape(&[a, b, out]),
        Op::GatherRows { x, index, out } | Op::ScatterRows { d_out: out, index, d_x: x } => {
            indices(index, out.rows, 1)?;
            need(x.cols == out.cols, "rows differ in width")
        }
        Op::CrossEntropy { logits, labels, loss, .. } => {
            indices(labels, logits.rows, 1)?;
            need(loss.rows == logits.rows && loss.cols == 1, "losses do not fit")
        }
        Op::SumLoss { losses, sum } => {
            need(losses.cols == 1 && sum.rows == Rows::Const(1), "losses do not fit")
        }
        _ => Ok(()),
    }
}

fn check_attention(op: &Op) -> Checked {
    let columns = |heads: Heads| heads.query * heads.dim;
    let grouped = |heads: Heads| {
        let fits = heads.kv > 0 && heads.query.is_multiple_of(heads.kv);
        need(fits, "query heads are no multiple of key-value heads")
    };
    match *op {
        Op::AttentionPacked { q, kv, starts, out, lse, heads } => {
            grouped(heads)?;
            same_shape(&[q, out])?;
            indices(starts, Rows::Seqs, 1)?;
            let fits = q.cols == columns(heads) && kv.cols == heads.kv_cols() && kv.rows == q.rows;
            need(fits && lse.cols == heads.query && lse.rows == q.rows, "heads do not fit the columns")
        }
        Op::AttentionDelta { out, d_out, delta, heads } => {
            same_shape(&[out, d_out])?;
            need(out.cols == columns(heads) && delta.cols == heads.query, "heads do not fit the columns")
        }
        Op::AttentionGradQ { q, kv, starts, lse, delta, d_out, d_q: target, heads }
        | Op::AttentionGradKv { q, kv, starts, lse, delta, d_out, d_kv: target, heads } => {
            grouped(heads)?;
            same_shape(&[q, d_out])?;
            same_shape(&[lse, delta])?;
            indices(starts, Rows::Seqs, 1)?;
            let fits = q.cols == columns(heads) && kv.cols == heads.kv_cols() && lse.cols == heads.query;
            need(fits, "heads do not fit the columns")?;
            let like = if matches!(op, Op::AttentionGradQ { .. }) { q } else { kv };
            same_shape(&[target, like])
        }
        Op::CacheWrite { kv, rows, cache } => {
            indices(rows, kv.rows, 1)?;
            need(kv.cols == cache.cols, "keys and values do not fit the cache")
        }
        Op::AttentionPaged { q, cache, spans, out, heads, .. } => {
            grouped(heads)?;
            same_shape(&[q, out])?;
            indices(spans, q.rows, 2)?;
            let fits = q.cols == columns(heads) && cache.cols == heads.kv_cols();
            need(fits, "heads do not fit the columns")
        }
        _ => Ok(()),
    }
}

fn check_lora(plan: &Plan, op: &Op) -> Checked {
    let (group, x, u, y, scratch) = match *op {
        Op::Lora { group, x, u, y, scratch } => (group, Some(x), u, Some(y), scratch),
        Op::LoraGradParams { group, x, u, d_y, d_u, scratch } => {
            same_shape(&[u, d_u])?;
            (group, Some(x), u, Some(d_y), scratch)
        }
        Op::LoraGradInner { group, d_y, d_u } => (group, None, d_u, Some(d_y), None),
        Op::LoraGradInput { group, d_u, d_x, scratch } => (group, Some(d_x), d_u, None, scratch),
        _ => return Ok(()),
    };
    let group = plan.groups.get(group).ok_or("there is no such group")?;
    need(u.cols == group.rank * group.modules.len(), "rank-r products do not fit the group")?;
    for module in &group.modules {
        let b_rows = plan.capacity.rows(module.b.rows);
        need(
            plan.capacity.rows(module.a.rows) == group.rank && module.b.cols == group.rank,
            "A or B does not fit",
        )?;
        need(x.is_none_or(|x| x.cols == module.a.cols && x.rows == u.rows), "A does not fit the input")?;
        let fits = |y: Mat| module.col0 + module.cols <= y.cols && y.rows == u.rows;
        need(b_rows == module.cols && y.is_none_or(fits), "B does not fit the output")?;
        need(scratch.is_none_or(|s| s.cols == module.a.cols && s.rows == u.rows), "scratch does not fit")?;
    }
    let masked = group.samples.is_some() && group.positions.is_some();
    need(scratch.is_none() || masked, "dropout without samples and positions")
}
