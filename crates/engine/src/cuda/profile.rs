//! Where a program's time goes, and what the device could do at most.

use super::{Cuda, CudaProgram};
use crate::backend::{BackendError, Inputs};
use crate::plan::{Heads, Input, Op};
use kernels::cuda::{Dtype, Event, Form, Matmul, Piece, Tensor, Work, bf16_bits, ops, run_all};
use model::philox::{Purpose, Stream};
use std::collections::BTreeMap;

/// Device time of one kind of work in one run of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkTime {
    /// The kernel's name.
    pub name: String,
    pub launches: usize,
    /// Sum over the launches.
    pub ms: f64,
    /// What the launches compute, and what they move when everything is read and written once.
    pub flops: f64,
    pub bytes: f64,
}

/// What large pieces of work reach on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// A product of bfloat16 matrices: operations in a second.
    pub flops_per_s: f64,
    /// A sum of two matrices: bytes read and written in a second.
    pub bytes_per_s: f64,
}

/// Runs of each launch between two events.
const REPEATS: usize = 5;
/// Runs by which a limit is found, the best of so many counts of them.
const LIMIT_RUNS: usize = 10;
/// Rows and columns of the matrices that limits are found with; less where memory is short.
const SIDES: [usize; 3] = [8192, 4096, 2048];

/// Milliseconds of several runs in a row.
fn time(gpu: &Cuda, runs: usize, run: impl Fn() -> Result<(), BackendError>) -> Result<f64, BackendError> {
    let (start, end) = (Event::new(&gpu.gpu)?, Event::new(&gpu.gpu)?);
    start.record()?;
    for _ in 0..runs {
        run()?;
    }
    end.record()?;
    end.wait()?;
    Ok(f64::from(end.ms_since(&start)?) / runs as f64)
}

/// Operations of an attention over so many pairs of query and key: two for each element of a head and product.
fn attention(op: &Op, pairs: f64) -> Option<f64> {
    let (heads, products): (Heads, f64) = match *op {
        Op::AttentionPacked { heads, .. } | Op::AttentionPaged { heads, .. } => (heads, 2.0),
        Op::AttentionGradQ { heads, .. } => (heads, 3.0),
        Op::AttentionGradKv { heads, .. } => (heads, 4.0),
        _ => return None,
    };
    Some(2.0 * products * pairs * (heads.query * heads.dim) as f64)
}

impl Cuda {
    /// Times every launch of a program by itself, repeated back to back; longest first. Gradients and activations are
    /// garbage afterwards.
    ///
    /// # Errors
    /// When the device fails.
    pub fn profile(&mut self, program: &CudaProgram, inputs: &Inputs) -> Result<Vec<WorkTime>, BackendError> {
        let dims = self.dims(program, inputs);
        self.prepare(program, inputs, dims)?;
        let pieces = self.lower(program, dims, true)?;
        let plan_ops: Vec<&Op> = program.plan.ops().collect();
        let pairs = pairs(inputs);
        run_all(&self.gpu, pieces.iter().map(|(_, piece)| &piece.work))?;
        let mut times: BTreeMap<String, WorkTime> = BTreeMap::new();
        for (done, Piece { work, .. }) in &pieces {
            let ms = time(self, REPEATS, || Ok(work.run()?))?;
            let name = work.name().to_owned();
            let empty = WorkTime { name: name.clone(), launches: 0, ms: 0.0, flops: 0.0, bytes: 0.0 };
            let found = times.entry(name).or_insert(empty);
            let counted = done.checked_sub(1).and_then(|n| attention(plan_ops.get(n)?, pairs));
            found.launches += 1;
            found.ms += ms;
            found.flops += counted.unwrap_or(work.cost().flops);
            found.bytes += work.cost().bytes;
        }
        Ok(sorted(times.into_values().collect()))
    }

    /// What the device reaches on large matrices; `None`: there is no memory for them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn limits(&self) -> Result<Option<Limits>, BackendError> {
        for side in SIDES {
            match self.limits_at(side) {
                Err(e) if e.is_out_of_memory() => {}
                found => return found.map(Some),
            }
        }
        Ok(None)
    }

    fn limits_at(&self, side: usize) -> Result<Limits, BackendError> {
        // What tensor cores draw, and so their clock, depends on the values: equal ones would be too fast.
        let noise = noise();
        let matrix = |what| -> Result<Tensor, BackendError> {
            let bytes = side * side * Dtype::Bf16.bytes();
            let memory = self.gpu.alloc(bytes, what)?;
            for start in (0..bytes).step_by(noise.len()) {
                memory.write(start, &noise[..noise.len().min(bytes - start)])?;
            }
            Ok(memory.dense(side, side, Dtype::Bf16)?)
        };
        let (a, b, c) = (matrix("a factor")?, matrix("a factor")?, matrix("a product")?);
        let product = Work::from(Matmul::new(&self.workspace, Form::Nt, (&a, &b, &c), false)?);
        let sum = ops::elementwise::add(&a, &b, &c)?;
        let best = |work: &Work| -> Result<f64, BackendError> {
            let mut best = f64::INFINITY;
            for _ in 0..LIMIT_RUNS {
                best = best.min(time(self, REPEATS, || Ok(work.run()?))?);
            }
            Ok(best / 1e3)
        };
        let elements = (side * side) as f64;
        Ok(Limits {
            flops_per_s: 2.0 * elements * side as f64 / best(&product)?,
            bytes_per_s: 3.0 * elements * Dtype::Bf16.bytes() as f64 / best(&sum)?,
        })
    }
}

/// Four megabytes of bfloat16 numbers between -1 and 1.
fn noise() -> Vec<u8> {
    let stream = Stream::new(0, Purpose::Weights, [0, 0, 0]);
    let value = |i: u64| 2.0 * stream.uniform_at(i) - 1.0;
    (0..2 << 20).flat_map(|i| bf16_bits(value(i)).to_le_bytes()).collect()
}

/// Longest first.
fn sorted(mut all: Vec<WorkTime>) -> Vec<WorkTime> {
    all.sort_by(|a, b| b.ms.total_cmp(&a.ms).then_with(|| a.name.cmp(&b.name)));
    all
}

/// The times of several programs, kind by kind; longest first.
pub(crate) fn together(all: impl IntoIterator<Item = WorkTime>) -> Vec<WorkTime> {
    let mut times: BTreeMap<String, WorkTime> = BTreeMap::new();
    for time in all {
        match times.get_mut(&time.name) {
            None => {
                times.insert(time.name.clone(), time);
            }
            Some(found) => {
                found.launches += time.launches;
                found.ms += time.ms;
                found.flops += time.flops;
                found.bytes += time.bytes;
            }
        }
    }
    sorted(times.into_values().collect())
}

/// Pairs of a query and a key that it sees.
fn pairs(inputs: &Inputs) -> f64 {
    let packed = |starts: &Vec<u32>| {
        let pairs = |pair: &[u32]| {
            let n = f64::from(pair[1] - pair[0]);
            n * (n + 1.0) / 2.0
        };
        starts.windows(2).map(pairs).sum::<f64>()
    };
    let paged =
        |spans: &Vec<u32>| spans.as_chunks::<2>().0.iter().map(|&[_, rows]| f64::from(rows)).sum::<f64>();
    let index = &inputs.index;
    index.get(&Input::Starts).map(packed).or_else(|| index.get(&Input::CacheSpan).map(paged)).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn inputs(input: Input, values: Vec<u32>) -> Inputs {
        let optimizer =
            crate::api::AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: 0.0 };
        let scalars = crate::backend::Scalars {
            inv_labels: 0.0,
            lora_scale: 0.0,
            step: 0,
            seed: 0,
            drop_threshold: 0,
            optimizer,
        };
        let dims = crate::plan::Dims { tokens: 0, loss_rows: 0, seqs: 0, chunk: 1 };
        Inputs { dims, index: Arc::new(BTreeMap::from([(input, values)])), scalars }
    }

    #[test]
    fn pairs_are_those_that_the_mask_leaves() {
        assert_eq!(pairs(&inputs(Input::Starts, vec![0, 3, 4, 9])), 6.0 + 1.0 + 15.0);
        assert_eq!(pairs(&inputs(Input::CacheSpan, vec![0, 3, 7, 2])), 5.0);
        assert_eq!(pairs(&inputs(Input::TokenIds, vec![1])), 0.0);
    }

    #[test]
    fn times_of_one_kind_are_added() {
        let time =
            |name: &str, ms| WorkTime { name: name.to_owned(), launches: 1, ms, flops: 2.0, bytes: 3.0 };
        let all = together([time("a", 1.0), time("b", 1.5), time("a", 1.0)]);
        assert_eq!((all[0].name.as_str(), all[0].launches, all[0].ms, all[0].flops), ("a", 2, 2.0, 4.0));
        assert_eq!((all[1].name.as_str(), all[1].bytes), ("b", 3.0));
    }
}
