//! The stage `generate`: completions of a model, with or without an adapter, for functions or for prompts of token ids.
//!
//! A sample is a function of the model, the adapter, its prompt, the parameters and the seed. Neither the batch it is
//! generated in, nor the number of threads, nor a restart changes it. Times are apart, in the output `timings`.

mod decode;
mod feedback;
mod journal;
mod outputs;
mod params;
mod tasks;
mod weights;

use std::time::Instant;

use engine::backend::BackendError;
use engine::device::{self, Build, ComputeDevice, DeviceRequest};
use engine::{EngineError, Generator};
use model::prompt;
use stage_kit::{Alias, Context, Outcome, PortSpec, Result, Stage, StageError, Target, digest};

pub use crate::params::{Base, Params, Precision};

use crate::decode::{Decoder, Identity, Spent, engine_error, is_short, out_of_memory};
use crate::journal::{Journal, Line};
use crate::tasks::{Job, Jobs};
use crate::weights::{Model, Tuned};

/// The stage program.
#[derive(Debug)]
pub struct Generate;

impl Stage for Generate {
    type Params = Params;
    const NAME: &'static str = "generate";
    const INPUTS: &'static [PortSpec] = &[
        PortSpec::required("model", "the model's folder"),
        PortSpec::optional("adapter", "an adapter in PEFT's layout"),
        PortSpec::optional("corpus", "functions to write tests for: the files that `splits` names"),
        PortSpec::optional("tasks", "instead of a corpus: tasks.jsonl with prompts as token ids"),
        PortSpec::optional(
            "feedback",
            "compile results of an earlier round: only its failures are asked for again",
        ),
    ];
    const OUTPUTS: &'static [PortSpec] = &[
        PortSpec::required("samples", "samples.jsonl and manifest.json"),
        PortSpec::volatile("timings", "timings.jsonl and summary.json"),
    ];
    const ALIASES: &'static [Alias] = &[
        Alias { option: "model", target: Target::Input("model") },
        Alias { option: "adapter", target: Target::Input("adapter") },
        Alias { option: "device", target: Target::Param("device") },
    ];

    fn is_checkpoint(name: &str) -> bool {
        journal::is_journal(name)
    }

    fn run(params: Params, context: &Context) -> Result<Outcome> {
        let begun = Instant::now();
        params.check()?;
        let device = choose_device(&params.device, context)?;
        let model = weights::read_model(context.input("model")?)?;
        let tuned = weights::read_adapter(context, &model)?;
        let jobs = tasks::read(&params, context, model.tokenizer.as_ref())?;
        if jobs.from_template
            && let Some(tuned) = &tuned
        {
            weights::check_template(tuned)?;
        }
        generate(&params, context, &model, tuned.as_ref(), &jobs, device, begun)?;
        Ok(Outcome::Done)
    }
}

fn choose_device(text: &str, context: &Context) -> Result<ComputeDevice> {
    let build = Build { cuda: cfg!(feature = "cuda"), cpu_fallback: cfg!(feature = "cpu-fallback") };
    let usage = |e: device::DeviceError| {
        StageError::usage(e.to_string()).at("generate parameter device").next(e.next_step())
    };
    let request: DeviceRequest = text.parse().map_err(usage)?;
    let choice = device::choose(request, build, device::probe).map_err(usage)?;
    for warning in &choice.warnings {
        context.warn(warning);
    }
    Ok(choice.device)
}

fn generate(
    params: &Params,
    context: &Context,
    model: &Model,
    tuned: Option<&Tuned>,
    jobs: &Jobs,
    device: ComputeDevice,
    begun: Instant,
) -> Result<()> {
    let base = weights::base(params, tuned);
    if let Some(warning) = weights::base_warning(base, tuned) {
        context.warn(&warning);
    }
    let identity = Identity {
        model_sha256: model.manifest.model_sha256.clone(),
        adapter_sha256: tuned.map(|t| t.sha256.clone()),
        tokenizer_sha256: model.manifest.tokenizer_sha256.clone(),
        template_sha256: if jobs.from_template {
            prompt::template_sha256().to_owned()
        } else {
            String::new()
        },
    };
    let stop_ids = stop_ids(params, context, model);
    let decoder = Decoder {
        params,
        context,
        config: &model.config,
        tokenizer: model.tokenizer.as_ref(),
        stop_ids,
        identity,
        device,
    };
    let mut journal = Journal::open(context, &fingerprint(params, context, &decoder, jobs)?)?;
    let left: Vec<&Job> = jobs.jobs.iter().filter(|job| !journal.done.contains_key(&key(job))).collect();
    if left.len() < jobs.jobs.len() {
        context.log(&format!(
            "goes on: {} of {} samples are done",
            jobs.jobs.len() - left.len(),
            jobs.jobs.len()
        ));
    }
    let (fit, too_long): (Vec<&Job>, Vec<&Job>) = left.into_iter().partition(|job| decoder.has_room(job));
    if !too_long.is_empty() {
        context.warn(&format!(
            "{} prompts fill the model's {} positions: nothing is generated for them",
            too_long.len(),
            model.config.max_position_embeddings
        ));
    }
    decoder.give_up(&too_long, &mut journal)?;
    let spent = if fit.is_empty() {
        Spent::default()
    } else {
        decode(&decoder, (model, tuned, base), &fit, &mut journal)?
    };
    let lines: Option<Vec<&Line>> = jobs.jobs.iter().map(|job| journal.done.get(&key(job))).collect();
    let lines = lines.ok_or_else(|| StageError::internal("a sample is missing"))?;
    outputs::write_samples(context, params, device.backend(), &decoder.identity, jobs.n_tasks, &lines)?;
    if context.wants("timings") {
        let wall_s = begun.elapsed().as_secs_f64();
        outputs::write_timings(context, &device.to_string(), device.backend(), spent, wall_s, &lines)?;
    }
    Ok(())
}

/// What a generator runs on.
type Loaded<'m> = (&'m Model, Option<&'m Tuned>, engine::Base);

/// Generates every job, with fewer sequences at a time where memory runs out in the middle: the samples are the same.
fn decode(decoder: &Decoder<'_>, loaded: Loaded<'_>, jobs: &[&Job], journal: &mut Journal) -> Result<Spent> {
    let progress = decoder.context.progress("samples", Some(jobs.len() as u64));
    let mut spent = Spent::default();
    let mut batch = decoder.params.batch as usize;
    loop {
        let left = jobs.iter().filter(|job| !journal.done.contains_key(&key(job)));
        let left: Vec<&Job> = left.copied().collect();
        let (mut generator, made_for) = make(decoder, loaded, &left, batch)?;
        let Some(e) = decoder.run(&mut generator, &left, journal, (&progress, &mut spent))? else {
            return Ok(spent);
        };
        // More than there are left take no more memory.
        let at_a_time = made_for.min(left.len());
        if at_a_time <= 1 {
            drop(generator);
            return Err(out_of_memory(&e, decoder.device));
        }
        batch = at_a_time / 2;
        say_fewer(decoder, &e, batch);
    }
}

fn say_fewer(decoder: &Decoder<'_>, e: &BackendError, batch: usize) {
    let sequences = if batch == 1 { "sequence" } else { "sequences" };
    decoder.context.warn(&format!("{e}; {batch} {sequences} at a time instead, the samples are the same"));
}

/// A generator for `batch` sequences at a time, or for as many as the GPU's memory has room for, and how many these are.
fn make(
    decoder: &Decoder<'_>,
    (model, tuned, base): Loaded<'_>,
    jobs: &[&Job],
    mut batch: usize,
) -> Result<(Generator, usize)> {
    let adapter = tuned.map(|t| &t.adapter);
    loop {
        let options = decoder.options(jobs, base, batch)?;
        match Generator::new(&model.config, &model.weights, adapter, options) {
            Err(EngineError::Backend(e)) if is_short(&e) && !e.is_without_context() => {
                // More than there are left take no more memory.
                let at_a_time = batch.min(jobs.len());
                if at_a_time <= 1 {
                    return Err(out_of_memory(&e, decoder.device));
                }
                batch = at_a_time / 2;
                say_fewer(decoder, &e, batch);
            }
            made => return made.map(|generator| (generator, batch)).map_err(engine_error),
        }
    }
}

fn key(job: &Job) -> journal::Key {
    (job.task_id.clone(), job.sample_idx, job.round)
}

/// The model's own stop tokens.
fn stop_ids(params: &Params, context: &Context, model: &Model) -> Vec<u32> {
    if params.ignore_stop {
        return Vec::new();
    }
    if model.generation.eos_token_ids.is_empty() {
        context.warn(
            "the model's generation_config.json names no stop token: only the token limit ends a completion",
        );
    }
    model.generation.eos_token_ids.clone()
}

/// Hash of everything that decides the samples; how they are batched does not.
fn fingerprint(params: &Params, context: &Context, decoder: &Decoder<'_>, jobs: &Jobs) -> Result<String> {
    let mut params = params.clone();
    params.batch = 1;
    let prompts: Vec<(&str, u32, u32, &str)> = jobs
        .jobs
        .iter()
        .map(|j| (j.task_id.as_str(), j.sample_idx, j.round, j.prompt_sha256.as_str()))
        .collect();
    let i = &decoder.identity;
    let identity = (&i.model_sha256, &i.adapter_sha256, &i.tokenizer_sha256, &i.template_sha256);
    let parts = (
        env!("CARGO_PKG_VERSION"),
        outputs::resolved(&params)?,
        identity,
        &decoder.stop_ids,
        context.seed(),
        prompts,
    );
    let text =
        serde_json::to_string(&parts).map_err(|e| StageError::internal(format!("no fingerprint: {e}")))?;
    Ok(digest::sha256_hex(text))
}
