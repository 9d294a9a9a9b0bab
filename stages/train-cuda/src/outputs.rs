//! Writing the stage's outputs: the chosen weights with their manifest, the checkpoints, the log.

use std::fs;
use std::path::Path;

use model::manifest;
use record::Map;
use record::training::{TRAINING_SCHEMA_VERSION, TrainingManifest, TrainingMetrics};
use serde_json::Value;
use stage_kit::{Context, Result, StageError, digest, files};

use crate::checkpoint::{History, Store};
use crate::inputs::{ADAPTER_MANIFEST, Base};
use crate::live;
use crate::params::{Params, Select, TrainMode};
use crate::train::Length;
use crate::weights::{file_name, model_error};

/// `training_manifest.json` beside a trained model, whose `manifest.json` is that of any model folder.
pub(crate) const MODEL_TRAINING_MANIFEST: &str = "training_manifest.json";
/// Files of a model folder that a trained model does not take over.
const OWN_FILES: [&str; 4] =
    [manifest::FILE, MODEL_TRAINING_MANIFEST, model::weights::FILE, model::weights::INDEX];

/// What the outputs are made from, when training is over.
#[derive(Debug)]
pub(crate) struct Finished<'r> {
    pub(crate) params: &'r Params,
    pub(crate) backend: &'static str,
    pub(crate) base: &'r Base,
    pub(crate) template_sha256: &'r str,
    pub(crate) tokenizer_sha256: &'r str,
    pub(crate) history: &'r History,
    pub(crate) store: &'r Store,
    pub(crate) length: Length,
    pub(crate) n_trainable: u64,
    pub(crate) base_sha256: String,
    /// `None` in mode full.
    pub(crate) base_sha256_after: Option<String>,
}

impl Finished<'_> {
    fn selected_step(&self) -> Result<u64> {
        match self.params.select {
            Select::Last => Ok(self.length.total),
            Select::Best => {
                self.history.best().map(|b| b.step).ok_or_else(|| StageError::internal("no best step"))
            }
        }
    }

    /// Writes `adapter`, or `model` in mode full.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn write_weights(&self, context: &Context) -> Result<()> {
        let is_adapter = self.params.mode != TrainMode::Full;
        let step = self.selected_step()?;
        let from = match self.params.select {
            Select::Last => self.store.step_dir(step),
            Select::Best => self.store.best_dir(step),
        };
        let to = context.output_dir(if is_adapter { "adapter" } else { "model" })?;
        if !is_adapter {
            copy_model_files(&self.base.dir, &to)?;
        }
        let weights = file_name(is_adapter);
        copy(&from.join(weights), &to.join(weights))?;
        let weights_sha256 = digest::sha256_file(&to.join(weights))
            .map_err(|e| StageError::io("read", &to.join(weights), e))?;
        let training = self.manifest(step, is_adapter, weights_sha256)?;
        if is_adapter {
            copy(&from.join(model::adapter::CONFIG_FILE), &to.join(model::adapter::CONFIG_FILE))?;
            return files::write_json(&to.join(ADAPTER_MANIFEST), &training);
        }
        files::write_json(&to.join(MODEL_TRAINING_MANIFEST), &training)?;
        let mut own = manifest::load(&to).map_err(model_error)?;
        own.source = format!("trained:{}", self.base.manifest.source);
        own.revision.clone_from(&self.base.manifest.revision);
        own.license.clone_from(&self.base.manifest.license);
        manifest::save(&to, &own).map_err(model_error)
    }

    fn manifest(
        &self,
        selected_step: u64,
        is_adapter: bool,
        weights_sha256: String,
    ) -> Result<TrainingManifest> {
        let steps = &self.history.steps;
        let loss = |record: Option<&record::training::StepRecord>| {
            record.map(|r| r.loss).ok_or_else(|| StageError::internal("no step was taken"))
        };
        let validations = &self.history.validations;
        Ok(TrainingManifest {
            schema_version: TRAINING_SCHEMA_VERSION,
            kind: if is_adapter { "adapter" } else { "model" }.to_owned(),
            mode: self.params.mode.name().to_owned(),
            select: match self.params.select {
                Select::Best => "best",
                Select::Last => "last",
            }
            .to_owned(),
            selected_step,
            steps: self.history.steps_done(),
            epochs: self.length.epochs(),
            backend: self.backend.to_owned(),
            tokens_at_a_time: self.history.tokens_at_a_time.clone(),
            model_sha256: self.base.manifest.model_sha256.clone(),
            base_model_sha256: self.base_sha256.clone(),
            base_model_sha256_after: self.base_sha256_after.clone(),
            tokenizer_sha256: self.tokenizer_sha256.to_owned(),
            template_sha256: self.template_sha256.to_owned(),
            weights_sha256,
            n_trainable: self.n_trainable,
            first_train_loss: loss(steps.first())?,
            final_train_loss: loss(steps.last())?,
            validation_loss_before: validations.first().filter(|v| v.step == 0).map(|v| v.loss),
            best_validation_loss: self.history.best().map(|b| b.loss),
            params: resolved(self.params)?,
        })
    }

    /// Writes `checkpoints`: `best/`, the kept `step-N/`, `steps.jsonl`, `validation.jsonl`.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn write_checkpoints(&self, context: &Context) -> Result<()> {
        let to = context.output_dir("checkpoints")?;
        if let Some(best) = self.history.best() {
            copy_dir(&self.store.best_dir(best.step), &to.join("best"))?;
        }
        for &step in &self.history.kept {
            copy_dir(&self.store.step_dir(step), &to.join(format!("step-{step}")))?;
        }
        files::write_jsonl(&to.join("steps.jsonl"), &self.history.steps)?;
        files::write_jsonl(&to.join("validation.jsonl"), &self.history.validations)
    }
}

/// Writes `log`: `metrics.json` and copies of what was written while the run went on.
///
/// # Errors
/// The disk's.
pub(crate) fn write_log(context: &Context, metrics: &TrainingMetrics) -> Result<()> {
    let to = context.output_dir("log")?;
    files::write_json(&to.join("metrics.json"), metrics)?;
    let found =
        live::log_files(context.live_dir()).map_err(|e| StageError::io("list", context.live_dir(), e))?;
    for file in found {
        copy(&file, &to.join(file.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Parameters as they were used, sorted by name.
pub(crate) fn resolved(params: &Params) -> Result<Map<Value>> {
    match serde_json::to_value(params) {
        Ok(Value::Object(object)) => Ok(object.into_iter().collect()),
        _ => Err(StageError::internal("the parameters are no JSON object")),
    }
}

fn copy_model_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(|e| StageError::io("list", from, e))?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !path.is_file() || name.ends_with(".safetensors") || OWN_FILES.contains(&name.as_ref()) {
            continue;
        }
        if name == "config.json" {
            write_config(&path, &to.join("config.json"))?;
        } else {
            copy(&path, &to.join(name.as_ref()))?;
        }
    }
    Ok(())
}

/// The base's configuration, with the dtype that the trained weights have.
fn write_config(from: &Path, to: &Path) -> Result<()> {
    let mut config: Map<Value> = files::read_json(from)?;
    for field in ["torch_dtype", "dtype"] {
        if let Some(dtype) = config.get_mut(field) {
            *dtype = Value::from("float32");
        }
    }
    files::write_json(to, &config)
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| StageError::io("create the folder", to, e))?;
    for entry in fs::read_dir(from).map_err(|e| StageError::io("list", from, e))?.flatten() {
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(|_| ()).map_err(|e| StageError::io("copy", from, e))
}
