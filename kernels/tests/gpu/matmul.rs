use crate::support::{
    Kind, Random, close, close_beside, gpu, padding_untouched, poisoned, random, run, run_twice, same_twice,
};
use kernels::cuda::{
    Dtype, Finish, Form, Matmul, Tensor, WORKSPACE_BYTES, Work, few_rows, few_rows_bytes, split, split_bytes,
};

/// A product by plain loops; factors are given in the layout of `form`.
fn reference(form: Form, (m, n, k): (usize, usize, usize), a: &[f64], b: &[f64]) -> Vec<f64> {
    let at = |i: usize, p: usize| if form == Form::Tn { a[p * m + i] } else { a[i * k + p] };
    let bt = |p: usize, j: usize| if form == Form::Nt { b[j * k + p] } else { b[p * n + j] };
    (0..m * n).map(|e| (0..k).map(|p| at(e / n, p) * bt(p, e % n)).sum()).collect()
}

fn factors(form: Form, (m, n, k): (usize, usize, usize)) -> ((usize, usize), (usize, usize)) {
    let a = if form == Form::Tn { (k, m) } else { (m, k) };
    (a, if form == Form::Nt { (n, k) } else { (k, n) })
}

#[test]
fn products_equal_plain_loops() {
    let workspace = gpu().alloc(WORKSPACE_BYTES, "a test").unwrap();
    let mut rng = Random::new("matmul");
    let types = [(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::Bf16), (Dtype::Bf16, Dtype::F32)];
    for (input, output) in types {
        for form in [Form::Nt, Form::Nn, Form::Tn] {
            for sizes in [(1, 1, 1), (3, 5, 7), (33, 65, 31), (128, 64, 96), (130, 72, 200)] {
                let (m, n, _) = sizes;
                let (a_shape, b_shape) = factors(form, sizes);
                let a = random(&mut rng, a_shape, 8, input, 1.0);
                let b = random(&mut rng, b_shape, 0, input, 1.0);
                let expected = reference(form, sizes, &a.host, &b.host);
                let what = format!("{form:?} {sizes:?} {input:?}>{output:?}");
                let c = poisoned((m, n), 8, output);
                let work = Matmul::new(&workspace, form, (&a.tensor, &b.tensor, &c), false).unwrap();
                same_twice(&what, &Work::from(work), &c);
                close(&what, &c, &expected, Kind::Product);
                padding_untouched(&what, &c);
                let c = random(&mut rng, (m, n), 0, output, 1.0);
                let added: Vec<f64> = expected.iter().zip(&c.host).map(|(x, y)| x + y).collect();
                let work = Matmul::new(&workspace, form, (&a.tensor, &b.tensor, &c.tensor), true).unwrap();
                run_twice(&format!("{what}, added"), &Work::from(work), &[&c.tensor]);
                close(&format!("{what}, added"), &c.tensor, &added, Kind::Product);
            }
        }
    }
}

#[test]
fn a_finished_product_equals_plain_loops() {
    let workspace = gpu().alloc(WORKSPACE_BYTES, "a test").unwrap();
    let mut rng = Random::new("finish");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for sizes in [(3, 5, 7), (33, 72, 31), (130, 1152, 200), (64, 896, 960)] {
            let (m, n, k) = sizes;
            let a = random(&mut rng, (m, k), 8, dtype, 1.0);
            let b = random(&mut rng, (n, k), 0, dtype, 1.0);
            let product = reference(Form::Nt, sizes, &a.host, &b.host);
            let addend = random(&mut rng, (m, n), 16, dtype, 8.0);
            let bias = random(&mut rng, (1, n), 0, dtype, 8.0);
            for (with_addend, with_bias) in [(true, false), (false, true), (true, true)] {
                let what = format!("{sizes:?} {dtype:?} addend {with_addend} bias {with_bias}");
                let finish = Finish {
                    addend: with_addend.then_some(&addend.tensor),
                    bias: with_bias.then_some(&bias.tensor),
                };
                let c = poisoned((m, n), 8, dtype);
                let work = Matmul::finished(&workspace, Form::Nt, (&a.tensor, &b.tensor, &c), finish);
                same_twice(&what, &Work::from(work.unwrap()), &c);
                let more = |i: usize| {
                    let addend = if with_addend { addend.host[i] } else { 0.0 };
                    addend + if with_bias { bias.host[i % n] } else { 0.0 }
                };
                let expected: Vec<f64> = product.iter().enumerate().map(|(i, v)| v + more(i)).collect();
                close(&what, &c, &expected, Kind::Product);
                padding_untouched(&what, &c);
            }
        }
    }
}

#[test]
fn a_split_product_equals_plain_loops() {
    let workspace = gpu().alloc(WORKSPACE_BYTES, "a test").unwrap();
    let mut rng = Random::new("split");
    for (input, output) in [(Dtype::Bf16, Dtype::Bf16), (Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::F32)] {
        for form in [Form::Nt, Form::Nn, Form::Tn] {
            let sizes = (24, 40, 3 * 4096);
            let (a_shape, b_shape) = factors(form, sizes);
            let a = random(&mut rng, a_shape, 8, input, 1.0);
            let b = random(&mut rng, b_shape, 8, input, 1.0);
            let bytes = split_bytes(form, &a.tensor, &b.tensor);
            assert_eq!(bytes, 3 * 24 * 40 * 4);
            let scratch: Tensor = poisoned((1, bytes), 0, Dtype::U8);
            let expected = reference(form, sizes, &a.host, &b.host);
            let what = format!("split {form:?} {input:?}>{output:?}");
            let c = poisoned((24, 40), 8, output);
            let all = split(&workspace, &scratch, form, (&a.tensor, &b.tensor, &c), false).unwrap();
            all.iter().for_each(run);
            close(&what, &c, &expected, Kind::Product);
            padding_untouched(&what, &c);
            let first = c.read_rows().unwrap();
            all.iter().for_each(run);
            assert!(first == c.read_rows().unwrap(), "{what}: two runs differ");
        }
    }
}

#[test]
fn a_row_keeps_its_bits_among_any_number_of_rows() {
    let workspace = gpu().alloc(WORKSPACE_BYTES, "a test").unwrap();
    let mut rng = Random::new("few rows");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (n, k) in [(1, 1), (72, 96), (1003, 56), (896, 896), (896, 4864), (40, 8 * 640)] {
            let most = 200;
            let a = random(&mut rng, (most, k), 8, dtype, 1.0);
            let b = random(&mut rng, (n, k), 0, dtype, 1.0);
            let addend = random(&mut rng, (most, n), 8, dtype, 1.0);
            let bias = random(&mut rng, (1, n), 0, dtype, 1.0);
            let product = reference(Form::Nt, (most, n, k), &a.host, &b.host);
            let expected: Vec<f64> =
                (0..most * n).map(|e| product[e] + addend.host[e] + bias.host[e % n]).collect();
            let mut all = Vec::new();
            for m in [most, 1, 3, 4, 16, 33, 64, 65, 128] {
                let (x, more) = (a.tensor.row_range(0, m).unwrap(), addend.tensor.row_range(0, m).unwrap());
                let scratch = poisoned((1, few_rows_bytes(&x, &b.tensor)), 0, Dtype::U8);
                let c = poisoned((m, n), 8, dtype);
                let finish = Finish { addend: Some(&more), bias: Some(&bias.tensor) };
                let work = few_rows(&workspace, &scratch, (&x, &b.tensor, &c), finish).unwrap();
                work.iter().for_each(run);
                let what = format!("{m} rows {n}x{k} {dtype:?}");
                // In bfloat16 terms that cancel may be rounded before their sum is.
                let terms = product[..m * n].iter().chain(&addend.host[..m * n]).chain(&bias.host);
                let largest = terms.fold(0.0f64, |most, term| most.max(term.abs()));
                let beside = if dtype == Dtype::Bf16 { largest } else { 0.0 };
                close_beside(&what, &c, &expected[..m * n], Kind::Product, beside);
                padding_untouched(&what, &c);
                let bytes = c.read_rows().unwrap();
                if all.is_empty() {
                    all = bytes;
                } else {
                    assert!(bytes == all[..bytes.len()], "{what}: other bits than among {most}");
                }
            }
        }
    }
}
