//! The backend that a program chose at run time.

use crate::EngineError;
use crate::api::Precision;
use crate::backend::{Backend, BackendError, CacheCopy, Caps, Inputs, Note, Slab};
use crate::cpu::{Cpu, CpuOptions, CpuProgram};
use crate::cuda::{Cuda, CudaOptions, CudaProgram, Limits, Planned, WorkTime};
use crate::device::ComputeDevice;
use crate::place::{Layout, Placement};
use crate::plan::{Dims, Mat, ModelParams, ParamId, Plan};
use kernels::sample::Draw;
use model::nf4::Nf4;
use std::ops::Range;

/// What a backend is to be for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    pub device: ComputeDevice,
    pub precision: Precision,
    pub threads: usize,
    /// Keep projections in NF4 on a GPU, with double quantisation or without.
    pub packed: Option<bool>,
    /// Few rows at a time, as in generation.
    pub few_rows: bool,
}

/// One of the backends.
#[derive(Debug)]
pub(crate) enum AnyBackend {
    Cpu(Box<Cpu<f32>>),
    Cuda(Box<Cuda>),
}

/// A program of one of them.
#[derive(Debug)]
pub(crate) enum AnyProgram {
    Cpu(CpuProgram),
    Cuda(CudaProgram),
}

/// Calls the same method of whichever backend it is.
macro_rules! each {
    ($backend:expr, $it:ident => $call:expr) => {
        match $backend {
            AnyBackend::Cpu($it) => $call,
            AnyBackend::Cuda($it) => $call,
        }
    };
}

/// Calls a method that takes a program, which must be of the same backend.
macro_rules! paired {
    ($backend:expr, $program:expr, $it:ident, $its:ident => $call:expr) => {
        match ($backend, $program) {
            (AnyBackend::Cpu($it), AnyProgram::Cpu($its)) => $call,
            (AnyBackend::Cuda($it), AnyProgram::Cuda($its)) => $call,
            _ => Err(BackendError::Plan {
                op: "a program".to_owned(),
                message: "was compiled by another backend".to_owned(),
            }),
        }
    };
}

impl AnyBackend {
    pub(crate) fn new(purpose: Purpose) -> Result<Self, EngineError> {
        match purpose.device {
            ComputeDevice::Cpu => Ok(Self::Cpu(Box::new(Cpu::new(&CpuOptions {
                threads: purpose.threads,
                round: purpose.precision == Precision::Bf16Rounded,
                transposed: purpose.few_rows,
                native: true,
            })))),
            ComputeDevice::Cuda { id } => {
                let options = CudaOptions {
                    ordinal: id,
                    precision: purpose.precision,
                    packed: purpose.packed,
                    few_rows: purpose.few_rows,
                    graphs: true,
                    in_order: false,
                };
                Ok(Self::Cuda(Box::new(Cuda::open(options).map_err(BackendError::from)?)))
            }
            ComputeDevice::Wgpu => Err(EngineError::Mismatch("there is no wgpu backend yet".to_owned())),
        }
    }
}

impl AnyBackend {
    /// Device time by kind of work; empty where the device keeps none.
    pub(crate) fn profile(
        &mut self,
        program: &AnyProgram,
        inputs: &Inputs,
    ) -> Result<Vec<WorkTime>, BackendError> {
        match (self, program) {
            (Self::Cuda(it), AnyProgram::Cuda(program)) => it.profile(program, inputs),
            _ => Ok(Vec::new()),
        }
    }

    /// What making programs ready took; `None` for the CPU.
    pub(crate) fn planned(&self) -> Option<Planned> {
        match self {
            Self::Cuda(it) => Some(it.planned()),
            Self::Cpu(_) => None,
        }
    }

    /// What the device reaches at most; `None` for the CPU.
    pub(crate) fn limits(&self) -> Result<Option<Limits>, BackendError> {
        match self {
            Self::Cuda(it) => it.limits(),
            _ => Ok(None),
        }
    }

    /// Name of the device, and bytes of its memory that are in use by anybody; `None` for the CPU.
    pub(crate) fn device_memory(&self) -> Option<(String, u64)> {
        let Self::Cuda(cuda) = self else { return None };
        let (free, total) = cuda.gpu().memory().ok()?;
        Some((cuda.gpu().properties().name.clone(), total - free))
    }
}

impl Backend for AnyBackend {
    type Program = AnyProgram;

    fn caps(&self) -> Caps {
        each!(self, it => it.caps())
    }

    fn layout(&self, plan: &Plan) -> Layout {
        each!(self, it => it.layout(plan))
    }

    fn held_bytes(&self) -> u64 {
        each!(self, it => it.held_bytes())
    }

    fn allocate(&mut self, params: &ModelParams) -> Result<(), BackendError> {
        each!(self, it => it.allocate(params))
    }

    fn store_param(&mut self, id: ParamId, values: &[f32]) -> Result<(), BackendError> {
        each!(self, it => it.store_param(id, values))
    }

    fn store_quantised(&mut self, id: ParamId, pieces: &[Nf4]) -> Result<(), BackendError> {
        each!(self, it => it.store_quantised(id, pieces))
    }

    fn load_param(&self, id: ParamId) -> Result<Vec<f32>, BackendError> {
        each!(self, it => it.load_param(id))
    }

    fn store_slab(&mut self, slab: Slab, values: &[f32]) -> Result<(), BackendError> {
        each!(self, it => it.store_slab(slab, values))
    }

    fn load_slab(&self, slab: Slab) -> Result<Vec<f32>, BackendError> {
        each!(self, it => it.load_slab(slab))
    }

    fn compile(&mut self, plan: Plan, placement: Placement) -> Result<AnyProgram, BackendError> {
        match self {
            Self::Cpu(it) => it.compile(plan, placement).map(AnyProgram::Cpu),
            Self::Cuda(it) => it.compile(plan, placement).map(AnyProgram::Cuda),
        }
    }

    fn ready(&mut self, program: &AnyProgram, inputs: &Inputs) -> Result<(), BackendError> {
        paired!(self, program, it, its => it.ready(its, inputs))
    }

    fn submit(&mut self, program: &AnyProgram, inputs: Inputs) -> Result<(), BackendError> {
        paired!(self, program, it, its => it.submit(its, inputs))
    }

    fn submit_ahead(&mut self, program: &AnyProgram, inputs: Inputs) -> Result<bool, BackendError> {
        paired!(self, program, it, its => it.submit_ahead(its, inputs))
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        each!(self, it => it.wait())
    }

    fn note(&mut self, program: &AnyProgram, view: Mat) -> Result<Note, BackendError> {
        paired!(self, program, it, its => it.note(its, view))
    }

    fn noted(&self, note: Note) -> f32 {
        each!(self, it => it.noted(note))
    }

    fn peek(&self, program: &AnyProgram, view: Mat, dims: Dims) -> Result<Vec<f32>, BackendError> {
        paired!(self, program, it, its => it.peek(its, view, dims))
    }

    fn copy_cache(&mut self, copies: &[CacheCopy]) -> Result<(), BackendError> {
        each!(self, it => it.copy_cache(copies))
    }

    fn choose(
        &mut self,
        program: &AnyProgram,
        logits: Mat,
        draws: &[Draw],
    ) -> Result<Vec<Option<u32>>, BackendError> {
        paired!(self, program, it, its => it.choose(its, logits, draws))
    }

    fn submit_range(
        &mut self,
        program: &AnyProgram,
        inputs: Inputs,
        ops: Range<usize>,
    ) -> Result<(), BackendError> {
        paired!(self, program, it, its => it.submit_range(its, inputs, ops))
    }
}
