//! What a device has to offer to run plans.

use crate::place::{Layout, Placement};
use crate::plan::{Block, Dims, Input, Mat, ModelParams, ParamId, Plan};
use kernels::sample::Draw;
use model::nf4::Nf4;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
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
    #[error(transparent)]
    Cuda(#[from] kernels::cuda::CudaError),
}

impl BackendError {
    /// The device or its driver failed, not the work that it was given.
    #[must_use]
    pub fn is_device_trouble(&self) -> bool {
        use kernels::cuda::CudaError as Cuda;
        let Self::Cuda(error) = self else { return false };
        error.device_lost()
            || matches!(error, Cuda::Driver { .. } | Cuda::NoDriver | Cuda::NoNvrtc | Cuda::NoCublasLt)
    }

    /// This machine's GPU, its driver or its libraries can't do what the kernels need.
    #[must_use]
    pub fn is_unusable_device(&self) -> bool {
        use kernels::cuda::CudaError as Cuda;
        matches!(
            self,
            Self::Cuda(
                Cuda::NoDriver
                    | Cuda::NoSuchGpu { .. }
                    | Cuda::TooOld { .. }
                    | Cuda::NoNvrtc
                    | Cuda::NoCublasLt
            )
        )
    }

    /// Less memory would have done, or more that is free.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Memory { .. } => true,
            Self::Cuda(error) => error.out_of_memory(),
            _ => false,
        }
    }

    /// Memory ran out in the middle of what was waited for, and how far that came is not known: whoever goes on with less must
    /// begin again from what lies outside of the device.
    #[must_use]
    pub fn is_out_of_memory_in_work(&self) -> bool {
        matches!(self, Self::Cuda(kernels::cuda::CudaError::Driver { name, .. }) if name == "CUDA_ERROR_OUT_OF_MEMORY")
    }

    /// Others hold so much of the GPU that no work at all can start: to ask for less does not help.
    #[must_use]
    pub fn is_without_context(&self) -> bool {
        matches!(self, Self::Cuda(kernels::cuda::CudaError::NoContext { .. }))
    }
}

/// What a backend claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caps {
    pub name: &'static str,
    /// Blocks that it runs natively instead of by their decomposition.
    pub claims: BTreeSet<Block>,
    /// Loss rows that the head should take at a time.
    pub head_chunk: usize,
}

/// Notes that every backend has room for between two waits.
pub const NOTES: usize = 4096;

/// A number of a run that will be asked for after the next [`Backend::wait`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Note {
    Value(f32),
    /// Number `n` of the notes since the last wait.
    Pending(usize),
}

/// Numbers that change from one submission to the next without a new plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// `1 / label tokens of the optimizer step`: gradients are those of the sum of losses until the update multiplies them by it.
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

/// Rows `to .. to + rows` of a cache become those from `from` on; the two do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheCopy {
    pub from: usize,
    pub to: usize,
    pub rows: usize,
}

/// What a submission brings along.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub dims: Dims,
    /// Row-major, each as long as its rows and columns under `dims`.
    pub index: Arc<BTreeMap<Input, Vec<u32>>>,
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

    /// How the backend wants a plan's buffers to lie.
    fn layout(&self, plan: &Plan) -> Layout;

    /// Bytes that are held beside the arena: parameters, slabs, scratch.
    fn held_bytes(&self) -> u64;

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

    /// Stores a frozen projection from its tensors in NF4, in the order of its pieces.
    ///
    /// # Errors
    /// As [`Backend::store_param`].
    fn store_quantised(&mut self, id: ParamId, pieces: &[Nf4]) -> Result<(), BackendError> {
        if let [piece] = pieces {
            return self.store_param(id, &piece.dequantize());
        }
        let values: Vec<Vec<f32>> = pieces.iter().map(Nf4::dequantize).collect();
        self.store_param(id, &values.concat())
    }

    /// A parameter's values as they are used, trainable or frozen.
    ///
    /// # Errors
    /// When there is no such parameter.
    fn load_param(&self, id: ParamId) -> Result<Vec<f32>, BackendError>;

    /// # Errors
    /// When the size is not that of the slabs.
    fn store_slab(&mut self, slab: Slab, values: &[f32]) -> Result<(), BackendError>;

    /// # Errors
    /// When the device fails.
    fn load_slab(&self, slab: Slab) -> Result<Vec<f32>, BackendError>;

    /// Checks the plan and fixes everything that does not change from run to run.
    ///
    /// # Errors
    /// When a shape does not fit, or memory does not suffice.
    fn compile(&mut self, plan: Plan, placement: Placement) -> Result<Self::Program, BackendError>;

    /// Does all that [`Backend::submit`] does for the first time but start work: where it fails, nothing has changed.
    ///
    /// # Errors
    /// When memory does not suffice.
    fn ready(&mut self, _program: &Self::Program, _inputs: &Inputs) -> Result<(), BackendError> {
        Ok(())
    }

    /// Starts a run.
    ///
    /// # Errors
    /// When inputs do not fit the plan.
    fn submit(&mut self, program: &Self::Program, inputs: Inputs) -> Result<(), BackendError>;

    /// Starts a run behind what was submitted so far. The next [`Backend::wait`] does not wait for it, unless something is
    /// submitted in between; the one after that does. Whether it was started: a backend that computes as it is told to starts
    /// nothing ahead.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn submit_ahead(&mut self, _program: &Self::Program, _inputs: Inputs) -> Result<bool, BackendError> {
        Ok(false)
    }

    /// Waits for what was submitted.
    ///
    /// # Errors
    /// When a run failed.
    fn wait(&mut self) -> Result<(), BackendError>;

    /// Remembers the number that a `1 x 1` output holds after what was submitted so far, without waiting for it.
    ///
    /// # Errors
    /// When the view is no output, or there were [`NOTES`] since the last wait.
    fn note(&mut self, program: &Self::Program, view: Mat) -> Result<Note, BackendError>;

    /// The number, after [`Backend::wait`].
    fn noted(&self, note: Note) -> f32;

    /// Values of a view after the last run; valid for outputs of its plan, and for any view after [`Backend::submit_range`].
    ///
    /// # Errors
    /// When the view is not one of the program's, or holds integers.
    fn peek(&self, program: &Self::Program, view: Mat, dims: Dims) -> Result<Vec<f32>, BackendError>;

    /// Copies rows of every layer's cache of keys and values, in the order of the runs.
    ///
    /// # Errors
    /// When rows are outside of the cache.
    fn copy_cache(&mut self, copies: &[CacheCopy]) -> Result<(), BackendError>;

    /// Chooses a token from each row of the logits after the last run, by the draw of that row, and waits for it: what
    /// [`kernels::sample::choose`] chooses, on every backend.
    ///
    /// # Errors
    /// When the view has fewer rows than there are draws, or a run failed.
    fn choose(
        &mut self,
        program: &Self::Program,
        logits: Mat,
        draws: &[Draw],
    ) -> Result<Vec<Option<u32>>, BackendError>;

    /// Runs some of the operations by their decomposition, on what lies in the arena, to compare two backends operation by
    /// operation.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn submit_range(
        &mut self,
        program: &Self::Program,
        inputs: Inputs,
        ops: Range<usize>,
    ) -> Result<(), BackendError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::cuda::CudaError;

    #[test]
    fn memory_device_and_work_are_told_apart() {
        let driver = |name: &str| CudaError::Driver {
            call: "cuGraphLaunch",
            name: name.to_owned(),
            text: String::new(),
        };
        let product = |status: &str| CudaError::Matmul { what: "Nt".to_owned(), status: status.to_owned() };
        let short = CudaError::OutOfMemory { what: "x".to_owned(), needed: 2, free: 1, total: 1 };
        let cases = [
            (short, true, false),
            (CudaError::NoMemoryFor { call: "cuGraphInstantiate", free: None }, true, false),
            (CudaError::NoContext { name: "GPU".to_owned(), total: 1 }, true, false),
            (driver("CUDA_ERROR_ECC_UNCORRECTABLE"), false, true),
            (driver("CUDA_ERROR_NOT_SUPPORTED"), false, true),
            (product("CUBLAS_STATUS_EXECUTION_FAILED"), false, true),
            (product("CUBLAS_STATUS_NOT_SUPPORTED"), false, false),
            (CudaError::Shape { kernel: "k".to_owned(), message: String::new() }, false, false),
        ];
        for (error, is_short, is_trouble) in cases {
            let is_full = matches!(error, CudaError::NoContext { .. });
            let error = BackendError::from(error);
            assert_eq!(error.is_without_context(), is_full, "{error}");
            assert!(!error.is_out_of_memory_in_work(), "{error}");
            assert_eq!(
                (error.is_out_of_memory(), error.is_device_trouble()),
                (is_short, is_trouble),
                "{error}"
            );
        }
        let waited = BackendError::from(driver("CUDA_ERROR_OUT_OF_MEMORY"));
        assert!(waited.is_out_of_memory_in_work() && !waited.is_out_of_memory(), "{waited}");
    }
}
