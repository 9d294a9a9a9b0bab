//! Whether gradients in bfloat16 are those in float32 but for rounding, tensor by tensor over many batches.
//!
//! Rounding has no direction of its own, so what it adds to a gradient lies nearly across it: the slope of the rounded gradient
//! by the exact one stays near 1, the nearer the more numbers there are. A gradient that is off by a factor, or lacks a term,
//! has another slope, or an error of another size than rounding on the CPU makes with the same values.

use super::{random_adapter, random_model, sequence};
use engine::MicroBatch;
use model::Tensor;
use model::adapter::Adapter;
use model::config::Config;
use model::names::{self, Projection};
use model::weights::Weights;
use std::collections::BTreeMap;

/// Batches that are looked at together.
pub(crate) const BATCHES: u64 = 16;
/// How far a slope may be from 1. Rounding moves none by more than 0.0054 over these batches, on the CPU or a GPU.
const SLOPE: f64 = 0.01;
/// How much larger than the CPU's an error may be. A GPU rounds what the CPU rounds but where operations are one pass, and besides
/// the rank-r products and their gradients, attention's weights and their gradients: at most as many again, and twice as many
/// independent errors of one size are larger by the root of 2.
const LARGER: f64 = std::f64::consts::SQRT_2;

pub(crate) type Gradients = BTreeMap<String, Vec<f32>>;

/// Sums over the numbers of a tensor in all batches: of products of what is wanted with itself and with what was found, of
/// squared errors, and of the CPU's.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    wanted: f64,
    product: f64,
    error: f64,
    rounding: f64,
}

/// What was found so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Agreement(BTreeMap<String, Sums>);

/// The largest distance of a slope from 1, and the largest error by the CPU's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Worst {
    pub(crate) slope: f64,
    pub(crate) larger: f64,
}

impl Worst {
    pub(crate) fn or(self, other: Worst) -> Worst {
        Worst { slope: self.slope.max(other.slope), larger: self.larger.max(other.larger) }
    }
}

impl Agreement {
    /// A batch: what is wanted (float32), what rounding on the CPU makes of it, and what was found.
    pub(crate) fn add(&mut self, wanted: &Gradients, rounded: &Gradients, found: &Gradients) {
        assert!(found.keys().eq(wanted.keys()) && rounded.keys().eq(wanted.keys()), "tensors differ");
        for (name, wanted) in wanted {
            let sums = self.0.entry(name.clone()).or_default();
            let (rounded, found) = (&rounded[name], &found[name]);
            assert!(found.len() == wanted.len() && rounded.len() == wanted.len(), "{name}");
            for ((&w, &r), &f) in wanted.iter().zip(rounded).zip(found) {
                let [w, r, f] = [w, r, f].map(f64::from);
                sums.wanted += w * w;
                sums.product += w * f;
                sums.error += (f - w) * (f - w);
                sums.rounding += (r - w) * (r - w);
            }
        }
    }

    /// # Errors
    /// The tensors that are something else than rounded.
    pub(crate) fn verdict(&self) -> Result<Worst, String> {
        let (mut worst, mut wrong) = (Worst::default(), Vec::new());
        for (name, sums) in &self.0 {
            let slope = sums.product / sums.wanted;
            let [error, rounding] = [sums.error, sums.rounding].map(|sum| (sum / sums.wanted).sqrt());
            let here = Worst { slope: (slope - 1.0).abs(), larger: error / rounding };
            // NaN is refused too.
            let fits = here.slope <= SLOPE && here.larger <= LARGER;
            if !fits {
                wrong.push(format!("{name}: slope {slope:.5}, error {error:.5}, the CPU's {rounding:.5}"));
            }
            worst = worst.or(here);
        }
        match (self.0.is_empty(), wrong.is_empty()) {
            (true, _) => Err("no tensor was looked at".to_owned()),
            (_, true) => Ok(worst),
            (_, false) => Err(wrong.join("; ")),
        }
    }
}

/// Shapes, and a rank for each. Tensor cores take the adapters of the first, and of the second those of an even rank, plain
/// kernels everything else.
pub(crate) fn configs() -> [(Config, usize); 3] {
    let config = |hidden, heads: (usize, usize), ffn| Config {
        hidden_size: hidden,
        intermediate_size: ffn,
        num_hidden_layers: 2,
        num_attention_heads: heads.0,
        num_key_value_heads: heads.1,
        head_dim: hidden / heads.0,
        vocab_size: 333,
        max_position_embeddings: 512,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
    };
    [(config(448, (7, 1), 320), 16), (config(24, (6, 2), 40), 3), (config(60, (5, 1), 77), 6)]
}

pub(crate) fn batches(config: &Config, n: u64) -> Vec<MicroBatch> {
    let batch = |n: u64| {
        let sequences = [(10 * n + 1, 40, 3), (10 * n + 2, 1, 0), (10 * n + 3, 61, 20)];
        let sequences = sequences.map(|(id, length, prompt)| sequence(config, id, length, prompt)).to_vec();
        MicroBatch { sequences }
    };
    (0..n).map(batch).collect()
}

/// The tensor times `scale`, in numbers that bfloat16 holds: nothing is lost before the first operation.
fn exact(tensor: &Tensor, scale: f32) -> Tensor {
    let round = |x: f32| f32::from_bits(u32::from(kernels::cuda::bf16_bits(x * scale)) << 16);
    let values: Vec<f32> = tensor.to_f32().into_iter().map(round).collect();
    Tensor::from_f32(tensor.shape().to_vec(), &values).unwrap()
}

/// Queries are so small that attention looks at all keys: where it sees one alone, gradients of queries and keys are what is
/// left of numbers that cancel, and rounding decides about them.
fn scale_of(name: &str) -> f32 {
    if name.contains("q_proj") && !name.contains("lora_A") { 0.1 } else { 1.0 }
}

/// A random model.
pub(crate) fn model(config: &Config) -> Weights {
    let weights = random_model(config, 3);
    let tensors = names::expected(config).into_iter().map(|(name, _)| {
        let tensor = exact(weights.get(&name).unwrap(), scale_of(&name));
        (name, tensor)
    });
    Weights::from_tensors(tensors.collect(), config).unwrap()
}

/// A random adapter on some of the projections, whose products are about as large at any rank.
pub(crate) fn adapter(config: &Config, rank: usize, modules: &[Projection]) -> Adapter {
    let mut adapter = random_adapter(config, rank, (rank as f64).sqrt(), 5);
    let of = |name: &str, module: &Projection| name.contains(&format!(".{}.", module.name()));
    adapter.tensors.retain(|name, _| modules.iter().any(|module| of(name, module)));
    adapter.config.target_modules = modules.to_vec();
    for (name, tensor) in &mut adapter.tensors {
        *tensor = exact(tensor, scale_of(name));
    }
    adapter
}

/// Every projection alone, every set that lacks one, and pairs from different products.
pub(crate) fn sets() -> Vec<Vec<Projection>> {
    let all = Projection::ALL;
    let alone = all.iter().map(|&one| vec![one]);
    let without = all.iter().map(|&one| all.iter().copied().filter(|&p| p != one).collect());
    let pairs = [(0, 2), (3, 6), (1, 4), (2, 5), (4, 5)].map(|(a, b)| vec![all[a], all[b]]);
    alone.chain(without).chain(pairs).collect()
}
