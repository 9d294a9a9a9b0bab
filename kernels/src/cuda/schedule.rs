//! Works in order on one stream, and some of them beside it on others.

use super::error::CudaError;
use super::gpu::Gpu;
use super::graph::Event;
use super::launch::Work;
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
    /// Where the main lane is when a piece beside it begins.
    fork: Event,
    /// Ends of the pieces that something waits for.
    ends: BTreeMap<usize, Event>,
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
            if let std::collections::btree_map::Entry::Vacant(free) = ends.entry(i) {
                free.insert(Event::order(gpu)?);
            }
        }
        Ok(Schedule { gpu: gpu.clone(), pieces, fork: Event::order(gpu)?, ends, last })
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
        let started = self.pieces.iter().enumerate().try_for_each(|(i, piece)| self.start(i, piece));
        let main = self.gpu.inner.stream;
        let joined = self.last.iter().try_for_each(|i| self.ends[i].hold(main));
        started.and(joined)
    }

    fn start(&self, i: usize, piece: &Piece) -> Result<(), CudaError> {
        let main = self.gpu.inner.stream;
        let stream = match piece.lane {
            Lane::Main => main,
            Lane::Beside(lane) => {
                let stream = self.gpu.inner.beside[lane];
                self.fork.record_on(main)?;
                self.fork.hold(stream)?;
                stream
            }
        };
        piece.waits.iter().try_for_each(|w| self.ends[w].hold(stream))?;
        piece.work.run_on(stream)?;
        self.ends.get(&i).map_or(Ok(()), |end| end.record_on(stream))
    }
}
