//! One decoder layer, forward and backward, as operations.
//!
//! ```text
//! n1 = norm(x)   q,k,v = rope(n1 Wqkv + b)   a = attention(q, k, v)   x1 = x + a Wo
//! n2 = norm(x1)  g,u = n2 Wgu                h = silu(g) u            y = x1 + h Wd
//! ```
//! Each projection may carry an adapter. The backward is the chain rule written out once; what a tape does not hold is
//! computed again by the very operations of the forward, so the gradients don't depend on the save policy.

use super::{Block, Form, Heads, Input, Mat, ModelParams, Op, ParamId, Place, Plan, Role, Rows};
use crate::api::SavePolicy;

/// Where keys and values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// The micro-batch itself, block-diagonal and causal.
    Packed,
    /// The cache, which this run's tokens are written to first.
    Paged,
}

/// What a layer keeps for its backward; `None`: there will be none.
pub type Save = Option<SavePolicy>;

/// Values of a layer's forward that its backward reads.
#[derive(Debug, Clone, Copy)]
struct Tape {
    x: Mat,
    policy: SavePolicy,
    attention: AttentionTape,
    mlp: MlpTape,
    u_down: Option<Mat>,
}

#[derive(Debug, Clone, Copy)]
struct AttentionTape {
    n1: Mat,
    rstd1: Mat,
    u_qkv: Option<Mat>,
    qkv: Mat,
    out: Mat,
    lse: Option<Mat>,
    u_o: Option<Mat>,
    x1: Mat,
}

#[derive(Debug, Clone, Copy)]
struct MlpTape {
    n2: Mat,
    rstd2: Mat,
    inner: MlpInner,
}

#[derive(Debug, Clone, Copy)]
struct MlpInner {
    u_gate_up: Option<Mat>,
    gate_up: Mat,
    h: Mat,
}

/// Groups of adapters by the projections that share an input.
#[derive(Debug, Clone, Copy, Default)]
struct Groups {
    qkv: Option<usize>,
    o: Option<usize>,
    gate_up: Option<usize>,
    down: Option<usize>,
}

/// Emits layers into a plan.
#[derive(Debug)]
pub struct LayerEmitter<'a> {
    pub plan: &'a mut Plan,
    params: &'a ModelParams,
    dropout: bool,
    groups: Vec<Groups>,
    tapes: Vec<Option<Tape>>,
}

impl<'a> LayerEmitter<'a> {
    /// `dropout`: adapters drop inputs.
    pub fn new(plan: &'a mut Plan, params: &'a ModelParams, dropout: bool) -> Self {
        let mut groups = Vec::new();
        for layer in 0..params.shape.layers {
            groups.push(Groups {
                qkv: params.group(plan, layer, &[0, 1, 2], dropout),
                o: params.group(plan, layer, &[3], dropout),
                gate_up: params.group(plan, layer, &[4, 5], dropout),
                down: params.group(plan, layer, &[6], dropout),
            });
        }
        let tapes = vec![None; params.shape.layers];
        LayerEmitter { plan, params, dropout, groups, tapes }
    }

    /// Emits the forward of `layer` on `x` (`Tokens x hidden`); returns the layer's output.
    pub fn emit_layer(&mut self, layer: usize, x: Mat, attention: Attention, save: Save) -> Mat {
        let attended = self.attention(layer, x, attention);
        let mlp = self.mlp_in(layer, attended.x1);
        let (out, u_down) = self.mlp_out(layer, mlp.inner.h, attended.x1);
        if let Some(policy) = save {
            self.tapes[layer] = Some(Tape { x, policy, attention: attended, mlp, u_down });
        }
        out
    }

    /// Emits the backward of `layer`: `d` (`Tokens x hidden`) holds the gradient by the layer's output and is turned, in
    /// place, into the gradient by its input (without `need_dx` it is left half done).
    ///
    /// Does nothing for a layer that was emitted without saving.
    pub fn emit_layer_backward(&mut self, layer: usize, d: Mat, need_dx: bool) {
        let Some(mut tape) = self.tapes[layer].take() else { return };
        match tape.policy {
            SavePolicy::All => {}
            SavePolicy::NoGateUp => tape.mlp.inner = self.mlp_inner(layer, tape.mlp.n2),
            SavePolicy::Input => {
                tape.attention = self.attention(layer, tape.x, Attention::Packed);
                tape.mlp = self.mlp_in(layer, tape.attention.x1);
            }
        }
        self.mlp_backward(layer, &tape, d);
        self.attention_backward(layer, &tape, d, need_dx);
    }

    fn heads(&self) -> Heads {
        let shape = &self.params.shape;
        Heads { query: shape.query_heads, kv: shape.kv_heads, dim: shape.head_dim }
    }

    fn act(&mut self, layer: usize, name: &str, cols: usize) -> Mat {
        self.plan.temp(format!("layer.{layer}.{name}"), Rows::Tokens, cols, Role::Act)
    }

    fn grad(&mut self, layer: usize, name: &str, cols: usize) -> Mat {
        self.plan.temp(format!("layer.{layer}.d_{name}"), Rows::Tokens, cols, Role::Grad)
    }

    fn stat(&mut self, layer: usize, name: &str, cols: usize) -> Mat {
        self.plan.temp(format!("layer.{layer}.{name}"), Rows::Tokens, cols, Role::Stat)
    }

    fn param(&mut self, id: ParamId) -> Mat {
        self.params.mat(self.plan, id)
    }

    /// Room for the dropped input of one module at a time.
    fn scratch(&mut self, layer: usize, cols: usize) -> Option<Mat> {
        self.dropout.then(|| self.act(layer, "dropped", cols))
    }

    fn norm(&mut self, layer: usize, name: &str, x: Mat, weight: ParamId) -> (Op, Mat, Mat) {
        let out = self.act(layer, name, x.cols);
        let rstd = self.stat(layer, &format!("{name}.rstd"), 1);
        let weight = self.param(weight);
        (Op::RmsNorm { x, weight, out, rstd, eps: self.params.shape.norm_eps }, out, rstd)
    }

    /// `y += adapters(x)`; returns the rank-r products.
    fn lora(&mut self, layer: usize, group: Option<usize>, x: Mat, y: Mat, ops: &mut Vec<Op>) -> Option<Mat> {
        let group = group?;
        let width = self.plan.groups[group].rank * self.plan.groups[group].modules.len();
        let u = self.stat(layer, "u", width);
        let scratch = self.scratch(layer, x.cols);
        ops.push(Op::Lora { group, x, u, y, scratch });
        Some(u)
    }

    fn project(
        &mut self,
        layer: usize,
        name: &str,
        x: Mat,
        weight: ParamId,
        group: Option<usize>,
        ops: &mut Vec<Op>,
    ) -> (Mat, Option<Mat>) {
        let b = self.param(weight);
        let y = self.act(layer, name, self.params.spec(weight).rows);
        ops.push(Op::Gemm { a: x, b, c: y, form: Form::Nt, accumulate: false });
        let u = self.lora(layer, group, x, y, ops);
        (y, u)
    }

    fn attention(&mut self, layer: usize, x: Mat, attention: Attention) -> AttentionTape {
        let params = &self.params.layers[layer];
        let (shape, groups, heads) = (self.params.shape, self.groups[layer], self.heads());
        let (norm, n1, rstd1) = self.norm(layer, "n1", x, params.input_norm);
        let mut ops = vec![norm];
        let (qkv, u_qkv) = self.project(layer, "qkv", n1, params.qkv, groups.qkv, &mut ops);
        let bias = self.param(params.qkv_bias);
        ops.push(Op::AddBias { y: qkv, bias });
        let table = self.param(self.params.rope);
        let positions = self.plan.input(Input::Positions);
        let q = qkv.columns(0, shape.q_cols());
        let kv = qkv.columns(shape.q_cols(), heads.kv_cols());
        let rotated = qkv.columns(0, shape.q_cols() + shape.kv_cols());
        ops.push(Op::Rope { x: rotated, positions, table, dim: shape.head_dim, inverse: false });
        self.plan.step(Block::AttentionIn, Some(layer), ops);

        let out = self.act(layer, "attention", shape.q_cols());
        let (ops, lse) = match attention {
            Attention::Packed => {
                let starts = self.plan.input(Input::Starts);
                let lse = self.stat(layer, "lse", heads.query);
                (vec![Op::AttentionPacked { q, kv, starts, out, lse, heads }], Some(lse))
            }
            Attention::Paged => (self.paged(layer, q, kv, out), None),
        };
        self.plan.step(Block::AttentionCore, Some(layer), ops);

        let mut ops = Vec::new();
        let (o, u_o) = self.project(layer, "o", out, params.o, groups.o, &mut ops);
        let x1 = self.act(layer, "x1", shape.hidden);
        ops.push(Op::Add { a: x, b: o, out: x1 });
        self.plan.step(Block::AttentionOut, Some(layer), ops);
        AttentionTape { n1, rstd1, u_qkv, qkv, out, lse, u_o, x1 }
    }

    fn paged(&mut self, layer: usize, q: Mat, kv: Mat, out: Mat) -> Vec<Op> {
        let heads = self.heads();
        let rows = self.plan.input(Input::CacheRow);
        let spans = self.plan.input(Input::CacheSpan);
        let capacity = Rows::Const(self.params.spec(self.params.rope).rows);
        let name = || format!("layer.{layer}.cache");
        let cache = self.plan.shared(Place::Cache(layer as u32), name, capacity, heads.kv_cols(), Role::Act);
        vec![Op::CacheWrite { kv, rows, cache }, Op::AttentionPaged { q, cache, spans, out, heads }]
    }

    fn mlp_in(&mut self, layer: usize, x1: Mat) -> MlpTape {
        let (norm, n2, rstd2) = self.norm(layer, "n2", x1, self.params.layers[layer].post_norm);
        let (mut ops, inner) = self.mlp_inner_ops(layer, n2);
        ops.insert(0, norm);
        self.plan.step(Block::MlpIn, Some(layer), ops);
        MlpTape { n2, rstd2, inner }
    }

    fn mlp_inner(&mut self, layer: usize, n2: Mat) -> MlpInner {
        let (ops, inner) = self.mlp_inner_ops(layer, n2);
        self.plan.step(Block::MlpIn, Some(layer), ops);
        inner
    }

    fn mlp_inner_ops(&mut self, layer: usize, n2: Mat) -> (Vec<Op>, MlpInner) {
        let mut ops = Vec::new();
        let weight = self.params.layers[layer].gate_up;
        let group = self.groups[layer].gate_up;
        let (gate_up, u_gate_up) = self.project(layer, "gate_up", n2, weight, group, &mut ops);
        let h = self.act(layer, "h", self.params.shape.ffn);
        ops.push(Op::SwiGlu { gate_up, out: h });
        (ops, MlpInner { u_gate_up, gate_up, h })
    }

    fn mlp_out(&mut self, layer: usize, h: Mat, x1: Mat) -> (Mat, Option<Mat>) {
        let mut ops = Vec::new();
        let weight = self.params.layers[layer].down;
        let (down, u_down) = self.project(layer, "down", h, weight, self.groups[layer].down, &mut ops);
        let out = self.act(layer, "out", self.params.shape.hidden);
        ops.push(Op::Add { a: x1, b: down, out });
        self.plan.step(Block::MlpOut, Some(layer), ops);
        (out, u_down)
    }

    /// Backward of [`Self::project`]: gradients of weight and adapters, and `d_x` when it is wanted.
    #[expect(clippy::too_many_arguments, reason = "one projection's operands")]
    fn project_backward(
        &mut self,
        layer: usize,
        name: &str,
        weight: ParamId,
        group: Option<usize>,
        x: Mat,
        u: Option<Mat>,
        d_y: Mat,
        need_dx: bool,
        ops: &mut Vec<Op>,
    ) -> Option<Mat> {
        if let Some(d_weight) = self.params.gradient(self.plan, weight) {
            ops.push(Op::Gemm { a: d_y, b: x, c: d_weight, form: Form::Tn, accumulate: true });
        }
        let d_x = need_dx.then(|| {
            let d_x = self.grad(layer, name, x.cols);
            let b = self.param(weight);
            ops.push(Op::Gemm { a: d_y, b, c: d_x, form: Form::Nn, accumulate: false });
            d_x
        });
        if let (Some(group), Some(u)) = (group, u) {
            let d_u = self.stat(layer, "d_u", u.cols);
            let scratch = self.scratch(layer, x.cols);
            ops.push(Op::LoraGradParams { group, x, u, d_y, d_u, scratch });
            if let Some(d_x) = d_x {
                let scratch = self.scratch(layer, x.cols);
                ops.push(Op::LoraGradInput { group, d_u, d_x, scratch });
            }
        }
        d_x
    }

    /// Adds the gradient through a norm to `d`.
    fn norm_backward(&mut self, x: Mat, rstd: Mat, weight: ParamId, d_out: Mat, d: Mat, ops: &mut Vec<Op>) {
        if let Some(d_weight) = self.params.gradient(self.plan, weight) {
            ops.push(Op::RmsNormWeightGrad { x, rstd, d_out, d_weight });
        }
        let weight = self.param(weight);
        ops.push(Op::RmsNormGrad { x, weight, rstd, d_out, d_x: d, accumulate: true });
    }

    fn mlp_backward(&mut self, layer: usize, tape: &Tape, d: Mat) {
        let params = &self.params.layers[layer];
        let groups = self.groups[layer];
        let MlpTape { n2, rstd2, inner } = tape.mlp;
        let mut ops = Vec::new();
        let d_h = self.project_backward(
            layer,
            "h",
            params.down,
            groups.down,
            inner.h,
            tape.u_down,
            d,
            true,
            &mut ops,
        );
        self.plan.step(Block::MlpOutBackward, Some(layer), std::mem::take(&mut ops));
        let Some(d_h) = d_h else { return };

        let d_gate_up = self.grad(layer, "gate_up", inner.gate_up.cols);
        ops.push(Op::SwiGluGrad { gate_up: inner.gate_up, d_out: d_h, d_gate_up });
        let d_n2 = self.project_backward(
            layer,
            "n2",
            params.gate_up,
            groups.gate_up,
            n2,
            inner.u_gate_up,
            d_gate_up,
            true,
            &mut ops,
        );
        if let Some(d_n2) = d_n2 {
            self.norm_backward(tape.attention.x1, rstd2, params.post_norm, d_n2, d, &mut ops);
        }
        self.plan.step(Block::MlpInBackward, Some(layer), ops);
    }

    fn attention_backward(&mut self, layer: usize, tape: &Tape, d: Mat, need_dx: bool) {
        let params = &self.params.layers[layer];
        let (shape, groups, heads) = (self.params.shape, self.groups[layer], self.heads());
        let saved = tape.attention;
        let Some(lse) = saved.lse else { return };
        let mut ops = Vec::new();
        let d_attention = self.project_backward(
            layer,
            "attention",
            params.o,
            groups.o,
            saved.out,
            saved.u_o,
            d,
            true,
            &mut ops,
        );
        self.plan.step(Block::AttentionOutBackward, Some(layer), std::mem::take(&mut ops));
        let Some(d_out) = d_attention else { return };

        let (q_cols, kv_cols) = (shape.q_cols(), heads.kv_cols());
        let (q, kv) = (saved.qkv.columns(0, q_cols), saved.qkv.columns(q_cols, kv_cols));
        let d_qkv = self.grad(layer, "qkv", saved.qkv.cols);
        let (d_q, d_kv) = (d_qkv.columns(0, q_cols), d_qkv.columns(q_cols, kv_cols));
        let delta = self.stat(layer, "delta", heads.query);
        let starts = self.plan.input(Input::Starts);
        ops.push(Op::AttentionDelta { out: saved.out, d_out, delta, heads });
        ops.push(Op::AttentionGradQ { q, kv, starts, lse, delta, d_out, d_q, heads });
        ops.push(Op::AttentionGradKv { q, kv, starts, lse, delta, d_out, d_kv, heads });
        self.plan.step(Block::AttentionCoreBackward, Some(layer), std::mem::take(&mut ops));

        let table = self.param(self.params.rope);
        let positions = self.plan.input(Input::Positions);
        let rotated = d_qkv.columns(0, q_cols + shape.kv_cols());
        ops.push(Op::Rope { x: rotated, positions, table, dim: shape.head_dim, inverse: true });
        if let Some(d_bias) = self.params.gradient(self.plan, params.qkv_bias) {
            ops.push(Op::BiasGrad { d_y: d_qkv, d_bias });
        }
        let d_n1 = self.project_backward(
            layer,
            "n1",
            params.qkv,
            groups.qkv,
            saved.n1,
            saved.u_qkv,
            d_qkv,
            need_dx,
            &mut ops,
        );
        if let Some(d_n1) = d_n1 {
            self.norm_backward(tape.x, saved.rstd1, params.input_norm, d_n1, d, &mut ops);
        }
        self.plan.step(Block::AttentionInBackward, Some(layer), ops);
    }
}
