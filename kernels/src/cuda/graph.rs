//! Work recorded once and replayed as one, and events that take its time.

use super::error::CudaError;
use super::gpu::{Gpu, check};
use super::schedule::Schedule;
use cudarc::driver::sys;
use std::sync::Arc;

/// `CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY`: kernels keep the priorities of the streams that they were captured on.
const BY_PRIORITY: u64 = 8;

/// Captured work. Holds the work, so what it points to stays alive.
#[derive(Debug)]
pub struct Graph {
    gpu: Gpu,
    exec: sys::CUgraphExec,
    _work: Arc<Schedule>,
}

#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: the handle is used by one thread at a time, through `&self` of a value that is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures work without running it. Everything must have been run once before, so that all is loaded.
    ///
    /// # Errors
    /// When the driver refuses to capture some of it.
    #[expect(unsafe_code, reason = "captures a stream")]
    pub fn capture(gpu: &Gpu, work: &Arc<Schedule>) -> Result<Self, CudaError> {
        gpu.bind()?;
        let stream = gpu.inner.stream;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `gpu`; the capture is ended below whatever happens in between.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })?;
        let recorded = work.run();
        let mut graph = std::ptr::null_mut();
        // SAFETY: a capture is under way on this stream.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream, &raw mut graph) });
        if let Err(error) = recorded.and(ended) {
            // SAFETY: of no use any more; null where there is none, which the driver refuses.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
            return Err(error);
        }
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was just made; it is not needed once it is instantiated.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, BY_PRIORITY);
            let _ = sys::cuGraphDestroy(graph);
            made
        };
        check("cuGraphInstantiate", made)?;
        Ok(Graph { gpu: gpu.clone(), exec, _work: Arc::clone(work) })
    }

    /// Starts all of it.
    ///
    /// # Errors
    /// When the device refuses.
    #[expect(unsafe_code, reason = "launches a graph")]
    pub fn launch(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: instantiated and not destroyed; what it points to is held.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, self.gpu.inner.stream) })
    }
}

impl Drop for Graph {
    #[expect(unsafe_code, reason = "gives the graph back")]
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: made once, destroyed once; while it runs, the driver puts its end off until then. Memory that it uses is
            // given back by a call that waits for it.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A point in the stream.
#[derive(Debug)]
pub struct Event {
    gpu: Gpu,
    handle: sys::CUevent,
}

#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: the driver takes events from any thread.
unsafe impl Send for Event {}
#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: as above; nothing in it changes after it was made.
unsafe impl Sync for Event {}

impl Event {
    /// # Errors
    /// When the driver refuses.
    #[expect(unsafe_code, reason = "makes an event")]
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes a handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut handle, 0) })?;
        Ok(Event { gpu: gpu.clone(), handle })
    }

    /// Puts the event behind everything that was started.
    ///
    /// # Errors
    /// When the device refuses.
    #[expect(unsafe_code, reason = "records an event")]
    pub fn record(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: event and stream are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, self.gpu.inner.stream) })
    }

    /// Waits until the event is reached.
    ///
    /// # Errors
    /// What went wrong before it.
    #[expect(unsafe_code, reason = "waits for an event")]
    pub fn wait(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.handle) })
    }

    /// Milliseconds of device time from `start` to this event; both must have been reached.
    ///
    /// # Errors
    /// When one was not, or the driver is older than CUDA 12.8.
    #[expect(unsafe_code, reason = "a plain query of the driver")]
    pub fn ms_since(&self, start: &Event) -> Result<f32, CudaError> {
        const CALL: &str = "cuEventElapsedTime";
        if self.gpu.properties().driver < (12, 8) {
            let text = "device times need a driver for CUDA 12.8 or later".to_owned();
            return Err(CudaError::Driver { call: CALL, name: "CUDA_ERROR_NOT_SUPPORTED".to_owned(), text });
        }
        self.gpu.bind()?;
        let mut ms = 0.0;
        // SAFETY: the driver has the function and writes one number.
        check(CALL, unsafe { sys::cuEventElapsedTime_v2(&raw mut ms, start.handle, self.handle) })?;
        Ok(ms)
    }
}

impl Drop for Event {
    #[expect(unsafe_code, reason = "gives the event back")]
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: made once, destroyed once; the driver defers it until the event is reached.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
