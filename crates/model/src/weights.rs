//! The weights of a model: `model.safetensors`, in one file or in shards, held against the configuration.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::{SafeTensorError, TensorView};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::tensor::{Dtype, Tensor};
use crate::{ModelError, Result, names, parallel};

pub const FILE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// How many names of missing or unexpected tensors an error lists.
const NAMES_SHOWN: usize = 4;

/// A tensor by name: shape, dtype and values.
pub type TensorRef<'a> = &'a Tensor;

/// Every tensor of a model, exactly those of [`names::expected`], each with its expected shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Reads `model.safetensors` in `dir`, or the shards that `model.safetensors.index.json` names.
    ///
    /// A tied model whose file also holds a head loads when that head equals the embedding.
    ///
    /// # Errors
    /// A file is missing or damaged, a tensor is missing, unexpected, of another shape or of a dtype other than
    /// float32, bfloat16 and float16, or holds a NaN or an infinity; the message names file and tensor.
    pub fn load(dir: &Path, config: &Config) -> Result<Self> {
        let place = dir.join(FILE);
        let tensors =
            if place.exists() || !dir.join(INDEX).exists() { read_file(&place)? } else { read_shards(dir)? };
        Self::checked(tensors, config, &place.display().to_string())
    }

    /// Takes tensors made in memory.
    ///
    /// # Errors
    /// As [`Weights::load`]: they must be exactly those of the configuration.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>, config: &Config) -> Result<Self> {
        Self::checked(tensors, config, "weights in memory")
    }

    /// Tensors that were made from [`names::expected`].
    pub(crate) fn trusted(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors }
    }

    fn checked(mut tensors: BTreeMap<String, Tensor>, config: &Config, place: &str) -> Result<Self> {
        if config.tie_word_embeddings
            && let Some(head) = tensors.remove(names::HEAD)
            && tensors.get(names::EMBEDDING).is_some_and(|embedding| !same_values(&head, embedding))
        {
            let message = "holds a head of its own, and config.json says that it is the embedding (tie_word_embeddings)";
            return Err(ModelError::weights(format!("{place}: {}", names::HEAD), message));
        }
        let expected: BTreeMap<String, Vec<usize>> = names::expected(config).into_iter().collect();
        let missing: Vec<&str> =
            expected.keys().filter(|n| !tensors.contains_key(*n)).map(String::as_str).collect();
        let extra: Vec<&str> =
            tensors.keys().filter(|n| !expected.contains_key(*n)).map(String::as_str).collect();
        if !missing.is_empty() || !extra.is_empty() {
            let mut parts =
                vec![format!("has {} tensors, config.json asks for {}", tensors.len(), expected.len())];
            parts.extend(listed("missing", &missing));
            parts.extend(listed("unexpected", &extra));
            return Err(ModelError::weights(place, parts.join("; ")));
        }
        for (name, shape) in &expected {
            let found = tensors[name].shape();
            if found != shape {
                let message = format!("has the shape {found:?}, config.json asks for {shape:?}");
                return Err(ModelError::weights(format!("{place}: {name}"), message));
            }
        }
        let named: Vec<(&String, &Tensor)> = tensors.iter().collect();
        let found = parallel::map(&named, parallel::available(), |(_, tensor)| not_finite(tensor));
        if let Some(((name, _), message)) = named.iter().zip(found).find_map(|(n, m)| Some((n, m?))) {
            return Err(ModelError::weights(format!("{place}: {name}"), message));
        }
        Ok(Self { tensors })
    }

    /// A tensor of the configuration; `None` for any other name.
    pub fn get(&self, name: &str) -> Option<TensorRef<'_>> {
        self.tensors.get(name)
    }

    /// Sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Numbers in all tensors.
    pub fn n_parameters(&self) -> u64 {
        self.tensors.values().map(|t| t.len() as u64).sum()
    }

    /// The dtype of the embedding, which stands for the model's.
    pub fn dtype(&self) -> Dtype {
        self.tensors.get(names::EMBEDDING).map_or(Dtype::F32, Tensor::dtype)
    }

    /// Hexadecimal SHA-256 over every tensor in the order of names: name, dtype, shape, bytes. Independent of how the
    /// tensors are laid out in files.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for (name, tensor) in &self.tensors {
            hash_tensor(&mut hasher, name, tensor);
        }
        hex::encode(hasher.finalize())
    }

    /// Writes `model.safetensors` into `dir`, every tensor in `dtype` (`None`: as it is). The same tensors give the same bytes.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, dir: &Path, dtype: Option<Dtype>) -> Result<()> {
        match dtype {
            None => write_file(&dir.join(FILE), &self.tensors),
            Some(dtype) => {
                let tensors = self.tensors.iter().map(|(n, t)| (n.clone(), t.to_dtype(dtype))).collect();
                write_file(&dir.join(FILE), &tensors)
            }
        }
    }
}

/// What is wrong with a tensor that holds a NaN or an infinity.
pub(crate) fn not_finite(tensor: &Tensor) -> Option<String> {
    let (index, value) = tensor.first_not_finite()?;
    Some(format!("value {index} of {} is {value}: weights must be finite numbers", tensor.len()))
}

pub(crate) fn hash_tensor(hasher: &mut Sha256, name: &str, tensor: &Tensor) {
    hasher.update(format!("{name}\0{}\0{:?}\0", tensor.dtype().torch_name(), tensor.shape()));
    hasher.update(tensor.bytes());
}

fn same_values(a: &Tensor, b: &Tensor) -> bool {
    a.shape() == b.shape() && (a == b || a.to_f32() == b.to_f32())
}

fn listed(what: &str, names: &[&str]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let shown = names.iter().take(NAMES_SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(NAMES_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!("{what}: {shown}{more}"))
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shard files that an index names, sorted, each once.
///
/// # Errors
/// The index is damaged, or names a file outside its own folder.
pub fn shard_files(index: &Path) -> Result<Vec<String>> {
    Ok(read_index(index)?.weight_map.into_values().collect::<BTreeSet<_>>().into_iter().collect())
}

fn read_index(path: &Path) -> Result<Index> {
    let place = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| ModelError::io("read", path, e))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| {
        ModelError::weights(format!("{place}:{}", e.line()), format!("not an index of shards: {e}"))
    })?;
    match index.weight_map.values().find(|file| !is_plain_name(file)) {
        Some(file) => Err(ModelError::weights(
            place,
            format!("names the shard {file:?}, which is no safetensors file of this folder"),
        )),
        None => Ok(index),
    }
}

/// A name of letters, digits, `-`, `_` and `.` that can't lead out of its folder, nor stand for another file of a model.
fn is_plain_name(file: &str) -> bool {
    let plain = file.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let stem = file.strip_suffix(".safetensors").unwrap_or_default();
    plain && !stem.is_empty() && !file.starts_with('.') && file.len() <= 255
}

fn read_shards(dir: &Path) -> Result<BTreeMap<String, Tensor>> {
    let index_path = dir.join(INDEX);
    let index = read_index(&index_path)?;
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    let mut tensors = BTreeMap::new();
    for file in files {
        let path = dir.join(file);
        for (name, tensor) in read_file(&path)? {
            if index.weight_map.get(&name) != Some(file) {
                let message = format!("lies in {file}, where {INDEX} does not name it");
                return Err(ModelError::weights(format!("{}: {name}", path.display()), message));
            }
            tensors.insert(name, tensor);
        }
    }
    match index.weight_map.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        Some((name, file)) => {
            let message = format!("is named for {file}, which does not hold it");
            Err(ModelError::weights(format!("{}: {name}", index_path.display()), message))
        }
        None => Ok(tensors),
    }
}

/// Every tensor of one safetensors file.
///
/// # Errors
/// The file is missing, cut, damaged, or holds a dtype other than float32, bfloat16 and float16.
pub fn read_file(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let buffer = Arc::new(fs::read(path).map_err(|e| ModelError::io("read", path, e))?);
    let place = path.display().to_string();
    let (header, metadata) = SafeTensors::read_metadata(&buffer).map_err(|e| damaged(&place, &buffer, &e))?;
    let data = header + size_of::<u64>();
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let at = format!("{place}: {name}");
        let dtype = Dtype::from_safetensors(info.dtype).ok_or_else(|| {
            ModelError::weights(
                &at,
                format!("has the dtype {}; float32, bfloat16 and float16 can be read", info.dtype),
            )
        })?;
        let range = data + info.data_offsets.0..data + info.data_offsets.1;
        let tensor = Tensor::view(dtype, info.shape.clone(), Arc::clone(&buffer), range)
            .ok_or_else(|| ModelError::weights(&at, "its offsets do not fit its shape"))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn damaged(place: &str, buffer: &[u8], error: &SafeTensorError) -> ModelError {
    let size = buffer.len();
    ModelError::weights(place, format!("damaged or cut short ({size} bytes): {error}"))
}

/// Writes one safetensors file; the same tensors give the same bytes.
///
/// # Errors
/// The file can't be written.
pub fn write_file(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let failed = |e: SafeTensorError| match e {
        SafeTensorError::IoError(source) => ModelError::io("write", path, source),
        other => ModelError::weights(path.display().to_string(), format!("can't write: {other}")),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let view = TensorView::new(tensor.dtype().to_safetensors(), tensor.shape().to_vec(), tensor.bytes());
        views.push((name.as_str(), view.map_err(failed)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    // The serializer makes a file for its owner's eyes alone; weights are readable as any other file is.
    let permissions = fs::File::create(path).and_then(|file| file.metadata()).map(|m| m.permissions());
    let permissions = permissions.map_err(|e| ModelError::io("create", path, e))?;
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(failed)?;
    fs::set_permissions(path, permissions).map_err(|e| ModelError::io("set the permissions of", path, e))
}
