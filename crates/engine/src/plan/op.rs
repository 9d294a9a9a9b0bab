//! The primitive operations, and which views each one reads and writes.

use super::{LoraGroup, Mat};

/// Layout of the factors of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `c[m,n] = a[m,k] b[n,k]^T`: a projection forward, weights as stored (`out x in`).
    Nt,
    /// `c[m,n] = a[m,k] b[k,n]`: its gradient by the input.
    Nn,
    /// `c[m,n] = a[k,m]^T b[k,n]`: its gradient by the weight.
    Tn,
}

/// Head counts of grouped-query attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub query: usize,
    /// Divides `query`: query head `h` uses key-value head `h / (query / kv)`.
    pub kv: usize,
    pub dim: usize,
}

impl Heads {
    /// Columns of keys and values together.
    #[must_use]
    pub fn kv_cols(&self) -> usize {
        2 * self.kv * self.dim
    }
}

/// One primitive. Operands named `d_x` are gradients of the loss by `x`; "`+=`" marks an operand that is added to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// `out[t] = table[ids[t]]`.
    Embed {
        ids: Mat,
        table: Mat,
        out: Mat,
    },
    /// `d_table[ids[t]] += d_out[t]`, tokens in order.
    EmbedGrad {
        ids: Mat,
        d_out: Mat,
        d_table: Mat,
    },
    /// `rstd = 1/sqrt(mean(x^2) + eps)`, `out = x rstd weight`.
    RmsNorm {
        x: Mat,
        weight: Mat,
        out: Mat,
        rstd: Mat,
        eps: f64,
    },
    /// `d_x += rstd (d_out w - x rstd^2 mean(x d_out w))`.
    RmsNormGrad {
        x: Mat,
        weight: Mat,
        rstd: Mat,
        d_out: Mat,
        d_x: Mat,
        accumulate: bool,
    },
    /// `d_weight += sum over rows of d_out x rstd`.
    RmsNormWeightGrad {
        x: Mat,
        rstd: Mat,
        d_out: Mat,
        d_weight: Mat,
    },
    /// A matrix product; `c +=` with `accumulate`.
    Gemm {
        a: Mat,
        b: Mat,
        c: Mat,
        form: Form,
        accumulate: bool,
    },
    /// `y += bias` on every row.
    AddBias {
        y: Mat,
        bias: Mat,
    },
    /// `d_bias += sum over rows of d_y`.
    BiasGrad {
        d_y: Mat,
        d_bias: Mat,
    },
    /// Rotates the halves `(i, i + dim/2)` of every head of `x` by the angle of its position, in place; back with
    /// `inverse`. `table[position]` holds `dim/2` cosines, then `dim/2` sines.
    Rope {
        x: Mat,
        positions: Mat,
        table: Mat,
        dim: usize,
        inverse: bool,
    },
    /// Causal attention inside each sequence: `out = softmax(q k^T / sqrt(dim)) v`; `lse` is each row's log-sum-exp.
    /// `kv` holds keys, then values.
    AttentionPacked {
        q: Mat,
        kv: Mat,
        starts: Mat,
        out: Mat,
        lse: Mat,
        heads: Heads,
    },
    /// `delta[t,h] = sum over the head of out d_out`.
    AttentionDelta {
        out: Mat,
        d_out: Mat,
        delta: Mat,
        heads: Heads,
    },
    /// Gradient by the queries; probabilities are computed again from `lse`.
    AttentionGradQ {
        q: Mat,
        kv: Mat,
        starts: Mat,
        lse: Mat,
        delta: Mat,
        d_out: Mat,
        d_q: Mat,
        heads: Heads,
    },
    /// Gradient by keys and values.
    AttentionGradKv {
        q: Mat,
        kv: Mat,
        starts: Mat,
        lse: Mat,
        delta: Mat,
        d_out: Mat,
        d_kv: Mat,
        heads: Heads,
    },
    /// `cache[rows[t]] = kv[t]`.
    CacheWrite {
        kv: Mat,
        rows: Mat,
        cache: Mat,
    },
    /// Attention of each token over its span of the cache.
    AttentionPaged {
        q: Mat,
        cache: Mat,
        spans: Mat,
        out: Mat,
        heads: Heads,
        /// Most rows that a token sees.
        most: usize,
    },
    /// `out = silu(gate) up`, gate and up side by side.
    SwiGlu {
        gate_up: Mat,
        out: Mat,
    },
    SwiGluGrad {
        gate_up: Mat,
        d_out: Mat,
        d_gate_up: Mat,
    },
    /// For each module of the group: `u = drop(x) A^T`, `y += scale u B^T` in the module's columns.
    Lora {
        group: usize,
        x: Mat,
        u: Mat,
        y: Mat,
        scratch: Option<Mat>,
    },
    /// `d_u = scale d_y B` for each module of the group.
    LoraGradInner {
        group: usize,
        d_y: Mat,
        d_u: Mat,
    },
    /// `d_B += scale d_y^T u`, `d_A += d_u^T drop(x)`.
    LoraGradParams {
        group: usize,
        x: Mat,
        u: Mat,
        d_y: Mat,
        d_u: Mat,
        scratch: Option<Mat>,
    },
    /// `d_x += drop(d_u A)`.
    LoraGradInput {
        group: usize,
        d_u: Mat,
        d_x: Mat,
        scratch: Option<Mat>,
    },
    /// `out = a + b`.
    Add {
        a: Mat,
        b: Mat,
        out: Mat,
    },
    /// `out[i] = x[index[i]]`.
    GatherRows {
        x: Mat,
        index: Mat,
        out: Mat,
    },
    /// `d_x = 0`, then `d_x[index[i]] = d_out[i]`.
    ScatterRows {
        d_out: Mat,
        index: Mat,
        d_x: Mat,
    },
    /// `loss[i] = lse(logits[i]) - logits[i][labels[i]]`; with `gradient`, `logits` become `softmax - onehot`,
    /// the gradient of the sum of losses.
    CrossEntropy {
        logits: Mat,
        labels: Mat,
        loss: Mat,
        gradient: bool,
    },
    /// `sum = sum of losses`, rows in order.
    SumLoss {
        losses: Mat,
        sum: Mat,
    },
    /// All gradients of trainable parameters become 0.
    ZeroGradients,
    /// Euclidean norm of all gradients.
    GradNorm {
        norm: Mat,
    },
    /// One AdamW update of all trainables with gradients clipped by `norm`.
    AdamW {
        norm: Mat,
    },
}

/// Views of one operation by how it touches them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    pub reads: Vec<Mat>,
    /// Written without being read.
    pub writes: Vec<Mat>,
    /// Read and written.
    pub updates: Vec<Mat>,
}

fn access(reads: &[Mat], writes: &[Mat], updates: &[Mat]) -> Access {
    Access { reads: reads.to_vec(), writes: writes.to_vec(), updates: updates.to_vec() }
}

impl Op {
    /// What the operation touches; `groups` are those of its plan.
    #[must_use]
    pub fn access(&self, groups: &[LoraGroup]) -> Access {
        match *self {
            Op::Embed { ids, table, out } => access(&[ids, table], &[out], &[]),
            Op::EmbedGrad { ids, d_out, d_table } => access(&[ids, d_out], &[], &[d_table]),
            Op::RmsNorm { x, weight, out, rstd, .. } => access(&[x, weight], &[out, rstd], &[]),
            Op::RmsNormGrad { x, weight, rstd, d_out, d_x, accumulate } => {
                accumulating(&[x, weight, rstd, d_out], d_x, accumulate)
            }
            Op::RmsNormWeightGrad { x, rstd, d_out, d_weight } => access(&[x, rstd, d_out], &[], &[d_weight]),
            Op::Gemm { a, b, c, accumulate, .. } => accumulating(&[a, b], c, accumulate),
            Op::AddBias { y, bias } => access(&[bias], &[], &[y]),
            Op::BiasGrad { d_y, d_bias } => access(&[d_y], &[], &[d_bias]),
            Op::Rope { x, positions, table, .. } => access(&[positions, table], &[], &[x]),
            Op::AttentionPacked { q, kv, starts, out, lse, .. } => access(&[q, kv, starts], &[out, lse], &[]),
            Op::AttentionDelta { out, d_out, delta, .. } => access(&[out, d_out], &[delta], &[]),
            Op::AttentionGradQ { q, kv, starts, lse, delta, d_out, d_q: out, .. }
            | Op::AttentionGradKv { q, kv, starts, lse, delta, d_out, d_kv: out, .. } => {
                access(&[q, kv, starts, lse, delta, d_out], &[out], &[])
            }
            Op::CacheWrite { kv, rows, cache } => access(&[kv, rows], &[], &[cache]),
            Op::AttentionPaged { q, cache, spans, out, .. } => access(&[q, cache, spans], &[out], &[]),
            Op::SwiGlu { gate_up, out } => access(&[gate_up], &[out], &[]),
            Op::SwiGluGrad { gate_up, d_out, d_gate_up } => access(&[gate_up, d_out], &[d_gate_up], &[]),
            Op::Lora { .. }
            | Op::LoraGradInner { .. }
            | Op::LoraGradParams { .. }
            | Op::LoraGradInput { .. } => self.lora_access(groups),
            Op::Add { a, b, out } => access(&[a, b], &[out], &[]),
            Op::GatherRows { x, index, out } => access(&[x, index], &[out], &[]),
            Op::ScatterRows { d_out, index, d_x } => access(&[d_out, index], &[d_x], &[]),
            Op::CrossEntropy { logits, labels, loss, .. } => access(&[labels], &[loss], &[logits]),
            Op::SumLoss { losses, sum } => access(&[losses], &[sum], &[]),
            Op::ZeroGradients => Access::default(),
            Op::GradNorm { norm } => access(&[], &[norm], &[]),
            Op::AdamW { norm } => access(&[norm], &[], &[]),
        }
    }

    fn lora_access(&self, groups: &[LoraGroup]) -> Access {
        let (group, mut found, scratch) = match *self {
            Op::Lora { group, x, u, y, scratch } => (group, access(&[x], &[u], &[y]), scratch),
            Op::LoraGradInner { group, d_y, d_u } => (group, access(&[d_y], &[d_u], &[]), None),
            Op::LoraGradParams { group, x, u, d_y, d_u, scratch } => {
                (group, access(&[x, u, d_y, d_u], &[], &[]), scratch)
            }
            Op::LoraGradInput { group, d_u, d_x, scratch } => (group, access(&[d_u], &[], &[d_x]), scratch),
            _ => return Access::default(),
        };
        found.writes.extend(scratch);
        let group = &groups[group];
        found.reads.extend(group.samples);
        found.reads.extend(group.positions);
        for module in &group.modules {
            found.reads.extend([module.a, module.b]);
            if let Op::LoraGradParams { .. } = self {
                found.updates.extend(module.d_a);
                found.updates.extend(module.d_b);
            }
        }
        found
    }

    /// For messages: `Gemm`, `RmsNorm`.
    #[must_use]
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '{']).next().unwrap_or_default().to_owned()
    }
}

fn accumulating(reads: &[Mat], target: Mat, accumulate: bool) -> Access {
    if accumulate { access(reads, &[], &[target]) } else { access(reads, &[target], &[]) }
}
