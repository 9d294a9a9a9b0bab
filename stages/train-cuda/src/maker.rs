//! Makes a trainer that fits into the memory there is.

use engine::device;
use engine::{ComputeDevice, EngineError, Mode, SavePolicy, TrainOptions, Trainer};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use stage_kit::{Context, Result, StageError};

use crate::params::{Params, Precision, TrainMode};
use crate::train::{Data, Packing, engine_error};

/// What a GPU gives up for memory while many tokens go through it at a time: a copy of the base.
const GPU_FULL: [Policy; 2] = [(false, SavePolicy::All), (true, SavePolicy::All)];
/// What it gives up then: activations, which are computed again.
const GPU_AGAIN: [Policy; 2] = [(true, SavePolicy::NoGateUp), (true, SavePolicy::Input)];
/// Fewer tokens at a time than these are slower than computing activations again.
const GPU_ENOUGH_TOKENS: usize = 4096;
/// What the driver takes for its context and for graphs: 560 to 720 MB were seen.
const CONTEXT_BYTES: u64 = 750_000_000;
/// Recomputation, least first; results don't depend on it.
const POLICIES: [SavePolicy; 3] = [SavePolicy::All, SavePolicy::NoGateUp, SavePolicy::Input];

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
                Ok((self.on_cpu(adapter)?, Packing::Rows(self.params.batch())))
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

    /// What a trainer would hold, from its plan alone.
    fn planned(&self, adapter: Option<&Adapter>, (packed_base, save): Policy, max_tokens: usize) -> u64 {
        let options = self.options(packed_base, save, max_tokens);
        Trainer::plan_bytes(self.config, adapter.map(|adapter| &adapter.config), &options)
    }

    fn trainer(
        &self,
        adapter: Option<&Adapter>,
        (packed_base, save): Policy,
        max_tokens: usize,
    ) -> std::result::Result<Trainer, EngineError> {
        Trainer::new(self.config, self.weights, adapter, self.options(packed_base, save, max_tokens))
    }

    /// With as much recomputation as the memory that the stage was given asks for.
    fn on_cpu(&self, adapter: Option<&Adapter>) -> Result<Trainer> {
        let max_tokens = self.longest(self.params.batch());
        let limit = self.context.resources().memory_mb.saturating_mul(1_000_000);
        let planned = |save: &SavePolicy| self.planned(adapter, (false, *save), max_tokens);
        let chosen = POLICIES.into_iter().find(|save| limit == 0 || planned(save) <= limit);
        let save = chosen.unwrap_or(SavePolicy::Input);
        if chosen.is_none() {
            self.context.warn(&format!(
                "training needs {} MB, and this stage was given {} MB",
                planned(&save) / 1_000_000,
                limit / 1_000_000
            ));
        }
        self.trainer(adapter, (false, save), max_tokens).map_err(engine_error)
    }

    /// With as many tokens at a time, and as little recomputation, as fit into the memory that may be taken.
    fn on_gpu(&self, adapter: Option<&Adapter>) -> Result<(Trainer, Packing)> {
        let longest = self.longest(1);
        let most =
            self.longest(self.params.rows_per_step()).clamp(longest, self.params.gpu_tokens().max(longest));
        let room = Room { limit: self.params.vram_limit_bytes(), free: device::free_bytes(self.device) };
        let mut why = String::new();
        for (policy, tokens) in candidates(longest, most) {
            match self.fitting(adapter, policy, tokens, room)? {
                Ok(trainer) => {
                    self.say(policy, tokens, most, &why);
                    return Ok((trainer, Packing::Tokens(tokens)));
                }
                Err(reason) => why = reason,
            }
        }
        Err(StageError::failed(format!("the longest row ({longest} tokens) does not fit: {why}")).next(
            "raise vram_limit_mb, free memory of the GPU, leave out the longest rows, or use a smaller model",
        ))
    }

    /// What was given up for memory, and why.
    fn say(&self, (packed_base, save): Policy, tokens: usize, most: usize, why: &str) {
        let mut given_up = Vec::new();
        if tokens < most {
            given_up.push(format!(
                "{tokens} tokens at a time instead of {most}, {} rows a step as before",
                self.params.rows_per_step()
            ));
        }
        if packed_base && self.params.mode == TrainMode::Qlora {
            given_up.push("the base stays in NF4".to_owned());
        }
        match save {
            SavePolicy::All => {}
            SavePolicy::NoGateUp => given_up.push("gate and up are computed again".to_owned()),
            SavePolicy::Input => given_up.push("whole layers are computed again".to_owned()),
        }
        if !given_up.is_empty() {
            self.context.log(&format!("{}: with less given up, {why}", given_up.join("; ")));
        }
    }

    /// A trainer, or why it takes too much memory. None is made when its plan says that already.
    fn fitting(
        &self,
        adapter: Option<&Adapter>,
        policy: Policy,
        tokens: usize,
        room: Room,
    ) -> Result<std::result::Result<Trainer, String>> {
        if let Err(why) = room.holds(self.planned(adapter, policy, tokens)) {
            return Ok(Err(why));
        }
        match self.trainer(adapter, policy, tokens) {
            Ok(trainer) => {
                // Its own room is in the free memory no more; the limit stays.
                let room = Room { free: None, ..room };
                Ok(room.holds(trainer.planned_peak_bytes()).map(|()| trainer))
            }
            Err(e) if is_out_of_memory(&e) => Ok(Err(e.to_string())),
            Err(e) => Err(engine_error(e)),
        }
    }
}

/// Whether the base stays in NF4, and what layers keep for their backward.
type Policy = (bool, SavePolicy);

/// Memory of a GPU that may be taken.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// What the user allows, the driver's context included; 0: everything.
    limit: u64,
    /// What nobody holds, the context taken off already.
    free: Option<u64>,
}

impl Room {
    fn holds(self, needed: u64) -> std::result::Result<(), String> {
        let mb = |bytes: u64| bytes / 1_000_000;
        let with_context = needed + CONTEXT_BYTES;
        if self.limit > 0 && with_context > self.limit {
            return Err(format!(
                "{} MB would be needed, {} MB may be taken",
                mb(with_context),
                mb(self.limit)
            ));
        }
        match self.free {
            Some(free) if needed > free => {
                Err(format!("{} MB would be needed, {} MB of the GPU are free", mb(needed), mb(free)))
            }
            _ => Ok(()),
        }
    }
}

/// What is tried, in this order: less of the base, then fewer tokens, both while there are enough of these; then activations
/// are computed again, at the most tokens that this allows.
fn candidates(longest: usize, most: usize) -> impl Iterator<Item = (Policy, usize)> {
    let enough = GPU_ENOUGH_TOKENS.clamp(longest, most);
    [(GPU_FULL, enough), (GPU_AGAIN, longest)].into_iter().flat_map(move |(policies, least)| {
        let fewer = move |&tokens: &usize| (tokens > least).then(|| (tokens / 4 * 3).max(least));
        std::iter::successors(Some(most), fewer)
            .flat_map(move |tokens| policies.map(|policy| (policy, tokens)))
    })
}

fn is_out_of_memory(error: &EngineError) -> bool {
    matches!(error, EngineError::Backend(backend) if backend.is_out_of_memory())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_first() {
        let all: Vec<_> = candidates(1000, 16_000).collect();
        let kept = all.iter().position(|((_, save), _)| *save != SavePolicy::All).unwrap();
        assert_eq!(all[0], ((false, SavePolicy::All), 16_000));
        assert_eq!(all[1], ((true, SavePolicy::All), 16_000));
        assert_eq!(all[kept - 1], ((true, SavePolicy::All), 4096), "enough tokens with everything kept");
        assert_eq!(all[kept], ((true, SavePolicy::NoGateUp), 16_000));
        assert_eq!(all.last(), Some(&((true, SavePolicy::Input), 1000)), "one row at a time at the last");
        let short: Vec<_> = candidates(700, 700).collect();
        assert_eq!(short.len(), 4, "a single size: {short:?}");
    }

    #[test]
    fn room_is_what_is_allowed_and_what_is_free() {
        let room = |limit, free| Room { limit, free };
        assert_eq!(room(0, None).holds(u64::MAX / 2), Ok(()));
        assert_eq!(room(7_500_000_000, None).holds(7_500_000_000 - CONTEXT_BYTES), Ok(()));
        let why = room(7_500_000_000, None).holds(7_000_000_000).unwrap_err();
        assert!(why.contains("7750 MB would be needed, 7500 MB may be taken"), "{why}");
        let why = room(0, Some(900_000_000)).holds(1_000_000_000).unwrap_err();
        assert!(why.contains("900 MB of the GPU are free"), "{why}");
    }
}
