//! Device memory, views of it, and copies.

use super::error::CudaError;
use super::gpu::{Gpu, check};
use cudarc::driver::sys;
use std::fmt;
use std::sync::Arc;

/// Element types that kernels know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    F32,
    Bf16,
    U32,
    U8,
}

impl Dtype {
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 | Dtype::U32 => 4,
            Dtype::Bf16 => 2,
            Dtype::U8 => 1,
        }
    }

    /// How kernels of this type end: `rms_norm_bf16`.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::U32 => "u32",
            Dtype::U8 => "u8",
        }
    }
}

struct Allocation {
    gpu: Gpu,
    pointer: sys::CUdeviceptr,
    bytes: usize,
}

impl Drop for Allocation {
    #[expect(unsafe_code, reason = "gives memory back to the driver")]
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: allocated by `Memory::new` and freed once; the driver waits for work that uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.pointer) };
        }
    }
}

/// Memory on a device. Clones share it; it is given back with the last one.
#[derive(Clone)]
pub struct Memory(Arc<Allocation>);

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.0.bytes)
    }
}

impl Memory {
    #[expect(unsafe_code, reason = "asks the driver for memory")]
    pub(crate) fn new(gpu: &Gpu, bytes: usize, what: &str) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut pointer = 0;
        // SAFETY: the driver writes an address; an allocation of no bytes is an error there, so it gets some.
        let status = unsafe { sys::cuMemAlloc_v2(&raw mut pointer, bytes.max(256)) };
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = gpu.memory()?;
            return Err(CudaError::OutOfMemory { what: what.to_owned(), needed: bytes as u64, free, total });
        }
        check("cuMemAlloc", status)?;
        Ok(Memory(Arc::new(Allocation { gpu: gpu.clone(), pointer, bytes })))
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// A view of `rows x cols` elements from `offset` bytes on; row `i` starts `i * pitch` elements after it.
    ///
    /// # Errors
    /// When the view does not fit into the memory, or is not aligned to its elements.
    pub fn tensor(
        &self,
        offset: usize,
        (rows, cols): (usize, usize),
        pitch: usize,
        dtype: Dtype,
    ) -> Result<Tensor, CudaError> {
        let elements = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * pitch + cols };
        let fits = offset + elements * dtype.bytes() <= self.bytes();
        if !fits || cols > pitch || !offset.is_multiple_of(dtype.bytes()) {
            let message = format!(
                "{rows} x {cols} ({pitch} apart, {dtype:?}) at byte {offset} of {} bytes",
                self.bytes()
            );
            return Err(CudaError::shape("view of device memory", message));
        }
        Ok(Tensor { memory: self.clone(), offset, rows, cols, pitch, dtype })
    }

    /// The whole memory from its start as `rows x cols` without gaps.
    ///
    /// # Errors
    /// As [`Memory::tensor`].
    pub fn dense(&self, rows: usize, cols: usize, dtype: Dtype) -> Result<Tensor, CudaError> {
        self.tensor(0, (rows, cols), cols, dtype)
    }

    /// Copies `bytes` to `offset` and waits.
    ///
    /// # Errors
    /// When they do not fit, or the device fails.
    #[expect(unsafe_code, reason = "a copy to the device")]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        self.check_range(offset, bytes.len())?;
        self.gpu().bind()?;
        if !bytes.is_empty() {
            let target = self.0.pointer + offset as u64;
            let stream = self.gpu().inner.stream;
            // SAFETY: both ranges were checked; the wait below keeps `bytes` alive long enough.
            let status =
                unsafe { sys::cuMemcpyHtoDAsync_v2(target, bytes.as_ptr().cast(), bytes.len(), stream) };
            check("cuMemcpyHtoDAsync", status)?;
        }
        self.gpu().synchronize()
    }

    /// Waits, and copies from `offset` into `bytes`.
    ///
    /// # Errors
    /// When the range is outside, or the device fails.
    #[expect(unsafe_code, reason = "a copy from the device")]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.check_range(offset, bytes.len())?;
        self.gpu().bind()?;
        if !bytes.is_empty() {
            let source = self.0.pointer + offset as u64;
            let (target, stream) = (bytes.as_mut_ptr().cast(), self.gpu().inner.stream);
            // SAFETY: both ranges were checked; the wait below comes before `bytes` is used.
            let status = unsafe { sys::cuMemcpyDtoHAsync_v2(target, source, bytes.len(), stream) };
            check("cuMemcpyDtoHAsync", status)?;
        }
        self.gpu().synchronize()
    }

    /// Sets every byte. Work in the order of the stream.
    ///
    /// # Errors
    /// When the device fails.
    #[expect(unsafe_code, reason = "fills device memory")]
    pub fn fill(&self, byte: u8) -> Result<(), CudaError> {
        self.gpu().bind()?;
        let stream = self.gpu().inner.stream;
        // SAFETY: the range is the whole allocation.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(self.0.pointer, byte, self.bytes(), stream) })
    }

    fn check_range(&self, offset: usize, len: usize) -> Result<(), CudaError> {
        if offset + len > self.bytes() {
            let message = format!("{len} bytes at byte {offset} of {} bytes", self.bytes());
            return Err(CudaError::shape("copy", message));
        }
        Ok(())
    }
}

/// A two-dimensional view of device memory: `rows x cols` elements, rows `pitch` elements apart.
#[derive(Debug, Clone)]
pub struct Tensor {
    memory: Memory,
    offset: usize,
    rows: usize,
    cols: usize,
    pitch: usize,
    dtype: Dtype,
}

impl Tensor {
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Elements from one row to the next.
    #[must_use]
    pub fn pitch(&self) -> usize {
        self.pitch
    }
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
    /// First byte inside its memory.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }
    /// Rows follow each other without gaps.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.pitch == self.cols || self.rows <= 1
    }
    /// Address on the device.
    pub(crate) fn pointer(&self) -> u64 {
        self.memory.0.pointer + self.offset as u64
    }
    /// The first element and each row start at multiples of `bytes`.
    #[must_use]
    pub fn is_aligned(&self, bytes: usize) -> bool {
        (self.pointer() as usize).is_multiple_of(bytes)
            && (self.rows <= 1 || (self.pitch * self.dtype.bytes()).is_multiple_of(bytes))
    }

    /// Columns `start .. start + cols`.
    ///
    /// # Errors
    /// When the view has fewer.
    pub fn columns(&self, start: usize, cols: usize) -> Result<Tensor, CudaError> {
        if start + cols > self.cols {
            let message = format!("columns {start}..{} of {}", start + cols, self.cols);
            return Err(CudaError::shape("view of device memory", message));
        }
        Ok(Tensor { offset: self.offset + start * self.dtype.bytes(), cols, ..self.clone() })
    }

    /// Rows `start .. start + rows`.
    ///
    /// # Errors
    /// When the view has fewer.
    pub fn row_range(&self, start: usize, rows: usize) -> Result<Tensor, CudaError> {
        if start + rows > self.rows {
            let message = format!("rows {start}..{} of {}", start + rows, self.rows);
            return Err(CudaError::shape("view of device memory", message));
        }
        Ok(Tensor { offset: self.offset + start * self.pitch * self.dtype.bytes(), rows, ..self.clone() })
    }

    /// Copies float32 values in, converting to the view's type, and waits.
    ///
    /// # Errors
    /// When there are not `rows * cols` of them, the view holds integers, or the device fails.
    pub fn upload(&self, values: &[f32]) -> Result<(), CudaError> {
        self.check_len(values.len())?;
        let bytes: Vec<u8> = match self.dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|&v| bf16_bits(v).to_le_bytes()).collect(),
            Dtype::U32 | Dtype::U8 => return Err(self.wrong_type()),
        };
        self.write_rows(&bytes)
    }

    /// Copies integers in and waits.
    ///
    /// # Errors
    /// As [`Tensor::upload`].
    pub fn upload_u32(&self, values: &[u32]) -> Result<(), CudaError> {
        self.check_len(values.len())?;
        if self.dtype != Dtype::U32 {
            return Err(self.wrong_type());
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write_rows(&bytes)
    }

    /// Copies bytes in and waits.
    ///
    /// # Errors
    /// As [`Tensor::upload`].
    pub fn upload_u8(&self, values: &[u8]) -> Result<(), CudaError> {
        self.check_len(values.len())?;
        if self.dtype != Dtype::U8 {
            return Err(self.wrong_type());
        }
        self.write_rows(values)
    }

    /// Waits, and returns the values as float32, rows one after another.
    ///
    /// # Errors
    /// When the view holds bytes or integers, or the device fails.
    pub fn download(&self) -> Result<Vec<f32>, CudaError> {
        let bytes = self.read_rows()?;
        match self.dtype {
            Dtype::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::Bf16 => Ok(bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
                .collect()),
            Dtype::U32 | Dtype::U8 => Err(self.wrong_type()),
        }
    }

    /// Starts a copy of another view of this shape and type, in the order of the stream. Neither view has gaps, and they do
    /// not overlap.
    ///
    /// # Errors
    /// When shape or type differ, there are gaps, or the device refuses.
    #[expect(unsafe_code, reason = "an asynchronous copy")]
    pub fn copy_from(&self, source: &Tensor) -> Result<(), CudaError> {
        let like = |t: &Tensor| (t.rows, t.cols, t.dtype, t.is_dense());
        if like(self) != like(source) || !self.is_dense() {
            let message = format!("{} x {} of {} x {}", self.rows, self.cols, source.rows, source.cols);
            return Err(CudaError::shape("copy", message));
        }
        let bytes = self.rows * self.cols * self.dtype.bytes();
        let gpu = self.memory.gpu();
        gpu.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both views were checked against their memories when they were made, and these outlive the stream's work:
        // memory is given back in its order.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(self.pointer(), source.pointer(), bytes, gpu.inner.stream)
        })
    }

    /// Waits, and returns the raw bytes of the rows one after another.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_rows(&self) -> Result<Vec<u8>, CudaError> {
        let row = self.cols * self.dtype.bytes();
        if self.rows == 0 || row == 0 {
            return Ok(Vec::new());
        }
        let pitch = self.pitch * self.dtype.bytes();
        let mut all = vec![0u8; (self.rows - 1) * pitch + row];
        self.memory.read(self.offset, &mut all)?;
        if self.is_dense() {
            return Ok(all);
        }
        let mut rows = Vec::with_capacity(self.rows * row);
        all.chunks(pitch).for_each(|chunk| rows.extend_from_slice(&chunk[..row]));
        Ok(rows)
    }

    fn write_rows(&self, bytes: &[u8]) -> Result<(), CudaError> {
        let row = self.cols * self.dtype.bytes();
        if self.is_dense() || row == 0 {
            return self.memory.write(self.offset, bytes);
        }
        let pitch = self.pitch * self.dtype.bytes();
        for (i, chunk) in bytes.chunks(row).enumerate() {
            self.memory.write(self.offset + i * pitch, chunk)?;
        }
        Ok(())
    }

    fn check_len(&self, given: usize) -> Result<(), CudaError> {
        if given == self.rows * self.cols {
            return Ok(());
        }
        Err(CudaError::shape("copy", format!("{given} values for {} x {}", self.rows, self.cols)))
    }

    fn wrong_type(&self) -> CudaError {
        CudaError::shape("copy", format!("a view of {:?} can't be copied this way", self.dtype))
    }
}

/// The nearest bfloat16, ties to even; NaN stays NaN.
#[must_use]
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// Host memory that the device copies from and to without a detour.
#[derive(Debug)]
pub struct Pinned {
    gpu: Gpu,
    pointer: *mut u8,
    bytes: usize,
}

#[expect(unsafe_code, reason = "the pointer is owned")]
// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    #[expect(unsafe_code, reason = "asks the driver for memory")]
    pub(crate) fn new(gpu: &Gpu, bytes: usize) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut pointer = std::ptr::null_mut();
        let bytes = bytes.max(1);
        // SAFETY: the driver writes an address.
        check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&raw mut pointer, bytes) })?;
        let pointer: *mut u8 = pointer.cast();
        // SAFETY: just allocated, `bytes` long; zeroed so that it may be read as a slice.
        unsafe { std::ptr::write_bytes(pointer, 0, bytes) };
        Ok(Pinned { gpu: gpu.clone(), pointer, bytes })
    }

    #[expect(unsafe_code, reason = "the memory as a slice")]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: allocated, initialised, and borrowed exclusively; callers wait for copies before they write again.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }

    #[must_use]
    #[expect(unsafe_code, reason = "the memory as a slice")]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated and initialised.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    /// Starts a copy of the first `bytes` to `offset` of `target`, in the order of the stream. The bytes must stay as they
    /// are until it is over: the caller waits for an event or the stream before it writes here again.
    ///
    /// # Errors
    /// When the range is outside of either side.
    #[expect(unsafe_code, reason = "an asynchronous copy")]
    pub fn copy_to(&self, bytes: usize, target: &Memory, offset: usize) -> Result<(), CudaError> {
        target.check_range(offset, bytes)?;
        if bytes > self.bytes {
            return Err(CudaError::shape("copy", format!("{bytes} bytes of {}", self.bytes)));
        }
        self.gpu.bind()?;
        let address = target.0.pointer + offset as u64;
        let stream = self.gpu.inner.stream;
        // SAFETY: both ranges were checked; the memory lives until `self` is dropped, which waits.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(address, self.pointer.cast(), bytes, stream) };
        check("cuMemcpyHtoDAsync", status)
    }
}

impl Pinned {
    /// Starts a copy of `bytes` from a view's start to byte `offset` here, in the order of the stream. They are there after
    /// the next wait.
    ///
    /// # Errors
    /// When the range is outside of either side.
    #[expect(unsafe_code, reason = "an asynchronous copy")]
    pub fn copy_from(&mut self, offset: usize, source: &Tensor, bytes: usize) -> Result<(), CudaError> {
        source.memory.check_range(source.offset, bytes)?;
        if offset + bytes > self.bytes {
            return Err(CudaError::shape("copy", format!("{bytes} bytes at {offset} of {}", self.bytes)));
        }
        self.gpu.bind()?;
        let stream = self.gpu.inner.stream;
        // SAFETY: both ranges were checked; the memory lives until `self` is dropped, which waits; it is read only after a
        // wait, by the contract of the callers.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(self.pointer.add(offset).cast(), source.pointer(), bytes, stream)
        };
        check("cuMemcpyDtoHAsync", status)
    }
}

impl Drop for Pinned {
    #[expect(unsafe_code, reason = "gives memory back to the driver")]
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: allocated by `new`, freed once, and no copy is under way.
            let _ = unsafe { sys::cuMemFreeHost(self.pointer.cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bf16_bits;

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        let cases: [(f32, u16); 8] = [
            (1.0, 0x3F80),
            (f32::from_bits(0x3F80_8000), 0x3F80),
            (f32::from_bits(0x3F81_8000), 0x3F82),
            (f32::from_bits(0x3F80_8001), 0x3F81),
            (f32::MAX, 0x7F80),
            (f32::NEG_INFINITY, 0xFF80),
            (-0.0, 0x8000),
            (f32::from_bits(1), 0),
        ];
        for (value, bits) in cases {
            assert_eq!(bf16_bits(value), bits, "{value:e}");
        }
        assert_eq!(bf16_bits(f32::NAN) & 0x7FC0, 0x7FC0);
    }
}
