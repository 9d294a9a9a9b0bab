//! Operations that run as one. A plan says what is computed one operation after another; here several of them that follow each
//! other become one pass over memory, or one product.
//!
//! All operands of a step count as live together (the backend claims these steps), so a fused operation may write early and
//! read late inside of its step.

use super::facts::Facts;
use super::lower::{Lowered, Lowering, Masks, columns_of, unknown};
use super::store::group_tail;
use crate::backend::BackendError;
use crate::plan::{Block, BufferId, Form, LoraGroup, Mat, Op, Place, Plan};
use kernels::cuda::ops::{elementwise, lora};
use kernels::cuda::{self, Dtype, Finish, Matmul, Tensor, Work};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Steps inside of which operations are fused.
pub(super) const CLAIMS: [Block; 8] = [
    Block::AttentionIn,
    Block::AttentionOut,
    Block::MlpIn,
    Block::MlpOut,
    Block::MlpOutBackward,
    Block::MlpInBackward,
    Block::AttentionOutBackward,
    Block::AttentionInBackward,
];

/// What fusing needs to know of a plan, and what it did so far.
pub(super) struct Fusion<'a> {
    pub(super) facts: &'a Facts,
    /// Rank-r gradients that lie in bfloat16 elsewhere than the plan says.
    moved: RefCell<BTreeMap<BufferId, (Tensor, Mat)>>,
    /// Gradients by outputs, for whose adapters `d_B` was summed when they were written.
    summed: RefCell<BTreeSet<BufferId>>,
}

impl<'a> Fusion<'a> {
    pub(super) fn new(facts: &'a Facts) -> Self {
        Fusion { facts, moved: RefCell::default(), summed: RefCell::default() }
    }

    /// Whether `d_B` of the adapters behind this gradient is done.
    pub(super) fn summed(&self, d_y: Mat) -> bool {
        self.summed.borrow().contains(&d_y.buffer)
    }

    pub(super) fn moved(&self, d_u: Mat) -> Option<Tensor> {
        self.moved.borrow().get(&d_u.buffer).map(|(tensor, _)| tensor.clone())
    }

    /// The view whose buffer holds it.
    pub(super) fn moved_into(&self, d_u: Mat) -> Option<Mat> {
        self.moved.borrow().get(&d_u.buffer).map(|&(_, mat)| mat)
    }
}

/// What this backend wants of a plan's buffers.
pub(super) struct Room {
    /// Columns behind buffers, in bfloat16.
    pub extra: BTreeMap<BufferId, usize>,
    /// Buffers that nothing here touches.
    pub unused: BTreeSet<BufferId>,
}

/// Columns in float32 that a gradient by rank-r products alone takes: as many in bfloat16 behind it, or a tail's in its place.
fn lone_columns(d_u: Mat, tail: usize) -> usize {
    (d_u.cols + d_u.cols.div_ceil(2)).max(tail.div_ceil(2)).next_multiple_of(4)
}

/// The room that a plan's buffers take here.
pub(super) fn room(plan: &Plan) -> Room {
    let (mut extra, mut unused) = (BTreeMap::new(), BTreeSet::new());
    let mut want = |mat: Mat, columns: usize| {
        let found = extra.entry(mat.buffer).or_default();
        *found = columns.max(*found);
    };
    for step in &plan.steps {
        for (i, op) in step.ops.iter().enumerate() {
            match *op {
                Op::Lora { group, x, scratch, .. } => {
                    want(x, group_tail(&plan.groups[group]));
                    unused.extend(scratch.map(|mat| mat.buffer));
                }
                Op::LoraGradInner { group, d_y, d_u } => match i.checked_sub(1).map(|i| step.ops[i]) {
                    Some(Op::Gemm { a, c, form: Form::Nn, .. }) if a == d_y => {
                        want(c, group_tail(&plan.groups[group]));
                    }
                    _ => want(d_u, lone_columns(d_u, group_tail(&plan.groups[group])) - d_u.cols),
                },
                Op::LoraGradParams { scratch, .. } | Op::LoraGradInput { scratch, .. } => {
                    unused.extend(scratch.map(|mat| mat.buffer));
                }
                _ => {}
            }
        }
    }
    Room { extra, unused }
}

/// Operands of [`lora::Above`].
struct AboveParts {
    u: Tensor,
    d_b: Vec<Tensor>,
    scratch: Tensor,
}

type Fused = Result<Option<(Vec<Work>, usize)>, BackendError>;

impl Lowering<'_> {
    /// The work of the first operations and how many they are; `None`: the first one stands alone.
    pub(super) fn fused(&self, ops: &[Op]) -> Fused {
        let Some(fusion) = &self.fusion else { return Ok(None) };
        match *ops {
            [
                first @ (Op::RmsNorm { out, .. } | Op::SwiGlu { out, .. }),
                Op::Gemm { a, form: Form::Nt, accumulate: false, .. },
                Op::Lora { group, x, .. },
                ..,
            ] if a == out && x == out && self.takes_down(&first, group) => {
                let made = self.projection(fusion, Some(&first), &ops[1..])?;
                Ok(made.map(|(work, taken)| (work, taken + 1)))
            }
            [Op::Gemm { form: Form::Nt, accumulate: false, .. }, ..] => self.projection(fusion, None, ops),
            [
                Op::Gemm { a, b, c, form: Form::Nn, accumulate: false },
                Op::LoraGradInner { group, d_y, d_u },
                ..,
            ] if a == d_y => self.input_gradient(fusion, [a, b, c], group, d_u),
            [Op::LoraGradInner { group, d_y, d_u }, ..] => self.lone_inner(fusion, group, [d_y, d_u]),
            [
                Op::LoraGradInput { .. },
                Op::SwiGlu { .. },
                Op::SwiGluGrad { .. },
                Op::LoraGradParams { .. },
                ..,
            ] => self.swiglu_gradient(fusion, ops),
            [Op::LoraGradInput { .. }, Op::RmsNormGrad { accumulate: true, .. }, ..] => {
                self.norm_gradient(fusion, ops)
            }
            // The gradients of attention were turned back when they were written.
            [Op::Rope { x, inverse: true, .. }, ..] => Ok(self.turn(x)?.map(|_| (Vec::new(), 1))),
            [Op::SwiGlu { gate_up, out }, Op::SwiGluGrad { gate_up: again, d_out, d_gate_up }, ..]
                if gate_up == again =>
            {
                let (gate_up, d_out) = (self.tensor(gate_up)?, self.tensor(d_out)?);
                let (d_gate_up, h) = (self.tensor(d_gate_up)?, self.tensor(out)?);
                let work = elementwise::swiglu_grad(&gate_up, &d_out, &d_gate_up, Some(&h))?;
                Ok(Some((vec![work], 2)))
            }
            _ => Ok(None),
        }
    }

    /// Whether the rank-r products of a group can be made by the operation that makes their input.
    fn takes_down(&self, first: &Op, group: usize) -> bool {
        let group = &self.plan.groups[group];
        let width = match *first {
            Op::RmsNorm { x, .. } => x.cols,
            Op::SwiGlu { out, .. } if group.modules.len() == 1 => out.cols,
            _ => return false,
        };
        self.takes(group, width) && lora::takes_down(width, group.rank, matches!(first, Op::RmsNorm { .. }))
    }

    /// The rank-r products of `input`, which `first` makes in the same pass when it is given.
    fn rank_products(
        &self,
        first: Option<&Op>,
        group: &LoraGroup,
        input: &Tensor,
        u: Mat,
        behind: &Tensor,
    ) -> Result<Work, BackendError> {
        let Some(first) = first else { return self.lora_down(group, input, u, Some(behind)) };
        let a = self.tensors(group, |module| Some(module.a))?;
        let (u, masks) = (self.tensor(u)?, self.masks(group)?);
        let (dropout, scalars) = (masks.as_ref().map(Masks::dropout), self.block.scalars()?);
        let down = lora::Down { x: input, a: &a, u: &u, augmented: behind };
        Ok(match *first {
            Op::RmsNorm { x, weight, rstd, eps, .. } => {
                let (of, weight, rstd) = (self.tensor(x)?, self.tensor(weight)?, self.tensor(rstd)?);
                let norm = lora::Normed { of: &of, weight: &weight, rstd: &rstd, eps: eps as f32 };
                lora::down_norm(&norm, &down, dropout.as_ref(), &scalars)?
            }
            Op::SwiGlu { gate_up, .. } => {
                lora::down_swiglu(&self.tensor(gate_up)?, &down, dropout.as_ref(), &scalars)?
            }
            _ => return Err(unknown(first)),
        })
    }

    /// A projection: its adapters lie behind its weight, bias or residual are added before the one rounding. `first` makes
    /// the input, and is part of the work.
    fn projection(&self, fusion: &Fusion<'_>, first: Option<&Op>, ops: &[Op]) -> Fused {
        let [Op::Gemm { a, b, c, .. }, rest @ ..] = ops else { return Ok(None) };
        let Place::Param(id) = self.plan.get(b.buffer).place else { return Ok(None) };
        let (mut input, mut weight, mut target) = (self.tensor(*a)?, self.tensor(*b)?, self.tensor(*c)?);
        if target.rows() == 0 {
            return Ok(None);
        }
        let mut work = self.store.unpack(id, &self.block.scalars()?)?;
        let mut taken = 1;
        if let [Op::Lora { group, x, u, y, .. }, ..] = rest {
            if x != a || y != c || !self.store.has_tail(id) {
                return Ok(None);
            }
            let group = &self.plan.groups[*group];
            let wide = self.wide(&input, group_tail(group))?;
            let behind = wide.columns(input.cols(), group_tail(group))?;
            work.push(self.rank_products(first, group, &input, *u, &behind)?);
            (input, weight) = (wide, self.store.with_tail(id)?);
            taken += 1;
        }
        let (mut addend, mut bias) = (None, None);
        match rest.get(taken - 1) {
            Some(Op::AddBias { y, bias: found }) if y == c => {
                bias = Some(self.tensor(*found)?).filter(|bias| bias.dtype() == target.dtype());
                taken += usize::from(bias.is_some());
            }
            Some(Op::Add { a: more, b: sum, out })
                if sum == c && fusion.facts.touches(c.buffer) == taken + 1 =>
            {
                addend = Some(self.tensor(*more)?);
                target = self.tensor(*out)?;
                taken += 1;
            }
            _ => {}
        }
        if taken == 1 {
            return Ok(None);
        }
        let finish = Finish { addend: addend.as_ref(), bias: bias.as_ref() };
        let factors = (&input, &weight, &target);
        if self.few_rows {
            work.extend(self.few_rows(factors, finish)?);
        } else {
            let product = Matmul::finished(self.workspace, cuda::Form::Nt, factors, finish)?;
            work.push(Work::from(product));
        }
        Ok(Some((work, taken)))
    }

    /// Whether tensor cores take a group whose input has so many features, forward and backward.
    fn takes(&self, group: &LoraGroup, features: usize) -> bool {
        let aligned = |a: &Mat| self.tensor(*a).is_ok_and(|a| a.is_aligned(16));
        self.low
            && lora::takes(features, group.rank, &columns_of(group))
            && group.modules.iter().all(|module| aligned(&module.a))
    }

    /// The gradient by a projection's input, and behind it that by the rank-r products: the weight's tail holds their factor.
    fn input_gradient(&self, fusion: &Fusion<'_>, [a, b, into]: [Mat; 3], group: usize, d_u: Mat) -> Fused {
        let group = &self.plan.groups[group];
        let Place::Param(id) = self.plan.get(b.buffer).place else { return Ok(None) };
        let (a, d_x) = (self.tensor(a)?, self.tensor(into)?);
        if !self.store.has_tail(id) || !self.takes(group, d_x.cols()) || d_x.rows() == 0 {
            return Ok(None);
        }
        let wide = self.wide(&d_x, group_tail(group))?;
        let behind = wide.columns(d_x.cols(), d_u.cols)?;
        let mut work = self.store.unpack(id, &self.block.scalars()?)?;
        work.extend(self.product(cuda::Form::Nn, (&a, &self.store.with_tail(id)?, &wide), false)?);
        fusion.moved.borrow_mut().insert(d_u.buffer, (behind, into));
        Ok(Some((work, 2)))
    }

    /// The gradient by the rank-r products alone: a product with the tail of the weight, or rounded into the columns behind it.
    fn lone_inner(&self, fusion: &Fusion<'_>, group: usize, [d_y, d_u]: [Mat; 2]) -> Fused {
        let group = &self.plan.groups[group];
        if group.modules.iter().any(|module| !self.takes(group, module.a.cols)) {
            return Ok(None);
        }
        let (d_y, exact) = (self.tensor(d_y)?, self.tensor(d_u)?);
        let (rows, pitch, scalars) = (exact.rows(), 2 * exact.pitch(), self.block.scalars()?);
        let Place::Param(b) = self.plan.get(group.modules[0].b.buffer).place else { return Ok(None) };
        if let Some(id) = self.store.tail_of(b).filter(|_| rows > 0) {
            let weight = self.store.with_tail(id)?;
            let tail = weight.columns(weight.cols() - group_tail(group), group_tail(group))?;
            let wide = exact.memory().tensor(exact.offset(), (rows, tail.cols()), pitch, Dtype::Bf16)?;
            let mut work = self.store.unpack(id, &scalars)?;
            work.extend(self.product(cuda::Form::Nn, (&d_y, &tail, &wide), false)?);
            fusion.moved.borrow_mut().insert(d_u.buffer, (wide.columns(0, d_u.cols)?, d_u));
            return Ok(Some((work, 1)));
        }
        let b = self.tensors(group, |module| Some(module.b))?;
        let product = lora::grad_inner(&d_y, &b, &columns_of(group), &exact, &scalars)?;
        let offset = exact.offset() + exact.cols() * exact.dtype().bytes();
        let rounded = exact.memory().tensor(offset, (rows, exact.cols()), pitch, Dtype::Bf16)?;
        let cast = elementwise::cast(&exact, &rounded)?;
        fusion.moved.borrow_mut().insert(d_u.buffer, (rounded, d_u));
        Ok(Some((vec![product, cast], 1)))
    }

    /// SwiGLU's gradient with the adapter on its output: `h` stays out of memory.
    fn swiglu_gradient(&self, fusion: &Fusion<'_>, ops: &[Op]) -> Fused {
        let [
            Op::LoraGradInput { group, d_u, d_x, .. },
            Op::SwiGlu { gate_up, out: h },
            Op::SwiGluGrad { gate_up: again, d_out, d_gate_up },
            Op::LoraGradParams { group: same, x, u, d_y, d_u: inner, .. },
            ..,
        ] = ops
        else {
            return Ok(None);
        };
        let fits = group == same && gate_up == again && d_out == d_x && x == h && d_u == inner;
        let group = &self.plan.groups[*group];
        if !fits || fusion.moved(*d_u).is_none() || group.rank > lora::RANKS || group.modules.len() != 1 {
            return Ok(None);
        }
        let (gate_up, d_h, d_gate_up_view) =
            (self.tensor(*gate_up)?, self.tensor(*d_x)?, self.tensor(*d_gate_up)?);
        let (a, masks) = (self.tensor(group.modules[0].a)?, self.masks(group)?);
        let above = self.above(fusion, *d_gate_up)?;
        if above.is_some() {
            fusion.summed.borrow_mut().insert(d_gate_up.buffer);
        }
        let above = above.as_ref().map(|above| lora::Above {
            u: &above.u,
            d_b: [&above.d_b[0], &above.d_b[1]],
            scratch: &above.scratch,
        });
        let swiglu = lora::SwiGlu { gate_up: &gate_up, d_h: &d_h, d_gate_up: &d_gate_up_view, a: &a, above };
        let dropout = masks.as_ref().map(Masks::dropout);
        let scalars = self.block.scalars()?;
        let bytes = lora::swiglu_bytes(d_h.rows(), d_h.cols(), group.rank, &columns_of(group));
        let work: Lowered = self.outer(group, [*u, *d_y, *d_u], bytes, |outer, sums| {
            lora::grad_swiglu(&outer, &swiglu, dropout.as_ref(), &scalars, sums)
        });
        Ok(Some((work?, 4)))
    }

    /// The adapters of gate and up, when both are trained and their sums fit into the pass that writes `d_gate_up`.
    fn above(&self, fusion: &Fusion<'_>, d_gate_up: Mat) -> Result<Option<AboveParts>, BackendError> {
        let Some((group, u)) = fusion.facts.reader_of(d_gate_up) else { return Ok(None) };
        let group = &self.plan.groups[group];
        let half = d_gate_up.cols / 2;
        if columns_of(group) != [(0, half), (half, half)] || group.rank > lora::RANKS {
            return Ok(None);
        }
        let (u, d_b) = (self.tensor(u)?, self.tensors(group, |module| module.d_b)?);
        let scratch = self.partials(lora::above_bytes(u.rows(), half, group.rank))?;
        Ok(Some(AboveParts { u, d_b, scratch }))
    }

    /// RMS norm's gradient with the adapters on its output, which may be wanted once more.
    fn norm_gradient(&self, fusion: &Fusion<'_>, ops: &[Op]) -> Fused {
        let [
            Op::LoraGradInput { group, d_u, d_x: inner, .. },
            Op::RmsNormGrad { x, weight, rstd, d_out, d_x, .. },
            rest @ ..,
        ] = ops
        else {
            return Ok(None);
        };
        let weight_values = self.tensor(*weight)?;
        let fits = inner == d_out && x.cols <= lora::NORM_COLS_MAX && weight_values.dtype() == Dtype::Bf16;
        let Some(d_u) = fusion.moved(*d_u).filter(|_| fits) else { return Ok(None) };
        let again = match rest {
            [Op::RmsNorm { x: same, weight: by, out, .. }, ..] if same == x && by == weight => Some(*out),
            _ => None,
        };
        let group = &self.plan.groups[*group];
        let (a, masks) = (self.tensors(group, |module| Some(module.a))?, self.masks(group)?);
        let out = again.map(|out| self.tensor(out)).transpose()?;
        let norm = lora::Norm {
            x: &self.tensor(*x)?,
            weight: &weight_values,
            rstd: &self.tensor(*rstd)?,
            d_out: &self.tensor(*d_out)?,
            d_x: &self.tensor(*d_x)?,
            out: out.as_ref(),
        };
        let dropout = masks.as_ref().map(Masks::dropout);
        let work = lora::grad_norm(&norm, &d_u, &a, dropout.as_ref(), &self.block.scalars()?)?;
        Ok(Some((vec![work], 2 + usize::from(again.is_some()))))
    }
}
