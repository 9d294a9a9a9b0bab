//! Work beside the main line: gradients of adapters, which nothing waits for before the step ends, and the one half of
//! attention's gradient beside the other.
//!
//! A piece beside may run until something on the main line touches what it reads or writes: then that waits. Each piece is
//! its own kernel with its own order of sums, so no result depends on what ran together.

use super::lower::Lowering;
use crate::backend::BackendError;
use crate::place::Placement;
use crate::plan::{BufferId, Mat, Op, Place, Plan};
use kernels::cuda::{Lane, Piece, Work};
use std::collections::BTreeMap;

/// The lane of gradients of adapters, and that of attention's gradient by queries.
const ADAPTERS: usize = 0;
const QUERIES: usize = 1;

/// Steps for which what gradients of adapters read stays where it is, so that the main line does not wait for them soon.
const STAYS: usize = 3;

/// Views of the arena that some operations touch.
#[derive(Debug, Clone, Default)]
struct Touched {
    reads: Vec<Mat>,
    writes: Vec<Mat>,
}

/// A piece beside the main line that may still run.
struct Pending {
    piece: usize,
    lane: usize,
    touched: Touched,
}

/// Pieces so far, each with the number of operations that are done with it.
#[derive(Default)]
pub(super) struct Weave {
    pub pieces: Vec<(usize, Piece)>,
    pending: Vec<Pending>,
    /// The last piece that reads each half of the room for sums.
    readers: [Option<usize>; 2],
}

impl Weave {
    /// Adds the work of these operations.
    pub(super) fn add(&mut self, lowering: &Lowering<'_>, ops: &[Op], work: Vec<Work>, done: usize) {
        let work: Vec<Work> = work.into_iter().filter(|work| !matches!(work, Work::Nothing)).collect();
        let wrote_sums = lowering.wrote_sums.take();
        if work.is_empty() {
            return;
        }
        let all = touched(lowering, ops);
        let lane = if lowering.beside { lane_of(ops) } else { None };
        let (first_beside, lane) = lane.unwrap_or((work.len(), 0));
        for (i, work) in work.into_iter().enumerate() {
            let beside = i >= first_beside;
            let touched = if beside { touched_beside(lowering, ops) } else { all.clone() };
            let mut waits = self.conflicts(lowering, &touched, beside.then_some(lane));
            if !beside && wrote_sums {
                waits.extend(self.readers[lowering.half.get()]);
            }
            let number = self.pieces.len();
            if beside {
                self.pending.push(Pending { piece: number, lane, touched });
            } else {
                self.met(&waits);
            }
            let lane = if beside { Lane::Beside(lane) } else { Lane::Main };
            self.pieces.push((done, Piece { work, lane, waits }));
        }
    }

    /// Adds the work that adds up what waits.
    pub(super) fn add_sums(&mut self, lowering: &Lowering<'_>, done: usize) -> Result<(), BackendError> {
        let half = lowering.half.get();
        for work in lowering.sums()? {
            self.readers[half] = lowering.beside.then_some(self.pieces.len());
            let lane = if lowering.beside { Lane::Beside(ADAPTERS) } else { Lane::Main };
            self.pieces.push((done, Piece { work, lane, waits: Vec::new() }));
        }
        Ok(())
    }

    /// The last pieces of other lanes that may still touch what is touched now in another way than by reading too.
    fn conflicts(&self, lowering: &Lowering<'_>, touched: &Touched, lane: Option<usize>) -> Vec<usize> {
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        let others = self.pending.iter().filter(|pending| Some(pending.lane) != lane);
        for pending in others.filter(|pending| disagree(lowering, &pending.touched, touched)) {
            last.insert(pending.lane, pending.piece);
        }
        last.into_values().collect()
    }

    /// The main line has waited for these: they and what came before them on their lanes are done.
    fn met(&mut self, waits: &[usize]) {
        for &wait in waits {
            let lane = self.pieces[wait].1.lane;
            self.pending.retain(|pending| pending.piece > wait || Lane::Beside(pending.lane) != lane);
            for reader in &mut self.readers {
                if reader.is_some_and(|reader| reader <= wait && self.pieces[reader].1.lane == lane) {
                    *reader = None;
                }
            }
        }
    }
}

/// Which pieces of the work of these operations run beside the main line: from which one on, and on which lane.
fn lane_of(ops: &[Op]) -> Option<(usize, usize)> {
    match ops {
        [Op::LoraGradParams { .. }] => Some((0, ADAPTERS)),
        // The pass over gate and up, then what the adapter behind it needs.
        [.., Op::SwiGluGrad { .. }, Op::LoraGradParams { .. }] => Some((1, ADAPTERS)),
        [Op::AttentionGradQ { .. }] => Some((0, QUERIES)),
        _ => None,
    }
}

/// What operations touch in the arena, with what the backend itself puts there.
fn touched(lowering: &Lowering<'_>, ops: &[Op]) -> Touched {
    let mut all = Touched::default();
    for op in ops {
        let access = op.access(&lowering.plan.groups);
        all.reads.extend(access.reads.iter().chain(&access.updates));
        all.writes.extend(access.writes.iter().chain(&access.updates));
        match *op {
            // Rank-r products go into the columns behind the input.
            Op::Lora { x, .. } => all.writes.push(x),
            Op::LoraGradParams { d_u, .. } | Op::LoraGradInput { d_u, .. } => {
                all.reads.extend(moved_into(lowering, d_u));
            }
            _ => {}
        }
    }
    all.in_arena(lowering.plan)
}

/// What those of their pieces touch that run beside the main line.
fn touched_beside(lowering: &Lowering<'_>, ops: &[Op]) -> Touched {
    let Some(Op::LoraGradParams { x, u, d_y, d_u, .. }) = ops.last() else { return touched(lowering, ops) };
    let mut reads = Vec::new();
    if !lowering.fusion.as_ref().is_some_and(|fusion| fusion.summed(*d_y)) {
        reads.extend([*u, *d_y]);
    }
    if ops.len() == 1 {
        reads.extend([*x, *d_u]);
        reads.extend(moved_into(lowering, *d_u));
    }
    Touched { reads, writes: Vec::new() }.in_arena(lowering.plan)
}

fn moved_into(lowering: &Lowering<'_>, d_u: Mat) -> Option<Mat> {
    lowering.fusion.as_ref().and_then(|fusion| fusion.moved_into(d_u))
}

impl Touched {
    fn in_arena(mut self, plan: &Plan) -> Self {
        let in_arena = |mat: &Mat| plan.get(mat.buffer).place == Place::Arena;
        self.reads.retain(in_arena);
        self.writes.retain(in_arena);
        self
    }
}

fn disagree(lowering: &Lowering<'_>, a: &Touched, b: &Touched) -> bool {
    let meet = |x: &[Mat], y: &[Mat]| x.iter().any(|x| y.iter().any(|y| overlap(lowering.placement, *x, *y)));
    meet(&a.writes, &b.writes) || meet(&a.writes, &b.reads) || meet(&a.reads, &b.writes)
}

/// Whether two views may share bytes.
fn overlap(placement: &Placement, a: Mat, b: Mat) -> bool {
    if a.buffer == b.buffer && !placement.layout.extra.contains_key(&a.buffer) {
        return a.col0 < b.col0 + b.cols && b.col0 < a.col0 + a.cols;
    }
    let (Some(a), Some(b)) = (placement.slots.get(&a.buffer), placement.slots.get(&b.buffer)) else {
        return false;
    };
    a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
}

/// Buffers that gradients of adapters read, and the step up to which each is to stay.
pub(super) fn stays(plan: &Plan) -> BTreeMap<BufferId, usize> {
    let mut until = BTreeMap::new();
    let mut inner: BTreeMap<BufferId, BufferId> = BTreeMap::new();
    for (number, step) in plan.steps.iter().enumerate() {
        let last = (number + STAYS).min(plan.steps.len() - 1);
        for (i, op) in step.ops.iter().enumerate() {
            match (*op, i.checked_sub(1).map(|i| step.ops[i])) {
                (Op::LoraGradInner { d_y, d_u, .. }, Some(Op::Gemm { a, c, .. })) if a == d_y => {
                    inner.insert(d_u.buffer, c.buffer);
                }
                (Op::LoraGradParams { x, u, d_y, d_u, .. }, _) => {
                    let moved = inner.get(&d_u.buffer).copied();
                    let buffers = [x, u, d_y, d_u].map(|mat| mat.buffer);
                    for buffer in buffers.into_iter().chain(moved) {
                        if plan.get(buffer).place == Place::Arena {
                            until.insert(buffer, last);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    until
}
