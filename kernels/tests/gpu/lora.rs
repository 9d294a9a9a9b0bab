use crate::lora_fused::gradients_of;
use crate::philox::Masks;
use crate::support::{
    Kind, Matrix, Random, close, given, gpu, integers, padding_untouched, poisoned, random, run, run_twice,
    same_twice,
};
use kernels::cuda::ops::{StepScalars, lora};
use kernels::cuda::{Dtype, Tensor, Work, bf16_bits, run_all};

pub(crate) const SCALE: f32 = 1.75;

/// One group of adapters and a batch of tokens.
pub(crate) struct Case {
    pub(crate) tokens: usize,
    pub(crate) features: usize,
    pub(crate) rank: usize,
    /// Columns of each module; between them lie `gap` columns of nobody.
    pub(crate) counts: Vec<usize>,
    pub(crate) gap: usize,
    pub(crate) threshold: Option<u32>,
    pub(crate) dtype: Dtype,
}

impl Case {
    pub(crate) fn modules(&self) -> usize {
        self.counts.len()
    }

    /// Columns of `u`.
    pub(crate) fn width(&self) -> usize {
        self.modules() * self.rank
    }

    fn augmented(&self) -> usize {
        self.width().next_multiple_of(8) + 8
    }

    pub(crate) fn cols(&self) -> Vec<(usize, usize)> {
        let mut start = self.gap;
        let place = |&count: &usize| {
            let at = start;
            start += count + self.gap;
            (at, count)
        };
        self.counts.iter().map(place).collect()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.counts.iter().map(|count| count + self.gap).sum::<usize>() + self.gap
    }

    pub(crate) fn name(&self) -> String {
        let Case { tokens, features, rank, counts, threshold, dtype, .. } = self;
        format!("lora {tokens}x{features} r={rank} {counts:?} {dtype:?} {threshold:?}")
    }
}

/// A group's operands on the device and on the host.
pub(crate) struct Operands {
    /// `x` and the columns behind it.
    wide: Matrix,
    pub(crate) x: Tensor,
    pub(crate) augmented: Tensor,
    pub(crate) a: Vec<Matrix>,
    b: Vec<Matrix>,
    masks: Masks,
    samples: Tensor,
    positions: Tensor,
    pub(crate) scalars: Tensor,
}

impl Operands {
    pub(crate) fn new(rng: &mut Random, case: &Case) -> Self {
        let (tokens, features) = (case.tokens, case.features);
        let wide = random(rng, (tokens, features + case.augmented()), 8, case.dtype, 1.0);
        let x = wide.tensor.columns(0, features).unwrap();
        let augmented = wide.tensor.columns(features, case.augmented()).unwrap();
        let a = (0..case.modules()).map(|_| random(rng, (case.rank, features), 0, case.dtype, 1.0)).collect();
        let b = case.counts.iter().map(|&n| random(rng, (n, case.rank), 0, case.dtype, 1.0)).collect();
        let samples: Vec<u32> = (0..2 * tokens).map(|_| rng.bits() as u32).collect();
        let positions: Vec<u32> = (0..tokens).map(|_| rng.below(70_000) as u32).collect();
        let step = StepScalars {
            lora_scale: SCALE,
            step: 7,
            drop_threshold: case.threshold.unwrap_or(30_000),
            seed: rng.bits(),
            ..StepScalars::default()
        };
        let scalars = bytes_of(&step.to_bytes());
        let masks = Masks {
            seed: step.seed,
            step: step.step,
            threshold: step.drop_threshold,
            layer: 21,
            modules: vec![6, 0, 3][..case.modules()].to_vec(),
            samples: samples.clone(),
            positions: positions.clone(),
        };
        let (samples, positions) = (integers(&samples, 2), integers(&positions, 1));
        Operands { wide, x, augmented, a, b, masks, samples, positions, scalars }
    }

    pub(crate) fn a(&self) -> Vec<Tensor> {
        self.a.iter().map(|a| a.tensor.clone()).collect()
    }

    fn b(&self) -> Vec<Tensor> {
        self.b.iter().map(|b| b.tensor.clone()).collect()
    }

    pub(crate) fn dropout(&self, case: &Case) -> Option<lora::Dropout<'_>> {
        case.threshold.is_some().then_some(lora::Dropout {
            samples: &self.samples,
            positions: &self.positions,
            layer: self.masks.layer,
            modules: &self.masks.modules,
        })
    }

    /// `drop_m(x)` on the host; whatever has this shape may stand for `x`.
    pub(crate) fn dropped(&self, case: &Case, module: usize, x: &[f64]) -> Vec<f64> {
        if case.threshold.is_none() {
            return x.to_vec();
        }
        let keep = 65_536.0 / (65_536.0 - f64::from(self.masks.threshold));
        let kept = self.masks.kept(module, case.features);
        x.iter().zip(kept).map(|(&x, kept)| if kept { x * keep } else { 0.0 }).collect()
    }

    /// `d_u^T drop(x)` of a module.
    pub(crate) fn sums_of_a(&self, case: &Case, m: usize, d_u: &[f64], x: &[f64]) -> Vec<f64> {
        let left = cut(d_u, case.width(), (m * case.rank, case.rank));
        let dropped = self.dropped(case, m, x);
        times_transposed(&transposed(&left, case.rank), &transposed(&dropped, case.features), case.tokens)
    }

    /// Sum over the modules of `drop(d_u A)`.
    pub(crate) fn input_share(&self, case: &Case, d_u: &[f64]) -> Vec<f64> {
        let mut share = vec![0.0; case.tokens * case.features];
        for m in 0..case.modules() {
            let left = cut(d_u, case.width(), (m * case.rank, case.rank));
            let product = times_transposed(&left, &transposed(&self.a[m].host, case.features), case.rank);
            let dropped = self.dropped(case, m, &product);
            share.iter_mut().zip(dropped).for_each(|(sum, value)| *sum += value);
        }
        share
    }

    /// `x` alone on the host.
    fn x_host(&self, case: &Case) -> Vec<f64> {
        let pitch = case.features + case.augmented();
        self.wide.host.chunks(pitch).flat_map(|row| row[..case.features].to_vec()).collect()
    }
}

pub(crate) fn bytes_of(bytes: &[u8]) -> Tensor {
    let tensor = gpu().alloc(bytes.len(), "a test").unwrap().dense(1, bytes.len(), Dtype::U8).unwrap();
    tensor.upload_u8(bytes).unwrap();
    tensor
}

/// `[m,n] = a[m,k] b[n,k]^T`.
pub(crate) fn times_transposed(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    a.chunks(k).flat_map(|x| b.chunks(k).map(move |y| dot(x, y))).collect()
}

pub(crate) fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|c| a.iter().skip(c).step_by(cols).copied()).collect()
}

/// Columns `start..start + count` of rows of `cols`.
pub(crate) fn cut(a: &[f64], cols: usize, (start, count): (usize, usize)) -> Vec<f64> {
    a.chunks(cols).flat_map(|row| row[start..start + count].to_vec()).collect()
}

pub(crate) fn rounded(values: &[f64]) -> Vec<f64> {
    let round = |&v: &f64| f64::from(f32::from_bits(u32::from(bf16_bits(v as f32)) << 16));
    values.iter().map(round).collect()
}

fn cases() -> Vec<(Case, bool)> {
    let case = |(tokens, features), rank, counts: &[usize], gap, threshold, dtype| Case {
        tokens,
        features,
        rank,
        counts: counts.to_vec(),
        gap,
        threshold,
        dtype,
    };
    let (f32, bf16) = (Dtype::F32, Dtype::Bf16);
    vec![
        (case((70, 96), 16, &[120, 8, 64], 8, Some(19_661), bf16), true),
        (case((1100, 896), 16, &[896, 128, 128], 0, Some(3277), bf16), true),
        (case((333, 4864), 16, &[896], 0, Some(3277), bf16), true),
        (case((200, 128), 16, &[2304, 2304], 0, None, bf16), true),
        (case((129, 200), 8, &[264, 40], 8, Some(0), bf16), true),
        (case((65, 64), 20, &[16, 520], 8, Some(60_000), bf16), true),
        (case((300, 328), 32, &[136, 264], 0, Some(3277), bf16), true),
        (case((5, 8), 64, &[8], 0, Some(1), bf16), true),
        (case((1, 40), 1, &[24, 8, 8], 0, Some(30_000), bf16), true),
        (case((67, 72), 2, &[24, 8, 8], 0, Some(30_000), bf16), true),
        (case((100, 64), 34, &[72, 16], 0, Some(9_000), bf16), true),
        (case((70, 96), 65, &[120, 8, 64], 8, Some(19_661), bf16), true),
        (case((150, 136), 100, &[72, 264], 0, Some(9_000), bf16), true),
        (case((300, 328), 128, &[136, 264, 8], 8, Some(3277), bf16), true),
        (case((129, 200), 256, &[264, 40], 8, None, bf16), true),
        (case((5, 8), 1024, &[8], 0, Some(1), bf16), true),
        (case((37, 45), 5, &[7, 9, 130], 1, Some(19_661), bf16), false),
        (case((140, 33), 257, &[31], 3, Some(9_000), bf16), false),
        (case((20, 33), 16, &[31], 3, None, bf16), false),
        (case((37, 45), 5, &[7, 9, 130], 1, Some(19_661), f32), false),
        (case((301, 896), 16, &[896, 128, 128], 0, Some(3277), f32), false),
        (case((66, 2056), 64, &[40, 8], 8, Some(3277), f32), false),
        (case((3, 1030), 33, &[3], 0, None, f32), false),
        (case((37, 45), 65, &[7, 9, 130], 1, Some(19_661), f32), false),
        (case((3, 100), 1024, &[3, 30, 1], 0, Some(30_000), f32), false),
    ]
}

#[test]
fn lora_forward_equals_plain_loops() {
    let mut rng = Random::new("lora forward");
    for (case, fast) in cases() {
        let (what, op) = (case.name(), Operands::new(&mut rng, &case));
        let u = poisoned((case.tokens, case.width()), 3, Dtype::F32);
        let dropout = op.dropout(&case);
        let work =
            lora::down(&op.x, &op.a(), &u, dropout.as_ref(), &op.scalars, Some(&op.augmented)).unwrap();
        assert_eq!(work.name().contains("mma"), fast, "{what}: {}", work.name());
        same_twice(&what, &work, &u);
        padding_untouched(&what, &u);
        let x = op.x_host(&case);
        let parts: Vec<Vec<f64>> = (0..case.modules())
            .map(|m| times_transposed(&op.dropped(&case, m, &x), &op.a[m].host, case.features))
            .collect();
        let expected: Vec<f64> = (0..case.tokens)
            .flat_map(|t| parts.iter().flat_map(move |p| p[t * case.rank..(t + 1) * case.rank].to_vec()))
            .collect();
        close(&format!("{what} u"), &u, &expected, Kind::Product);
        augmented_holds_u(&what, &case, &op, &u);

        let y = random(&mut rng, (case.tokens, case.outputs()), 1, case.dtype, 1.0);
        let before = y.tensor.read_rows().unwrap();
        let mut expected = y.host.clone();
        let u = random(&mut rng, (case.tokens, case.width()), 1, Dtype::F32, 1.0);
        for (m, &(start, count)) in case.cols().iter().enumerate() {
            let left = cut(&u.host, case.width(), (m * case.rank, case.rank));
            let product = times_transposed(&left, &op.b[m].host, case.rank);
            for (i, value) in product.iter().enumerate() {
                expected[i / count * case.outputs() + start + i % count] += f64::from(SCALE) * value;
            }
        }
        let work = lora::up(&u.tensor, &op.b(), &y.tensor, &case.cols(), &op.scalars).unwrap();
        run_twice(&format!("{what} y"), &work, &[&y.tensor]);
        close(&format!("{what} y"), &y.tensor, &expected, Kind::Product);
        padding_untouched(&what, &y.tensor);
        let after = y.tensor.read_rows().unwrap();
        let size = case.dtype.bytes();
        let owned = |c: usize| case.cols().iter().any(|&(start, count)| (start..start + count).contains(&c));
        let free = (0..before.len() / size).filter(|i| !owned(i % case.outputs()));
        for i in free {
            assert_eq!(before[i * size..][..size], after[i * size..][..size], "{what}: a free column of y");
        }
    }
}

/// The columns behind `x` hold `u`, rounded, and zeros; `x` is as it was, and nothing behind them was written.
#[track_caller]
fn augmented_holds_u(what: &str, case: &Case, op: &Operands, u: &Tensor) {
    let found = op.wide.tensor.download().unwrap();
    let u = u.download().unwrap();
    let pitch = case.features + case.augmented();
    for (i, &value) in found.iter().enumerate() {
        let (t, c) = (i / pitch, i % pitch);
        let expected = match c.checked_sub(case.features) {
            None => op.wide.host[i] as f32,
            Some(k) if k < case.width() => {
                let exact = u[t * case.width() + k];
                if case.dtype == Dtype::Bf16 { rounded(&[f64::from(exact)])[0] as f32 } else { exact }
            }
            Some(_) => 0.0,
        };
        assert_eq!(value.to_bits(), expected.to_bits(), "{what}: column {c} of token {t}");
    }
    padding_untouched(what, &op.wide.tensor);
}

/// Random numbers that bfloat16 holds, so that its rounding counts for nothing; in bfloat16 themselves where tensor cores are
/// to take them.
pub(crate) fn inner(rng: &mut Random, case: &Case, fast: bool) -> Matrix {
    let shape = (case.tokens, case.width());
    let values = rounded(&random(rng, shape, 0, Dtype::F32, 1.0).host);
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let pad = if fast { case.width() % 2 + 6 } else { 1 };
    given(&values, shape, pad, if fast { Dtype::Bf16 } else { Dtype::F32 })
}

#[test]
fn lora_gradients_equal_plain_loops() {
    let mut rng = Random::new("lora gradients");
    for (case, fast) in cases() {
        let fast = fast && case.rank % 2 == 0;
        assert!(!fast || lora::takes(case.features, case.rank, &case.cols()), "{}", case.name());
        let (what, op) = (case.name(), Operands::new(&mut rng, &case));
        let u = inner(&mut rng, &case, false);
        let d_y = random(&mut rng, (case.tokens, case.outputs()), 8 * case.gap, case.dtype, 1.0);
        let exact = poisoned((case.tokens, case.width()), 2 * (case.width() % 2), Dtype::F32);
        let (cols, b) = (case.cols(), op.b());
        let work = lora::grad_inner(&d_y.tensor, &b, &cols, &exact, &op.scalars).unwrap();
        same_twice(&format!("{what} d_u"), &work, &exact);
        padding_untouched(&what, &exact);
        close(&format!("{what} d_u"), &exact, &expected_d_u(&case, &op, &d_y), Kind::Product);

        let d_u = inner(&mut rng, &case, fast);
        let gradients = Gradients::new(&mut rng, &case);
        let (scratch, d_a, d_b) = (scratch(&case), tensors(&gradients.d_a), tensors(&gradients.d_b));
        let outer = lora::Outer {
            u: &u.tensor,
            d_y: &d_y.tensor,
            cols: &cols,
            d_u: &d_u.tensor,
            d_a: &d_a,
            d_b: &d_b,
            scratch: &scratch,
        };
        let dropout = op.dropout(&case);
        let params = lora::Params { x: &op.x, outer };
        let works = gradients_of(&params, dropout.as_ref(), &op.scalars);
        assert_eq!(works[0].name().contains("mma"), fast, "{what}: {}", works[0].name());
        let first = gradients.run(&works);
        scratch.memory().fill(0xFF).unwrap();
        gradients.reset();
        assert!(first == gradients.run(&works), "{what}: two runs differ");

        let x = op.x_host(&case);
        for (m, &columns) in cols.iter().enumerate() {
            let sums = op.sums_of_a(&case, m, &d_u.host, &x);
            let expected: Vec<f64> = gradients.d_a[m].host.iter().zip(sums).map(|(a, b)| a + b).collect();
            close(&format!("{what} d_A {m}"), &d_a[m], &expected, Kind::Product);
            let expected = expected_d_b(&case, m, columns, (&d_y, &u), &gradients.d_b[m]);
            close(&format!("{what} d_B {m}"), &d_b[m], &expected, Kind::Product);
        }
        input_gradient(&mut rng, &what, (&case, fast), &op, &d_u);
    }
}

/// `d_B` of a module after its gradient was added to what it was.
pub(crate) fn expected_d_b(
    case: &Case,
    m: usize,
    columns: (usize, usize),
    (d_y, u): (&Matrix, &Matrix),
    before: &Matrix,
) -> Vec<f64> {
    let left = transposed(&cut(&d_y.host, case.outputs(), columns), columns.1);
    let right = transposed(&cut(&u.host, case.width(), (m * case.rank, case.rank)), case.rank);
    let sums = times_transposed(&left, &right, case.tokens);
    before.host.iter().zip(sums).map(|(a, b)| a + f64::from(SCALE) * b).collect()
}

fn expected_d_u(case: &Case, op: &Operands, d_y: &Matrix) -> Vec<f64> {
    let mut d_u = vec![0.0; case.tokens * case.width()];
    for (m, &columns) in case.cols().iter().enumerate() {
        let left = cut(&d_y.host, case.outputs(), columns);
        let product = times_transposed(&left, &transposed(&op.b[m].host, case.rank), columns.1);
        for (i, value) in product.iter().enumerate() {
            let at = i / case.rank * case.width() + m * case.rank + i % case.rank;
            d_u[at] = f64::from(SCALE) * value;
        }
    }
    d_u
}

fn input_gradient(rng: &mut Random, what: &str, (case, fast): (&Case, bool), op: &Operands, d_u: &Matrix) {
    let pad = if fast { 8 } else { 1 };
    let d_x = random(rng, (case.tokens, case.features), pad, case.dtype, 1.0);
    let share = op.input_share(case, &d_u.host);
    let expected: Vec<f64> = d_x.host.iter().zip(share).map(|(a, b)| a + b).collect();
    let dropout = op.dropout(case);
    let work = lora::grad_input(&d_u.tensor, &op.a(), &d_x.tensor, dropout.as_ref(), &op.scalars).unwrap();
    assert_eq!(work.name().contains("mma"), fast, "{what}: {}", work.name());
    run_twice(&format!("{what} d_x"), &work, &[&d_x.tensor]);
    close(&format!("{what} d_x"), &d_x.tensor, &expected, Kind::Product);
    padding_untouched(what, &d_x.tensor);
}

pub(crate) fn scratch(case: &Case) -> Tensor {
    let bytes = lora::scratch_bytes(case.tokens, case.features, case.rank, &case.cols());
    poisoned((1, bytes / 4), 0, Dtype::F32)
}

pub(crate) fn tensors(matrices: &[Matrix]) -> Vec<Tensor> {
    matrices.iter().map(|matrix| matrix.tensor.clone()).collect()
}

/// Gradients of parameters with something in them.
pub(crate) struct Gradients {
    pub(crate) d_a: Vec<Matrix>,
    pub(crate) d_b: Vec<Matrix>,
}

impl Gradients {
    pub(crate) fn new(rng: &mut Random, case: &Case) -> Self {
        let a = (0..case.modules()).map(|_| random(rng, (case.rank, case.features), 0, Dtype::F32, 1.0));
        let d_a = a.collect();
        let b = case.counts.iter().map(|&n| random(rng, (n, case.rank), 0, Dtype::F32, 1.0));
        Gradients { d_a, d_b: b.collect() }
    }

    pub(crate) fn reset(&self) {
        for matrix in self.d_a.iter().chain(&self.d_b) {
            let values: Vec<f32> = matrix.host.iter().map(|&v| v as f32).collect();
            matrix.tensor.upload(&values).unwrap();
        }
    }

    /// Their bytes after the work.
    pub(crate) fn run(&self, works: &[Work]) -> Vec<Vec<u8>> {
        run_all(gpu(), works).unwrap();
        self.d_a.iter().chain(&self.d_b).map(|matrix| matrix.tensor.read_rows().unwrap()).collect()
    }
}

/// With unit matrices as factors each result is one element of `drop(x)`: kept and dropped ones are told apart exactly.
#[test]
fn lora_masks_equal_those_of_the_cpu() {
    let mut rng = Random::new("lora masks");
    for (dtype, features) in [(Dtype::Bf16, 64), (Dtype::F32, 64), (Dtype::Bf16, 63)] {
        let case = Case {
            tokens: 64,
            features,
            rank: 64,
            counts: vec![64, 64, 64],
            gap: 0,
            threshold: Some(20_000),
            dtype,
        };
        let mut op = Operands::new(&mut rng, &case);
        let unit = |rows: usize, cols: usize, value: f32| {
            let values: Vec<f32> =
                (0..rows * cols).map(|i| if i / cols == i % cols { value } else { 0.0 }).collect();
            given(&values, (rows, cols), 0, dtype)
        };
        op.a = (0..3).map(|_| unit(64, features, 1.0)).collect();
        op.b = (0..3).map(|_| unit(64, 64, 1.0)).collect();
        let keep = 65_536.0f32 / (65_536.0 - 20_000.0);
        let kept: Vec<Vec<bool>> = (0..3).map(|m| op.masks.kept(m, features)).collect();
        let dropout = op.dropout(&case);

        let u = poisoned((64, 192), 0, Dtype::F32);
        run(&lora::down(&op.x, &op.a(), &u, dropout.as_ref(), &op.scalars, None).unwrap());
        let x = op.x_host(&case);
        for (i, value) in u.download().unwrap().into_iter().enumerate() {
            let (t, m, f) = (i / 192, i % 192 / 64, i % 64);
            let here = f < features && kept[m][t * features + f];
            let expected = if here { x[t * features + f] as f32 * keep } else { 0.0 };
            assert_eq!(value, expected, "{dtype:?} u: token {t}, module {m}, feature {f}");
        }

        // d_u = scale d_y B is scale times a unit matrix for each module.
        let ones: Vec<f32> = (0..64 * 192).map(|i| f32::from(i / 192 == i % 64)).collect();
        let d_y = given(&ones, (64, 192), 0, dtype);
        let (exact, scratch) = (poisoned((64, 192), 0, Dtype::F32), scratch(&case));
        let zeros = |rows, cols| given(&vec![0.0; rows * cols], (rows, cols), 0, Dtype::F32);
        let d_a: Vec<Tensor> = (0..3).map(|_| zeros(64, features).tensor).collect();
        let d_b: Vec<Tensor> = (0..3).map(|_| zeros(64, 64).tensor).collect();
        let (b, cols) = (op.b(), case.cols());
        run(&lora::grad_inner(&d_y.tensor, &b, &cols, &exact, &op.scalars).unwrap());
        let fast = dtype == Dtype::Bf16 && features == 64;
        let values = exact.download().unwrap();
        let d_u = given(&values, (64, 192), 0, if fast { Dtype::Bf16 } else { Dtype::F32 }).tensor;
        let outer = lora::Outer {
            u: &u,
            d_y: &d_y.tensor,
            cols: &cols,
            d_u: &d_u,
            d_a: &d_a,
            d_b: &d_b,
            scratch: &scratch,
        };
        let params = lora::Params { x: &op.x, outer };
        let works = gradients_of(&params, dropout.as_ref(), &op.scalars);
        run_all(gpu(), &works).unwrap();
        for (m, d_a) in d_a.iter().enumerate() {
            for (i, value) in d_a.download().unwrap().into_iter().enumerate() {
                let expected = if kept[m][i] { keep * (SCALE * x[i] as f32) } else { 0.0 };
                assert_eq!(value, expected, "{dtype:?} d_A: token {}, module {m}", i / features);
            }
        }

        kept_in_the_input_gradient(&op, &case, &d_u, &kept);
    }
}

/// One module at a time: the sum over modules would hide which of them was dropped.
fn kept_in_the_input_gradient(op: &Operands, case: &Case, d_u: &Tensor, kept: &[Vec<bool>]) {
    let shape = (64, case.features);
    for (m, kept) in kept.iter().enumerate() {
        let filled = |value| given(&vec![value; 64 * case.features], shape, 0, case.dtype);
        let (d_x, ones) = (filled(0.0), filled(1.0));
        let modules = [op.masks.modules[m]];
        let one = op.dropout(case).map(|d| lora::Dropout { modules: &modules, ..d });
        let d_u = d_u.columns(64 * m, 64).unwrap();
        run(&lora::grad_input(&d_u, &[ones.tensor], &d_x.tensor, one.as_ref(), &op.scalars).unwrap());
        for (i, value) in d_x.tensor.download().unwrap().into_iter().enumerate() {
            assert_eq!(value != 0.0, kept[i], "{:?} d_x: {value} at {i}, module {m}", case.dtype);
        }
    }
}

#[test]
fn lora_weights_are_packed_as_a_block_diagonal() {
    let mut rng = Random::new("lora pack");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let case =
            Case { tokens: 1, features: 8, rank: 5, counts: vec![7, 9, 30], gap: 2, threshold: None, dtype };
        let op = Operands::new(&mut rng, &case);
        let tail = poisoned((case.outputs(), 24), 3, Dtype::Bf16);
        let work = lora::pack_b(&op.b(), &tail, &case.cols(), &op.scalars).unwrap();
        same_twice("pack", &work, &tail);
        padding_untouched("pack", &tail);
        let mut expected = vec![0.0f32; case.outputs() * 24];
        for (m, &(start, count)) in case.cols().iter().enumerate() {
            for i in 0..count * 5 {
                let exact = SCALE * op.b[m].host[i] as f32;
                expected[(start + i / 5) * 24 + m * 5 + i % 5] = rounded(&[f64::from(exact)])[0] as f32;
            }
        }
        assert_eq!(tail.download().unwrap(), expected, "{dtype:?}");
    }
}

#[test]
fn packing_all_at_once_equals_packing_one_by_one() {
    let mut rng = Random::new("lora pack all");
    let shape = |rank, counts: &[usize], gap| Case {
        tokens: 1,
        features: 8,
        rank,
        counts: counts.to_vec(),
        gap,
        threshold: None,
        dtype: Dtype::Bf16,
    };
    let cases = [
        shape(16, &[896, 128, 128], 0),
        shape(5, &[7, 9, 30], 2),
        shape(16, &[40, 40], 0),
        shape(64, &[33], 0),
    ];
    let all: Vec<Operands> = cases.iter().map(|case| Operands::new(&mut rng, case)).collect();
    let tails: Vec<[Tensor; 2]> =
        cases.iter().map(|case| [0, 1].map(|_| poisoned((case.outputs(), 64), 8, Dtype::Bf16))).collect();
    let entries = cases.iter().zip(&all).zip(&tails).map(|((case, op), tails)| lora::Packing {
        b: op.b(),
        tail: tails[0].clone(),
        cols: case.cols(),
    });
    let table = lora::PackTable::new(gpu(), entries.collect()).unwrap();
    run(&table.pack(&all[0].scalars).unwrap());
    for ((case, op), [at_once, one]) in cases.iter().zip(&all).zip(&tails) {
        run(&lora::pack_b(&op.b(), one, &case.cols(), &op.scalars).unwrap());
        assert!(at_once.read_rows().unwrap() == one.read_rows().unwrap(), "{}", case.name());
        padding_untouched(&case.name(), at_once);
    }
}

#[test]
fn lora_operands_that_do_not_fit_are_refused() {
    let mut rng = Random::new("lora refused");
    let case = Case {
        tokens: 4,
        features: 8,
        rank: 4,
        counts: vec![8, 8],
        gap: 0,
        threshold: Some(1),
        dtype: Dtype::Bf16,
    };
    let op = Operands::new(&mut rng, &case);
    let u = poisoned((4, 8), 0, Dtype::F32);
    let refused = |work: Result<Work, kernels::cuda::CudaError>, text: &str| {
        let error = work.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    let four: Vec<Tensor> = op.a().into_iter().cycle().take(4).collect();
    refused(lora::down(&op.x, &four, &u, None, &op.scalars, None), "4 modules in a group, not 1 to 3");
    refused(lora::down(&op.x, &op.a()[..1], &u, None, &op.scalars, None), "u is 4 x 8, not 4 x 4");
    let narrow = op.wide.tensor.columns(8, 4).unwrap();
    refused(lora::down(&op.x, &op.a(), &u, None, &op.scalars, Some(&narrow)), "4 columns for 8");
    let dropout = lora::Dropout { modules: &[1], ..op.dropout(&case).unwrap() };
    refused(lora::down(&op.x, &op.a(), &u, Some(&dropout), &op.scalars, None), "masks of 1 modules for 2");
    let y = poisoned((4, 16), 0, Dtype::Bf16);
    refused(lora::up(&u, &op.b(), &y, &[(0, 8), (4, 8)], &op.scalars), "modules share columns");
    refused(lora::up(&u, &op.b(), &y, &[(0, 8), (9, 8)], &op.scalars), "columns 9..17 of 16");
    let short = op.scalars.columns(0, 64).unwrap();
    refused(lora::up(&u, &op.b(), &y, &case.cols(), &short), "scalars are 64 bytes");
}
