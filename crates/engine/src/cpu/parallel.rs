//! Work over rows on several threads. Every row is computed whole by one thread, so its bits don't depend on the split.

use super::real::Real;
use kernels::gemm::ViewMut;
use std::ops::Range;

/// Elementary operations below which another thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 18;

/// Runs `f` on every part, each on a thread of its own (the first on this one).
pub(super) fn each<T: Send>(parts: Vec<T>, f: impl Fn(T) + Sync) {
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else { return };
    std::thread::scope(|scope| {
        for part in parts {
            let f = &f;
            scope.spawn(move || f(part));
        }
        f(first);
    });
}

/// Contiguous ranges of `0..costs.len()` of about equal cost, at most `threads` of them.
#[must_use]
pub(super) fn balance(costs: &[usize], threads: usize) -> Vec<Range<usize>> {
    let total: usize = costs.iter().sum();
    let parts = threads.min(total / WORTH_A_THREAD).max(1);
    let mut ranges = Vec::with_capacity(parts);
    let (mut start, mut done) = (0, 0);
    for (i, cost) in costs.iter().enumerate() {
        done += cost;
        if done * parts >= total * (ranges.len() + 1) && ranges.len() + 1 < parts {
            ranges.push(start..i + 1);
            start = i + 1;
        }
    }
    ranges.push(start..costs.len());
    ranges
}

/// Even ranges of rows of equal cost.
#[must_use]
pub(super) fn even(rows: usize, cost: usize, threads: usize) -> Vec<Range<usize>> {
    let parts = threads.min(rows * cost / WORTH_A_THREAD).max(1);
    let each = rows.div_ceil(parts).max(1);
    (0..rows).step_by(each).map(|start| start..(start + each).min(rows)).collect()
}

/// Calls `f(first row, rows of out)` over even parts of `out`; `cost` is that of one row.
pub(super) fn rows<R: Real>(
    out: ViewMut<'_, R>,
    cost: usize,
    threads: usize,
    f: impl Fn(usize, ViewMut<'_, R>) + Sync,
) {
    let ranges = even(out.rows, cost, threads);
    let parts = ranges.iter().map(|r| r.start).zip(cut(out, &ranges)).collect();
    each(parts, |(start, part)| f(start, part));
}

/// [`rows`] over two outputs with the same number of rows.
pub(super) fn rows2<R: Real>(
    a: ViewMut<'_, R>,
    b: ViewMut<'_, R>,
    cost: usize,
    threads: usize,
    f: impl Fn(usize, ViewMut<'_, R>, ViewMut<'_, R>) + Sync,
) {
    let ranges = even(a.rows, cost, threads);
    let (a, b) = (cut(a, &ranges), cut(b, &ranges));
    let parts = ranges.iter().map(|r| r.start).zip(a.into_iter().zip(b)).collect();
    each(parts, |(start, (a, b))| f(start, a, b));
}

/// Cuts a view at the ends of contiguous ranges of its rows.
pub(super) fn cut<'a, R: Real>(mut view: ViewMut<'a, R>, ranges: &[Range<usize>]) -> Vec<ViewMut<'a, R>> {
    let mut parts = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (part, rest) = view.split_at(range.len());
        parts.push(part);
        view = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_everything_once() {
        for (n, threads) in [(0, 2), (1, 2), (7, 3), (100, 4)] {
            for ranges in [even(n, 1 << 20, threads), balance(&vec![1 << 20; n], threads)] {
                let all: Vec<usize> = ranges.iter().cloned().flatten().collect();
                assert_eq!(all, (0..n).collect::<Vec<_>>());
                assert!(ranges.len() <= threads.max(1));
            }
        }
    }
}
