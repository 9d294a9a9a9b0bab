//! Work for the device as values: made once, with everything checked, and run as often as wanted.

use super::compile::{Module, Source};
use super::error::CudaError;
use super::gpu::{Gpu, check};
use super::matmul::Matmul;
use super::memory::{Memory, Tensor};
use cudarc::driver::sys;
use std::fmt;
use std::sync::Arc;

/// What a piece of work costs when everything is read and written once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    pub flops: f64,
    pub bytes: f64,
}

/// Arguments of a kernel in order. Each takes 8 bytes here, a struct a multiple of them; the device reads as many as its
/// parameter has.
#[derive(Debug, Default)]
pub(crate) struct Args {
    slots: Vec<u64>,
    /// The first slot of each argument.
    firsts: Vec<usize>,
    keep: Vec<Memory>,
}

impl Args {
    pub(crate) fn new() -> Self {
        Args::default()
    }

    fn push(&mut self, slots: &[u64]) {
        self.firsts.push(self.slots.len());
        self.slots.extend(slots);
    }

    /// The address of a view; its memory lives as long as the launch.
    pub(crate) fn tensor(mut self, tensor: &Tensor) -> Self {
        self.push(&[tensor.pointer()]);
        self.keep.push(tensor.memory().clone());
        self
    }

    /// A view that the kernel reaches by an address it reads; its memory lives as long as the launch.
    pub(crate) fn keep(mut self, tensor: &Tensor) -> Self {
        self.keep.push(tensor.memory().clone());
        self
    }

    /// The address of a view, or null.
    pub(crate) fn optional(mut self, tensor: Option<&Tensor>) -> Self {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => {
                self.push(&[0]);
                self
            }
        }
    }

    /// A number that the kernel takes as `int`.
    pub(crate) fn int(mut self, value: usize) -> Self {
        self.push(&[u64::from(value as u32)]);
        self
    }

    /// A number that the kernel takes as `long long`.
    pub(crate) fn long(mut self, value: usize) -> Self {
        self.push(&[value as u64]);
        self
    }

    /// A number that the kernel takes as `float`.
    pub(crate) fn float(mut self, value: f32) -> Self {
        self.push(&[u64::from(value.to_bits())]);
        self
    }

    /// A struct that the kernel takes by value, as the bytes of its words.
    pub(crate) fn words(mut self, words: &[u64]) -> Self {
        self.push(words);
        self
    }
}

/// Blocks and threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub blocks: [usize; 3],
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

impl Grid {
    /// `blocks` blocks in a row.
    pub(crate) fn line(blocks: usize, threads: usize) -> Self {
        Grid { blocks: [blocks, 1, 1], threads, shared: 0 }
    }

    /// Enough blocks for `items`, one thread each.
    pub(crate) fn items(items: usize, threads: usize) -> Self {
        Self::line(items.div_ceil(threads), threads)
    }
}

/// One kernel with its arguments.
pub struct Launch {
    gpu: Gpu,
    name: String,
    function: sys::CUfunction,
    blocks: [u32; 3],
    threads: u32,
    shared: u32,
    slots: Vec<u64>,
    firsts: Vec<usize>,
    cost: Cost,
    _module: Arc<Module>,
    _keep: Vec<Memory>,
}

#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: the function handle is read-only, and its module is held.
unsafe impl Send for Launch {}
#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: nothing in it changes after it was made, and the driver takes launches from any thread.
unsafe impl Sync for Launch {}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}<<<{:?}, {}>>>", self.name, self.blocks, self.threads)
    }
}

impl Launch {
    /// Prepares a kernel. The caller has checked that the arguments are those of the kernel and stay inside their views.
    pub(crate) fn prepare(
        gpu: &Gpu,
        source: &'static Source,
        name: impl Into<String>,
        grid: Grid,
        args: Args,
        cost: Cost,
    ) -> Result<Work, CudaError> {
        let name = name.into();
        if grid.blocks.contains(&0) {
            return Ok(Work::Nothing);
        }
        let too_large = grid.blocks[0] > i32::MAX as usize
            || grid.blocks[1..].iter().any(|&n| n > 65_535)
            || grid.threads > 1024
            || grid.threads == 0;
        if too_large {
            return Err(CudaError::shape(&name, format!("a grid of {grid:?} can't be launched")));
        }
        let module = gpu.module(source)?;
        let function = module.function(&name, grid.shared as u32)?;
        Ok(Work::Kernel(Launch {
            gpu: gpu.clone(),
            name,
            function,
            blocks: grid.blocks.map(|n| n as u32),
            threads: grid.threads as u32,
            shared: grid.shared as u32,
            slots: args.slots,
            firsts: args.firsts,
            cost,
            _module: module,
            _keep: args.keep,
        }))
    }

    #[expect(unsafe_code, reason = "starts a kernel")]
    fn run(&self, stream: sys::CUstream) -> Result<(), CudaError> {
        let mut arguments: Vec<*mut std::ffi::c_void> =
            self.firsts.iter().map(|&i| std::ptr::from_ref(&self.slots[i]).cast_mut().cast()).collect();
        let [x, y, z] = self.blocks;
        // SAFETY: the launcher that made `self` matched arguments and kernel and checked that views hold what is touched;
        // memory and module are held by `self`; the driver reads the arguments before it returns.
        let status = unsafe {
            sys::cuLaunchKernel(
                self.function,
                x,
                y,
                z,
                self.threads,
                1,
                1,
                self.shared,
                stream,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", status).map_err(|error| match error {
            CudaError::Driver { call, name, text } => CudaError::Driver {
                call,
                name,
                text: format!("{text}; {self:?}, {} bytes shared", self.shared),
            },
            other => other,
        })
    }
}

/// A piece of work, in the order of the stream.
#[derive(Debug)]
pub enum Work {
    Kernel(Launch),
    Matmul(Box<Matmul>),
    /// Bytes become zero.
    Zero(Tensor),
    /// There was nothing to do.
    Nothing,
}

impl From<Matmul> for Work {
    fn from(matmul: Matmul) -> Self {
        Work::Matmul(Box::new(matmul))
    }
}

impl Work {
    /// Zeroes a view without gaps.
    ///
    /// # Errors
    /// When there are gaps.
    pub fn zero(tensor: &Tensor) -> Result<Work, CudaError> {
        if !tensor.is_dense() {
            return Err(CudaError::shape("zero", "the view has gaps between its rows"));
        }
        Ok(Work::Zero(tensor.clone()))
    }

    /// Starts it. Does not wait.
    ///
    /// # Errors
    /// When the device refuses; errors of the work itself come with the next wait.
    pub fn run(&self) -> Result<(), CudaError> {
        let gpu = match self {
            Work::Kernel(launch) => &launch.gpu,
            Work::Matmul(matmul) => matmul.gpu(),
            Work::Zero(tensor) => tensor.memory().gpu(),
            Work::Nothing => return Ok(()),
        };
        self.run_on(gpu.inner.stream)
    }

    /// As [`Self::run`], on one of the device's streams.
    pub(crate) fn run_on(&self, stream: sys::CUstream) -> Result<(), CudaError> {
        match self {
            Work::Kernel(launch) => launch.run(stream),
            Work::Matmul(matmul) => matmul.run(stream),
            Work::Zero(tensor) => zero(tensor, stream),
            Work::Nothing => Ok(()),
        }
    }

    /// For tables: the kernel's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Work::Kernel(launch) => &launch.name,
            Work::Matmul(matmul) => matmul.name(),
            Work::Zero(_) => "zero",
            Work::Nothing => "nothing",
        }
    }

    #[must_use]
    pub fn cost(&self) -> Cost {
        match self {
            Work::Kernel(launch) => launch.cost,
            Work::Matmul(matmul) => matmul.cost(),
            Work::Zero(tensor) => {
                Cost { flops: 0.0, bytes: (tensor.rows() * tensor.cols() * tensor.dtype().bytes()) as f64 }
            }
            Work::Nothing => Cost::default(),
        }
    }
}

#[expect(unsafe_code, reason = "fills device memory")]
fn zero(tensor: &Tensor, stream: sys::CUstream) -> Result<(), CudaError> {
    let bytes = tensor.rows() * tensor.cols() * tensor.dtype().bytes();
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the view was checked against its memory when it was made, and has no gaps.
    check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(tensor.pointer(), 0, bytes, stream) })
}

/// Runs pieces in order on the calling thread's context.
///
/// # Errors
/// The first refusal.
pub fn run_all<'a>(gpu: &Gpu, work: impl IntoIterator<Item = &'a Work>) -> Result<(), CudaError> {
    gpu.bind()?;
    work.into_iter().try_for_each(Work::run)
}
