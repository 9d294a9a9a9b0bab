//! Training speed on the CPU beside the bare matrix products of the same plan.
//!
//! `cargo run --release -p engine --example throughput -- [half-billion|tiny] [lora|full] [threads] [layers]`
//!
//! Each round times one optimizer step, then every matrix product of the step's plan alone (same shapes, same crate,
//! same threads). The rate of a step is its whole floating-point work over its whole time. Machines are noisy: rounds
//! alternate, and the best of each is compared.

#![expect(clippy::print_stdout, reason = "prints its measurements")]

use engine::place::Layout;
use engine::plan::{Dims, Form, HEAD_CHUNK, LoraShape, ModelParams, Op, Rows, Shape, train_plan};
use engine::{AdamW, MicroBatch, Mode, Precision, SavePolicy, Sequence, TrainOptions, Trainer, cost};
use kernels::gemm::{View, ViewMut, product};
use model::adapter::{Adapter, LoraConfig};
use model::config::Config;
use model::init::{architecture, random_weights};
use std::time::Instant;

const TOKENS: usize = 1024;
const SEQUENCES: usize = 4;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let threads: usize = argument(2, "2").parse()?;
    let name = if argument(0, "half-billion") == "tiny" { "tiny" } else { "qwen2.5-coder-0.5b" };
    let mut config = architecture(name).ok_or("no such architecture")?;
    config.num_hidden_layers = argument(3, "2").parse()?;
    config.vocab_size = config.vocab_size.min(8192);
    let full = argument(1, "lora") == "full";
    println!(
        "{name}, {} layers, vocabulary {}, full: {full}, {threads} threads",
        config.num_hidden_layers, config.vocab_size
    );

    let mut trainer = trainer(&config, full, threads)?;
    let micro = [micro_batch(&config)];
    let optimizer = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: 1.0 };
    let plan = plan_of(&config, full);
    let dims = Dims { tokens: TOKENS, loss_rows: TOKENS - SEQUENCES, seqs: SEQUENCES, chunk: HEAD_CHUNK };
    let flops = cost::total(&plan, &dims, &Layout::uniform(4)).flops as f64;
    let (mut best_step, mut best_gemm, mut gemm_flops) = (f64::MAX, f64::MAX, 0.0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        trainer.step(&micro, &optimizer)?;
        best_step = best_step.min(start.elapsed().as_secs_f64());
        let (seconds, done) = products(&plan, &dims, threads);
        best_gemm = best_gemm.min(seconds);
        gemm_flops = done;
    }
    let rate = flops / best_step / 1e9;
    let gemm_rate = gemm_flops / best_gemm / 1e9;
    println!(
        "step     {:8.1} ms  {rate:6.1} GFLOP/s  {:.0} tokens/s",
        best_step * 1e3,
        TOKENS as f64 / best_step
    );
    println!("products {:8.1} ms  {gemm_rate:6.1} GFLOP/s", best_gemm * 1e3);
    println!("ratio of rates {:.2}", rate / gemm_rate);
    Ok(())
}

fn trainer(config: &Config, full: bool, threads: usize) -> Result<Trainer, engine::EngineError> {
    let weights = random_weights(config, 1);
    let adapter = Adapter::init(config, &LoraConfig::default(), 1);
    let options = TrainOptions {
        mode: if full { Mode::Full } else { Mode::Lora },
        dropout: if full { 0.0 } else { 0.05 },
        precision: Precision::Float32,
        threads,
        seed: 1,
        save: SavePolicy::All,
        max_tokens: TOKENS,
        device: engine::ComputeDevice::Cpu,
        packed_base: false,
    };
    Trainer::new(config, &weights, (!full).then_some(&adapter), options)
}

fn micro_batch(config: &Config) -> MicroBatch {
    let sequences = (0..SEQUENCES as u64)
        .map(|sample_id| {
            let ids: Vec<u32> = (0..TOKENS / SEQUENCES)
                .map(|i| ((i as u64 * 7919 + sample_id * 104_729) % config.vocab_size as u64) as u32)
                .collect();
            let labels = ids.iter().map(|&id| id as i32).collect();
            Sequence { sample_id, input_ids: ids, labels }
        })
        .collect();
    MicroBatch { sequences }
}

fn plan_of(config: &Config, full: bool) -> engine::plan::Plan {
    let shape = Shape {
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        query_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        ffn: config.intermediate_size,
        vocab: config.vocab_size,
        norm_eps: config.rms_norm_eps,
        rope_theta: config.rope_theta,
        tied: config.tie_word_embeddings,
    };
    let lora = (!full).then_some(LoraShape { rank: 16, modules: [true; 7] });
    let params = ModelParams::new(shape, lora, full, !full, TOKENS);
    train_plan(&params, TOKENS, Some(&vec![SavePolicy::All; shape.layers]), !full).plan
}

/// Seconds and floating-point operations of the plan's matrix products alone.
fn products(plan: &engine::plan::Plan, dims: &Dims, threads: usize) -> (f64, f64) {
    let (mut seconds, mut flops) = (0.0, 0.0);
    for op in plan.ops() {
        let Op::Gemm { a, b, c, form, accumulate } = *op else { continue };
        let shape = |mat: engine::plan::Mat| {
            let rows = match mat.rows {
                Rows::Const(n) => n,
                rows => dims.rows(rows),
            };
            (rows, mat.cols)
        };
        let ((ar, ac), (br, bc), (cr, cc)) = (shape(a), shape(b), shape(c));
        let (left, right, mut out) = (vec![0.5f32; ar * ac], vec![0.25f32; br * bc], vec![0f32; cr * cc]);
        let (left, right) = (View::rows(&left, ar, ac, ac), View::rows(&right, br, bc, bc));
        let (left, right) = match form {
            Form::Nt => (left, right.t()),
            Form::Nn => (left, right),
            Form::Tn => (left.t(), right),
        };
        let start = Instant::now();
        product(left, right, accumulate, &mut ViewMut::rows(&mut out, cr, cc, cc), threads);
        seconds += start.elapsed().as_secs_f64();
        flops += 2.0 * (left.rows * left.cols * right.cols) as f64;
    }
    (seconds, flops)
}
