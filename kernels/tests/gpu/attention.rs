use crate::support::{
    Kind, Matrix, Random, close, close_in_norm, given, gpu, integers, padding_untouched, poisoned, random,
    run,
};
use kernels::cuda::ops::attention::{self, Heads, Order, Saved, Tiles, Version};
use kernels::cuda::{Dtype, Event, Graph, Schedule, Tensor, Work};
use std::io::Write;
use std::sync::Arc;

/// What may be off in the Frobenius norm, relative to the reference on inputs as they are rounded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Out,
    Gradient,
}

/// float32: 1e-5. A rounding to bfloat16 is off by a uniform number of up to half a unit: in the mean square 2^-8 / sqrt(3)
/// of an element that starts its binade, and 1.53e-3 of elements of many sizes. Outputs are rounded once: 2e-3 of any number
/// of tokens. Gradients are rounded twice, p or d_s in the middle and the result at the end: 3.2e-3 at most, 2.2e-3 of many
/// sizes.
pub(crate) fn norm_bound(dtype: Dtype, part: Part) -> f64 {
    match (dtype, part) {
        (Dtype::F32, _) => 1e-5,
        (_, Part::Out) => 2e-3,
        (_, Part::Gradient) => (2.0f64 / 3.0).sqrt() / 256.0,
    }
}

/// Spans of sequences of these lengths, one after the other.
pub(crate) fn spans(lengths: &[usize]) -> Vec<u32> {
    let mut spans = Vec::new();
    let mut start = 0;
    for &length in lengths {
        for _ in 0..length {
            spans.extend([start as u32, (start + length) as u32]);
        }
        start += length;
    }
    spans
}

/// The plain definition in float64.
#[derive(Default)]
struct Reference {
    out: Vec<f64>,
    lse: Vec<f64>,
    d_q: Vec<f64>,
    d_kv: Vec<f64>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// `qkv`: rows of queries, keys and values. Gradients take the products of `d_out` with `kept`, the outputs as they were
/// rounded, where there are some: where a row's weights are nearly 0 and 1, the exact outputs give other gradients.
fn reference(qkv: &[f64], d_out: &[f64], spans: &[u32], heads: Heads, kept: Option<&[f64]>) -> Reference {
    let (n, dim, group) = (heads.query_cols(), heads.dim, heads.query / heads.kv);
    let (pitch, kv_cols, tokens) = (n + heads.kv_cols(), heads.kv_cols(), spans.len() / 2);
    let scale = 1.0 / (dim as f64).sqrt();
    let mut r = Reference {
        out: vec![0.0; tokens * n],
        lse: vec![0.0; tokens * heads.query],
        d_q: vec![0.0; tokens * n],
        d_kv: vec![0.0; tokens * kv_cols],
    };
    for t in 0..tokens {
        let start = spans[2 * t] as usize;
        for head in 0..heads.query {
            let k_at = n + head / group * dim;
            let v_at = k_at + heads.kv * dim;
            let q = &qkv[t * pitch + head * dim..][..dim];
            let row = |key: usize, at: usize| &qkv[key * pitch + at..][..dim];
            let scores: Vec<f64> = (start..=t).map(|key| dot(q, row(key, k_at)) * scale).collect();
            let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
            r.lse[t * heads.query + head] = lse;
            let at = t * n + head * dim;
            let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
            for (key, &p) in (start..).zip(&p) {
                add(&mut r.out[at..at + dim], p, row(key, v_at));
            }
            let d = &d_out[at..at + dim];
            let delta = dot(&kept.unwrap_or(&r.out)[at..at + dim], d);
            for (key, &p) in (start..).zip(&p) {
                let d_s = p * (dot(d, row(key, v_at)) - delta) * scale;
                add(&mut r.d_q[at..at + dim], d_s, row(key, k_at));
                add(&mut r.d_kv[key * kv_cols + k_at - n..][..dim], d_s, q);
                add(&mut r.d_kv[key * kv_cols + v_at - n..][..dim], p, d);
            }
        }
    }
    r
}

/// One set of operands: queries, keys and values side by side, and their gradients likewise.
struct Case {
    heads: Heads,
    qkv: Matrix,
    d_out: Matrix,
    spans: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    d_qkv: Tensor,
    version: Option<Version>,
}

impl Case {
    fn new(rng: &mut Random, lengths: &[usize], heads: Heads, dtype: Dtype, pad: usize) -> Self {
        let (tokens, n) = (lengths.iter().sum(), heads.query_cols());
        let columns = n + heads.kv_cols();
        Case {
            heads,
            qkv: random(rng, (tokens, columns), pad, dtype, 2.0),
            d_out: random(rng, (tokens, n), pad, dtype, 1.0),
            spans: integers(&spans(lengths), 2),
            out: poisoned((tokens, n), pad, dtype),
            lse: poisoned((tokens, heads.query), 0, Dtype::F32),
            delta: poisoned((tokens, heads.query), 0, Dtype::F32),
            d_qkv: poisoned((tokens, columns), pad, dtype),
            version: None,
        }
    }

    fn cut(&self, all: &Tensor) -> (Tensor, Tensor) {
        let n = self.heads.query_cols();
        (all.columns(0, n).unwrap(), all.columns(n, self.heads.kv_cols()).unwrap())
    }

    /// Forward, delta, gradient by queries, gradient by keys and values.
    fn works(&self, order: Option<Order<'_>>) -> [Work; 4] {
        let (q, kv) = self.cut(&self.qkv.tensor);
        let (d_q, d_kv) = self.cut(&self.d_qkv);
        let saved = Saved {
            q: &q,
            kv: &kv,
            spans: &self.spans,
            lse: &self.lse,
            delta: &self.delta,
            d_out: &self.d_out.tensor,
            heads: self.heads,
            order,
            turn: None,
        };
        let (seen, results) = ((&self.spans, order.as_ref()), (&self.out, &self.lse));
        [
            attention::forward_by(self.version, &q, &kv, seen, results, self.heads).unwrap(),
            attention::delta(&self.out, &self.d_out.tensor, &self.delta, self.heads).unwrap(),
            attention::grad_q_by(self.version, &saved, &d_q).unwrap(),
            attention::grad_kv_by(self.version, &saved, &d_kv).unwrap(),
        ]
    }

    fn run(&self, order: Option<Order<'_>>) -> Vec<Vec<u8>> {
        self.works(order).iter().for_each(run);
        [&self.out, &self.lse, &self.delta, &self.d_qkv].map(|t| t.read_rows().unwrap()).to_vec()
    }

    fn equals_plain_loops(&self, what: &str, lengths: &[usize]) {
        let first = self.run(None);
        for tensor in [&self.out, &self.lse, &self.delta, &self.d_qkv] {
            tensor.memory().fill(0xFF).unwrap();
        }
        let tiles = Tiles::longest_first(&spans(lengths));
        let (queries, keys) = (integers(&tiles.queries, 1), integers(&tiles.keys, 1));
        let order = Order { queries: &queries, keys: &keys };
        assert!(first == self.run(Some(order)), "{what}: runs in two orders differ");
        let out: Vec<f64> = self.out.download().unwrap().into_iter().map(f64::from).collect();
        let reference = |kept| reference(&self.qkv.host, &self.d_out.host, &spans(lengths), self.heads, kept);
        let (expected, gradients) = (reference(None), reference(Some(&out)));
        let (d_q, d_kv) = self.cut(&self.d_qkv);
        close(&format!("{what} out"), &self.out, &expected.out, Kind::Product);
        close(&format!("{what} lse"), &self.lse, &expected.lse, Kind::Product);
        let dim = self.heads.dim;
        let delta: Vec<f64> =
            out.chunks(dim).zip(self.d_out.host.chunks(dim)).map(|(a, b)| dot(a, b)).collect();
        close(&format!("{what} delta"), &self.delta, &delta, Kind::Product);
        close(&format!("{what} d_q"), &d_q, &gradients.d_q, Kind::Product);
        close(&format!("{what} d_kv"), &d_kv, &gradients.d_kv, Kind::Product);
        let dtype = self.out.dtype();
        close_in_norm(&format!("{what} out"), &self.out, &expected.out, norm_bound(dtype, Part::Out));
        // of a few numbers, the roundings are no average
        if lengths.iter().sum::<usize>() > 50 {
            let (d_k, d_v) = halves(&d_kv, &gradients.d_kv);
            for (which, got, want) in
                [("d_q", &d_q, &gradients.d_q), ("d_k", &d_k.0, &d_k.1), ("d_v", &d_v.0, &d_v.1)]
            {
                close_in_norm(&format!("{what} {which}"), got, want, norm_bound(dtype, Part::Gradient));
            }
        }
        padding_untouched(what, &self.out);
        padding_untouched(what, &self.d_qkv);
    }
}

/// Columns of keys, columns of values: of the device's matrix and of the reference.
fn halves(device: &Tensor, host: &[f64]) -> ((Tensor, Vec<f64>), (Tensor, Vec<f64>)) {
    let cols = device.cols() / 2;
    let half = |start: usize| {
        let rows = host.chunks(2 * cols).flat_map(|row| row[start..start + cols].to_vec());
        (device.columns(start, cols).unwrap(), rows.collect())
    };
    (half(0), half(cols))
}

/// Those on tensor cores that can work on the case.
fn versions(case: &Case) -> Vec<Version> {
    let views = [&case.qkv.tensor, &case.out, &case.d_qkv];
    let parts = [attention::Part::Forward, attention::Part::GradQ, attention::Part::GradKv];
    let best = parts.map(|part| Version::best(part, &views, case.heads)).into_iter().min().unwrap();
    assert!(best >= Version::Warp, "{:?} runs by {best:?}", case.heads);
    [Version::Warp, Version::WarpGroup].into_iter().filter(|&version| version <= best).collect()
}

fn heads(query: usize, kv: usize, dim: usize) -> Heads {
    Heads { query, kv, dim }
}

fn lengths(rng: &mut Random, tokens: usize, longest: usize) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut left = tokens;
    while left > 0 {
        let length = (1 + rng.below(longest)).min(left);
        lengths.push(length);
        left -= length;
    }
    lengths
}

#[test]
fn attention_plain_equals_plain_loops() {
    let mut rng = Random::new("attention plain");
    let cases = [
        (heads(14, 2, 64), Dtype::F32, 0),
        (heads(4, 2, 5), Dtype::F32, 3),
        (heads(3, 1, 80), Dtype::F32, 1),
        (heads(4, 2, 96), Dtype::F32, 0),
        (heads(7, 1, 96), Dtype::Bf16, 8),
        (heads(2, 2, 256), Dtype::F32, 0),
        (heads(14, 2, 64), Dtype::Bf16, 1),
        (heads(4, 1, 80), Dtype::Bf16, 8),
        (heads(2, 1, 33), Dtype::Bf16, 0),
    ];
    for (heads, dtype, pad) in cases {
        for lengths in [vec![3, 70, 1, 41], lengths(&mut rng, 150, 60)] {
            let what = format!("attention {heads:?} {dtype:?} pad {pad} {lengths:?}");
            let case = Case::new(&mut rng, &lengths, heads, dtype, pad);
            assert!(case.works(None).iter().all(|work| !work.name().contains("flash")), "{what}");
            case.equals_plain_loops(&what, &lengths);
        }
    }
}

#[test]
fn attention_on_tensor_cores_equals_plain_loops() {
    let mut rng = Random::new("attention on tensor cores");
    let shapes = [
        heads(14, 2, 64),
        heads(3, 1, 64),
        heads(2, 2, 64),
        // Enough key-value heads that few or no blocks share keys.
        heads(28, 28, 64),
        heads(2, 2, 32),
        heads(6, 1, 32),
        heads(6, 2, 128),
    ];
    for heads in shapes {
        let random = [lengths(&mut rng, 500, 300), lengths(&mut rng, 97, 20)];
        for lengths in [vec![3, 200, 1, 37, 64, 333], vec![128, 128], vec![2, 1]].into_iter().chain(random) {
            let mut case = Case::new(&mut rng, &lengths, heads, Dtype::Bf16, 8);
            for version in versions(&case) {
                case.version = Some(version);
                case.equals_plain_loops(&format!("attention {version:?} {heads:?} {lengths:?}"), &lengths);
            }
        }
    }
}

/// The gradients by what was rotated, turned back on the host.
fn turned_back(values: &[f32], heads: usize, pitch: usize, positions: &[u32], table: &[f32]) -> Vec<f64> {
    let mut values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    for (row, &position) in values.chunks_mut(pitch).zip(positions) {
        let angles = &table[(position as usize).min(table.len() / 64 - 1) * 64..][..64];
        for head in row.chunks_mut(64).take(heads) {
            for i in 0..32 {
                let (cos, sin) = (f64::from(angles[i]), f64::from(angles[32 + i]));
                let (low, high) = (head[i], head[32 + i]);
                (head[i], head[32 + i]) = (low * cos + high * sin, high * cos - low * sin);
            }
        }
    }
    values
}

#[test]
fn gradients_of_attention_are_turned_back() {
    let mut rng = Random::new("attention turned back");
    for heads in [heads(14, 2, 64), heads(28, 28, 64), heads(6, 1, 32)] {
        let lengths = [3, 200, 1, 37, 64, 333];
        let case = Case::new(&mut rng, &lengths, heads, Dtype::Bf16, 8);
        let tokens = case.spans.rows();
        let table: Vec<f32> = (0..100).flat_map(|p| (0..64).map(move |i| angle(p, i))).collect();
        let positions: Vec<u32> = (0..tokens).map(|_| rng.below(120) as u32).collect();
        let given_table = given(&table, (100, 64), 0, Dtype::F32);
        let (q, kv) = case.cut(&case.qkv.tensor);
        let (d_q, d_kv) = case.cut(&case.d_qkv);
        let turn = attention::Turn { positions: &integers(&positions, 1), table: &given_table.tensor };
        let saved = Saved {
            q: &q,
            kv: &kv,
            spans: &case.spans,
            lse: &case.lse,
            delta: &case.delta,
            d_out: &case.d_out.tensor,
            heads,
            order: None,
            turn: Some(turn),
        };
        case.run(None);
        if !saved.turns([&d_q, &d_kv]) {
            assert!(attention::grad_q(&saved, &d_q).is_err(), "{heads:?}: took what it can't do");
            continue;
        }
        let plain = [d_q.download().unwrap(), d_kv.download().unwrap()];
        let works = [attention::grad_q(&saved, &d_q).unwrap(), attention::grad_kv(&saved, &d_kv).unwrap()];
        case.d_qkv.memory().fill(0xFF).unwrap();
        works.iter().for_each(run);
        let first = case.d_qkv.read_rows().unwrap();
        works.iter().for_each(run);
        assert!(first == case.d_qkv.read_rows().unwrap(), "{heads:?}: two runs differ");
        let expected_q = turned_back(&plain[0], heads.query, heads.query_cols(), &positions, &table);
        let expected_kv = turned_back(&plain[1], heads.kv, heads.kv_cols(), &positions, &table);
        close(&format!("{heads:?} d_q turned back"), &d_q, &expected_q, Kind::Product);
        close(&format!("{heads:?} d_kv turned back"), &d_kv, &expected_kv, Kind::Product);
        padding_untouched("turned back", &case.d_qkv);
    }
}

/// Cosines of a position, then sines.
fn angle(position: usize, i: usize) -> f32 {
    let angle = position as f32 * 10_000f32.powf(-((i % 32) as f32) / 32.0);
    if i < 32 { angle.cos() } else { angle.sin() }
}

/// Ends the process, unless it is dropped in time: a kernel that never ends would look like a slow test.
struct Patience {
    _dropped: std::sync::mpsc::Sender<()>,
}

impl Patience {
    fn of(what: &str, seconds: u64) -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        let what = what.to_owned();
        std::thread::spawn(move || {
            let waited = receiver.recv_timeout(std::time::Duration::from_secs(seconds));
            if waited == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = writeln!(std::io::stderr(), "{what} did not end in {seconds} s");
                std::process::abort();
            }
        });
        Patience { _dropped: sender }
    }
}

/// Sequences of these lengths leave runs of tiles that a group of warps has nothing to do with; in a block alone, and shared.
/// The last: by how much queries are smaller than elsewhere. Flat scores make all of a row's p of a size, and its output is
/// what is left of values that cancel.
fn many_tokens(rng: &mut Random) -> Vec<(Heads, Vec<usize>, f32)> {
    let mut cases = vec![
        (heads(12, 2, 128), lengths(rng, 3000, 3000)),
        (heads(14, 2, 64), lengths(rng, 8192, 2048)),
        (heads(14, 2, 64), vec![100, 1000]),
        (heads(14, 2, 64), vec![70, 700]),
        (heads(14, 2, 64), vec![333; 24]),
        (heads(14, 7, 64), vec![333; 8]),
        (heads(7, 1, 64), vec![200, 400, 600]),
        (heads(4, 4, 64), vec![100, 900, 65, 1800]),
    ];
    for (tokens, longest) in [(500, 300), (2048, 600), (5000, 1024), (9000, 1024), (16_384, 700)] {
        cases.push((heads(14, 2, 64), lengths(rng, tokens, longest)));
    }
    let mut cases: Vec<_> = cases.into_iter().map(|(heads, lengths)| (heads, lengths, 1.0)).collect();
    for smaller in [0.5, 0.1] {
        cases.push((heads(14, 2, 64), vec![4096, 33, 2000], smaller));
        cases.push((heads(2, 1, 32), vec![3000], smaller));
        cases.push((heads(4, 2, 128), vec![2500], smaller));
    }
    cases
}

/// Against the float32 kernels, which the test above holds to the definition.
#[test]
fn attention_on_tensor_cores_holds_for_many_tokens() {
    let mut rng = Random::new("attention of many tokens");
    for (heads, lengths, smaller) in many_tokens(&mut rng) {
        let tokens: usize = lengths.iter().sum();
        let _patience = Patience::of(&format!("attention {heads:?} {lengths:?}"), 60);
        let mut case = Case::new(&mut rng, &lengths, heads, Dtype::Bf16, 0);
        let mut plain = Case::new(&mut rng, &lengths, heads, Dtype::F32, 0);
        let as_f32 = |m: &Matrix| m.host.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let columns = heads.query_cols() + heads.kv_cols();
        let mut values = as_f32(&case.qkv);
        values.chunks_mut(columns).flat_map(|row| &mut row[..heads.query_cols()]).for_each(|v| *v *= smaller);
        case.qkv = given(&values, (tokens, columns), 0, Dtype::Bf16);
        plain.qkv = given(&as_f32(&case.qkv), (tokens, columns), 0, Dtype::F32);
        plain.d_out = given(&as_f32(&case.d_out), (tokens, heads.query_cols()), 0, Dtype::F32);
        plain.run(None);
        for version in versions(&case) {
            case.version = Some(version);
            case.run(None);
            let triples = [
                ("out", &case.out, &plain.out, norm_bound(Dtype::Bf16, Part::Out)),
                ("lse", &case.lse, &plain.lse, norm_bound(Dtype::F32, Part::Out)),
                ("d_qkv", &case.d_qkv, &plain.d_qkv, norm_bound(Dtype::Bf16, Part::Gradient)),
            ];
            for (what, got, expected, bound) in triples {
                let expected: Vec<f64> = expected.download().unwrap().into_iter().map(f64::from).collect();
                let what = format!("attention {version:?} of {tokens} tokens, queries x {smaller}, {what}");
                close(&what, got, &expected, Kind::Product);
                close_in_norm(&what, got, &expected, bound);
            }
        }
    }
}

#[test]
fn attention_of_extreme_scores_is_finite() {
    let mut rng = Random::new("attention of extreme scores");
    for (dtype, pad) in [(Dtype::F32, 0), (Dtype::Bf16, 1), (Dtype::Bf16, 0)] {
        let lengths = [200, 30];
        let mut case = Case::new(&mut rng, &lengths, heads(2, 1, 64), dtype, pad);
        let values: Vec<f32> = case.qkv.host.iter().map(|&v| v as f32 * 60.0).collect();
        case.qkv = given(&values, (230, 256), pad, dtype);
        let tensor_cores = dtype == Dtype::Bf16 && pad == 0;
        let all = if tensor_cores { versions(&case) } else { vec![Version::Plain] };
        for version in all {
            case.version = Some(version);
            case.run(None);
            for tensor in [&case.out, &case.lse, &case.d_qkv] {
                assert!(tensor.download().unwrap().iter().all(|v| v.is_finite()), "{version:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn attention_refuses_operands_that_do_not_fit() {
    let mut rng = Random::new("attention refuses");
    let case = Case::new(&mut rng, &[4], heads(4, 2, 8), Dtype::F32, 0);
    let (q, kv) = case.cut(&case.qkv.tensor);
    let with =
        |heads| attention::forward(&q, &kv, (&case.spans, None), &case.out, &case.lse, heads).unwrap_err();
    assert!(with(heads(4, 3, 8)).to_string().contains("divide evenly"));
    assert!(with(heads(4, 2, 512)).to_string().contains("1 to 256"));
    assert!(with(heads(4, 1, 8)).to_string().contains("kv is 4 x 32, not 4 x 16"));
    let short = integers(&[0, 3, 0, 3, 0, 3], 2);
    let error = attention::forward(&q, &kv, (&short, None), &case.out, &case.lse, case.heads).unwrap_err();
    assert!(error.to_string().contains("spans is 3 x 2, not 4 x 2"), "{error}");
    gpu().synchronize().unwrap();
}

/// Milliseconds of one of these works, each with buffers of its own: the median of replays of a graph of all.
pub(crate) fn median_ms(works: Vec<Work>, runs: usize) -> f64 {
    let count = works.len();
    let works = Arc::new(Schedule::in_order(gpu(), works).unwrap());
    works.run().unwrap();
    let graph = Graph::capture(gpu(), &works).unwrap();
    let mut times: Vec<f32> = (0..runs + 1)
        .map(|_| {
            let (start, end) = (Event::new(gpu()).unwrap(), Event::new(gpu()).unwrap());
            start.record().unwrap();
            graph.launch().unwrap();
            end.record().unwrap();
            end.wait().unwrap();
            end.ms_since(&start).unwrap()
        })
        .skip(1)
        .collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[runs / 2]) / count as f64
}

#[test]
fn bench_attention() {
    let mut rng = Random::new("bench attention");
    println!("{}", gpu().properties().name);
    let heads64 = heads(14, 2, 64);
    let cases = [
        (heads64, 4, 512, Version::WarpGroup),
        (heads64, 16, 512, Version::WarpGroup),
        (heads64, 8, 2048, Version::WarpGroup),
        (heads64, 2, 4096, Version::WarpGroup),
        (heads64, 16, 512, Version::Warp),
        (heads64, 8, 2048, Version::Warp),
        (heads(12, 2, 128), 16, 512, Version::Warp),
        (heads(12, 2, 128), 4, 2048, Version::Warp),
        (heads64, 16, 512, Version::Plain),
    ];
    for (heads, count, length, version) in cases {
        let lengths = vec![length; count];
        let mut cases: Vec<Case> =
            (0..4).map(|_| Case::new(&mut rng, &lengths, heads, Dtype::Bf16, 0)).collect();
        if version > *versions(&cases[0]).last().unwrap() {
            println!("{version:?} does not run on this device");
            continue;
        }
        cases.iter_mut().for_each(|case| case.version = Some(version));
        let tiles = Tiles::longest_first(&spans(&lengths));
        let (queries, keys) = (integers(&tiles.queries, 1), integers(&tiles.keys, 1));
        let order = Some(Order { queries: &queries, keys: &keys });
        cases.iter().flat_map(|case| case.works(order)).for_each(|work| run(&work));
        let pairs = (count * length * (length + 1) / 2) as f64;
        let product = 2.0 * pairs * (heads.query * heads.dim) as f64;
        let mut backward = 0.0;
        for (i, products) in [(0, 2.0), (1, 0.0), (2, 3.0), (3, 4.0)] {
            let works: Vec<Work> =
                cases.iter().flat_map(|case| case.works(order).into_iter().nth(i)).collect();
            let (name, bytes) = (works[0].name().to_owned(), works[0].cost().bytes);
            let ms = median_ms(works, 25);
            backward += if i == 0 { 0.0 } else { ms };
            let rate = match i {
                1 => format!("{:6.0} GB/s", bytes / ms / 1e6),
                _ => format!("{:6.1} TFLOP/s", products * product / ms / 1e9),
            };
            println!("{name:28} {count:2} x {length:4}: {ms:8.4} ms, {rate}");
        }
        println!(
            "  backward as five products: {backward:.4} ms, {:.1} TFLOP/s",
            5.0 * product / backward / 1e9
        );
    }
}
