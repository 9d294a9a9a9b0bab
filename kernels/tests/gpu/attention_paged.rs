use crate::attention::{Part, median_ms, norm_bound};
use crate::bench_elementwise::filled;
use crate::support::{
    Kind, Matrix, Random, close, close_in_norm, gpu, integers, padding_untouched, poisoned, random, run,
    run_twice,
};
use kernels::cuda::ops::attention::Heads;
use kernels::cuda::ops::attention_paged;
use kernels::cuda::{Dtype, Tensor, Work};

fn reference(q: &[f64], cache: &[f64], spans: &[u32], heads: Heads) -> Vec<f64> {
    let (n, pitch, dim, group) = (heads.query_cols(), heads.kv_cols(), heads.dim, heads.query / heads.kv);
    let mut out = vec![0.0; q.len()];
    for (t, span) in spans.chunks(2).enumerate() {
        let rows = cache.len() / pitch;
        let first = (span[0] as usize).min(rows);
        let seen = (span[1] as usize).min(rows - first);
        for head in 0..heads.query {
            let q = &q[t * n + head * dim..][..dim];
            let at = head / group * dim;
            let row = |key: usize, at: usize| &cache[(first + key) * pitch + at..][..dim];
            let score =
                |key| row(key, at).iter().zip(q).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
            let scores: Vec<f64> = (0..seen).map(score).collect();
            let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for (key, s) in scores.iter().enumerate() {
                let p = (s - top).exp() / total;
                let values = row(key, at + heads.kv * dim);
                out[t * n + head * dim..][..dim].iter_mut().zip(values).for_each(|(o, v)| *o += p * v);
            }
        }
    }
    out
}

struct Case {
    heads: Heads,
    q: Matrix,
    cache: Matrix,
    spans: Tensor,
    out: Tensor,
    scratch: Tensor,
}

impl Case {
    fn new(
        rng: &mut Random,
        rows: usize,
        spans: &[u32],
        heads: Heads,
        dtype: Dtype,
        pad: usize,
        most: usize,
    ) -> Self {
        let (tokens, n) = (spans.len() / 2, heads.query_cols());
        let scratch = attention_paged::scratch_cols(heads, most);
        Case {
            heads,
            q: random(rng, (tokens, n), pad, dtype, 3.0),
            cache: random(rng, (rows, heads.kv_cols()), pad, dtype, 1.0),
            spans: integers(spans, 2),
            out: poisoned((tokens, n), pad, dtype),
            scratch: poisoned((tokens, scratch), 0, Dtype::F32),
        }
    }

    fn works(&self, most: usize) -> [Work; 2] {
        attention_paged::forward(
            &self.q.tensor,
            &self.cache.tensor,
            &self.spans,
            &self.scratch,
            &self.out,
            self.heads,
            most,
        )
        .unwrap()
    }

    fn bytes(&self, most: usize) -> Vec<u8> {
        self.out.memory().fill(0xFF).unwrap();
        self.scratch.memory().fill(0xFF).unwrap();
        self.works(most).iter().for_each(run);
        self.out.read_rows().unwrap()
    }
}

#[test]
fn paged_attention_equals_plain_loops() {
    let mut rng = Random::new("paged attention");
    let cases = [
        (Heads { query: 14, kv: 2, dim: 64 }, Dtype::Bf16, 8),
        (Heads { query: 14, kv: 2, dim: 64 }, Dtype::Bf16, 1),
        (Heads { query: 14, kv: 2, dim: 64 }, Dtype::F32, 0),
        (Heads { query: 12, kv: 1, dim: 128 }, Dtype::Bf16, 0),
        (Heads { query: 2, kv: 2, dim: 128 }, Dtype::F32, 4),
        (Heads { query: 4, kv: 2, dim: 96 }, Dtype::F32, 0),
        (Heads { query: 6, kv: 2, dim: 96 }, Dtype::Bf16, 0),
        (Heads { query: 2, kv: 1, dim: 256 }, Dtype::Bf16, 0),
        (Heads { query: 2, kv: 1, dim: 256 }, Dtype::F32, 0),
        (Heads { query: 6, kv: 2, dim: 5 }, Dtype::F32, 2),
        (Heads { query: 4, kv: 2, dim: 32 }, Dtype::Bf16, 0),
    ];
    for (heads, dtype, pad) in cases {
        let rows = 700;
        // Tokens of one sequence, of others, of none, and spans that reach beyond the cache.
        let mut spans = vec![0, 1, 0, 2, 10, 127, 10, 128, 10, 129, 100, 600, 0, 0, 690, 50, 800, 9, 699, 1];
        for _ in 0..6 {
            let first = rng.below(rows);
            spans.extend([first as u32, (1 + rng.below(rows - first)) as u32]);
        }
        let what = format!("paged attention {heads:?} {dtype:?} pad {pad}");
        let case = Case::new(&mut rng, rows, &spans, heads, dtype, pad, rows);
        let first = case.bytes(rows);
        assert!(first == case.bytes(rows), "{what}: two runs differ");
        let expected = reference(&case.q.host, &case.cache.host, &spans, heads);
        close(&what, &case.out, &expected, Kind::Product);
        close_in_norm(&what, &case.out, &expected, norm_bound(dtype, Part::Out));
        padding_untouched(&what, &case.out);

        // A token alone, with another bound, gets the same bits.
        let row = heads.query_cols() * dtype.bytes();
        for (t, most) in [(3, 128), (2, 700), (5, 650)] {
            let mut alone = Case::new(&mut rng, 1, &spans[2 * t..2 * t + 2], heads, dtype, pad, rows);
            let values: Vec<f32> = case.q.host[t * heads.query_cols()..][..heads.query_cols()]
                .iter()
                .map(|&v| v as f32)
                .collect();
            alone.q.tensor.upload(&values).unwrap();
            alone.cache.tensor = case.cache.tensor.clone();
            assert!(first[t * row..][..row] == alone.bytes(most)[..], "{what}: token {t} alone differs");
        }
    }
}

#[test]
fn paged_attention_of_long_spans_equals_plain_loops() {
    let mut rng = Random::new("paged attention, long");
    let heads = Heads { query: 4, kv: 2, dim: 64 };
    for (dtype, queries) in [(Dtype::Bf16, 3.0), (Dtype::Bf16, 0.3), (Dtype::F32, 3.0)] {
        let spans = [0, 32_768, 5, 8192, 7, 8193, 1, 20_000];
        let mut case = Case::new(&mut rng, 32_768, &spans, heads, dtype, 0, 32_768);
        case.q = random(&mut rng, (4, heads.query_cols()), 0, dtype, queries);
        case.bytes(32_768);
        let expected = reference(&case.q.host, &case.cache.host, &spans, heads);
        let what = format!("paged attention of long spans {dtype:?}, queries of {queries}");
        close(&what, &case.out, &expected, Kind::Product);
        close_in_norm(&what, &case.out, &expected, norm_bound(dtype, Part::Out));
    }
}

#[test]
fn cache_write_writes_its_rows_alone() {
    let mut rng = Random::new("cache_write");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (cols, pad) in [(256, 0), (33, 3)] {
            let kv = random(&mut rng, (5, cols), pad, dtype, 1.0);
            let cache = random(&mut rng, (9, cols), pad, dtype, 1.0);
            let rows = [8, 0, 9, u32::MAX, 3];
            let work = attention_paged::cache_write(&kv.tensor, &integers(&rows, 1), &cache.tensor).unwrap();
            run_twice("cache_write", &work, &[&cache.tensor]);
            let mut expected = cache.host.clone();
            for (t, &row) in rows.iter().enumerate().filter(|(_, row)| **row < 9) {
                expected[row as usize * cols..][..cols].copy_from_slice(&kv.host[t * cols..][..cols]);
            }
            let got: Vec<f64> = cache.tensor.download().unwrap().into_iter().map(f64::from).collect();
            assert_eq!(got, expected, "{dtype:?} {cols}");
            padding_untouched("cache_write", &cache.tensor);
        }
    }
}

#[test]
fn paged_attention_refuses_what_does_not_fit() {
    let mut rng = Random::new("paged attention refuses");
    let heads = Heads { query: 2, kv: 1, dim: 64 };
    let case = Case::new(&mut rng, 300, &[0, 300], heads, Dtype::F32, 0, 128);
    let error = attention_paged::forward(
        &case.q.tensor,
        &case.cache.tensor,
        &case.spans,
        &case.scratch,
        &case.out,
        heads,
        300,
    )
    .unwrap_err();
    assert!(error.to_string().contains("scratch has 0 numbers of the 396 needed"), "{error}");
    gpu().synchronize().unwrap();
}

#[test]
fn bench_paged_attention() {
    println!("{}", gpu().properties().name);
    for (heads, dtype) in [
        (Heads { query: 14, kv: 2, dim: 64 }, Dtype::Bf16),
        (Heads { query: 14, kv: 2, dim: 64 }, Dtype::F32),
        (Heads { query: 12, kv: 2, dim: 96 }, Dtype::Bf16),
    ] {
        for (tokens, seen) in [(1, 4096), (1, 32_768), (64, 1024), (256, 512)] {
            bench(heads, dtype, tokens, seen);
        }
    }
}

/// Both works, over caches that together are larger than any cache of the device where they are many.
fn bench(heads: Heads, dtype: Dtype, tokens: usize, seen: usize) {
    let spans: Vec<u32> = (0..tokens).flat_map(|t| [(t * seen) as u32, seen as u32]).collect();
    let scratch = attention_paged::scratch_cols(heads, seen);
    let bytes = (tokens * seen * heads.kv_cols() * dtype.bytes()) as f64;
    let sets = ((200e6 / bytes).ceil() as usize).clamp(2, 16);
    let matrix = |rows, cols| Matrix { tensor: filled(rows, cols, dtype), host: Vec::new() };
    let case = |_| Case {
        heads,
        q: matrix(tokens, heads.query_cols()),
        cache: matrix(tokens * seen, heads.kv_cols()),
        spans: integers(&spans, 2),
        out: poisoned((tokens, heads.query_cols()), 0, dtype),
        scratch: poisoned((tokens, scratch), 0, Dtype::F32),
    };
    let cases: Vec<Case> = (0..sets).map(case).collect();
    let ms = |i: usize| {
        let works: Vec<Work> = cases.iter().flat_map(|case| case.works(seen).into_iter().nth(i)).collect();
        (works[0].name().to_owned(), median_ms(works, 25))
    };
    let ((name, first), (_, second)) = (ms(0), ms(1));
    let rate = bytes / (first + second) / 1e6;
    println!(
        "{name:28} {tokens:3} x {seen:5}: {first:.4} + {second:.4} ms, {rate:.0} GB/s of keys and values"
    );
}
