//! Matrix products on the CPU whose bits depend on neither threads nor the number of rows.
//!
//! `c = a b` or `c += a b` over strided views, through the crate `matrixmultiply`: every element is the sum, over blocks
//! of [`BLOCK`] along the inner dimension, of one chain of multiply-adds from the block's first element to its last.
//! An element's bits therefore depend on its row of `a` and its column of `b` alone. Work is split over threads by rows
//! or columns of `c`. With few rows or few columns the crate spends its time packing the other factor; the module `thin`
//! then runs the same chains in place.

#[cfg(test)]
mod tests;
mod thin;

use std::ops::Range;

/// Inner elements per chain, as `matrixmultiply` blocks them for both element types.
pub const BLOCK: usize = 256;

/// Most rows, and most columns, that take the path for few of them.
const THIN_ROWS: usize = 4;
const THIN_COLS: usize = 16;
/// Multiply-adds below which another thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 22;

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

    /// One element.
    #[must_use]
    pub fn at(&self, row: usize, col: usize) -> T
    where
        T: Copy,
    {
        debug_assert!(row < self.rows && col < self.cols, "no such element");
        self.data[row * self.row_stride + col * self.col_stride]
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
    /// The product without packing; columns of `b` must be contiguous. `false` when there is no such path for the type.
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

/// The elements row by row.
fn in_order<T: Copy + Default>(b: View<'_, T>) -> Vec<T> {
    let mut out = vec![T::default(); b.rows * b.cols];
    for j in 0..b.cols {
        let column = b.data.iter().skip(j * b.col_stride).step_by(b.row_stride.max(1)).take(b.rows);
        for (i, &value) in column.enumerate() {
            out[i * b.cols + j] = value;
        }
    }
    out
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
    if a.rows <= THIN_ROWS && b.col_stride == 1 && T::thin(a, b, accumulate, c) {
        return;
    }
    if b.cols <= THIN_COLS && a.rows > b.cols && a.col_stride == 1 {
        let packed = if b.col_stride == 1 { Vec::new() } else { in_order(b) };
        let b = if packed.is_empty() { b } else { View::rows(&packed, b.rows, b.cols, b.cols) };
        if b.col_stride == 1 && T::thin(a, b, accumulate, c) {
            return;
        }
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
        thin::product(a, b, accumulate, c);
        true
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
