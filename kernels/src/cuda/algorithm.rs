//! Which of the library's algorithms computes a product: a function of its shape and of what the library offers, so that the
//! choice is the same each time.
//!
//! The library's own first choice takes tiles of 256 x 128 and the like. Where the inner dimension is short, writing such
//! tiles takes as long as a good part of computing them, and nothing hides it; of tiles of up to 128 x 176, multiprocessors
//! hold two and write one while they compute the other. On an H200, of 2,048, 4,096, 8,192 and 16,384 tokens and the products
//! of Qwen2.5-0.5B and 1.5B, its first choice among those is up to 20 % faster than its first of all, 8 % in the middle, and
//! at worst 1.3 % slower. All those that were compared gave the same bits.

use super::gpu::Gpu;
use super::matmul::Form;
use super::memory::{Dtype, Tensor};
use cudarc::cublaslt::{result as lt, sys};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Inner dimensions up to this are short.
const SHORT: usize = 2048;
/// How often a multiprocessor takes a tile at least.
const TURNS: f32 = 2.5;
/// Elements of the tiles that are wanted: 128 x 128 to 128 x 176, about.
const TILE: std::ops::Range<f32> = 15_000.0..23_000.0;
/// Algorithms that the library is asked for.
const ASKED: usize = 8;

/// An algorithm as the library describes it: it serves every product of the same question.
pub(super) type Algorithm = sys::cublasLtMatmulAlgo_t;

/// All that a choice depends on, beside the device and what every product is allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    pub form: Form,
    /// Rows, columns and inner dimension.
    pub sizes: (usize, usize, usize),
    /// The number of rows that the algorithm is chosen for; `None`: its own.
    pub rows: Option<usize>,
    /// Number of products, and their distances in both factors and the result.
    pub batch: (usize, [usize; 3]),
    /// Type, pitch and alignment of both factors, the addend and the result.
    pub views: [(Dtype, usize, u32); 4],
    /// Type and alignment.
    pub bias: Option<(Dtype, u32)>,
}

/// What was chosen on one device so far: a model's layers, and its plans, ask the same questions over and over.
#[derive(Debug, Default)]
pub(crate) struct Algorithms(Mutex<BTreeMap<Question, Algorithm>>);

impl Algorithms {
    /// The answer to a question, by `ask` when it is a new one.
    ///
    /// # Errors
    /// Those of `ask`, which are forgotten.
    pub(super) fn of<E>(
        &self,
        question: Question,
        ask: impl FnOnce() -> Result<Algorithm, E>,
    ) -> Result<Algorithm, E> {
        // Whoever panicked with the lock had changed nothing, or added a whole answer.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&question) {
            return Ok(*known);
        }
        let algorithm = ask()?;
        lock().insert(question, algorithm);
        Ok(algorithm)
    }

    /// Number of different questions.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// The greatest power of two, up to 256, that a view's address is a multiple of.
pub(super) fn alignment(t: &Tensor) -> u32 {
    [256, 128, 64, 32, 16, 8, 4].into_iter().find(|&n| t.pointer().is_multiple_of(n)).unwrap_or(2) as u32
}

/// The algorithms that the library offers, best first.
///
/// # Errors
/// When there is none.
#[expect(unsafe_code, reason = "asks the library")]
pub(super) fn offered(
    gpu: &Gpu,
    desc: sys::cublasLtMatmulDesc_t,
    [x, y, added, z]: [sys::cublasLtMatrixLayout_t; 4],
    pref: sys::cublasLtMatmulPreference_t,
) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, lt::CublasError> {
    let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(ASKED);
    let (mut count, wanted) = (0, ASKED as i32);
    // SAFETY: all descriptors are alive; the library writes at most `wanted` results, plain numbers, and says how many.
    unsafe {
        let handle = gpu.inner.handle;
        let results = found.as_mut_ptr();
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            desc,
            x,
            y,
            added,
            z,
            pref,
            wanted,
            results,
            &raw mut count,
        )
        .result()?;
        found.set_len(ASKED.min(count as usize));
    }
    found.retain(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
    match found.is_empty() {
        true => Err(lt::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
        false => Ok(found),
    }
}

/// Which of the algorithms that are offered computes a product `m x n x k`; `waves`: how often each of them fills the device.
pub(super) fn preferred(
    waves: &[f32],
    form: Form,
    (m, n, k): (usize, usize, usize),
    multiprocessors: u32,
) -> usize {
    let tile = |waves: f32| (m as f32 * n as f32) / (waves * multiprocessors as f32);
    let wide = |&first: &f32| first > TURNS && tile(first) >= TILE.end;
    if form == Form::Tn || k > SHORT || !waves.first().is_some_and(wide) {
        return 0;
    }
    waves.iter().position(|&waves| TILE.contains(&tile(waves))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_asked_once_and_any_other_anew() {
        let view = (Dtype::Bf16, 64, 256);
        let first = Question {
            form: Form::Nt,
            sizes: (8, 16, 64),
            rows: None,
            batch: (1, [0; 3]),
            views: [view; 4],
            bias: None,
        };
        let mut all = vec![first.clone()];
        all.push(Question { form: Form::Nn, ..first.clone() });
        for sizes in [(9, 16, 64), (8, 17, 64), (8, 16, 65)] {
            all.push(Question { sizes, ..first.clone() });
        }
        all.push(Question { rows: Some(8), ..first.clone() });
        all.push(Question { batch: (2, [0; 3]), ..first.clone() });
        all.push(Question { batch: (1, [0, 1, 0]), ..first.clone() });
        for i in 0..4 {
            for other in [(Dtype::F32, 64, 256), (Dtype::Bf16, 72, 256), (Dtype::Bf16, 64, 16)] {
                let mut views = first.views;
                views[i] = other;
                all.push(Question { views, ..first.clone() });
            }
        }
        all.push(Question { bias: Some((Dtype::Bf16, 256)), ..first.clone() });
        all.push(Question { bias: Some((Dtype::Bf16, 16)), ..first.clone() });
        let algorithms = Algorithms::default();
        assert_eq!(algorithms.of(first, || Err("refused")), Err("refused"), "a failure is no answer");
        for _ in 0..2 {
            for (n, question) in all.iter().enumerate() {
                let answer = Algorithm { data: [n as u64; 8] };
                let given = algorithms.of(question.clone(), || match algorithms.count() == n {
                    true => Ok(answer),
                    false => Err("asked again"),
                });
                assert_eq!(given, Ok(answer), "{question:?}");
            }
        }
        assert_eq!(algorithms.count(), all.len());
    }

    #[test]
    fn small_tiles_are_taken_where_writing_them_weighs() {
        let waves = [3.76, 4.61, 4.61, 6.79, 7.48, 10.55];
        assert_eq!(preferred(&waves, Form::Nt, (2048, 9728, 960), 132), 3);
        assert_eq!(preferred(&waves, Form::Nt, (2048, 9728, 2049), 132), 0, "a long inner dimension");
        assert_eq!(preferred(&waves, Form::Tn, (2048, 9728, 960), 132), 0, "a gradient by a weight");
        assert_eq!(preferred(&[1.94, 3.84], Form::Nn, (2048, 4928, 896), 132), 0, "few turns");
        assert_eq!(preferred(&[7.76, 9.45, 9.7], Form::Nn, (8192, 4928, 896), 132), 0, "no such tile");
        assert_eq!(preferred(&[7.76, 18.91], Form::Nt, (16_384, 1152, 960), 132), 0, "the first is small");
        assert_eq!(preferred(&[0.0], Form::Nt, (1, 1, 1), 132), 0);
        assert_eq!(preferred(&[], Form::Nt, (1, 1, 1), 132), 0);
    }
}
