//! Hands an operation its operands: disjoint parts of the arena, parameters, integers.

use super::Store;
use super::real::Real;
use crate::backend::{BackendError, Inputs};
use crate::place::Placement;
use crate::plan::{BufferId, Dims, Input, Mat, Op, Place, Plan, Rows};
use kernels::gemm::{View, ViewMut};
use std::collections::BTreeMap;

enum Slice<'a, R> {
    Exclusive(&'a mut [R]),
    Shared(&'a [R]),
}

/// The operands of one operation.
pub(super) struct Operands<'a, R> {
    op: &'a Op,
    plan: &'a Plan,
    inputs: &'a Inputs,
    store: &'a Store<R>,
    slices: BTreeMap<BufferId, Slice<'a, R>>,
}

impl<'a, R: Real> Operands<'a, R> {
    /// Cuts out of `arena` and `caches` what `op` names.
    pub(super) fn new(
        (plan, placement): (&'a Plan, &Placement),
        op: &'a Op,
        inputs: &'a Inputs,
        store: &'a Store<R>,
        arena: &'a mut [R],
        caches: &'a mut [Vec<R>],
    ) -> Result<Self, BackendError> {
        let access = op.access(&plan.groups);
        let mut wanted = BTreeMap::new();
        let mut cache = None;
        for mat in access.reads.iter().chain(&access.writes).chain(&access.updates) {
            match plan.get(mat.buffer).place {
                Place::Arena => {
                    let slot = placement.slots.get(&mat.buffer);
                    let slot = slot.ok_or_else(|| error(op, "an operand has no place"))?;
                    let len = buffer_len(plan, mat.buffer, &inputs.dims);
                    wanted.insert(slot.offset / size_of::<R>(), (mat.buffer, len));
                }
                Place::Cache(layer) => cache = Some((layer, mat.buffer)),
                _ => {}
            }
        }
        let mut slices = BTreeMap::new();
        let (mut rest, mut at) = (arena, 0);
        for (offset, (buffer, len)) in wanted {
            let skipped = offset.checked_sub(at).ok_or_else(|| error(op, "operands overlap"))?;
            if skipped + len > rest.len() {
                return Err(error(op, "an operand reaches past the arena"));
            }
            let (_, tail) = rest.split_at_mut(skipped);
            let (slice, tail) = tail.split_at_mut(len);
            slices.insert(buffer, Slice::Exclusive(slice));
            (rest, at) = (tail, offset + len);
        }
        if let Some((layer, buffer)) = cache {
            let slice = caches.get_mut(layer as usize).ok_or_else(|| error(op, "no cache for the layer"))?;
            slices.insert(buffer, Slice::Exclusive(slice));
        }
        Ok(Operands { op, plan, inputs, store, slices })
    }

    fn error(&self, message: &str) -> BackendError {
        error(self.op, message)
    }

    /// First element and row count of a view inside its buffer.
    fn frame(&self, mat: Mat) -> (usize, usize, usize) {
        let buffer = self.plan.get(mat.buffer);
        let rows = self.inputs.dims.rows(mat.rows);
        let first = match (mat.rows, buffer.rows) {
            (Rows::Chunk(index), Rows::LossRows) => index as usize * self.inputs.dims.chunk,
            _ => 0,
        };
        (first * buffer.cols + mat.col0, rows, buffer.cols)
    }

    /// A view to read: of the arena, of a cache or of a parameter.
    pub(super) fn get(&mut self, mat: Mat) -> Result<View<'a, R>, BackendError> {
        if let Place::Param(id) = self.plan.get(mat.buffer).place {
            return self.store.view(id).ok_or_else(|| self.error("a parameter was never stored"));
        }
        let (start, rows, pitch) = self.frame(mat);
        let slice = match self.slices.remove(&mat.buffer) {
            Some(Slice::Exclusive(slice)) => &*slice,
            Some(Slice::Shared(slice)) => slice,
            None => return Err(self.error("an operand is taken already")),
        };
        self.slices.insert(mat.buffer, Slice::Shared(slice));
        Ok(View::rows(&slice[start.min(slice.len())..], rows, mat.cols, pitch))
    }

    /// A view to write; its buffer is gone from the operands then.
    pub(super) fn take(&mut self, mat: Mat) -> Result<ViewMut<'a, R>, BackendError> {
        let (start, rows, pitch) = self.frame(mat);
        match self.slices.remove(&mat.buffer) {
            Some(Slice::Exclusive(slice)) => {
                let start = start.min(slice.len());
                Ok(ViewMut::rows(&mut slice[start..], rows, mat.cols, pitch))
            }
            _ => Err(self.error("an operand that is written is shared")),
        }
    }

    /// A vector-shaped parameter.
    pub(super) fn vector(&mut self, mat: Mat) -> Result<&'a [R], BackendError> {
        Ok(self.get(mat)?.row(0))
    }

    /// All of an input.
    pub(super) fn input(&self, input: Input) -> Result<&'a [u32], BackendError> {
        let values = self.inputs.index.get(&input).ok_or_else(|| self.error("an input is missing"))?;
        Ok(values)
    }

    /// Integers of an input.
    pub(super) fn index(&self, mat: Mat) -> Result<&'a [u32], BackendError> {
        let Place::Input(input) = self.plan.get(mat.buffer).place else {
            return Err(self.error("an index is no input"));
        };
        let values = self.input(input)?;
        let (start, rows, pitch) = self.frame(mat);
        // A chunk behind the last loss row of a small batch is empty, wherever it starts.
        let start = start.min(values.len());
        values.get(start..start + rows * pitch).ok_or_else(|| self.error("an input is too short"))
    }
}

pub(super) fn buffer_len(plan: &Plan, id: BufferId, dims: &Dims) -> usize {
    let buffer = plan.get(id);
    dims.rows(buffer.rows) * buffer.cols
}

pub(super) fn error(op: &Op, message: &str) -> BackendError {
    BackendError::Plan { op: op.name(), message: message.to_owned() }
}
