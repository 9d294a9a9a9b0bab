//! What comes with each submission: padded to a bucket, laid out in one block, copied in one piece.
//!
//! Tokens are padded with short sequences of their own that carry no loss: they are computed like any other and change
//! nothing, and every shape on the device is one of few.

use super::store::ALIGN;
use crate::api::AdamW;
use crate::backend::{BackendError, Inputs, Scalars};
use crate::plan::{Dims, Input, Plan, Rows};
use kernels::cuda::ops::StepScalars;
use kernels::cuda::ops::attention::Tiles;
use kernels::cuda::ops::embed::runs as runs_of;
use kernels::cuda::{CudaError, Dtype, Event, Gpu, Memory, Pinned, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// No token, no label, no row.
pub(super) const NONE: u32 = u32::MAX;
/// Longest sequence of padding.
const PADDING: usize = 64;
/// Blocks of host memory that take turns: one is filled while others are copied.
const TURNS: usize = 4;

/// What the device gets: the plan's inputs, and what is derived from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Scalars,
    Given(Input),
    /// `Tokens x 2`: first token of the token's sequence, one past its last.
    Spans,
    /// The order in which attention takes its tiles of queries, and of keys.
    QueryTiles,
    KeyTiles,
    /// `Tokens x 1`: the loss row that a token has, or [`NONE`].
    LossRow,
    /// `Tokens x 1`: tokens in the order of their ids.
    Order,
    /// `Tokens + 1 x 1`: where each distinct id starts in `Order`; the number of tokens behind the last.
    Runs,
    /// `1 x 1`: how many distinct ids there are.
    RunCount,
}

/// Where fields lie in the block.
#[derive(Debug)]
pub(super) struct Block {
    memory: Memory,
    offsets: BTreeMap<Field, (usize, usize)>,
    bytes: usize,
    host: Vec<(Pinned, Event)>,
    turn: usize,
    /// What lies there, and the counts that it was padded to.
    sent: Option<(Index, Dims, bool)>,
}

/// Inputs by name; whoever holds the same one holds the same values.
type Index = Arc<BTreeMap<Input, Vec<u32>>>;

impl Block {
    /// Room for the greatest counts of every plan.
    pub(super) fn new(gpu: &Gpu, capacity: Dims) -> Result<Self, BackendError> {
        let mut offsets = BTreeMap::new();
        let mut bytes = 0;
        for (field, elements) in fields(capacity) {
            offsets.insert(field, (bytes, elements));
            bytes += (elements * 4).next_multiple_of(ALIGN);
        }
        let memory = gpu.alloc(bytes, "the inputs of a step")?;
        let host = (0..TURNS)
            .map(|_| Ok((gpu.pinned(bytes)?, Event::new(gpu)?)))
            .collect::<Result<Vec<_>, CudaError>>()?;
        Ok(Block { memory, offsets, bytes, host, turn: 0, sent: None })
    }

    /// Whether plans of these counts fit.
    pub(super) fn holds(&self, capacity: Dims) -> bool {
        fields(capacity)
            .into_iter()
            .all(|(field, n)| self.offsets.get(&field).is_some_and(|&(_, has)| has >= n))
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The scalars on the device.
    pub(super) fn scalars(&self) -> Result<Tensor, BackendError> {
        let offset = self.offset(Field::Scalars)?;
        Ok(self.memory.tensor(offset, (1, StepScalars::BYTES), StepScalars::BYTES, Dtype::U8)?)
    }

    /// The first `rows` rows of a field with `cols` columns.
    pub(super) fn tensor(&self, field: Field, rows: usize, cols: usize) -> Result<Tensor, BackendError> {
        Ok(self.memory.tensor(self.offset(field)?, (rows, cols), cols, Dtype::U32)?)
    }

    fn offset(&self, field: Field) -> Result<usize, BackendError> {
        let missing = || BackendError::Plan {
            op: format!("{field:?}"),
            message: "is no input of this plan".to_owned(),
        };
        self.offsets.get(&field).map(|&(offset, _)| offset).ok_or_else(missing)
    }

    /// Starts the copy of a submission's inputs, padded to `bucket`; of its scalars alone where it has no others, or where the
    /// others are what was sent last.
    pub(super) fn send(&mut self, inputs: &Inputs, bucket: Dims, runs: bool) -> Result<(), BackendError> {
        let is_there = self.sent.as_ref().is_some_and(|(index, dims, had_runs)| {
            Arc::ptr_eq(index, &inputs.index) && *dims == bucket && *had_runs >= runs
        });
        let only_scalars = is_there || inputs.index.is_empty();
        self.turn = (self.turn + 1) % self.host.len();
        let offsets = &self.offsets;
        let (pinned, event) = &mut self.host[self.turn];
        event.wait()?;
        let bytes = pinned.as_mut_slice();
        let scalars = step_scalars(&inputs.scalars, inputs.dims);
        bytes[..StepScalars::BYTES].copy_from_slice(&scalars.to_bytes());
        let fields = if only_scalars { Vec::new() } else { padded(inputs, bucket, runs) };
        for (field, values) in fields {
            let Some(&(offset, elements)) = offsets.get(&field) else { continue };
            let target = &mut bytes[offset..offset + elements.min(values.len()) * 4];
            for (target, value) in target.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *target = value.to_le_bytes();
            }
        }
        if !only_scalars {
            self.sent = None;
        }
        let bytes = if only_scalars { StepScalars::BYTES } else { self.bytes };
        pinned.copy_to(bytes, &self.memory, 0)?;
        event.record()?;
        if !only_scalars {
            self.sent = Some((inputs.index.clone(), bucket, runs));
        }
        Ok(())
    }
}

/// [`Block::bytes`] of a block that nobody made.
pub(super) fn block_bytes(capacity: Dims) -> usize {
    fields(capacity).into_iter().map(|(_, elements)| (elements * 4).next_multiple_of(ALIGN)).sum()
}

/// Fields and the 32-bit words that they take.
fn fields(capacity: Dims) -> Vec<(Field, usize)> {
    let (tokens, loss) = (capacity.tokens, capacity.loss_rows);
    let [query_tiles, key_tiles] = Tiles::counts(tokens);
    vec![
        (Field::Scalars, StepScalars::BYTES / 4),
        (Field::Given(Input::TokenIds), tokens),
        (Field::Given(Input::Positions), tokens),
        (Field::Given(Input::Samples), 2 * tokens),
        (Field::Given(Input::LossIndex), loss),
        (Field::Given(Input::Labels), loss),
        (Field::Given(Input::CacheRow), tokens),
        (Field::Given(Input::CacheSpan), 2 * tokens),
        (Field::Spans, 2 * tokens),
        (Field::QueryTiles, query_tiles),
        (Field::KeyTiles, key_tiles),
        (Field::LossRow, tokens),
        (Field::Order, tokens),
        (Field::Runs, tokens + 1),
        (Field::RunCount, 1),
    ]
}

/// The counts that a submission is computed with: few different ones, at most the capacity; fewer of loss rows, which cost a
/// quarter of a token each; fewer still with `few_rows`, where rows cost little. Each pair of counts has a graph of its own.
pub(super) fn bucket(dims: Dims, capacity: Dims, few_rows: bool) -> Dims {
    let round = |n: usize, room: usize, most_fine: usize| {
        let step = match n {
            _ if few_rows => [4, 16, 64].into_iter().find(|&most| n <= most).unwrap_or(n.next_power_of_two()),
            0..=16 => 4,
            17..=64 => 16,
            65..=1024 => 128,
            _ if n <= most_fine => 256,
            _ => 512,
        };
        n.max(1).next_multiple_of(step).min(room)
    };
    Dims {
        tokens: round(dims.tokens, capacity.tokens, 8192),
        loss_rows: round(dims.loss_rows, capacity.loss_rows, 1024),
        seqs: capacity.seqs,
        chunk: capacity.chunk,
    }
}

/// Every count of tokens that [`bucket`] gives beside the most loss rows, then every count of loss rows beside the most tokens.
pub(super) fn buckets(capacity: Dims, few_rows: bool) -> Vec<Dims> {
    let mut all = Vec::new();
    let mut tokens = 0;
    while tokens < capacity.tokens {
        tokens = bucket(Dims { tokens: tokens + 1, ..capacity }, capacity, few_rows).tokens;
        all.push(Dims { tokens, ..bucket(capacity, capacity, few_rows) });
    }
    let mut loss_rows = 0;
    while loss_rows < capacity.loss_rows {
        loss_rows = bucket(Dims { loss_rows: loss_rows + 1, ..capacity }, capacity, few_rows).loss_rows;
        all.push(Dims { loss_rows, ..bucket(capacity, capacity, few_rows) });
    }
    all
}

/// A plan's parts that need `Order` and `Runs`.
pub(super) fn wants_runs(plan: &Plan) -> bool {
    plan.ops().any(|op| matches!(op, crate::plan::Op::EmbedGrad { .. }))
}

fn step_scalars(scalars: &Scalars, dims: Dims) -> StepScalars {
    let AdamW { lr, beta1, beta2, eps, weight_decay, clip } = scalars.optimizer;
    let t = (scalars.step + 1) as f64;
    StepScalars {
        inv_labels: scalars.inv_labels as f32,
        lora_scale: scalars.lora_scale as f32,
        step: scalars.step as u32,
        drop_threshold: scalars.drop_threshold,
        seed: scalars.seed,
        seqs: dims.seqs as u32,
        loss_rows: dims.loss_rows as u32,
        clip: if clip.is_finite() { clip } else { 0.0 },
        step_size: (lr / (1.0 - libm::pow(beta1, t))) as f32,
        correction: libm::sqrt(1.0 - libm::pow(beta2, t)) as f32,
        keep1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        keep2: (1.0 - beta2) as f32,
        eps: eps as f32,
        shrink: (1.0 - lr * weight_decay) as f32,
    }
}

/// The values of every field that this submission has.
fn padded(inputs: &Inputs, bucket: Dims, runs: bool) -> Vec<(Field, Vec<u32>)> {
    let (tokens, extra) = (inputs.dims.tokens, bucket.tokens - inputs.dims.tokens);
    let mut all = Vec::new();
    for (&input, values) in inputs.index.iter() {
        let filler = match input {
            Input::LossIndex | Input::Labels | Input::CacheRow => NONE,
            _ => 0,
        };
        let length = match input {
            Input::LossIndex | Input::Labels => bucket.loss_rows,
            Input::Samples | Input::CacheSpan => 2 * bucket.tokens,
            Input::Starts => continue,
            _ => bucket.tokens,
        };
        let mut values = values.clone();
        if input == Input::Positions {
            values.extend((0..extra).map(|i| (i % PADDING) as u32));
        }
        values.resize(length, filler);
        all.push((Field::Given(input), values));
    }
    if let Some(starts) = inputs.index.get(&Input::Starts) {
        let spans = spans(starts, tokens, bucket.tokens);
        let Tiles { queries, keys } = Tiles::longest_first(&spans);
        all.push((Field::QueryTiles, queries));
        all.push((Field::KeyTiles, keys));
        all.push((Field::Spans, spans));
    }
    if let Some(index) = inputs.index.get(&Input::LossIndex) {
        let mut rows = vec![NONE; bucket.tokens];
        for (row, &token) in index.iter().enumerate() {
            rows[token as usize] = row as u32;
        }
        all.push((Field::LossRow, rows));
    }
    if let (true, Some(ids)) = (runs, inputs.index.get(&Input::TokenIds)) {
        let (order, starts, count) = runs_of(ids);
        all.push((Field::Order, order));
        all.push((Field::Runs, starts));
        all.push((Field::RunCount, vec![count]));
    }
    all
}

/// First token and end of each token's sequence; the padding's sequences are [`PADDING`] long.
fn spans(starts: &[u32], tokens: usize, padded: usize) -> Vec<u32> {
    let mut spans = Vec::with_capacity(2 * padded);
    for pair in starts.windows(2) {
        for _ in pair[0]..pair[1] {
            spans.extend([pair[0], pair[1]]);
        }
    }
    for i in 0..padded - tokens {
        let first = tokens + i - i % PADDING;
        spans.extend([first as u32, (first + PADDING).min(padded) as u32]);
    }
    spans
}

/// Rows of a view under `dims` and the first one, inside its buffer.
pub(super) fn row_range(rows: Rows, buffer_rows: Rows, dims: &Dims) -> (usize, usize) {
    let first = match (rows, buffer_rows) {
        (Rows::Chunk(index), Rows::LossRows) => index as usize * dims.chunk,
        _ => 0,
    };
    (first, dims.rows(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Dims = Dims { tokens: 1000, loss_rows: 1000, seqs: 1000, chunk: 256 };
    const LARGE: Dims = Dims { tokens: 20_000, loss_rows: 5000, seqs: 1000, chunk: 2048 };

    #[test]
    fn buckets_hold_what_comes_and_never_pass_the_capacity() {
        for capacity in [SMALL, LARGE] {
            for n in [0, 1, 5, 16, 17, 64, 65, 500, 999, 1000, 1025, 4097, 5000, 8192, 8193, 19_999] {
                for few_rows in [false, true] {
                    let (tokens, loss_rows) = (n.min(capacity.tokens), n.min(capacity.loss_rows));
                    let dims = bucket(Dims { tokens, loss_rows, ..capacity }, capacity, few_rows);
                    assert!((tokens..=capacity.tokens).contains(&dims.tokens), "{n}: {dims:?}");
                    assert!((loss_rows..=capacity.loss_rows).contains(&dims.loss_rows), "{n}: {dims:?}");
                    assert_eq!(bucket(dims, capacity, few_rows), dims, "{n}");
                }
            }
        }
        let of = |n| bucket(Dims { tokens: n, loss_rows: n / 4, ..LARGE }, LARGE, false);
        let sizes = [1024, 1025, 8192, 8193].map(|n| (of(n).tokens, of(n).loss_rows));
        assert_eq!(sizes, [(1024, 256), (1280, 256), (8192, 2048), (8704, 2048)]);
    }

    #[test]
    fn every_bucket_is_listed() {
        for (capacity, few_rows) in [(SMALL, false), (SMALL, true), (LARGE, false), (LARGE, true)] {
            let all = buckets(capacity, few_rows);
            let has = |is: &dyn Fn(&Dims) -> bool| all.iter().any(is);
            for n in (1..=capacity.tokens).step_by(7) {
                let loss_rows = n.min(capacity.loss_rows);
                let dims = bucket(Dims { tokens: n, loss_rows, ..capacity }, capacity, few_rows);
                assert!(has(&|d| d.tokens == dims.tokens) && has(&|d| d.loss_rows == dims.loss_rows), "{n}");
            }
            assert!(all.iter().all(|&dims| bucket(dims, capacity, few_rows) == dims), "{all:?}");
        }
        assert!(buckets(Dims { tokens: 0, loss_rows: 0, ..SMALL }, false).is_empty());
    }

    #[test]
    fn padding_is_sequences_of_its_own() {
        let spans = spans(&[0, 2, 3], 3, 70);
        assert_eq!(spans[..6], [0, 2, 0, 2, 2, 3]);
        assert_eq!(spans[6..8], [3, 67]);
        assert_eq!(spans[2 * 66..2 * 68], [3, 67, 67, 70]);
        assert_eq!(spans.len(), 140);
    }
}
