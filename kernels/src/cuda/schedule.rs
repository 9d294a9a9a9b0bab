//! Works in order on one stream, and some of them beside it on others.

use super::error::CudaError;
use super::gpu::{Gpu, check, lock};
use super::launch::Work;
use cudarc::driver::sys;
use std::collections::{BTreeMap, BTreeSet};

/// Streams beside the first one.
pub const LANES: usize = 2;

/// Where a piece of work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Main,
    /// One of [`LANES`] others: takes what the main lane leaves idle. Not for matrix products, which share their workspace.
    Beside(usize),
}

/// Work and what it comes after: all that was put on its lane before it, for a piece beside also all that was put on the
/// main lane before it, and the pieces with these numbers.
#[derive(Debug)]
pub struct Piece {
    pub work: Work,
    pub lane: Lane,
    pub waits: Vec<usize>,
}

/// Pieces in an order in which they could also run one by one. The main lane ends after all of them.
#[derive(Debug)]
pub struct Schedule {
    gpu: Gpu,
    pieces: Vec<Piece>,
    /// The numbers of the marks at the ends of the pieces that something waits for.
    ends: BTreeMap<usize, usize>,
    last: BTreeSet<usize>,
}

impl Schedule {
    /// # Errors
    /// When a piece waits for one that does not come before it beside the main lane, a lane does not exist, a product lies
    /// beside, or the driver refuses.
    pub fn new(gpu: &Gpu, pieces: Vec<Piece>) -> Result<Self, CudaError> {
        let (mut ends, mut last) = (BTreeMap::new(), BTreeMap::new());
        for (i, piece) in pieces.iter().enumerate() {
            let lane_fits = match piece.lane {
                Lane::Main => true,
                Lane::Beside(lane) => {
                    last.insert(lane, i);
                    lane < LANES && !matches!(piece.work, Work::Matmul(_))
                }
            };
            let waits_fit = piece.waits.iter().all(|&w| w < i && pieces[w].lane != Lane::Main);
            if !lane_fits || !waits_fit {
                let message =
                    format!("{} on {:?} can't wait for {:?}", piece.work.name(), piece.lane, piece.waits);
                return Err(CudaError::shape("a schedule", message));
            }
        }
        let last: BTreeSet<usize> = last.into_values().collect();
        for &i in pieces.iter().flat_map(|piece| &piece.waits).chain(&last) {
            let next = FORK + 1 + ends.len();
            ends.entry(i).or_insert(next);
        }
        lock(&gpu.inner.marks).grow(gpu, FORK + 1 + ends.len())?;
        Ok(Schedule { gpu: gpu.clone(), pieces, ends, last })
    }

    /// All of it on the main lane.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn in_order(gpu: &Gpu, work: Vec<Work>) -> Result<Self, CudaError> {
        let main = |work| Piece { work, lane: Lane::Main, waits: Vec::new() };
        Self::new(gpu, work.into_iter().map(main).collect())
    }

    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Starts everything. Does not wait.
    ///
    /// # Errors
    /// The first refusal.
    pub fn run(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        let marks = lock(&self.gpu.inner.marks);
        let started = self.pieces.iter().enumerate().try_for_each(|(i, piece)| self.start(&marks, i, piece));
        let main = self.gpu.inner.stream;
        if started.is_err() {
            // What did start must end before anything else is done: the ends of the lanes may have no mark.
            for &lane in &self.gpu.inner.beside {
                let _ = marks.set(FORK, lane).and_then(|()| marks.hold(FORK, main));
            }
            return started;
        }
        self.last.iter().try_for_each(|i| marks.hold(self.ends[i], main))
    }

    fn start(&self, marks: &Marks, i: usize, piece: &Piece) -> Result<(), CudaError> {
        let main = self.gpu.inner.stream;
        let stream = match piece.lane {
            Lane::Main => main,
            Lane::Beside(lane) => {
                let stream = self.gpu.inner.beside[lane];
                marks.set(FORK, main)?;
                marks.hold(FORK, stream)?;
                stream
            }
        };
        piece.waits.iter().try_for_each(|w| marks.hold(self.ends[w], stream))?;
        piece.work.run_on(stream)?;
        self.ends.get(&i).map_or(Ok(()), |&end| marks.set(end, stream))
    }
}

/// The mark where the main lane is when a piece beside it begins.
const FORK: usize = 0;

/// Events without a time, which order the streams of a device. A wait is for what was recorded last, so all schedules use
/// the same ones, one schedule at a time: to make more of them, the driver may wait for the device.
#[derive(Debug, Default)]
pub(crate) struct Marks(Vec<Mark>);

#[derive(Debug)]
struct Mark(sys::CUevent);

#[expect(unsafe_code, reason = "driver handles may be used from any thread")]
// SAFETY: the driver takes events from any thread.
unsafe impl Send for Mark {}

impl Drop for Mark {
    #[expect(unsafe_code, reason = "gives the event back")]
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once, by a device that has bound its context; the driver puts it off until the event
        // is reached.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

impl Marks {
    /// Makes them `count` at least; the context of `gpu` is theirs.
    #[expect(unsafe_code, reason = "makes events")]
    fn grow(&mut self, gpu: &Gpu, count: usize) -> Result<(), CudaError> {
        gpu.bind()?;
        while self.0.len() < count {
            let mut handle = std::ptr::null_mut();
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: the driver writes a handle.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut handle, flags) })?;
            self.0.push(Mark(handle));
        }
        Ok(())
    }

    /// Gives all of them back, while the context is bound.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Sets a mark behind all that was started on a stream.
    #[expect(unsafe_code, reason = "records an event")]
    fn set(&self, number: usize, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: event and stream are alive, and the context is bound.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0[number].0, stream) })
    }

    /// What is started on a stream from now on waits for a mark.
    #[expect(unsafe_code, reason = "orders two streams")]
    fn hold(&self, number: usize, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: event and stream are alive, and the context is bound.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, self.0[number].0, 0) })
    }
}
