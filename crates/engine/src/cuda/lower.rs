//! From a plan to work: every operation of a plan under fixed row counts as launches over fixed addresses.

use super::beside::Weave;
use super::fused::Fusion;
use super::inputs::{Block, Field, row_range};
use super::store::{ALIGN, Store};
use crate::backend::{BackendError, Slab};
use crate::place::Placement;
use crate::plan::{
    Block as PlanBlock, Dims, Form, Heads, Input, LoraGroup, Mat, Op, Place, Plan, Role, Rows, Step,
};
use kernels::cuda::ops::{self, attention, lora};
use kernels::cuda::{self, CudaError, Dtype, Finish, Gpu, Matmul, Memory, Piece, Tensor, Work};
use std::cell::{Cell, RefCell};

/// Where everything of a program lies.
pub(super) struct Lowering<'a> {
    pub gpu: &'a Gpu,
    pub plan: &'a Plan,
    pub placement: &'a Placement,
    pub dims: Dims,
    pub store: &'a Store,
    pub block: &'a Block,
    pub arena: &'a Memory,
    pub caches: &'a [Tensor],
    pub workspace: &'a Memory,
    /// Shared by operations that need room for partial sums; grows to the largest need.
    pub scratch: &'a RefCell<Memory>,
    /// Room for sums of adapters' gradients that wait for the end of a step or two, in halves that take turns: one is read
    /// beside the main line while the other is filled.
    pub partials: &'a RefCell<[Memory; 2]>,
    pub half: Cell<usize>,
    /// These sums, and the bytes that they take there.
    pub waiting: RefCell<lora::Sums>,
    pub taken: Cell<usize>,
    /// Whether work that was made since this was asked last writes such sums.
    pub wrote_sums: Cell<bool>,
    pub segments: &'a Tensor,
    /// `1 x 1`: not 0 once a loss or a norm was not finite; no update then.
    pub flag: &'a Tensor,
    /// Activations in bfloat16.
    pub low: bool,
    /// A row's bits don't depend on how many there are.
    pub few_rows: bool,
    /// Which operations run as one; `None`: none do.
    pub fusion: Option<Fusion<'a>>,
    /// Some pieces run beside the main line.
    pub beside: bool,
}

/// A piece of work and the number of the operation that it ends.
pub(super) type Numbered = (usize, Piece);

pub(super) type Lowered = Result<Vec<Work>, BackendError>;

impl Lowering<'_> {
    /// The work of the whole plan, in order.
    pub(super) fn lower(&self) -> Result<Vec<Numbered>, BackendError> {
        let mut weave = Weave::default();
        let mut number = 0;
        for step in &self.plan.steps {
            self.lower_step(step, &mut number, &mut weave)?;
            // The next of these steps, or the one after it, adds its sums in the same launch.
            let waits = self.fusion.is_some()
                && matches!(
                    step.block,
                    PlanBlock::MlpOutBackward
                        | PlanBlock::AttentionOutBackward
                        | PlanBlock::AttentionCoreBackward
                );
            if !waits {
                weave.add_sums(self, number)?;
            }
        }
        weave.add_sums(self, number)?;
        Ok(weave.pieces)
    }

    fn lower_step(&self, step: &Step, number: &mut usize, weave: &mut Weave) -> Result<(), BackendError> {
        let mut i = 0;
        while i < step.ops.len() {
            let (work, taken) = match self.fused(&step.ops[i..])? {
                Some(found) => found,
                None => (self.lower_op(&step.ops[i])?, 1),
            };
            *number += taken;
            weave.add(self, &step.ops[i..i + taken], work, *number);
            i += taken;
        }
        Ok(())
    }

    /// A view with the columns behind it.
    pub(super) fn wide(&self, tensor: &Tensor, extra: usize) -> Result<Tensor, BackendError> {
        let shape = (tensor.rows(), tensor.cols() + extra);
        Ok(tensor.memory().tensor(tensor.offset(), shape, tensor.pitch(), tensor.dtype())?)
    }

    /// The place of a view.
    pub(super) fn tensor(&self, mat: Mat) -> Result<Tensor, BackendError> {
        view(self.plan, self.placement, self.arena, &self.dims, self.low, mat)?.map_or_else(
            || match self.plan.get(mat.buffer).place {
                Place::Param(id) => Ok(self.store.view(id)?.columns(mat.col0, mat.cols)?),
                Place::Gradient(id) => Ok(self.store.gradient(id)?.columns(mat.col0, mat.cols)?),
                Place::Input(input) => self.input(input, mat),
                Place::Cache(layer) => {
                    let missing = || error("a cache", "is not on the device");
                    self.caches.get(layer as usize).cloned().ok_or_else(missing)
                }
                Place::Arena => Err(error(&self.plan.get(mat.buffer).name, "has no place")),
            },
            Ok,
        )
    }

    fn input(&self, input: Input, mat: Mat) -> Result<Tensor, BackendError> {
        let buffer = self.plan.get(mat.buffer);
        let (first, rows) = row_range(mat.rows, buffer.rows, &self.dims);
        let all = self.block.tensor(Field::Given(input), first + rows, buffer.cols)?;
        Ok(all.row_range(first, rows)?)
    }

    pub(super) fn spans(&self) -> Result<Tensor, BackendError> {
        self.block.tensor(Field::Spans, self.dims.tokens, 2)
    }

    /// The order of attention's tiles of queries, and of keys.
    pub(super) fn tiles(&self) -> Result<[Tensor; 2], BackendError> {
        let [queries, keys] = attention::Tiles::counts(self.dims.tokens);
        let column = |field, rows| self.block.tensor(field, rows, 1);
        Ok([column(Field::QueryTiles, queries)?, column(Field::KeyTiles, keys)?])
    }

    /// Room for partial sums.
    pub(super) fn scratch(&self, bytes: usize) -> Result<Tensor, BackendError> {
        let mut scratch = self.scratch.borrow_mut();
        if scratch.bytes() < bytes {
            *scratch = self.gpu.alloc(bytes.next_multiple_of(1 << 20), "partial sums")?;
        }
        Ok(scratch.dense(1, bytes, Dtype::U8)?)
    }

    /// Room for sums that wait.
    pub(super) fn partials(&self, bytes: usize) -> Result<Tensor, BackendError> {
        let (start, mut halves) = (self.taken.get(), self.partials.borrow_mut());
        let partials = &mut halves[self.half.get()];
        let end = start + bytes.next_multiple_of(ALIGN);
        if partials.bytes() < end {
            // What waits in the old memory holds it.
            *partials = self.gpu.alloc(end.next_multiple_of(1 << 20), "sums of adapters' gradients")?;
        }
        self.taken.set(end);
        self.wrote_sums.set(true);
        Ok(partials.tensor(start, (1, bytes), bytes, Dtype::U8)?)
    }

    /// Adds what waits to the gradients; what comes next uses the other half of the room.
    pub(super) fn sums(&self) -> Lowered {
        self.taken.set(0);
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        self.half.set(1 - self.half.get());
        Ok(waiting.take(&self.block.scalars()?)?)
    }

    fn lower_op(&self, op: &Op) -> Lowered {
        let work = match *op {
            Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::RmsNormGrad { .. }
            | Op::AddBias { .. }
            | Op::Rope { .. }
            | Op::SwiGlu { .. }
            | Op::SwiGluGrad { .. }
            | Op::Add { .. }
            | Op::GatherRows { .. }
            | Op::ScatterRows { .. } => self.lower_rows(op)?,
            Op::Gemm { a, b, c, form, accumulate } => {
                let (weight, form) = (self.plan.get(b.buffer).place, form_of(form));
                let (a, b, c) = (self.tensor(a)?, self.tensor(b)?, self.tensor(c)?);
                if c.rows() == 0 || a.rows() == 0 {
                    return Ok(Vec::new());
                }
                let mut work = match weight {
                    Place::Param(id) => self.store.unpack(id, &self.block.scalars()?)?,
                    _ => Vec::new(),
                };
                work.extend(self.product(form, (&a, &b, &c), accumulate)?);
                return Ok(work);
            }
            Op::AttentionPacked { .. }
            | Op::AttentionDelta { .. }
            | Op::AttentionGradQ { .. }
            | Op::AttentionGradKv { .. }
            | Op::CacheWrite { .. }
            | Op::AttentionPaged { .. } => return self.lower_attention(op),
            Op::Lora { .. }
            | Op::LoraGradInner { .. }
            | Op::LoraGradParams { .. }
            | Op::LoraGradInput { .. } => return self.lower_adapter(op),
            Op::CrossEntropy { .. } | Op::SumLoss { .. } => self.lower_loss(op)?,
            Op::EmbedGrad { .. } | Op::RmsNormWeightGrad { .. } | Op::BiasGrad { .. } => {
                self.lower_gradient(op)?
            }
            Op::ZeroGradients | Op::GradNorm { .. } | Op::AdamW { .. } => return self.lower_slabs(op),
        };
        Ok(vec![work])
    }

    /// A product, its inner dimension in parts where that is faster.
    pub(super) fn product(
        &self,
        form: cuda::Form,
        (a, b, c): (&Tensor, &Tensor, &Tensor),
        accumulate: bool,
    ) -> Lowered {
        if self.few_rows && form == cuda::Form::Nt {
            let finish = Finish { addend: accumulate.then_some(c), bias: None };
            return self.few_rows((a, b, c), finish);
        }
        match cuda::split_bytes(form, a, b) {
            0 => Ok(vec![Work::from(Matmul::new(self.workspace, form, (a, b, c), accumulate)?)]),
            bytes => {
                let scratch = self.scratch(bytes)?;
                Ok(cuda::split(self.workspace, &scratch, form, (a, b, c), accumulate)?.into())
            }
        }
    }

    /// A product with a weight, finished before its one rounding.
    pub(super) fn few_rows(&self, factors: (&Tensor, &Tensor, &Tensor), finish: Finish<'_>) -> Lowered {
        let scratch = self.scratch(cuda::few_rows_bytes(factors.0, factors.1))?;
        Ok(cuda::few_rows(self.workspace, &scratch, factors, finish)?)
    }

    fn lower_rows(&self, op: &Op) -> Result<Work, BackendError> {
        let t = |mat| self.tensor(mat);
        Ok(match *op {
            Op::Embed { ids, table, out } => ops::embed::forward(&t(ids)?, &t(table)?, &t(out)?)?,
            Op::RmsNorm { x, weight, out, rstd, eps } => {
                ops::rms_norm::forward(&t(x)?, &t(weight)?, &t(out)?, &t(rstd)?, eps as f32)?
            }
            Op::RmsNormGrad { x, weight, rstd, d_out, d_x, accumulate } => {
                ops::rms_norm::backward(&t(x)?, &t(weight)?, &t(rstd)?, &t(d_out)?, &t(d_x)?, accumulate)?
            }
            Op::AddBias { y, bias } => ops::elementwise::add_bias(&t(y)?, &t(bias)?)?,
            Op::Rope { x, positions, table, dim, inverse } => {
                ops::rope::apply(&t(x)?, &t(positions)?, &t(table)?, dim, inverse)?
            }
            Op::SwiGlu { gate_up, out } => ops::elementwise::swiglu(&t(gate_up)?, &t(out)?)?,
            Op::SwiGluGrad { gate_up, d_out, d_gate_up } => {
                ops::elementwise::swiglu_grad(&t(gate_up)?, &t(d_out)?, &t(d_gate_up)?, None)?
            }
            Op::Add { a, b, out } => ops::elementwise::add(&t(a)?, &t(b)?, &t(out)?)?,
            Op::GatherRows { x, index, out } => ops::rows::gather(&t(x)?, &t(index)?, &t(out)?)?,
            Op::ScatterRows { d_out, d_x, .. } => {
                let map = self.block.tensor(Field::LossRow, self.dims.tokens, 1)?;
                ops::rows::scatter_inverse(&t(d_out)?, &map, &t(d_x)?)?
            }
            _ => return Err(unknown(op)),
        })
    }

    fn lower_attention(&self, op: &Op) -> Lowered {
        let t = |mat| self.tensor(mat);
        let work = match *op {
            Op::AttentionPacked { q, kv, out, lse, heads, .. } => {
                let [queries, keys] = self.tiles()?;
                let order = attention::Order { queries: &queries, keys: &keys };
                let seen = (&self.spans()?, Some(&order));
                attention::forward(&t(q)?, &t(kv)?, seen, &t(out)?, &t(lse)?, of(heads))?
            }
            Op::AttentionDelta { out, d_out, delta, heads } => {
                attention::delta(&t(out)?, &t(d_out)?, &t(delta)?, of(heads))?
            }
            Op::AttentionGradQ { q, kv, lse, delta, d_out, d_q, heads, .. } => {
                let saved = [t(q)?, t(kv)?, self.spans()?, t(lse)?, t(delta)?, t(d_out)?];
                let turn = self.turn(d_q)?;
                attention::grad_q(&saved_of(&saved, Some(&self.tiles()?), turn.as_ref(), heads), &t(d_q)?)?
            }
            Op::AttentionGradKv { q, kv, lse, delta, d_out, d_kv, heads, .. } => {
                let saved = [t(q)?, t(kv)?, self.spans()?, t(lse)?, t(delta)?, t(d_out)?];
                let turn = self.turn(d_kv)?;
                attention::grad_kv(&saved_of(&saved, Some(&self.tiles()?), turn.as_ref(), heads), &t(d_kv)?)?
            }
            Op::CacheWrite { kv, rows, cache } => {
                ops::attention_paged::cache_write(&t(kv)?, &t(rows)?, &t(cache)?)?
            }
            Op::AttentionPaged { q, cache, spans, out, heads, most } => {
                let (q, cache) = (t(q)?, t(cache)?);
                let most = most.min(cache.rows());
                let cols = ops::attention_paged::scratch_cols(of(heads), most);
                let scratch = self.scratch(q.rows() * cols * 4)?;
                let scratch = scratch.memory().dense(q.rows(), cols, Dtype::F32)?;
                let (spans, out) = (t(spans)?, t(out)?);
                let work =
                    ops::attention_paged::forward(&q, &cache, &spans, &scratch, &out, of(heads), most)?;
                return Ok(work.into());
            }
            _ => return Err(unknown(op)),
        };
        Ok(vec![work])
    }

    fn lower_loss(&self, op: &Op) -> Result<Work, BackendError> {
        match *op {
            Op::CrossEntropy { logits, labels, loss, gradient } => {
                let logits = self.tensor(logits)?;
                if logits.rows() == 0 {
                    return Ok(Work::Nothing);
                }
                let (labels, loss) = (self.tensor(labels)?, self.tensor(loss)?);
                Ok(ops::cross_entropy::forward(&logits, &labels, &loss, gradient)?)
            }
            Op::SumLoss { losses, sum } => {
                Ok(ops::cross_entropy::sum_loss(&self.tensor(losses)?, &self.tensor(sum)?, Some(self.flag))?)
            }
            _ => Err(unknown(op)),
        }
    }

    fn lower_gradient(&self, op: &Op) -> Result<Work, BackendError> {
        match *op {
            Op::EmbedGrad { ids, d_out, d_table } => {
                let order = self.block.tensor(Field::Order, self.dims.tokens, 1)?;
                let starts = self.block.tensor(Field::Runs, self.dims.tokens + 1, 1)?;
                let count = self.block.tensor(Field::RunCount, 1, 1)?;
                let runs = ops::embed::Runs { order: &order, starts: &starts, count: &count };
                let (ids, d_out, d_table) = (self.tensor(ids)?, self.tensor(d_out)?, self.tensor(d_table)?);
                Ok(ops::embed::grad(&ids, runs, &d_out, &d_table)?)
            }
            Op::RmsNormWeightGrad { x, rstd, d_out, d_weight } => {
                let (x, rstd, d_out) = (self.tensor(x)?, self.tensor(rstd)?, self.tensor(d_out)?);
                Ok(ops::rms_norm::weight_grad(&x, &rstd, &d_out, &self.tensor(d_weight)?)?)
            }
            Op::BiasGrad { d_y, d_bias } => {
                Ok(ops::elementwise::bias_grad(&self.tensor(d_y)?, &self.tensor(d_bias)?)?)
            }
            _ => Err(unknown(op)),
        }
    }

    fn lower_slabs(&self, op: &Op) -> Lowered {
        let gradient = self.store.slab(Slab::Gradient)?;
        Ok(match *op {
            Op::ZeroGradients => vec![Work::zero(gradient)?, Work::zero(self.flag)?],
            Op::GradNorm { norm } => {
                let partials = self.scratch(ops::optimizer::partials_bytes(gradient.cols()))?;
                let (norm, scalars) = (self.tensor(norm)?, self.block.scalars()?);
                ops::optimizer::grad_norm(gradient, &partials, &norm, &scalars, Some(self.flag))?.into()
            }
            Op::AdamW { norm } => {
                let scalars = self.block.scalars()?;
                let slabs = ops::optimizer::Slabs {
                    master: self.store.slab(Slab::Master)?,
                    gradient,
                    m: self.store.slab(Slab::M)?,
                    v: self.store.slab(Slab::V)?,
                    copy: self.store.copy(),
                };
                let conditions = ops::optimizer::Conditions {
                    norm: &self.tensor(norm)?,
                    scalars: &scalars,
                    segments: self.segments,
                    flag: Some(self.flag),
                };
                let mut all = vec![ops::optimizer::adamw(slabs, conditions)?];
                all.extend(self.store.refresh(&scalars, false)?);
                all
            }
            _ => return Err(unknown(op)),
        })
    }

    pub(super) fn masks(&self, group: &LoraGroup) -> Result<Option<Masks>, BackendError> {
        let (Some(samples), Some(positions)) = (group.samples, group.positions) else { return Ok(None) };
        Ok(Some(Masks {
            samples: self.tensor(samples)?,
            positions: self.tensor(positions)?,
            layer: group.layer,
            modules: group.modules.iter().map(|module| module.index).collect(),
        }))
    }

    pub(super) fn tensors(
        &self,
        group: &LoraGroup,
        which: impl Fn(&crate::plan::LoraModule) -> Option<Mat>,
    ) -> Result<Vec<Tensor>, BackendError> {
        let missing = || error("an adapter", "is frozen");
        group.modules.iter().map(|module| self.tensor(which(module).ok_or_else(missing)?)).collect()
    }

    pub(super) fn lora_down(
        &self,
        group: &LoraGroup,
        x: &Tensor,
        u: Mat,
        behind: Option<&Tensor>,
    ) -> Result<Work, BackendError> {
        let a = self.tensors(group, |module| Some(module.a))?;
        let (u, masks) = (self.tensor(u)?, self.masks(group)?);
        let dropout = masks.as_ref().map(Masks::dropout);
        Ok(lora::down(x, &a, &u, dropout.as_ref(), &self.block.scalars()?, behind)?)
    }

    fn lower_adapter(&self, op: &Op) -> Lowered {
        let (Op::Lora { group, .. }
        | Op::LoraGradInner { group, .. }
        | Op::LoraGradParams { group, .. }
        | Op::LoraGradInput { group, .. }) = *op
        else {
            return Err(unknown(op));
        };
        let group = &self.plan.groups[group];
        let scalars = self.block.scalars()?;
        let cols = columns_of(group);
        let masks = self.masks(group)?;
        let dropout = masks.as_ref().map(Masks::dropout);
        Ok(match *op {
            Op::Lora { x, u, y, .. } => {
                let b = self.tensors(group, |module| Some(module.b))?;
                let down = self.lora_down(group, &self.tensor(x)?, u, None)?;
                vec![down, lora::up(&self.tensor(u)?, &b, &self.tensor(y)?, &cols, &scalars)?]
            }
            Op::LoraGradInner { d_y, d_u, .. } => {
                let b = self.tensors(group, |module| Some(module.b))?;
                vec![lora::grad_inner(&self.tensor(d_y)?, &b, &cols, &self.tensor(d_u)?, &scalars)?]
            }
            Op::LoraGradParams { x, u, d_y, d_u, .. } => {
                let x = self.tensor(x)?;
                let summed = self.fusion.as_ref().is_some_and(|fusion| fusion.summed(d_y));
                let bytes = lora::scratch_bytes(x.rows(), x.cols(), group.rank, &cols);
                let mut work = self.outer(group, [u, d_y, d_u], bytes, |outer, sums| {
                    let params = lora::Params { x: &x, outer };
                    if summed {
                        return Ok(vec![lora::grad_down(&params, dropout.as_ref(), &scalars, sums)?]);
                    }
                    lora::grad_params(&params, dropout.as_ref(), &scalars, sums)
                })?;
                if self.fusion.is_none() {
                    work.extend(self.sums()?);
                }
                work
            }
            Op::LoraGradInput { d_u, d_x, .. } => {
                let a = self.tensors(group, |module| Some(module.a))?;
                let (d_u, d_x) = (self.inner(d_u)?, self.tensor(d_x)?);
                vec![lora::grad_input(&d_u, &a, &d_x, dropout.as_ref(), &scalars)?]
            }
            _ => return Err(unknown(op)),
        })
    }

    /// Where `d_u` is: in bfloat16 when a fused product wrote it.
    pub(super) fn inner(&self, d_u: Mat) -> Result<Tensor, BackendError> {
        let moved = self.fusion.as_ref().and_then(|fusion| fusion.moved(d_u));
        moved.map_or_else(|| self.tensor(d_u), Ok)
    }

    /// Hands the operands of the gradients of a group's factors to `make`; `scratch`: bytes for their sums.
    pub(super) fn outer(
        &self,
        group: &LoraGroup,
        [u, d_y, d_u]: [Mat; 3],
        scratch: usize,
        make: impl FnOnce(lora::Outer<'_>, &mut lora::Sums) -> Result<Vec<Work>, CudaError>,
    ) -> Lowered {
        let cols = columns_of(group);
        let d_a = self.tensors(group, |module| module.d_a)?;
        let d_b = self.tensors(group, |module| module.d_b)?;
        let (u, d_y, d_u) = (self.tensor(u)?, self.tensor(d_y)?, self.inner(d_u)?);
        let scratch = self.partials(scratch)?;
        let outer =
            lora::Outer { u: &u, d_y: &d_y, cols: &cols, d_u: &d_u, d_a: &d_a, d_b: &d_b, scratch: &scratch };
        Ok(make(outer, &mut self.waiting.borrow_mut())?)
    }
}

/// Start and number of the columns of each module.
pub(super) fn columns_of(group: &LoraGroup) -> Vec<(usize, usize)> {
    group.modules.iter().map(|m| (m.col0, m.cols)).collect()
}

fn form_of(form: Form) -> cuda::Form {
    match form {
        Form::Nt => cuda::Form::Nt,
        Form::Nn => cuda::Form::Nn,
        Form::Tn => cuda::Form::Tn,
    }
}

/// What keys a group's dropout, held for the launcher.
pub(super) struct Masks {
    samples: Tensor,
    positions: Tensor,
    layer: u32,
    modules: Vec<u32>,
}

impl Masks {
    pub(super) fn dropout(&self) -> lora::Dropout<'_> {
        lora::Dropout {
            samples: &self.samples,
            positions: &self.positions,
            layer: self.layer,
            modules: &self.modules,
        }
    }
}

fn of(heads: Heads) -> attention::Heads {
    attention::Heads { query: heads.query, kv: heads.kv, dim: heads.dim }
}

pub(super) fn saved_of<'a>(
    [q, kv, spans, lse, delta, d_out]: &'a [Tensor; 6],
    tiles: Option<&'a [Tensor; 2]>,
    turn: Option<&'a (Tensor, Tensor)>,
    heads: Heads,
) -> attention::Saved<'a> {
    let turn = turn.map(|(positions, table)| attention::Turn { positions, table });
    let order = tiles.map(|[queries, keys]| attention::Order { queries, keys });
    attention::Saved { q, kv, spans, lse, delta, d_out, heads: of(heads), order, turn }
}

/// A view of the arena; `None` for what lies elsewhere.
pub(super) fn view(
    plan: &Plan,
    placement: &Placement,
    arena: &Memory,
    dims: &Dims,
    low: bool,
    mat: Mat,
) -> Result<Option<Tensor>, CudaError> {
    let buffer = plan.get(mat.buffer);
    let Some(slot) = placement.slots.get(&mat.buffer).filter(|_| buffer.place == Place::Arena) else {
        return Ok(None);
    };
    let dtype = match buffer.role {
        Role::Act | Role::Grad | Role::Param if low => Dtype::Bf16,
        Role::Index => Dtype::U32,
        _ => Dtype::F32,
    };
    let pitch = placement.layout.pitch(plan, mat.buffer);
    let (first, rows) = match (mat.rows, buffer.rows) {
        (Rows::Const(_), _) => (0, dims.rows(mat.rows)),
        (rows, of) => row_range(rows, of, dims),
    };
    let offset = slot.offset + (first * pitch + mat.col0) * dtype.bytes();
    arena.tensor(offset, (rows, mat.cols), pitch, dtype).map(Some)
}

fn error(what: &str, message: &str) -> BackendError {
    BackendError::Plan { op: what.to_owned(), message: message.to_owned() }
}

pub(super) fn unknown(op: &Op) -> BackendError {
    error(&op.name(), "the CUDA backend does not know this operation")
}
