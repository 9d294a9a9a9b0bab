//! Runs one operation: takes its operands and calls its function.

use super::adapter::{self, Dropout, Factors, Grads, Masked};
use super::attention::{self, Saved};
use super::operands::{Operands, error};
use super::real::Real;
use super::{Cpu, CpuProgram, elementwise, training};
use crate::backend::{BackendError, Inputs};
use crate::plan::{Block, Form, Input, LoraGroup, LoraModule, Mat, Op, Place, Step};
use kernels::gemm::{View, ViewMut, product};

/// Whether a function knew the operation.
type Known = Result<bool, BackendError>;

impl<R: Real> Cpu<R> {
    /// Runs a block natively when it is claimed and known; otherwise its operations.
    pub(super) fn run_step(
        &mut self,
        program: &CpuProgram,
        step: &Step,
        inputs: &Inputs,
    ) -> Result<(), BackendError> {
        if program.placement.claims.contains(&step.block) && self.run_native(program, step, inputs)? {
            return Ok(());
        }
        step.ops.iter().try_for_each(|op| self.run_op(program, op, inputs))
    }

    fn run_native(&mut self, program: &CpuProgram, step: &Step, inputs: &Inputs) -> Known {
        let (Block::AttentionCoreBackward, [first, second, third]) = (step.block, &step.ops[..]) else {
            return Ok(false);
        };
        let (
            Op::AttentionDelta { .. },
            &Op::AttentionGradQ { q, kv, starts, lse, delta, d_out, d_q, heads },
            &Op::AttentionGradKv { d_kv, .. },
        ) = (first, second, third)
        else {
            return Ok(false);
        };
        self.run_op(program, first, inputs)?;
        let threads = self.threads;
        let mut o = self.operands(program, second, inputs)?;
        let d_qkv = Mat { col0: d_q.col0, cols: d_q.cols + d_kv.cols, ..d_q };
        let d_qkv = o.take(d_qkv)?;
        let saved = Saved {
            q: o.get(q)?,
            kv: o.get(kv)?,
            starts: o.index(starts)?,
            lse: o.get(lse)?,
            delta: o.get(delta)?,
            d_out: o.get(d_out)?,
            heads,
        };
        attention::grad_qkv(&saved, d_qkv, threads);
        for op in [second, third] {
            self.round_outputs(program, op, inputs)?;
        }
        Ok(true)
    }

    fn operands<'a>(
        &'a mut self,
        program: &'a CpuProgram,
        op: &'a Op,
        inputs: &'a Inputs,
    ) -> Result<Operands<'a, R>, BackendError> {
        let plan = (&program.plan, &program.placement);
        Operands::new(plan, op, inputs, &self.store, &mut self.arena, &mut self.caches)
    }

    pub(super) fn run_op(
        &mut self,
        program: &CpuProgram,
        op: &Op,
        inputs: &Inputs,
    ) -> Result<(), BackendError> {
        let known = self.run_slabs(program, op, inputs)?
            || self.run_gradient(program, op, inputs)?
            || self.run_adapter(program, op, inputs)?
            || self.run_rows(program, op, inputs)?
            || self.run_attention(program, op, inputs)?
            || self.run_loss(program, op, inputs)?;
        if !known {
            return Err(error(op, "the CPU backend does not know this operation"));
        }
        self.round_outputs(program, op, inputs)
    }

    /// Rounds the activations that an operation wrote, under that policy.
    fn round_outputs(&mut self, program: &CpuProgram, op: &Op, inputs: &Inputs) -> Result<(), BackendError> {
        if !self.round {
            return Ok(());
        }
        let threads = self.threads;
        let access = op.access(&program.plan.groups);
        for mat in access.writes.into_iter().chain(access.updates) {
            let place = program.plan.get(mat.buffer).place;
            let rounded = matches!(mat.role, crate::plan::Role::Act | crate::plan::Role::Grad);
            if rounded && matches!(place, Place::Arena) {
                let mut o = self.operands(program, op, inputs)?;
                elementwise::round_bf16(o.take(mat)?, threads);
            }
        }
        Ok(())
    }

    fn run_rows(&mut self, program: &CpuProgram, op: &Op, inputs: &Inputs) -> Known {
        let threads = self.threads;
        let mut o = self.operands(program, op, inputs)?;
        match *op {
            Op::Embed { ids, table, out } => elementwise::embed(o.index(ids)?, o.get(table)?, o.take(out)?),
            Op::RmsNorm { x, weight, out, rstd, eps } => {
                let (out, rstd) = (o.take(out)?, o.take(rstd)?);
                elementwise::rms_norm(o.get(x)?, o.vector(weight)?, eps, out, rstd, threads);
            }
            Op::RmsNormGrad { x, weight, rstd, d_out, d_x, accumulate } => {
                let d_x = o.take(d_x)?;
                let (x, weight, rstd) = (o.get(x)?, o.vector(weight)?, o.get(rstd)?);
                elementwise::rms_norm_grad(x, weight, rstd, o.get(d_out)?, d_x, accumulate, threads);
            }
            Op::Gemm { a, b, c, form, accumulate } => {
                let mut c = o.take(c)?;
                let (a, b) = (o.get(a)?, o.get(b)?);
                let (a, b) = arrange(a, b, form);
                product(a, b, accumulate, &mut c, threads);
            }
            Op::AddBias { y, bias } => elementwise::add_bias(o.take(y)?, o.vector(bias)?, threads),
            Op::Rope { x, positions, table, dim, inverse } => {
                let (x, positions) = (o.take(x)?, o.index(positions)?);
                elementwise::rope(x, positions, o.get(table)?, dim, inverse, threads);
            }
            Op::SwiGlu { gate_up, out } => elementwise::swiglu(o.get(gate_up)?, o.take(out)?, threads),
            Op::SwiGluGrad { gate_up, d_out, d_gate_up } => {
                let d = o.take(d_gate_up)?;
                elementwise::swiglu_grad(o.get(gate_up)?, o.get(d_out)?, d, threads);
            }
            Op::Add { a, b, out } => {
                let out = o.take(out)?;
                elementwise::add(o.get(a)?, o.get(b)?, out, threads);
            }
            Op::GatherRows { x, index, out } => {
                let out = o.take(out)?;
                elementwise::gather_rows(o.get(x)?, o.index(index)?, out);
            }
            Op::ScatterRows { d_out, index, d_x } => {
                let d_x = o.take(d_x)?;
                elementwise::scatter_rows(o.get(d_out)?, o.index(index)?, d_x);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn run_attention(&mut self, program: &CpuProgram, op: &Op, inputs: &Inputs) -> Known {
        let threads = self.threads;
        let mut o = self.operands(program, op, inputs)?;
        match *op {
            Op::AttentionPacked { q, kv, starts, out, lse, heads } => {
                let (out, lse) = (o.take(out)?, o.take(lse)?);
                attention::packed(o.get(q)?, o.get(kv)?, o.index(starts)?, out, lse, heads, threads);
            }
            Op::AttentionDelta { out, d_out, delta, heads } => {
                let delta = o.take(delta)?;
                attention::delta(o.get(out)?, o.get(d_out)?, delta, heads, threads);
            }
            Op::AttentionGradQ { q, kv, starts, lse, delta, d_out, d_q: target, heads }
            | Op::AttentionGradKv { q, kv, starts, lse, delta, d_out, d_kv: target, heads } => {
                let target = o.take(target)?;
                let saved = Saved {
                    q: o.get(q)?,
                    kv: o.get(kv)?,
                    starts: o.index(starts)?,
                    lse: o.get(lse)?,
                    delta: o.get(delta)?,
                    d_out: o.get(d_out)?,
                    heads,
                };
                if matches!(op, Op::AttentionGradQ { .. }) {
                    attention::grad_q(&saved, target, threads);
                } else {
                    attention::grad_kv(&saved, target, threads);
                }
            }
            Op::CacheWrite { kv, rows, cache } => {
                let cache = o.take(cache)?;
                attention::cache_write(o.get(kv)?, o.index(rows)?, cache);
            }
            Op::AttentionPaged { q, cache, spans, out, heads, .. } => {
                let out = o.take(out)?;
                attention::paged(o.get(q)?, o.get(cache)?, o.index(spans)?, out, heads, threads);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn run_loss(&mut self, program: &CpuProgram, op: &Op, inputs: &Inputs) -> Known {
        let threads = self.threads;
        let mut o = self.operands(program, op, inputs)?;
        match *op {
            Op::CrossEntropy { logits, labels, loss, gradient } => {
                let (logits, loss) = (o.take(logits)?, o.take(loss)?);
                training::cross_entropy(logits, o.index(labels)?, loss, gradient, threads);
            }
            Op::SumLoss { losses, sum } => {
                let mut sum = o.take(sum)?;
                sum.row_mut(0)[0] = R::of(training::sum_losses(o.get(losses)?));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Operations that add to the gradient of a parameter.
    fn run_gradient(&mut self, program: &CpuProgram, op: &Op, inputs: &Inputs) -> Known {
        let target = match *op {
            Op::EmbedGrad { d_table: d, .. }
            | Op::RmsNormWeightGrad { d_weight: d, .. }
            | Op::BiasGrad { d_bias: d, .. }
            | Op::Gemm { c: d, .. } => d,
            _ => return Ok(false),
        };
        let Place::Gradient(id) = program.plan.get(target.buffer).place else { return Ok(false) };
        let range = self.store.slab_range(id).ok_or_else(|| error(op, "the parameter is frozen"))?;
        let threads = self.threads;
        let mut slab = std::mem::take(&mut self.gradient);
        let gradient = &mut slab[range];
        let result = self.operands(program, op, inputs).and_then(|mut o| {
            match *op {
                Op::EmbedGrad { ids, d_out, .. } => {
                    let d = whole(gradient, target);
                    elementwise::embed_grad(o.index(ids)?, o.get(d_out)?, d);
                }
                Op::RmsNormWeightGrad { x, rstd, d_out, .. } => {
                    elementwise::rms_norm_weight_grad(o.get(x)?, o.get(rstd)?, o.get(d_out)?, gradient);
                }
                Op::BiasGrad { d_y, .. } => elementwise::bias_grad(o.get(d_y)?, gradient),
                Op::Gemm { a, b, form, accumulate, .. } => {
                    let (a, b) = arrange(o.get(a)?, o.get(b)?, form);
                    product(a, b, accumulate, &mut whole(gradient, target), threads);
                }
                _ => {}
            }
            Ok(true)
        });
        self.gradient = slab;
        result
    }

    fn run_adapter(&mut self, program: &CpuProgram, op: &Op, inputs: &Inputs) -> Known {
        let (Op::Lora { group, .. }
        | Op::LoraGradInner { group, .. }
        | Op::LoraGradParams { group, .. }
        | Op::LoraGradInput { group, .. }) = *op
        else {
            return Ok(false);
        };
        let group = &program.plan.groups[group];
        for (slot, module) in group.modules.iter().enumerate() {
            let columns = slot * group.rank;
            match *op {
                Op::Lora { x, u, y, scratch, .. } => {
                    let (u, y) = (u.columns(columns, group.rank), y.columns(module.col0, module.cols));
                    self.lora_forward(program, (op, inputs), (group, module), [x, u, y], scratch)?;
                }
                Op::LoraGradInner { d_y, d_u, .. } => {
                    let (d_y, d_u) =
                        (d_y.columns(module.col0, module.cols), d_u.columns(columns, group.rank));
                    self.lora_grad_inner(program, (op, inputs), module, [d_y, d_u])?;
                }
                Op::LoraGradParams { x, u, d_y, d_u, scratch, .. } => {
                    let (u, d_u) = (u.columns(columns, group.rank), d_u.columns(columns, group.rank));
                    let d_y = d_y.columns(module.col0, module.cols);
                    self.lora_grad_params(program, (op, inputs), (group, module), [x, u, d_y, d_u], scratch)?;
                }
                Op::LoraGradInput { d_u, d_x, scratch, .. } => {
                    let d_u = d_u.columns(columns, group.rank);
                    self.lora_grad_input(program, (op, inputs), (group, module), [d_u, d_x], scratch)?;
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn lora_forward(
        &mut self,
        program: &CpuProgram,
        (op, inputs): (&Op, &Inputs),
        (group, module): (&LoraGroup, &LoraModule),
        [x, u, y]: [Mat; 3],
        scratch: Option<Mat>,
    ) -> Result<(), BackendError> {
        let threads = self.threads;
        let mut o = self.operands(program, op, inputs)?;
        let (u, y) = (o.take(u)?, o.take(y)?);
        let masked = masked(&mut o, scratch, inputs, (group, module))?;
        let (a, b) = (o.get(module.a)?, o.get(module.b)?);
        let factors = Factors { a, b, scale: R::of(inputs.scalars.lora_scale) };
        adapter::forward(o.get(x)?, masked, factors, u, y, threads);
        Ok(())
    }

    fn lora_grad_inner(
        &mut self,
        program: &CpuProgram,
        (op, inputs): (&Op, &Inputs),
        module: &LoraModule,
        [d_y, d_u]: [Mat; 2],
    ) -> Result<(), BackendError> {
        let threads = self.threads;
        let mut o = self.operands(program, op, inputs)?;
        let d_u = o.take(d_u)?;
        let scale = R::of(inputs.scalars.lora_scale);
        adapter::grad_inner(o.get(d_y)?, o.get(module.b)?, scale, d_u, threads);
        Ok(())
    }

    fn lora_grad_params(
        &mut self,
        program: &CpuProgram,
        (op, inputs): (&Op, &Inputs),
        (group, module): (&LoraGroup, &LoraModule),
        [x, u, d_y, d_u]: [Mat; 4],
        scratch: Option<Mat>,
    ) -> Result<(), BackendError> {
        let range = |mat: Option<Mat>| {
            let place = program.plan.get(mat?.buffer).place;
            if let Place::Gradient(id) = place { self.store.slab_range(id) } else { None }
        };
        let (Some(a), Some(b)) = (range(module.d_a), range(module.d_b)) else {
            return Err(error(op, "the adapter is frozen"));
        };
        if a.end != b.start {
            return Err(error(op, "an adapter's two gradients do not follow each other"));
        }
        let threads = self.threads;
        let mut slab = std::mem::take(&mut self.gradient);
        let (d_a, d_b) = slab[a.start..b.end].split_at_mut(a.len());
        let result = self.operands(program, op, inputs).and_then(|mut o| {
            let masked = masked(&mut o, scratch, inputs, (group, module))?;
            let grads = Grads {
                d_a: ViewMut::rows(d_a, group.rank, module.a.cols, module.a.cols),
                d_b: ViewMut::rows(d_b, module.cols, group.rank, group.rank),
            };
            let scale = R::of(inputs.scalars.lora_scale);
            let factors = [o.get(u)?, o.get(d_y)?, o.get(d_u)?];
            adapter::grad_params(o.get(x)?, masked, factors, scale, grads, threads);
            Ok(())
        });
        self.gradient = slab;
        result
    }

    fn lora_grad_input(
        &mut self,
        program: &CpuProgram,
        (op, inputs): (&Op, &Inputs),
        (group, module): (&LoraGroup, &LoraModule),
        [d_u, d_x]: [Mat; 2],
        scratch: Option<Mat>,
    ) -> Result<(), BackendError> {
        let threads = self.threads;
        let mut o = self.operands(program, op, inputs)?;
        let d_x = o.take(d_x)?;
        let masked = masked(&mut o, scratch, inputs, (group, module))?;
        adapter::grad_input(o.get(d_u)?, o.get(module.a)?, masked, d_x, threads);
        Ok(())
    }

    /// Operations on whole slabs.
    fn run_slabs(&mut self, program: &CpuProgram, op: &Op, inputs: &Inputs) -> Known {
        match *op {
            Op::ZeroGradients => self.gradient.fill(R::ZERO),
            Op::GradNorm { norm } => {
                let scale = R::of(inputs.scalars.inv_labels).to_f64();
                let value = R::of(training::norm(&self.gradient, self.threads) * scale);
                self.operands(program, op, inputs)?.take(norm)?.row_mut(0)[0] = value;
            }
            Op::AdamW { norm } => {
                let norm = self.operands(program, op, inputs)?.get(norm)?.row(0)[0];
                if norm.finite() {
                    self.update(&inputs.scalars, norm.to_f64());
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn whole<R>(slab: &mut [R], mat: Mat) -> ViewMut<'_, R> {
    let rows = slab.len() / mat.cols.max(1);
    ViewMut::rows(slab, rows, mat.cols, mat.cols)
}

/// Factors of a product in the order that it is computed in.
fn arrange<'a, R: Real>(a: View<'a, R>, b: View<'a, R>, form: Form) -> (View<'a, R>, View<'a, R>) {
    match form {
        Form::Nt => (a, b.t()),
        Form::Nn => (a, b),
        Form::Tn => (a.t(), b),
    }
}

/// The mask of a module, when the plan has room for dropped inputs.
fn masked<'a, R: Real>(
    o: &mut Operands<'a, R>,
    scratch: Option<Mat>,
    inputs: &'a Inputs,
    (group, module): (&LoraGroup, &LoraModule),
) -> Result<Option<Masked<'a, R>>, BackendError> {
    let Some(scratch) = scratch else { return Ok(None) };
    let samples = o.input(Input::Samples)?;
    let positions = o.input(Input::Positions)?;
    let scalars = &inputs.scalars;
    let site = (group.layer, module.index);
    let mask = Dropout::new(scalars.seed, scalars.step, site, scalars.drop_threshold, samples, positions);
    Ok(Some(Masked { mask, room: o.take(scratch)? }))
}
