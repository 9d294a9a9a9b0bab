//! One GPU: its context, its streams of work, memory.

use super::algorithm::Algorithms;
use super::compile::{Module, Source};
use super::error::CudaError;
use super::memory::{Memory, Pinned};
use super::schedule::{LANES, Marks};
use crate::probe;
use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{result, sys};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    pub name: String,
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_per_block: u32,
    pub total_bytes: u64,
    /// Version of the interface that the driver offers: `(13, 0)`.
    pub driver: (u32, u32),
}

impl Properties {
    /// `sm_90a`: what kernels are compiled for.
    #[must_use]
    pub fn arch(&self) -> String {
        let (major, minor) = self.compute_capability;
        let suffix = if major == 9 { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }
}

/// A GPU in use. Cheap to clone; all clones share one context and its streams.
#[derive(Clone)]
pub struct Gpu {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// The main lane: what it starts goes first.
    pub(crate) stream: sys::CUstream,
    pub(crate) beside: [sys::CUstream; LANES],
    pub(crate) handle: lt_sys::cublasLtHandle_t,
    properties: Properties,
    modules: Mutex<BTreeMap<&'static str, Arc<Module>>>,
    pub(crate) algorithms: Algorithms,
    /// Held while a schedule starts its work.
    pub(crate) marks: Mutex<Marks>,
}

#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: the driver's context, stream and library handles are thread-safe; every use binds the context first.
unsafe impl Send for Inner {}
#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: as above; what changes lies behind a mutex.
unsafe impl Sync for Inner {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("properties", &self.inner.properties).finish_non_exhaustive()
    }
}

/// Turns a driver's answer into a result.
pub(crate) fn check(call: &'static str, status: sys::CUresult) -> Result<(), CudaError> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(failed(call, status))
}

/// What a call's failure is.
fn failed(call: &'static str, status: sys::CUresult) -> CudaError {
    let (name, text) = describe(status);
    let is_short = status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    let free = if is_short { result::mem_get_info().ok().map(|(free, _)| free as u64) } else { None };
    CudaError::of_driver(call, name, text, free)
}

#[expect(unsafe_code, reason = "asks the driver for the name of its error")]
fn describe(status: sys::CUresult) -> (String, String) {
    let read = |ask: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver writes a pointer to a static string, or null.
        let answered = unsafe { ask(status, &raw mut text) };
        if answered != sys::CUresult::CUDA_SUCCESS || text.is_null() {
            return format!("{status:?}");
        }
        // SAFETY: a static string that ends in zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    (read(sys::cuGetErrorName), read(sys::cuGetErrorString))
}

impl Gpu {
    /// Opens a device.
    ///
    /// # Errors
    /// When driver, device or matrix library are missing, or the device is too old.
    pub fn open(ordinal: u32) -> Result<Self, CudaError> {
        let found = probe();
        let driver = found.driver.as_deref().and_then(version).ok_or(CudaError::NoDriver)?;
        let count = found.devices.len();
        let Some(device) = found.devices.into_iter().nth(ordinal as usize) else {
            return Err(CudaError::NoSuchGpu { ordinal, count });
        };
        let (major, minor) = device.compute_capability;
        if major < probe::LEAST_MAJOR {
            return Err(CudaError::TooOld { name: device.name, major, minor });
        }
        if !found.nvrtc {
            return Err(CudaError::NoNvrtc);
        }
        if !found.cublaslt {
            return Err(CudaError::NoCublasLt);
        }
        let driver_error = |call| move |error: result::DriverError| failed(call, error.0);
        let raw = result::device::get(ordinal as i32).map_err(driver_error("cuDeviceGet"))?;
        let (context, handle, stream, beside) = start(raw).map_err(|error| match error.out_of_memory() {
            true => CudaError::NoContext { name: device.name.clone(), total: device.total_bytes },
            false => error,
        })?;
        let properties = Properties {
            name: device.name,
            compute_capability: (major, minor),
            multiprocessors: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: attribute(
                raw,
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            total_bytes: device.total_bytes,
            driver,
        };
        let inner = Inner {
            device: raw,
            context,
            stream,
            beside,
            handle,
            properties,
            modules: Mutex::new(BTreeMap::new()),
            algorithms: Algorithms::default(),
            marks: Mutex::default(),
        };
        Ok(Gpu { inner: Arc::new(inner) })
    }

    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.inner.properties
    }

    /// Free and total bytes of the device's memory now.
    ///
    /// # Errors
    /// When the device does not answer.
    #[expect(unsafe_code, reason = "a plain query of the driver")]
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: the driver writes two numbers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Memory on the device, not initialised; `what` is for the error.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn alloc(&self, bytes: usize, what: &str) -> Result<Memory, CudaError> {
        Memory::new(self, bytes, what)
    }

    /// Memory of the host that the device reads and writes directly.
    ///
    /// # Errors
    /// When the host has none left.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        Pinned::new(self, bytes)
    }

    /// Waits for everything that was started.
    ///
    /// # Errors
    /// What went wrong in any of it.
    #[expect(unsafe_code, reason = "waits for the stream")]
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.inner.stream) })
    }

    /// Different matrix products that an algorithm was chosen for.
    #[must_use]
    pub fn products(&self) -> usize {
        self.inner.algorithms.count()
    }

    /// Makes the context the calling thread's.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        bind(self.inner.context)
    }

    /// The compiled form of a source, compiled at the first call.
    pub(crate) fn module(&self, source: &'static Source) -> Result<Arc<Module>, CudaError> {
        let mut modules = lock(&self.inner.modules);
        if let Some(module) = modules.get(source.name) {
            return Ok(Arc::clone(module));
        }
        self.bind()?;
        let module = Arc::new(Module::load(source, &self.inner.properties.arch())?);
        modules.insert(source.name, Arc::clone(&module));
        Ok(module)
    }
}

impl Drop for Inner {
    #[expect(unsafe_code, reason = "gives handles back to the driver")]
    fn drop(&mut self) {
        let _ = bind(self.context);
        // SAFETY: the last user of streams, modules, handle and context; nothing of theirs runs when they go. Errors at this
        // point have nobody to go to.
        unsafe {
            for stream in self.beside.iter().chain([&self.stream]) {
                let _ = sys::cuStreamSynchronize(*stream);
            }
            lock(&self.modules).clear();
            lock(&self.marks).clear();
            let _ = sys::cuStreamDestroy_v2(self.stream);
            for stream in self.beside {
                let _ = sys::cuStreamDestroy_v2(stream);
            }
            let _ = lt::destroy_handle(self.handle);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// `13.0` as numbers.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A poisoned lock guards data that is still whole: every change is one assignment, or one value more.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a process needs of a device before any work: context, matrix library, streams.
type Started = (sys::CUcontext, lt_sys::cublasLtHandle_t, sys::CUstream, [sys::CUstream; LANES]);

fn start(device: sys::CUdevice) -> Result<Started, CudaError> {
    let context = retain(device)?;
    bind(context)?;
    let handle =
        lt::create_handle().map_err(|error| CudaError::of_library("at all", format!("{:?}", error.0)))?;
    let (least, greatest) = priorities()?;
    Ok((context, handle, new_stream(greatest)?, [new_stream(least)?, new_stream(least)?]))
}

#[expect(unsafe_code, reason = "the device's primary context is shared with other libraries of the process")]
fn retain(device: sys::CUdevice) -> Result<sys::CUcontext, CudaError> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver is initialised and the device came from it.
    check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) })?;
    Ok(context)
}

#[expect(unsafe_code, reason = "contexts belong to threads")]
pub(crate) fn bind(context: sys::CUcontext) -> Result<(), CudaError> {
    // SAFETY: the context was retained and not released yet.
    check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })
}

#[expect(unsafe_code, reason = "a stream of its own, which does not wait for the default one")]
fn new_stream(priority: i32) -> Result<sys::CUstream, CudaError> {
    let mut stream = std::ptr::null_mut();
    let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: a context is bound; the driver writes a handle.
    let made = unsafe { sys::cuStreamCreateWithPriority(&raw mut stream, flags, priority) };
    check("cuStreamCreateWithPriority", made)?;
    Ok(stream)
}

/// Least and greatest priority of a stream.
#[expect(unsafe_code, reason = "a plain query of the driver")]
fn priorities() -> Result<(i32, i32), CudaError> {
    let (mut least, mut greatest) = (0, 0);
    // SAFETY: a context is bound; the driver writes two numbers.
    let asked = unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest) };
    check("cuCtxGetStreamPriorityRange", asked)?;
    Ok((least, greatest))
}

#[expect(unsafe_code, reason = "a plain query of the driver")]
fn attribute(device: sys::CUdevice, which: Attribute) -> Result<u32, CudaError> {
    let mut value = 0;
    // SAFETY: the driver writes one int.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) })?;
    Ok(value.unsigned_abs())
}
