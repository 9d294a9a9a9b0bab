//! Operations as data: what a step computes, before anybody decides where or on which device.
//!
//! A [`Plan`] is a list of [`Step`]s. Each step is a [`Block`] together with its decomposition into primitive [`Op`]s;
//! a backend runs the operations, or claims the block and runs its own version of it. Operands are [`Mat`]s: views of
//! buffers named by ids. Row counts are symbolic ([`Rows`]), so one plan serves every micro-batch up to its capacity.

mod layer;
mod network;
mod op;
mod params;

pub use layer::{Attention, LayerEmitter, Save};
pub use network::{
    GeneratePlan, HEAD_CHUNK, TrainPlan, generate_plan, optimizer_plans, train_plan, train_plan_in_chunks,
};
pub use op::{Access, Form, Heads, Op};
pub use params::{
    Class, LayerParams, LoraGroup, LoraModule, LoraShape, MODULES, ModelParams, ParamSpec, Piece, Shape,
};

use std::fmt;

/// Index of a buffer in [`Plan::buffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u32);

/// Index of a parameter in [`ModelParams::specs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub u32);

/// How many rows; resolved against [`Dims`] when a plan is placed (at capacity) and when it runs (as given).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rows {
    /// Tokens of the micro-batch.
    Tokens,
    /// Tokens with a loss, or whose logits are asked for.
    LossRows,
    /// The n-th run of [`Dims::chunk`] rows out of the loss rows.
    Chunk(u32),
    /// One more than there are sequences.
    Seqs,
    Const(usize),
}

/// What a buffer holds; dtype and rounding follow from it and from the backend's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Act,
    Grad,
    /// Statistics that stay in float32: reciprocal deviations, log-sum-exp, losses.
    Stat,
    Param,
    /// Unsigned 32-bit integers.
    Index,
}

/// Where a buffer lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// In the arena, at an offset that [`crate::place`] decides.
    Arena,
    /// A parameter's value.
    Param(ParamId),
    /// A trainable parameter's gradient, in the gradient slab.
    Gradient(ParamId),
    /// Given with each submission.
    Input(Input),
    /// Keys and values of a layer; survives from one submission to the next.
    Cache(u32),
}

/// Integers that come with each submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// `Tokens x 1`.
    TokenIds,
    /// `Tokens x 1`: from 0 in each sequence.
    Positions,
    /// `Tokens x 2`: low and high half of the sample's id.
    Samples,
    /// `Seqs x 1`: first token of each sequence, then the number of tokens.
    Starts,
    /// `LossRows x 1`: which token.
    LossIndex,
    /// `LossRows x 1`: the token to predict.
    Labels,
    /// `Tokens x 1`: row of the cache that takes the token's keys and values.
    CacheRow,
    /// `Tokens x 2`: first row of the cache and number of rows that the token sees.
    CacheSpan,
}

/// A memory area of `rows x cols` elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// For people: `layer.3.qkv`.
    pub name: String,
    pub rows: Rows,
    pub cols: usize,
    pub role: Role,
    pub place: Place,
}

/// A view: all rows of a buffer (or one chunk of them), columns `col0 .. col0 + cols`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mat {
    pub buffer: BufferId,
    pub rows: Rows,
    pub cols: usize,
    pub col0: usize,
    pub role: Role,
}

impl Mat {
    /// Columns `start .. start + cols` of this view.
    #[must_use]
    pub fn columns(self, start: usize, cols: usize) -> Self {
        debug_assert!(start + cols <= self.cols, "columns outside of the view");
        Mat { col0: self.col0 + start, cols, ..self }
    }

    /// The `index`-th chunk of a view of the loss rows.
    #[must_use]
    pub fn chunk(self, index: u32) -> Self {
        debug_assert!(self.rows == Rows::LossRows, "only loss rows come in chunks");
        Mat { rows: Rows::Chunk(index), ..self }
    }
}

/// Row counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    pub tokens: usize,
    pub loss_rows: usize,
    pub seqs: usize,
    /// Loss rows per chunk of the head; a property of the plan.
    pub chunk: usize,
}

impl Dims {
    /// Rows under these counts.
    #[must_use]
    pub fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::LossRows => self.loss_rows,
            Rows::Chunk(index) => self.loss_rows.saturating_sub(index as usize * self.chunk).min(self.chunk),
            Rows::Seqs => self.seqs + 1,
            Rows::Const(n) => n,
        }
    }
}

/// What a step stands for; a backend that knows a faster way claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Block {
    Embed,
    AttentionIn,
    AttentionCore,
    AttentionOut,
    MlpIn,
    MlpOut,
    /// Final norm, head and loss of one chunk of rows, with their backward in training.
    HeadLoss,
    MlpOutBackward,
    MlpInBackward,
    AttentionOutBackward,
    AttentionCoreBackward,
    AttentionInBackward,
    EmbedBackward,
    Optimizer,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A block and its decomposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub block: Block,
    pub layer: Option<usize>,
    pub ops: Vec<Op>,
}

/// Operations over buffers, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub buffers: Vec<Buffer>,
    pub steps: Vec<Step>,
    /// Adapter groups that [`Op::Lora`] and its backwards name by index.
    pub groups: Vec<LoraGroup>,
    /// Views that are read after the run; their buffers live to the end.
    pub outputs: Vec<Mat>,
    /// Greatest row counts.
    pub capacity: Dims,
}

impl Plan {
    #[must_use]
    pub fn new(capacity: Dims) -> Self {
        Plan { buffers: Vec::new(), steps: Vec::new(), groups: Vec::new(), outputs: Vec::new(), capacity }
    }

    /// Adds a buffer and returns the view of all of it.
    pub fn buffer(
        &mut self,
        name: impl Into<String>,
        rows: Rows,
        cols: usize,
        role: Role,
        place: Place,
    ) -> Mat {
        let buffer = BufferId(self.buffers.len() as u32);
        self.buffers.push(Buffer { name: name.into(), rows, cols, role, place });
        Mat { buffer, rows, cols, col0: 0, role }
    }

    /// A buffer in the arena.
    pub fn temp(&mut self, name: impl Into<String>, rows: Rows, cols: usize, role: Role) -> Mat {
        self.buffer(name, rows, cols, role, Place::Arena)
    }

    /// The view of an input, the same buffer each time it is asked for.
    pub fn input(&mut self, input: Input) -> Mat {
        let place = Place::Input(input);
        let (rows, cols) = match input {
            Input::TokenIds | Input::Positions | Input::CacheRow => (Rows::Tokens, 1),
            Input::Samples | Input::CacheSpan => (Rows::Tokens, 2),
            Input::Starts => (Rows::Seqs, 1),
            Input::LossIndex | Input::Labels => (Rows::LossRows, 1),
        };
        self.shared(place, || format!("{input:?}"), rows, cols, Role::Index)
    }

    /// The view of a buffer that exists once per plan.
    pub(crate) fn shared(
        &mut self,
        place: Place,
        name: impl FnOnce() -> String,
        rows: Rows,
        cols: usize,
        role: Role,
    ) -> Mat {
        let found = self.buffers.iter().position(|b| b.place == place);
        match found {
            Some(index) => Mat { buffer: BufferId(index as u32), rows, cols, col0: 0, role },
            None => self.buffer(name(), rows, cols, role, place),
        }
    }

    /// Adds a step.
    pub fn step(&mut self, block: Block, layer: Option<usize>, ops: Vec<Op>) {
        self.steps.push(Step { block, layer, ops });
    }

    #[must_use]
    pub fn get(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// Operations in order.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.steps.iter().flat_map(|step| &step.ops)
    }
}
