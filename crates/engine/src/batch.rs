//! Packs the sequences of a micro-batch into one row of tokens.

use crate::EngineError;
use crate::api::MicroBatch;
use crate::plan::{Dims, Input};
use std::collections::BTreeMap;

/// A label that carries no loss.
const IGNORED: i32 = -100;

/// What a plan needs to know of a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    pub dims: Dims,
    pub index: BTreeMap<Input, Vec<u32>>,
}

impl Packed {
    pub(crate) fn label_tokens(&self) -> u64 {
        self.dims.loss_rows as u64
    }
}

/// Packs without padding. The row of token `i` predicts token `i + 1` of its sequence, where that has a label.
/// `chunk`: loss rows that the head takes at a time.
///
/// # Errors
/// Lengths that disagree, empty sequences, ids outside the vocabulary, more than `max_tokens` tokens.
pub(crate) fn pack(
    micro: &MicroBatch,
    vocab: usize,
    max_tokens: usize,
    chunk: usize,
) -> Result<Packed, EngineError> {
    let mut index: BTreeMap<Input, Vec<u32>> = BTreeMap::new();
    let mut starts = vec![0u32];
    let mut tokens = 0usize;
    for (n, sequence) in micro.sequences.iter().enumerate() {
        let (ids, labels) = (&sequence.input_ids, &sequence.labels);
        let place = format!("sequence {n} (sample {})", sequence.sample_id);
        if ids.is_empty() || ids.len() != labels.len() {
            let message = format!("{place} has {} ids and {} labels", ids.len(), labels.len());
            return Err(EngineError::Input(message));
        }
        if let Some(bad) = ids.iter().find(|&&id| id as usize >= vocab) {
            let message = format!("{place} has the id {bad}, the vocabulary ends at {vocab}");
            return Err(EngineError::Input(message));
        }
        let mut put = |input: Input, value: u32| index.entry(input).or_default().push(value);
        for (i, &id) in ids.iter().enumerate() {
            put(Input::TokenIds, id);
            put(Input::Positions, i as u32);
            put(Input::Samples, sequence.sample_id as u32);
            put(Input::Samples, (sequence.sample_id >> 32) as u32);
            let Some(&label) = labels.get(i + 1).filter(|&&label| label != IGNORED) else { continue };
            let known = u32::try_from(label).ok().filter(|&label| (label as usize) < vocab);
            let Some(label) = known else {
                return Err(EngineError::Input(format!("{place} has the label {label} at token {}", i + 1)));
            };
            put(Input::LossIndex, (tokens + i) as u32);
            put(Input::Labels, label);
        }
        tokens += ids.len();
        starts.push(tokens as u32);
    }
    if tokens > max_tokens {
        return Err(EngineError::TooLong {
            what: "a micro-batch".to_owned(),
            given: tokens,
            room: max_tokens,
        });
    }
    let loss_rows = index.get(&Input::Labels).map_or(0, Vec::len);
    for input in [Input::TokenIds, Input::Positions, Input::Samples, Input::LossIndex, Input::Labels] {
        index.entry(input).or_default();
    }
    index.insert(Input::Starts, starts);
    let dims = Dims { tokens, loss_rows, seqs: micro.sequences.len(), chunk };
    Ok(Packed { dims, index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Sequence;

    fn sequence(ids: &[u32], labels: &[i32]) -> Sequence {
        Sequence { sample_id: 1 << 32 | 7, input_ids: ids.to_vec(), labels: labels.to_vec() }
    }

    #[test]
    fn labels_shift_inside_their_sequence() {
        let micro =
            MicroBatch { sequences: vec![sequence(&[5, 6, 7], &[5, -100, 7]), sequence(&[8, 9], &[8, 9])] };
        let packed = pack(&micro, 10, 8, 256).unwrap();
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
            let error = pack(&micro, 10, 8, 256).unwrap_err();
            assert!(error.to_string().contains("sequence 1"), "{error}");
        }
        let long = MicroBatch { sequences: vec![sequence(&[1, 2, 3], &[1, 2, 3])] };
        assert!(matches!(pack(&long, 10, 2, 256), Err(EngineError::TooLong { given: 3, room: 2, .. })));
    }
}
