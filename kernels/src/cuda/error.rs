//! What can go wrong between a program and a GPU.

use thiserror::Error;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    #[error("no NVIDIA driver answers on this machine")]
    NoDriver,
    #[error("there is no GPU {ordinal}: the driver shows {count}")]
    NoSuchGpu { ordinal: u32, count: usize },
    #[error("{name} has compute capability {major}.{minor}; 8.0 is the least that the kernels run on")]
    TooOld { name: String, major: u32, minor: u32 },
    #[error(
        "the CUDA run-time compiler (libnvrtc) can't be loaded; it comes with the CUDA toolkit or the package nvidia-cuda-nvrtc"
    )]
    NoNvrtc,
    #[error(
        "the matrix library (libcublasLt) can't be loaded; it comes with the CUDA toolkit or the package nvidia-cublas"
    )]
    NoCublasLt,
    #[error("out of GPU memory: {needed} bytes needed for {what}, {free} of {total} are free")]
    OutOfMemory { what: String, needed: u64, free: u64, total: u64 },
    #[error("{call} failed: {name} ({text})")]
    Driver { call: &'static str, name: String, text: String },
    #[error("{source_name} does not compile for {arch}:\n{log}")]
    Compile { source_name: String, arch: String, log: String },
    #[error("{kernel}: {message}")]
    Shape { kernel: String, message: String },
    #[error("no algorithm for the matrix product {what}: {status}")]
    Matmul { what: String, status: String },
}

impl CudaError {
    /// A launch whose operands do not fit together.
    pub(crate) fn shape(kernel: &str, message: impl Into<String>) -> Self {
        CudaError::Shape { kernel: kernel.to_owned(), message: message.into() }
    }

    /// The device can't be used any more by this process: fell off the bus, or a kernel broke its context.
    #[must_use]
    pub fn device_lost(&self) -> bool {
        let CudaError::Driver { name, .. } = self else { return false };
        [
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            "CUDA_ERROR_HARDWARE_STACK_ERROR",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_LAUNCH_TIMEOUT",
            "CUDA_ERROR_DEVICE_UNAVAILABLE",
            "CUDA_ERROR_UNKNOWN",
            "CUDA_ERROR_CONTEXT_IS_DESTROYED",
            "CUDA_ERROR_SYSTEM_NOT_READY",
        ]
        .contains(&name.as_str())
    }
}
