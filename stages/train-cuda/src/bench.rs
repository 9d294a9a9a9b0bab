//! `train-cuda --bench`: what a training step costs on this machine, on random weights and random tokens.
//!
//! Work as in `experiments/peers`: forward, backward, clipping at norm 1 and AdamW for LoRA on all seven projections, r = 16
//! unless another rank is asked for; tokens = sequences x length, all of them real; median over the steps after a warm-up.
//!
//! A shape that memory does not suffice for is named, with what it needs, and left out; it is a failure (exit code 3) only when
//! no shape was measured.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use engine::cuda::Planned;
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

use crate::flops::{per_token, utilisation};
use crate::op_table::table;
use crate::params::TrainMode;
use crate::telemetry::Telemetry;
use crate::train::{MAKE_ROOM, is_without_context};

/// Between two readings while the benchmark runs.
const BUSY_INTERVAL: Duration = Duration::from_millis(200);
/// Most tokens of a shape.
const TOKENS_MAX: usize = 1 << 20;
/// Most seconds that the GPU is kept busy.
const BUSY_MAX: f64 = 3600.0;

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
    /// Rank of the adapters (qlora, lora), 1 to 1024; their alpha is twice as much.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    rank: u16,
    #[arg(long, default_value_t = 0.05)]
    dropout: f32,
    /// all, no-gate-up or input: what layers keep for the backward.
    #[arg(long, default_value = "all")]
    save: String,
    /// Keep the base in NF4 and unpack it before each use (qlora).
    #[arg(long)]
    packed: bool,
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    warmup: u32,
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Go on for so many seconds after the timed steps while NVML says how busy the GPU is; 0: not at all.
    #[arg(long, default_value_t = 3.0)]
    busy_seconds: f64,
    /// Also print the device time of each kind of work of every shape, against what this device reaches at most; the driver
    /// must be one for CUDA 12.8 or later.
    #[arg(long)]
    profile_ops: bool,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Line {
    device: String,
    mode: String,
    /// Of the adapters; absent where all weights are trained.
    rank: Option<u16>,
    sequences: usize,
    length: usize,
    dropout: f32,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    tokens_per_s: f64,
    /// Operations of the model's products, forward and backward, over those of [`crate::flops::PEAK_TFLOPS`], which are a
    /// GPU's: absent on the CPU.
    mfu: Option<f64>,
    /// By NVML, the share of time with any work, after the first second of steps without a pause; absent if not read.
    busy_percent: Option<f64>,
    planned_bytes: u64,
    /// What lowering every count of rows took, kernels loaded; absent on the CPU.
    planning_s: Option<f64>,
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

fn run(arguments: &Arguments) -> Result<(), Failed> {
    let build = Build { cuda: cfg!(feature = "cuda"), cpu_fallback: cfg!(feature = "cpu-fallback") };
    let mut config =
        architecture(&arguments.model).ok_or_else(|| usage(format!("no model `{}`", arguments.model)))?;
    let shapes = checked(arguments, &mut config)?;
    let request: DeviceRequest = arguments.device.parse().map_err(usage)?;
    let choice = device::choose(request, build, device::probe)
        .map_err(|e| usage(format!("{e}; {}", e.next_step().replace("--set device=", "--device "))))?;
    for warning in &choice.warnings {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    let (device, mut out) = (choice.device, std::io::stdout().lock());
    let adapter = lora(arguments);
    let free = free_bytes(device)?;
    let mut fitting = Vec::new();
    for shape in shapes {
        let options = options(arguments, device, shape)?;
        let lora = (options.mode != Mode::Full).then_some(&adapter);
        let needed = Trainer::plan_bytes(&config, lora, &options);
        match free.filter(|&free| needed > free) {
            None => fitting.push(shape),
            Some(free) => {
                let why = format!("{:.2} GiB needed by the plan, {:.2} GiB free", gib(needed), gib(free));
                let _ = writeln!(out, "{} x {}: does not fit: {why}", shape.0, shape.1);
            }
        }
    }
    if fitting.is_empty() {
        return Err(nothing_fits());
    }
    let weights = random_weights_in(&config, 1, model::Dtype::Bf16);
    let mut n_measured = 0;
    for (i, &shape) in fitting.iter().enumerate() {
        let (telemetry, silent) = Telemetry::of(device, BUSY_INTERVAL);
        if let Some(why) = silent.filter(|_| i == 0) {
            let _ = writeln!(std::io::stderr(), "warning: {why}");
        }
        let measured = measure(arguments, (&config, &weights), device, shape, &telemetry);
        let text = match measured {
            Ok(text) => {
                n_measured += 1;
                text
            }
            Err(Stopped::Memory(why)) => format!("{} x {}: does not fit: {why}\n", shape.0, shape.1),
            Err(Stopped::Failed(failed)) => return Err(failed),
        };
        let _ = out.write_all(text.as_bytes());
    }
    if n_measured == 0 { Err(nothing_fits()) } else { Ok(()) }
}

fn nothing_fits() -> Failed {
    (
        3,
        "no shape was measured: give smaller ones with --shape, or --packed, --save input, --layers"
            .to_owned(),
    )
}

fn lora(arguments: &Arguments) -> LoraConfig {
    let rank = usize::from(arguments.rank);
    LoraConfig { r: rank, alpha: 2.0 * rank as f64, ..LoraConfig::default() }
}

/// Memory that a trainer may take; `None` where nobody says.
fn free_bytes(device: ComputeDevice) -> Result<Option<u64>, Failed> {
    if device != ComputeDevice::Cpu {
        return device::free_bytes(device).map_err(|error| match is_without_context(&error) {
            true => (75, format!("{error}; {MAKE_ROOM}")),
            false => (3, error.to_string()),
        });
    }
    let available = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Ok(available().map(|kib| kib * 1024))
}

/// Why a shape has no result.
enum Stopped {
    /// It does not fit.
    Memory(String),
    Failed(Failed),
}

impl From<Failed> for Stopped {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<EngineError> for Stopped {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::Backend(backend) if backend.is_out_of_memory() => Self::Memory(error.to_string()),
            _ => Self::Failed((3, error.to_string())),
        }
    }
}

/// What is printed of one shape.
fn measure(
    arguments: &Arguments,
    (config, weights): (&Config, &Weights),
    device: ComputeDevice,
    shape: (usize, usize),
    telemetry: &Telemetry,
) -> Result<String, Stopped> {
    let mut bench = Bench::new(arguments, config, weights, device, shape)?;
    let line = bench.measure(arguments, telemetry)?;
    let mut text = serde_json::to_string(&line).map_err(usage)?;
    text.push_str(&format!(
        "\n{} x {}: {:.2} ms a step, {}, {}busy {}, {:.2} GiB planned, {}\n",
        line.sequences,
        line.length,
        line.median_ms,
        rate(line.tokens_per_s),
        line.mfu.map_or_else(String::new, |mfu| format!("{:.1} % MFU, ", 100.0 * mfu)),
        line.busy_percent.map_or("not measured".to_owned(), |busy| format!("{busy:.0} %")),
        gib(line.planned_bytes),
        line.peak_vram_bytes
            .zip(line.peak_vram_scope)
            .map_or("no reading of it".to_owned(), |(bytes, scope)| {
                format!("{:.2} GiB by NVML ({scope})", gib(bytes))
            })
    ));
    if let Some(planned) = bench.trainer.planned() {
        text.push_str(&format!("{}\n", planned_line(planned)));
    }
    if arguments.profile_ops {
        text.push_str(&table(&bench.trainer.profile(&bench.batches[0])?, bench.trainer.limits()?));
    }
    Ok(text)
}

fn rate(tokens_per_s: f64) -> String {
    if tokens_per_s < 1e3 {
        return format!("{tokens_per_s:.0} tokens/s");
    }
    format!("{:.1}k tokens/s", tokens_per_s / 1e3)
}

/// What making the programs ready took.
pub(crate) fn planned_line(planned: Planned) -> String {
    format!(
        "planned {} buckets of rows in {:.2} s, kernels loaded; {} different matrix products",
        planned.buckets, planned.seconds, planned.products
    )
}

/// The shapes, once every argument was looked at; cuts the model to the layers that are wanted.
fn checked(arguments: &Arguments, config: &mut Config) -> Result<Vec<(usize, usize)>, Failed> {
    train_mode(arguments)?;
    save_policy(arguments)?;
    // Masks decide by 16 bits.
    if !(0.0..=65_535.0 / 65_536.0).contains(&arguments.dropout) {
        return Err(usage(format!("dropout {} is out of range: 0 up to 65535/65536", arguments.dropout)));
    }
    if !(0.0..=BUSY_MAX).contains(&arguments.busy_seconds) {
        let given = arguments.busy_seconds;
        return Err(usage(format!("busy-seconds {given} is out of range: 0 to {BUSY_MAX}")));
    }
    if let Some(layers) = arguments.layers {
        let all = config.num_hidden_layers;
        if !(1..=all).contains(&layers) {
            return Err(usage(format!("{} has {all} layers: give --layers 1 to {all}", arguments.model)));
        }
        config.num_hidden_layers = layers;
    }
    arguments.shapes.iter().map(|text| shape(text, config.max_position_embeddings)).collect()
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// `4x512`.
fn shape(text: &str, positions: usize) -> Result<(usize, usize), Failed> {
    let wrong = || usage(format!("`{text}` is no shape: write sequences x tokens, as in 4x512"));
    let (a, b) = text.split_once('x').ok_or_else(wrong)?;
    let (sequences, length): (usize, usize) =
        (a.parse().map_err(|_| wrong())?, b.parse().map_err(|_| wrong())?);
    if sequences == 0 || length < 2 {
        return Err(wrong());
    }
    if length > positions {
        return Err(usage(format!("`{text}`: the model has {positions} positions, {length} are asked for")));
    }
    match sequences.checked_mul(length) {
        Some(tokens) if tokens <= TOKENS_MAX => Ok((sequences, length)),
        _ => Err(usage(format!("`{text}` has more than {TOKENS_MAX} tokens"))),
    }
}

fn save_policy(arguments: &Arguments) -> Result<SavePolicy, Failed> {
    match arguments.save.as_str() {
        "all" => Ok(SavePolicy::All),
        "no-gate-up" => Ok(SavePolicy::NoGateUp),
        "input" => Ok(SavePolicy::Input),
        other => Err(usage(format!("no policy `{other}`: all, no-gate-up or input"))),
    }
}

fn options(
    arguments: &Arguments,
    device: ComputeDevice,
    (sequences, length): (usize, usize),
) -> Result<TrainOptions, Failed> {
    let mode = match train_mode(arguments)? {
        TrainMode::Qlora => Mode::Qlora { double_quant: true },
        TrainMode::Lora => Mode::Lora,
        TrainMode::Full => Mode::Full,
    };
    Ok(TrainOptions {
        mode,
        dropout: if mode == Mode::Full { 0.0 } else { arguments.dropout },
        precision: Precision::Bf16Rounded,
        threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
        seed: 1,
        save: save_policy(arguments)?,
        max_tokens: sequences * length,
        device,
        packed_base: arguments.packed,
    })
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
    /// Parameters of the adapter.
    n_adapter: u64,
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
    ) -> Result<Self, Stopped> {
        let options = options(arguments, device, shape)?;
        let is_adapter = options.mode != Mode::Full;
        let adapter = is_adapter.then(|| Adapter::init(config, &lora(arguments), 1));
        let trainer = Trainer::new(config, weights, adapter.as_ref(), options)?;
        let batches = (0..4).map(|n| batch(config, shape, n)).collect();
        let n_adapter = adapter.as_ref().map_or(0, Adapter::n_parameters);
        Ok(Bench { trainer, batches, config: config.clone(), n_adapter, device, shape })
    }

    /// One step; the one after it is prepared meanwhile.
    fn step(&mut self, number: usize, now: &mut Prepared) -> Result<StepOutcome, EngineError> {
        let rule = AdamW { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: 1.0 };
        let next = &self.batches[(number + 1) % self.batches.len()];
        let next = |packer: Packer| Some(packer.prepare(std::slice::from_ref(next)));
        let (outcome, ahead) = self.trainer.step_and_prepare(now, &rule, next)?;
        if let Some(prepared) = ahead {
            *now = prepared?;
        }
        Ok(outcome)
    }

    /// Steps without a pause; the readings of their first second are of what came before.
    fn keep_busy(
        &mut self,
        seconds: f64,
        telemetry: &Telemetry,
        now: &mut Prepared,
    ) -> Result<(), EngineError> {
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

    fn measure(&mut self, arguments: &Arguments, telemetry: &Telemetry) -> Result<Line, Stopped> {
        let (mut times, mut losses, mut norm) = (Vec::new(), Vec::new(), 0.0);
        let warmup = arguments.warmup as usize;
        let mut now = self.trainer.packer().prepare(&self.batches[..1])?;
        // From end to end: a step's first pass is under way before the step before it has ended.
        let mut before = Instant::now();
        for step in 0..warmup + arguments.steps as usize {
            let outcome = self.step(step, &mut now)?;
            let end = Instant::now();
            if step >= warmup {
                times.push((end - before).as_secs_f64() * 1e3);
            }
            before = end;
            losses.push(outcome.loss);
            norm = outcome.grad_norm;
        }
        let (first_loss, last_loss) = (losses[0], losses[losses.len() - 1]);
        if !(norm > 0.0 && norm.is_finite()) {
            let why = format!("the gradient's norm is {norm}: nothing was trained");
            return Err(Stopped::Failed((3, why)));
        }
        self.keep_busy(arguments.busy_seconds, telemetry, &mut now)?;
        let seen = telemetry.summary();
        times.sort_by(f64::total_cmp);
        let (sequences, length) = self.shape;
        let median_ms = times[times.len() / 2];
        let tokens_per_s = (sequences * length) as f64 / (median_ms / 1e3);
        let memory = self.trainer.device_memory();
        let mode = train_mode(arguments)?;
        let per_token = per_token(&self.config, mode, self.n_adapter, length as f64, 1.0);
        Ok(Line {
            device: memory.as_ref().map_or_else(|| self.device.to_string(), |(name, _)| name.clone()),
            mode: arguments.mode.clone(),
            rank: (mode != TrainMode::Full).then_some(arguments.rank),
            sequences,
            length,
            dropout: arguments.dropout,
            median_ms,
            min_ms: times[0],
            max_ms: times[times.len() - 1],
            tokens_per_s,
            mfu: memory.is_some().then(|| utilisation(tokens_per_s, per_token)),
            busy_percent: seen.busy().map(|(percent, _)| percent),
            peak_vram_bytes: seen.peak().map(|(bytes, _)| bytes),
            peak_vram_scope: seen.peak().map(|(_, scope)| scope.name()),
            planned_bytes: self.trainer.planned_peak_bytes(),
            planning_s: self.trainer.planned().map(|planned| planned.seconds),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        assert_eq!(shape("4x512", 512).unwrap(), (4, 512));
        let bad = ["4", "x", "0x5", "4x1", "4x512x2", "ax4", "4x513", "5000000000x500", "4096x512", "-4x512"];
        for bad in bad {
            assert_eq!(shape(bad, 512).unwrap_err().0, 2, "{bad}");
        }
        assert_eq!(shape(&format!("{}x16", usize::MAX / 2), 512).unwrap_err().0, 2, "the product overflows");
    }

    #[test]
    fn arguments_out_of_range_are_refused_before_anything_is_made() {
        let code = |more: &[&str]| {
            let given = ["bench", "--model", "tiny"].iter().chain(more);
            let Ok(arguments) = Arguments::try_parse_from(given) else { return 2 };
            checked(&arguments, &mut architecture("tiny").unwrap()).map_or_else(|(code, _)| code, |_| 0)
        };
        assert_eq!(code(&["--shape", "1x8", "--steps", "1", "--warmup", "0", "--dropout", "0"]), 0);
        let bad: [&[&str]; 10] = [
            &["--steps", "0"],
            &["--dropout", "1.5"],
            &["--dropout", "1"],
            &["--dropout=-0.1"],
            &["--dropout", "nan"],
            &["--busy-seconds", "inf"],
            &["--layers", "0"],
            &["--layers", "999"],
            &["--mode", "half"],
            &["--save", "some"],
        ];
        for bad in bad {
            assert_eq!(code(&[&["--shape", "1x8"], bad].concat()), 2, "{bad:?}");
        }
    }

    #[test]
    fn only_a_lack_of_memory_leaves_a_shape_out() {
        let of = |error: engine::backend::BackendError| Stopped::from(EngineError::from(error));
        let short = engine::backend::BackendError::Memory { what: "x".to_owned(), needed: 9 };
        assert!(matches!(of(short), Stopped::Memory(why) if why.contains("9 bytes")));
        let other = engine::backend::BackendError::Size { what: "x".to_owned(), given: 1, needed: 2 };
        assert!(matches!(of(other), Stopped::Failed((3, _))));
    }
}
