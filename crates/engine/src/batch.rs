//! Packs the sequences of a micro-batch into one row of tokens.

use crate::EngineError;
use crate::api::{MicroBatch, Sequence};
use crate::plan::{Dims, Input};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A label that carries no loss.
const IGNORED: i32 = -100;

/// What a plan needs to know of a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    pub dims: Dims,
    pub index: Arc<BTreeMap<Input, Vec<u32>>>,
}

impl Packed {
    pub(crate) fn label_tokens(&self) -> u64 {
        self.dims.loss_rows as u64
    }

    /// Whether both are clones of one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.dims == other.dims && Arc::ptr_eq(&self.index, &other.index)
    }
}

/// The micro-batches of one optimizer step, checked and packed.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub(crate) packed: Vec<Packed>,
}

impl Prepared {
    /// Tokens with a loss.
    #[must_use]
    pub fn label_tokens(&self) -> u64 {
        self.packed.iter().map(Packed::label_tokens).sum()
    }

    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.packed.iter().map(|packed| packed.dims.tokens as u64).sum()
    }
}

/// Prepares micro-batches for one trainer, without needing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packer {
    pub(crate) vocab: usize,
    pub(crate) max_tokens: usize,
    /// Loss rows that the head takes at a time.
    pub(crate) chunk: usize,
}

impl Packer {
    /// # Errors
    /// Lengths that disagree, empty sequences, ids outside the vocabulary, more tokens than a micro-batch may have.
    pub fn prepare(&self, micro_batches: &[MicroBatch]) -> Result<Prepared, EngineError> {
        let packed = micro_batches.iter().map(|micro| self.pack(micro)).collect::<Result<_, _>>()?;
        Ok(Prepared { packed })
    }

    /// Packs without padding. The row of token `i` predicts token `i + 1` of its sequence, where that has a label.
    ///
    /// # Errors
    /// As [`Packer::prepare`].
    pub(crate) fn pack(&self, micro: &MicroBatch) -> Result<Packed, EngineError> {
        let tokens = micro.sequences.iter().map(|sequence| sequence.input_ids.len()).sum();
        if tokens > self.max_tokens {
            let (what, room) = ("a micro-batch".to_owned(), self.max_tokens);
            return Err(EngineError::TooLong { what, given: tokens, room });
        }
        let mut columns = Columns::default();
        for (n, sequence) in micro.sequences.iter().enumerate() {
            columns.add(sequence, self.vocab).map_err(|what| {
                EngineError::Input(format!("sequence {n} (sample {}) {what}", sequence.sample_id))
            })?;
        }
        let dims =
            Dims { tokens, loss_rows: columns.labels.len(), seqs: micro.sequences.len(), chunk: self.chunk };
        Ok(Packed { dims, index: Arc::new(columns.index()) })
    }
}

/// The inputs of a plan, sequence after sequence.
#[derive(Default)]
struct Columns {
    ids: Vec<u32>,
    positions: Vec<u32>,
    samples: Vec<u32>,
    loss_index: Vec<u32>,
    labels: Vec<u32>,
    ends: Vec<u32>,
}

impl Columns {
    fn add(&mut self, sequence: &Sequence, vocab: usize) -> Result<(), String> {
        let (ids, labels) = (&sequence.input_ids, &sequence.labels);
        if ids.is_empty() || ids.len() != labels.len() {
            return Err(format!("has {} ids and {} labels", ids.len(), labels.len()));
        }
        if let Some(bad) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(format!("has the id {bad}, the vocabulary ends at {vocab}"));
        }
        let first = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.positions.extend(0..ids.len() as u32);
        let sample = [sequence.sample_id as u32, (sequence.sample_id >> 32) as u32];
        self.samples.extend(std::iter::repeat_n(sample, ids.len()).flatten());
        for (i, &label) in labels.iter().enumerate().skip(1).filter(|&(_, &label)| label != IGNORED) {
            let known = u32::try_from(label).ok().filter(|&label| (label as usize) < vocab);
            let label = known.ok_or_else(|| format!("has the label {label} at token {i}"))?;
            self.loss_index.push((first + i - 1) as u32);
            self.labels.push(label);
        }
        self.ends.push(self.ids.len() as u32);
        Ok(())
    }

    fn index(self) -> BTreeMap<Input, Vec<u32>> {
        let starts = std::iter::once(0).chain(self.ends).collect();
        BTreeMap::from([
            (Input::TokenIds, self.ids),
            (Input::Positions, self.positions),
            (Input::Samples, self.samples),
            (Input::LossIndex, self.loss_index),
            (Input::Labels, self.labels),
            (Input::Starts, starts),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKER: Packer = Packer { vocab: 10, max_tokens: 8, chunk: 256 };

    fn sequence(ids: &[u32], labels: &[i32]) -> Sequence {
        Sequence { sample_id: 1 << 32 | 7, input_ids: ids.to_vec(), labels: labels.to_vec() }
    }

    #[test]
    fn labels_shift_inside_their_sequence() {
        let micro =
            MicroBatch { sequences: vec![sequence(&[5, 6, 7], &[5, -100, 7]), sequence(&[8, 9], &[8, 9])] };
        let packed = PACKER.pack(&micro).unwrap();
        assert_eq!(packed.index[&Input::LossIndex], [1, 3]);
        assert_eq!(packed.index[&Input::Labels], [7, 9]);
        assert_eq!(packed.index[&Input::Starts], [0, 3, 5]);
        assert_eq!(packed.index[&Input::Positions], [0, 1, 2, 0, 1]);
        assert_eq!(packed.index[&Input::Samples][..2], [7, 1]);
        assert_eq!((packed.dims.tokens, packed.dims.loss_rows, packed.dims.seqs), (5, 2, 2));
    }

    #[test]
    fn bad_sequences_are_named() {
        for bad in [
            sequence(&[], &[]),
            sequence(&[1, 2], &[1]),
            sequence(&[10], &[10]),
            sequence(&[1, 2], &[1, 10]),
            sequence(&[1, 2], &[1, -1]),
        ] {
            let micro = MicroBatch { sequences: vec![sequence(&[1], &[1]), bad] };
            let error = PACKER.pack(&micro).unwrap_err();
            assert!(error.to_string().contains("sequence 1"), "{error}");
        }
        let long = MicroBatch { sequences: vec![sequence(&[1, 2, 3], &[1, 2, 3])] };
        assert!(matches!(
            Packer { max_tokens: 2, ..PACKER }.pack(&long),
            Err(EngineError::TooLong { given: 3, room: 2, .. })
        ));
    }
}
