//! Puts every temporary of a plan at an offset of one arena.
//!
//! A buffer lives from the first operation that touches it to the last. Buffers are placed largest first, each at the
//! smallest gap that holds it among the buffers that live at the same time. Inside a block that the backend claims, all
//! its operands count as live together: nobody knows in which order a native version touches them.

use crate::plan::{Block, BufferId, Dims, Place, Plan, Role};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes per element by role, the alignment of every buffer, and columns that a backend wants behind some of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub act: usize,
    pub grad: usize,
    pub stat: usize,
    pub align: usize,
    /// Columns behind those of a buffer, for the backend's own use.
    pub extra: BTreeMap<BufferId, usize>,
    /// Buffers that the backend never touches: they take no room.
    pub unused: BTreeSet<BufferId>,
    /// Buffers that live on after their last use, up to the end of the step with this number.
    pub stays: BTreeMap<BufferId, usize>,
}

impl Layout {
    /// Everything as elements of one size.
    #[must_use]
    pub fn uniform(bytes: usize) -> Self {
        Layout {
            act: bytes,
            grad: bytes,
            stat: bytes,
            align: 64,
            extra: BTreeMap::new(),
            unused: BTreeSet::new(),
            stays: BTreeMap::new(),
        }
    }

    /// Elements from one row of a buffer to the next.
    #[must_use]
    pub fn pitch(&self, plan: &Plan, id: BufferId) -> usize {
        plan.get(id).cols + self.extra.get(&id).copied().unwrap_or(0)
    }

    fn bytes(&self, role: Role) -> usize {
        match role {
            Role::Act | Role::Param => self.act,
            Role::Grad => self.grad,
            Role::Stat => self.stat,
            Role::Index => 4,
        }
    }
}

/// First and last operation (inclusive) at which a buffer holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub first: usize,
    pub last: usize,
}

impl Life {
    #[must_use]
    pub fn meets(&self, other: &Life) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A buffer's place in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub offset: usize,
    pub bytes: usize,
    pub life: Life,
}

/// Every temporary's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub slots: BTreeMap<BufferId, Slot>,
    /// Size of the arena in bytes.
    pub peak: usize,
    pub layout: Layout,
    pub claims: BTreeSet<Block>,
}

/// Lifetimes of the buffers in the arena.
#[must_use]
pub fn lifetimes(plan: &Plan, claims: &BTreeSet<Block>) -> BTreeMap<BufferId, Life> {
    let mut lives: BTreeMap<BufferId, Life> = BTreeMap::new();
    let mut touch = |id: BufferId, first: usize, last: usize| {
        if plan.get(id).place == Place::Arena {
            let life = lives.entry(id).or_insert(Life { first, last });
            life.first = life.first.min(first);
            life.last = life.last.max(last);
        }
    };
    let mut index = 0;
    for step in &plan.steps {
        let (start, end) = (index, index + step.ops.len());
        for op in &step.ops {
            let (first, last) = if claims.contains(&step.block) { (start, end - 1) } else { (index, index) };
            let access = op.access(&plan.groups);
            for mat in access.reads.iter().chain(&access.writes).chain(&access.updates) {
                touch(mat.buffer, first, last);
            }
            index += 1;
        }
    }
    for output in &plan.outputs {
        touch(output.buffer, index, index);
    }
    lives
}

/// Sizes in bytes of the buffers under row counts.
#[must_use]
pub fn buffer_bytes(plan: &Plan, id: BufferId, dims: &Dims, layout: &Layout) -> usize {
    let buffer = plan.get(id);
    if layout.unused.contains(&id) {
        return 0;
    }
    dims.rows(buffer.rows) * layout.pitch(plan, id) * layout.bytes(buffer.role)
}

/// Places a plan at its capacity.
#[must_use]
pub fn place(plan: &Plan, layout: Layout, claims: &BTreeSet<Block>) -> Placement {
    let mut lives = lifetimes(plan, claims);
    let ends: Vec<usize> = plan
        .steps
        .iter()
        .scan(0, |end, step| {
            *end += step.ops.len();
            Some(end.saturating_sub(1))
        })
        .collect();
    for (id, step) in &layout.stays {
        if let (Some(life), Some(&end)) = (lives.get_mut(id), ends.get(*step)) {
            life.last = life.last.max(end);
        }
    }
    let mut order: Vec<(BufferId, usize, Life)> = lives
        .iter()
        .map(|(&id, &life)| {
            let bytes = buffer_bytes(plan, id, &plan.capacity, &layout).next_multiple_of(layout.align);
            (id, bytes, life)
        })
        .collect();
    order.sort_by_key(|&(id, bytes, life)| (std::cmp::Reverse(bytes), life.first, id));
    let mut slots: BTreeMap<BufferId, Slot> = BTreeMap::new();
    let mut by_offset: Vec<Slot> = Vec::new();
    let mut peak = 0;
    for (id, bytes, life) in order {
        let offset = best_gap(&by_offset, bytes, &life);
        let slot = Slot { offset, bytes, life };
        peak = peak.max(offset + bytes);
        let at = by_offset.partition_point(|other| other.offset <= offset);
        by_offset.insert(at, slot);
        slots.insert(id, slot);
    }
    Placement { slots, peak, layout, claims: claims.clone() }
}

/// The smallest gap that holds `bytes` between slots (sorted by offset) that live at the same time; else above them all.
fn best_gap(slots: &[Slot], bytes: usize, life: &Life) -> usize {
    let mut best: Option<(usize, usize)> = None;
    let mut free_from = 0;
    for slot in slots.iter().filter(|slot| slot.life.meets(life)) {
        if slot.offset > free_from {
            let gap = slot.offset - free_from;
            if gap >= bytes && best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, free_from));
            }
        }
        free_from = free_from.max(slot.offset + slot.bytes);
    }
    best.map_or(free_from, |(_, offset)| offset)
}

/// Most bytes that are live at once: no placement can do with less.
#[must_use]
pub fn live_bound(placement: &Placement) -> usize {
    let mut changes: BTreeMap<usize, isize> = BTreeMap::new();
    for slot in placement.slots.values() {
        *changes.entry(slot.life.first).or_default() += slot.bytes as isize;
        *changes.entry(slot.life.last + 1).or_default() -= slot.bytes as isize;
    }
    let (mut live, mut most) = (0isize, 0isize);
    for change in changes.values() {
        live += change;
        most = most.max(live);
    }
    most.unsigned_abs()
}
