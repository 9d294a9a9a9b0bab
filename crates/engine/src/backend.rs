//! What a device has to offer to run plans.

use crate::place::Placement;
use crate::plan::{Block, Dims, Input, Mat, ModelParams, ParamId, Plan};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum BackendError {
    /// The plan is not one that this backend can run; a mistake of the planner.
    #[error("{op} can't run: {message}")]
    Plan { op: String, message: String },
    /// The placement does not carry the plan.
    #[error(transparent)]
    Verify(#[from] crate::verify::VerifyError),
    #[error("{what}: {given} elements given, {needed} needed")]
    Size { what: String, given: usize, needed: usize },
    #[error("out of memory: {needed} bytes needed for {what}")]
    Memory { what: String, needed: u64 },
}

/// What a backend claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caps {
    pub name: &'static str,
    /// Blocks that it runs natively instead of by their decomposition.
    pub claims: BTreeSet<Block>,
}

/// Numbers that change from one submission to the next without a new plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// `1 / label tokens of the optimizer step`.
    pub inv_labels: f64,
    /// `alpha / r`.
    pub lora_scale: f64,
    /// Optimizer steps done before this one; keys dropout.
    pub step: u64,
    pub seed: u64,
    /// Dropout's drop probability in 1/65536.
    pub drop_threshold: u32,
    pub optimizer: crate::api::AdamW,
}

/// What a submission brings along.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub dims: Dims,
    /// Row-major, each as long as its rows and columns under `dims`.
    pub index: BTreeMap<Input, Vec<u32>>,
    pub scalars: Scalars,
}

/// The flat arrays over all trainable parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slab {
    Master,
    Gradient,
    /// First and second moments of AdamW.
    M,
    V,
}

/// Runs plans. Values cross as float32 whatever the backend computes in.
pub trait Backend {
    /// A compiled plan.
    type Program;

    fn caps(&self) -> Caps;

    /// Makes room for the parameters of a model.
    ///
    /// # Errors
    /// When memory does not suffice.
    fn allocate(&mut self, params: &ModelParams) -> Result<(), BackendError>;

    /// Stores a frozen parameter (row-major).
    ///
    /// # Errors
    /// When the size is not the parameter's, or the parameter is trainable.
    fn store_param(&mut self, id: ParamId, values: &[f32]) -> Result<(), BackendError>;

    /// A parameter's values as they are used, trainable or frozen.
    ///
    /// # Errors
    /// When there is no such parameter.
    fn load_param(&self, id: ParamId) -> Result<Vec<f32>, BackendError>;

    /// # Errors
    /// When the size is not that of the slabs.
    fn store_slab(&mut self, slab: Slab, values: &[f32]) -> Result<(), BackendError>;

    fn load_slab(&self, slab: Slab) -> Vec<f32>;

    /// Checks the plan and fixes everything that does not change from run to run.
    ///
    /// # Errors
    /// When a shape does not fit, or memory does not suffice.
    fn compile(&mut self, plan: Plan, placement: Placement) -> Result<Self::Program, BackendError>;

    /// Starts a run.
    ///
    /// # Errors
    /// When inputs do not fit the plan.
    fn submit(&mut self, program: &Self::Program, inputs: Inputs) -> Result<(), BackendError>;

    /// Waits for what was submitted.
    ///
    /// # Errors
    /// When a run failed.
    fn wait(&mut self) -> Result<(), BackendError>;

    /// Values of a view after the last run; valid for outputs of its plan, and for any view after [`Backend::submit_until`].
    ///
    /// # Errors
    /// When the view is not one of the program's, or holds integers.
    fn peek(&self, program: &Self::Program, view: Mat, dims: Dims) -> Result<Vec<f32>, BackendError>;

    /// Runs the first `ops` operations by their decomposition, to compare two backends operation by operation.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn submit_until(
        &mut self,
        program: &Self::Program,
        inputs: Inputs,
        ops: usize,
    ) -> Result<(), BackendError>;
}
