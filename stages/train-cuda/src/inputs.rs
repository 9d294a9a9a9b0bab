//! Reading the stage's inputs and refusing what does not belong together.

use std::path::{Path, PathBuf};

use model::adapter::{Adapter, LoraConfig};
use model::config::Config;
use model::names::Projection;
use model::weights::Weights;
use model::{manifest, tokenizer};
use record::model::ModelManifest;
use record::training::{TRAINING_SCHEMA_VERSION, TrainingManifest};
use stage_kit::{Context, Result, StageError, digest, files};

use crate::params::{Params, TrainMode};
use crate::tokens::{self, TokenFile};
use crate::train::Data;
use crate::weights::model_error;

/// `manifest.json` beside an adapter.
pub(crate) const ADAPTER_MANIFEST: &str = "manifest.json";

/// The model folder.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) dir: PathBuf,
    pub(crate) config: Config,
    pub(crate) manifest: ModelManifest,
}

/// Everything that is read.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) base: Base,
    pub(crate) weights: Weights,
    pub(crate) data: Data,
    /// `None` in mode full.
    pub(crate) adapter: Option<Adapter>,
    /// Hashes of all of it, by name.
    pub(crate) hashes: Vec<(String, String)>,
}

/// Reads and checks every input.
///
/// # Errors
/// Damaged or missing files, and inputs that do not fit each other, the model or the parameters.
pub(crate) fn read(params: &Params, context: &Context) -> Result<Inputs> {
    let (base, weights) = read_base(context.input("model")?)?;
    let dir = context.input("tokens")?;
    let train = read_tokens(&dir.join("train.parquet"), &base)?;
    if train.n_label_tokens() == 0 {
        let what = if train.rows.is_empty() {
            "there are no training rows"
        } else {
            "no training row has a label to learn"
        };
        return Err(StageError::failed(what)
            .at(train.path.display().to_string())
            .next("look at the corpus and at the counts of tokenize-to-parquet: were all rows over-long?"));
    }
    let path = dir.join("validation.parquet");
    let validation = if path.exists() { Some(read_tokens(&path, &base)?) } else { None };
    let mut hashes = vec![("model".to_owned(), base.manifest.model_sha256.clone())];
    for file in [Some(&train), validation.as_ref()].into_iter().flatten() {
        let sha256 = digest::sha256_file(&file.path).map_err(|e| StageError::io("read", &file.path, e))?;
        hashes.push((file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(), sha256));
    }
    let validation = validation.filter(|v| v.n_label_tokens() > 0);
    let adapter = match (params.mode, context.optional_input("adapter_start")?) {
        (TrainMode::Full, None) => None,
        (TrainMode::Full, Some(_)) => {
            return Err(StageError::usage("mode full trains no adapter, and adapter_start was given")
                .next("leave adapter_start out, or set mode=lora or mode=qlora"));
        }
        (_, None) => Some(Adapter::init(&base.config, &lora_config(params)?, context.seed())),
        (_, Some(dir)) => Some(read_adapter(dir, params, &base, &train, &mut hashes)?),
    };
    Ok(Inputs { base, weights, data: Data { train, validation }, adapter, hashes })
}

fn read_base(dir: &Path) -> Result<(Base, Weights)> {
    let config = Config::from_dir(dir).map_err(model_error)?;
    let is_hashed_now = !dir.join(manifest::FILE).exists();
    let manifest = manifest::load(dir).map_err(model_error)?;
    // Hashing and reading take about the same time: side by side, the file comes from the disk once.
    let (verified, weights) = std::thread::scope(|scope| {
        let verifying = scope.spawn(|| if is_hashed_now { Ok(()) } else { manifest::verify(dir, &manifest) });
        let weights = Weights::load(dir, &config);
        (verifying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), weights)
    });
    verified.map_err(model_error)?;
    let weights = weights.map_err(model_error)?;
    Ok((Base { dir: dir.to_owned(), config, manifest }, weights))
}

fn read_tokens(path: &Path, base: &Base) -> Result<TokenFile> {
    let file = tokens::read(path).map_err(|e| e.stage_error(path))?;
    let own = &base.manifest.tokenizer_sha256;
    if !own.is_empty() && *own != file.metadata.tokenizer_sha256 {
        return Err(StageError::failed(format!(
            "these tokens come from another tokenizer ({}) than the model's {} ({own})",
            file.metadata.tokenizer_sha256,
            tokenizer::FILE
        ))
        .at(path.display().to_string())
        .next("run tokenize-to-parquet with this model"));
    }
    if let Some(row) = file.held_out_row() {
        return Err(StageError::failed(format!(
            "row `{}` is a function of the holdout ({})",
            row.id, row.function_sha256
        ))
        .at(path.display().to_string())
        .next("build the corpus again: nothing that evaluates the model may train it"));
    }
    file.check(base.config.vocab_size, base.config.max_position_embeddings)
        .map_err(|e| e.stage_error(path))?;
    Ok(file)
}

/// The adapter that the parameters describe.
pub(crate) fn lora_config(params: &Params) -> Result<LoraConfig> {
    let targets = params.target_modules.iter().map(|name| Projection::from_name(name));
    let targets: Option<Vec<Projection>> = targets.collect();
    let mut target_modules = targets.ok_or_else(|| StageError::internal("an unchecked projection name"))?;
    target_modules.sort();
    Ok(LoraConfig {
        r: params.rank as usize,
        alpha: params.alpha,
        dropout: params.dropout,
        target_modules,
        base_model_name: None,
    })
}

fn read_adapter(
    dir: &Path,
    params: &Params,
    base: &Base,
    train: &TokenFile,
    hashes: &mut Vec<(String, String)>,
) -> Result<Adapter> {
    let adapter = Adapter::load(dir, &base.config).map_err(model_error)?;
    let wanted = lora_config(params)?;
    let place = dir.display().to_string();
    let differs = |what: &str, has: String, asked: String| {
        StageError::usage(format!("the adapter has {what} {has}, and the parameter says {asked}"))
            .at(place.clone())
            .next(format!("set {what} as the adapter has it, or start from another adapter"))
    };
    let found = &adapter.config;
    if found.r != wanted.r {
        return Err(differs("rank", found.r.to_string(), wanted.r.to_string()));
    }
    if found.alpha != wanted.alpha {
        return Err(differs("alpha", found.alpha.to_string(), wanted.alpha.to_string()));
    }
    if found.target_modules != wanted.target_modules {
        let list = |c: &LoraConfig| c.target_modules.iter().map(|p| p.name()).collect::<Vec<_>>().join(",");
        return Err(differs("target_modules", list(found), list(&wanted)));
    }
    check_adapter_manifest(dir, base, train)?;
    hashes.push(("adapter_start".to_owned(), adapter.sha256()));
    Ok(adapter)
}

/// An adapter of this project says what it was trained on; one from elsewhere has no manifest and nothing to check.
fn check_adapter_manifest(dir: &Path, base: &Base, train: &TokenFile) -> Result<()> {
    let path = dir.join(ADAPTER_MANIFEST);
    if !path.exists() {
        return Ok(());
    }
    let manifest: TrainingManifest = files::read_versioned(&path, TRAINING_SCHEMA_VERSION)?;
    let pairs = [
        ("base model", &manifest.model_sha256, &base.manifest.model_sha256),
        ("tokenizer", &manifest.tokenizer_sha256, &train.metadata.tokenizer_sha256),
        ("prompt template", &manifest.template_sha256, &train.metadata.template_sha256),
    ];
    match pairs.into_iter().find(|(_, adapter, ours)| adapter != ours) {
        Some((what, adapter, ours)) => Err(StageError::failed(format!(
            "the adapter was trained with another {what} ({adapter}) than is given here ({ours})"
        ))
        .at(path.display().to_string())
        .next("start from an adapter of the same model, tokenizer and template, or from none")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes alone: nothing of half a billion parameters is allocated.
    #[test]
    fn the_half_billion_model_s_adapter_has_336_tensors_and_8_798_208_parameters() {
        let config = model::init::architecture("qwen2.5-coder-0.5b").unwrap();
        let lora = lora_config(&Params::default().resolve().unwrap()).unwrap();
        let tensors = model::adapter::expected(&config, &lora);
        assert_eq!(tensors.len(), 336);
        let n: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(n, 8_798_208);
        assert_eq!(lora.scaling(), 2.0);
    }

    #[test]
    fn targets_take_the_order_of_the_model() {
        let params =
            Params { target_modules: vec!["down_proj".into(), "q_proj".into()], ..Params::default() };
        let lora = lora_config(&params).unwrap();
        assert_eq!(lora.target_modules, [Projection::Q, Projection::Down]);
    }
}
