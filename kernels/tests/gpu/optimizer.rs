use crate::cross_entropy::scalars;
use crate::support::{Random, gpu, integers, padding_untouched, poisoned, run, run_twice};
use kernels::cuda::ops::StepScalars;
use kernels::cuda::ops::optimizer::{self, Conditions, Slabs};
use kernels::cuda::{Dtype, Tensor, bf16_bits};

/// What gradients are multiplied by.
const SCALE: f32 = 1.0 / 37.0;

/// The slabs of `engine`'s CPU backend, and its formula in float32.
struct Host {
    master: Vec<f32>,
    gradient: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    decays: Vec<bool>,
}

fn clip_factor(clip: f64, norm: f32) -> f32 {
    if clip > 0.0 && clip.is_finite() { (clip / (f64::from(norm) + 1e-6)).min(1.0) as f32 } else { 1.0 }
}

impl Host {
    fn new(rng: &mut Random, parameters: &[(usize, bool)]) -> Self {
        let n: usize = parameters.iter().map(|(len, _)| len).sum();
        Host {
            master: rng.values(n, 0.5),
            gradient: rng.values(n, 0.1),
            m: rng.values(n, 0.01),
            v: rng.values(n, 0.01).iter().map(|v| v.abs()).collect(),
            decays: parameters.iter().flat_map(|&(len, decays)| vec![decays; len]).collect(),
        }
    }

    fn update(&mut self, s: &StepScalars, norm: f32, l2: Option<f32>) {
        let clip = clip_factor(s.clip, norm);
        for i in 0..self.master.len() {
            let (p, m, v) = (&mut self.master[i], &mut self.m[i], &mut self.v[i]);
            let mut g = self.gradient[i] * s.inv_labels * clip;
            match l2 {
                Some(decay) if self.decays[i] => g += decay * *p,
                None if self.decays[i] => *p *= s.shrink,
                _ => {}
            }
            *m += (g - *m) * s.keep1;
            *v = *v * s.beta2 + s.keep2 * g * g;
            *p -= s.step_size * (*m / (v.sqrt() / s.correction + s.eps));
        }
    }
}

struct Device {
    master: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    copy: Tensor,
    segments: Tensor,
}

impl Device {
    fn new(host: &Host, parameters: &[(usize, bool)], offset: usize) -> Self {
        let slab = |values: &[f32]| {
            let tensor = poisoned((1, values.len() + offset), 0, Dtype::F32);
            let tensor = tensor.columns(offset, values.len()).unwrap();
            tensor.upload(values).unwrap();
            tensor
        };
        Device {
            master: slab(&host.master),
            gradient: slab(&host.gradient),
            m: slab(&host.m),
            v: slab(&host.v),
            copy: poisoned((1, host.master.len()), 3, Dtype::Bf16),
            segments: integers(&optimizer::segments(parameters.iter().copied()), 2),
        }
    }

    fn slabs(&self, copy: bool) -> Slabs<'_> {
        Slabs {
            master: &self.master,
            gradient: &self.gradient,
            m: &self.m,
            v: &self.v,
            copy: copy.then_some(&self.copy),
        }
    }

    #[track_caller]
    fn equals(&self, host: &Host, what: &str) {
        for (name, tensor, expected) in
            [("master", &self.master, &host.master), ("m", &self.m, &host.m), ("v", &self.v, &host.v)]
        {
            let got = tensor.download().unwrap();
            let wrong = got.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
            if let Some(i) = wrong {
                panic!("{what}: {name} is {:e} at {i}, expected {:e}", got[i], expected[i]);
            }
        }
    }
}

fn rule(step: i32, clip: f64) -> StepScalars {
    let (lr, beta1, beta2, decay) = (2e-4, 0.9, 0.999, 0.01);
    StepScalars {
        inv_labels: SCALE,
        clip,
        step_size: (lr / (1.0 - f64::powi(beta1, step))) as f32,
        correction: (1.0 - f64::powi(beta2, step)).sqrt() as f32,
        keep1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        keep2: (1.0 - beta2) as f32,
        eps: 1e-8,
        shrink: (1.0 - lr * decay) as f32,
        ..StepScalars::default()
    }
}

fn norm_of(gradient: &Tensor, scale: f32, flag: Option<&Tensor>) -> Tensor {
    let bytes = optimizer::partials_bytes(gradient.cols());
    let partials = gpu().alloc(bytes, "partial sums").unwrap().dense(1, bytes, Dtype::U8).unwrap();
    let norm = poisoned((1, 1), 0, Dtype::F32);
    let scalars = scalars(StepScalars { inv_labels: scale, ..StepScalars::default() });
    optimizer::grad_norm(gradient, &partials, &norm, &scalars, flag).unwrap().iter().for_each(run);
    norm
}

/// Lengths that leave odd ends, and rules that change inside a group of four.
fn parameters() -> Vec<Vec<(usize, bool)>> {
    vec![
        vec![(1, true)],
        vec![(3, false), (1, true), (2, false), (5, true)],
        vec![(4096, true), (4097, false), (1, true), (1, false), (3001, true)],
        vec![(100_003, true)],
        (0..400).map(|i| (1 + i * 7 % 300, i % 3 != 0)).collect(),
    ]
}

#[test]
fn the_norm_equals_a_sum_in_float64() {
    let mut rng = Random::new("grad_norm");
    for n in [1, 5, 4096, 4097, 100_003, 3_000_001] {
        let values = rng.values(n, 1e-3);
        let expected = values.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let expected = expected * f64::from(SCALE);
        let mut first = None;
        for offset in [0, 1] {
            let slab = poisoned((1, n + offset), 0, Dtype::F32).columns(offset, n).unwrap();
            slab.upload(&values).unwrap();
            let norm = norm_of(&slab, SCALE, None).download().unwrap()[0];
            assert!((f64::from(norm) - expected).abs() <= 1e-6 * expected, "{n}: {norm} not {expected}");
            let bits = *first.get_or_insert(norm.to_bits());
            assert_eq!(norm.to_bits(), bits, "{n}: another alignment, other bits");
        }
    }
}

#[test]
fn adamw_and_adam_have_the_bits_of_the_plain_formula() {
    let mut rng = Random::new("adamw");
    for parameters in parameters() {
        for (clip, offset, l2) in [
            (1e-3, 0, None),
            (1.0, 1, None),
            (0.0, 0, Some(0.01f32)),
            (f64::INFINITY, 3, None),
            (0.5, 0, Some(0.1)),
        ] {
            let mut host = Host::new(&mut rng, &parameters);
            let device = Device::new(&host, &parameters, offset);
            let copy = offset == 0;
            for step in 1..4 {
                let s = rule(step, clip);
                let norm = norm_of(&device.gradient, SCALE, None);
                let scalars = scalars(s);
                let conditions =
                    Conditions { norm: &norm, scalars: &scalars, segments: &device.segments, flag: None };
                let work = match l2 {
                    Some(decay) => optimizer::adam(device.slabs(copy), conditions, decay).unwrap(),
                    None => optimizer::adamw(device.slabs(copy), conditions).unwrap(),
                };
                let slabs = [&device.master, &device.m, &device.v, &device.copy];
                run_twice("adam", &work, &slabs[..3 + usize::from(copy)]);
                host.update(&s, norm.download().unwrap()[0], l2);
                let what = format!("{} elements, clip {clip}, step {step}, {l2:?}", host.master.len());
                device.equals(&host, &what);
                if copy {
                    let rounded: Vec<u8> =
                        host.master.iter().flat_map(|&p| bf16_bits(p).to_le_bytes()).collect();
                    assert!(device.copy.read_rows().unwrap() == rounded, "{what}: the rounded copy");
                    padding_untouched(&what, &device.copy);
                }
            }
        }
    }
}

#[test]
fn nothing_moves_after_a_norm_that_is_not_finite() {
    let mut rng = Random::new("adamw stops");
    let parameters = [(5000, true), (77, false)];
    let mut host = Host::new(&mut rng, &parameters);
    let device = Device::new(&host, &parameters, 0);
    let (flag, s) = (integers(&[0], 1), rule(1, 1.0));
    let scalars = scalars(s);
    let update = |norm: &Tensor, flag| {
        let conditions = Conditions { norm, scalars: &scalars, segments: &device.segments, flag };
        run(&optimizer::adamw(device.slabs(false), conditions).unwrap());
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let at = rng.below(5077);
        device.gradient.columns(at, 1).unwrap().upload(&[bad]).unwrap();
        let norm = norm_of(&device.gradient, SCALE, None);
        update(&norm, None);
        device.equals(&host, &format!("{bad} in the gradient"));
        run(&optimizer::clip(&device.gradient, &norm, &scalars).unwrap());
        device.gradient.columns(at, 1).unwrap().upload(&host.gradient[at..=at]).unwrap();
        assert_eq!(device.gradient.download().unwrap(), host.gradient);
    }
    let large = poisoned((1, 2), 0, Dtype::F32);
    large.upload(&[f32::MAX, f32::MAX]).unwrap();
    norm_of(&large, 1.0, Some(&flag));
    assert_eq!(flag.read_rows().unwrap(), 1u32.to_le_bytes());
    let good = norm_of(&device.gradient, SCALE, Some(&flag));
    update(&good, Some(&flag));
    device.equals(&host, "a good norm while the flag is set");
    flag.upload_u32(&[0]).unwrap();
    update(&good, Some(&flag));
    host.update(&s, good.download().unwrap()[0], None);
    device.equals(&host, "after the flag was cleared");
}

#[test]
fn clip_scales_in_place() {
    let mut rng = Random::new("clip");
    for (n, offset) in [(1, 0), (5, 1), (2048, 0), (100_003, 0)] {
        let values = rng.values(n, 1.0);
        for clip in [1e-2, 1e9, 0.0, f64::INFINITY] {
            let slab = poisoned((1, n + offset), 0, Dtype::F32).columns(offset, n).unwrap();
            slab.upload(&values).unwrap();
            let norm = norm_of(&slab, SCALE, None);
            let work = optimizer::clip(&slab, &norm, &scalars(rule(1, clip))).unwrap();
            run_twice("clip", &work, &[&slab]);
            let factor = clip_factor(clip, norm.download().unwrap()[0]);
            let expected: Vec<f32> = values.iter().map(|g| g * factor).collect();
            assert_eq!(slab.download().unwrap(), expected, "{n} elements, clip {clip}");
        }
    }
}
