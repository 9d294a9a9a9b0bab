//! Counts what a plan costs: floating-point operations and bytes that cross to memory, operation by operation.

use crate::place::Layout;
use crate::plan::{Block, Dims, Form, Mat, Op, Plan, Role};
use std::collections::BTreeMap;

/// A cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications and additions counted one each; element-wise operations count their inputs.
    pub flops: u64,
    /// Every operand read or written once.
    pub bytes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// Cost of one operation. Attention is counted at the mean of causal lengths for sequences of equal length.
#[must_use]
pub fn cost(plan: &Plan, op: &Op, dims: &Dims, layout: &Layout) -> Cost {
    let access = op.access(&plan.groups);
    let touched = access.reads.iter().chain(&access.writes).chain(&access.updates).chain(&access.updates);
    let elements = |mat: &Mat| (dims.rows(mat.rows) * mat.cols) as u64;
    let bytes = touched
        .clone()
        .map(|mat| {
            let width = match mat.role {
                Role::Act | Role::Param => layout.act,
                Role::Grad => layout.grad,
                Role::Stat => layout.stat,
                Role::Index => 4,
            };
            elements(mat) * width as u64
        })
        .sum();
    let flops = match *op {
        Op::Gemm { a, b, form, .. } => {
            let n = match form {
                Form::Nt => dims.rows(b.rows),
                Form::Nn | Form::Tn => b.cols,
            };
            2 * elements(&a) * n as u64
        }
        Op::AttentionPacked { q, .. } => 2 * 2 * elements(&q) * mean_keys(dims),
        Op::AttentionGradQ { q, .. } => 3 * 2 * elements(&q) * mean_keys(dims),
        Op::AttentionGradKv { q, .. } => 4 * 2 * elements(&q) * mean_keys(dims),
        Op::Lora { group, x, .. } => lora_flops(plan, group, dims.rows(x.rows)),
        Op::LoraGradInner { group, d_u, .. } => {
            let outputs: usize = plan.groups[group].modules.iter().map(|m| m.cols).sum();
            2 * (dims.rows(d_u.rows) * outputs * plan.groups[group].rank) as u64
        }
        Op::LoraGradParams { group, x, .. } => lora_flops(plan, group, dims.rows(x.rows)),
        Op::LoraGradInput { group, d_x, .. } => lora_flops(plan, group, dims.rows(d_x.rows)) / 2,
        _ => touched.map(elements).sum(),
    };
    Cost { flops, bytes }
}

fn mean_keys(dims: &Dims) -> u64 {
    let length = dims.tokens / dims.seqs.max(1);
    (length as u64).div_ceil(2)
}

fn lora_flops(plan: &Plan, group: usize, rows: usize) -> u64 {
    let group = &plan.groups[group];
    let per_row: usize = group.modules.iter().map(|m| 2 * group.rank * (m.a.cols + m.cols)).sum();
    (rows * per_row) as u64
}

/// Cost by block.
#[must_use]
pub fn by_block(plan: &Plan, dims: &Dims, layout: &Layout) -> BTreeMap<Block, Cost> {
    let mut costs: BTreeMap<Block, Cost> = BTreeMap::new();
    for step in &plan.steps {
        for op in &step.ops {
            *costs.entry(step.block).or_default() += cost(plan, op, dims, layout);
        }
    }
    costs
}

/// Cost of a whole plan.
#[must_use]
pub fn total(plan: &Plan, dims: &Dims, layout: &Layout) -> Cost {
    let mut sum = Cost::default();
    for cost in by_block(plan, dims, layout).into_values() {
        sum += cost;
    }
    sum
}
