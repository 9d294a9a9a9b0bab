//! The loop: jobs through the engine, each finished sample into the journal.

use std::time::Instant;

use engine::backend::BackendError;
use engine::device;
use engine::{
    ComputeDevice, EngineError, Finish, GenEvent, GenRequest, GenResult, GenerateOptions, Generator, Sampling,
};
use model::config::Config;
use model::tokenizer::Tokenizer;
use record::generation::{FinishReason, Sample};
use stage_kit::{Context, Progress, Result, StageError};

use crate::journal::{Journal, Line};
use crate::params::Params;
use crate::tasks::Job;
use crate::weights::model_error;

/// Hashes that every sample carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) model_sha256: String,
    pub(crate) adapter_sha256: Option<String>,
    pub(crate) tokenizer_sha256: String,
    pub(crate) template_sha256: String,
}

/// What turns jobs into samples.
#[derive(Debug)]
pub(crate) struct Decoder<'r> {
    pub(crate) params: &'r Params,
    pub(crate) context: &'r Context,
    pub(crate) config: &'r Config,
    pub(crate) tokenizer: Option<&'r Tokenizer>,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) identity: Identity,
    pub(crate) device: ComputeDevice,
}

/// Tokens of this process and the time they took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    pub(crate) tokens: u64,
    /// Tokens that went through the model, prompts included.
    pub(crate) computed: u64,
}

impl Decoder<'_> {
    /// New tokens that fit behind the prompt; `None` when not even one does.
    fn room(&self, job: &Job) -> Option<usize> {
        let left = self.config.max_position_embeddings.saturating_sub(job.prompt_ids.len());
        (left > 0).then(|| left.min(self.params.max_new_tokens as usize))
    }

    /// Where the prompts come from.
    fn source(&self) -> Result<String> {
        let tasks = self.context.optional_input("tasks")?;
        let path = if tasks.is_some() { tasks } else { self.context.optional_input("corpus")? };
        Ok(path.map_or_else(String::new, |path| path.display().to_string()))
    }

    /// A key-value cache for `batch` of `jobs` at a time, the longest ones too.
    ///
    /// # Errors
    /// A prompt with ids that the model has no row for.
    pub(crate) fn options(&self, jobs: &[&Job], base: engine::Base, batch: usize) -> Result<GenerateOptions> {
        let vocab = self.config.vocab_size;
        for job in jobs {
            if let Some(id) = job.prompt_ids.iter().find(|&&id| id as usize >= vocab) {
                return Err(StageError::failed(format!(
                    "the prompt of task `{}` has the token id {id}, and the model's vocabulary has {vocab} rows",
                    job.task_id
                ))
                .at(self.source()?)
                .next("use a tokenizer and tasks of this model"));
            }
        }
        let mut needs: Vec<usize> =
            jobs.iter().map(|j| j.prompt_ids.len() + self.room(j).unwrap_or(0)).collect();
        needs.sort_unstable_by(|a, b| b.cmp(a));
        Ok(GenerateOptions {
            threads: self.context.resources().cpus.max(1) as usize,
            max_tokens: needs.iter().take(batch).sum::<usize>().max(1),
            max_length: needs.first().copied().unwrap_or(0).max(1),
            max_sequences: batch,
            base,
            precision: match self.params.precision {
                crate::params::Precision::Float32 => engine::Precision::Float32,
                crate::params::Precision::Bfloat16 => engine::Precision::Bf16Rounded,
            },
            device: self.device,
        })
    }

    /// Generates every job of `jobs` and adds it to the journal. Says what memory ran out for where it did; what is finished is
    /// in the journal then too.
    ///
    /// # Errors
    /// Interrupted (what is finished is in the journal), the engine's, the disk's.
    pub(crate) fn run(
        &self,
        generator: &mut Generator,
        jobs: &[&Job],
        journal: &mut Journal,
        (progress, spent): (&Progress<'_>, &mut Spent),
    ) -> Result<Option<BackendError>> {
        let requests: Vec<GenRequest> = jobs.iter().map(|job| self.request(job)).collect();
        let begun = Instant::now();
        let mut since = vec![begun; jobs.len()];
        let mut latency_ms = vec![0.0; jobs.len()];
        let mut kept = Ok(());
        let ended = generator.generate_each(&requests, &mut |i, event| {
            match event {
                GenEvent::Started => since[i] = Instant::now(),
                GenEvent::Token(_) => latency_ms[i] = since[i].elapsed().as_secs_f64() * 1e3,
                GenEvent::Finished(result) => {
                    spent.tokens += result.ids.len() as u64;
                    let sample = self.sample(jobs[i], Some(result));
                    kept = sample.and_then(|sample| journal.add(Line { sample, latency_ms: latency_ms[i] }));
                    progress.inc(1);
                }
            }
            kept.is_ok() && !self.context.is_cancelled()
        });
        kept?;
        self.context.check_cancelled()?;
        spent.seconds += begun.elapsed().as_secs_f64();
        spent.computed += generator.computed_tokens();
        match ended {
            Ok(()) => Ok(None),
            Err(EngineError::Backend(e)) if is_short(&e) => Ok(Some(e)),
            Err(e) => Err(engine_error(e)),
        }
    }

    /// Jobs that have no room for a completion, as samples that say so.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn give_up(&self, jobs: &[&Job], journal: &mut Journal) -> Result<()> {
        jobs.iter().try_for_each(|job| journal.add(Line { sample: self.sample(job, None)?, latency_ms: 0.0 }))
    }

    pub(crate) fn has_room(&self, job: &Job) -> bool {
        self.room(job).is_some()
    }

    fn request(&self, job: &Job) -> GenRequest {
        let p = self.params;
        let sampling = match job.sample_idx {
            0 => Sampling::Greedy,
            _ => Sampling::Sample {
                temperature: p.temperature as f32,
                top_k: p.top_k as usize,
                top_p: p.top_p as f32,
                seed: self.context.seed(),
            },
        };
        let n_ids = self.tokenizer.map(Tokenizer::n_ids);
        GenRequest {
            sequence_id: job.sequence_id(),
            prompt_ids: job.prompt_ids.clone(),
            max_new_tokens: self.room(job).unwrap_or(0),
            sampling,
            stop_ids: self.stop_ids.clone(),
            banned_from: n_ids.filter(|&n| (n as usize) < self.config.vocab_size),
        }
    }

    /// `result` is absent for a prompt without room.
    fn sample(&self, job: &Job, result: Option<GenResult>) -> Result<Sample> {
        let finish_reason = match result.as_ref().map(|r| r.finish) {
            None => FinishReason::PromptTooLong,
            Some(Finish::Stop) => FinishReason::Stop,
            Some(Finish::Length) => FinishReason::Length,
        };
        let ids = result.map(|r| r.ids).unwrap_or_default();
        let completion = match self.tokenizer {
            Some(tokenizer) => tokenizer.decode(&ids).map_err(model_error)?,
            None => String::new(),
        };
        Ok(Sample {
            task_id: job.task_id.clone(),
            sample_idx: job.sample_idx,
            round: job.round,
            seed: self.context.seed(),
            prompt_sha256: job.prompt_sha256.clone(),
            completion,
            completion_tokens: ids.len() as u32,
            completion_ids: self.params.return_ids.then_some(ids),
            finish_reason,
            prompt_tokens: job.prompt_ids.len() as u32,
            model_sha256: self.identity.model_sha256.clone(),
            adapter_sha256: self.identity.adapter_sha256.clone(),
            tokenizer_sha256: self.identity.tokenizer_sha256.clone(),
            template_sha256: self.identity.template_sha256.clone(),
        })
    }
}

/// Fewer sequences at a time may do, or memory that others give back. What was under way begins again from its prompt, so that
/// it does not matter how far it came.
pub(crate) fn is_short(e: &BackendError) -> bool {
    e.is_out_of_memory() || e.is_out_of_memory_in_work()
}

/// Memory that one sequence lacks: others hold it and may give it back, unless all of the device would not be enough.
pub(crate) fn out_of_memory(e: &BackendError, device: ComputeDevice) -> StageError {
    if device::is_too_small(device, e) {
        return StageError::failed(format!(
            "{e}, with one sequence at a time: {device} is too small, even where nobody else uses it"
        ))
        .at("generate parameter device")
        .next(
            "lower max_new_tokens, take a GPU with more memory (--set device=cuda:N), or compute on the CPU: --set device=cpu",
        );
    }
    StageError::retryable(format!("{e}, with one sequence at a time")).next(
        "free memory of the GPU (nvidia-smi shows who holds it) and start again: what is done is kept; or take another GPU (--set device=cuda:N), or compute on the CPU: --set device=cpu",
    )
}

/// An error of the engine as the stage's.
pub(crate) fn engine_error(e: EngineError) -> StageError {
    let EngineError::Backend(backend) = &e else {
        return StageError::failed(e.to_string()).next("check the model's files and the parameters");
    };
    if backend.is_without_context() {
        return StageError::retryable(e.to_string()).at("generate parameter device").next(
            "free memory of the GPU (nvidia-smi shows who holds it) and start again, take another GPU (--set device=cuda:N), or compute on the CPU: --set device=cpu",
        );
    }
    let next = match backend.is_device_trouble() {
        true => "look at the GPU with `runner doctor` and nvidia-smi, then start again: what is done is kept",
        false => "check the model's files and the parameters",
    };
    StageError::failed(e.to_string()).next(next)
}
