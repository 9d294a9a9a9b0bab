//! Causal grouped-query attention: packed sequences for training, a cache of keys and values for generation.
//!
//! Queries are taken in blocks of [`BLOCK`] rows of a sequence. A row's sums run over its visible keys from the first to
//! the last, whatever the block, the batch or the thread, so packing changes no bits and neither does the cache.

use super::loops::{exp_from, score_grad};
use super::parallel::{balance, cut, each, rows};
use super::real::{Real, max, sum_lanes};
use crate::plan::Heads;
use kernels::gemm::{View, ViewMut, product};
use std::ops::Range;

/// Query rows, and key rows in the backward, that are worked on together.
const BLOCK: usize = 64;

/// A run of at most [`BLOCK`] tokens inside one sequence.
#[derive(Debug, Clone, Copy)]
struct Unit {
    /// First token of the sequence, and its length.
    seq: usize,
    len: usize,
    /// First token of the block relative to the sequence, and its length.
    at: usize,
    rows: usize,
}

fn units(starts: &[u32]) -> Vec<Unit> {
    let mut units = Vec::new();
    for pair in starts.windows(2) {
        let (seq, len) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        for at in (0..len).step_by(BLOCK) {
            units.push(Unit { seq, len, at, rows: BLOCK.min(len - at) });
        }
    }
    units
}

/// Units per thread, and the tokens that they cover.
fn split(units: &[Unit], cost: impl Fn(&Unit) -> usize, threads: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let costs: Vec<usize> = units.iter().map(cost).collect();
    let mut token = 0;
    let mut parts = Vec::new();
    for range in balance(&costs, threads) {
        let count: usize = units[range.clone()].iter().map(|u| u.rows).sum();
        parts.push((range, token..token + count));
        token += count;
    }
    parts
}

/// Keys and values of one key-value head, rows `start..start + n`.
fn key_value<R: Copy>(
    kv: View<'_, R>,
    heads: Heads,
    head: usize,
    start: usize,
    n: usize,
) -> [View<'_, R>; 2] {
    let rows = kv.slice(start, n);
    [rows.columns(head * heads.dim, heads.dim), rows.columns((heads.kv + head) * heads.dim, heads.dim)]
}

fn scale<R: Real>(heads: Heads) -> R {
    R::of(1.0 / libm::sqrt(heads.dim as f64))
}

/// Softmax attention of `q` (`m x dim`) over `k`, `v` (`n x dim`): row `i` sees the first `visible(i)` keys.
/// `log_sum_exp(i, value)` receives each row's statistic.
fn attend<R: Real>(
    q: View<'_, R>,
    [k, v]: [View<'_, R>; 2],
    scale: R,
    visible: impl Fn(usize) -> usize,
    scores: &mut Vec<R>,
    mut out: ViewMut<'_, R>,
    mut log_sum_exp: impl FnMut(usize, R),
) {
    let (m, n) = (q.rows, k.rows);
    scores.clear();
    scores.resize(m * n, R::ZERO);
    product(q, k.t(), false, &mut ViewMut::rows(scores, m, n, n), 1);
    for (i, row) in scores.chunks_exact_mut(n.max(1)).enumerate() {
        let (seen, hidden) = row.split_at_mut(visible(i));
        for s in seen.iter_mut() {
            *s *= scale;
        }
        let top = max(seen);
        exp_from(seen, top);
        let total = sum_lanes(seen.len(), |j| seen[j]);
        let inverse = R::ONE / total;
        for s in seen.iter_mut() {
            *s *= inverse;
        }
        hidden.fill(R::ZERO);
        log_sum_exp(i, top + total.ln());
    }
    product(View::rows(scores, m, n, n), v, false, &mut out, 1);
}

/// `out = softmax(q k^T / sqrt(dim)) v` inside each sequence; `q`, `out`: `T x query*dim`, `kv`: `T x 2*kv*dim`,
/// `lse`: `T x query`.
pub fn packed<R: Real>(
    q: View<'_, R>,
    kv: View<'_, R>,
    starts: &[u32],
    out: ViewMut<'_, R>,
    lse: ViewMut<'_, R>,
    heads: Heads,
    threads: usize,
) {
    let units = units(starts);
    let group = heads.query / heads.kv;
    let parts = split(&units, |u| u.rows * (u.at + u.rows) * heads.query * heads.dim, threads);
    let tokens: Vec<Range<usize>> = parts.iter().map(|(_, tokens)| tokens.clone()).collect();
    let work: Vec<_> = parts.into_iter().zip(cut(out, &tokens)).zip(cut(lse, &tokens)).collect();
    each(work, |(((range, tokens), mut out), mut lse)| {
        let mut scores = Vec::new();
        for unit in &units[range] {
            let token = unit.seq + unit.at;
            let local = token - tokens.start;
            for head in 0..heads.query {
                let column = head * heads.dim;
                let q = q.slice(token, unit.rows).columns(column, heads.dim);
                let keys = key_value(kv, heads, head / group, unit.seq, unit.at + unit.rows);
                let (_, rest) = out.reborrow().split_at(local);
                let out = rest.split_at(unit.rows).0.columns(column, heads.dim);
                let visible = |i| unit.at + i + 1;
                attend(q, keys, scale(heads), visible, &mut scores, out, |i, value| {
                    lse.row_mut(local + i)[head] = value;
                });
            }
        }
    });
}

/// `delta[t,h] = sum over the head's columns of out d_out`.
pub fn delta<R: Real>(
    out: View<'_, R>,
    d_out: View<'_, R>,
    delta: ViewMut<'_, R>,
    heads: Heads,
    threads: usize,
) {
    rows(delta, out.cols * 2, threads, |start, mut delta| {
        for i in 0..delta.rows {
            let (a, b) = (out.row(start + i), d_out.row(start + i));
            for (head, delta) in delta.row_mut(i).iter_mut().enumerate() {
                let at = head * heads.dim;
                *delta = sum_lanes(heads.dim, |c| a[at + c] * b[at + c]);
            }
        }
    });
}

/// What both halves of the backward read.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a, R> {
    pub q: View<'a, R>,
    pub kv: View<'a, R>,
    pub starts: &'a [u32],
    pub lse: View<'a, R>,
    pub delta: View<'a, R>,
    pub d_out: View<'a, R>,
    pub heads: Heads,
}

/// Probabilities and score gradients of a block of query rows against a block of keys of one head.
#[derive(Debug, Default)]
struct Scores<R> {
    p: Vec<R>,
    ds: Vec<R>,
}

impl<R: Real> Scores<R> {
    /// Rows: `queries` (tokens); columns: the keys, the first of which is key `key` of the sequence that starts at `seq`.
    fn compute(
        &mut self,
        saved: &Saved<'_, R>,
        head: usize,
        queries: Range<usize>,
        [k, v]: [View<'_, R>; 2],
        (seq, key): (usize, usize),
    ) {
        let heads = saved.heads;
        let (m, n) = (queries.len(), k.rows);
        let column = head * heads.dim;
        let q = saved.q.slice(queries.start, m).columns(column, heads.dim);
        let d_out = saved.d_out.slice(queries.start, m).columns(column, heads.dim);
        for (buffer, a, b) in [(&mut self.p, q, k), (&mut self.ds, d_out, v)] {
            buffer.clear();
            buffer.resize(m * n, R::ZERO);
            product(a, b.t(), false, &mut ViewMut::rows(buffer, m, n, n), 1);
        }
        let scale = scale::<R>(heads);
        let both = self.p.chunks_exact_mut(n.max(1)).zip(self.ds.chunks_exact_mut(n.max(1)));
        for (i, (p, ds)) in both.enumerate() {
            let token = queries.start + i;
            let visible = (token - seq + 1).saturating_sub(key).min(n);
            let (lse, delta) = (saved.lse.row(token)[head], saved.delta.row(token)[head]);
            score_grad(&mut p[..visible], &mut ds[..visible], [scale, lse, delta]);
            p[visible..].fill(R::ZERO);
            ds[visible..].fill(R::ZERO);
        }
    }
}

/// Gradient by the queries, `T x query*dim`.
pub fn grad_q<R: Real>(saved: &Saved<'_, R>, d_q: ViewMut<'_, R>, threads: usize) {
    let heads = saved.heads;
    let group = heads.query / heads.kv;
    let units = units(saved.starts);
    let parts = split(&units, |u| u.rows * (u.at + u.rows) * heads.query * heads.dim, threads);
    let tokens: Vec<Range<usize>> = parts.iter().map(|(_, tokens)| tokens.clone()).collect();
    let work: Vec<_> = parts.into_iter().zip(cut(d_q, &tokens)).collect();
    each(work, |((range, tokens), mut d_q)| {
        let mut scores = Scores::default();
        for unit in &units[range] {
            let token = unit.seq + unit.at;
            for head in 0..heads.query {
                let n = unit.at + unit.rows;
                let keys = key_value(saved.kv, heads, head / group, unit.seq, n);
                scores.compute(saved, head, token..token + unit.rows, keys, (unit.seq, 0));
                let (_, rest) = d_q.reborrow().split_at(token - tokens.start);
                let mut d_q = rest.split_at(unit.rows).0.columns(head * heads.dim, heads.dim);
                product(View::rows(&scores.ds, unit.rows, n, n), keys[0], false, &mut d_q, 1);
            }
        }
    });
}

/// Gradient by keys and values, `T x 2*kv*dim`: for each block of keys, query heads of the group in order.
pub fn grad_kv<R: Real>(saved: &Saved<'_, R>, d_kv: ViewMut<'_, R>, threads: usize) {
    let heads = saved.heads;
    let group = heads.query / heads.kv;
    let units = units(saved.starts);
    let parts = split(&units, |u| u.rows * (u.len - u.at) * heads.query * heads.dim, threads);
    let tokens: Vec<Range<usize>> = parts.iter().map(|(_, tokens)| tokens.clone()).collect();
    let work: Vec<_> = parts.into_iter().zip(cut(d_kv, &tokens)).collect();
    each(work, |((range, tokens), mut d_kv)| {
        let mut scores = Scores::default();
        for unit in &units[range] {
            let token = unit.seq + unit.at;
            let queries = token..unit.seq + unit.len;
            for head in 0..heads.query {
                let kv_head = head / group;
                let keys = key_value(saved.kv, heads, kv_head, token, unit.rows);
                scores.compute(saved, head, queries.clone(), keys, (unit.seq, unit.at));
                let column = head * heads.dim;
                let first = head % group == 0;
                let m = queries.len();
                let factors = [(&scores.ds, saved.q, kv_head), (&scores.p, saved.d_out, heads.kv + kv_head)];
                for (left, right, target) in factors {
                    let left = View::rows(left, m, unit.rows, unit.rows).t();
                    let right = right.slice(queries.start, m).columns(column, heads.dim);
                    let (_, rest) = d_kv.reborrow().split_at(token - tokens.start);
                    let mut out = rest.split_at(unit.rows).0.columns(target * heads.dim, heads.dim);
                    product(left, right, !first, &mut out, 1);
                }
            }
        }
    });
}

/// Both gradients at once, for whole sequences: scores are computed once instead of twice.
///
/// The bits of `d_kv` are those of [`grad_kv`], those of `d_q` those of [`grad_q`] only up to rounding (keys are summed
/// by blocks).
pub fn grad_qkv<R: Real>(saved: &Saved<'_, R>, d_qkv: ViewMut<'_, R>, threads: usize) {
    let heads = saved.heads;
    let group = heads.query / heads.kv;
    let q_cols = heads.query * heads.dim;
    let sequences: Vec<Range<usize>> =
        saved.starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect();
    let costs: Vec<usize> = sequences.iter().map(|s| s.len() * s.len() * q_cols).collect();
    let ranges = balance(&costs, threads);
    let tokens: Vec<Range<usize>> = ranges
        .iter()
        .map(|r| {
            let covered = &sequences[r.clone()];
            covered.first().map_or(0, |s| s.start)..covered.last().map_or(0, |s| s.end)
        })
        .collect();
    let work: Vec<_> = ranges.into_iter().zip(tokens.clone()).zip(cut(d_qkv, &tokens)).collect();
    each(work, |((range, tokens), mut d)| {
        let mut scores = Scores::default();
        for seq in &sequences[range] {
            for at in (0..seq.len()).step_by(BLOCK) {
                let n = BLOCK.min(seq.len() - at);
                let queries = seq.start + at..seq.end;
                let m = queries.len();
                for head in 0..heads.query {
                    let kv_head = head / group;
                    let keys = key_value(saved.kv, heads, kv_head, queries.start, n);
                    scores.compute(saved, head, queries.clone(), keys, (seq.start, at));
                    let column = head * heads.dim;
                    let local = queries.start - tokens.start;
                    let ds = View::rows(&scores.ds, m, n, n);
                    let p = View::rows(&scores.p, m, n, n);
                    let q = saved.q.slice(queries.start, m).columns(column, heads.dim);
                    let d_out = saved.d_out.slice(queries.start, m).columns(column, heads.dim);
                    let first = head % group == 0;
                    let k_at = q_cols + kv_head * heads.dim;
                    let v_at = q_cols + (heads.kv + kv_head) * heads.dim;
                    product(ds.t(), q, !first, &mut window(&mut d, local, n, k_at, heads.dim), 1);
                    product(p.t(), d_out, !first, &mut window(&mut d, local, n, v_at, heads.dim), 1);
                    let mut d_q = window(&mut d, local, m, column, heads.dim);
                    if at == 0 {
                        product(ds, keys[0], false, &mut d_q, 1);
                    } else {
                        product(ds, keys[0], true, &mut d_q, 1);
                    }
                }
            }
        }
    });
}

fn window<'a, R>(
    d: &'a mut ViewMut<'_, R>,
    row: usize,
    rows: usize,
    column: usize,
    cols: usize,
) -> ViewMut<'a, R> {
    let (_, rest) = d.reborrow().split_at(row);
    rest.split_at(rows).0.columns(column, cols)
}

/// `cache[rows[t]] = kv[t]`.
pub fn cache_write<R: Real>(kv: View<'_, R>, target: &[u32], mut cache: ViewMut<'_, R>) {
    for (t, &row) in target.iter().enumerate() {
        cache.row_mut(row as usize).copy_from_slice(kv.row(t));
    }
}

/// Attention of each token over its span of the cache: `spans[t] = (first row, rows)`, `T x 2`.
pub fn paged<R: Real>(
    q: View<'_, R>,
    cache: View<'_, R>,
    spans: &[u32],
    out: ViewMut<'_, R>,
    heads: Heads,
    threads: usize,
) {
    let span = |t: usize| (spans[2 * t] as usize, spans[2 * t + 1] as usize);
    let costs: Vec<usize> = (0..q.rows).map(|t| span(t).1 * heads.query * heads.dim).collect();
    let ranges = balance(&costs, threads);
    let work: Vec<_> = ranges.iter().cloned().zip(cut(out, &ranges)).collect();
    each(work, |(range, mut out)| {
        let mut scores = Vec::new();
        let mut t = range.start;
        while t < range.end {
            let (first, seen) = span(t);
            let mut m = 1;
            while t + m < range.end && m < BLOCK && span(t + m) == (first, seen + m) {
                m += 1;
            }
            let mut out = window(&mut out, t - range.start, m, 0, heads.query * heads.dim);
            run_of_tokens(q.slice(t, m), cache, (first, seen), heads, &mut scores, &mut out);
            t += m;
        }
    });
}

/// Tokens of one sequence at successive positions; the first sees `seen` rows of the cache.
fn run_of_tokens<R: Real>(
    q: View<'_, R>,
    cache: View<'_, R>,
    (first, seen): (usize, usize),
    heads: Heads,
    scores: &mut Vec<R>,
    out: &mut ViewMut<'_, R>,
) {
    let group = heads.query / heads.kv;
    let dim = heads.dim;
    for kv_head in 0..heads.kv {
        let keys = key_value(cache, heads, kv_head, first, seen + q.rows - 1);
        if q.rows == 1 {
            // The query heads of the group become the rows of one product.
            let column = kv_head * group * dim;
            let q = View::rows(&q.data[column..], group, dim, dim);
            let out = ViewMut::rows(&mut out.data[column..], group, dim, dim);
            attend(q, keys, scale(heads), |_| seen, scores, out, |_, _| {});
            continue;
        }
        for head in kv_head * group..(kv_head + 1) * group {
            let q = q.columns(head * dim, dim);
            let out = out.reborrow().columns(head * dim, dim);
            attend(q, keys, scale(heads), |i| seen + i, scores, out, |_, _| {});
        }
    }
}
