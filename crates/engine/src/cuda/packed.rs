//! A base model in NF4: codes and block maxima on the device, and the launches that turn them back into numbers.

use super::store::ALIGN;
use crate::backend::BackendError;
use crate::plan::{Class, ModelParams, ParamId};
use kernels::cuda::{CudaError, Dtype, Gpu, Memory, Tensor, Work, ops};
use model::nf4::{AbsMax, BLOCK, NESTED_BLOCK, Nf4, dynamic_map};
use std::collections::BTreeMap;

/// Block maxima on the device.
#[derive(Debug)]
enum Maxima {
    Single(Tensor),
    Double { codes: Tensor, offset: Tensor, nested: Tensor },
}

/// One tensor of the files.
#[derive(Debug)]
struct Piece {
    first_row: usize,
    rows: usize,
    codes: Tensor,
    maxima: Maxima,
}

/// Quantised projections.
#[derive(Debug)]
pub(super) struct Packed {
    memory: Memory,
    used: usize,
    table: Tensor,
    pieces: BTreeMap<ParamId, Vec<Piece>>,
}

/// Bytes of a tensor of `n` values, its parts aligned.
fn piece_bytes(n: usize, double: bool) -> usize {
    let blocks = n.div_ceil(BLOCK);
    let maxima = if double {
        blocks.next_multiple_of(ALIGN) + ALIGN + (4 * blocks.div_ceil(NESTED_BLOCK)).next_multiple_of(ALIGN)
    } else {
        (4 * blocks).next_multiple_of(ALIGN)
    };
    n.div_ceil(2).next_multiple_of(ALIGN) + maxima
}

/// Bytes of all projections of a model.
pub(super) fn bytes(params: &ModelParams, double: bool) -> usize {
    let projections = params.specs.iter().filter(|spec| spec.class == Class::Projection);
    let pieces = projections.flat_map(|spec| &spec.pieces);
    pieces.map(|piece| piece_bytes(piece.rows * piece.cols, double)).sum()
}

impl Packed {
    /// Room for all projections of a model.
    pub(super) fn new(gpu: &Gpu, params: &ModelParams, double: bool) -> Result<Self, BackendError> {
        Self::with_bytes(gpu, bytes(params, double))
    }

    /// Room for the tensors of one projection.
    pub(super) fn one(gpu: &Gpu, pieces: &[Nf4]) -> Result<Self, BackendError> {
        let is_double = |piece: &Nf4| matches!(piece.absmax(), AbsMax::Double { .. });
        Self::with_bytes(gpu, pieces.iter().map(|piece| piece_bytes(piece.len(), is_double(piece))).sum())
    }

    fn with_bytes(gpu: &Gpu, bytes: usize) -> Result<Self, BackendError> {
        let table = gpu.alloc(4 * 256, "a table of NF4")?.dense(1, 256, Dtype::F32)?;
        table.upload(dynamic_map())?;
        let memory = gpu.alloc(bytes, "the base model in NF4")?;
        Ok(Packed { memory, used: 0, table, pieces: BTreeMap::new() })
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    fn place(&mut self, n: usize, dtype: Dtype) -> Result<Tensor, CudaError> {
        let tensor = self.memory.tensor(self.used, (1, n), n, dtype)?;
        self.used += (n * dtype.bytes()).next_multiple_of(ALIGN);
        Ok(tensor)
    }

    /// Stores the tensors of a projection of `cols` columns, one under the other.
    pub(super) fn store(&mut self, id: ParamId, pieces: &[Nf4], cols: usize) -> Result<(), BackendError> {
        let (mut all, mut first_row) = (Vec::new(), 0);
        for piece in pieces {
            let codes = self.place(piece.codes().len(), Dtype::U8)?;
            codes.upload_u8(piece.codes())?;
            let maxima = match piece.absmax() {
                AbsMax::Single(values) => {
                    let maxima = self.place(values.len(), Dtype::F32)?;
                    maxima.upload(values)?;
                    Maxima::Single(maxima)
                }
                AbsMax::Double { codes, offset, nested } => {
                    let device_codes = self.place(codes.len(), Dtype::U8)?;
                    device_codes.upload_u8(codes)?;
                    let device_offset = self.place(1, Dtype::F32)?;
                    device_offset.upload(&[*offset])?;
                    let device_nested = self.place(nested.len(), Dtype::F32)?;
                    device_nested.upload(nested)?;
                    Maxima::Double { codes: device_codes, offset: device_offset, nested: device_nested }
                }
            };
            let rows = piece.len() / cols.max(1);
            all.push(Piece { first_row, rows, codes, maxima });
            first_row += rows;
        }
        self.pieces.insert(id, all);
        Ok(())
    }

    /// Work that writes a projection's numbers into `out`.
    pub(super) fn unpack(&self, id: ParamId, out: &Tensor) -> Result<Vec<Work>, BackendError> {
        let missing = || BackendError::Plan {
            op: format!("parameter {}", id.0),
            message: "was never stored".to_owned(),
        };
        let pieces = self.pieces.get(&id).ok_or_else(missing)?;
        let one = |piece: &Piece| {
            let target = out.row_range(piece.first_row, piece.rows)?;
            match &piece.maxima {
                Maxima::Single(maxima) => ops::nf4::dequantize(&piece.codes, maxima, &target),
                Maxima::Double { codes, offset, nested } => {
                    ops::nf4::dequantize_double(&piece.codes, codes, offset, nested, &self.table, &target)
                }
            }
        };
        Ok(pieces.iter().map(one).collect::<Result<_, CudaError>>()?)
    }
}
