//! Parameters of the stage, and what they come to once a preset and the defaults are filled in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Result, StageError};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainMode {
    /// Every weight of the model.
    Full,
    /// Low-rank adapters on the base as given.
    Lora,
    /// Low-rank adapters on the base in 4-bit NF4.
    Qlora,
}

impl TrainMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Lora => "lora",
            Self::Qlora => "qlora",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Activations rounded to bfloat16, sums in float32.
    Bfloat16,
    Float32,
}

/// Which weights become the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// Those with the lowest validation loss.
    Best,
    /// Those after the last step.
    Last,
}

/// A named set of values for parameters that are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Hypothesis H9: 15 epochs at a learning rate of 6e-4.
    H9,
    /// The recipe in less than 5 GiB of GPU memory.
    Budget,
    /// All of the GPU's memory: more rows a step, all of them at a time, nothing computed twice. Not the recipe.
    Saturate,
}

/// What a preset gives to parameters that are not given.
struct Values {
    epochs: u32,
    lr: f64,
    vram_limit_mb: u64,
    batch: u32,
    accumulation: u32,
}

const RECIPE: Values = Values { epochs: 3, lr: 2e-4, vram_limit_mb: 7500, batch: 4, accumulation: 4 };

impl Values {
    fn of(preset: Option<Preset>) -> Self {
        match preset {
            None => RECIPE,
            Some(Preset::H9) => Values { epochs: 15, lr: 6e-4, ..RECIPE },
            Some(Preset::Budget) => Values { vram_limit_mb: BUDGET_MB, ..RECIPE },
            Some(Preset::Saturate) => Values { vram_limit_mb: 0, batch: 64, accumulation: 1, ..RECIPE },
        }
    }
}

/// More tokens at a time are no faster.
const GPU_TOKENS: usize = 16_384;
const MOST_TOKENS: u64 = 1 << 20;
/// With them a GPU of 24 GB is about full.
const SATURATE_TOKENS: usize = 65_536;
/// 5 GiB by NVML are 5369 MB; the driver's context, its graphs and its rounding take some beside the plan.
const BUDGET_MB: u64 = 4700;
/// Masks decide by 16 bits.
const MOST_DROPOUT: f64 = 65_535.0 / 65_536.0;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// What is trained: full, lora or qlora.
    pub mode: TrainMode,
    /// auto, cuda, cuda:N, wgpu or cpu.
    pub device: String,
    /// bfloat16 (activations) or float32.
    pub precision: Precision,
    /// Values for what is not given: h9 (15 epochs, lr 6e-4), budget (vram_limit_mb 4700), saturate (vram_limit_mb 0, batch 64,
    /// accumulation 1). What is given wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// GPU memory that training may take, in MB (10^6 bytes), the driver's context included; 0: all that is free. 7500 unless a
    /// preset says otherwise.
    pub vram_limit_mb: Option<u64>,
    /// Tokens that go through a GPU at a time; sums are made in an order that follows from it, so the same bytes need the same
    /// number. 0: as many as memory allows, up to 16384.
    pub tokens_at_a_time: u64,
    /// Sequences of a micro-batch; 4 unless a preset says otherwise.
    pub batch: Option<u32>,
    /// Micro-batches of an optimizer step; 4 unless a preset says otherwise.
    pub accumulation: Option<u32>,
    /// Passes over the training rows; 3 unless a preset says otherwise.
    pub epochs: Option<u32>,
    /// Highest learning rate, above 0; 2e-4 unless a preset says otherwise.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: Option<f64>,
    /// Share of all steps in which the learning rate rises.
    pub warmup_ratio: f64,
    /// Learning rate at the end, as a share of the highest.
    pub min_lr_ratio: f64,
    /// Greatest global gradient norm; 0: no clipping.
    pub clip: f64,
    /// AdamW's decoupled decay; on matrices, not on biases and norms.
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Rank of the adapters.
    pub rank: u32,
    /// Scale of the adapters is alpha / rank; above 0.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub alpha: f64,
    /// Dropout on the adapters' input.
    pub dropout: f64,
    /// Projections that get adapters.
    pub target_modules: Vec<String>,
    /// Quantise the scales of NF4 too (mode qlora).
    pub double_quant: bool,
    /// Another order of the rows in each epoch, a function of the seed.
    pub shuffle: bool,
    /// Weights to keep: best (by validation loss) or last.
    pub select: Select,
    /// Steps between two step-N checkpoints; 0: only the last step's.
    pub save_every: u64,
    /// How many step-N checkpoints to keep.
    pub keep: u32,
    /// Steps between two validations; 0: at the end of each epoch only, where there is always one.
    pub validate_every: u64,
    /// Stop after so many steps; 0: no limit. The schedule ends there too.
    pub max_steps: u64,
    /// Steps between two states saved for a restart; 0: only at validations and step-N checkpoints.
    pub checkpoint_every: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            mode: TrainMode::Qlora,
            device: "auto".to_owned(),
            precision: Precision::Bfloat16,
            preset: None,
            vram_limit_mb: None,
            tokens_at_a_time: 0,
            batch: None,
            accumulation: None,
            epochs: None,
            lr: None,
            warmup_ratio: 0.03,
            min_lr_ratio: 0.1,
            clip: 1.0,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            rank: 16,
            alpha: 32.0,
            dropout: 0.05,
            target_modules: model::names::LORA_TARGETS.iter().map(|&m| m.to_owned()).collect(),
            double_quant: true,
            shuffle: true,
            select: Select::Best,
            save_every: 500,
            keep: 3,
            validate_every: 0,
            max_steps: 0,
            checkpoint_every: 100,
        }
    }
}

const SMALL_TO_LARGE: &str = "1.2e-38 to 3.4e38, as float32 has them";

/// Whether the optimizer's float32 holds it: 0 or infinity there would make weights NaN.
fn is_normal(value: f64) -> bool {
    value > 0.0 && (value as f32).is_normal()
}

impl Params {
    /// Fills in the preset and the defaults of `epochs` and `lr`, and checks every range.
    ///
    /// # Errors
    /// A usage error that names the parameter.
    pub fn resolve(mut self) -> Result<Self> {
        let values = Values::of(self.preset);
        self.epochs.get_or_insert(values.epochs);
        self.lr.get_or_insert(values.lr);
        self.vram_limit_mb.get_or_insert(values.vram_limit_mb);
        self.batch.get_or_insert(values.batch);
        self.accumulation.get_or_insert(values.accumulation);
        self.check()?;
        Ok(self)
    }

    pub fn epochs(&self) -> u64 {
        u64::from(self.epochs.unwrap_or(RECIPE.epochs))
    }

    pub fn lr(&self) -> f64 {
        self.lr.unwrap_or(RECIPE.lr)
    }

    /// Rows of one micro-batch.
    pub fn batch(&self) -> usize {
        self.batch.unwrap_or(RECIPE.batch) as usize
    }

    /// Rows of one optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.batch() * self.accumulation.unwrap_or(RECIPE.accumulation) as usize
    }

    /// Bytes of GPU memory that may be taken; 0: all that is free.
    pub fn vram_limit_bytes(&self) -> u64 {
        self.vram_limit_mb.unwrap_or(RECIPE.vram_limit_mb).saturating_mul(1_000_000)
    }

    /// Most tokens that go through a GPU at a time.
    pub fn gpu_tokens(&self) -> usize {
        if self.preset == Some(Preset::Saturate) { SATURATE_TOKENS } else { GPU_TOKENS }
    }

    fn check(&self) -> Result<()> {
        let counts = [("batch", self.batch), ("accumulation", self.accumulation)]
            .map(|(name, n)| (name, n.unwrap_or(RECIPE.batch)))
            .map(|(name, n)| (name, f64::from(n), (1..=4096).contains(&n), "1 to 4096"));
        let tokens = self.tokens_at_a_time;
        let ranges: [(&str, f64, bool, &str); 14] = [
            ("tokens_at_a_time", tokens as f64, tokens <= MOST_TOKENS, "0 to 1048576"),
            ("epochs", self.epochs() as f64, self.epochs() > 0, "1 or more"),
            ("lr", self.lr(), is_normal(self.lr()), SMALL_TO_LARGE),
            ("warmup_ratio", self.warmup_ratio, (0.0..=1.0).contains(&self.warmup_ratio), "0 to 1"),
            ("min_lr_ratio", self.min_lr_ratio, (0.0..=1.0).contains(&self.min_lr_ratio), "0 to 1"),
            ("clip", self.clip, self.clip.is_finite() && self.clip >= 0.0, "0 or more"),
            ("weight_decay", self.weight_decay, (0.0..=1.0).contains(&self.weight_decay), "0 to 1"),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "0 up to, not including, 1"),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "0 up to, not including, 1"),
            ("eps", self.eps, is_normal(self.eps), SMALL_TO_LARGE),
            ("rank", f64::from(self.rank), (1..=1024).contains(&self.rank), "1 to 1024"),
            ("alpha", self.alpha, is_normal(self.alpha), SMALL_TO_LARGE),
            ("dropout", self.dropout, (0.0..=MOST_DROPOUT).contains(&self.dropout), "0 up to 65535/65536"),
            ("keep", f64::from(self.keep), (1..=3).contains(&self.keep), "1 to 3"),
        ];
        for (name, value, good, range) in counts.into_iter().chain(ranges) {
            if !good {
                return Err(StageError::usage(format!("{value} is out of range"))
                    .at(format!("train-cuda parameter {name}"))
                    .next(format!("give a value of {range}")));
            }
        }
        self.check_targets()
    }

    fn check_targets(&self) -> Result<()> {
        let place = "train-cuda parameter target_modules";
        if self.target_modules.is_empty() {
            return Err(StageError::usage("no projection is named")
                .at(place)
                .next("name at least one, or leave it out for all seven"));
        }
        for (i, name) in self.target_modules.iter().enumerate() {
            if !model::names::LORA_TARGETS.contains(&name.as_str()) {
                return Err(StageError::usage(format!("there is no projection `{name}`"))
                    .at(place)
                    .next(format!("they are: {}", model::names::LORA_TARGETS.join(", "))));
            }
            if self.target_modules[..i].contains(name) {
                return Err(StageError::usage(format!("`{name}` is named twice"))
                    .at(place)
                    .next("name each once"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_recipe() {
        let p = Params::default().resolve().unwrap();
        assert_eq!((p.epochs(), p.lr(), p.batch, p.accumulation), (3, 2e-4, Some(4), Some(4)));
        assert_eq!((p.vram_limit_bytes(), p.rows_per_step()), (7_500_000_000, 16));
        assert_eq!((p.rank, p.alpha, p.dropout), (16, 32.0, 0.05));
        assert_eq!((p.beta1, p.beta2, p.eps, p.weight_decay, p.clip), (0.9, 0.999, 1e-8, 0.01, 1.0));
        assert_eq!(p.target_modules.len(), 7);
    }

    #[test]
    fn a_preset_fills_in_only_what_is_not_given() {
        let h9 = Params { preset: Some(Preset::H9), ..Params::default() };
        let p = h9.clone().resolve().unwrap();
        assert_eq!((p.epochs(), p.lr()), (15, 6e-4));
        let p = Params { lr: Some(2e-4), ..h9 }.resolve().unwrap();
        assert_eq!((p.epochs(), p.lr()), (15, 2e-4));
        let of = |preset| Params { preset: Some(preset), ..Params::default() }.resolve().unwrap();
        let budget = of(Preset::Budget);
        assert!(budget.vram_limit_bytes() < 5 << 30);
        let rest = |p: Params| Params { preset: None, vram_limit_mb: None, ..p };
        assert_eq!(rest(budget), rest(Params::default().resolve().unwrap()), "the recipe itself");
        let saturate = of(Preset::Saturate);
        assert_eq!((saturate.vram_limit_bytes(), saturate.rows_per_step()), (0, 64));
    }

    #[test]
    fn values_out_of_range_name_the_parameter() {
        type Change = fn(&mut Params);
        let cases: [(&str, Change); 8] = [
            ("batch", |p| p.batch = Some(0)),
            ("epochs", |p| p.epochs = Some(0)),
            ("lr", |p| p.lr = Some(f64::NAN)),
            ("dropout", |p| p.dropout = 1.0),
            ("dropout", |p| p.dropout = 0.999_999),
            ("keep", |p| p.keep = 4),
            ("target_modules", |p| p.target_modules = vec!["q_prj".to_owned()]),
            ("target_modules", |p| p.target_modules.push("q_proj".to_owned())),
        ];
        for (name, change) in cases {
            let mut p = Params::default();
            change(&mut p);
            let e = p.resolve().unwrap_err();
            assert_eq!(e.place(), Some(format!("train-cuda parameter {name}").as_str()), "{e}");
        }
    }
}
