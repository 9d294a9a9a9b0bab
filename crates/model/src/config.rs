//! `config.json` and `generation_config.json` of a Qwen2 model, as Hugging Face transformers writes them.
//!
//! The published Qwen2.5 files have `rope_theta` at the top level; transformers 5 writes it under `rope_parameters`.
//! Both are read. Fields that transformers lets out take its defaults; what Qwen2 can ask for and this project does not
//! compute (a sliding window, scaled positions, quantised weights) is refused by name.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{ModelError, Result};

/// No dimension of a real model comes near it; with it products of two fit a `u64` and an `i64` alike.
const DIMENSION_MAX: usize = 1 << 26;
const LAYERS_MAX: usize = 4096;

/// The shape of a Qwen2 model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    /// Width of one attention head; all query heads together may be wider or narrower than `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding; may be more than the tokenizer has entries.
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f64,
    pub rms_norm_eps: f64,
    /// The output head is the embedding, and the file has no `lm_head.weight`.
    pub tie_word_embeddings: bool,
}

impl Config {
    /// Width of the queries of one token.
    pub fn q_dim(&self) -> usize {
        self.head_dim * self.num_attention_heads
    }

    /// Width of the keys and of the values of one token.
    pub fn kv_dim(&self) -> usize {
        self.head_dim * self.num_key_value_heads
    }

    /// Query heads that share one key-value head.
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// The file is missing or no JSON, a field is missing or of the wrong kind, or the model is none that runs here;
    /// the message names the file and the field.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = fs::read_to_string(&path).map_err(|e| ModelError::io("read", &path, e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`Config::from_dir`].
    pub fn from_json(text: &str) -> Result<Self> {
        Self::parse(text, "config.json")
    }

    fn parse(text: &str, place: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .map_err(|e| ModelError::config(format!("{place}:{}", e.line()), format!("not JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(ModelError::config(place, "not a JSON object"));
        };
        let fields = Fields { object: &object, place };
        fields.refuse_unsupported()?;
        let hidden_size = fields.required("hidden_size")?;
        let num_attention_heads = fields.required("num_attention_heads")?;
        let config = Self {
            hidden_size,
            intermediate_size: fields.required("intermediate_size")?,
            num_hidden_layers: fields.required("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: fields.size("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: fields.head_dim(hidden_size, num_attention_heads)?,
            vocab_size: fields.required("vocab_size")?,
            max_position_embeddings: fields.size("max_position_embeddings")?.unwrap_or(32_768),
            rope_theta: fields.rope_theta()?,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            tie_word_embeddings: fields.boolean("tie_word_embeddings")?.unwrap_or(false),
        };
        config.check().map_err(|(field, message)| fields.error(field, message))?;
        fields.check_layer_types(config.num_hidden_layers)?;
        Ok(config)
    }

    /// Whether the numbers make a model; the first that does not, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let dimensions = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, value) in dimensions {
            let max = if field == "num_hidden_layers" { LAYERS_MAX } else { DIMENSION_MAX };
            if value == 0 || value > max {
                return Err((field, format!("is {value}, and must be from 1 to {max}")));
            }
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err((
                "head_dim",
                format!("is {}, and rotary positions need an even number", self.head_dim),
            ));
        }
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if heads.max(kv) > DIMENSION_MAX / self.head_dim {
            return Err(("head_dim", format!("is {}, too wide for {heads} attention heads", self.head_dim)));
        }
        if heads % kv != 0 {
            return Err((
                "num_key_value_heads",
                format!("is {kv}, and does not divide the {heads} attention heads"),
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(("rope_theta", format!("is {}, and must be a positive number", self.rope_theta)));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(("rms_norm_eps", format!("is {}, and must be a positive number", self.rms_norm_eps)));
        }
        Ok(())
    }

    /// The text of a `config.json` that transformers reads, with `rope_theta` at the top level as the published Qwen2.5 files have it.
    ///
    /// `dtype` is that of the weights beside it: `float32`, `bfloat16`, `float16`.
    pub fn to_json(&self, dtype: crate::Dtype) -> String {
        let mut value = json!({
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": crate::init::STD,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "qwen2",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": dtype.torch_name(),
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab_size,
        });
        if self.q_dim() != self.hidden_size {
            value["head_dim"] = json!(self.head_dim);
        }
        format!("{value:#}\n")
    }
}

/// `generation_config.json`: when to stop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerationConfig {
    /// Any of them ends a completion. Empty: only the token limit ends it.
    pub eos_token_ids: Vec<u32>,
    pub pad_token_id: Option<u32>,
    pub bos_token_id: Option<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `dir`; what it lacks comes from `config.json`.
    ///
    /// # Errors
    /// A file is no JSON object, or an id is no whole number below 2^32. A missing `generation_config.json` is no error.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let own = Self::read(&dir.join("generation_config.json"))?.unwrap_or_default();
        let model = Self::read(&dir.join("config.json"))?.unwrap_or_default();
        Ok(Self {
            eos_token_ids: if own.eos_token_ids.is_empty() { model.eos_token_ids } else { own.eos_token_ids },
            pad_token_id: own.pad_token_id.or(model.pad_token_id),
            bos_token_id: own.bos_token_id.or(model.bos_token_id),
        })
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ModelError::io("read", path, e)),
        };
        let place = path.display().to_string();
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| ModelError::config(format!("{place}:{}", e.line()), format!("not JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(ModelError::config(place, "not a JSON object"));
        };
        let ids = |field: &str| -> Result<Vec<u32>> {
            let values = match object.get(field) {
                None | Some(Value::Null) => return Ok(Vec::new()),
                Some(Value::Array(values)) => values.clone(),
                Some(value) => vec![value.clone()],
            };
            values
                .iter()
                .map(|v| v.as_u64().and_then(|id| u32::try_from(id).ok()))
                .collect::<Option<Vec<u32>>>()
                .ok_or_else(|| {
                    ModelError::config(
                        &place,
                        format!("field `{field}`: must be a token id or a list of them"),
                    )
                })
        };
        Ok(Some(Self {
            eos_token_ids: ids("eos_token_id")?,
            pad_token_id: ids("pad_token_id")?.first().copied(),
            bos_token_id: ids("bos_token_id")?.first().copied(),
        }))
    }

    /// The text of a `generation_config.json` that transformers reads.
    pub fn to_json(&self) -> String {
        let mut object = Map::new();
        object.insert("do_sample".to_owned(), json!(false));
        if !self.eos_token_ids.is_empty() {
            object.insert("eos_token_id".to_owned(), json!(self.eos_token_ids));
        }
        if let Some(id) = self.pad_token_id {
            object.insert("pad_token_id".to_owned(), json!(id));
        }
        if let Some(id) = self.bos_token_id {
            object.insert("bos_token_id".to_owned(), json!(id));
        }
        format!("{:#}\n", Value::Object(object))
    }
}

/// Typed access to the fields of a `config.json`.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    place: &'a str,
}

impl Fields<'_> {
    fn error(&self, field: &str, message: impl std::fmt::Display) -> ModelError {
        ModelError::config(self.place, format!("field `{field}`: {message}"))
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.error(field, format!("must be a whole number, and is {value}")))
    }

    fn required(&self, field: &str) -> Result<usize> {
        self.size(field)?.ok_or_else(|| self.error(field, "is missing"))
    }

    /// As transformers reads it: `hidden_size / num_attention_heads` where it is not given.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize> {
        if let Some(head_dim) = self.size("head_dim")? {
            return Ok(head_dim);
        }
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let message = format!("is {hidden}, no multiple of the {heads} attention heads");
            return Err(self.error("hidden_size", message));
        }
        Ok(hidden / heads)
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.error(field, format!("must be a number, and is {value}")))
    }

    fn boolean(&self, field: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.error(field, format!("must be true or false, and is {value}")))
    }

    fn rope_theta(&self) -> Result<f64> {
        let top = self.number("rope_theta")?;
        let nested = match self.get("rope_parameters") {
            None => None,
            Some(Value::Object(object)) => Fields { object, place: self.place }.number("rope_theta")?,
            Some(_) => return Err(self.error("rope_parameters", "must be an object")),
        };
        match (top, nested) {
            (Some(a), Some(b)) if a != b => {
                Err(self
                    .error("rope_theta", format!("is {a} at the top level and {b} under rope_parameters")))
            }
            (top, nested) => Ok(nested.or(top).unwrap_or(10_000.0)),
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let wanted = [("model_type", "qwen2"), ("hidden_act", "silu")];
        for (field, wanted) in wanted {
            if let Some(value) = self.get(field)
                && value != wanted
            {
                return Err(self.error(field, format!("is {value}, and only \"{wanted}\" runs here")));
            }
        }
        if self.get("model_type").is_none() {
            return Err(self.error("model_type", "is missing, and must be \"qwen2\""));
        }
        if self.boolean("use_sliding_window")? == Some(true) {
            return Err(self.error("use_sliding_window", "a sliding window is not supported"));
        }
        if self.get("quantization_config").is_some() {
            return Err(
                self.error("quantization_config", "weights that are quantised already are not supported")
            );
        }
        for field in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(field) else { continue };
            let Value::Object(object) = value else {
                return Err(self.error(field, "must be an object"));
            };
            let kind = ["rope_type", "type"].iter().find_map(|key| object.get(*key));
            let plain = kind.is_none_or(|kind| kind.is_null() || kind == "default");
            if !plain || (kind.is_none() && object.contains_key("factor")) {
                return Err(
                    self.error(field, "scaled rotary positions are not supported, only the type \"default\"")
                );
            }
        }
        Ok(())
    }

    fn check_layer_types(&self, layers: usize) -> Result<()> {
        let Some(value) = self.get("layer_types") else { return Ok(()) };
        let Value::Array(types) = value else {
            return Err(self.error("layer_types", "must be a list"));
        };
        if types.len() != layers {
            return Err(self.error(
                "layer_types",
                format!("names {} layers, and num_hidden_layers is {layers}", types.len()),
            ));
        }
        match types.iter().position(|kind| kind != "full_attention") {
            Some(i) => Err(self.error(
                "layer_types",
                format!("layer {i} is {}, and only \"full_attention\" runs here", types[i]),
            )),
            None => Ok(()),
        }
    }
}
