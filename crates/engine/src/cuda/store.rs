//! Parameters on the device: frozen ones each for itself, trainable ones in flat slabs.

use super::packed::Packed;
use crate::api::Precision;
use crate::backend::{BackendError, Slab};
use crate::plan::{Class, LoraGroup, ModelParams, ParamId, ParamSpec};
use kernels::cuda::{CudaError, Dtype, Gpu, Memory, Tensor, Work, bf16_bits, ops, run_all};
use model::nf4::Nf4;
use std::collections::BTreeMap;

/// Bytes that every tensor starts at a multiple of.
pub(super) const ALIGN: usize = 256;
/// Columns behind an adapted projection's inputs come in multiples of this: the products stay as fast as without.
const TAIL_COLUMNS: usize = 64;

/// Columns that adapters of `width` rank-r products together take behind inputs and weights.
pub(super) fn tail_columns(width: usize) -> usize {
    width.next_multiple_of(TAIL_COLUMNS)
}

/// Columns behind the inputs of a group of the plan.
pub(super) fn group_tail(group: &LoraGroup) -> usize {
    tail_columns(group.rank * group.modules.len())
}

/// The adapters on one fused projection.
#[derive(Debug, Clone)]
struct Tail {
    columns: usize,
    rank: usize,
    /// B, first row of the projection that the module writes, rows.
    modules: Vec<(ParamId, usize, usize)>,
}

/// How parameters lie on the device.
#[derive(Debug)]
struct Sizes {
    precision: Precision,
    tails: BTreeMap<ParamId, Tail>,
    /// Projections stay in NF4.
    is_packed: bool,
}

/// All parameters.
#[derive(Debug)]
pub(super) struct Store {
    gpu: Gpu,
    specs: Vec<ParamSpec>,
    sizes: Sizes,
    frozen: Vec<Option<Tensor>>,
    slabs: BTreeMap<Slab, Tensor>,
    /// What products read of the master slab: its values in bfloat16.
    copy: Option<Tensor>,
    /// Projections in NF4, unpacked before each use into a tensor that all of one size share.
    packed: Option<Packed>,
    /// All adapters behind their weights, when these stay unpacked and are regular.
    table: Option<ops::lora::PackTable>,
    bytes: usize,
}

impl Store {
    /// Makes room. `packed`: projections stay in NF4, with double quantisation or without.
    pub(super) fn new(
        gpu: &Gpu,
        precision: Precision,
        params: &ModelParams,
        packed: Option<bool>,
    ) -> Result<Self, BackendError> {
        let low = precision == Precision::Bf16Rounded;
        let mut store = Store {
            gpu: gpu.clone(),
            specs: params.specs.clone(),
            sizes: Sizes::new(precision, params, packed.is_some()),
            frozen: Vec::new(),
            slabs: BTreeMap::new(),
            copy: None,
            packed: packed.map(|double| Packed::new(gpu, params, double)).transpose()?,
            table: None,
            bytes: 0,
        };
        let places = store.sizes.places(params);
        let total = end(&places);
        let memory = store.alloc(total, "the model's weights")?;
        for ((id, spec), (offset, _)) in params.iter().zip(places) {
            let tensor = (spec.slab.is_none()).then(|| store.sizes.tensor(&memory, offset, id, spec));
            store.frozen.push(tensor.transpose()?);
        }
        memory.fill(0)?;
        if params.slab_len > 0 {
            for slab in [Slab::Master, Slab::Gradient, Slab::M, Slab::V] {
                let memory = store.alloc(params.slab_len * 4, "trainable parameters")?;
                memory.fill(0)?;
                store.slabs.insert(slab, memory.dense(1, params.slab_len, Dtype::F32)?);
            }
            if low {
                let memory = store.alloc(params.slab_len * 2, "trainable parameters in bfloat16")?;
                store.copy = Some(memory.dense(1, params.slab_len, Dtype::Bf16)?);
            }
        }
        if store.packed.is_none() {
            let entries = store.sizes.tails.iter().map(|(&id, tail)| store.packing(id, tail));
            let entries: Vec<ops::lora::Packing> = entries.collect::<Result<_, _>>()?;
            if !entries.is_empty() && entries.iter().all(ops::lora::Packing::is_regular) {
                let table = ops::lora::PackTable::new(gpu, entries)?;
                store.bytes += table.bytes();
                store.table = Some(table);
            }
        }
        Ok(store)
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<Memory, CudaError> {
        self.bytes += bytes;
        self.gpu.alloc(bytes, what)
    }

    /// Device memory that the parameters take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.packed.as_ref().map_or(0, Packed::bytes)
    }

    pub(super) fn spec(&self, id: ParamId) -> Result<&ParamSpec, BackendError> {
        let missing = || BackendError::Plan {
            op: format!("parameter {}", id.0),
            message: "there is no such parameter".to_owned(),
        };
        self.specs.get(id.0 as usize).ok_or_else(missing)
    }

    /// A parameter as products read it.
    pub(super) fn view(&self, id: ParamId) -> Result<Tensor, BackendError> {
        let spec = self.spec(id)?;
        match spec.slab {
            Some(start) => Ok(range(self.copy.as_ref().unwrap_or(self.slab(Slab::Master)?), start, spec)?),
            None => self.frozen[id.0 as usize].clone().ok_or_else(|| missing("a frozen parameter")),
        }
    }

    /// A weight with the columns of its adapters behind it.
    pub(super) fn with_tail(&self, id: ParamId) -> Result<Tensor, BackendError> {
        let tensor = self.view(id)?;
        let (rows, pitch) = (tensor.rows(), tensor.pitch());
        Ok(tensor.memory().tensor(tensor.offset(), (rows, pitch), pitch, tensor.dtype())?)
    }

    /// Whether the adapters of a weight lie behind it.
    pub(super) fn has_tail(&self, id: ParamId) -> bool {
        self.sizes.tails.contains_key(&id)
    }

    /// The weight that has this factor B behind it.
    pub(super) fn tail_of(&self, b: ParamId) -> Option<ParamId> {
        let mut tails = self.sizes.tails.iter();
        tails.find(|(_, tail)| tail.modules.iter().any(|module| module.0 == b)).map(|(&id, _)| id)
    }

    /// The gradient of a trainable parameter.
    pub(super) fn gradient(&self, id: ParamId) -> Result<Tensor, BackendError> {
        let spec = self.spec(id)?;
        let start = spec.slab.ok_or_else(|| missing("the gradient of a frozen parameter"))?;
        Ok(range(self.slab(Slab::Gradient)?, start, spec)?)
    }

    /// A whole slab, `1 x n`.
    pub(super) fn slab(&self, slab: Slab) -> Result<&Tensor, BackendError> {
        self.slabs.get(&slab).ok_or_else(|| missing("a slab"))
    }

    pub(super) fn copy(&self) -> Option<&Tensor> {
        self.copy.as_ref()
    }

    /// Lengths of the trainable parameters in slab order, and whether decay applies to each.
    pub(super) fn segments(&self) -> Vec<(usize, bool)> {
        self.specs
            .iter()
            .filter(|spec| spec.slab.is_some())
            .map(|spec| (spec.elements(), !matches!(spec.class, Class::Norm | Class::Bias)))
            .collect()
    }

    /// Stores a parameter's values (row-major).
    pub(super) fn store(&self, id: ParamId, values: &[f32]) -> Result<(), BackendError> {
        let spec = self.spec(id)?;
        if values.len() != spec.elements() {
            let what = spec.pieces[0].name.clone();
            return Err(BackendError::Size { what, given: values.len(), needed: spec.elements() });
        }
        if let Some(start) = spec.slab {
            range(self.slab(Slab::Master)?, start, spec)?.upload(values)?;
            return Ok(());
        }
        if self.is_packed(spec) {
            return Err(missing("a projection that is not in NF4"));
        }
        let tensor = self.view(id)?;
        tensor.memory().write(tensor.offset(), &pitched(values, &tensor))?;
        Ok(())
    }

    /// Stores a frozen projection from its tensors in NF4.
    pub(super) fn store_quantised(&mut self, id: ParamId, pieces: &[Nf4]) -> Result<(), BackendError> {
        let (name, elements, cols) = {
            let spec = self.spec(id)?;
            (spec.pieces[0].name.clone(), spec.elements(), spec.cols)
        };
        let given = pieces.iter().map(Nf4::len).sum();
        if given != elements {
            return Err(BackendError::Size { what: name, given, needed: elements });
        }
        if let Some(packed) = &mut self.packed {
            return packed.store(id, pieces, cols);
        }
        let mut once = Packed::one(&self.gpu, pieces)?;
        once.store(id, pieces, cols)?;
        run_all(&self.gpu, &once.unpack(id, &self.view(id)?)?)?;
        self.gpu.synchronize()?;
        Ok(())
    }

    fn is_packed(&self, spec: &ParamSpec) -> bool {
        self.packed.is_some() && spec.class == Class::Projection && spec.slab.is_none()
    }

    /// Work that must come before each product that reads a parameter.
    pub(super) fn unpack(&self, id: ParamId, scalars: &Tensor) -> Result<Vec<Work>, BackendError> {
        let Some(packed) = self.packed.as_ref().filter(|_| self.spec(id).is_ok_and(|s| self.is_packed(s)))
        else {
            return Ok(Vec::new());
        };
        let mut work = packed.unpack(id, &self.view(id)?)?;
        if let Some(tail) = self.sizes.tails.get(&id) {
            work.push(self.pack_tail(id, tail, scalars)?);
        }
        Ok(work)
    }

    /// A packed parameter's numbers, read once.
    pub(super) fn load(&self, id: ParamId) -> Result<Vec<f32>, BackendError> {
        let view = self.view(id)?;
        if let (Some(packed), true) = (&self.packed, self.is_packed(self.spec(id)?)) {
            run_all(&self.gpu, &packed.unpack(id, &view)?)?;
        }
        Ok(view.download()?)
    }

    /// What is to lie behind a weight.
    fn packing(&self, id: ParamId, tail: &Tail) -> Result<ops::lora::Packing, BackendError> {
        let target = self.with_tail(id)?.columns(self.spec(id)?.cols, tail.columns)?;
        let b: Vec<Tensor> =
            tail.modules.iter().map(|module| self.view(module.0)).collect::<Result<_, _>>()?;
        debug_assert!(b.iter().all(|b| b.cols() == tail.rank));
        let cols = tail.modules.iter().map(|&(_, first, n)| (first, n)).collect();
        Ok(ops::lora::Packing { b, tail: target, cols })
    }

    /// Work that writes the adapters of a weight behind it.
    fn pack_tail(&self, id: ParamId, tail: &Tail, scalars: &Tensor) -> Result<Work, BackendError> {
        let ops::lora::Packing { b, tail, cols } = self.packing(id, tail)?;
        Ok(ops::lora::pack_b(&b, &tail, &cols, scalars)?)
    }

    /// Work that brings everything derived from the master slab up to date: its copy, and the adapters behind the weights.
    pub(super) fn refresh(&self, scalars: &Tensor, cast: bool) -> Result<Vec<Work>, BackendError> {
        let mut work = Vec::new();
        if let (Some(copy), true) = (&self.copy, cast) {
            work.push(ops::elementwise::cast(self.slab(Slab::Master)?, copy)?);
        }
        match &self.table {
            Some(table) => work.push(table.pack(scalars)?),
            None if self.packed.is_none() => {
                for (&id, tail) in &self.sizes.tails {
                    work.push(self.pack_tail(id, tail, scalars)?);
                }
            }
            None => {}
        }
        Ok(work)
    }
}

impl Sizes {
    fn new(precision: Precision, params: &ModelParams, is_packed: bool) -> Self {
        let low = precision == Precision::Bf16Rounded;
        Self { precision, tails: if low { tails(params) } else { BTreeMap::new() }, is_packed }
    }

    /// First and last byte of each frozen parameter. Packed projections of one size lie in one place.
    fn places(&self, params: &ModelParams) -> Vec<(usize, usize)> {
        let mut shared: BTreeMap<(usize, usize), (usize, usize)> = BTreeMap::new();
        let mut next = 0;
        params
            .iter()
            .map(|(id, spec)| {
                let key = (spec.rows, self.pitch(id, spec));
                let shares = self.is_packed && spec.class == Class::Projection;
                if let Some(&place) = shared.get(&key).filter(|_| shares) {
                    return place;
                }
                let place = (next, next + self.bytes(id, spec));
                next = place.1;
                if shares {
                    shared.insert(key, place);
                }
                place
            })
            .collect()
    }

    fn dtype(&self, spec: &ParamSpec) -> Dtype {
        if self.precision == Precision::Bf16Rounded && spec.class != Class::RopeTable {
            Dtype::Bf16
        } else {
            Dtype::F32
        }
    }

    fn pitch(&self, id: ParamId, spec: &ParamSpec) -> usize {
        spec.cols + self.tails.get(&id).map_or(0, |tail| tail.columns)
    }

    fn bytes(&self, id: ParamId, spec: &ParamSpec) -> usize {
        if spec.slab.is_some() {
            return 0;
        }
        (spec.rows * self.pitch(id, spec) * self.dtype(spec).bytes()).next_multiple_of(ALIGN)
    }

    fn tensor(
        &self,
        memory: &Memory,
        offset: usize,
        id: ParamId,
        spec: &ParamSpec,
    ) -> Result<Tensor, CudaError> {
        memory.tensor(offset, (spec.rows, spec.cols), self.pitch(id, spec), self.dtype(spec))
    }
}

fn end(places: &[(usize, usize)]) -> usize {
    places.iter().map(|&(_, end)| end).max().unwrap_or(0)
}

/// [`Store::bytes`] of a store that nobody made.
pub(super) fn planned_bytes(precision: Precision, params: &ModelParams, packed: Option<bool>) -> usize {
    let frozen = end(&Sizes::new(precision, params, packed.is_some()).places(params));
    let of_a_number = if precision == Precision::Bf16Rounded { 4 * 4 + 2 } else { 4 * 4 };
    frozen + params.slab_len * of_a_number + packed.map_or(0, |double| super::packed::bytes(params, double))
}

fn missing(what: &str) -> BackendError {
    BackendError::Plan { op: what.to_owned(), message: "is not on the device".to_owned() }
}

fn range(slab: &Tensor, start: usize, spec: &ParamSpec) -> Result<Tensor, CudaError> {
    let offset = slab.offset() + start * slab.dtype().bytes();
    slab.memory().tensor(offset, (spec.rows, spec.cols), spec.cols, slab.dtype())
}

/// Values as they lie on the device, with zeros between the rows.
fn pitched(values: &[f32], tensor: &Tensor) -> Vec<u8> {
    let (cols, pitch, size) = (tensor.cols(), tensor.pitch(), tensor.dtype().bytes());
    let gap = (pitch - cols) * size;
    let mut bytes = Vec::with_capacity(tensor.rows() * pitch * size);
    for row in values.chunks(cols.max(1)) {
        match tensor.dtype() {
            Dtype::Bf16 => row.iter().for_each(|&v| bytes.extend(bf16_bits(v).to_le_bytes())),
            _ => row.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
        }
        bytes.resize(bytes.len() + gap, 0);
    }
    bytes.truncate(bytes.len().saturating_sub(gap));
    bytes
}

/// Which fused projections carry adapters.
fn tails(params: &ModelParams) -> BTreeMap<ParamId, Tail> {
    let mut tails = BTreeMap::new();
    let Some(lora) = &params.lora else { return tails };
    for layer in &params.layers {
        let projections: [(ParamId, &[usize]); 4] =
            [(layer.qkv, &[0, 1, 2]), (layer.o, &[3]), (layer.gate_up, &[4, 5]), (layer.down, &[6])];
        for (id, modules) in projections {
            let (mut first, mut found) = (0, Vec::new());
            for &module in modules {
                let rows = params.shape.module(module).1;
                if let Some((_, b)) = layer.adapters[module] {
                    found.push((b, first, rows));
                }
                first += rows;
            }
            if !found.is_empty() {
                let columns = tail_columns(lora.rank * found.len());
                tails.insert(id, Tail { columns, rank: lora.rank, modules: found });
            }
        }
    }
    tails
}
