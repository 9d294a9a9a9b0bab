//! Parameters of the stage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stage_kit::{Result, StageError};

/// The weights that generation runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// As the adapter was trained: nf4 for one of mode qlora, else float32.
    Auto,
    Float32,
    /// Layer projections through NF4.
    Nf4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Activations rounded to bfloat16, sums in float32.
    Bfloat16,
    Float32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Samples of each function: the first is greedy, the others are drawn.
    pub samples: u32,
    /// Divides the logits of drawn samples.
    pub temperature: f64,
    /// Draws from the smallest set of tokens with this probability; 1: from all.
    pub top_p: f64,
    /// Draws from so many of the likeliest tokens; 0: from all.
    pub top_k: u32,
    /// Most tokens of a completion.
    pub max_new_tokens: u32,
    /// auto, cuda, cuda:N, wgpu or cpu.
    pub device: String,
    /// auto (as the adapter was trained), float32 or nf4.
    pub base: Base,
    /// Quantise the scales of NF4 too (base nf4); with base auto the adapter's own setting counts.
    pub double_quant: bool,
    /// bfloat16 (activations) or float32.
    pub precision: Precision,
    /// Files of the corpus whose functions are asked for, without `.jsonl`.
    pub splits: Vec<String>,
    /// Only the first so many functions; 0: all.
    pub limit: u32,
    /// Sequences that are generated at a time, at most 256 of them together; completions don't depend on it. 1: latencies are
    /// those of a single user.
    pub batch: u32,
    /// Write the completions' token ids too.
    pub return_ids: bool,
    /// Generate until the token limit, whatever the model says.
    pub ignore_stop: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            samples: 1,
            temperature: 0.8,
            top_p: 0.95,
            top_k: 0,
            max_new_tokens: 512,
            device: "auto".to_owned(),
            base: Base::Auto,
            double_quant: true,
            precision: Precision::Float32,
            splits: vec!["holdout".to_owned(), "stress".to_owned()],
            limit: 0,
            batch: 1,
            return_ids: false,
            ignore_stop: false,
        }
    }
}

impl Params {
    /// Checks every range.
    ///
    /// # Errors
    /// A usage error that names the parameter.
    pub fn check(&self) -> Result<()> {
        let ranges = [
            ("samples", f64::from(self.samples), (1..=1000).contains(&self.samples), "1 to 1000"),
            (
                "temperature",
                self.temperature,
                self.temperature > 0.0 && self.temperature <= 100.0,
                "above 0, up to 100",
            ),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, up to 1"),
            ("max_new_tokens", f64::from(self.max_new_tokens), self.max_new_tokens > 0, "1 or more"),
            ("batch", f64::from(self.batch), (1..=1024).contains(&self.batch), "1 to 1024"),
        ];
        for (name, value, good, range) in ranges {
            if !good {
                return Err(StageError::usage(format!("{value} is out of range"))
                    .at(format!("generate parameter {name}"))
                    .next(format!("give a value of {range}")));
            }
        }
        for split in &self.splits {
            let plain = !split.is_empty()
                && split.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !plain {
                return Err(StageError::usage(format!("`{split}` is no name of a split"))
                    .at("generate parameter splits")
                    .next(
                        "name files of the corpus without `.jsonl`: holdout, stress, test, validation, train",
                    ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_name_the_parameter() {
        type Change = fn(&mut Params);
        let cases: [(&str, Change); 7] = [
            ("samples", |p| p.samples = 0),
            ("temperature", |p| p.temperature = 0.0),
            ("temperature", |p| p.temperature = f64::NAN),
            ("top_p", |p| p.top_p = 1.1),
            ("max_new_tokens", |p| p.max_new_tokens = 0),
            ("batch", |p| p.batch = 0),
            ("splits", |p| p.splits = vec!["../secret".to_owned()]),
        ];
        Params::default().check().unwrap();
        for (name, change) in cases {
            let mut p = Params::default();
            change(&mut p);
            let e = p.check().unwrap_err();
            assert_eq!(e.place(), Some(format!("generate parameter {name}").as_str()), "{e}");
        }
    }
}
