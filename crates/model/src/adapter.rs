//! LoRA adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A projection `y = W x` becomes `y = W x + (alpha / r) B A x` with `A` `[r, in]` and `B` `[out, r]`
//! (E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::names::{LORA_TARGETS, Projection};
use crate::philox::{Purpose, Stream};
use crate::tensor::{Dtype, Tensor};
use crate::{ModelError, Result, weights};

pub const FILE: &str = "adapter_model.safetensors";
pub const CONFIG_FILE: &str = "adapter_config.json";

/// What `adapter_config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    pub r: usize,
    pub alpha: f64,
    /// Applied to the adapter's input while training.
    pub dropout: f64,
    /// In the order of [`LORA_TARGETS`], each once.
    pub target_modules: Vec<Projection>,
    pub base_model_name: Option<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: 0.05,
            target_modules: Projection::ALL.to_vec(),
            base_model_name: None,
        }
    }
}

impl LoraConfig {
    /// alpha / r
    pub fn scaling(&self) -> f64 {
        self.alpha / self.r as f64
    }

    /// Reads the text of an `adapter_config.json`; `place` names it in errors.
    ///
    /// # Errors
    /// It is no JSON, a field is missing or of the wrong kind, or it asks for a variant of LoRA that does not run here.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .map_err(|e| ModelError::adapter(format!("{place}:{}", e.line()), format!("not JSON: {e}")))?;
        let error =
            |field: &str, message: String| ModelError::adapter(place, format!("field `{field}`: {message}"));
        if value.get("peft_type").is_none_or(|kind| kind != "LORA") {
            return Err(error("peft_type", "must be \"LORA\"".to_owned()));
        }
        refuse_variants(&value).map_err(|(field, message)| error(field, message))?;
        let number = |field: &str| value.get(field).and_then(Value::as_f64);
        let r = value.get("r").and_then(Value::as_u64).and_then(|r| usize::try_from(r).ok());
        let config = Self {
            r: r.ok_or_else(|| error("r", "must be a whole number".to_owned()))?,
            alpha: number("lora_alpha").ok_or_else(|| error("lora_alpha", "must be a number".to_owned()))?,
            dropout: number("lora_dropout").unwrap_or(0.0),
            target_modules: targets(&value).map_err(|message| error("target_modules", message))?,
            base_model_name: value.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        };
        config.check().map_err(|(field, message)| error(field, message))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.r == 0 || self.r > 1 << 16 {
            return Err(("r", format!("is {}, and must be from 1 to 65536", self.r)));
        }
        if !self.alpha.is_finite() {
            return Err(("lora_alpha", format!("is {}, and must be a finite number", self.alpha)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(("lora_dropout", format!("is {}, and must be at least 0 and below 1", self.dropout)));
        }
        Ok(())
    }

    /// The text of an `adapter_config.json` that PEFT reads.
    pub fn to_json(&self) -> String {
        let targets: Vec<&str> = self.target_modules.iter().map(|p| p.name()).collect();
        let alpha = if self.alpha.fract() == 0.0 { json!(self.alpha as i64) } else { json!(self.alpha) };
        let value = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": {},
            "revision": null,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": false,
        });
        format!("{value:#}\n")
    }
}

fn refuse_variants(value: &Value) -> Result<(), (&'static str, String)> {
    for field in ["use_dora", "use_rslora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias"] {
        if value.get(field).is_some_and(|v| v == true) {
            return Err((field, "is not supported".to_owned()));
        }
    }
    let empty = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    let fields = [
        "modules_to_save",
        "layers_to_transform",
        "layer_replication",
        "rank_pattern",
        "alpha_pattern",
        "target_parameters",
        "trainable_token_indices",
        "exclude_modules",
        "use_bdlora",
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "kasa_config",
        "lora_ga_config",
        "loftq_config",
        "megatron_config",
        "monteclora_config",
        "velora_config",
    ];
    for field in fields {
        if value.get(field).is_some_and(|v| !empty(v)) {
            return Err((field, "is not supported".to_owned()));
        }
    }
    // The other ways to begin (pissa, olora, ...) change the base too: these tensors alone are not the adapter.
    let plain =
        |v: &Value| v.is_null() || v.is_boolean() || ["gaussian", "eva", "orthogonal"].iter().any(|s| v == s);
    if let Some(init) = value.get("init_lora_weights").filter(|v| !plain(v)) {
        return Err(("init_lora_weights", format!("is {init}, which changes the base model too")));
    }
    match value.get("bias") {
        Some(bias) if !bias.is_null() && bias != "none" => {
            Err(("bias", format!("is {bias}, and only \"none\" is supported")))
        }
        _ => Ok(()),
    }
}

fn targets(value: &Value) -> Result<Vec<Projection>, String> {
    let known = LORA_TARGETS.join(", ");
    let list = match value.get("target_modules") {
        Some(Value::String(all)) if all == "all-linear" => return Ok(Projection::ALL.to_vec()),
        Some(Value::Array(list)) if !list.is_empty() => list,
        _ => return Err(format!("must be a list of some of {known}")),
    };
    let mut found = BTreeSet::new();
    for item in list {
        let projection = item.as_str().and_then(Projection::from_name);
        found.insert(projection.ok_or_else(|| format!("{item} is none of {known}"))?);
    }
    Ok(found.into_iter().collect())
}

/// The name of an adapter's tensor in a PEFT file; `part` is `'A'` or `'B'`.
pub fn name(layer: usize, module: Projection, part: char) -> String {
    format!("base_model.model.model.layers.{layer}.{}.lora_{part}.weight", module.path())
}

/// Every tensor of an adapter, with its shape, in the order of computation: `A` `[r, in]` and `B` `[out, r]` of each target.
pub fn expected(config: &Config, lora: &LoraConfig) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for layer in 0..config.num_hidden_layers {
        for &module in &lora.target_modules {
            let (out, inputs) = module.shape(config);
            tensors.push((name(layer, module, 'A'), vec![lora.r, inputs]));
            tensors.push((name(layer, module, 'B'), vec![out, lora.r]));
        }
    }
    tensors
}

/// An adapter: its configuration, and its tensors by their full PEFT names.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub config: LoraConfig,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// Reads the adapter in `dir` for a model of this shape.
    ///
    /// # Errors
    /// A file is missing or damaged, asks for an unsupported variant, or its tensors are not exactly those of the
    /// configuration; the message names file and field or tensor.
    pub fn load(dir: &Path, model: &Config) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let text = fs::read_to_string(&path).map_err(|e| ModelError::io("read", &path, e))?;
        let config = LoraConfig::from_json(&text, &path.display().to_string())?;
        let file = dir.join(FILE);
        let adapter = Self { config, tensors: weights::read_file(&file)? };
        adapter.check(model, &file.display().to_string())?;
        Ok(adapter)
    }

    /// A fresh adapter in float32: `A` uniform in ±1/sqrt(in) (Kaiming with a = sqrt 5, as PEFT has it), `B` zero, so
    /// that it changes nothing yet.
    pub fn init(model: &Config, lora: &LoraConfig, seed: u64) -> Self {
        let mut tensors = BTreeMap::new();
        let mut insert = |name: String, shape: Vec<usize>, values: Vec<f32>| {
            if let Some(tensor) = Tensor::from_f32(shape, &values) {
                tensors.insert(name, tensor);
            }
        };
        for layer in 0..model.num_hidden_layers {
            for &module in &lora.target_modules {
                let (out, inputs) = module.shape(model);
                let stream = Stream::new(seed, Purpose::Adapter, [layer as u32, module as u32, 0]);
                let bound = (1.0 / (inputs as f64).sqrt()) as f32;
                let a =
                    (0..lora.r * inputs).map(|i| (stream.uniform_at(i as u64) * 2.0 - 1.0) * bound).collect();
                insert(name(layer, module, 'A'), vec![lora.r, inputs], a);
                insert(name(layer, module, 'B'), vec![out, lora.r], vec![0.0; out * lora.r]);
            }
        }
        Self { config: lora.clone(), tensors }
    }

    /// Whether the tensors are exactly those that the configuration asks for on a model of this shape.
    ///
    /// # Errors
    /// Names the first tensor that is missing, unexpected, of another shape or not finite; `place` names the file.
    pub fn check(&self, model: &Config, place: &str) -> Result<()> {
        let expected: BTreeMap<String, Vec<usize>> = expected(model, &self.config).into_iter().collect();
        for (name, shape) in &expected {
            let at = format!("{place}: {name}");
            let Some(tensor) = self.tensors.get(name) else {
                return Err(ModelError::adapter(at, "is missing"));
            };
            if tensor.shape() != shape {
                let message =
                    format!("has the shape {:?}, r and the base model ask for {shape:?}", tensor.shape());
                return Err(ModelError::adapter(at, message));
            }
            if let Some(message) = weights::not_finite(tensor) {
                return Err(ModelError::adapter(at, message));
            }
        }
        match self.tensors.keys().find(|name| !expected.contains_key(*name)) {
            Some(name) => Err(ModelError::adapter(
                format!("{place}: {name}"),
                "is unexpected: no layer or target of that name",
            )),
            None => Ok(()),
        }
    }

    /// Writes both files into `dir`, tensors in float32. The same adapter gives the same bytes.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CONFIG_FILE);
        fs::write(&path, self.config.to_json()).map_err(|e| ModelError::io("write", &path, e))?;
        let tensors = self.tensors.iter().map(|(n, t)| (n.clone(), t.to_dtype(Dtype::F32))).collect();
        weights::write_file(&dir.join(FILE), &tensors)
    }

    /// A tensor as float32, row-major; `None` when the adapter does not target the module.
    pub fn values(&self, layer: usize, module: Projection, part: char) -> Option<Vec<f32>> {
        self.tensors.get(&name(layer, module, part)).map(Tensor::to_f32)
    }

    /// Numbers in all tensors: 8,798,208 for r = 16 on every projection of the 0.5B shape.
    pub fn n_parameters(&self) -> u64 {
        self.tensors.values().map(|t| t.len() as u64).sum()
    }

    /// Hexadecimal SHA-256 over every tensor in the order of names: name, dtype, shape, bytes.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for (name, tensor) in &self.tensors {
            weights::hash_tensor(&mut hasher, name, tensor);
        }
        hex::encode(hasher.finalize())
    }
}
