//! The model and its adapter: loaded, checked against each other, and brought into the form that generation runs on.

use std::path::Path;

use model::adapter::{self, Adapter};
use model::config::{Config, GenerationConfig};
use model::tokenizer::{self, Tokenizer};
use model::weights::Weights;
use model::{ModelError, manifest, prompt};
use record::model::ModelManifest;
use record::training::{TRAINING_SCHEMA_VERSION, TrainingManifest};
use serde_json::Value;
use stage_kit::{Context, Result, StageError, digest, files};

use crate::params::{Base, Params};

/// Everything that generation needs of a model folder.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) weights: Weights,
    pub(crate) manifest: ModelManifest,
    pub(crate) generation: GenerationConfig,
    /// `None`: the folder has none, and only token ids can be asked for.
    pub(crate) tokenizer: Option<Tokenizer>,
}

/// An adapter, and what is known of its training.
#[derive(Debug)]
pub(crate) struct Tuned {
    pub(crate) adapter: Adapter,
    /// Of `adapter_model.safetensors`.
    pub(crate) sha256: String,
    /// `None`: it does not come from this project.
    pub(crate) manifest: Option<TrainingManifest>,
}

/// Reads the model folder.
///
/// # Errors
/// Damaged files, or files that are not those of the manifest.
pub(crate) fn read_model(dir: &Path) -> Result<Model> {
    let config = Config::from_dir(dir).map_err(model_error)?;
    let manifest = manifest::load(dir).map_err(model_error)?;
    manifest::verify(dir, &manifest).map_err(model_error)?;
    let tokenizer = match dir.join(tokenizer::FILE).exists() {
        true => Some(Tokenizer::from_dir(dir).map_err(model_error)?),
        false => None,
    };
    Ok(Model {
        weights: Weights::load(dir, &config).map_err(model_error)?,
        generation: GenerationConfig::from_dir(dir).map_err(model_error)?,
        config,
        manifest,
        tokenizer,
    })
}

/// Reads the adapter, when there is one, and refuses one of another model or tokenizer.
///
/// # Errors
/// Damaged files, or an adapter that does not belong to this model.
pub(crate) fn read_adapter(context: &Context, model: &Model) -> Result<Option<Tuned>> {
    let Some(dir) = context.optional_input("adapter")? else { return Ok(None) };
    let adapter = Adapter::load(dir, &model.config).map_err(model_error)?;
    let file = dir.join(adapter::FILE);
    let sha256 = digest::sha256_file(&file).map_err(|e| StageError::io("read", &file, e))?;
    let path = dir.join("manifest.json");
    if !path.exists() {
        context.warn("the adapter has no manifest.json: that it was trained for this model can't be checked");
        return Ok(Some(Tuned { adapter, sha256, manifest: None }));
    }
    let manifest: TrainingManifest = files::read_versioned(&path, TRAINING_SCHEMA_VERSION)?;
    if manifest.weights_sha256 != sha256 {
        return Err(StageError::failed("its bytes are not those that manifest.json was written for")
            .at(file.display().to_string())
            .next("train the adapter again, or get an undamaged copy"));
    }
    same("base model", &manifest.model_sha256, &model.manifest.model_sha256, &path)?;
    if !model.manifest.tokenizer_sha256.is_empty() {
        same("tokenizer", &manifest.tokenizer_sha256, &model.manifest.tokenizer_sha256, &path)?;
    }
    Ok(Some(Tuned { adapter, sha256, manifest: Some(manifest) }))
}

/// Refuses an adapter that was trained on other prompts than those that this program renders.
///
/// # Errors
/// The template's hash differs.
pub(crate) fn check_template(tuned: &Tuned) -> Result<()> {
    match &tuned.manifest {
        Some(manifest) => same(
            "prompt template",
            &manifest.template_sha256,
            prompt::template_sha256(),
            Path::new("the adapter"),
        ),
        None => Ok(()),
    }
}

fn same(what: &str, adapter: &str, ours: &str, path: &Path) -> Result<()> {
    if adapter == ours {
        return Ok(());
    }
    Err(StageError::failed(format!(
        "the adapter was trained with another {what} ({adapter}) than is given here ({ours})"
    ))
    .at(path.display().to_string())
    .next("give the model that the adapter was trained on, or train it again"))
}

/// The base that generation runs on, as the parameters and the adapter's training say.
pub(crate) fn base(params: &Params, tuned: Option<&Tuned>) -> engine::Base {
    let trained = tuned.and_then(|t| t.manifest.as_ref()).filter(|m| m.mode == "qlora");
    match (params.base, trained) {
        (Base::Nf4, _) => engine::Base::Nf4 { double_quant: params.double_quant },
        (Base::Auto, Some(manifest)) => {
            let double_quant = manifest.params.get("double_quant").and_then(Value::as_bool);
            engine::Base::Nf4 { double_quant: double_quant.unwrap_or(params.double_quant) }
        }
        (Base::Float32, _) | (Base::Auto, None) => engine::Base::Float32,
    }
}

/// What to say when the base is not the one that the adapter was trained on.
pub(crate) fn base_warning(base: engine::Base, tuned: Option<&Tuned>) -> Option<String> {
    let manifest = tuned?.manifest.as_ref()?;
    let trained_nf4 = manifest.mode == "qlora";
    let runs_nf4 = matches!(base, engine::Base::Nf4 { .. });
    (trained_nf4 != runs_nf4).then(|| {
        let name = |nf4: bool| if nf4 { "nf4" } else { "float32" };
        format!(
            "the adapter was trained on a base in {}, and this one is in {}",
            name(trained_nf4),
            name(runs_nf4)
        )
    })
}

/// An error of the model's files as the stage's.
pub(crate) fn model_error(e: ModelError) -> StageError {
    StageError::failed(e.message()).at(e.place()).next(e.next_step())
}
