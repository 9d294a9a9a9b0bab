//! Makes a trainer that fits into the memory there is.

use engine::device;
use engine::{ComputeDevice, EngineError, Mode, SavePolicy, TrainOptions, Trainer};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use stage_kit::{Context, Result, StageError};

use crate::checkpoint::History;
use crate::packing::Packing;
use crate::params::{Params, Precision, TrainMode};
use crate::telemetry;
use crate::train::{Data, engine_error, is_without_context, without_context};

/// What a GPU gives up for memory while many tokens go through it at a time: a copy of the base.
const GPU_FULL: [Policy; 2] = [(false, SavePolicy::All), (true, SavePolicy::All)];
/// What it gives up then: activations, which are computed again.
const GPU_AGAIN: [Policy; 2] = [(true, SavePolicy::NoGateUp), (true, SavePolicy::Input)];
/// Fewer tokens at a time than these are slower than computing activations again.
const GPU_ENOUGH_TOKENS: usize = 4096;
/// What the driver takes for its context and for graphs: 560 to 745 MB were seen.
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
    /// Of the run that is to go on.
    pub(crate) earlier: Option<History>,
}

/// A trainer that fits.
pub(crate) struct Made {
    pub(crate) trainer: Trainer,
    /// How rows are to be packed for it.
    pub(crate) packing: Packing,
    /// What it takes by its plan.
    pub(crate) planned_bytes: u64,
}

impl Maker<'_> {
    /// # Errors
    /// The engine's; on a GPU also when not even the longest row fits.
    pub(crate) fn make(&self, adapter: Option<&Adapter>) -> Result<Made> {
        match self.device {
            ComputeDevice::Cuda { .. } => self.on_gpu(adapter),
            ComputeDevice::Cpu | ComputeDevice::Wgpu => {
                let trainer = self.on_cpu(adapter)?;
                let planned_bytes = trainer.planned_peak_bytes();
                Ok(Made { trainer, packing: Packing::Rows(self.params.batch()), planned_bytes })
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

    /// With as many tokens at a time, and as little recomputation, as fit into the memory that may be taken; with as many as
    /// before where the run goes on.
    fn on_gpu(&self, adapter: Option<&Adapter>) -> Result<Made> {
        let ran_out = self.earlier.as_ref().and_then(|history| history.ran_out_bytes);
        let free = device::free_bytes(self.device).map_err(|e| self.not_opened(e))?;
        let room = Room { limit: self.params.vram_limit_bytes(), free, ran_out };
        let wish = self.wish()?;
        let all = wish.candidates();
        let mut why = String::new();
        // What ran out once may be there again, but is tried only when nothing less would do.
        for room in [room, Room { ran_out: None, ..room }] {
            for &(policy, tokens) in &all {
                let planned_bytes = self.planned(adapter, policy, tokens);
                match self.fitting(adapter, policy, tokens, (planned_bytes, room))? {
                    Ok(trainer) => {
                        self.say(policy, tokens, wish.most(), &why);
                        let allowed = |&&(policy, tokens): &&(Policy, usize)| {
                            Room { free: None, ran_out: None, ..room }
                                .holds(self.planned(adapter, policy, tokens))
                                .is_ok()
                        };
                        self.warn_of_fewer(wish, tokens, all.iter().find(allowed), &why);
                        return Ok(Made { trainer, packing: Packing::Tokens(tokens), planned_bytes });
                    }
                    Err(reason) => why = reason,
                }
            }
            if ran_out.is_none() {
                break;
            }
        }
        Err(match wish {
            Wish::Exactly(tokens) => StageError::failed(format!("{tokens} tokens at a time do not fit: {why}"))
                .at("train-cuda parameter tokens_at_a_time")
                .next("lower it, or raise vram_limit_mb, or free memory of the GPU"),
            Wish::Most { longest, .. } | Wish::AsBefore { longest, .. } => {
                StageError::failed(format!("the longest row ({longest} tokens) does not fit: {why}")).next(
                    "raise vram_limit_mb, free memory of the GPU, leave out the longest rows, or use a smaller model",
                )
            }
        })
    }

    fn wish(&self) -> Result<Wish> {
        let longest = self.longest(1);
        let given = self.params.tokens_at_a_time as usize;
        if given > 0 && given < longest {
            return Err(StageError::usage(format!(
                "{given} tokens are fewer than the longest row's {longest}"
            ))
            .at("train-cuda parameter tokens_at_a_time")
            .next(format!("give {longest} or more, or 0")));
        }
        let before = self.earlier.as_ref().and_then(|history| history.tokens_at_a_time.last());
        Ok(match before {
            _ if given > 0 => Wish::Exactly(given),
            Some(before) => Wish::AsBefore { longest, tokens: (before.tokens as usize).max(longest) },
            None => {
                let most = self.longest(self.params.rows_per_step());
                Wish::Most { longest, most: most.clamp(longest, self.params.gpu_tokens().max(longest)) }
            }
        })
    }

    /// Sums are made in an order that follows from the number of tokens: says so where it is not what the parameters, or the
    /// run so far, decide.
    fn warn_of_fewer(&self, wish: Wish, tokens: usize, allowed: Option<&(Policy, usize)>, why: &str) {
        let message = match (wish, allowed) {
            (Wish::AsBefore { tokens: before, .. }, _) if tokens < before => format!(
                "{before} tokens at a time, as before, do not fit any more ({why}): training goes on with {tokens}, and its result will not have the bytes of an uninterrupted run"
            ),
            (Wish::Most { .. }, Some(&(_, allowed))) if tokens < allowed => format!(
                "{tokens} tokens at a time, where {allowed} were possible on a GPU that nobody else uses ({why}): its result will not have the same bytes; tokens_at_a_time={tokens} gives those of this run anywhere"
            ),
            _ => return,
        };
        self.context.warn(&message);
    }

    /// Why the GPU can't be opened; where it is full, with what NVML says of its memory.
    fn not_opened(&self, e: EngineError) -> StageError {
        match telemetry::free_bytes(self.device).filter(|_| is_without_context(&e)) {
            Some(free) => without_context(format!("{e}; {} MB are free", free / 1_000_000)),
            None => engine_error(e),
        }
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
        (planned_bytes, room): (u64, Room),
    ) -> Result<std::result::Result<Trainer, String>> {
        if let Err(why) = room.holds(planned_bytes) {
            return Ok(Err(why));
        }
        match self.trainer(adapter, policy, tokens) {
            Ok(trainer) => {
                // Its own room is in the free memory no more; the limit stays.
                let room = Room { free: None, ran_out: None, ..room };
                Ok(room.holds(trainer.planned_peak_bytes()).map(|()| trainer))
            }
            Err(e) if is_out_of_memory(&e) => Ok(Err(e.to_string())),
            Err(e) => Err(engine_error(e)),
        }
    }
}

/// How many tokens are to go through a GPU at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// As the user says.
    Exactly(usize),
    /// The more the better, but a row is not cut.
    Most { longest: usize, most: usize },
    /// So many as the run began with, or fewer where they do not fit any more.
    AsBefore { longest: usize, tokens: usize },
}

impl Wish {
    fn most(self) -> usize {
        match self {
            Self::Exactly(tokens) | Self::AsBefore { tokens, .. } => tokens,
            Self::Most { most, .. } => most,
        }
    }

    fn candidates(self) -> Vec<(Policy, usize)> {
        match self {
            Self::Exactly(tokens) => candidates(tokens, tokens).collect(),
            Self::Most { longest, most } => candidates(longest, most).collect(),
            Self::AsBefore { longest, tokens } => {
                let fewer = candidates(longest, tokens).filter(|&(_, n)| n < tokens);
                candidates(tokens, tokens).chain(fewer).collect()
            }
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
    /// With a plan of so many bytes it ran out before.
    ran_out: Option<u64>,
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
        if let Some(before) = self.ran_out.filter(|&before| needed >= before) {
            return Err(format!(
                "{} MB would be needed, and with {} MB memory ran out before",
                mb(needed),
                mb(before)
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
    fn a_number_of_tokens_that_is_given_is_not_changed_and_one_from_before_comes_first() {
        let all = Wish::Exactly(5000).candidates();
        assert!(all.len() == 4 && all.iter().all(|&(_, tokens)| tokens == 5000), "{all:?}");
        let all = Wish::AsBefore { longest: 700, tokens: 8000 }.candidates();
        assert!(all[..4].iter().all(|&(_, tokens)| tokens == 8000), "{all:?}");
        assert!(all[4..].iter().all(|&(_, tokens)| tokens < 8000), "{all:?}");
        assert_eq!(all.last(), Some(&((true, SavePolicy::Input), 700)));
        let most = Wish::Most { longest: 700, most: 8000 };
        assert_eq!(most.candidates(), candidates(700, 8000).collect::<Vec<_>>());
    }

    #[test]
    fn room_is_what_is_allowed_and_what_is_free() {
        let room = |limit, free| Room { limit, free, ran_out: None };
        assert_eq!(room(0, None).holds(u64::MAX / 2), Ok(()));
        assert_eq!(room(7_500_000_000, None).holds(7_500_000_000 - CONTEXT_BYTES), Ok(()));
        let why = room(7_500_000_000, None).holds(7_000_000_000).unwrap_err();
        assert!(why.contains("7750 MB would be needed, 7500 MB may be taken"), "{why}");
        let why = room(0, Some(900_000_000)).holds(1_000_000_000).unwrap_err();
        assert!(why.contains("900 MB of the GPU are free"), "{why}");
        let short = Room { ran_out: Some(2_000_000_000), ..room(0, None) };
        assert_eq!(short.holds(1_999_999_999), Ok(()));
        let why = short.holds(2_000_000_000).unwrap_err();
        assert!(why.contains("with 2000 MB memory ran out before"), "{why}");
    }
}
