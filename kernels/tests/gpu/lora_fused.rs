//! Gradients through adapters inside of what follows them.

use crate::lora::{
    Case, Gradients, Operands, SCALE, cut, expected_d_b, inner, rounded, scratch, tensors, times_transposed,
    transposed,
};
use crate::support::{
    Kind, Matrix, Random, close, close_beside, close_each, given, gpu, padding_untouched, poisoned, random,
    run, same_twice,
};
use kernels::cuda::ops::{lora, rms_norm};
use kernels::cuda::{Dtype, Tensor, Work, run_all};

fn case((tokens, features): (usize, usize), rank: usize, counts: &[usize], threshold: Option<u32>) -> Case {
    Case { tokens, features, rank, counts: counts.to_vec(), gap: 0, threshold, dtype: Dtype::Bf16 }
}

/// The work of `grad_params` with its sums.
pub(crate) fn gradients_of(
    params: &lora::Params<'_>,
    dropout: Option<&lora::Dropout<'_>>,
    scalars: &Tensor,
) -> Vec<Work> {
    let mut sums = lora::Sums::new();
    let works = lora::grad_params(params, dropout, scalars, &mut sums).unwrap();
    works.into_iter().chain(sums.take(scalars).unwrap()).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// What `lora_grad_swiglu` is to give: gradients of gate and up, and `h` as bfloat16 holds it.
fn swiglu_by_loops(gate_up: &Matrix, d: &[f64], cols: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut d_gate_up, mut h) = (vec![0.0; 2 * d.len()], Vec::with_capacity(d.len()));
    for (i, &d) in d.iter().enumerate() {
        let at = i / cols * 2 * cols + i % cols;
        let (gate, up) = (gate_up.host[at], gate_up.host[at + cols]);
        let s = 1.0 / (1.0 + (-gate).exp());
        h.push(silu(gate) * up);
        d_gate_up[at] = d * up * s * (1.0 + gate * (1.0 - s));
        d_gate_up[at + cols] = d * silu(gate);
    }
    (d_gate_up, rounded(&h))
}

#[test]
fn rank_products_behind_swiglu_equal_those_of_its_output() {
    let mut rng = Random::new("lora down swiglu");
    let cases = [
        case((70, 96), 16, &[40], Some(19_661)),
        case((515, 4864), 16, &[896], Some(3277)),
        case((200, 200), 8, &[264], None),
        case((33, 72), 3, &[8], Some(0)),
        case((1, 8), 10, &[16], Some(30_000)),
    ];
    for case in cases {
        let (what, op) = (format!("down swiglu {}", case.name()), Operands::new(&mut rng, &case));
        let shape = (case.tokens, case.features);
        let gate_up = random(&mut rng, (shape.0, 2 * shape.1), 8, Dtype::Bf16, 4.0);
        let h: Vec<f64> = (0..shape.0 * shape.1)
            .map(|i| {
                let at = i / shape.1 * 2 * shape.1 + i % shape.1;
                silu(gate_up.host[at]) * gate_up.host[at + shape.1]
            })
            .collect();
        let u = poisoned((case.tokens, case.rank), 3, Dtype::F32);
        let a = op.a();
        let down = lora::Down { x: &op.x, a: &a, u: &u, augmented: &op.augmented };
        let dropout = op.dropout(&case);
        let work = lora::down_swiglu(&gate_up.tensor, &down, dropout.as_ref(), &op.scalars).unwrap();
        op.x.memory().fill(0xFF).unwrap();
        same_twice(&what, &work, &u);
        padding_untouched(&what, &u);
        close(&format!("{what} h"), &op.x, &h, Kind::Elementwise);
        close_each(&format!("{what} h"), &op.x, &h, |_| 0.0, 20.0);
        products_of_the_input(&what, &case, &op, &u);
    }
}

/// `u`, and the columns behind the input, are those of what the device wrote as the input.
#[track_caller]
fn products_of_the_input(what: &str, case: &Case, op: &Operands, u: &Tensor) {
    let x: Vec<f64> = op.x.download().unwrap().into_iter().map(f64::from).collect();
    let parts: Vec<Vec<f64>> = (0..case.modules())
        .map(|m| times_transposed(&op.dropped(case, m, &x), &op.a[m].host, case.features))
        .collect();
    let rank = case.rank;
    let expected: Vec<f64> = (0..case.tokens)
        .flat_map(|t| parts.iter().flat_map(move |p| p[t * rank..(t + 1) * rank].to_vec()))
        .collect();
    close(&format!("{what} u"), u, &expected, Kind::Product);
    let exact: Vec<f64> = u.download().unwrap().into_iter().map(f64::from).collect();
    let behind = op.augmented.download().unwrap();
    let (cols, width) = (op.augmented.cols(), case.width());
    for (i, &value) in behind.iter().enumerate() {
        let inside = i % cols < width;
        let expected = if inside { rounded(&[exact[i / cols * width + i % cols]])[0] as f32 } else { 0.0 };
        assert_eq!(value.to_bits(), expected.to_bits(), "{what}: column {} of token {}", i % cols, i / cols);
    }
}

#[test]
fn rank_products_behind_a_norm_equal_those_of_its_output() {
    let mut rng = Random::new("lora down norm");
    let cases = [
        case((70, 96), 16, &[120, 8, 64], Some(19_661)),
        case((515, 896), 16, &[896, 128, 128], Some(3277)),
        case((200, 1024), 16, &[64, 64], None),
        case((33, 72), 3, &[8], Some(0)),
        case((1, 8), 10, &[16], Some(30_000)),
        // more blocks than any device has multiprocessors
        case((3201, 328), 16, &[64, 64, 8], Some(3277)),
        case((3130, 72), 8, &[72, 16], None),
        case((3300, 1024), 10, &[64], Some(9_000)),
    ];
    for case in cases {
        let (what, op) = (format!("down norm {}", case.name()), Operands::new(&mut rng, &case));
        let shape = (case.tokens, case.features);
        let of = random(&mut rng, shape, 8, Dtype::Bf16, 2.0);
        let weight = random(&mut rng, (1, shape.1), 0, Dtype::Bf16, 1.0);
        let rstd = poisoned((shape.0, 1), 0, Dtype::F32);
        let u = poisoned((case.tokens, case.width()), 3, Dtype::F32);
        let a = op.a();
        let down = lora::Down { x: &op.x, a: &a, u: &u, augmented: &op.augmented };
        let norm = lora::Normed { of: &of.tensor, weight: &weight.tensor, rstd: &rstd, eps: 1e-6 };
        let dropout = op.dropout(&case);
        let work = lora::down_norm(&norm, &down, dropout.as_ref(), &op.scalars).unwrap();
        op.x.memory().fill(0xFF).unwrap();
        same_twice(&what, &work, &u);
        padding_untouched(&what, &u);
        let by_loops: Vec<f64> = of
            .host
            .chunks(shape.1)
            .map(|row| {
                let squares: f64 = row.iter().map(|v| v * v).sum();
                1.0 / (squares / shape.1 as f64 + 1e-6).sqrt()
            })
            .collect();
        close(&format!("{what} rstd"), &rstd, &by_loops, Kind::Reduction);
        let normed: Vec<f64> = of
            .host
            .iter()
            .enumerate()
            .map(|(i, v)| v * by_loops[i / shape.1] * weight.host[i % shape.1])
            .collect();
        close(&format!("{what} n"), &op.x, &normed, Kind::Elementwise);
        products_of_the_input(&what, &case, &op, &u);
    }
}

/// Adapters of gate and up, with something in their gradients.
struct Above {
    rank: usize,
    u: Matrix,
    d_b: Vec<Matrix>,
    scratch: Tensor,
}

impl Above {
    fn new(rng: &mut Random, case: &Case, rank: usize) -> Self {
        let shape = (case.tokens, 2 * rank);
        let values = rounded(&random(rng, shape, 0, Dtype::F32, 1.0).host);
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        let u = given(&values, shape, 3, Dtype::F32);
        let d_b = (0..2).map(|_| random(rng, (case.features, rank), 0, Dtype::F32, 1.0)).collect();
        let bytes = lora::above_bytes(case.tokens, case.features, rank);
        Above { rank, u, d_b, scratch: poisoned((1, bytes / 4), 0, Dtype::F32) }
    }

    fn operands(&self) -> lora::Above<'_> {
        let [gate, up] = &self.d_b[..] else { unreachable!() };
        lora::Above { u: &self.u.tensor, d_b: [&gate.tensor, &up.tensor], scratch: &self.scratch }
    }

    fn reset(&self) {
        self.scratch.memory().fill(0xFF).unwrap();
        for d_b in &self.d_b {
            d_b.tensor.upload(&d_b.host.iter().map(|&v| v as f32).collect::<Vec<_>>()).unwrap();
        }
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        self.d_b.iter().map(|d_b| d_b.tensor.read_rows().unwrap()).collect()
    }

    /// Against the gradients of gate and up that the device wrote.
    #[track_caller]
    fn check(&self, what: &str, features: usize, d_gate_up: &Tensor) {
        let d_y: Vec<f64> = d_gate_up.download().unwrap().into_iter().map(f64::from).collect();
        for (m, before) in self.d_b.iter().enumerate() {
            let left = transposed(&cut(&d_y, 2 * features, (m * features, features)), features);
            let right = transposed(&cut(&self.u.host, 2 * self.rank, (m * self.rank, self.rank)), self.rank);
            let sums = times_transposed(&left, &right, self.u.tensor.rows());
            let expected: Vec<f64> =
                before.host.iter().zip(sums).map(|(a, b)| a + f64::from(SCALE) * b).collect();
            close(&format!("{what} d_B above {m}"), &before.tensor, &expected, Kind::Product);
        }
    }
}

#[test]
fn the_gradient_of_swiglu_with_an_adapter_behind_it_equals_plain_loops() {
    let mut rng = Random::new("lora swiglu");
    let cases = [
        (case((70, 96), 16, &[40], Some(19_661)), Some(16)),
        (case((515, 4864), 16, &[896], Some(3277)), Some(16)),
        (case((2000, 200), 8, &[264], None), None),
        (case((300, 520), 8, &[264], None), Some(12)),
        (case((33, 72), 2, &[8], Some(0)), Some(2)),
        (case((1, 8), 10, &[16], Some(30_000)), Some(5)),
        (case((1100, 64), 16, &[64], Some(60_000)), None),
    ];
    for (case, above) in cases {
        let (what, op) = (format!("swiglu {}", case.name()), Operands::new(&mut rng, &case));
        let shape = (case.tokens, case.features);
        let gate_up = random(&mut rng, (shape.0, 2 * shape.1), 8, Dtype::Bf16, 4.0);
        let d_h = random(&mut rng, shape, 16, Dtype::Bf16, 1.0);
        let (u, d_u) = (inner(&mut rng, &case, false), inner(&mut rng, &case, true));
        let d_y = random(&mut rng, (case.tokens, case.outputs()), 8, Dtype::Bf16, 1.0);
        let d_gate_up = poisoned((shape.0, 2 * shape.1), 8, Dtype::Bf16);
        let (gradients, above) =
            (Gradients::new(&mut rng, &case), above.map(|rank| Above::new(&mut rng, &case, rank)));
        let cols = case.cols();
        let bytes = lora::swiglu_bytes(case.tokens, case.features, case.rank, &cols);
        let scratch = poisoned((1, bytes / 4), 0, Dtype::F32);
        let (d_a, d_b) = (tensors(&gradients.d_a), tensors(&gradients.d_b));
        let outer = lora::Outer {
            u: &u.tensor,
            d_y: &d_y.tensor,
            cols: &cols,
            d_u: &d_u.tensor,
            d_a: &d_a,
            d_b: &d_b,
            scratch: &scratch,
        };
        let swiglu = lora::SwiGlu {
            gate_up: &gate_up.tensor,
            d_h: &d_h.tensor,
            d_gate_up: &d_gate_up,
            a: &op.a[0].tensor,
            above: above.as_ref().map(Above::operands),
        };
        let mut sums = lora::Sums::new();
        let dropout = op.dropout(&case);
        let works = lora::grad_swiglu(&outer, &swiglu, dropout.as_ref(), &op.scalars, &mut sums).unwrap();
        let works: Vec<Work> = works.into_iter().chain(sums.take(&op.scalars).unwrap()).collect();
        let first = gradients.run(&works);
        let written = (d_gate_up.read_rows().unwrap(), above.as_ref().map(Above::bytes));
        scratch.memory().fill(0xFF).unwrap();
        d_gate_up.memory().fill(0xFF).unwrap();
        gradients.reset();
        above.iter().for_each(Above::reset);
        assert!(first == gradients.run(&works), "{what}: two runs differ");
        let again = (d_gate_up.read_rows().unwrap(), above.as_ref().map(Above::bytes));
        assert!(written == again, "{what}: two runs differ");
        padding_untouched(&what, &d_gate_up);
        above.iter().for_each(|above| above.check(&what, case.features, &d_gate_up));

        let share = op.input_share(&case, &d_u.host);
        let d: Vec<f64> = d_h.host.iter().zip(share).map(|(a, b)| a + b).collect();
        let (expected, h) = swiglu_by_loops(&gate_up, &d, case.features);
        close(&format!("{what} d_gate_up"), &d_gate_up, &expected, Kind::Product);
        let sums = op.sums_of_a(&case, 0, &d_u.host, &h);
        let expected: Vec<f64> = gradients.d_a[0].host.iter().zip(sums).map(|(a, b)| a + b).collect();
        close(&format!("{what} d_A"), &d_a[0], &expected, Kind::Product);
        let expected = expected_d_b(&case, 0, cols[0], (&d_y, &u), &gradients.d_b[0]);
        close(&format!("{what} d_B"), &d_b[0], &expected, Kind::Product);
    }
}

#[test]
fn the_gradient_of_the_factors_a_alone_leaves_the_others_as_they_are() {
    let mut rng = Random::new("lora down alone");
    let cases = [case((515, 96), 16, &[40, 8, 64], Some(19_661)), case((130, 63), 3, &[40, 9], Some(9_000))];
    for case in cases {
        let (what, op) = (format!("down alone {}", case.name()), Operands::new(&mut rng, &case));
        let fast = case.features.is_multiple_of(8);
        let (u, d_u) = (inner(&mut rng, &case, false), inner(&mut rng, &case, fast));
        let d_y = random(&mut rng, (case.tokens, case.outputs()), 8, Dtype::Bf16, 1.0);
        let gradients = Gradients::new(&mut rng, &case);
        let (scratch, cols, dropout) = (scratch(&case), case.cols(), op.dropout(&case));
        let (d_a, d_b) = (tensors(&gradients.d_a), tensors(&gradients.d_b));
        let outer = lora::Outer {
            u: &u.tensor,
            d_y: &d_y.tensor,
            cols: &cols,
            d_u: &d_u.tensor,
            d_a: &d_a,
            d_b: &d_b,
            scratch: &scratch,
        };
        let (params, mut sums) = (lora::Params { x: &op.x, outer }, lora::Sums::new());
        let both = lora::grad_params(&params, dropout.as_ref(), &op.scalars, &mut sums).unwrap();
        run_all(gpu(), both.iter().chain(&sums.take(&op.scalars).unwrap())).unwrap();
        let expected: Vec<Vec<u8>> = d_a.iter().map(|d_a| d_a.read_rows().unwrap()).collect();
        gradients.reset();
        let before: Vec<Vec<u8>> = d_b.iter().map(|d_b| d_b.read_rows().unwrap()).collect();
        let alone = lora::grad_down(&params, dropout.as_ref(), &op.scalars, &mut sums).unwrap();
        run_all(gpu(), std::iter::once(&alone).chain(&sums.take(&op.scalars).unwrap())).unwrap();
        let found: Vec<Vec<u8>> = d_a.iter().map(|d_a| d_a.read_rows().unwrap()).collect();
        assert!(found == expected, "{what}: d_A differs");
        let after: Vec<Vec<u8>> = d_b.iter().map(|d_b| d_b.read_rows().unwrap()).collect();
        assert!(after == before, "{what}: d_B was written");
    }
}

#[test]
fn the_gradient_of_a_norm_with_adapters_behind_it_equals_plain_loops() {
    let mut rng = Random::new("lora norm");
    let cases = [
        case((70, 96), 16, &[120, 8, 64], Some(19_661)),
        case((515, 896), 16, &[896, 128, 128], Some(3277)),
        case((200, 1024), 16, &[64, 64], None),
        case((33, 72), 2, &[8], Some(0)),
        case((17, 328), 34, &[72, 16], Some(9_000)),
        case((1, 8), 10, &[16], Some(30_000)),
        case((70, 96), 100, &[120, 8, 64], Some(19_661)),
        case((35, 896), 128, &[896, 128, 128], Some(3277)),
        case((20, 1024), 256, &[64, 64], None),
        // more blocks than any device has multiprocessors
        case((3201, 328), 16, &[64, 64, 8], Some(3277)),
        case((3130, 72), 8, &[72, 16], None),
        case((3300, 1024), 10, &[64], Some(9_000)),
    ];
    for case in cases {
        let (what, op) = (format!("norm {}", case.name()), Operands::new(&mut rng, &case));
        let shape = (case.tokens, case.features);
        let x = random(&mut rng, shape, 8, Dtype::Bf16, 2.0);
        let weight = random(&mut rng, (1, shape.1), 0, Dtype::Bf16, 1.0);
        let (normed, rstd) = (poisoned(shape, 8, Dtype::Bf16), poisoned((shape.0, 1), 0, Dtype::F32));
        run(&rms_norm::forward(&x.tensor, &weight.tensor, &normed, &rstd, 1e-6).unwrap());
        let d_out = random(&mut rng, shape, 16, Dtype::Bf16, 1.0);
        let d_u = inner(&mut rng, &case, true);
        let before = random(&mut rng, shape, 8, Dtype::Bf16, 1.0);
        let start: Vec<f32> = before.host.iter().map(|&v| v as f32).collect();
        let out = poisoned(shape, 8, Dtype::Bf16);
        let norm = lora::Norm {
            x: &x.tensor,
            weight: &weight.tensor,
            rstd: &rstd,
            d_out: &d_out.tensor,
            d_x: &before.tensor,
            out: Some(&out),
        };
        let dropout = op.dropout(&case);
        let work = lora::grad_norm(&norm, &d_u.tensor, &op.a(), dropout.as_ref(), &op.scalars).unwrap();
        same_twice(&what, &work, &out);
        assert!(out.read_rows().unwrap() == normed.read_rows().unwrap(), "{what}: not the norm's output");
        padding_untouched(&what, &out);

        before.tensor.upload(&start).unwrap();
        let without = lora::Norm { out: None, ..norm };
        run(&lora::grad_norm(&without, &d_u.tensor, &op.a(), dropout.as_ref(), &op.scalars).unwrap());
        padding_untouched(&what, &before.tensor);
        let share = op.input_share(&case, &d_u.host);
        let d: Vec<f64> = d_out.host.iter().zip(share).map(|(a, b)| a + b).collect();
        let (expected, terms) = norm_by_loops([&x, &weight, &before], &rstd, &d, case.features);
        close_beside(&format!("{what} d_x"), &before.tensor, &expected, Kind::Product, terms);
    }
}

/// `before +` the gradient of RMS norm, and the largest of the terms that cancel in it.
fn norm_by_loops(
    [x, weight, before]: [&Matrix; 3],
    rstd: &Tensor,
    d: &[f64],
    cols: usize,
) -> (Vec<f64>, f64) {
    let rstd = rstd.download().unwrap();
    let (mut expected, mut terms) = (before.host.clone(), 0.0f64);
    for (row, &r) in rstd.iter().enumerate() {
        let r = f64::from(r);
        let at = |c: usize| row * cols + c;
        let dot: f64 = (0..cols).map(|c| x.host[at(c)] * d[at(c)] * weight.host[c]).sum();
        for c in 0..cols {
            let (own, shared) = (d[at(c)] * weight.host[c], x.host[at(c)] * r * r * dot / cols as f64);
            expected[at(c)] += r * (own - shared);
            terms = terms.max((r * own).abs()).max((r * shared).abs());
        }
    }
    (expected, terms)
}
