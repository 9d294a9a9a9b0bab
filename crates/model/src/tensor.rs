//! A named block of numbers as it lies in a file: dtype, shape, little-endian bytes.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

/// The number formats of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// `float32`, `bfloat16`, `float16`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::BF16 => Some(Self::Bf16),
            safetensors::Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    pub(crate) fn to_safetensors(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::Bf16 => safetensors::Dtype::BF16,
            Self::F16 => safetensors::Dtype::F16,
        }
    }
}

/// A tensor of any rank, row-major. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Tensor {
    /// `None` when the shape and the number of values differ.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: &[f32]) -> Option<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_bytes(Dtype::F32, shape, bytes)
    }

    /// Little-endian bytes. `None` when their number is not what dtype and shape ask for.
    pub fn from_bytes(dtype: Dtype, shape: impl Into<Vec<usize>>, bytes: Vec<u8>) -> Option<Self> {
        let range = 0..bytes.len();
        Self::view(dtype, shape.into(), Arc::new(bytes), range)
    }

    pub(crate) fn view(
        dtype: Dtype,
        shape: Vec<usize>,
        buffer: Arc<Vec<u8>>,
        range: Range<usize>,
    ) -> Option<Self> {
        let len = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))?;
        let fits = range.end <= buffer.len() && range.end.checked_sub(range.start) == Some(len);
        fits.then_some(Self { dtype, shape, buffer, range })
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.range.len() / self.dtype.size()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Little-endian, [`Dtype::size`] bytes a number.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    /// Exact: every value of every dtype is a float32.
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::Bf16 => {
                bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        }
    }

    /// The first number that is infinite or not a number: its index and value.
    pub fn first_not_finite(&self) -> Option<(usize, f32)> {
        let bytes = self.bytes();
        let index = match self.dtype {
            Dtype::F32 => {
                first_where(bytes.as_chunks::<4>().0, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000)
            }
            Dtype::Bf16 => {
                first_where(bytes.as_chunks::<2>().0, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80)
            }
            Dtype::F16 => first_where(bytes.as_chunks::<2>().0, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        }?;
        let size = self.dtype.size();
        let start = self.range.start + index * size;
        let found = Self { shape: vec![1], range: start..start + size, ..self.clone() };
        found.to_f32().first().map(|&value| (index, value))
    }

    /// The same numbers in another dtype, rounded to nearest, ties to even.
    #[must_use]
    pub fn to_dtype(&self, dtype: Dtype) -> Self {
        if dtype == self.dtype {
            return self.clone();
        }
        let bytes = encode(dtype, &self.to_f32());
        let range = 0..bytes.len();
        Self { dtype, shape: self.shape.clone(), buffer: Arc::new(bytes), range }
    }
}

/// Position of the first item with a property. Whole runs are asked without an early end, which takes several items at a time.
fn first_where<T: Copy>(items: &[T], is_one: impl Fn(T) -> bool) -> Option<usize> {
    const RUN: usize = 4096;
    let any = |run: &[T]| run.iter().fold(false, |any, &item| any | is_one(item));
    let (n, run) = items.chunks(RUN).enumerate().find(|(_, run)| any(run))?;
    Some(n * RUN + run.iter().position(|&item| is_one(item))?)
}

/// Little-endian bytes of `values` in `dtype`, rounded to nearest, ties to even.
pub(crate) fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// Equal when dtype, shape and bytes are.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}
