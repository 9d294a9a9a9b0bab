//! What lowering has to know of a plan beside the operation at hand: found once, since every count of rows needs it again.

use crate::plan::{Access, BufferId, Mat, Op, Plan};

/// Who touches what in a plan.
#[derive(Debug)]
pub(super) struct Facts {
    /// The operations in order, and the views that each touches.
    ops: Vec<(Op, Access)>,
    /// By buffer: the numbers of the operations that touch it, in order.
    touching: Vec<Vec<usize>>,
}

impl Facts {
    pub(super) fn new(plan: &Plan) -> Self {
        let ops: Vec<(Op, Access)> = plan.ops().map(|op| (*op, op.access(&plan.groups))).collect();
        let mut touching = vec![Vec::new(); plan.buffers.len()];
        for (number, (_, access)) in ops.iter().enumerate() {
            let all = access.reads.iter().chain(&access.writes).chain(&access.updates);
            for mat in all {
                let found: &mut Vec<usize> = &mut touching[mat.buffer.0 as usize];
                if found.last() != Some(&number) {
                    found.push(number);
                }
            }
        }
        Facts { ops, touching }
    }

    fn numbers(&self, buffer: BufferId) -> &[usize] {
        self.touching.get(buffer.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// The operations that touch a buffer, in order.
    pub(super) fn touching(&self, buffer: BufferId) -> Vec<Op> {
        self.numbers(buffer).iter().map(|&number| self.ops[number].0).collect()
    }

    /// How many operations touch a buffer.
    pub(super) fn touches(&self, buffer: BufferId) -> usize {
        self.numbers(buffer).len()
    }

    /// The numbers of the operations that write into a buffer, in order.
    fn writing(&self, buffer: BufferId) -> Vec<usize> {
        let writes = |&&number: &&usize| {
            let access = &self.ops[number].1;
            access.writes.iter().chain(&access.updates).any(|mat| mat.buffer == buffer)
        };
        self.numbers(buffer).iter().filter(writes).copied().collect()
    }

    /// The group whose outputs' gradient a view holds, and its rank-r products: both stay as they are from the operation that
    /// writes the gradient to the one that sums the gradients of the adapters.
    pub(super) fn reader_of(&self, d_y: Mat) -> Option<(usize, Mat)> {
        let mut found = None;
        for &number in self.numbers(d_y.buffer) {
            if let Op::LoraGradParams { group, u, d_y: same, .. } = self.ops[number].0
                && same == d_y
            {
                if found.is_some() {
                    return None;
                }
                found = Some((number, group, u));
            }
        }
        let (reads, group, u) = found?;
        let [written] = self.writing(d_y.buffer)[..] else { return None };
        let made = self.writing(u.buffer);
        let stays = written < reads && !made.is_empty() && made.iter().all(|&number| number < written);
        stays.then_some((group, u))
    }
}
