//! Whole plans: a training step's micro-batch, evaluation, generation, the optimizer.

use super::{Attention, Block, Dims, Form, Input, LayerEmitter, Mat, ModelParams, Op, Plan, Role, Rows};
use crate::api::SavePolicy;

/// Loss rows whose logits exist at the same time, unless a backend wants another number.
pub const HEAD_CHUNK: usize = 256;

/// A plan with a loss.
#[derive(Debug, Clone)]
pub struct TrainPlan {
    pub plan: Plan,
    /// `1 x 1`: sum of the token losses.
    pub loss_sum: Mat,
}

/// A plan that gives logits.
#[derive(Debug, Clone)]
pub struct GeneratePlan {
    pub plan: Plan,
    /// `LossRows x vocab`.
    pub logits: Mat,
}

/// Forward, loss and, with `save`, backward, for micro-batches of up to `max_tokens` tokens.
///
/// `save` gives each layer's policy; `None` makes a plan for evaluation. Gradients are added to the gradient slab.
#[must_use]
pub fn train_plan(
    params: &ModelParams,
    max_tokens: usize,
    save: Option<&[SavePolicy]>,
    dropout: bool,
) -> TrainPlan {
    train_plan_in_chunks(params, max_tokens, save, dropout, HEAD_CHUNK)
}

/// As [`train_plan`], with `chunk` loss rows at a time in the head.
#[must_use]
pub fn train_plan_in_chunks(
    params: &ModelParams,
    max_tokens: usize,
    save: Option<&[SavePolicy]>,
    dropout: bool,
    chunk: usize,
) -> TrainPlan {
    let shape = params.shape;
    let capacity = Dims { tokens: max_tokens, loss_rows: max_tokens, seqs: max_tokens, chunk };
    let mut plan = Plan::new(capacity);
    let ids = plan.input(Input::TokenIds);
    let index = plan.input(Input::LossIndex);
    let mut x = embed(&mut plan, params, ids);
    let mut emitter = LayerEmitter::new(&mut plan, params, dropout && save.is_some());
    for layer in 0..shape.layers {
        let policy = save.map(|save| save.get(layer).copied().unwrap_or_default());
        x = emitter.emit_layer(layer, x, Attention::Packed, policy);
    }
    let mut head = Head::new(emitter.plan, params, x, index);
    head.chunks(emitter.plan, params, save.is_some());
    let loss_sum = emitter.plan.temp("loss", Rows::Const(1), 1, Role::Stat);
    emitter.plan.step(Block::HeadLoss, None, vec![Op::SumLoss { losses: head.losses, sum: loss_sum }]);
    emitter.plan.outputs.push(loss_sum);
    if save.is_some() {
        let d = head.backward(emitter.plan, params, index);
        let base_trains = params.spec(params.embed).slab.is_some();
        for layer in (0..shape.layers).rev() {
            emitter.emit_layer_backward(layer, d, base_trains || layer > 0);
        }
        if let Some(d_table) = params.gradient(emitter.plan, params.embed) {
            emitter.plan.step(Block::EmbedBackward, None, vec![Op::EmbedGrad { ids, d_out: d, d_table }]);
        }
    }
    TrainPlan { plan, loss_sum }
}

fn embed(plan: &mut Plan, params: &ModelParams, ids: Mat) -> Mat {
    let table = params.mat(plan, params.embed);
    let out = plan.temp("embedded", Rows::Tokens, params.shape.hidden, Role::Act);
    plan.step(Block::Embed, None, vec![Op::Embed { ids, table, out }]);
    out
}

/// The last norm and the output projection on the rows that need them.
struct Head {
    x: Mat,
    normed: Mat,
    rstd: Mat,
    losses: Mat,
    d_normed: Option<Mat>,
}

impl Head {
    fn new(plan: &mut Plan, params: &ModelParams, x: Mat, index: Mat) -> Self {
        let hidden = params.shape.hidden;
        let rows = plan.temp("head.x", Rows::LossRows, hidden, Role::Act);
        let normed = plan.temp("head.normed", Rows::LossRows, hidden, Role::Act);
        let rstd = plan.temp("head.rstd", Rows::LossRows, 1, Role::Stat);
        let losses = plan.temp("losses", Rows::LossRows, 1, Role::Stat);
        let weight = params.mat(plan, params.final_norm);
        let eps = params.shape.norm_eps;
        let ops = vec![
            Op::GatherRows { x, index, out: rows },
            Op::RmsNorm { x: rows, weight, out: normed, rstd, eps },
        ];
        plan.step(Block::HeadLoss, None, ops);
        Head { x: rows, normed, rstd, losses, d_normed: None }
    }

    fn chunks(&mut self, plan: &mut Plan, params: &ModelParams, gradient: bool) {
        let labels = plan.input(Input::Labels);
        let table = params.mat(plan, params.head);
        let d_table = if gradient { params.gradient(plan, params.head) } else { None };
        if gradient {
            let hidden = params.shape.hidden;
            self.d_normed = Some(plan.temp("head.d_normed", Rows::LossRows, hidden, Role::Grad));
        }
        let count = plan.capacity.loss_rows.div_ceil(plan.capacity.chunk);
        for chunk in 0..count as u32 {
            let name = format!("logits.{chunk}");
            let logits = plan.temp(name, Rows::Chunk(chunk), params.shape.vocab, Role::Act);
            let normed = self.normed.chunk(chunk);
            let mut ops = vec![
                Op::Gemm { a: normed, b: table, c: logits, form: Form::Nt, accumulate: false },
                Op::CrossEntropy {
                    logits,
                    labels: labels.chunk(chunk),
                    loss: self.losses.chunk(chunk),
                    gradient,
                },
            ];
            if let Some(d_normed) = self.d_normed {
                let c = d_normed.chunk(chunk);
                ops.push(Op::Gemm { a: logits, b: table, c, form: Form::Nn, accumulate: false });
            }
            if let Some(d_table) = d_table {
                ops.push(Op::Gemm { a: logits, b: normed, c: d_table, form: Form::Tn, accumulate: true });
            }
            plan.step(Block::HeadLoss, None, ops);
        }
    }

    /// Gradient by the last layer's output.
    fn backward(&self, plan: &mut Plan, params: &ModelParams, index: Mat) -> Mat {
        let hidden = params.shape.hidden;
        let d = plan.temp("d_x", Rows::Tokens, hidden, Role::Grad);
        let d_rows = plan.temp("head.d_x", Rows::LossRows, hidden, Role::Grad);
        let weight = params.mat(plan, params.final_norm);
        let mut ops = Vec::new();
        if let Some(d_out) = self.d_normed {
            if let Some(d_weight) = params.gradient(plan, params.final_norm) {
                ops.push(Op::RmsNormWeightGrad { x: self.x, rstd: self.rstd, d_out, d_weight });
            }
            let (x, rstd) = (self.x, self.rstd);
            ops.push(Op::RmsNormGrad { x, weight, rstd, d_out, d_x: d_rows, accumulate: false });
            ops.push(Op::ScatterRows { d_out: d_rows, index, d_x: d });
        }
        plan.step(Block::HeadLoss, None, ops);
        d
    }
}

/// Forward over a cache of `cache_rows` tokens for up to `max_tokens` new ones, logits of up to `max_rows` of them.
#[must_use]
pub fn generate_plan(
    params: &ModelParams,
    cache_rows: usize,
    max_tokens: usize,
    max_rows: usize,
) -> GeneratePlan {
    let capacity = Dims { tokens: max_tokens, loss_rows: max_rows, seqs: 0, chunk: max_rows.max(1) };
    let mut plan = Plan::new(capacity);
    let ids = plan.input(Input::TokenIds);
    let index = plan.input(Input::LossIndex);
    let mut x = embed(&mut plan, params, ids);
    let mut emitter = LayerEmitter::new(&mut plan, params, false);
    for layer in 0..params.shape.layers {
        x = emitter.emit_layer(layer, x, Attention::Paged { rows: cache_rows }, None);
    }
    let hidden = params.shape.hidden;
    let rows = plan.temp("head.x", Rows::LossRows, hidden, Role::Act);
    let normed = plan.temp("head.normed", Rows::LossRows, hidden, Role::Act);
    let rstd = plan.temp("head.rstd", Rows::LossRows, 1, Role::Stat);
    let logits = plan.temp("logits", Rows::LossRows, params.shape.vocab, Role::Act);
    let weight = params.mat(&mut plan, params.final_norm);
    let table = params.mat(&mut plan, params.head);
    let ops = vec![
        Op::GatherRows { x, index, out: rows },
        Op::RmsNorm { x: rows, weight, out: normed, rstd, eps: params.shape.norm_eps },
        Op::Gemm { a: normed, b: table, c: logits, form: Form::Nt, accumulate: false },
    ];
    plan.step(Block::HeadLoss, None, ops);
    plan.outputs.push(logits);
    GeneratePlan { plan, logits }
}

/// The plan that empties the gradients, and the one that updates, with the view of the gradient norm.
#[must_use]
pub fn optimizer_plans() -> (Plan, Plan, Mat) {
    let capacity = Dims { tokens: 0, loss_rows: 0, seqs: 0, chunk: 1 };
    let mut zero = Plan::new(capacity);
    zero.step(Block::Optimizer, None, vec![Op::ZeroGradients]);
    let mut update = Plan::new(capacity);
    let norm = update.temp("gradient norm", Rows::Const(1), 1, Role::Stat);
    update.step(Block::Optimizer, None, vec![Op::GradNorm { norm }, Op::AdamW { norm }]);
    update.outputs.push(norm);
    (zero, update, norm)
}
