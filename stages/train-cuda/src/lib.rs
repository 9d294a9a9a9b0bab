//! The stage `train-cuda`: trains an adapter, or all weights, on tokenized rows.
//!
//! A run is a function of the model, the tokens, the parameters and the seed: interrupted and started again it writes the
//! same bytes as in one piece. What takes time (`live/`, the output `log`) is apart from what does not.

mod alarms;
pub mod bench;
mod checkpoint;
mod feed;
mod flops;
mod inputs;
mod live;
mod maker;
#[cfg(feature = "nvml")]
mod nvml;
mod op_table;
mod outputs;
mod packing;
mod params;
mod schedule;
mod telemetry;
mod tfevents;
mod tokens;
mod train;
mod weights;

use std::path::Path;
use std::time::Instant;

use engine::EngineError;
use engine::device::{self, Build, ComputeDevice, DeviceRequest};
use record::training::{TrainingMetrics, TrainingStatus};
use stage_kit::{Alias, Context, Outcome, PortSpec, Result, Stage, StageError, Target, digest};

pub use crate::params::{Params, Precision, Preset, Select, TrainMode};
pub use crate::tfevents::masked_crc32c;

use crate::alarms::Alarms;
use crate::checkpoint::places::{self, Other};
use crate::checkpoint::{Found, History, Loaded, Store};
use crate::feed::Feed;
use crate::inputs::Inputs;
use crate::live::{Live, RunFacts};
use crate::maker::{Made, Maker};
use crate::outputs::Finished;
use crate::schedule::Schedule;
use crate::telemetry::{Scope, Summary, Telemetry};
use crate::train::{Length, Run, Stepping, engine_error};

/// The stage program.
#[derive(Debug)]
pub struct TrainCuda;

impl Stage for TrainCuda {
    type Params = Params;
    const NAME: &'static str = "train-cuda";
    const INPUTS: &'static [PortSpec] = &[
        PortSpec::required("model", "the base model's folder"),
        PortSpec::required("tokens", "train.parquet and validation.parquet"),
        PortSpec::optional("adapter_start", "an adapter in PEFT's layout to go on from"),
    ];
    const OUTPUTS: &'static [PortSpec] = &[
        PortSpec::optional("adapter", "the trained adapter (modes lora and qlora)"),
        PortSpec::optional("model", "the trained model (mode full)"),
        PortSpec::optional("checkpoints", "best/, step-N/, steps.jsonl, validation.jsonl"),
        PortSpec::volatile("log", "training.log, events.jsonl, TensorBoard events, metrics.json"),
    ];
    const ALIASES: &'static [Alias] = &[
        Alias { option: "model", target: Target::Input("model") },
        Alias { option: "dataset", target: Target::Input("tokens") },
        Alias { option: "device", target: Target::Param("device") },
        Alias { option: "preset", target: Target::Param("preset") },
    ];
    const MORE_HELP: &'static str = "Benchmark:
  train-cuda --bench: times steps on random weights and tokens; `train-cuda --bench --help` lists its options
  train-cuda --profile-ops: the same, with the device time of each kind of work";

    fn is_checkpoint(name: &str) -> bool {
        checkpoint::is_ours(name)
    }

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        let params = params.resolve()?;
        check_outputs(&params, context)?;
        let device = choose_device(&params.device, context)?;
        let begun = Instant::now();
        // Kernels are compiled while files are read; where all of them are in the cache it takes no time.
        let inputs = std::thread::scope(|scope| {
            if let ComputeDevice::Cuda { id } = device {
                let threads = context.resources().cpus.max(1) as usize;
                scope.spawn(move || device::compile_kernels(id, threads));
            }
            inputs::read(&params, context)
        })?;
        if params.select == Select::Best && inputs.data.validation.is_none() {
            return Err(StageError::usage("select=best needs validation rows, and there are none")
                .at(context.input("tokens")?.join("validation.parquet").display().to_string())
                .next("give validation rows, or --set select=last"));
        }
        train(&params, inputs, device, begun, context)?;
        Ok(Outcome::Done)
    }
}

fn check_outputs(params: &Params, context: &Context) -> Result<()> {
    let (ours, other) = match params.mode {
        TrainMode::Full => ("model", "adapter"),
        TrainMode::Lora | TrainMode::Qlora => ("adapter", "model"),
    };
    let mode = params.mode.name();
    if context.wants(other) {
        return Err(StageError::usage(format!("mode {mode} writes no output `{other}`"))
            .next(format!("ask for the output `{ours}`, or set another mode")));
    }
    if !context.wants(ours) {
        return Err(StageError::usage(format!("mode {mode} has nowhere to write its result"))
            .next(format!("give it: --output {ours}=DIR")));
    }
    Ok(())
}

fn choose_device(text: &str, context: &Context) -> Result<ComputeDevice> {
    let build = Build { cuda: cfg!(feature = "cuda"), cpu_fallback: cfg!(feature = "cpu-fallback") };
    let usage = |e: device::DeviceError| {
        StageError::usage(e.to_string()).at("train-cuda parameter device").next(e.next_step())
    };
    let request: DeviceRequest = text.parse().map_err(usage)?;
    let choice = device::choose(request, build, device::probe).map_err(usage)?;
    for warning in &choice.warnings {
        context.warn(warning);
    }
    Ok(choice.device)
}

fn train(
    params: &Params,
    inputs: Inputs,
    device: ComputeDevice,
    begun: Instant,
    context: &Context,
) -> Result<()> {
    let read_s = begun.elapsed().as_secs_f64();
    let Inputs { base, weights, data, adapter, hashes } = inputs;
    let length = Length::of(data.train.rows.len(), params);
    data.check_steps(params, context.seed(), length)?;
    let (telemetry, silent) = Telemetry::of(device, telemetry::INTERVAL);
    if let Some(why) = silent {
        context.warn(&why);
    }
    let fingerprint = fingerprint(params, device, &hashes, context.seed())?;
    let mut store = Store::new(&places::own(context.checkpoint_dir(), &fingerprint)?, fingerprint);
    let found = store.load()?;
    let (config, earlier) = (&base.config, found.history().cloned());
    let made = Maker { params, config, weights: &weights, data: &data, device, context, earlier }
        .make(adapter.as_ref())?;
    let made_s = begun.elapsed().as_secs_f64();
    let Made { trainer, packing, planned_bytes } = made;
    let planned_peak_bytes = trainer.planned_peak_bytes();
    let n_trainable = adapter.as_ref().map_or_else(|| weights.n_parameters(), |a| a.n_parameters());
    let base_sha256 = match params.mode {
        TrainMode::Full => weights.sha256(),
        TrainMode::Lora | TrainMode::Qlora => trainer.base_sha256().map_err(engine_error)?,
    };
    drop(weights);
    telemetry.poke();
    let mut live = Live::new(context, &facts(params, &base, length, store.dir()), telemetry);
    let planned = trainer.planned().map(bench::planned_line);
    for line in summary(&data, length, n_trainable, planned_peak_bytes).into_iter().chain(planned) {
        live.say(&line);
    }
    let ready_s = begun.elapsed().as_secs_f64();
    live.say(&format!(
        "ready after {ready_s:.1} s: inputs {read_s:.1}, model on the device {:.1}, its hash {:.1}",
        made_s - read_s,
        ready_s - made_s
    ));
    let warm = Schedule::new(params.lr(), params.warmup_ratio, params.min_lr_ratio, length.total).n_warm;
    let mut run = Run {
        context,
        params,
        data: &data,
        config: &base.config,
        base_model_name: hub_name(&base.manifest.source),
        length,
        trainer,
        store,
        live,
        history: History::default(),
        feed: Feed::new(
            &data.train.rows,
            (context.seed(), params.shuffle),
            params.rows_per_step(),
            length,
            packing,
        ),
        planned_bytes,
        alarms: Alarms::new(base.config.vocab_size, warm, params.vram_limit_bytes()),
        stepping: Stepping::default(),
    };
    let end = End { base: &base, device, n_trainable, base_sha256, planned_peak_bytes };
    let ended =
        resume(&mut run, found).and_then(|()| run.go()).and_then(|()| finish(&mut run, &end, context));
    ended.inspect_err(|e| run.live.ended_by(e))
}

/// What the outputs say beside the run itself.
struct End<'r> {
    base: &'r inputs::Base,
    device: ComputeDevice,
    n_trainable: u64,
    base_sha256: String,
    planned_peak_bytes: u64,
}

/// Checks that the base is what it was, and writes the outputs.
fn finish(run: &mut Run<'_>, end: &End<'_>, context: &Context) -> Result<()> {
    let begun = Instant::now();
    let base_sha256_after = (run.params.mode != TrainMode::Full)
        .then(|| run.trainer.base_sha256().map_err(engine_error))
        .transpose()?;
    if base_sha256_after.as_ref().is_some_and(|after| *after != end.base_sha256) {
        return Err(StageError::internal("the base weights changed while an adapter was trained"));
    }
    let metadata = &run.data.train.metadata;
    let finished = Finished {
        params: run.params,
        backend: end.device.backend(),
        base: end.base,
        template_sha256: &metadata.template_sha256,
        tokenizer_sha256: &metadata.tokenizer_sha256,
        history: &run.history,
        store: &run.store,
        length: run.length,
        n_trainable: end.n_trainable,
        base_sha256: end.base_sha256.clone(),
        base_sha256_after,
    };
    finished.write_weights(context)?;
    if context.wants("checkpoints") {
        finished.write_checkpoints(context)?;
    }
    run.live.status(TrainingStatus::Completed);
    let (steps, seconds) = (run.history.steps_done(), begun.elapsed().as_secs_f64());
    run.live.say(&format!("trained {}; outputs after {seconds:.1} s", counted(steps, "step")));
    let metrics = metrics(run, end);
    if let Some(line) = gpu_line(&metrics, &run.live.telemetry().summary()) {
        run.live.say(&line);
    }
    if context.wants("log") {
        outputs::write_log(context, &metrics)?;
    }
    Ok(())
}

/// Goes on from an earlier process's state where there is one of this very run.
fn resume(run: &mut Run<'_>, found: Found) -> Result<()> {
    say_others(run)?;
    let dir = run.store.dir().display().to_string();
    match found {
        Found::Nothing => run.store.clear()?,
        Found::Useless(why) => {
            run.live.warn(&format!(
                "the checkpoint in {dir} is not used: {why}; training starts from the beginning"
            ));
            run.store.clear()?;
        }
        Found::State(found) => {
            let Loaded { history, state, passed_over } = *found;
            if let Some(why) = passed_over {
                run.live.warn(&format!("the newest state in {dir} is not used: {why}"));
            }
            match run.trainer.load_state(&state) {
                Ok(()) => {
                    run.live.resumed(&history.steps);
                    run.live
                        .say(&format!("goes on after step {} from the state in {dir}", history.steps_done()));
                    run.history = history;
                }
                // What the device did says nothing of the state: it stays.
                Err(e @ EngineError::Backend(_)) => return Err(engine_error(e)),
                Err(e) => {
                    run.live.warn(&format!(
                        "the checkpoint in {dir} is not used: {e}; training starts from the beginning, with as many tokens at a time as it had"
                    ));
                    run.store.clear()?;
                }
            }
        }
    }
    let gpu = run.trainer.device_memory().map(|(name, _)| name);
    let tokens = run.feed.packing.tokens();
    if let (Some(gpu), Some(tokens)) = (&gpu, tokens) {
        run.live.say(&format!("{tokens} tokens at a time through {gpu}"));
    }
    let before = run.history.gpu.clone();
    let is_same = run.history.goes_on_with(gpu.clone(), tokens);
    if let (Some(before), Some(now), false) = (before, gpu, is_same)
        && before != now
    {
        run.live.warn(&format!(
            "the state was made on {before}, and training goes on on {now}: its result will not have the bytes of an uninterrupted run on either"
        ));
    }
    Ok(())
}

/// States of other parameters, inputs or seed are not used; one of them stays.
fn say_others(run: &mut Run<'_>) -> Result<()> {
    let others = places::keep_one_other(run.context.checkpoint_dir(), run.store.dir())?;
    let what = |other: &Other| {
        let dir = other.dir.display();
        format!("the state after step {} in {dir} belongs to other parameters, inputs or seed", other.step)
    };
    if let Some(kept) = &others.kept {
        run.live.warn(&format!(
            "{}: it is not used, and stays until a run succeeds here; given what it was made with, training goes on from it",
            what(kept)
        ));
    }
    for other in &others.deleted {
        run.live.warn(&format!("{}: it is deleted, another went further", what(other)));
    }
    Ok(())
}

/// What a user changes after memory ran out or a GPU was lost, and when states are saved: it leaves the numbers alone. The
/// tokens at a time, which follow from memory, are in the state.
const NOT_OF_THE_NUMBERS: [&str; 4] = ["checkpoint_every", "device", "preset", "vram_limit_mb"];

/// Hash of everything that decides the run's numbers.
fn fingerprint(
    params: &Params,
    device: ComputeDevice,
    hashes: &[(String, String)],
    seed: u64,
) -> Result<String> {
    let mut values = outputs::resolved(params)?;
    values.retain(|name, _| !NOT_OF_THE_NUMBERS.contains(&name.as_str()));
    let parts = (env!("CARGO_PKG_VERSION"), values, device.backend(), hashes, seed);
    let text =
        serde_json::to_string(&parts).map_err(|e| StageError::internal(format!("no fingerprint: {e}")))?;
    Ok(digest::sha256_hex(text))
}

fn facts(params: &Params, base: &inputs::Base, length: Length, checkpoints: &Path) -> RunFacts {
    RunFacts {
        model_name: base.manifest.source.clone(),
        model_path: base.dir.display().to_string(),
        checkpoint_path: checkpoints.display().to_string(),
        total_epochs: length.epochs(),
        steps_per_epoch: length.steps_per_epoch,
        total_steps: length.total,
        batch_size: params.rows_per_step() as u64,
    }
}

fn summary(data: &train::Data, length: Length, n_trainable: u64, planned_peak_bytes: u64) -> [String; 2] {
    let n_validation = data.validation.as_ref().map_or(0, |v| v.rows.len() as u64);
    [
        format!(
            "{} ({}), {}, {} of {}",
            counted(data.train.rows.len() as u64, "training row"),
            counted(data.train.n_label_tokens(), "label token"),
            counted(n_validation, "validation row"),
            counted(length.total, "step"),
            counted(length.epochs(), "epoch"),
        ),
        format!(
            "{}, {} MB planned at the peak",
            counted(n_trainable, "trainable parameter"),
            planned_peak_bytes / 1_000_000
        ),
    ]
}

/// `1 row`, `2 rows`.
pub(crate) fn counted(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

/// The hub's name of a model, where its source is one: PEFT looks for the base under it.
fn hub_name(source: &str) -> Option<String> {
    (!source.contains(':') && source.split('/').count() == 2).then(|| source.to_owned())
}

fn metrics(run: &Run<'_>, end: &End<'_>) -> TrainingMetrics {
    let (device, planned_peak_bytes) = (end.device, end.planned_peak_bytes);
    let steps = &run.history.steps;
    let tokens_per_s = run.stepping.tokens as f64 / run.stepping.seconds.max(1e-9);
    let mode = run.params.mode;
    let per_token = flops::per_token(
        run.config,
        mode,
        if mode == TrainMode::Full { 0 } else { end.n_trainable },
        run.stepping.mean_length(),
        run.stepping.labelled(),
    );
    let is_gpu = matches!(device, ComputeDevice::Cuda { .. }) && run.stepping.tokens > 0;
    let seen = run.live.telemetry().summary();
    TrainingMetrics {
        schema_version: record::training::TRAINING_SCHEMA_VERSION,
        backend: device.backend().to_owned(),
        device: device.to_string(),
        wall_s: run.history.wall_s + run.live.elapsed_s(),
        tokens_per_s,
        steps: run.history.steps_done(),
        final_loss: steps.last().map_or(f64::NAN, |s| s.loss),
        best_validation_loss: run.history.best().map(|b| b.loss),
        max_grad_norm: steps.iter().map(|s| s.grad_norm).fold(0.0, f64::max),
        planned_peak_bytes,
        peak_rss_bytes: peak_rss_bytes(),
        peak_vram_bytes: seen.peak().map(|(bytes, _)| bytes),
        peak_vram_scope: seen.peak().map(|(_, scope)| scope.name().to_owned()),
        mean_gpu_utilization_percent: seen.busy().map(|(percent, _)| percent),
        mfu: is_gpu.then(|| flops::utilisation(tokens_per_s, per_token)),
        mfu_of_tflops: is_gpu.then_some(flops::PEAK_TFLOPS),
        interrupted_and_resumed: run.history.was_interrupted,
    }
}

/// How well the GPU was used, as far as it was measured; `None` on the CPU.
fn gpu_line(metrics: &TrainingMetrics, seen: &Summary) -> Option<String> {
    let mfu = metrics.mfu?;
    let mut parts = vec![format!("{:.0} tokens/s", metrics.tokens_per_s)];
    parts.push(format!("{:.1} % MFU of {:.0} TFLOP/s", 100.0 * mfu, flops::PEAK_TFLOPS));
    parts.push(match seen.busy() {
        Some((percent, n)) => format!("GPU busy {percent:.0} % (NVML, mean of {n} readings)"),
        None => "GPU busy: not measured".to_owned(),
    });
    if let Some((bytes, scope)) = seen.peak() {
        let whose = match scope {
            Scope::Process => "this process",
            Scope::Device => "the device, others included",
        };
        parts.push(format!("{:.2} GiB at the peak (NVML, {whose})", bytes as f64 / (1u64 << 30) as f64));
    }
    parts.extend(seen.mean_watts().map(|watts| format!("{watts:.0} W")));
    parts.extend(seen.hottest_celsius.map(|celsius| format!("{celsius:.0} °C at most")));
    Some(parts.join(", "))
}

/// Highest resident set of this process, as Linux counts it; `None` elsewhere.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hub_names_reach_the_adapter_s_config() {
        assert_eq!(
            hub_name("Qwen/Qwen2.5-Coder-0.5B-Instruct").as_deref(),
            Some("Qwen/Qwen2.5-Coder-0.5B-Instruct")
        );
        for other in ["file:/models/a", "embedded:tiny", "random:tiny", "trained:a/b", "file:"] {
            assert_eq!(hub_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_fingerprint_follows_every_part() {
        let p = Params::default();
        let hashes = [("model".to_owned(), "a".to_owned())];
        let of = |p: &Params, device| fingerprint(p, device, &hashes, 1).unwrap();
        let cpu = ComputeDevice::Cpu;
        let first = of(&p, cpu);
        assert_eq!(first, of(&p, cpu));
        assert_ne!(first, fingerprint(&p, cpu, &hashes, 2).unwrap());
        assert_ne!(first, fingerprint(&p, cpu, &[("model".to_owned(), "b".to_owned())], 1).unwrap());
        assert_ne!(first, of(&Params { beta1: 0.8, ..p.clone() }, cpu));
        assert_ne!(first, of(&Params { tokens_at_a_time: 4096, ..p.clone() }, cpu));
        assert_ne!(first, of(&p, ComputeDevice::Cuda { id: 0 }));
        assert_eq!(of(&p, ComputeDevice::Cuda { id: 1 }), of(&p, ComputeDevice::Cuda { id: 0 }));
    }

    #[test]
    fn what_leaves_the_numbers_alone_leaves_the_fingerprint_alone() {
        let of = |p: Params| fingerprint(&p.resolve().unwrap(), ComputeDevice::Cpu, &[], 1).unwrap();
        let first = of(Params::default());
        for same in [
            Params { vram_limit_mb: Some(4000), ..Params::default() },
            Params { device: "cuda:1".into(), ..Params::default() },
            Params { checkpoint_every: 7, ..Params::default() },
            Params { preset: Some(Preset::Budget), ..Params::default() },
        ] {
            assert_eq!(first, of(same.clone()), "{same:?}");
        }
        let other = of(Params { preset: Some(Preset::H9), ..Params::default() });
        assert_ne!(first, other, "its epochs and learning rate");
    }
}
