//! The backend on an NVIDIA GPU: plans as launches over one arena, captured in graphs.
//!
//! A program keeps one variant for each bucket of row counts. The first runs of a variant launch its work one by one, later
//! ones replay a graph of it; both give the same bits. Some of the work runs beside the rest.

mod across;
mod beside;
mod choice;
mod facts;
mod fused;
mod inputs;
mod lower;
mod packed;
mod profile;
mod store;
mod variants;

use crate::api::Precision;
use crate::backend::{Backend, BackendError, CacheCopy, Caps, Inputs, NOTES, Note, Slab};
use crate::cpu::check_inputs;
use crate::place::{Layout, Placement};
use crate::plan::{Dims, Mat, ModelParams, ParamId, Place, Plan, Rows};
use crate::verify::verify;
use choice::Choices;
use facts::Facts;
use fused::{CLAIMS, Fusion, Room, room};
use inputs::{Block, bucket, buckets, wants_runs};
use kernels::cuda::{
    CudaError, Dtype, Event, Gpu, Graph, Memory, Pinned, Schedule, Tensor, WORKSPACE_BYTES, ops, run_all,
};
use kernels::sample::Draw;
use lower::{Lowering, Numbered, view};
use model::nf4::Nf4;
pub(crate) use profile::together;
pub use profile::{Limits, WorkTime};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use store::{ALIGN, Store};
use variants::{GENERATION, Start, TRAINING, Variants};

/// Loss rows whose logits exist at the same time. Half as many cost 1.8 % of a step and save 0.3 GiB (vocabulary of 151,936).
const HEAD_CHUNK: usize = 2048;

/// How the GPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaOptions {
    /// Number of the device.
    pub ordinal: u32,
    /// `Bf16Rounded`: activations, weights and products in bfloat16, sums in float32.
    pub precision: Precision,
    /// Projections stay in NF4 (with double quantisation or without) and are unpacked before each use.
    pub packed: Option<bool>,
    /// Few rows at a time, each with the same bits however many there are.
    pub few_rows: bool,
    /// Replay work from captured graphs; without, every launch is made anew.
    pub graphs: bool,
    /// One launch after another, nothing beside them: the same bits, slower.
    pub in_order: bool,
}

/// A placed plan on the device.
pub struct CudaProgram {
    plan: Plan,
    facts: Facts,
    placement: Placement,
    arena: Memory,
    variants: RefCell<Variants<Arc<Schedule>, Graph>>,
}

impl fmt::Debug for CudaProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaProgram").field("arena", &self.arena).finish_non_exhaustive()
    }
}

/// The backend.
#[derive(Debug)]
pub struct Cuda {
    gpu: Gpu,
    options: CudaOptions,
    store: Option<Store>,
    block: Option<Block>,
    arena: Memory,
    caches: Vec<Tensor>,
    workspace: Memory,
    scratch: RefCell<Memory>,
    partials: RefCell<[Memory; 2]>,
    segments: Tensor,
    flag: Tensor,
    notes: Pinned,
    noted: usize,
    /// Behind the last run, once another was started ahead of its time.
    done: Option<Event>,
    values: Vec<f32>,
    choices: Option<Choices>,
    /// The master slab changed without an update: what is derived from it is old.
    stale: bool,
    planned: Planned,
}

/// What making programs ready took, and how much there was of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Planned {
    /// Counts of rows that a program was lowered for, of all programs.
    pub buckets: usize,
    /// Different matrix products among them, whose algorithms are fixed.
    pub products: usize,
    /// Kernels are loaded in this time too.
    pub seconds: f64,
}

impl Cuda {
    /// Opens the device.
    ///
    /// # Errors
    /// When there is none that can be used.
    pub fn open(options: CudaOptions) -> Result<Self, CudaError> {
        let gpu = Gpu::open(options.ordinal)?;
        let empty = gpu.alloc(0, "nothing")?;
        Ok(Cuda {
            options,
            store: None,
            block: None,
            arena: empty.clone(),
            caches: Vec::new(),
            workspace: gpu.alloc(WORKSPACE_BYTES, "the workspace of matrix products")?,
            scratch: RefCell::new(empty.clone()),
            partials: RefCell::new([empty.clone(), empty.clone()]),
            segments: empty.dense(1, 0, Dtype::U32)?,
            flag: gpu.alloc(ALIGN, "a flag")?.dense(1, 1, Dtype::U32)?,
            notes: gpu.pinned(NOTES * 4)?,
            noted: 0,
            done: None,
            values: Vec::new(),
            choices: None,
            stale: true,
            planned: Planned::default(),
            gpu,
        })
    }

    /// Overwrites a view of the arena, to run an operation on given values.
    ///
    /// # Errors
    /// When the view is not in the arena or the number of values is not its own.
    pub fn poke(
        &mut self,
        program: &CudaProgram,
        view: Mat,
        dims: Dims,
        values: &[f32],
    ) -> Result<(), BackendError> {
        Ok(self.view(program, view, dims)?.upload(values)?)
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What the programs so far took to be made ready.
    #[must_use]
    pub fn planned(&self) -> Planned {
        Planned { products: self.gpu.products(), ..self.planned }
    }

    fn low(&self) -> bool {
        self.options.precision == Precision::Bf16Rounded
    }

    fn store(&self) -> Result<&Store, BackendError> {
        self.store.as_ref().ok_or_else(|| plan_error("the backend", "has no parameters yet"))
    }

    fn block(&self) -> Result<&Block, BackendError> {
        self.block.as_ref().ok_or_else(|| plan_error("the backend", "has no program yet"))
    }

    fn lower(&self, program: &CudaProgram, dims: Dims, fuse: bool) -> Result<Vec<Numbered>, BackendError> {
        let lowering = Lowering {
            gpu: &self.gpu,
            plan: &program.plan,
            placement: &program.placement,
            dims,
            store: self.store()?,
            block: self.block()?,
            arena: &program.arena,
            caches: &self.caches,
            workspace: &self.workspace,
            scratch: &self.scratch,
            partials: &self.partials,
            waiting: RefCell::default(),
            half: Cell::new(0),
            taken: Cell::new(0),
            wrote_sums: Cell::new(false),
            segments: &self.segments,
            flag: &self.flag,
            low: self.low(),
            few_rows: self.options.few_rows,
            fusion: fuse.then(|| Fusion::new(&program.facts)),
            beside: fuse && !self.options.in_order,
        };
        lowering.lower()
    }

    /// Sends the inputs, and brings copies up to date when parameters were stored since the last run.
    fn prepare(&mut self, program: &CudaProgram, inputs: &Inputs, dims: Dims) -> Result<(), BackendError> {
        check_inputs(&program.plan, inputs)?;
        let runs = wants_runs(&program.plan);
        let block = self.block.as_mut().ok_or_else(|| plan_error("the backend", "has no program yet"))?;
        block.send(inputs, dims, runs)?;
        if self.stale {
            let work = self.store()?.refresh(&self.block()?.scalars()?, true)?;
            run_all(&self.gpu, &work)?;
            self.stale = false;
        }
        Ok(())
    }

    /// Lowers what was not run with these counts yet, and records what comes often.
    fn make_ready(&self, program: &CudaProgram, dims: Dims) -> Result<(), BackendError> {
        let counts = (dims.tokens, dims.loss_rows);
        let mut variants = program.variants.borrow_mut();
        if !variants.has(counts) {
            let pieces = self.lower(program, dims, true)?.into_iter().map(|(_, piece)| piece).collect();
            variants.add(counts, Arc::new(Schedule::new(&self.gpu, pieces)?));
        }
        if self.options.graphs
            && let Some(work) = variants.unrecorded(counts)
        {
            let graph = Graph::capture(&self.gpu, work)?;
            variants.record(counts, graph);
        }
        Ok(())
    }

    fn run(&self, program: &CudaProgram, dims: Dims) -> Result<(), BackendError> {
        self.make_ready(program, dims)?;
        let mut variants = program.variants.borrow_mut();
        match variants.start((dims.tokens, dims.loss_rows)) {
            Some(Start::Replay(graph)) => graph.launch()?,
            Some(Start::OneByOne(work)) => work.run()?,
            None => {}
        }
        Ok(())
    }

    /// The counts that a submission is computed with.
    fn dims(&self, program: &CudaProgram, inputs: &Inputs) -> Dims {
        bucket(inputs.dims, program.plan.capacity, self.options.few_rows)
    }

    fn view(&self, program: &CudaProgram, mat: Mat, dims: Dims) -> Result<Tensor, BackendError> {
        let found = view(&program.plan, &program.placement, &program.arena, &dims, self.low(), mat)?;
        let name = &program.plan.get(mat.buffer).name;
        found.ok_or_else(|| plan_error(name, "is not in the arena, so it can't be looked at"))
    }

    /// Caches, inputs and scratch that a plan needs.
    fn make_room(&mut self, plan: &Plan) -> Result<(), BackendError> {
        if self.block.as_ref().is_none_or(|block| !block.holds(plan.capacity)) {
            self.block = Some(Block::new(&self.gpu, plan.capacity)?);
        }
        for buffer in &plan.buffers {
            if let (Place::Cache(layer), Rows::Const(rows)) = (buffer.place, buffer.rows) {
                let dtype = if self.low() { Dtype::Bf16 } else { Dtype::F32 };
                let memory = self.gpu.alloc(rows * buffer.cols * dtype.bytes(), "keys and values")?;
                memory.fill(0)?;
                let tensor = memory.dense(rows, buffer.cols, dtype)?;
                let layer = layer as usize;
                if self.caches.len() <= layer {
                    self.caches.resize(layer + 1, tensor.clone());
                }
                self.caches[layer] = tensor;
            }
        }
        Ok(())
    }
}

/// What the backend is, before there is one.
pub(crate) fn caps() -> Caps {
    Caps { name: "cuda", claims: CLAIMS.into_iter().collect(), head_chunk: HEAD_CHUNK }
}

/// How the backend wants a plan's buffers to lie.
pub(crate) fn layout(precision: Precision, plan: &Plan) -> Layout {
    let low = precision == Precision::Bf16Rounded;
    let width = if low { 2 } else { 4 };
    let Room { extra, unused } = room(plan);
    let extra = if low { extra } else { BTreeMap::new() };
    Layout { act: width, grad: width, stat: 4, align: ALIGN, extra, unused, stays: beside::stays(plan) }
}

/// Bytes that a backend would hold beside the arena for these parameters and plans of this capacity; not counted is the room
/// for partial sums, which lowering finds out.
pub(crate) fn planned_bytes(
    precision: Precision,
    params: &ModelParams,
    packed: Option<bool>,
    capacity: Dims,
) -> usize {
    store::planned_bytes(precision, params, packed) + inputs::block_bytes(capacity) + WORKSPACE_BYTES
}

fn plan_error(what: &str, message: &str) -> BackendError {
    BackendError::Plan { op: what.to_owned(), message: message.to_owned() }
}

impl Backend for Cuda {
    type Program = CudaProgram;

    fn caps(&self) -> Caps {
        caps()
    }

    fn layout(&self, plan: &Plan) -> Layout {
        layout(self.options.precision, plan)
    }

    fn held_bytes(&self) -> u64 {
        let caches: usize = self.caches.iter().map(|cache| cache.memory().bytes()).sum();
        let parts = [
            self.store.as_ref().map_or(0, Store::bytes),
            self.block.as_ref().map_or(0, Block::bytes),
            caches,
            self.workspace.bytes(),
            self.scratch.borrow().bytes(),
            self.partials.borrow().iter().map(Memory::bytes).sum(),
            self.choices.as_ref().map_or(0, Choices::bytes),
        ];
        parts.iter().sum::<usize>() as u64
    }

    fn allocate(&mut self, params: &ModelParams) -> Result<(), BackendError> {
        let store = Store::new(&self.gpu, self.options.precision, params, self.options.packed)?;
        let segments = ops::optimizer::segments(store.segments());
        let memory = self.gpu.alloc(segments.len() * 4, "which parameters decay")?;
        self.segments = memory.dense(segments.len() / 2, 2, Dtype::U32)?;
        self.segments.upload_u32(&segments)?;
        self.store = Some(store);
        self.stale = true;
        Ok(())
    }

    fn store_param(&mut self, id: ParamId, values: &[f32]) -> Result<(), BackendError> {
        self.stale = true;
        self.store()?.store(id, values)
    }

    fn store_quantised(&mut self, id: ParamId, pieces: &[Nf4]) -> Result<(), BackendError> {
        self.stale = true;
        let none = || plan_error("the backend", "has no parameters yet");
        self.store.as_mut().ok_or_else(none)?.store_quantised(id, pieces)
    }

    fn load_param(&self, id: ParamId) -> Result<Vec<f32>, BackendError> {
        let store = self.store()?;
        if let Some(start) = store.spec(id)?.slab {
            let all = store.slab(Slab::Master)?.download()?;
            return Ok(all[start..start + store.spec(id)?.elements()].to_vec());
        }
        store.load(id)
    }

    fn store_slab(&mut self, slab: Slab, values: &[f32]) -> Result<(), BackendError> {
        let target = self.store()?.slab(slab)?;
        if target.cols() != values.len() {
            let what = format!("{slab:?} slab");
            return Err(BackendError::Size { what, given: values.len(), needed: target.cols() });
        }
        target.upload(values)?;
        self.stale = true;
        Ok(())
    }

    fn load_slab(&self, slab: Slab) -> Result<Vec<f32>, BackendError> {
        let store = self.store()?;
        if store.segments().is_empty() {
            return Ok(Vec::new());
        }
        Ok(store.slab(slab)?.download()?)
    }

    fn compile(&mut self, plan: Plan, placement: Placement) -> Result<CudaProgram, BackendError> {
        let begun = Instant::now();
        verify(&plan, &placement)?;
        if self.arena.bytes() < placement.peak {
            self.arena = self.gpu.alloc(placement.peak, "the arena of a step")?;
        }
        self.make_room(&plan)?;
        let program = CudaProgram {
            arena: self.arena.clone(),
            facts: Facts::new(&plan),
            plan,
            placement,
            variants: RefCell::new(Variants::new(if self.options.few_rows { GENERATION } else { TRAINING })),
        };
        // Shapes are checked, kernels compiled, algorithms chosen and partial sums given room now, for every count of rows
        // that may come, and not in the middle of a run: fewer rows may take more room, because sums are cut in more parts.
        let capacity = program.plan.capacity;
        let dims = bucket(capacity, capacity, self.options.few_rows);
        for dims in std::iter::once(dims).chain(buckets(capacity, self.options.few_rows)) {
            self.lower(&program, dims, true)?;
            self.planned.buckets += 1;
        }
        if let (true, Some(&logits)) = (self.options.few_rows, program.plan.outputs.first()) {
            let choices = Choices::new(&self.gpu, capacity.loss_rows)?;
            choices.work(&self.view(&program, logits, capacity)?)?;
            self.choices = Some(choices);
        }
        self.planned.seconds += begun.elapsed().as_secs_f64();
        Ok(program)
    }

    fn ready(&mut self, program: &CudaProgram, inputs: &Inputs) -> Result<(), BackendError> {
        self.make_ready(program, self.dims(program, inputs))
    }

    fn submit(&mut self, program: &CudaProgram, inputs: Inputs) -> Result<(), BackendError> {
        self.done = None;
        let dims = self.dims(program, &inputs);
        self.prepare(program, &inputs, dims)?;
        self.run(program, dims)
    }

    fn submit_ahead(&mut self, program: &CudaProgram, inputs: Inputs) -> Result<bool, BackendError> {
        let dims = self.dims(program, &inputs);
        if self.done.is_none() {
            let done = Event::new(&self.gpu)?;
            done.record()?;
            self.done = Some(done);
        }
        self.prepare(program, &inputs, dims)?;
        self.run(program, dims)?;
        Ok(true)
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        match self.done.take() {
            Some(done) => done.wait()?,
            None => self.gpu.synchronize()?,
        }
        let bytes = &self.notes.as_slice()[..self.noted * 4];
        self.values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        self.noted = 0;
        Ok(())
    }

    fn note(&mut self, program: &CudaProgram, view: Mat) -> Result<Note, BackendError> {
        let tensor = self.view(program, view, program.plan.capacity)?;
        if self.noted == NOTES {
            return Err(plan_error("a note", "one too many since the last wait"));
        }
        self.notes.copy_from(self.noted * 4, &tensor, 4)?;
        self.noted += 1;
        Ok(Note::Pending(self.noted - 1))
    }

    fn noted(&self, note: Note) -> f32 {
        match note {
            Note::Value(value) => value,
            Note::Pending(index) => self.values.get(index).copied().unwrap_or(f32::NAN),
        }
    }

    fn peek(&self, program: &CudaProgram, mat: Mat, dims: Dims) -> Result<Vec<f32>, BackendError> {
        Ok(self.view(program, mat, dims)?.download()?)
    }

    fn copy_cache(&mut self, copies: &[CacheCopy]) -> Result<(), BackendError> {
        for cache in &self.caches {
            for &CacheCopy { from, to, rows } in copies {
                cache.row_range(to, rows)?.copy_from(&cache.row_range(from, rows)?)?;
            }
        }
        Ok(())
    }

    fn choose(
        &mut self,
        program: &CudaProgram,
        logits: Mat,
        draws: &[Draw],
    ) -> Result<Vec<Option<u32>>, BackendError> {
        let capacity = program.plan.capacity;
        let needed = draws.len();
        if needed > capacity.loss_rows {
            let what = "rows of logits".to_owned();
            return Err(BackendError::Size { what, given: capacity.loss_rows, needed });
        }
        let logits = self.view(program, logits, Dims { loss_rows: needed, ..capacity })?;
        if self.choices.as_ref().is_none_or(|choices| choices.rows() < needed) {
            self.choices = Some(Choices::new(&self.gpu, capacity.loss_rows)?);
        }
        let choices = self.choices.as_mut().ok_or_else(|| plan_error("a choice", "has no room"))?;
        Ok(choices.make(&self.gpu, &logits, draws)?)
    }

    fn submit_range(
        &mut self,
        program: &CudaProgram,
        inputs: Inputs,
        ops: Range<usize>,
    ) -> Result<(), BackendError> {
        self.done = None;
        let dims = self.dims(program, &inputs);
        self.prepare(program, &inputs, dims)?;
        let pieces = self.lower(program, dims, false)?;
        // A piece of work carries the number of operations that are done with it.
        let chosen =
            pieces.iter().filter(|(done, _)| ops.contains(&(done - 1))).map(|(_, piece)| &piece.work);
        run_all(&self.gpu, chosen)?;
        Ok(())
    }
}
