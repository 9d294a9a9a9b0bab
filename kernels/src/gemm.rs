//! Matrix products on the CPU whose bits depend on neither threads nor the number of rows.
//!
//! `c = a b` or `c += a b` over strided views, through the crate `matrixmultiply`: every element is the sum, over blocks
//! of [`BLOCK`] along the inner dimension, of one chain of multiply-adds from the block's first element to its last.
//! An element's bits therefore depend on its row of `a` and its column of `b` alone. Work is split over threads by rows
//! or columns of `c`. With few rows the crate spends its time packing `b`; [`thin`] then runs the same chains in place.

use std::ops::Range;

/// Inner elements per chain, as `matrixmultiply` blocks them for both element types.
pub const BLOCK: usize = 256;

/// Most rows that take the path for few rows.
const THIN_ROWS: usize = 4;
/// Multiply-adds below which another thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 19;

/// A read-only strided matrix: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

/// The result: rows of contiguous elements, `row_stride` apart.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    pub data: &'a mut [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
}

impl<'a, T> View<'a, T> {
    /// Rows of contiguous elements, `row_stride` apart.
    #[must_use]
    pub fn rows(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        View { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose: the same elements, indices exchanged.
    #[must_use]
    pub fn t(self) -> Self {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// A row of a view whose columns are contiguous.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [T] {
        debug_assert!(self.col_stride == 1 && row < self.rows, "no such contiguous row");
        &self.data[row * self.row_stride..][..self.cols]
    }

    /// Rows `start .. start + rows`.
    #[must_use]
    pub fn slice(self, start: usize, rows: usize) -> Self {
        debug_assert!(start + rows <= self.rows, "rows outside of the view");
        View { data: &self.data[(start * self.row_stride).min(self.data.len())..], rows, ..self }
    }

    /// Columns `start .. start + cols`.
    #[must_use]
    pub fn columns(self, start: usize, cols: usize) -> Self {
        debug_assert!(start + cols <= self.cols, "columns outside of the view");
        View { data: &self.data[(start * self.col_stride).min(self.data.len())..], cols, ..self }
    }

    fn check(&self, what: &str) {
        let needed = extent(self.rows, self.cols, self.row_stride, self.col_stride);
        assert!(needed <= self.data.len(), "{what}: {needed} elements needed, {} given", self.data.len());
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// Rows of contiguous elements, `row_stride` apart.
    pub fn rows(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        ViewMut { data, rows, cols, row_stride }
    }

    #[must_use]
    pub fn row(&self, row: usize) -> &[T] {
        &self.data[row * self.row_stride..][..self.cols]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.data[row * self.row_stride..][..self.cols]
    }

    /// The same elements, to read.
    #[must_use]
    pub fn view(&self) -> View<'_, T> {
        View::rows(self.data, self.rows, self.cols, self.row_stride)
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { data: self.data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }

    /// Columns `start .. start + cols`.
    #[must_use]
    pub fn columns(self, start: usize, cols: usize) -> Self {
        debug_assert!(start + cols <= self.cols, "columns outside of the view");
        let at = start.min(self.data.len());
        ViewMut { data: &mut self.data[at..], cols, ..self }
    }

    /// The rows before `row`, and the others.
    #[must_use]
    pub fn split_at(self, row: usize) -> (Self, Self) {
        debug_assert!(row <= self.rows, "rows outside of the view");
        let at = (row * self.row_stride).min(self.data.len());
        let (above, below) = self.data.split_at_mut(at);
        let (cols, row_stride) = (self.cols, self.row_stride);
        (
            ViewMut { data: above, rows: row, cols, row_stride },
            ViewMut { data: below, rows: self.rows - row, cols, row_stride },
        )
    }
}

/// Elements from the first to the last of a strided matrix.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// `f32` or `f64`.
pub trait Element: sealed::Sealed + Copy + Send + Sync + Default + std::fmt::Debug + 'static {
    #[doc(hidden)]
    #[expect(unsafe_code, reason = "declares the raw product that `product` wraps")]
    #[expect(clippy::too_many_arguments, reason = "the signature of a matrix product")]
    /// # Safety
    /// All `m x k`, `k x n`, `m x n` elements behind the pointers and strides must be valid, those of `c` unshared.
    unsafe fn raw(
        m: usize,
        k: usize,
        n: usize,
        a: *const Self,
        a_strides: (isize, isize),
        b: *const Self,
        b_strides: (isize, isize),
        beta: bool,
        c: *mut Self,
        c_row: isize,
    );

    #[doc(hidden)]
    /// Computes rows of few; `false` when there is no such path for this type and these strides.
    fn thin(a: View<'_, Self>, b: View<'_, Self>, accumulate: bool, c: &mut Target<'_, Self>) -> bool;
}

/// A rectangle of the result that one thread owns.
#[doc(hidden)]
#[derive(Debug)]
pub struct Target<'a, T> {
    start: *mut T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    owner: std::marker::PhantomData<&'a mut T>,
}

#[expect(unsafe_code, reason = "a raw pointer must be told that it may move to another thread")]
// SAFETY: targets are disjoint rectangles of one exclusively borrowed slice.
unsafe impl<T: Send> Send for Target<'_, T> {}

impl<T> Target<'_, T> {
    #[expect(
        unsafe_code,
        reason = "rectangles of one matrix interleave in memory, so slices can't describe them"
    )]
    fn row(&mut self, row: usize, cols: Range<usize>) -> &mut [T] {
        assert!(row < self.rows && cols.end <= self.cols && cols.start <= cols.end);
        // SAFETY: inside the rectangle, which lies inside the borrowed slice and is owned by this target alone.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride + cols.start), cols.len())
        }
    }
}

/// `c = a b`, or `c += a b` with `accumulate`, on up to `threads` threads.
///
/// # Panics
/// When shapes disagree or a view reaches past its data: a mistake of the caller, never of a user's input.
pub fn product<T: Element>(
    a: View<'_, T>,
    b: View<'_, T>,
    accumulate: bool,
    c: &mut ViewMut<'_, T>,
    threads: usize,
) {
    assert!(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols, "shapes of a matrix product disagree");
    assert!(c.rows <= 1 || c.row_stride >= c.cols, "rows of a result overlap");
    a.check("left factor");
    b.check("right factor");
    let needed = extent(c.rows, c.cols, c.row_stride, 1);
    assert!(needed <= c.data.len(), "result: {needed} elements needed, {} given", c.data.len());
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let work = a.rows * a.cols * b.cols;
    let threads = threads.min(work / WORTH_A_THREAD).max(1);
    let by_rows = c.rows >= c.cols.min(32 * threads);
    let parts = split(if by_rows { c.rows } else { c.cols }, threads);
    let mut jobs = Vec::with_capacity(parts.len());
    for part in parts {
        let (rows, cols) = if by_rows { (part, 0..c.cols) } else { (0..c.rows, part) };
        jobs.push((
            part_of(a, rows.clone(), 0..a.cols),
            part_of(b, 0..b.rows, cols.clone()),
            rect(c, rows, cols),
        ));
    }
    let mut first = None;
    std::thread::scope(|scope| {
        for (i, (a, b, mut target)) in jobs.into_iter().enumerate() {
            if i == 0 {
                first = Some((a, b, target));
            } else {
                scope.spawn(move || one(a, b, accumulate, &mut target));
            }
        }
        if let Some((a, b, mut target)) = first.take() {
            one(a, b, accumulate, &mut target);
        }
    });
}

/// Even parts whose starts are multiples of 16, so that vector kernels meet whole tiles.
fn split(n: usize, parts: usize) -> Vec<Range<usize>> {
    let each = n.div_ceil(parts).next_multiple_of(16);
    (0..n).step_by(each).map(|start| start..(start + each).min(n)).collect()
}

fn part_of<T>(view: View<'_, T>, rows: Range<usize>, cols: Range<usize>) -> View<'_, T> {
    let start = (rows.start * view.row_stride + cols.start * view.col_stride).min(view.data.len());
    View { data: &view.data[start..], rows: rows.len(), cols: cols.len(), ..view }
}

#[expect(
    unsafe_code,
    reason = "rectangles of one matrix interleave in memory, so slices can't describe them"
)]
fn rect<'a, T>(c: &mut ViewMut<'a, T>, rows: Range<usize>, cols: Range<usize>) -> Target<'a, T> {
    // SAFETY: `product` has checked that the whole of `c` lies inside its data, and hands out disjoint parts.
    let start = unsafe { c.data.as_mut_ptr().add(rows.start * c.row_stride + cols.start) };
    Target {
        start,
        rows: rows.len(),
        cols: cols.len(),
        row_stride: c.row_stride,
        owner: std::marker::PhantomData,
    }
}

fn one<T: Element>(a: View<'_, T>, b: View<'_, T>, accumulate: bool, c: &mut Target<'_, T>) {
    if a.rows <= THIN_ROWS && T::thin(a, b, accumulate, c) {
        return;
    }
    #[expect(unsafe_code, reason = "matrixmultiply's interface is raw pointers")]
    // SAFETY: `product` has checked all extents; `c` is this thread's own rectangle.
    unsafe {
        T::raw(
            a.rows,
            a.cols,
            b.cols,
            a.data.as_ptr(),
            (a.row_stride as isize, a.col_stride as isize),
            b.data.as_ptr(),
            (b.row_stride as isize, b.col_stride as isize),
            accumulate,
            c.start,
            c.row_stride as isize,
        );
    }
}

#[expect(unsafe_code, reason = "matrixmultiply's interface is raw pointers")]
impl Element for f32 {
    unsafe fn raw(
        m: usize,
        k: usize,
        n: usize,
        a: *const Self,
        (rsa, csa): (isize, isize),
        b: *const Self,
        (rsb, csb): (isize, isize),
        beta: bool,
        c: *mut Self,
        c_row: isize,
    ) {
        let beta = if beta { 1.0 } else { 0.0 };
        // SAFETY: the caller's promise.
        unsafe { matrixmultiply::sgemm(m, k, n, 1.0, a, rsa, csa, b, rsb, csb, beta, c, c_row, 1) }
    }

    fn thin(a: View<'_, f32>, b: View<'_, f32>, accumulate: bool, c: &mut Target<'_, f32>) -> bool {
        thin::product(a, b, accumulate, c)
    }
}

#[expect(unsafe_code, reason = "matrixmultiply's interface is raw pointers")]
impl Element for f64 {
    unsafe fn raw(
        m: usize,
        k: usize,
        n: usize,
        a: *const Self,
        (rsa, csa): (isize, isize),
        b: *const Self,
        (rsb, csb): (isize, isize),
        beta: bool,
        c: *mut Self,
        c_row: isize,
    ) {
        let beta = if beta { 1.0 } else { 0.0 };
        // SAFETY: the caller's promise.
        unsafe { matrixmultiply::dgemm(m, k, n, 1.0, a, rsa, csa, b, rsb, csb, beta, c, c_row, 1) }
    }

    fn thin(_: View<'_, f64>, _: View<'_, f64>, _: bool, _: &mut Target<'_, f64>) -> bool {
        false
    }
}

/// Products with few rows, in the order of sums of `matrixmultiply`.
mod thin {
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

    /// Needs `b` contiguous along its columns; otherwise `false`, and nothing is written.
    pub(super) fn product(
        a: View<'_, f32>,
        b: View<'_, f32>,
        accumulate: bool,
        c: &mut Target<'_, f32>,
    ) -> bool {
        if b.col_stride != 1 {
            return false;
        }
        match rounding() {
            Rounding::Fused => fused(a, b, accumulate, c),
            Rounding::Separate => all_rows(a, b, accumulate, c, |x, y, z| x * y + z),
        }
        true
    }

    #[cfg(target_arch = "x86_64")]
    fn fused(a: View<'_, f32>, b: View<'_, f32>, accumulate: bool, c: &mut Target<'_, f32>) {
        #[target_feature(enable = "avx2,fma")]
        fn with_features(a: View<'_, f32>, b: View<'_, f32>, accumulate: bool, c: &mut Target<'_, f32>) {
            all_rows(a, b, accumulate, c, f32::mul_add);
        }
        #[target_feature(enable = "avx512f,avx2,fma")]
        fn with_wide_features(a: View<'_, f32>, b: View<'_, f32>, accumulate: bool, c: &mut Target<'_, f32>) {
            all_rows(a, b, accumulate, c, f32::mul_add);
        }
        #[expect(unsafe_code, reason = "enters code compiled for features that were just detected")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            // SAFETY: detected above (every processor with AVX-512 has AVX2).
            unsafe { with_wide_features(a, b, accumulate, c) }
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: detected above.
            unsafe { with_features(a, b, accumulate, c) }
        } else {
            all_rows(a, b, accumulate, c, f32::mul_add);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn run(a: View<'_, f32>, b: View<'_, f32>, start: Option<&[f32]>, threads: usize) -> Vec<f32> {
        let mut c = start.map_or_else(|| vec![f32::NAN; a.rows * b.cols], <[f32]>::to_vec);
        let (rows, cols) = (a.rows, b.cols);
        let mut out = ViewMut { data: &mut c, rows, cols, row_stride: cols };
        product(a, b, start.is_some(), &mut out, threads);
        c
    }

    #[test]
    fn bits_depend_on_neither_threads_nor_the_number_of_rows() {
        for (m, k, n) in [(37, 700, 130), (5, 256, 64), (64, 257, 200), (200, 31, 33), (90, 1024, 300)] {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let plain = View::rows(&b, k, n, n);
            let stored_transposed = View::rows(&b, n, k, k).t();
            for b in [plain, stored_transposed] {
                let start = noise(m * n, 3);
                for start in [None, Some(&start[..])] {
                    let whole = run(View::rows(&a, m, k, k), b, start, 1);
                    for threads in [2, 3] {
                        assert_eq!(whole, run(View::rows(&a, m, k, k), b, start, threads));
                    }
                    for rows in [1, 2, 3, 4, 5, 7, 16] {
                        for first in (0..m - rows.min(m)).step_by(rows + 3) {
                            let part = View::rows(&a[first * k..], rows, k, k);
                            let start = start.map(|s| &s[first * n..(first + rows) * n]);
                            let got = run(part, b, start, 1);
                            assert_eq!(
                                got[..],
                                whole[first * n..(first + rows) * n],
                                "{rows} rows of {m}x{k}x{n}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn equals_the_definition_in_f64() {
        let (m, k, n) = (9, 300, 17);
        let a: Vec<f64> = noise(m * k, 4).into_iter().map(f64::from).collect();
        let b: Vec<f64> = noise(k * n, 5).into_iter().map(f64::from).collect();
        let mut c = vec![1.0; m * n];
        let mut out = ViewMut { data: &mut c, rows: m, cols: n, row_stride: n };
        product(View::rows(&a, m, k, k), View::rows(&b, k, n, n), true, &mut out, 2);
        for i in 0..m {
            for j in 0..n {
                let want = 1.0 + (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f64>();
                assert!((c[i * n + j] - want).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros() {
        let mut c = [5.0f32; 6];
        let mut out = ViewMut { data: &mut c, rows: 2, cols: 3, row_stride: 3 };
        product(View::rows(&[], 2, 0, 0), View::rows(&[], 0, 3, 3), false, &mut out, 1);
        assert_eq!(c, [0.0; 6]);
    }
}
