//! Makes a trainer that fits into the memory there is.

use engine::{ComputeDevice, EngineError, Mode, SavePolicy, TrainOptions, Trainer};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use stage_kit::{Context, Result, StageError};

use crate::params::{Params, Precision, TrainMode};
use crate::train::{Data, Packing, engine_error};

/// What a GPU gives up for memory while many tokens go through it at a time: a copy of the base.
const GPU_FULL: [(bool, SavePolicy); 2] = [(false, SavePolicy::All), (true, SavePolicy::All)];
/// What it gives up then: activations, which are computed again.
const GPU_AGAIN: [(bool, SavePolicy); 2] = [(true, SavePolicy::NoGateUp), (true, SavePolicy::Input)];
/// Fewer tokens at a time than these are slower than computing activations again.
const GPU_ENOUGH_TOKENS: usize = 4096;
/// What the driver takes for itself, about.
const CONTEXT_BYTES: u64 = 550_000_000;
/// Recomputation, least first; results don't depend on it.
const POLICIES: [SavePolicy; 3] = [SavePolicy::All, SavePolicy::NoGateUp, SavePolicy::Input];
/// Most tokens that go through a GPU at a time: more are no faster.
const GPU_TOKENS: usize = 16_384;

/// What a trainer is made from.
pub(crate) struct Maker<'m> {
    pub(crate) params: &'m Params,
    pub(crate) config: &'m Config,
    pub(crate) weights: &'m Weights,
    pub(crate) data: &'m Data,
    pub(crate) device: ComputeDevice,
    pub(crate) context: &'m Context,
}

impl Maker<'_> {
    /// The trainer, and how rows are to be packed for it.
    ///
    /// # Errors
    /// The engine's; on a GPU also when not even the longest row fits.
    pub(crate) fn make(&self, adapter: Option<&Adapter>) -> Result<(Trainer, Packing)> {
        match self.device {
            ComputeDevice::Cuda { .. } => self.on_gpu(adapter),
            ComputeDevice::Cpu | ComputeDevice::Wgpu => {
                Ok((self.on_cpu(adapter)?, Packing::Rows(self.params.batch as usize)))
            }
        }
    }

    /// Most tokens of `n` rows that follow each other in some order.
    fn longest(&self, n: usize) -> usize {
        self.data.train.longest(n).max(self.data.validation.as_ref().map_or(0, |v| v.longest(n)))
    }

    fn options(&self, packed_base: bool, save: SavePolicy, max_tokens: usize) -> TrainOptions {
        let params = self.params;
        TrainOptions {
            mode: match params.mode {
                TrainMode::Full => Mode::Full,
                TrainMode::Lora => Mode::Lora,
                TrainMode::Qlora => Mode::Qlora { double_quant: params.double_quant },
            },
            dropout: params.dropout as f32,
            precision: match params.precision {
                Precision::Float32 => engine::Precision::Float32,
                Precision::Bfloat16 => engine::Precision::Bf16Rounded,
            },
            threads: self.context.resources().cpus.max(1) as usize,
            seed: self.context.seed(),
            save,
            max_tokens,
            device: self.device,
            packed_base,
        }
    }

    fn trainer(
        &self,
        adapter: Option<&Adapter>,
        (packed_base, save): (bool, SavePolicy),
        max_tokens: usize,
    ) -> std::result::Result<Trainer, EngineError> {
        Trainer::new(self.config, self.weights, adapter, self.options(packed_base, save, max_tokens))
    }

    /// With as much recomputation as the memory that the stage was given asks for.
    fn on_cpu(&self, adapter: Option<&Adapter>) -> Result<Trainer> {
        let max_tokens = self.longest(self.params.batch as usize);
        let limit = self.context.resources().memory_mb.saturating_mul(1_000_000);
        for (i, save) in POLICIES.into_iter().enumerate() {
            let trainer = self.trainer(adapter, (false, save), max_tokens).map_err(engine_error)?;
            let fits = limit == 0 || trainer.planned_peak_bytes() <= limit;
            let is_last = i + 1 == POLICIES.len();
            if !fits && is_last {
                self.context.warn(&format!(
                    "training needs {} MB, and this stage was given {} MB",
                    trainer.planned_peak_bytes() / 1_000_000,
                    limit / 1_000_000
                ));
            }
            if fits || is_last {
                return Ok(trainer);
            }
        }
        Err(StageError::internal("no trainer was made"))
    }

    /// With as many tokens at a time, and as little recomputation, as fit into the memory that may be taken.
    fn on_gpu(&self, adapter: Option<&Adapter>) -> Result<(Trainer, Packing)> {
        let longest = self.longest(1);
        let most = self.longest(self.params.rows_per_step()).clamp(longest, GPU_TOKENS.max(longest));
        let enough = GPU_ENOUGH_TOKENS.clamp(longest, most);
        let mut why = String::new();
        for (policies, least) in [(GPU_FULL, enough), (GPU_AGAIN, longest)] {
            let mut tokens = most;
            loop {
                for policy in policies {
                    match self.fitting(adapter, policy, tokens)? {
                        Ok(trainer) => {
                            if tokens < most {
                                self.context.log(&format!(
                                    "{tokens} tokens at a time instead of {most}, {} rows a step as before: {why}",
                                    self.params.rows_per_step()
                                ));
                            }
                            return Ok((trainer, Packing::Tokens(tokens)));
                        }
                        Err(reason) => why = reason,
                    }
                }
                if tokens == least {
                    break;
                }
                tokens = (tokens / 2).max(least);
            }
        }
        Err(StageError::failed(format!("the longest row ({longest} tokens) does not fit: {why}")).next(
            "raise vram_limit_mb, free memory of the GPU, leave out the longest rows, or use a smaller model",
        ))
    }

    /// A trainer, or why it takes too much memory.
    fn fitting(
        &self,
        adapter: Option<&Adapter>,
        policy: (bool, SavePolicy),
        tokens: usize,
    ) -> Result<std::result::Result<Trainer, String>> {
        let limit = self.params.vram_limit_mb.saturating_mul(1_000_000);
        match self.trainer(adapter, policy, tokens) {
            Ok(trainer) => {
                let needed = trainer.planned_peak_bytes() + CONTEXT_BYTES;
                let fits = limit == 0 || needed <= limit;
                Ok(if fits {
                    Ok(trainer)
                } else {
                    Err(format!(
                        "{} MB would be needed, {} MB may be taken",
                        needed / 1_000_000,
                        limit / 1_000_000
                    ))
                })
            }
            Err(e) if is_out_of_memory(&e) => Ok(Err(e.to_string())),
            Err(e) => Err(engine_error(e)),
        }
    }
}

fn is_out_of_memory(error: &EngineError) -> bool {
    matches!(error, EngineError::Backend(backend) if backend.is_out_of_memory())
}
