//! Reading what the report is made from, and the digests that its evidence quotes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use record::Map;
use record::compile::{COMPILE_SCHEMA_VERSION, CompileResults};
use record::corpus::{CORPUS_SCHEMA_VERSION, CorpusManifest, CorpusRow};
use record::experiment::ReproducibilityLock;
use record::generation::{
    GenerationSummary, GenerationTiming, SAMPLES_SCHEMA_VERSION, Sample, SamplesManifest,
};
use record::mutation::{MUTATION_SCHEMA_VERSION, SelectedSuite, TestResults};
use record::report::{Evidence, REPORT_SCHEMA_VERSION, Report};
use record::training::{
    StepRecord, TRAINING_SCHEMA_VERSION, TrainingManifest, TrainingMetrics, ValidationRecord,
};
use stage_kit::{Context, Result, StageError, digest, files};

use crate::consistency;

/// Everything the report knows.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) corpus: Corpus,
    pub(crate) tuned: Evaluation,
    pub(crate) base: Option<Evaluation>,
    pub(crate) repeat: Option<Evaluation>,
    pub(crate) training: Training,
    pub(crate) training_repeat: Training,
    pub(crate) log: Option<With<TrainingMetrics>>,
    pub(crate) timings: Option<With<Vec<GenerationTiming>>>,
    pub(crate) generation: Option<GenerationSummary>,
    pub(crate) lock: Option<With<ReproducibilityLock>>,
    /// `NAME VERSION` -> checksum, of the packages in `Cargo.lock`, as a lock writes them.
    pub(crate) dependencies: Option<With<BTreeMap<String, String>>>,
    /// Digests of the folders that a lock knows by name (`adapters`, `dataset`); empty without a lock.
    pub(crate) folders: Map<String>,
    pub(crate) baseline: Option<Report>,
}

/// A file's content with where it lies and its digest.
#[derive(Debug, Clone)]
pub(crate) struct With<T> {
    pub(crate) value: T,
    pub(crate) path: PathBuf,
    pub(crate) evidence: Evidence,
}

#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) holdout: Vec<CorpusRow>,
    pub(crate) holdout_path: PathBuf,
    pub(crate) stress: Vec<CorpusRow>,
    pub(crate) stress_path: PathBuf,
    pub(crate) manifest: Option<CorpusManifest>,
    pub(crate) evidence: Vec<Evidence>,
}

impl Corpus {
    /// Holdout and stress rows, each with the file that it stands in.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&CorpusRow, &Path)> {
        let holdout = self.holdout.iter().map(|row| (row, self.holdout_path.as_path()));
        holdout.chain(self.stress.iter().map(|row| (row, self.stress_path.as_path())))
    }
}

/// One model's samples, compiled and run.
#[derive(Debug)]
pub(crate) struct Evaluation {
    /// Empty for base and repeat when their samples were not given.
    pub(crate) samples: Vec<Sample>,
    pub(crate) samples_path: PathBuf,
    pub(crate) samples_evidence: Option<Evidence>,
    pub(crate) compile: With<CompileResults>,
    pub(crate) mutation: With<TestResults>,
    /// Lines of `selected.jsonl`, the assured suite.
    pub(crate) selected: Option<With<Vec<SelectedSuite>>>,
}

/// What one training left behind; each part may be absent.
#[derive(Debug, Default)]
pub(crate) struct Training {
    pub(crate) steps: Option<With<Vec<StepRecord>>>,
    pub(crate) validations: Vec<ValidationRecord>,
    /// Every `.safetensors` file of the adapter's (or model's) folder.
    pub(crate) weights: Vec<Evidence>,
    /// The folder of the weights.
    pub(crate) place: Option<PathBuf>,
    pub(crate) manifest: Option<TrainingManifest>,
}

impl Inputs {
    /// Reads every input that was given.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another version, with its name and line; results that do not belong together.
    pub(crate) fn load(context: &Context) -> Result<Self> {
        let required = || StageError::internal("a required input was taken for an optional one");
        let log = in_folder(context, "log", "metrics.json")?;
        let lock = lock(context)?;
        let inputs = Self {
            corpus: corpus(context)?,
            tuned: evaluation(context, "", true)?.ok_or_else(required)?,
            base: evaluation(context, "_base", false)?,
            repeat: evaluation(context, "_repeat", false)?,
            training: training(context, "")?,
            training_repeat: training(context, "_repeat")?,
            log: log.map(|path| versioned(&path, "log", TRAINING_SCHEMA_VERSION)).transpose()?,
            timings: in_folder(context, "timings", "timings.jsonl")?
                .map(|p| jsonl(&p, "timings"))
                .transpose()?,
            generation: generation(context)?,
            folders: if lock.is_some() { folders(context)? } else { Map::new() },
            lock,
            dependencies: dependencies(context)?,
            baseline: baseline(context)?,
        };
        consistency::check(&inputs, context)?;
        Ok(inputs)
    }
}

fn corpus(context: &Context) -> Result<Corpus> {
    let dir = context.input("corpus")?;
    let holdout: With<Vec<CorpusRow>> = jsonl(&dir.join("holdout.jsonl"), "corpus")?;
    let stress_path = dir.join("stress.jsonl");
    let stress: Option<With<Vec<CorpusRow>>> =
        stress_path.exists().then(|| jsonl(&stress_path, "corpus")).transpose()?;
    let manifest_path = dir.join("manifest.json");
    let manifest: Option<With<CorpusManifest>> = manifest_path
        .exists()
        .then(|| versioned(&manifest_path, "corpus", CORPUS_SCHEMA_VERSION))
        .transpose()?;
    if holdout.value.is_empty() {
        return Err(StageError::failed("the holdout is empty: there is nothing to judge")
            .at(holdout.path.display().to_string())
            .next("build the corpus with holdout functions"));
    }
    let mut evidence = vec![holdout.evidence];
    evidence.extend(stress.as_ref().map(|s| s.evidence.clone()));
    evidence.extend(manifest.as_ref().map(|m| m.evidence.clone()));
    Ok(Corpus {
        holdout: holdout.value,
        holdout_path: holdout.path,
        stress_path,
        stress: stress.map_or(Vec::new(), |s| s.value),
        manifest: manifest.map(|m| m.value),
        evidence,
    })
}

/// `None` when neither compile nor mutation results were given; one without the other is an error.
fn evaluation(context: &Context, suffix: &str, required: bool) -> Result<Option<Evaluation>> {
    let [samples, compile, mutation] =
        ["samples", "compile", "mutation"].map(|name| format!("{name}{suffix}"));
    let given = |name: &str| context.optional_input(name).map(|path| path.is_some());
    if !required && !given(&compile)? && !given(&mutation)? {
        return Ok(None);
    }
    let compiled = context.input(&compile)?.join("compile_results.json");
    let results = context.input(&mutation)?;
    let sampled = if required { Some(context.input(&samples)?) } else { context.optional_input(&samples)? };
    let sampled: Option<With<Vec<Sample>>> = sampled.map(|dir| read_samples(dir, &samples)).transpose()?;
    let selected = results.join("selected.jsonl");
    Ok(Some(Evaluation {
        samples_evidence: sampled.as_ref().map(|s| s.evidence.clone()),
        samples_path: sampled.as_ref().map(|s| s.path.clone()).unwrap_or_default(),
        samples: sampled.map_or(Vec::new(), |s| s.value),
        compile: versioned(&compiled, &compile, COMPILE_SCHEMA_VERSION)?,
        mutation: versioned(&results.join("test_results.json"), &mutation, MUTATION_SCHEMA_VERSION)?,
        selected: selected.exists().then(|| jsonl(&selected, &mutation)).transpose()?,
    }))
}

/// The samples, which must be the bytes that their manifest was written for.
fn read_samples(dir: &Path, input: &str) -> Result<With<Vec<Sample>>> {
    let path = dir.join("samples.jsonl");
    let samples: With<Vec<Sample>> = jsonl(&path, input)?;
    let manifest = dir.join("manifest.json");
    if manifest.exists() {
        let manifest: SamplesManifest = files::read_versioned(&manifest, SAMPLES_SCHEMA_VERSION)?;
        if manifest.samples_sha256 != samples.evidence.sha256 {
            return Err(StageError::failed("its bytes are not those that manifest.json was written for")
                .at(path.display().to_string())
                .next("generate the samples again, or get an undamaged copy"));
        }
    }
    Ok(samples)
}

fn training(context: &Context, suffix: &str) -> Result<Training> {
    let (adapter, checkpoints) = (format!("adapter{suffix}"), format!("checkpoints{suffix}"));
    let mut training = Training::default();
    if let Some(dir) = context.optional_input(&checkpoints)? {
        training.steps = Some(jsonl(&dir.join("steps.jsonl"), &checkpoints)?);
        let validations = dir.join("validation.jsonl");
        if validations.exists() {
            training.validations = files::read_jsonl(&validations)?;
        }
    }
    if let Some(dir) = context.optional_input(&adapter)? {
        training.weights = weights(dir, &adapter)?;
        training.place = Some(dir.to_owned());
        let manifest = ["training_manifest.json", "manifest.json"].map(|name| dir.join(name));
        if let Some(path) = manifest.iter().find(|path| path.exists()) {
            training.manifest = Some(files::read_versioned(path, TRAINING_SCHEMA_VERSION)?);
        }
    }
    Ok(training)
}

fn weights(dir: &Path, input: &str) -> Result<Vec<Evidence>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| StageError::io("list", dir, e))? {
        let entry = entry.map_err(|e| StageError::io("list", dir, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(StageError::failed("there are no weights (`*.safetensors`) in the folder")
            .at(dir.display().to_string())
            .next("give the folder that the trainer wrote"));
    }
    names.iter().map(|name| evidence(&dir.join(name), input)).collect()
}

fn generation(context: &Context) -> Result<Option<GenerationSummary>> {
    in_folder(context, "timings", "summary.json")?
        .filter(|path| path.exists())
        .map(|path| files::read_json(&path))
        .transpose()
}

fn lock(context: &Context) -> Result<Option<With<ReproducibilityLock>>> {
    let Some(path) = in_folder(context, "lock", "reproducibility.lock")? else { return Ok(None) };
    let text = fs::read_to_string(&path).map_err(|e| StageError::io("read", &path, e))?;
    let value = serde_yaml_ng::from_str(&text).map_err(|e| {
        let line = e.location().map_or(String::new(), |l| format!(":{}", l.line()));
        StageError::failed(format!("not a reproducibility lock: {e}"))
            .at(format!("{}{line}", path.display()))
            .next("give the `reproducibility.lock` of an experiment's folder")
    })?;
    Ok(Some(With { value, evidence: evidence(&path, "lock")?, path }))
}

fn dependencies(context: &Context) -> Result<Option<With<BTreeMap<String, String>>>> {
    let Some(path) = in_folder(context, "dependencies", "Cargo.lock")? else { return Ok(None) };
    let text = fs::read_to_string(&path).map_err(|e| StageError::io("read", &path, e))?;
    let wrong = |message: String| {
        StageError::failed(message)
            .at(path.display().to_string())
            .next("give the Cargo.lock of the workspace that the programs are built from")
    };
    let table: toml::Table = text.parse().map_err(|e| wrong(format!("not a Cargo.lock: {e}")))?;
    let packages = table.get("package").and_then(toml::Value::as_array);
    let packages = packages.ok_or_else(|| wrong("not a Cargo.lock: it has no packages".to_owned()))?;
    let field = |p: &toml::Value, name: &str| p.get(name).and_then(toml::Value::as_str).map(str::to_owned);
    let named = |p: &toml::Value| Some(format!("{} {}", field(p, "name")?, field(p, "version")?));
    let value = packages
        .iter()
        .filter_map(|p| Some((named(p)?, field(p, "checksum").unwrap_or_else(|| "local".to_owned()))))
        .collect();
    Ok(Some(With { value, evidence: evidence(&path, "dependencies")?, path }))
}

fn folders(context: &Context) -> Result<Map<String>> {
    let mut folders = Map::new();
    for (name, input) in [("adapters", "adapter"), ("dataset", "corpus")] {
        if let Some(dir) = context.optional_input(input)? {
            let mut lines = String::new();
            list(dir, "", &mut lines)?;
            folders.insert(name.to_owned(), digest::sha256_hex(lines));
        }
    }
    Ok(folders)
}

/// `path\0sha256\n` of every file below, by name: what a lock takes a folder's digest over.
fn list(dir: &Path, prefix: &str, lines: &mut String) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|e| StageError::io("list", dir, e))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|e| StageError::io("list", dir, e))?.path());
    }
    paths.sort();
    for path in paths {
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            list(&path, &format!("{name}/"), lines)?;
        } else {
            let sum = digest::sha256_file(&path).map_err(|e| StageError::io("read", &path, e))?;
            lines.push_str(&format!("{name}\0{sum}\n"));
        }
    }
    Ok(())
}

fn baseline(context: &Context) -> Result<Option<Report>> {
    in_folder(context, "baseline", "report.json")?
        .map(|path| files::read_versioned(&path, REPORT_SCHEMA_VERSION))
        .transpose()
}

/// The input itself when it is a file, the file of that name in it when it is a folder.
fn in_folder(context: &Context, input: &str, name: &str) -> Result<Option<PathBuf>> {
    let path = context.optional_input(input)?;
    Ok(path.map(|path| if path.is_dir() { path.join(name) } else { path.to_owned() }))
}

fn versioned<T: serde::de::DeserializeOwned>(path: &Path, input: &str, version: u32) -> Result<With<T>> {
    let value = files::read_versioned(path, version)?;
    Ok(With { value, path: path.to_owned(), evidence: evidence(path, input)? })
}

fn jsonl<T: serde::de::DeserializeOwned>(path: &Path, input: &str) -> Result<With<Vec<T>>> {
    Ok(With { value: files::read_jsonl(path)?, path: path.to_owned(), evidence: evidence(path, input)? })
}

fn evidence(path: &Path, input: &str) -> Result<Evidence> {
    let sha256 = digest::sha256_file(path).map_err(|e| StageError::io("read", path, e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(Evidence { path: format!("{input}/{name}"), sha256 })
}

/// Every file that was read, for the provenance table.
pub(crate) fn provenance(inputs: &Inputs) -> Map<String> {
    let mut all: Vec<&Evidence> = inputs.corpus.evidence.iter().collect();
    for evaluation in
        [Some(&inputs.tuned), inputs.base.as_ref(), inputs.repeat.as_ref()].into_iter().flatten()
    {
        all.extend(&evaluation.samples_evidence);
        all.extend([&evaluation.compile.evidence, &evaluation.mutation.evidence]);
        all.extend(evaluation.selected.as_ref().map(|s| &s.evidence));
    }
    for training in [&inputs.training, &inputs.training_repeat] {
        all.extend(training.steps.as_ref().map(|s| &s.evidence));
        all.extend(&training.weights);
    }
    all.extend(inputs.log.as_ref().map(|l| &l.evidence));
    all.extend(inputs.timings.as_ref().map(|t| &t.evidence));
    all.extend(inputs.lock.as_ref().map(|l| &l.evidence));
    all.extend(inputs.dependencies.as_ref().map(|d| &d.evidence));
    all.into_iter().map(|e| (e.path.clone(), e.sha256.clone())).collect()
}
