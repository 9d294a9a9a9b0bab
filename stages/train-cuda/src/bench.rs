//! `train-cuda --bench`: what a training step costs on this machine, on random weights and random tokens.
//!
//! Work as in `experiments/peers`: forward, backward, clipping at norm 1 and AdamW for LoRA with r = 16 on all seven
//! projections, tokens = sequences x length, all of them real; median over the steps after a warm-up.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use engine::cuda::WorkTime;
use engine::device::{self, Build, DeviceRequest};
use engine::{
    AdamW, ComputeDevice, EngineError, MicroBatch, Mode, Packer, Precision, Prepared, SavePolicy, Sequence,
    StepOutcome, TrainOptions, Trainer,
};
use model::adapter::{Adapter, LoraConfig};
use model::config::Config;
use model::init::{architecture, random_weights_in};
use model::philox::{Purpose, Stream};
use model::weights::Weights;
use serde::Serialize;

use crate::flops::{PEAK_GB_PER_S, PEAK_TFLOPS, per_token, utilisation};
use crate::params::TrainMode;
use crate::telemetry::Telemetry;

/// Between two readings while the benchmark runs.
const BUSY_INTERVAL: Duration = Duration::from_millis(200);

/// What is measured, and how.
#[derive(Debug, Parser)]
#[command(name = "train-cuda --bench", about = "Times training steps on random weights and tokens")]
struct Arguments {
    /// auto, cuda, cuda:N or cpu.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// A named architecture: qwen2.5-coder-0.5b or tiny.
    #[arg(long, default_value = "qwen2.5-coder-0.5b")]
    model: String,
    /// Only the first so many layers.
    #[arg(long)]
    layers: Option<usize>,
    /// Sequences x tokens of a step; may be given more than once.
    #[arg(long = "shape", default_values_t = ["4x512".to_owned(), "16x512".to_owned(), "8x2048".to_owned()])]
    shapes: Vec<String>,
    /// qlora, lora or full.
    #[arg(long, default_value = "qlora")]
    mode: String,
    #[arg(long, default_value_t = 0.05)]
    dropout: f32,
    /// all, no-gate-up or input: what layers keep for the backward.
    #[arg(long, default_value = "all")]
    save: String,
    /// Keep the base in NF4 and unpack it before each use (qlora).
    #[arg(long)]
    packed: bool,
    #[arg(long, default_value_t = 6)]
    warmup: usize,
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Go on for so many seconds after the timed steps while NVML says how busy the GPU is; 0: not at all.
    #[arg(long, default_value_t = 3.0)]
    busy_seconds: f64,
    /// Also print the device time of each kind of work of the last shape.
    #[arg(long)]
    profile_ops: bool,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Line {
    device: String,
    mode: String,
    sequences: usize,
    length: usize,
    dropout: f32,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    tokens_per_s: f64,
    /// Operations of the model's products, forward and backward, over those of [`PEAK_TFLOPS`].
    mfu: f64,
    /// By NVML, the share of time with any work, after the first second of steps without a pause; absent if not read.
    busy_percent: Option<f64>,
    planned_bytes: u64,
    device_bytes_in_use: Option<u64>,
    /// By NVML, of this process, or of the device where the driver does not tell them apart.
    peak_vram_bytes: Option<u64>,
    peak_vram_scope: Option<&'static str>,
    first_loss: f64,
    last_loss: f64,
    grad_norm: f64,
}

/// Runs the benchmark; arguments without the program's name.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = std::iter::once(OsString::from("train-cuda --bench"));
    let arguments = match Arguments::try_parse_from(name.chain(arguments)) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(code)
        }
    }
}

type Failed = (u8, String);

fn usage(message: impl std::fmt::Display) -> Failed {
    (2, message.to_string())
}

fn failed(error: EngineError) -> Failed {
    (3, error.to_string())
}

fn run(arguments: &Arguments) -> Result<(), Failed> {
    let build = Build { cuda: cfg!(feature = "cuda"), cpu_fallback: cfg!(feature = "cpu-fallback") };
    let request: DeviceRequest = arguments.device.parse().map_err(usage)?;
    let device = device::choose(request, build, device::probe)
        .map_err(|e| usage(format!("{e}; {}", e.next_step())))?
        .device;
    let mut config =
        architecture(&arguments.model).ok_or_else(|| usage(format!("no model `{}`", arguments.model)))?;
    config.num_hidden_layers = arguments.layers.unwrap_or(config.num_hidden_layers);
    let shapes: Vec<(usize, usize)> =
        arguments.shapes.iter().map(|text| shape(text)).collect::<Result<_, _>>()?;
    let weights = random_weights_in(&config, 1, model::Dtype::Bf16);
    let mut out = std::io::stdout().lock();
    for (i, &(sequences, length)) in shapes.iter().enumerate() {
        let (telemetry, silent) = Telemetry::of(device, BUSY_INTERVAL);
        if let Some(why) = silent.filter(|_| i == 0) {
            let _ = writeln!(std::io::stderr(), "warning: {why}");
        }
        let mut bench = Bench::new(arguments, &config, &weights, device, (sequences, length))?;
        let line = bench.measure(arguments, &telemetry)?;
        let text = serde_json::to_string(&line).map_err(usage)?;
        let _ = writeln!(out, "{text}");
        let _ = writeln!(
            out,
            "{sequences} x {length}: {:.2} ms a step, {:.1}k tokens/s, {:.1} % MFU, busy {}, {:.2} GiB planned, {}",
            line.median_ms,
            line.tokens_per_s / 1e3,
            100.0 * line.mfu,
            line.busy_percent.map_or("not measured".to_owned(), |busy| format!("{busy:.0} %")),
            gib(line.planned_bytes),
            line.peak_vram_bytes
                .zip(line.peak_vram_scope)
                .map_or("no reading of it".to_owned(), |(bytes, scope)| {
                    format!("{:.2} GiB by NVML ({scope})", gib(bytes))
                })
        );
        if arguments.profile_ops && i + 1 == shapes.len() {
            let times = bench.trainer.profile(&bench.batches[0]).map_err(failed)?;
            let _ = write!(out, "{}", table(&times));
        }
    }
    Ok(())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// `4x512`.
fn shape(text: &str) -> Result<(usize, usize), Failed> {
    let wrong = || usage(format!("`{text}` is no shape: write sequences x tokens, as in 4x512"));
    let (a, b) = text.split_once('x').ok_or_else(wrong)?;
    match (a.parse(), b.parse()) {
        (Ok(a), Ok(b)) if a > 0 && b > 1 => Ok((a, b)),
        _ => Err(wrong()),
    }
}

fn train_mode(arguments: &Arguments) -> Result<TrainMode, Failed> {
    match arguments.mode.as_str() {
        "qlora" => Ok(TrainMode::Qlora),
        "lora" => Ok(TrainMode::Lora),
        "full" => Ok(TrainMode::Full),
        other => Err(usage(format!("no mode `{other}`: qlora, lora or full"))),
    }
}

struct Bench {
    trainer: Trainer,
    batches: Vec<MicroBatch>,
    config: Config,
    device: ComputeDevice,
    shape: (usize, usize),
}

impl Bench {
    fn new(
        arguments: &Arguments,
        config: &Config,
        weights: &Weights,
        device: ComputeDevice,
        shape: (usize, usize),
    ) -> Result<Self, Failed> {
        let mode = match train_mode(arguments)? {
            TrainMode::Qlora => Mode::Qlora { double_quant: true },
            TrainMode::Lora => Mode::Lora,
            TrainMode::Full => Mode::Full,
        };
        let save = match arguments.save.as_str() {
            "all" => SavePolicy::All,
            "no-gate-up" => SavePolicy::NoGateUp,
            "input" => SavePolicy::Input,
            other => return Err(usage(format!("no policy `{other}`: all, no-gate-up or input"))),
        };
        let adapter = Adapter::init(config, &LoraConfig::default(), 1);
        let options = TrainOptions {
            mode,
            dropout: if mode == Mode::Full { 0.0 } else { arguments.dropout },
            precision: Precision::Bf16Rounded,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            seed: 1,
            save,
            max_tokens: shape.0 * shape.1,
            device,
            packed_base: arguments.packed,
        };
        let trainer = Trainer::new(config, weights, (mode != Mode::Full).then_some(&adapter), options)
            .map_err(failed)?;
        let batches = (0..4).map(|n| batch(config, shape, n)).collect();
        Ok(Bench { trainer, batches, config: config.clone(), device, shape })
    }

    /// One step; the one after it is prepared meanwhile.
    fn step(&mut self, number: usize, now: &mut Prepared) -> Result<StepOutcome, Failed> {
        let rule = AdamW { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: 1.0 };
        let next = &self.batches[(number + 1) % self.batches.len()];
        let next = |packer: Packer| Some(packer.prepare(std::slice::from_ref(next)));
        let (outcome, ahead) = self.trainer.step_and_prepare(now, &rule, next).map_err(failed)?;
        if let Some(prepared) = ahead {
            *now = prepared.map_err(failed)?;
        }
        Ok(outcome)
    }

    /// Steps without a pause; the readings of their first second are of what came before.
    fn keep_busy(&mut self, seconds: f64, telemetry: &Telemetry, now: &mut Prepared) -> Result<(), Failed> {
        let begun = Instant::now();
        while telemetry.is_on() && begun.elapsed().as_secs_f64() < seconds {
            for number in 0..self.batches.len() {
                self.step(number, now)?;
            }
            telemetry.steady(begun.elapsed().as_secs_f64() >= 1.0);
        }
        telemetry.steady(false);
        Ok(())
    }

    fn measure(&mut self, arguments: &Arguments, telemetry: &Telemetry) -> Result<Line, Failed> {
        let (mut times, mut losses, mut norm) = (Vec::new(), Vec::new(), 0.0);
        let mut now = self.trainer.packer().prepare(&self.batches[..1]).map_err(failed)?;
        for step in 0..arguments.warmup + arguments.steps {
            let begun = Instant::now();
            let outcome = self.step(step, &mut now)?;
            if step >= arguments.warmup {
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            losses.push(outcome.loss);
            norm = outcome.grad_norm;
        }
        let (first_loss, last_loss) = (losses[0], losses[losses.len() - 1]);
        if !(norm > 0.0 && norm.is_finite()) {
            return Err((3, format!("the gradient's norm is {norm}: nothing was trained")));
        }
        self.keep_busy(arguments.busy_seconds, telemetry, &mut now)?;
        let seen = telemetry.summary();
        times.sort_by(f64::total_cmp);
        let (sequences, length) = self.shape;
        let median_ms = times[times.len() / 2];
        let tokens_per_s = (sequences * length) as f64 / (median_ms / 1e3);
        let memory = self.trainer.device_memory();
        Ok(Line {
            device: memory.as_ref().map_or_else(|| self.device.to_string(), |(name, _)| name.clone()),
            mode: arguments.mode.clone(),
            sequences,
            length,
            dropout: arguments.dropout,
            median_ms,
            min_ms: times[0],
            max_ms: times[times.len() - 1],
            tokens_per_s,
            mfu: utilisation(
                tokens_per_s,
                per_token(&self.config, train_mode(arguments)?, 16, length as f64, 1.0),
            ),
            busy_percent: seen.busy().map(|(percent, _)| percent),
            peak_vram_bytes: seen.peak().map(|(bytes, _)| bytes),
            peak_vram_scope: seen.peak().map(|(_, scope)| scope.name()),
            planned_bytes: self.trainer.planned_peak_bytes(),
            device_bytes_in_use: memory.map(|(_, bytes)| bytes),
            first_loss,
            last_loss,
            grad_norm: norm,
        })
    }
}

/// Random ids; all but the first token of each sequence carry a loss.
fn batch(config: &Config, (sequences, length): (usize, usize), number: u64) -> MicroBatch {
    let sequence = |n: usize| {
        let id = number * sequences as u64 + n as u64;
        let stream = Stream::new(id, Purpose::Shuffle, [1, 2, 3]);
        let ids: Vec<u32> =
            (0..length as u64).map(|i| stream.below(i, config.vocab_size as u64) as u32).collect();
        let labels = ids.iter().map(|&id| id as i32).collect();
        Sequence { sample_id: id, input_ids: ids, labels }
    };
    MicroBatch { sequences: (0..sequences).map(sequence).collect() }
}

/// Kinds of work, longest first, with their share of the limits.
fn table(times: &[WorkTime]) -> String {
    let total: f64 = times.iter().map(|t| t.ms).sum();
    let mut text = format!(
        "{:48} {:>7} {:>9} {:>6} {:>9} {:>9} {:>7}\n",
        "work", "runs", "ms", "share", "TFLOP/s", "GB/s", "limit"
    );
    for t in times {
        let seconds = t.ms / 1e3;
        let (tflops, gb) = (t.flops / seconds / 1e12, t.bytes / seconds / 1e9);
        let limit = (tflops / PEAK_TFLOPS).max(gb / PEAK_GB_PER_S);
        text.push_str(&format!(
            "{:48} {:>7} {:>9.3} {:>5.1}% {:>9.1} {:>9.0} {:>6.1}%\n",
            t.name,
            t.launches,
            t.ms,
            100.0 * t.ms / total,
            tflops,
            gb,
            100.0 * limit
        ));
    }
    text.push_str(&format!(
        "{:48} {:>7} {total:>9.3}\n",
        "all",
        times.iter().map(|t| t.launches).sum::<usize>()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        assert_eq!(shape("4x512").unwrap(), (4, 512));
        for bad in ["4", "x", "0x5", "4x1", "4x512x2", "ax4"] {
            assert_eq!(shape(bad).unwrap_err().0, 2, "{bad}");
        }
    }
}
