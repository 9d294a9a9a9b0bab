//! Token files, models and runs for the tests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use safetensors::SafeTensors;

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(path)
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) function_sha256: String,
    pub(crate) input_ids: Vec<i32>,
    pub(crate) labels: Vec<i32>,
}

impl Row {
    pub(crate) fn new(input_ids: Vec<i32>, labels: Vec<i32>) -> Self {
        Self { function_sha256: "f0".into(), input_ids, labels }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Metadata(pub(crate) Vec<(&'static str, String)>);

impl Default for Metadata {
    fn default() -> Self {
        Self(vec![
            ("tokenizer_sha256", "t".into()),
            ("template_sha256", "p".into()),
            ("max_length", "512".into()),
            ("holdout_sha256", r#"["h1","h2"]"#.into()),
        ])
    }
}

/// Writes a token file with the columns of tokenize-to-parquet, or only those in `columns`.
pub(crate) fn write_parquet(path: &Path, rows: &[Row], metadata: &Metadata, columns: &[&str]) {
    write_compressed(path, rows, metadata, columns, Compression::UNCOMPRESSED);
}

pub(crate) fn write_compressed(
    path: &Path,
    rows: &[Row],
    metadata: &Metadata,
    columns: &[&str],
    codec: Compression,
) {
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows.len()).map(|i| format!("r{i}"))));
    let functions: ArrayRef =
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.function_sha256)));
    let list = |values: &dyn Fn(&Row) -> &[i32]| -> ArrayRef {
        let mut builder = ListBuilder::new(Int32Builder::new());
        for row in rows {
            builder.values().append_slice(values(row));
            builder.append(true);
        }
        Arc::new(builder.finish())
    };
    let all = [
        ("id", ids),
        ("function_sha256", functions),
        ("input_ids", list(&|r| &r.input_ids)),
        ("labels", list(&|r| &r.labels)),
    ];
    let batch =
        RecordBatch::try_from_iter(all.into_iter().filter(|(name, _)| columns.contains(name))).unwrap();
    let pairs = metadata.0.iter().map(|(k, v)| KeyValue::new((*k).to_owned(), v.clone())).collect();
    let properties = WriterProperties::builder().set_key_value_metadata(Some(pairs)).set_compression(codec);
    let properties = properties.build();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

pub(crate) const COLUMNS: [&str; 4] = ["id", "function_sha256", "input_ids", "labels"];

/// A tokens folder; no validation file when `validation` is empty.
pub(crate) fn write_tokens(dir: &Path, train: &[Row], validation: &[Row]) {
    fs::create_dir_all(dir).unwrap();
    write_parquet(&dir.join("train.parquet"), train, &Metadata::default(), &COLUMNS);
    if !validation.is_empty() {
        write_parquet(&dir.join("validation.parquet"), validation, &Metadata::default(), &COLUMNS);
    }
}

/// Rows with something to learn: runs of ids that rise by a step of the row's own.
pub(crate) fn made_up_rows(n: usize, seed: u64, vocab: i32) -> Vec<Row> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    let row = |_| {
        let len = 5 + draw(20) as usize;
        let (first, step) = (draw(vocab as u64) as i32, 1 + draw(3) as i32);
        let ids: Vec<i32> = (0..len as i32).map(|i| (first + i * step) % vocab).collect();
        let labels = ids.iter().enumerate().map(|(i, &id)| if i < 3 { -100 } else { id }).collect();
        Row::new(ids, labels)
    };
    (0..n).map(row).collect()
}

/// The program, called by hand, on a machine that shows it no GPU.
pub(crate) fn program(args: &[String]) -> Command {
    // Read at run time: a shell that stands in for rustc may drop variables with a hyphen in their name.
    let path = std::env::var_os("CARGO_BIN_EXE_train-cuda").expect("cargo names the program for its tests");
    let mut command = Command::new(path);
    command.args(args).env_remove("TESTFORGE_REQUEST").env("CUDA_VISIBLE_DEVICES", "");
    command
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `--input model=... --output adapter=...` and whatever `more` says.
pub(crate) fn args(model: &Path, tokens: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let output = |name: &str| format!("{name}={}", out.join(name).display());
    let mut args: Vec<String> = vec![
        "--input".into(),
        format!("model={}", model.display()),
        "--input".into(),
        format!("tokens={}", tokens.display()),
        "--output".into(),
        output("checkpoints"),
        "--output".into(),
        output("log"),
        "--checkpoint-dir".into(),
        out.join("resume").display().to_string(),
        "--live-dir".into(),
        out.join("live").display().to_string(),
        "--set".into(),
        "device=cpu".into(),
        "--set".into(),
        "precision=float32".into(),
    ];
    for m in more {
        match m.split_once('=') {
            Some(_) => args.extend(["--set".into(), (*m).to_owned()]),
            None => args.extend(["--output".into(), output(m)]),
        }
    }
    args
}

/// Every file below `dir` with its bytes.
pub(crate) fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

pub(crate) fn jsonl<T: serde::de::DeserializeOwned>(path: &Path) -> Vec<T> {
    stage_kit::files::read_jsonl(path).unwrap()
}

/// A safetensors file as float64 by name.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &safetensors::tensor::TensorView<'_>| -> Vec<f64> {
        let data = view.data();
        match view.dtype() {
            safetensors::Dtype::F32 => {
                data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            safetensors::Dtype::I64 => {
                data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect()
            }
            other => panic!("{other:?}"),
        }
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), (view.shape().to_vec(), values(view)))).collect()
}

/// A copy of a golden model that a test may damage.
pub(crate) fn model_copy(to: &Path) -> PathBuf {
    let dir = to.join("model");
    fs::create_dir_all(&dir).unwrap();
    for entry in fs::read_dir(golden("qwen2-tiny/model")).unwrap() {
        let path = entry.unwrap().path();
        fs::write(dir.join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    dir
}
