//! From a model's files to a backend's parameters.

use crate::backend::Backend;
use crate::cpu::elementwise::rope_table;
use crate::plan::{Class, LoraShape, ModelParams, ParamSpec, Piece, Shape};
use crate::{ComputeDevice, EngineError};
use kernels::cuda::ops::lora::RANK_MAX;
use model::adapter::{Adapter, LoraConfig};
use model::config::Config;
use model::names::Projection;
use model::nf4::Nf4;
use model::parallel;
use model::weights::Weights;
use sha2::{Digest, Sha256};
use std::sync::{Mutex, PoisonError, mpsc};

/// Refuses an adapter that the device's kernels can't take.
pub(crate) fn check_rank(device: ComputeDevice, adapter: Option<&Adapter>) -> Result<(), EngineError> {
    let rank = adapter.map_or(0, |adapter| adapter.config.r);
    if matches!(device, ComputeDevice::Cuda { .. }) && rank > RANK_MAX {
        let advice = "take a smaller rank, or compute on the CPU: --set device=cpu";
        return Err(EngineError::Mismatch(format!(
            "adapters of rank {rank}: on a GPU it is at most {RANK_MAX}; {advice}"
        )));
    }
    Ok(())
}

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
    threads: usize,
) -> Result<(), EngineError> {
    let mut quantised = quantise.map(|double| quantised(params, weights, double, threads)).transpose()?;
    for (id, spec) in params.iter() {
        let values = match (spec.class, &mut quantised) {
            (Class::Adapter, _) => continue,
            (Class::RopeTable, _) => rope_table(spec.rows, spec.cols, params.shape.rope_theta),
            (Class::Projection, Some(quantised)) => {
                let pieces: Vec<Nf4> = quantised.by_ref().take(spec.pieces.len()).collect();
                backend.store_quantised(id, &pieces)?;
                continue;
            }
            _ => base_values(spec, weights)?,
        };
        backend.store_param(id, &values)?;
    }
    Ok(())
}

/// Every projection's tensors in NF4, in the order of the parameters. One thread does a whole tensor.
fn quantised(
    params: &ModelParams,
    weights: &Weights,
    double: bool,
    threads: usize,
) -> Result<std::vec::IntoIter<Nf4>, EngineError> {
    let specs = params.iter().filter(|(_, spec)| spec.class == Class::Projection);
    let all: Vec<&Piece> = specs.flat_map(|(_, spec)| &spec.pieces).collect();
    let quantise = |piece: &&Piece| {
        let values = values(piece, weights)?;
        let failed = |source| EngineError::Quantise { name: piece.name.clone(), source };
        Nf4::quantize(&values, double).map_err(failed)
    };
    let made: Vec<Nf4> = parallel::map(&all, threads, quantise).into_iter().collect::<Result<_, _>>()?;
    Ok(made.into_iter())
}

fn values(piece: &Piece, weights: &Weights) -> Result<Vec<f32>, EngineError> {
    let missing = || EngineError::Mismatch(format!("the weights have no tensor `{}`", piece.name));
    let tensor = weights.get(&piece.name).ok_or_else(missing)?;
    if tensor.len() != piece.rows * piece.cols {
        let shape = tensor.shape();
        let (rows, cols) = (piece.rows, piece.cols);
        let message = format!("`{}` has the shape {shape:?}, expected {rows} x {cols}", piece.name);
        return Err(EngineError::Mismatch(message));
    }
    Ok(tensor.to_f32())
}

fn base_values(spec: &ParamSpec, weights: &Weights) -> Result<Vec<f32>, EngineError> {
    if let [piece] = &spec.pieces[..] {
        return values(piece, weights);
    }
    let mut all = Vec::with_capacity(spec.elements());
    for piece in &spec.pieces {
        all.extend(values(piece, weights)?);
    }
    Ok(all)
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

/// Hexadecimal SHA-256 over the lines `name \0 hexadecimal SHA-256 of the values \n` of the tensors that `keep` chooses,
/// in the order of their names; values are little-endian float32. While one tensor is read, others are hashed.
pub(crate) fn digest<B: Backend>(
    backend: &B,
    params: &ModelParams,
    threads: usize,
    keep: impl Fn(&ParamSpec) -> bool,
) -> Result<String, EngineError> {
    let (sender, receiver) = mpsc::sync_channel::<(&ParamSpec, Vec<f32>)>(threads);
    let receiver = Mutex::new(receiver);
    let next = || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let work = || {
        let mut lines = Vec::new();
        while let Ok((spec, values)) = next() {
            let mut rest = &values[..];
            for piece in &spec.pieces {
                let (own, tail) = rest.split_at(piece.rows * piece.cols);
                lines.push(format!("{}\0{}\n", piece.name, values_sha256(own)));
                rest = tail;
            }
        }
        lines
    };
    let mut lines = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let sent = params.iter().filter(|(_, spec)| keep(spec)).try_for_each(|(id, spec)| {
            let values = backend.load_param(id)?;
            // The receiver outlives the workers.
            let _ = sender.send((spec, values));
            Ok::<_, EngineError>(())
        });
        drop(sender);
        let mut lines = Vec::new();
        for worker in workers {
            lines.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        sent.map(|()| lines)
    })?;
    lines.sort_unstable();
    Ok(hex::encode(Sha256::digest(lines.concat())))
}

fn values_sha256(values: &[f32]) -> String {
    let mut hasher = Sha256::new();
    let mut bytes = Vec::new();
    for run in values.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(run.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
    }
    hex::encode(hasher.finalize())
}
