//! One decoder layer, forward and backward, as operations.
//!
//! ```text
//! n1 = norm(x)   q,k,v = rope(n1 Wqkv + b)   a = attention(q, k, v)   x1 = x + a Wo
//! n2 = norm(x1)  g,u = n2 Wgu                h = silu(g) u            y = x1 + h Wd
//! ```
//! Each projection may carry an adapter. The backward is the chain rule written out once; what a tape does not hold is
//! computed again by the very operations of the forward, so the gradients don't depend on the save policy. No tape holds
//! `n1`, `n2` and `h`: reading what they follow from costs little more than reading them.

use super::{Block, Form, Heads, Input, Mat, ModelParams, Op, ParamId, Place, Plan, Role, Rows};
use crate::api::SavePolicy;

/// Where keys and values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// The micro-batch itself, block-diagonal and causal.
    Packed,
    /// The cache, which this run's tokens are written to first.
    Paged {
        /// Of the cache.
        rows: usize,
    },
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
    /// While it still holds something.
    n1: Option<Mat>,
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
    /// While it still holds something.
    n2: Option<Mat>,
    rstd2: Mat,
    u_gate_up: Option<Mat>,
    gate_up: Mat,
}

/// A projection and its adapters.
#[derive(Debug, Clone, Copy)]
struct Projection<'a> {
    name: &'a str,
    weight: ParamId,
    group: Option<usize>,
}

/// A projection's backward between its two halves: what the second needs besides the input.
#[derive(Debug, Clone, Copy)]
struct Half {
    d_y: Mat,
    d_u: Option<Mat>,
    d_x: Option<Mat>,
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
        let mut attended = self.attention(layer, x, attention);
        let mut mlp = self.mlp_in(layer, attended.x1);
        let (out, u_down) = self.mlp_out(layer, mlp.gate_up, attended.x1);
        if let Some(policy) = save {
            (attended.n1, mlp.n2) = (None, None);
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
            SavePolicy::NoGateUp => tape.mlp = self.mlp_in(layer, tape.attention.x1),
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

    fn project(&mut self, layer: usize, of: Projection<'_>, x: Mat, ops: &mut Vec<Op>) -> (Mat, Option<Mat>) {
        let b = self.param(of.weight);
        let y = self.act(layer, of.name, self.params.spec(of.weight).rows);
        ops.push(Op::Gemm { a: x, b, c: y, form: Form::Nt, accumulate: false });
        let u = self.lora(layer, of.group, x, y, ops);
        (y, u)
    }

    fn qkv(&self, layer: usize) -> Projection<'static> {
        Projection { name: "qkv", weight: self.params.layers[layer].qkv, group: self.groups[layer].qkv }
    }

    fn o(&self, layer: usize) -> Projection<'static> {
        Projection { name: "o", weight: self.params.layers[layer].o, group: self.groups[layer].o }
    }

    fn gate_up(&self, layer: usize) -> Projection<'static> {
        let (weight, group) = (self.params.layers[layer].gate_up, self.groups[layer].gate_up);
        Projection { name: "gate_up", weight, group }
    }

    fn down(&self, layer: usize) -> Projection<'static> {
        Projection { name: "down", weight: self.params.layers[layer].down, group: self.groups[layer].down }
    }

    fn attention(&mut self, layer: usize, x: Mat, attention: Attention) -> AttentionTape {
        let params = &self.params.layers[layer];
        let (shape, heads) = (self.params.shape, self.heads());
        let (norm, n1, rstd1) = self.norm(layer, "n1", x, params.input_norm);
        let mut ops = vec![norm];
        let (qkv, u_qkv) = self.project(layer, self.qkv(layer), n1, &mut ops);
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
            Attention::Paged { rows } => (self.paged(layer, rows, [q, kv, out]), None),
        };
        self.plan.step(Block::AttentionCore, Some(layer), ops);

        let mut ops = Vec::new();
        let (o, u_o) = self.project(layer, self.o(layer), out, &mut ops);
        let x1 = self.act(layer, "x1", shape.hidden);
        ops.push(Op::Add { a: x, b: o, out: x1 });
        self.plan.step(Block::AttentionOut, Some(layer), ops);
        AttentionTape { n1: Some(n1), rstd1, u_qkv, qkv, out, lse, u_o, x1 }
    }

    fn paged(&mut self, layer: usize, capacity: usize, [q, kv, out]: [Mat; 3]) -> Vec<Op> {
        let heads = self.heads();
        let rows = self.plan.input(Input::CacheRow);
        let spans = self.plan.input(Input::CacheSpan);
        let (capacity, most) = (Rows::Const(capacity), self.params.spec(self.params.rope).rows);
        let name = || format!("layer.{layer}.cache");
        let cache = self.plan.shared(Place::Cache(layer as u32), name, capacity, heads.kv_cols(), Role::Act);
        vec![Op::CacheWrite { kv, rows, cache }, Op::AttentionPaged { q, cache, spans, out, heads, most }]
    }

    fn mlp_in(&mut self, layer: usize, x1: Mat) -> MlpTape {
        let (norm, n2, rstd2) = self.norm(layer, "n2", x1, self.params.layers[layer].post_norm);
        let mut ops = vec![norm];
        let (gate_up, u_gate_up) = self.project(layer, self.gate_up(layer), n2, &mut ops);
        self.plan.step(Block::MlpIn, Some(layer), ops);
        MlpTape { n2: Some(n2), rstd2, u_gate_up, gate_up }
    }

    fn swiglu(&mut self, layer: usize, gate_up: Mat) -> (Op, Mat) {
        let h = self.act(layer, "h", self.params.shape.ffn);
        (Op::SwiGlu { gate_up, out: h }, h)
    }

    fn mlp_out(&mut self, layer: usize, gate_up: Mat, x1: Mat) -> (Mat, Option<Mat>) {
        let (activation, h) = self.swiglu(layer, gate_up);
        let mut ops = vec![activation];
        let (down, u_down) = self.project(layer, self.down(layer), h, &mut ops);
        let out = self.act(layer, "out", self.params.shape.hidden);
        ops.push(Op::Add { a: x1, b: down, out });
        self.plan.step(Block::MlpOut, Some(layer), ops);
        (out, u_down)
    }

    /// First half of the backward of [`Self::project`]: the gradient by its input, when it is wanted.
    fn input_gradient(
        &mut self,
        layer: usize,
        of: Projection<'_>,
        d_y: Mat,
        need_dx: bool,
        ops: &mut Vec<Op>,
    ) -> Half {
        let spec = self.params.spec(of.weight);
        let d_x = need_dx.then(|| {
            let d_x = self.grad(layer, &format!("{}.in", of.name), spec.cols);
            let b = self.param(of.weight);
            ops.push(Op::Gemm { a: d_y, b, c: d_x, form: Form::Nn, accumulate: false });
            d_x
        });
        let d_u = of.group.map(|group| {
            let width = self.plan.groups[group].rank * self.plan.groups[group].modules.len();
            let d_u = self.stat(layer, "d_u", width);
            ops.push(Op::LoraGradInner { group, d_y, d_u });
            if let Some(d_x) = d_x {
                let scratch = self.scratch(layer, spec.cols);
                ops.push(Op::LoraGradInput { group, d_u, d_x, scratch });
            }
            d_u
        });
        Half { d_y, d_u, d_x }
    }

    /// Whether anything of a projection is trained: then its backward reads its input.
    fn trains(&self, of: Projection<'_>) -> bool {
        of.group.is_some() || self.params.spec(of.weight).slab.is_some()
    }

    /// Second half: gradients of weight and adapters. `x`: the input, `u`: the rank-r products of the forward.
    fn parameter_gradients(
        &mut self,
        layer: usize,
        of: Projection<'_>,
        Half { d_y, d_u, .. }: Half,
        (x, u): (Mat, Option<Mat>),
        ops: &mut Vec<Op>,
    ) {
        if let (Some(group), Some(u), Some(d_u)) = (of.group, u, d_u) {
            let scratch = self.scratch(layer, x.cols);
            ops.push(Op::LoraGradParams { group, x, u, d_y, d_u, scratch });
        }
        if let Some(d_weight) = self.params.gradient(self.plan, of.weight) {
            ops.push(Op::Gemm { a: d_y, b: x, c: d_weight, form: Form::Tn, accumulate: true });
        }
    }

    /// Adds the gradient through a norm to `d`.
    fn norm_backward(&mut self, x: Mat, rstd: Mat, weight: ParamId, d_out: Mat, d: Mat, ops: &mut Vec<Op>) {
        if let Some(d_weight) = self.params.gradient(self.plan, weight) {
            ops.push(Op::RmsNormWeightGrad { x, rstd, d_out, d_weight });
        }
        let weight = self.param(weight);
        ops.push(Op::RmsNormGrad { x, weight, rstd, d_out, d_x: d, accumulate: true });
    }

    /// What a norm wrote, once more unless it is still there.
    fn normed(
        &mut self,
        layer: usize,
        name: &str,
        held: Option<Mat>,
        (x, weight): (Mat, ParamId),
        ops: &mut Vec<Op>,
    ) -> Mat {
        held.unwrap_or_else(|| {
            let (norm, out, _) = self.norm(layer, name, x, weight);
            ops.push(norm);
            out
        })
    }

    fn mlp_backward(&mut self, layer: usize, tape: &Tape, d: Mat) {
        let params = &self.params.layers[layer];
        let MlpTape { n2, rstd2, u_gate_up, gate_up } = tape.mlp;
        let (into, out) = (self.gate_up(layer), self.down(layer));
        let mut ops = Vec::new();
        let half = self.input_gradient(layer, out, d, true, &mut ops);
        let Some(d_h) = half.d_x else { return };
        let h = self.trains(out).then(|| {
            let (activation, h) = self.swiglu(layer, gate_up);
            ops.push(activation);
            h
        });
        let d_gate_up = self.grad(layer, "gate_up", gate_up.cols);
        ops.push(Op::SwiGluGrad { gate_up, d_out: d_h, d_gate_up });
        if let Some(h) = h {
            self.parameter_gradients(layer, out, half, (h, tape.u_down), &mut ops);
        }
        self.plan.step(Block::MlpOutBackward, Some(layer), std::mem::take(&mut ops));

        let half = self.input_gradient(layer, into, d_gate_up, true, &mut ops);
        let x1 = tape.attention.x1;
        if let Some(d_n2) = half.d_x {
            self.norm_backward(x1, rstd2, params.post_norm, d_n2, d, &mut ops);
        }
        if self.trains(into) {
            let n2 = self.normed(layer, "n2", n2, (x1, params.post_norm), &mut ops);
            self.parameter_gradients(layer, into, half, (n2, u_gate_up), &mut ops);
        }
        self.plan.step(Block::MlpInBackward, Some(layer), ops);
    }

    fn attention_backward(&mut self, layer: usize, tape: &Tape, d: Mat, need_dx: bool) {
        let params = &self.params.layers[layer];
        let (shape, heads) = (self.params.shape, self.heads());
        let saved = tape.attention;
        let (into, out) = (self.qkv(layer), self.o(layer));
        let Some(lse) = saved.lse else { return };
        let mut ops = Vec::new();
        let half = self.input_gradient(layer, out, d, true, &mut ops);
        self.parameter_gradients(layer, out, half, (saved.out, saved.u_o), &mut ops);
        self.plan.step(Block::AttentionOutBackward, Some(layer), std::mem::take(&mut ops));
        let Some(d_out) = half.d_x else { return };

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
        let half = self.input_gradient(layer, into, d_qkv, need_dx, &mut ops);
        if let Some(d_n1) = half.d_x {
            self.norm_backward(tape.x, saved.rstd1, params.input_norm, d_n1, d, &mut ops);
        }
        if self.trains(into) {
            let n1 = self.normed(layer, "n1", saved.n1, (tape.x, params.input_norm), &mut ops);
            self.parameter_gradients(layer, into, half, (n1, saved.u_qkv), &mut ops);
        }
        self.plan.step(Block::AttentionInBackward, Some(layer), ops);
    }
}
