//! Products with few rows or few columns, in the order of sums of `matrixmultiply`.

use super::{BLOCK, Target, View};

/// Whether one multiply-add rounds once, as the crate's kernel on this machine does it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Fused,
    #[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "always fused there"))]
    Separate,
}

fn rounding() -> Rounding {
    #[cfg(target_arch = "x86_64")]
    {
        let fused = is_x86_feature_detected!("avx512f")
            || (is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2"));
        if fused { Rounding::Fused } else { Rounding::Separate }
    }
    #[cfg(target_arch = "aarch64")]
    {
        Rounding::Fused
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Rounding::Separate
    }
}

/// Needs `b` contiguous along its columns.
pub(super) fn product(a: View<'_, f32>, b: View<'_, f32>, accumulate: bool, c: &mut Target<'_, f32>) {
    match rounding() {
        Rounding::Fused => fused(a, b, accumulate, c),
        Rounding::Separate => all_rows(a, b, accumulate, c, |x, y, z| x * y + z),
    }
}

#[cfg(target_arch = "x86_64")]
fn fused(a: View<'_, f32>, b: View<'_, f32>, accumulate: bool, c: &mut Target<'_, f32>) {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return all_rows(a, b, accumulate, c, f32::mul_add);
    }
    #[expect(unsafe_code, reason = "vector instructions that were just detected")]
    // SAFETY: the features are there, and the caller has checked the extents of all three operands.
    unsafe {
        vector::product(a, b, accumulate, c);
    }
}

/// The chains of eight columns at a time.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions take pointers")]
mod vector {
    use crate::gemm::{BLOCK, Target, View};
    use std::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    use std::ops::Range;

    /// # Safety
    /// AVX2 and FMA must be present, and every element of the views must lie inside their data.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn product(
        a: View<'_, f32>,
        b: View<'_, f32>,
        accumulate: bool,
        c: &mut Target<'_, f32>,
    ) {
        let wide = b.cols >= WIDE;
        let large = wide && b.rows * b.cols >= LARGE;
        let mut row = 0;
        while row < a.rows {
            // SAFETY: the caller's promise; rows stay below `a.rows`.
            unsafe {
                match a.rows - row {
                    1 if wide => streams::<1, 8>(a, b, accumulate, c, row),
                    1 => columns::<1, 8>(a, b, accumulate, c, row),
                    2 | 3 if wide => streams::<2, 4>(a, b, accumulate, c, row),
                    2 | 3 => columns::<2, 4>(a, b, accumulate, c, row),
                    _ if large => streams::<4, 2>(a, b, accumulate, c, row),
                    _ => columns::<4, 2>(a, b, accumulate, c, row),
                }
            }
            row += match a.rows - row {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn columns<const R: usize, const V: usize>(
        a: View<'_, f32>,
        b: View<'_, f32>,
        accumulate: bool,
        c: &mut Target<'_, f32>,
        row: usize,
    ) {
        let mut j = 0;
        // SAFETY: `j` plus the tile's width stays within the columns.
        unsafe {
            while j + 8 * V <= b.cols {
                tile::<R, V>(a, b, accumulate, c, (row, j));
                j += 8 * V;
            }
            while j + 8 <= b.cols {
                tile::<R, 1>(a, b, accumulate, c, (row, j));
                j += 8;
            }
        }
        while j < b.cols {
            super::tile::<R, 1>(a, b, accumulate, c, (row, j), f32::mul_add);
            j += 1;
        }
    }

    /// Columns from which on reading `b` row by row pays for one or two rows, and elements for four: no cache holds it then.
    const WIDE: usize = 64;
    const LARGE: usize = 1 << 20;
    /// Columns whose sums wait in the nearest cache while rows of `b` are read.
    const WAITING: usize = 512;

    /// `R` rows of `c`, reading `K` rows of `b` at a time from left to right: that is how memory is fast. The sums of a block
    /// wait in a buffer, each its own chain as everywhere.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn streams<const R: usize, const K: usize>(
        a: View<'_, f32>,
        b: View<'_, f32>,
        accumulate: bool,
        c: &mut Target<'_, f32>,
        row: usize,
    ) {
        let mut sums = [[0f32; WAITING]; R];
        let vectors = b.cols - b.cols % 8;
        for start in (0..vectors).step_by(WAITING) {
            let cols = start..(start + WAITING).min(vectors);
            for block in (0..a.cols.max(1)).step_by(BLOCK) {
                let end = (block + BLOCK).min(a.cols);
                let whole = block + (end - block) / K * K;
                for sums in &mut sums {
                    sums[..cols.len()].fill(0.0);
                }
                // SAFETY: inner indices stay below `a.cols`, columns below `b.cols`.
                unsafe {
                    for k in (block..whole).step_by(K) {
                        stream::<R, K>(a, b, (row, k), cols.clone(), &mut sums);
                    }
                    for k in whole..end {
                        stream::<R, 1>(a, b, (row, k), cols.clone(), &mut sums);
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (out, &sum) in c.row(row + r, cols.clone()).iter_mut().zip(sums) {
                        *out = if block == 0 && !accumulate { sum } else { *out + sum };
                    }
                }
            }
        }
        for j in vectors..b.cols {
            super::tile::<R, 1>(a, b, accumulate, c, (row, j), f32::mul_add);
        }
    }

    /// Adds `K` inner elements to the sums of `cols`, whose number is a multiple of 8.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn stream<const R: usize, const K: usize>(
        a: View<'_, f32>,
        b: View<'_, f32>,
        (row, k): (usize, usize),
        cols: Range<usize>,
        sums: &mut [[f32; WAITING]; R],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut x = [[_mm256_setzero_ps(); K]; R];
            for (r, x) in x.iter_mut().enumerate() {
                for (i, x) in x.iter_mut().enumerate() {
                    let at = (row + r) * a.row_stride + (k + i) * a.col_stride;
                    *x = _mm256_broadcast_ss(&*a.data.as_ptr().add(at));
                }
            }
            let values = b.data.as_ptr().add(k * b.row_stride + cols.start);
            for j in (0..cols.len()).step_by(8) {
                let mut y = [_mm256_setzero_ps(); K];
                for (i, y) in y.iter_mut().enumerate() {
                    *y = _mm256_loadu_ps(values.add(i * b.row_stride + j));
                }
                for (x, sums) in x.iter().zip(sums.iter_mut()) {
                    let at = sums.as_mut_ptr().add(j);
                    let mut sum = _mm256_loadu_ps(at);
                    for (&x, &y) in x.iter().zip(&y) {
                        sum = _mm256_fmadd_ps(x, y, sum);
                    }
                    _mm256_storeu_ps(at, sum);
                }
            }
        }
    }

    /// The chains of one block. Apart from [`tile`], so that sums stay in registers until the end.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn chains<const R: usize, const V: usize>(
        a: View<'_, f32>,
        b: View<'_, f32>,
        inner: Range<usize>,
        (row, col): (usize, usize),
    ) -> [[__m256; V]; R] {
        let mut sums: [[__m256; V]; R] = [[_mm256_setzero_ps(); V]; R];
        for k in inner {
            // SAFETY: `k` is an inner index, `col..col + 8 V` are columns, `row..row + R` are rows.
            unsafe {
                let values = b.data.as_ptr().add(k * b.row_stride + col);
                let x = a.data.as_ptr().add(row * a.row_stride + k * a.col_stride);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*x.add(r * a.row_stride));
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm256_fmadd_ps(x, _mm256_loadu_ps(values.add(8 * v)), *sum);
                    }
                }
            }
        }
        sums
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const R: usize, const V: usize>(
        a: View<'_, f32>,
        b: View<'_, f32>,
        accumulate: bool,
        c: &mut Target<'_, f32>,
        (row, col): (usize, usize),
    ) {
        for block in (0..a.cols.max(1)).step_by(BLOCK) {
            // SAFETY: the caller's promise.
            let sums = unsafe { chains::<R, V>(a, b, block..(block + BLOCK).min(a.cols), (row, col)) };
            for (r, sums) in sums.iter().enumerate() {
                let out = c.row(row + r, col..col + 8 * V);
                for (out, &sum) in out.chunks_exact_mut(8).zip(sums) {
                    let first = block == 0 && !accumulate;
                    // SAFETY: eight elements of the row.
                    unsafe {
                        let before = _mm256_loadu_ps(out.as_ptr());
                        let sum = if first { sum } else { _mm256_add_ps(before, sum) };
                        _mm256_storeu_ps(out.as_mut_ptr(), sum);
                    }
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fused(a: View<'_, f32>, b: View<'_, f32>, accumulate: bool, c: &mut Target<'_, f32>) {
    all_rows(a, b, accumulate, c, f32::mul_add);
}

#[inline(always)]
fn all_rows(
    a: View<'_, f32>,
    b: View<'_, f32>,
    accumulate: bool,
    c: &mut Target<'_, f32>,
    fma: impl Fn(f32, f32, f32) -> f32 + Copy,
) {
    let mut row = 0;
    while row < a.rows {
        match a.rows - row {
            1 => columns::<1, 64>(a, b, accumulate, c, row, fma),
            2 | 3 => columns::<2, 64>(a, b, accumulate, c, row, fma),
            _ => columns::<4, 32>(a, b, accumulate, c, row, fma),
        }
        row += match a.rows - row {
            1 => 1,
            2 | 3 => 2,
            _ => 4,
        };
    }
}

#[inline(always)]
fn columns<const R: usize, const W: usize>(
    a: View<'_, f32>,
    b: View<'_, f32>,
    accumulate: bool,
    c: &mut Target<'_, f32>,
    row: usize,
    fma: impl Fn(f32, f32, f32) -> f32 + Copy,
) {
    let mut j = 0;
    while j + W <= b.cols {
        tile::<R, W>(a, b, accumulate, c, (row, j), fma);
        j += W;
    }
    while j + 16 <= b.cols {
        tile::<R, 16>(a, b, accumulate, c, (row, j), fma);
        j += 16;
    }
    while j < b.cols {
        tile::<R, 1>(a, b, accumulate, c, (row, j), fma);
        j += 1;
    }
}

#[inline(always)]
fn tile<const R: usize, const W: usize>(
    a: View<'_, f32>,
    b: View<'_, f32>,
    accumulate: bool,
    c: &mut Target<'_, f32>,
    (row, col): (usize, usize),
    fma: impl Fn(f32, f32, f32) -> f32 + Copy,
) {
    let inner = a.cols;
    for block in (0..inner.max(1)).step_by(BLOCK) {
        let mut sums = [[0.0f32; W]; R];
        for k in block..(block + BLOCK).min(inner) {
            let start = k * b.row_stride + col;
            let values: &[f32; W] = match b.data[start..start + W].try_into() {
                Ok(values) => values,
                Err(_) => return,
            };
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = a.data[(row + r) * a.row_stride + k * a.col_stride];
                for (sum, &y) in sums.iter_mut().zip(values) {
                    *sum = fma(x, y, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let out = c.row(row + r, col..col + W);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = if block == 0 && !accumulate { *sum } else { *out + *sum };
            }
        }
    }
}
