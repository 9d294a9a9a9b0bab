//! From a model's files to a backend's parameters.

use crate::EngineError;
use crate::backend::Backend;
use crate::cpu::elementwise::rope_table;
use crate::plan::{Class, LoraShape, ModelParams, ParamId, ParamSpec, Shape};
use model::adapter::{Adapter, LoraConfig};
use model::config::Config;
use model::names::Projection;
use model::nf4::Nf4;
use model::weights::Weights;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The plan's dimensions of a configuration.
pub(crate) fn shape(config: &Config) -> Shape {
    Shape {
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        query_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        ffn: config.intermediate_size,
        vocab: config.vocab_size,
        norm_eps: config.rms_norm_eps,
        rope_theta: config.rope_theta,
        tied: config.tie_word_embeddings,
    }
}

pub(crate) fn lora_shape(config: &LoraConfig) -> LoraShape {
    let modules = Projection::ALL.map(|projection| config.target_modules.contains(&projection));
    LoraShape { rank: config.r, modules }
}

/// Stores the base model; `quantise`: projections go through NF4, with double quantisation or without.
pub(crate) fn store_base<B: Backend>(
    backend: &mut B,
    params: &ModelParams,
    weights: &Weights,
    quantise: Option<bool>,
) -> Result<(), EngineError> {
    for (id, spec) in params.iter() {
        let values = match spec.class {
            Class::Adapter => continue,
            Class::RopeTable => rope_table(spec.rows, spec.cols, params.shape.rope_theta),
            Class::Projection if quantise.is_some() => {
                let pieces = quantised(spec, weights, quantise == Some(true))?;
                backend.store_quantised(id, &pieces)?;
                continue;
            }
            _ => base_values(spec, weights)?,
        };
        backend.store_param(id, &values)?;
    }
    Ok(())
}

/// The values of a parameter's pieces, each by itself.
fn pieces<'a>(
    spec: &'a ParamSpec,
    weights: &'a Weights,
) -> impl Iterator<Item = Result<(&'a str, Vec<f32>), EngineError>> {
    spec.pieces.iter().map(|piece| {
        let missing = || EngineError::Mismatch(format!("the weights have no tensor `{}`", piece.name));
        let tensor = weights.get(&piece.name).ok_or_else(missing)?;
        if tensor.len() != piece.rows * piece.cols {
            let shape = tensor.shape();
            let (rows, cols) = (piece.rows, piece.cols);
            let message = format!("`{}` has the shape {shape:?}, expected {rows} x {cols}", piece.name);
            return Err(EngineError::Mismatch(message));
        }
        Ok((piece.name.as_str(), tensor.to_f32()))
    })
}

fn base_values(spec: &ParamSpec, weights: &Weights) -> Result<Vec<f32>, EngineError> {
    let mut values = Vec::with_capacity(spec.elements());
    for piece in pieces(spec, weights) {
        values.extend(piece?.1);
    }
    Ok(values)
}

fn quantised(spec: &ParamSpec, weights: &Weights, double: bool) -> Result<Vec<Nf4>, EngineError> {
    pieces(spec, weights)
        .map(|piece| {
            let (name, values) = piece?;
            Nf4::quantize(&values, double)
                .map_err(|source| EngineError::Quantise { name: name.to_owned(), source })
        })
        .collect()
}

/// Stores the adapter's A and B.
pub(crate) fn store_adapter<B: Backend>(
    backend: &mut B,
    params: &ModelParams,
    adapter: &Adapter,
) -> Result<(), EngineError> {
    for (id, spec) in params.iter().filter(|(_, spec)| spec.class == Class::Adapter) {
        let piece = &spec.pieces[0];
        let missing = || EngineError::Mismatch(format!("the adapter has no tensor `{}`", piece.name));
        let tensor = adapter.tensors.get(&piece.name).ok_or_else(missing)?;
        backend.store_param(id, &tensor.to_f32())?;
    }
    Ok(())
}

/// Tensors of the parameters that `keep` chooses, by the names of the files.
pub(crate) fn tensors<B: Backend>(
    backend: &B,
    params: &ModelParams,
    keep: impl Fn(ParamId, &ParamSpec) -> bool,
) -> Result<BTreeMap<String, Vec<f32>>, EngineError> {
    let mut found = BTreeMap::new();
    for (id, spec) in params.iter().filter(|(id, spec)| keep(*id, spec)) {
        let values = backend.load_param(id)?;
        let mut rest = &values[..];
        for piece in &spec.pieces {
            let (own, tail) = rest.split_at(piece.rows * piece.cols);
            found.insert(piece.name.clone(), own.to_vec());
            rest = tail;
        }
    }
    Ok(found)
}

/// Hexadecimal SHA-256 over `name \0 values` (little-endian float32) of tensors in the order of names.
pub(crate) fn digest(tensors: &BTreeMap<String, Vec<f32>>) -> String {
    let mut hasher = Sha256::new();
    for (name, values) in tensors {
        hasher.update(name.as_bytes());
        hasher.update([0]);
        for value in values {
            hasher.update(value.to_le_bytes());
        }
    }
    hex::encode(hasher.finalize())
}
