//! The model's parameters as the plan sees them: fused where the plan multiplies once, named as in the files.

use super::{Input, Mat, ParamId, Place, Plan, Role, Rows};
use crate::api::Range;
use std::collections::BTreeMap;

/// The dimensions of a Qwen2 decoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub hidden: usize,
    pub layers: usize,
    pub query_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    /// The head is the embedding table.
    pub tied: bool,
}

impl Shape {
    #[must_use]
    pub fn q_cols(&self) -> usize {
        self.query_heads * self.head_dim
    }
    #[must_use]
    pub fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Input and output width of a projection (index in [`MODULES`]).
    #[must_use]
    pub fn module(&self, module: usize) -> (usize, usize) {
        match module {
            0 => (self.hidden, self.q_cols()),
            1 | 2 => (self.hidden, self.kv_cols()),
            3 => (self.q_cols(), self.hidden),
            4 | 5 => (self.hidden, self.ffn),
            _ => (self.ffn, self.hidden),
        }
    }
}

/// The projections of a layer, in the order of their dropout streams.
pub const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Kinds of parameters that are treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `out x in`; goes through NF4 in qlora.
    Projection,
    /// Embedding and head.
    Embedding,
    Norm,
    Bias,
    Adapter,
    /// Cosines and sines by position.
    RopeTable,
}

/// A tensor of the files, as a run of elements of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
}

/// A parameter: the pieces one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    pub pieces: Vec<Piece>,
    pub rows: usize,
    pub cols: usize,
    pub class: Class,
    /// Start in the slabs of a trainable parameter.
    pub slab: Option<usize>,
}

impl ParamSpec {
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

/// Rank and modules of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraShape {
    pub rank: usize,
    /// Which of [`MODULES`] carry an adapter.
    pub modules: [bool; 7],
}

/// One adapted projection.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// Index in [`MODULES`].
    pub index: u32,
    /// `rank x in` and `out x rank`.
    pub a: Mat,
    pub b: Mat,
    pub d_a: Option<Mat>,
    pub d_b: Option<Mat>,
    /// First column of the module's output in the group's output.
    pub col0: usize,
    pub cols: usize,
}

/// Adapters that share an input.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraGroup {
    pub layer: u32,
    pub rank: usize,
    pub modules: Vec<LoraModule>,
    /// Keys of the dropout masks; `None` without dropout.
    pub samples: Option<Mat>,
    pub positions: Option<Mat>,
}

/// Adapter parameters of one module: A and B.
type AdapterIds = Option<(ParamId, ParamId)>;

/// Parameters of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerParams {
    pub input_norm: ParamId,
    pub qkv: ParamId,
    pub qkv_bias: ParamId,
    pub o: ParamId,
    pub post_norm: ParamId,
    pub gate_up: ParamId,
    pub down: ParamId,
    pub adapters: [AdapterIds; 7],
}

/// All parameters of a model, and which of them are trained.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelParams {
    pub shape: Shape,
    pub specs: Vec<ParamSpec>,
    pub embed: ParamId,
    /// The embedding again when tied.
    pub head: ParamId,
    pub final_norm: ParamId,
    pub rope: ParamId,
    pub layers: Vec<LayerParams>,
    pub lora: Option<LoraShape>,
    /// Elements of each slab.
    pub slab_len: usize,
}

struct Builder {
    specs: Vec<ParamSpec>,
    slab_len: usize,
    train_base: bool,
    train_adapter: bool,
}

impl Builder {
    fn add(&mut self, class: Class, pieces: Vec<Piece>) -> ParamId {
        let trainable = match class {
            Class::Adapter => self.train_adapter,
            Class::RopeTable => false,
            _ => self.train_base,
        };
        let cols = match class {
            Class::Norm | Class::Bias => pieces.iter().map(|p| p.cols).sum(),
            _ => pieces.first().map_or(0, |p| p.cols),
        };
        let elements: usize = pieces.iter().map(|p| p.rows * p.cols).sum();
        let slab = trainable.then_some(self.slab_len);
        if trainable {
            self.slab_len += elements;
        }
        let rows = elements.checked_div(cols).unwrap_or(0);
        self.specs.push(ParamSpec { pieces, rows, cols, class, slab });
        ParamId(self.specs.len() as u32 - 1)
    }

    fn matrix(&mut self, class: Class, pieces: &[(String, usize)], cols: usize) -> ParamId {
        let pieces =
            pieces.iter().map(|(name, rows)| Piece { name: name.clone(), rows: *rows, cols }).collect();
        self.add(class, pieces)
    }

    fn vector(&mut self, class: Class, pieces: &[(String, usize)]) -> ParamId {
        let pieces =
            pieces.iter().map(|(name, cols)| Piece { name: name.clone(), rows: 1, cols: *cols }).collect();
        self.add(class, pieces)
    }

    fn layer(&mut self, shape: &Shape, layer: usize, lora: Option<&LoraShape>) -> LayerParams {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        let weights = |modules: &[usize]| -> Vec<(String, usize)> {
            modules.iter().map(|&m| (name(&format!("{}.weight", MODULES[m])), shape.module(m).1)).collect()
        };
        let biases: Vec<_> =
            (0..3).map(|m| (name(&format!("{}.bias", MODULES[m])), shape.module(m).1)).collect();
        let hidden = shape.hidden;
        let mut adapters = [None; 7];
        let input_norm = self.vector(Class::Norm, &[(name("input_layernorm.weight"), hidden)]);
        let qkv = self.matrix(Class::Projection, &weights(&[0, 1, 2]), hidden);
        let qkv_bias = self.vector(Class::Bias, &biases);
        let o = self.matrix(Class::Projection, &weights(&[3]), shape.q_cols());
        let post_norm = self.vector(Class::Norm, &[(name("post_attention_layernorm.weight"), hidden)]);
        let gate_up = self.matrix(Class::Projection, &weights(&[4, 5]), hidden);
        let down = self.matrix(Class::Projection, &weights(&[6]), shape.ffn);
        for (m, slot) in adapters.iter_mut().enumerate() {
            let Some(lora) = lora.filter(|lora| lora.modules[m]) else { continue };
            let (inputs, outputs) = shape.module(m);
            let prefix = format!("base_model.model.{}", name(MODULES[m]));
            let a = self.matrix(Class::Adapter, &[(format!("{prefix}.lora_A.weight"), lora.rank)], inputs);
            let b = self.matrix(Class::Adapter, &[(format!("{prefix}.lora_B.weight"), outputs)], lora.rank);
            *slot = Some((a, b));
        }
        LayerParams { input_norm, qkv, qkv_bias, o, post_norm, gate_up, down, adapters }
    }
}

impl ModelParams {
    /// Lists the parameters. `train_base`: full fine-tuning; `train_adapter`: the adapter is trained.
    /// `positions`: longest sequence.
    #[must_use]
    pub fn new(
        shape: Shape,
        lora: Option<LoraShape>,
        train_base: bool,
        train_adapter: bool,
        positions: usize,
    ) -> Self {
        let mut builder = Builder { specs: Vec::new(), slab_len: 0, train_base, train_adapter };
        let table = |name: &str| [(name.to_owned(), shape.vocab)];
        let embed = builder.matrix(Class::Embedding, &table("model.embed_tokens.weight"), shape.hidden);
        let layers = (0..shape.layers).map(|layer| builder.layer(&shape, layer, lora.as_ref())).collect();
        let final_norm = builder.vector(Class::Norm, &[("model.norm.weight".to_owned(), shape.hidden)]);
        let head = if shape.tied {
            embed
        } else {
            builder.matrix(Class::Embedding, &table("lm_head.weight"), shape.hidden)
        };
        let rope = builder.matrix(Class::RopeTable, &[("rope".to_owned(), positions)], shape.head_dim);
        let slab_len = builder.slab_len;
        ModelParams { shape, specs: builder.specs, embed, head, final_norm, rope, layers, lora, slab_len }
    }

    #[must_use]
    pub fn spec(&self, id: ParamId) -> &ParamSpec {
        &self.specs[id.0 as usize]
    }

    /// Ids with their specs.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &ParamSpec)> {
        self.specs.iter().enumerate().map(|(i, spec)| (ParamId(i as u32), spec))
    }

    /// The parameter's view in a plan.
    pub fn mat(&self, plan: &mut Plan, id: ParamId) -> Mat {
        let spec = self.spec(id);
        let rows = Rows::Const(spec.rows);
        plan.shared(Place::Param(id), || spec.pieces[0].name.clone(), rows, spec.cols, Role::Param)
    }

    /// The view of a trainable parameter's gradient; `None` for a frozen one.
    pub fn gradient(&self, plan: &mut Plan, id: ParamId) -> Option<Mat> {
        let spec = self.spec(id);
        spec.slab?;
        let rows = Rows::Const(spec.rows);
        let name = || format!("gradient of {}", spec.pieces[0].name);
        Some(plan.shared(Place::Gradient(id), name, rows, spec.cols, Role::Grad))
    }

    /// The adapters on `modules` of a layer as a group of the plan; `None` when there are none.
    pub fn group(&self, plan: &mut Plan, layer: usize, modules: &[usize], dropout: bool) -> Option<usize> {
        let rank = self.lora.as_ref()?.rank;
        let mut found = Vec::new();
        let mut col0 = 0;
        for &m in modules {
            let cols = self.shape.module(m).1;
            if let Some((a, b)) = self.layers[layer].adapters[m] {
                found.push(LoraModule {
                    index: m as u32,
                    a: self.mat(plan, a),
                    b: self.mat(plan, b),
                    d_a: self.gradient(plan, a),
                    d_b: self.gradient(plan, b),
                    col0,
                    cols,
                });
            }
            col0 += cols;
        }
        if found.is_empty() {
            return None;
        }
        let samples = dropout.then(|| plan.input(Input::Samples));
        let positions = dropout.then(|| plan.input(Input::Positions));
        plan.groups.push(LoraGroup { layer: layer as u32, rank, modules: found, samples, positions });
        Some(plan.groups.len() - 1)
    }

    /// Trainable tensors by name, with their ranges in the slabs.
    #[must_use]
    pub fn table(&self) -> BTreeMap<String, Range> {
        let mut table = BTreeMap::new();
        for spec in &self.specs {
            let Some(mut start) = spec.slab else { continue };
            for piece in &spec.pieces {
                let len = piece.rows * piece.cols;
                table.insert(piece.name.clone(), Range { start, len });
                start += len;
            }
        }
        table
    }
}
