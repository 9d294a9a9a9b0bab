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
use cudarc::cublaslt::{result as lt, sys};

/// Inner dimensions up to this are short.
const SHORT: usize = 2048;
/// How often a multiprocessor takes a tile at least.
const TURNS: f32 = 2.5;
/// Elements of the tiles that are wanted: 128 x 128 to 128 x 176, about.
const TILE: std::ops::Range<f32> = 15_000.0..23_000.0;
/// Algorithms that the library is asked for.
const ASKED: usize = 8;

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
