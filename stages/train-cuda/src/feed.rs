//! Which rows make which optimizer step, and their micro-batches, made ready while the step before runs.

use engine::{Ahead, EngineError, MicroBatch, Packer, Prepared, Sequence};

use crate::packing::Packing;
use crate::schedule::{Position, order};
use crate::tokens::Row;
use crate::train::Length;

/// The rows of a run in the order that it takes them.
#[derive(Debug)]
pub(crate) struct Feed<'d> {
    pub(crate) rows: &'d [Row],
    pub(crate) seed: u64,
    pub(crate) shuffle: bool,
    pub(crate) rows_per_step: usize,
    pub(crate) length: Length,
    pub(crate) packing: Packing,
    /// The order of an epoch.
    order: Option<(u64, Vec<usize>)>,
    /// What follows so many steps.
    ahead: Option<(u64, Prepared)>,
}

impl<'d> Feed<'d> {
    pub(crate) fn new(
        rows: &'d [Row],
        (seed, shuffle): (u64, bool),
        rows_per_step: usize,
        length: Length,
        packing: Packing,
    ) -> Self {
        Self { rows, seed, shuffle, rows_per_step, length, packing, order: None, ahead: None }
    }

    /// The rows of the step after `done` steps.
    pub(crate) fn rows_after(&mut self, done: u64) -> Vec<usize> {
        let position = Position::of(done, self.length.steps_per_epoch);
        let all = match self.order.take() {
            Some((epoch, all)) if epoch == position.epoch => all,
            _ => order(self.rows.len(), self.seed, position.epoch, self.shuffle),
        };
        let first = position.step_in_epoch as usize * self.rows_per_step;
        let rows = all[first..(first + self.rows_per_step).min(all.len())].to_vec();
        self.order = Some((position.epoch, all));
        rows
    }

    /// The step after `done` steps, from what was made ready or anew.
    ///
    /// # Errors
    /// The packer's.
    pub(crate) fn take(&mut self, done: u64, packer: Packer) -> Result<Prepared, EngineError> {
        match self.ahead.take() {
            Some((at, prepared)) if at == done => Ok(prepared),
            _ => self.prepare(done, packer),
        }
    }

    /// The step after `done` steps; `None`: the run has ended.
    pub(crate) fn look_ahead(&mut self, done: u64, packer: Packer) -> Ahead {
        (done < self.length.total).then(|| self.prepare(done, packer))
    }

    /// Keeps what [`Feed::look_ahead`] made. A mistake in it comes up again when its step does.
    pub(crate) fn keep(&mut self, done: u64, ahead: Ahead) {
        self.ahead = ahead.and_then(Result::ok).map(|prepared| (done, prepared));
    }

    fn prepare(&mut self, done: u64, packer: Packer) -> Result<Prepared, EngineError> {
        let rows = self.rows_after(done);
        let runs = self.packing.cut(&rows, |i| self.rows[i].input_ids.len());
        let micro_batches: Vec<MicroBatch> =
            runs.into_iter().map(|rows| micro_batch(rows.iter().map(|&i| (i, &self.rows[i])))).collect();
        packer.prepare(&micro_batches)
    }
}

/// Rows with their number in the file, which keys their dropout.
pub(crate) fn micro_batch<'r>(rows: impl Iterator<Item = (usize, &'r Row)>) -> MicroBatch {
    let sequence = |(i, row): (usize, &Row)| Sequence {
        sample_id: i as u64,
        input_ids: row.input_ids.clone(),
        labels: row.labels.clone(),
    };
    MicroBatch { sequences: rows.map(sequence).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(rows: &[Row], total: u64) -> Feed<'_> {
        let length = Length { steps_per_epoch: 3, total };
        Feed::new(rows, (5, true), 4, length, Packing::Rows(2))
    }

    #[test]
    fn every_epoch_takes_every_row_once() {
        let rows = vec![Row::default(); 9];
        let mut feed = feed(&rows, 6);
        let mut orders = Vec::new();
        for epoch in 0..2 {
            let steps: Vec<Vec<usize>> = (0..3).map(|i| feed.rows_after(3 * epoch + i)).collect();
            assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 1]);
            let mut all = steps.concat();
            orders.push(all.clone());
            all.sort_unstable();
            assert_eq!(all, (0..9).collect::<Vec<_>>());
        }
        assert_ne!(orders[0], orders[1]);
        // A look at another epoch in between changes nothing.
        assert_eq!(feed.rows_after(0), orders[0][..4]);
    }
}
