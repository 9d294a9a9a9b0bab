//! A GPU, random inputs, poisoned outputs, and the one table of tolerances.

use crate::compare::{self, Allowed};
use kernels::cuda::{Dtype, Gpu, Memory, Tensor, Work, bf16_bits};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// The device that tests run on.
pub(crate) fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::open(0).unwrap_or_else(|error| panic!("these tests need a GPU: {error}")))
}

/// Bounds by type: an error counts relative to the largest magnitude of the reference.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// One or a few roundings an element.
    Elementwise,
    /// A sum per element over a row.
    Reduction,
    /// A matrix product, attention.
    Product,
}

pub(crate) fn tolerance(dtype: Dtype, kind: Kind) -> f64 {
    match (dtype, kind) {
        (Dtype::F32, Kind::Elementwise) => 2e-6,
        (Dtype::F32, Kind::Reduction | Kind::Product) => 1e-5,
        (_, Kind::Elementwise) => 4e-3,
        (_, Kind::Reduction | Kind::Product) => 1e-2,
    }
}

/// A stream of random numbers; the same for the same test name and seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(test: &str) -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        let seed = *SEED.get_or_init(|| {
            let given = std::env::var("TESTFORGE_TEST_SEED").ok().map(|text| text.parse().unwrap());
            let seed = given
                .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
            println!("TESTFORGE_TEST_SEED={seed}");
            seed
        });
        let name = test.bytes().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Random(seed ^ name)
    }

    /// SplitMix64 (G. Steele and others, 2014).
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `-1.0..1.0`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    pub(crate) fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * scale).collect()
    }
}

/// A matrix on the device with `pad` more columns between rows than it shows, and the same numbers on the host, as the
/// device holds them.
pub(crate) struct Matrix {
    pub(crate) tensor: Tensor,
    pub(crate) host: Vec<f64>,
}

/// Every byte of it is `0xFF`: NaN in both types.
fn memory(bytes: usize) -> Memory {
    let memory = gpu().alloc(bytes, "a test").unwrap();
    memory.fill(0xFF).unwrap();
    memory
}

/// Random numbers in `-scale..scale`.
pub(crate) fn random(
    random: &mut Random,
    (rows, cols): (usize, usize),
    pad: usize,
    dtype: Dtype,
    scale: f32,
) -> Matrix {
    let values = random.values(rows * cols, scale);
    given(&values, (rows, cols), pad, dtype)
}

/// These numbers.
pub(crate) fn given(values: &[f32], (rows, cols): (usize, usize), pad: usize, dtype: Dtype) -> Matrix {
    let tensor = poisoned((rows, cols), pad, dtype);
    tensor.upload(values).unwrap();
    let host = tensor.download().unwrap().into_iter().map(f64::from).collect();
    Matrix { tensor, host }
}

/// A matrix of NaN, to be written.
pub(crate) fn poisoned((rows, cols): (usize, usize), pad: usize, dtype: Dtype) -> Tensor {
    let pitch = cols + pad;
    let bytes = (rows * pitch).max(1) * dtype.bytes();
    memory(bytes).tensor(0, (rows, cols), pitch, dtype).unwrap()
}

pub(crate) fn integers(values: &[u32], cols: usize) -> Tensor {
    let tensor = memory((values.len() * 4).max(4)).dense(values.len() / cols, cols, Dtype::U32).unwrap();
    tensor.upload_u32(values).unwrap();
    tensor
}

/// Runs work and waits.
pub(crate) fn run(work: &Work) {
    work.run().unwrap();
    gpu().synchronize().unwrap();
}

/// The device's result against the reference, element by element. NaN fails.
#[track_caller]
pub(crate) fn close(what: &str, got: &Tensor, expected: &[f64], kind: Kind) {
    close_beside(what, got, expected, kind, 0.0);
}

/// As [`close`], where terms as large as `beside` cancel: an error counts relative to these when the result is smaller.
#[track_caller]
pub(crate) fn close_beside(what: &str, got: &Tensor, expected: &[f64], kind: Kind, beside: f64) {
    let bound = tolerance(got.dtype(), kind);
    match compare::largest(&got.download().unwrap(), expected, bound, beside) {
        Ok(error) => {
            println!("{what}: worst error {error:.2e} of the largest magnitude (at most {bound:.0e})")
        }
        Err(wrong) => panic!("{what} ({} columns): {wrong}", got.cols()),
    }
}

/// The device's result against the reference, in the Frobenius norm relative to that of the reference.
#[track_caller]
pub(crate) fn close_in_norm(what: &str, got: &Tensor, expected: &[f64], bound: f64) {
    match compare::norm(&got.download().unwrap(), expected, bound) {
        Ok(error) => println!("{what}: {error:.2e} off in norm (at most {bound:.1e})"),
        Err(wrong) => panic!("{what}: {wrong}"),
    }
}

/// Each element by its own size: within one unit in the last place of the exact value's rounding in bfloat16, and within
/// `roundings` times 2^-23 of its `terms`, what cancels in it, or of itself where that is larger.
#[track_caller]
pub(crate) fn close_each(
    what: &str,
    got: &Tensor,
    expected: &[f64],
    terms: impl Fn(usize) -> f64,
    roundings: f64,
) {
    let allowed = Allowed { bf16: got.dtype() == Dtype::Bf16, roundings };
    match compare::each(&got.download().unwrap(), expected, terms, allowed) {
        Ok(worst) => println!("{what}: an element is off by {worst:.2} of what it may be"),
        Err(wrong) => panic!("{what} ({} columns): {wrong}", got.cols()),
    }
}

/// The bits of these numbers, rounded once to the type of the result.
#[track_caller]
pub(crate) fn same_bits(what: &str, got: &Tensor, expected: impl Iterator<Item = f32>) {
    let round = |value: f32| match got.dtype() {
        Dtype::Bf16 => f32::from_bits(u32::from(bf16_bits(value)) << 16),
        _ => value,
    };
    let (values, expected): (Vec<f32>, Vec<f32>) = (got.download().unwrap(), expected.map(round).collect());
    assert_eq!(values.len(), expected.len(), "{what}: number of elements");
    if let Some(i) = (0..values.len()).find(|&i| values[i].to_bits() != expected[i].to_bits()) {
        panic!("{what}: {:e} at {i} (column {}), expected {:e}", values[i], i % got.cols(), expected[i]);
    }
}

/// Runs work, and once more on the same memory as before, whatever it adds to: the same bytes.
#[track_caller]
pub(crate) fn run_twice(what: &str, work: &Work, results: &[&Tensor]) {
    let bytes = |tensor: &Tensor| {
        let mut all = vec![0; tensor.memory().bytes()];
        tensor.memory().read(0, &mut all).unwrap();
        all
    };
    let before: Vec<Vec<u8>> = results.iter().map(|tensor| bytes(tensor)).collect();
    run(work);
    let first: Vec<Vec<u8>> = results.iter().map(|tensor| bytes(tensor)).collect();
    results.iter().zip(&before).for_each(|(tensor, before)| tensor.memory().write(0, before).unwrap());
    run(work);
    let second: Vec<Vec<u8>> = results.iter().map(|tensor| bytes(tensor)).collect();
    assert!(first == second, "{what}: two runs differ");
}

/// Running the same work twice gives the same bytes.
#[track_caller]
pub(crate) fn same_twice(what: &str, work: &Work, out: &Tensor) {
    run(work);
    let first = out.read_rows().unwrap();
    out.memory().fill(0xFF).unwrap();
    run(work);
    assert!(first == out.read_rows().unwrap(), "{what}: two runs differ");
}

/// Nothing outside the view was written: its memory was filled with `0xFF` by [`poisoned`].
#[track_caller]
pub(crate) fn padding_untouched(what: &str, tensor: &Tensor) {
    let mut all = vec![0; tensor.memory().bytes()];
    tensor.memory().read(0, &mut all).unwrap();
    let size = tensor.dtype().bytes();
    for (row, chunk) in all.chunks(tensor.pitch() * size).take(tensor.rows()).enumerate() {
        let tail = &chunk[(tensor.cols() * size).min(chunk.len())..];
        assert!(tail.iter().all(|&byte| byte == 0xFF), "{what}: wrote behind row {row}");
    }
}
