//! Times of the adapters' kernels and of NF4 at the sizes of a layer of Qwen2.5-0.5B. Prints; fails only when a launch does.

use crate::lora::bytes_of;
use crate::support::{Random, gpu, integers, poisoned};
use kernels::cuda::ops::{StepScalars, lora, nf4};
use kernels::cuda::{Dtype, Event, Graph, Schedule, Tensor, Work};
use std::sync::Arc;

const TOKENS: usize = 8192;
const RANK: usize = 16;
/// Input features and columns of each module.
const GROUPS: [(&str, usize, &[usize]); 4] = [
    ("q,k,v", 896, &[896, 128, 128]),
    ("o", 896, &[896]),
    ("gate,up", 896, &[4864, 4864]),
    ("down", 4864, &[896]),
];

/// Microseconds of one pass over `works`: the median of 25 replays of a graph that holds them `turns` times.
pub(crate) fn microseconds(works: Vec<Work>, turns: usize) -> f64 {
    let works = Arc::new(Schedule::in_order(gpu(), works).unwrap());
    works.run().unwrap();
    let graph = Graph::capture(gpu(), &works).unwrap();
    let (start, end) = (Event::new(gpu()).unwrap(), Event::new(gpu()).unwrap());
    let mut times: Vec<f32> = (0..30)
        .map(|_| {
            start.record().unwrap();
            graph.launch().unwrap();
            end.record().unwrap();
            end.wait().unwrap();
            end.ms_since(&start).unwrap()
        })
        .skip(5)
        .collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[times.len() / 2]) * 1e3 / turns as f64
}

/// Random rows, the same ones again and again.
fn filled(rng: &mut Random, (rows, cols): (usize, usize), dtype: Dtype, scale: f32) -> Tensor {
    let tensor = poisoned((rows, cols), 0, dtype);
    let block = rows.min(256);
    let values = rng.values(block * cols, scale);
    for start in (0..rows).step_by(block) {
        let count = block.min(rows - start);
        tensor.row_range(start, count).unwrap().upload(&values[..count * cols]).unwrap();
    }
    tensor
}

struct Set {
    x: Tensor,
    augmented: Tensor,
    u: Tensor,
    d_u: Tensor,
    d_y: Tensor,
    d_x: Tensor,
}

impl Set {
    fn new(rng: &mut Random, features: usize, modules: usize, outputs: usize) -> Self {
        let (bf16, width) = (Dtype::Bf16, modules * RANK);
        let wide = filled(rng, (TOKENS, features + width), bf16, 1.0);
        Set {
            x: wide.columns(0, features).unwrap(),
            augmented: wide.columns(features, width).unwrap(),
            u: filled(rng, (TOKENS, width), Dtype::F32, 1.0),
            d_u: filled(rng, (TOKENS, width), bf16, 1.0),
            d_y: filled(rng, (TOKENS, outputs), bf16, 0.01),
            d_x: filled(rng, (TOKENS, features), bf16, 0.01),
        }
    }
}

fn bench_group(rng: &mut Random, scalars: &Tensor, index: usize, dropout: bool) -> f64 {
    let (name, features, counts) = GROUPS[index];
    let outputs: usize = counts.iter().sum();
    let sets: Vec<Set> = (0..3).map(|_| Set::new(rng, features, counts.len(), outputs)).collect();
    let a: Vec<Tensor> = counts.iter().map(|_| filled(rng, (RANK, features), Dtype::Bf16, 0.03)).collect();
    let d_a: Vec<Tensor> = counts.iter().map(|_| filled(rng, (RANK, features), Dtype::F32, 1.0)).collect();
    let d_b: Vec<Tensor> = counts.iter().map(|&n| filled(rng, (n, RANK), Dtype::F32, 1.0)).collect();
    let cols: Vec<(usize, usize)> =
        (0..counts.len()).map(|m| (counts[..m].iter().sum(), counts[m])).collect();
    let scratch = poisoned((1, lora::scratch_bytes(TOKENS, features, RANK, &cols)), 0, Dtype::U8);
    let samples: Vec<u32> = (0..2 * TOKENS as u32).collect();
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let (samples, positions) = (integers(&samples, 2), integers(&positions, 1));
    let modules: Vec<u32> = (0..counts.len() as u32).collect();
    let masks = lora::Dropout { samples: &samples, positions: &positions, layer: 1, modules: &modules };
    let masks = dropout.then_some(&masks);
    let mut steps: Vec<Vec<Work>> = (0..5).map(|_| Vec::new()).collect();
    for set in &sets {
        let Set { x, augmented, u, d_u, d_y, d_x } = set;
        steps[0].push(lora::down(x, &a, u, masks, scalars, Some(augmented)).unwrap());
        let outer = lora::Outer { u, d_y, cols: &cols, d_u, d_a: &d_a, d_b: &d_b, scratch: &scratch };
        let params = lora::Params { x, outer };
        let mut sums = lora::Sums::new();
        let works = lora::grad_params(&params, masks, scalars, &mut sums).unwrap();
        works
            .into_iter()
            .chain(sums.take(scalars).unwrap())
            .zip(&mut steps[1..])
            .for_each(|(work, step)| step.push(work));
        steps[4].push(lora::grad_input(d_u, &a, d_x, masks, scalars).unwrap());
    }
    let mut sum = 0.0;
    for works in steps {
        let (kernel, bytes) = (works[0].name().to_owned(), works[0].cost().bytes);
        let time = microseconds(works, sets.len());
        sum += time;
        println!("{name:8} {kernel:24} {time:7.1} us {:6.0} GB/s", bytes / time / 1e3);
    }
    println!("{name:8} all {sum:27.1} us");
    sum
}

#[test]
fn bench_lora() {
    let mut rng = Random::new("bench_lora");
    println!("{}: {TOKENS} tokens, rank {RANK}", gpu().properties().name);
    for threshold in [None, Some(3277)] {
        let step =
            StepScalars { lora_scale: 2.0, drop_threshold: threshold.unwrap_or(0), ..StepScalars::default() };
        let scalars = bytes_of(&step.to_bytes());
        println!("threshold {threshold:?}");
        let groups = 0..GROUPS.len();
        let sum: f64 = groups.map(|index| bench_group(&mut rng, &scalars, index, threshold.is_some())).sum();
        let once: usize = GROUPS.iter().map(|(_, k, n)| 3 * k + n.iter().sum::<usize>()).sum();
        let bytes = (once * TOKENS * 2) as f64;
        println!("a layer: {sum:.1} us; x, d_y read once and d_x updated: {:.1} MB", bytes / 1e6);
    }
}

/// The plain kernels: float32.
#[test]
fn bench_lora_plain() {
    let mut rng = Random::new("bench_lora_plain");
    println!("{}: {TOKENS} tokens, rank {RANK}, float32", gpu().properties().name);
    let step = StepScalars { lora_scale: 2.0, drop_threshold: 3277, ..StepScalars::default() };
    let scalars = bytes_of(&step.to_bytes());
    let (samples, positions) = counters(TOKENS);
    for (name, features, counts) in GROUPS {
        let (outputs, width, f32): (usize, usize, Dtype) =
            (counts.iter().sum(), counts.len() * RANK, Dtype::F32);
        let modules: Vec<u32> = (0..counts.len() as u32).collect();
        let masks = lora::Dropout { samples: &samples, positions: &positions, layer: 1, modules: &modules };
        let mut new = |rows: usize, cols: usize| filled(&mut rng, (rows, cols), f32, 0.1);
        let [x, d_x] = [0, 1].map(|_| new(TOKENS, features));
        let (d_y, u, d_u) = (new(TOKENS, outputs), new(TOKENS, width), new(TOKENS, width));
        let a: Vec<Tensor> = counts.iter().map(|_| new(RANK, features)).collect();
        let d_a: Vec<Tensor> = counts.iter().map(|_| new(RANK, features)).collect();
        let b: Vec<Tensor> = counts.iter().map(|&n| new(n, RANK)).collect();
        let d_b: Vec<Tensor> = counts.iter().map(|&n| new(n, RANK)).collect();
        let cols: Vec<(usize, usize)> =
            (0..counts.len()).map(|m| (counts[..m].iter().sum(), counts[m])).collect();
        let scratch = poisoned((1, lora::scratch_bytes(TOKENS, features, RANK, &cols)), 0, Dtype::U8);
        let outer =
            lora::Outer { u: &u, d_y: &d_y, cols: &cols, d_u: &d_u, d_a: &d_a, d_b: &d_b, scratch: &scratch };
        let mut sums = lora::Sums::new();
        let params = lora::Params { x: &x, outer };
        let mut works = vec![lora::down(&x, &a, &u, Some(&masks), &scalars, None).unwrap()];
        works.push(lora::up(&u, &b, &d_y, &cols, &scalars).unwrap());
        works.push(lora::grad_inner(&d_y, &b, &cols, &d_u, &scalars).unwrap());
        works.extend(lora::grad_params(&params, Some(&masks), &scalars, &mut sums).unwrap());
        works.push(lora::grad_input(&d_u, &a, &d_x, Some(&masks), &scalars).unwrap());
        works.into_iter().for_each(|work| line(name, TOKENS, vec![work], 1));
    }
}

/// What stands inside of SwiGLU and the norms, for one layer.
#[test]
fn bench_lora_fused() {
    let mut rng = Random::new("bench_lora_fused");
    println!("{}", gpu().properties().name);
    for tokens in [2048, 8192] {
        let step = StepScalars { lora_scale: 2.0, drop_threshold: 3277, ..StepScalars::default() };
        let scalars = bytes_of(&step.to_bytes());
        for modules in [2, 3] {
            bench_norms(&mut rng, &scalars, tokens, modules);
        }
        bench_swiglu(&mut rng, &scalars, tokens);
    }
}

fn line(what: &str, tokens: usize, works: Vec<Work>, sets: usize) {
    let (kernel, bytes) = (works[0].name().to_owned(), works[0].cost().bytes);
    let time = microseconds(works, sets);
    println!("{what:8} {tokens:5} {kernel:28} {time:7.1} us {:6.0} GB/s", bytes / time / 1e3);
}

/// Counters of every token.
fn counters(tokens: usize) -> (Tensor, Tensor) {
    let samples: Vec<u32> = (0..2 * tokens as u32).collect();
    let positions: Vec<u32> = (0..tokens as u32).collect();
    (integers(&samples, 2), integers(&positions, 1))
}

fn bench_norms(rng: &mut Random, scalars: &Tensor, tokens: usize, modules: usize) {
    const COLS: usize = 896;
    let (samples, positions) = counters(tokens);
    let indices: Vec<u32> = (0..modules as u32).collect();
    let masks = lora::Dropout { samples: &samples, positions: &positions, layer: 1, modules: &indices };
    let (width, bf16) = (modules * RANK, Dtype::Bf16);
    let a: Vec<Tensor> = (0..modules).map(|_| filled(rng, (RANK, COLS), bf16, 0.03)).collect();
    let (weight, rstd) = (filled(rng, (1, COLS), bf16, 1.0), filled(rng, (tokens, 1), Dtype::F32, 1.0));
    let sets = (1 << 15) / tokens;
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for _ in 0..sets {
        let wide = filled(rng, (tokens, COLS + 64), bf16, 1.0);
        let (out, behind) = (wide.columns(0, COLS).unwrap(), wide.columns(COLS, 64).unwrap());
        let [x, d_out, d_x] = [1.0, 0.01, 0.01].map(|scale| filled(rng, (tokens, COLS), bf16, scale));
        let u = filled(rng, (tokens, width), Dtype::F32, 1.0);
        let d_u = filled(rng, (tokens, width), bf16, 1.0);
        let normed = lora::Normed { of: &x, weight: &weight, rstd: &rstd, eps: 1e-6 };
        let down = lora::Down { x: &out, a: &a, u: &u, augmented: &behind };
        forward.push(lora::down_norm(&normed, &down, Some(&masks), scalars).unwrap());
        let norm =
            lora::Norm { x: &x, weight: &weight, rstd: &rstd, d_out: &d_out, d_x: &d_x, out: Some(&out) };
        backward.push(lora::grad_norm(&norm, &d_u, &a, Some(&masks), scalars).unwrap());
    }
    line("norm", tokens, forward, sets);
    line("norm", tokens, backward, sets);
}

fn bench_swiglu(rng: &mut Random, scalars: &Tensor, tokens: usize) {
    const COLS: usize = 4864;
    const OUT: usize = 896;
    let (samples, positions) = counters(tokens);
    let masks = lora::Dropout { samples: &samples, positions: &positions, layer: 1, modules: &[6] };
    let (bf16, f32) = (Dtype::Bf16, Dtype::F32);
    let a = [filled(rng, (RANK, COLS), bf16, 0.03)];
    let (d_a, d_b) = ([filled(rng, (RANK, COLS), f32, 1.0)], [filled(rng, (OUT, RANK), f32, 1.0)]);
    let above_b: Vec<Tensor> = (0..2).map(|_| filled(rng, (COLS, RANK), f32, 1.0)).collect();
    let sets = (1 << 14) / tokens;
    let mut works: [Vec<Work>; 4] = Default::default();
    let scratch = poisoned((1, lora::swiglu_bytes(tokens, COLS, RANK, &[(0, OUT)])), 0, Dtype::U8);
    let room = poisoned((1, lora::above_bytes(tokens, COLS, RANK)), 0, Dtype::U8);
    for _ in 0..sets {
        let wide = filled(rng, (tokens, COLS + 64), bf16, 1.0);
        let (h, behind) = (wide.columns(0, COLS).unwrap(), wide.columns(COLS, 64).unwrap());
        let [gate_up, d_gate_up] = [1.0, 1.0].map(|scale| filled(rng, (tokens, 2 * COLS), bf16, scale));
        let (u, u_above) = (filled(rng, (tokens, RANK), f32, 1.0), filled(rng, (tokens, 2 * RANK), f32, 1.0));
        let d_u = filled(rng, (tokens, RANK), bf16, 1.0);
        let (d_h, d_y) = (filled(rng, (tokens, COLS), bf16, 0.01), filled(rng, (tokens, OUT), bf16, 0.01));
        let down = lora::Down { x: &h, a: &a, u: &u, augmented: &behind };
        works[0].push(lora::down_swiglu(&gate_up, &down, Some(&masks), scalars).unwrap());
        let cols = [(0, OUT)];
        let outer =
            lora::Outer { u: &u, d_y: &d_y, cols: &cols, d_u: &d_u, d_a: &d_a, d_b: &d_b, scratch: &scratch };
        let both = lora::Above { u: &u_above, d_b: [&above_b[0], &above_b[1]], scratch: &room };
        for (which, above) in [None, Some(both)].into_iter().enumerate() {
            let swiglu =
                lora::SwiGlu { gate_up: &gate_up, d_h: &d_h, d_gate_up: &d_gate_up, a: &a[0], above };
            let mut sums = lora::Sums::new();
            let all = lora::grad_swiglu(&outer, &swiglu, Some(&masks), scalars, &mut sums).unwrap();
            works[1 + which].extend(all.into_iter().next());
            let sums = sums.take(scalars).unwrap();
            works[3].extend(sums.into_iter().filter(|_| above.is_some()));
        }
    }
    works.into_iter().for_each(|works| line("swiglu", tokens, works, sets));
}

#[test]
fn bench_nf4() {
    let mut rng = Random::new("bench_nf4");
    println!("{}", gpu().properties().name);
    for (rows, cols) in [(896, 896), (4864, 896), (896, 4864), (24 * 4864, 896)] {
        let count = rows * cols;
        let codes = poisoned((1, count / 2), 0, Dtype::U8);
        let absmax = filled(&mut rng, (1, count / 64), Dtype::F32, 1.0);
        let maxima = poisoned((1, count / 64), 0, Dtype::U8);
        let nested = filled(&mut rng, (1, (count / 64).div_ceil(256)), Dtype::F32, 1.0);
        let (table, offset) =
            (filled(&mut rng, (1, 256), Dtype::F32, 1.0), filled(&mut rng, (1, 1), Dtype::F32, 1.0));
        let bytes: Vec<u8> =
            (0..count / 2).map(|i| (i as u32).wrapping_mul(0x9E37_79B9).to_le_bytes()[3]).collect();
        codes.upload_u8(&bytes).unwrap();
        maxima.upload_u8(&bytes[..count / 64]).unwrap();
        let sets = (200_000_000 / count).clamp(1, 16);
        let outs: Vec<Tensor> = (0..sets).map(|_| poisoned((rows, cols), 0, Dtype::Bf16)).collect();
        let single = outs.iter().map(|out| nf4::dequantize(&codes, &absmax, out).unwrap()).collect();
        let double = outs
            .iter()
            .map(|out| nf4::dequantize_double(&codes, &maxima, &offset, &nested, &table, out).unwrap())
            .collect();
        for (what, works) in [("single", single), ("double", double)] {
            let works: Vec<Work> = works;
            let bytes = works[0].cost().bytes;
            let time = microseconds(works, sets);
            println!("nf4 {rows} x {cols} {what}: {time:.1} us, {:.0} GB/s", bytes / time / 1e3);
        }
    }
}
