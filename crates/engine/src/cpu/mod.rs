//! The reference backend: plain functions over one arena, in float32 or, to check gradients, in float64.

pub mod adapter;
pub mod attention;
pub mod elementwise;
mod exec;
mod loops;
mod operands;
mod parallel;
pub mod real;
pub mod training;

pub use adapter::Dropout;
pub use real::Real;

use crate::api::Precision;
use crate::backend::{Backend, BackendError, CacheCopy, Caps, Inputs, Note, Slab};
use crate::place::{Layout, Placement};
use crate::plan::{Block, Class, Dims, HEAD_CHUNK, Mat, ModelParams, ParamId, ParamSpec, Place, Plan, Rows};
use crate::verify::verify;
use kernels::gemm::View;
use kernels::sample::Draw;
use std::collections::BTreeSet;
use std::ops::Range;
use training::Segment;

/// How the CPU computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuOptions {
    pub threads: usize,
    /// Activations, base weights and the trained copies of base weights are rounded to bfloat16.
    pub round: bool,
    /// Projections and tables are stored `in x out`: products with few rows then read them in order.
    pub transposed: bool,
    /// Run claimed blocks natively.
    pub native: bool,
}

/// Parameters: frozen ones each for itself, trainable ones as ranges of the master slab.
#[derive(Debug)]
struct Store<R> {
    specs: Vec<ParamSpec>,
    frozen: Vec<Vec<R>>,
    master: Vec<R>,
    /// What products read when it differs from `master`: the rounded copy.
    rounded: Option<Vec<R>>,
    transposed: bool,
}

impl<R: Real> Store<R> {
    fn slab_range(&self, id: ParamId) -> Option<Range<usize>> {
        let spec = self.specs.get(id.0 as usize)?;
        spec.slab.map(|start| start..start + spec.elements())
    }

    fn is_transposed(&self, spec: &ParamSpec) -> bool {
        self.transposed && matches!(spec.class, Class::Projection | Class::Embedding | Class::Adapter)
    }

    fn view(&self, id: ParamId) -> Option<View<'_, R>> {
        let spec = self.specs.get(id.0 as usize)?;
        let (rows, cols) = (spec.rows, spec.cols);
        if let Some(range) = self.slab_range(id) {
            let values = self.rounded.as_ref().unwrap_or(&self.master);
            return Some(View::rows(&values[range], rows, cols, cols));
        }
        let values = self.frozen.get(id.0 as usize).filter(|v| v.len() == spec.elements())?;
        Some(if self.is_transposed(spec) {
            View::rows(values, cols, rows, rows).t()
        } else {
            View::rows(values, rows, cols, cols)
        })
    }

    fn refresh_rounded(&mut self) {
        if let Some(rounded) = &mut self.rounded {
            for (rounded, master) in rounded.iter_mut().zip(&self.master) {
                *rounded = master.to_bf16();
            }
        }
    }
}

/// A placed plan.
#[derive(Debug)]
pub struct CpuProgram {
    plan: Plan,
    placement: Placement,
}

impl CpuProgram {
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// The backend.
#[derive(Debug)]
pub struct Cpu<R: Real> {
    threads: usize,
    round: bool,
    native: bool,
    store: Store<R>,
    gradient: Vec<R>,
    m: Vec<R>,
    v: Vec<R>,
    arena: Vec<R>,
    caches: Vec<Vec<R>>,
    /// Columns of a cache.
    cache_cols: usize,
}

impl<R: Real> Cpu<R> {
    #[must_use]
    pub fn new(options: &CpuOptions) -> Self {
        let store = Store {
            specs: Vec::new(),
            frozen: Vec::new(),
            master: Vec::new(),
            rounded: None,
            transposed: options.transposed,
        };
        Cpu {
            threads: options.threads.max(1),
            round: options.round,
            native: options.native,
            store,
            gradient: Vec::new(),
            m: Vec::new(),
            v: Vec::new(),
            arena: Vec::new(),
            caches: Vec::new(),
            cache_cols: 0,
        }
    }

    /// Values of a view after a run, in the type of the computation.
    ///
    /// # Errors
    /// When the view is not in the arena.
    pub fn values(&self, program: &CpuProgram, view: Mat, dims: Dims) -> Result<Vec<R>, BackendError> {
        let buffer = program.plan.get(view.buffer);
        let missing = || BackendError::Plan {
            op: buffer.name.clone(),
            message: "is not in the arena, so it can't be looked at".to_owned(),
        };
        let slot = program.placement.slots.get(&view.buffer).ok_or_else(missing)?;
        let start = slot.offset / size_of::<R>();
        let rows = dims.rows(view.rows);
        let first = if let Rows::Chunk(index) = view.rows
            && buffer.rows == Rows::LossRows
        {
            index as usize * dims.chunk
        } else {
            0
        };
        let row = |i: usize| {
            let at = start + (first + i) * buffer.cols + view.col0;
            self.arena[at..at + view.cols].iter().copied()
        };
        Ok((0..rows).flat_map(row).collect())
    }

    /// One optimizer update of all trainables.
    fn update(&mut self, scalars: &crate::backend::Scalars, norm: f64) {
        let mut segments = Vec::new();
        let (mut master, mut m, mut v) = (&mut self.store.master[..], &mut self.m[..], &mut self.v[..]);
        let mut gradient = &self.gradient[..];
        let trainables: Vec<(usize, bool)> = self
            .store
            .specs
            .iter()
            .filter(|spec| spec.slab.is_some())
            .map(|spec| (spec.elements(), !matches!(spec.class, Class::Norm | Class::Bias)))
            .collect();
        for (len, decay) in trainables {
            let (a, b) = master.split_at_mut(len);
            let (c, d) = m.split_at_mut(len);
            let (e, f) = v.split_at_mut(len);
            let (g, h) = gradient.split_at(len);
            segments.push(Segment { master: a, gradient: g, m: c, v: e, decay });
            (master, m, v, gradient) = (b, d, f, h);
        }
        let scale = (scalars.inv_labels, norm);
        training::adamw(segments, &scalars.optimizer, scale, scalars.step + 1, self.threads);
        self.store.refresh_rounded();
    }

    fn spec(&self, id: ParamId) -> Result<&ParamSpec, BackendError> {
        let missing = || BackendError::Plan {
            op: format!("parameter {}", id.0),
            message: "there is no such parameter".to_owned(),
        };
        self.store.specs.get(id.0 as usize).ok_or_else(missing)
    }

    /// A slab in the type of the computation.
    pub fn slab_mut(&mut self, slab: Slab) -> &mut Vec<R> {
        match slab {
            Slab::Master => &mut self.store.master,
            Slab::Gradient => &mut self.gradient,
            Slab::M => &mut self.m,
            Slab::V => &mut self.v,
        }
    }

    fn check(&mut self, program: &CpuProgram, inputs: &Inputs) -> Result<(), BackendError> {
        check_inputs(&program.plan, inputs)?;
        let needed = program.placement.peak / size_of::<R>();
        if self.arena.len() < needed {
            self.arena.resize(needed, R::ZERO);
        }
        Ok(())
    }
}

pub(crate) fn check_inputs(plan: &Plan, inputs: &Inputs) -> Result<(), BackendError> {
    let (given, room) = (&inputs.dims, &plan.capacity);
    let counts = [
        ("tokens", given.tokens, room.tokens),
        ("loss rows", given.loss_rows, room.loss_rows),
        ("sequences", given.seqs, room.seqs),
    ];
    for (what, given, needed) in counts {
        if given > needed {
            return Err(BackendError::Size { what: what.to_owned(), given, needed });
        }
    }
    for buffer in &plan.buffers {
        let Place::Input(input) = buffer.place else { continue };
        let needed = given.rows(buffer.rows) * buffer.cols;
        let given = inputs.index.get(&input).map_or(0, Vec::len);
        if given != needed {
            return Err(BackendError::Size { what: buffer.name.clone(), given, needed });
        }
    }
    Ok(())
}

/// What the backend is, before there is one.
pub(crate) fn caps(native: bool) -> Caps {
    let claims = if native { BTreeSet::from([Block::AttentionCoreBackward]) } else { BTreeSet::new() };
    Caps { name: "cpu", claims, head_chunk: HEAD_CHUNK }
}

/// Bytes that a float32 backend would hold beside the arena.
pub(crate) fn planned_bytes(precision: Precision, params: &ModelParams) -> usize {
    let frozen: usize = params.specs.iter().filter(|s| s.slab.is_none()).map(ParamSpec::elements).sum();
    let trains_base = params.specs.iter().any(|spec| spec.slab.is_some() && spec.class != Class::Adapter);
    let copies = if precision == Precision::Bf16Rounded && trains_base { 5 } else { 4 };
    (frozen + copies * params.slab_len) * size_of::<f32>()
}

impl<R: Real> Backend for Cpu<R> {
    type Program = CpuProgram;

    fn caps(&self) -> Caps {
        caps(self.native)
    }

    fn layout(&self, _plan: &Plan) -> Layout {
        Layout::uniform(size_of::<R>())
    }

    fn held_bytes(&self) -> u64 {
        let frozen: usize = self.store.frozen.iter().map(Vec::len).sum();
        let slabs = self.store.master.len() * if self.store.rounded.is_some() { 5 } else { 4 };
        let caches: usize = self.caches.iter().map(Vec::len).sum();
        ((frozen + slabs + caches) * size_of::<R>()) as u64
    }

    fn allocate(&mut self, params: &ModelParams) -> Result<(), BackendError> {
        self.store.specs = params.specs.clone();
        self.store.frozen = vec![Vec::new(); params.specs.len()];
        for slab in [Slab::Master, Slab::Gradient, Slab::M, Slab::V] {
            *self.slab_mut(slab) = vec![R::ZERO; params.slab_len];
        }
        let trains_base = params.specs.iter().any(|spec| spec.slab.is_some() && spec.class != Class::Adapter);
        self.store.rounded = (self.round && trains_base).then(|| vec![R::ZERO; params.slab_len]);
        Ok(())
    }

    fn store_param(&mut self, id: ParamId, values: &[f32]) -> Result<(), BackendError> {
        let round = self.round;
        let spec = self.spec(id)?.clone();
        if values.len() != spec.elements() {
            let what = spec.pieces[0].name.clone();
            return Err(BackendError::Size { what, given: values.len(), needed: spec.elements() });
        }
        let base = !matches!(spec.class, Class::Adapter | Class::RopeTable);
        let convert = |value: f32| {
            let value = R::of(f64::from(value));
            if round && base { value.to_bf16() } else { value }
        };
        if let Some(range) = self.store.slab_range(id) {
            for (target, &value) in self.store.master[range].iter_mut().zip(values) {
                *target = R::of(f64::from(value));
            }
            self.store.refresh_rounded();
            return Ok(());
        }
        self.store.frozen[id.0 as usize] = if self.store.is_transposed(&spec) {
            let mut out = vec![R::ZERO; values.len()];
            for (row, source) in values.chunks_exact(spec.cols).enumerate() {
                for (col, &value) in source.iter().enumerate() {
                    out[col * spec.rows + row] = convert(value);
                }
            }
            out
        } else {
            values.iter().map(|&value| convert(value)).collect()
        };
        Ok(())
    }

    fn load_param(&self, id: ParamId) -> Result<Vec<f32>, BackendError> {
        let spec = self.spec(id)?;
        let missing =
            || BackendError::Plan { op: spec.pieces[0].name.clone(), message: "was never stored".to_owned() };
        let view = self.store.view(id).ok_or_else(missing)?;
        if view.row_stride == spec.cols && view.col_stride == 1 {
            return Ok(view.data[..spec.elements()].iter().map(|value| value.to_f32()).collect());
        }
        let element = |row: usize, col: usize| view.data[row * view.row_stride + col * view.col_stride];
        Ok((0..spec.rows).flat_map(|r| (0..spec.cols).map(move |c| element(r, c).to_f32())).collect())
    }

    fn store_slab(&mut self, slab: Slab, values: &[f32]) -> Result<(), BackendError> {
        let target = self.slab_mut(slab);
        if target.len() != values.len() {
            let what = format!("{slab:?} slab");
            return Err(BackendError::Size { what, given: values.len(), needed: target.len() });
        }
        for (target, &value) in target.iter_mut().zip(values) {
            *target = R::of(f64::from(value));
        }
        self.store.refresh_rounded();
        Ok(())
    }

    fn load_slab(&self, slab: Slab) -> Result<Vec<f32>, BackendError> {
        let values = match slab {
            Slab::Master => &self.store.master,
            Slab::Gradient => &self.gradient,
            Slab::M => &self.m,
            Slab::V => &self.v,
        };
        Ok(values.iter().map(|value| value.to_f32()).collect())
    }

    fn compile(&mut self, plan: Plan, placement: Placement) -> Result<CpuProgram, BackendError> {
        verify(&plan, &placement)?;
        let elements = placement.peak.div_ceil(size_of::<R>());
        if self.arena.len() < elements {
            self.arena.resize(elements, R::ZERO);
        }
        for buffer in &plan.buffers {
            if let (Place::Cache(layer), Rows::Const(rows)) = (buffer.place, buffer.rows) {
                let layer = layer as usize;
                if self.caches.len() <= layer {
                    self.caches.resize_with(layer + 1, Vec::new);
                }
                self.caches[layer].resize(rows * buffer.cols, R::ZERO);
                self.cache_cols = buffer.cols;
            }
        }
        Ok(CpuProgram { plan, placement })
    }

    fn submit(&mut self, program: &CpuProgram, inputs: Inputs) -> Result<(), BackendError> {
        self.check(program, &inputs)?;
        program.plan.steps.iter().try_for_each(|step| self.run_step(program, step, &inputs))
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn note(&mut self, program: &CpuProgram, view: Mat) -> Result<Note, BackendError> {
        let values = self.peek(program, view, program.plan.capacity)?;
        Ok(Note::Value(values.first().copied().unwrap_or(0.0)))
    }

    fn noted(&self, note: Note) -> f32 {
        match note {
            Note::Value(value) => value,
            Note::Pending(_) => f32::NAN,
        }
    }

    fn peek(&self, program: &CpuProgram, view: Mat, dims: Dims) -> Result<Vec<f32>, BackendError> {
        Ok(self.values(program, view, dims)?.into_iter().map(Real::to_f32).collect())
    }

    fn copy_cache(&mut self, copies: &[CacheCopy]) -> Result<(), BackendError> {
        let cols = self.cache_cols;
        for cache in &mut self.caches {
            for &CacheCopy { from, to, rows } in copies {
                let needed = (from.max(to) + rows) * cols;
                if needed > cache.len() {
                    let what = "cache of keys and values".to_owned();
                    return Err(BackendError::Size { what, given: cache.len(), needed });
                }
                cache.copy_within(from * cols..(from + rows) * cols, to * cols);
            }
        }
        Ok(())
    }

    fn choose(
        &mut self,
        program: &CpuProgram,
        logits: Mat,
        draws: &[Draw],
    ) -> Result<Vec<Option<u32>>, BackendError> {
        let capacity = program.plan.capacity;
        let dims = Dims { loss_rows: draws.len().min(capacity.loss_rows), ..capacity };
        let values = self.peek(program, logits, dims)?;
        let rows: Vec<&[f32]> = values.chunks_exact(logits.cols.max(1)).collect();
        if rows.len() < draws.len() {
            let what = "rows of logits".to_owned();
            return Err(BackendError::Size { what, given: rows.len(), needed: draws.len() });
        }
        let mut ids = vec![None; draws.len()];
        let ranges = parallel::even(draws.len(), 64 * logits.cols, self.threads);
        let mut rest = &mut ids[..];
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let (part, more) = rest.split_at_mut(range.len());
            parts.push((range.start, part));
            rest = more;
        }
        parallel::each(parts, |(start, part)| {
            for (i, id) in part.iter_mut().enumerate() {
                *id = kernels::sample::choose(rows[start + i], &draws[start + i]);
            }
        });
        Ok(ids)
    }

    fn submit_range(
        &mut self,
        program: &CpuProgram,
        inputs: Inputs,
        ops: Range<usize>,
    ) -> Result<(), BackendError> {
        self.check(program, &inputs)?;
        let chosen = program.plan.ops().enumerate().filter(|(number, _)| ops.contains(number));
        chosen.map(|(_, op)| op).try_for_each(|op| self.run_op(program, op, &inputs))
    }
}
