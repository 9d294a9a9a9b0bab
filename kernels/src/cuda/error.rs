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
    #[error(
        "out of GPU memory: {name} has no room for a context, which takes some 500 MB before any work; others hold nearly all of its {} MB",
        total / 1_000_000
    )]
    NoContext { name: String, total: u64 },
    /// The driver or a library wanted memory for itself, of the GPU or of the host: for a graph, a module, a context.
    #[error("out of memory: {call} found too little{}", left(*.free))]
    NoMemoryFor { call: &'static str, free: Option<u64> },
    #[error("{call} failed: {name} ({text})")]
    Driver { call: &'static str, name: String, text: String },
    #[error("{source_name} does not compile for {arch}:\n{log}")]
    Compile { source_name: String, arch: String, log: String },
    #[error("{kernel}: {message}")]
    Shape { kernel: String, message: String },
    #[error("the matrix product {what} can't be computed: {status}")]
    Matmul { what: String, status: String },
}

fn left(free: Option<u64>) -> String {
    free.map_or(String::new(), |free| format!("; {free} bytes of the GPU's are free"))
}

/// The matrix library's answers when its memory is short, and when what it started on the device has failed.
const SHORT: &str = "CUBLAS_STATUS_ALLOC_FAILED";
const BROKEN: [&str; 3] =
    ["CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR", "CUBLAS_STATUS_MAPPING_ERROR"];

impl CudaError {
    /// The driver's answer to a call that did not succeed; `free`: bytes of the GPU's memory, where they are known.
    pub(crate) fn of_driver(call: &'static str, name: String, text: String, free: Option<u64>) -> Self {
        // What a wait brings up happened in the middle of something: nobody knows what of it was done.
        let is_wait = call.ends_with("Synchronize");
        match name == "CUDA_ERROR_OUT_OF_MEMORY" && !is_wait {
            true => CudaError::NoMemoryFor { call, free },
            false => CudaError::Driver { call, name, text },
        }
    }

    /// The matrix library's answer, `CUBLAS_STATUS_...`, about the product `what`.
    pub(crate) fn of_library(what: &str, status: String) -> Self {
        match status == SHORT {
            true => CudaError::NoMemoryFor { call: "cublasLt", free: None },
            false => CudaError::Matmul { what: what.to_owned(), status },
        }
    }

    /// Less memory would have done, or more that is free.
    #[must_use]
    pub fn out_of_memory(&self) -> bool {
        matches!(
            self,
            CudaError::OutOfMemory { .. } | CudaError::NoMemoryFor { .. } | CudaError::NoContext { .. }
        )
    }

    /// A launch whose operands do not fit together.
    pub(crate) fn shape(kernel: &str, message: impl Into<String>) -> Self {
        CudaError::Shape { kernel: kernel.to_owned(), message: message.into() }
    }

    /// The device can't be used any more by this process: fell off the bus, or a kernel broke its context.
    #[must_use]
    pub fn device_lost(&self) -> bool {
        let name = match self {
            CudaError::Driver { name, .. } => name,
            CudaError::Matmul { status, .. } => return BROKEN.contains(&status.as_str()),
            _ => return false,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(call: &'static str, name: &str) -> CudaError {
        CudaError::of_driver(call, name.to_owned(), "text".to_owned(), Some(7))
    }

    fn library(status: &str) -> CudaError {
        CudaError::of_library("Nt 1x2x3", status.to_owned())
    }

    #[test]
    fn memory_that_is_short_is_told_from_a_device_that_is_lost() {
        for call in ["cuGraphInstantiate", "cuGraphLaunch", "cuModuleLoadData", "cuMemHostAlloc"] {
            let error = driver(call, "CUDA_ERROR_OUT_OF_MEMORY");
            assert!(error.out_of_memory() && !error.device_lost(), "{error}");
            assert!(error.to_string().contains(call) && error.to_string().contains("7 bytes"), "{error}");
        }
        for call in ["cuStreamSynchronize", "cuEventSynchronize"] {
            assert!(
                !driver(call, "CUDA_ERROR_OUT_OF_MEMORY").out_of_memory(),
                "{call}: nobody knows what was done"
            );
        }
        for name in ["CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_LAUNCH_FAILED"]
        {
            let error = driver("cuGraphLaunch", name);
            assert!(error.device_lost() && !error.out_of_memory(), "{error}");
        }
        let refused = driver("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE");
        assert!(!refused.device_lost() && !refused.out_of_memory(), "{refused}");
    }

    #[test]
    fn the_matrix_library_tells_the_same_in_its_own_words() {
        let error = library("CUBLAS_STATUS_ALLOC_FAILED");
        assert!(error.out_of_memory() && !error.device_lost(), "{error}");
        for status in ["CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR"] {
            assert!(library(status).device_lost(), "{status}");
        }
        let error = library("CUBLAS_STATUS_NOT_SUPPORTED");
        assert!(!error.out_of_memory() && !error.device_lost(), "{error}");
        assert!(error.to_string().contains("Nt 1x2x3"), "{error}");
    }
}
