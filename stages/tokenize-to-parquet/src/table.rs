//! Token rows as a parquet file. The same rows give the same bytes.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, ListArray, RecordBatch, StringArray};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use record::tokens::TokensManifest;
use stage_kit::{Result, StageError};

use crate::Row;

/// Rows of one batch, and of one row group.
const GROUP: usize = 1024;

/// Writes `rows` to `path`, with what a reader must check as key-value metadata: `schema_version`, `content`,
/// `tokenizer_sha256`, `template_sha256`, `max_length`, and `holdout_sha256` as a JSON list.
///
/// # Errors
/// The file can't be written.
pub fn write(path: &Path, rows: &[Row], manifest: &TokensManifest) -> Result<()> {
    let schema = schema();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("testforge".to_owned())
        .set_max_row_group_row_count(Some(GROUP))
        .set_key_value_metadata(Some(metadata(manifest)))
        .build();
    let file = File::create(path).map_err(|e| StageError::io("create", path, e))?;
    let failed = |e: ParquetError| write_error(path, e);
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(failed)?;
    for rows in rows.chunks(GROUP) {
        let batch =
            batch(&schema, rows).map_err(|e| StageError::internal(format!("can't make a batch: {e}")))?;
        writer.write(&batch).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(())
}

fn write_error(path: &Path, error: ParquetError) -> StageError {
    let message = format!("can't write: {error}");
    if let ParquetError::External(source) = error
        && let Ok(io) = source.downcast::<std::io::Error>()
    {
        return StageError::io("write", path, *io);
    }
    StageError::failed(message).at(path.display().to_string()).next("check that disk")
}

fn schema() -> Arc<Schema> {
    let list = || DataType::List(element());
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("function_sha256", DataType::Utf8, false),
        Field::new("input_ids", list(), false),
        Field::new("labels", list(), false),
    ]))
}

fn element() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Int32, false))
}

fn metadata(manifest: &TokensManifest) -> Vec<KeyValue> {
    let holdout = serde_json::Value::from(manifest.holdout_sha256.clone()).to_string();
    [
        ("schema_version", manifest.schema_version.to_string()),
        ("content", manifest.content.clone()),
        ("tokenizer_sha256", manifest.tokenizer_sha256.clone()),
        ("template_sha256", manifest.template_sha256.clone()),
        ("max_length", manifest.max_length.to_string()),
        ("holdout_sha256", holdout),
    ]
    .into_iter()
    .map(|(key, value)| KeyValue::new(key.to_owned(), value))
    .collect()
}

fn batch(schema: &Arc<Schema>, rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    let text = |value: fn(&Row) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
    };
    let columns = vec![
        text(|row| &row.id),
        text(|row| &row.function_sha256),
        lists(rows.iter().map(|row| row.input_ids.iter().map(|&id| id as i32).collect())),
        lists(rows.iter().map(|row| row.labels.clone())),
    ];
    RecordBatch::try_new(Arc::clone(schema), columns)
}

fn lists(rows: impl Iterator<Item = Vec<i32>>) -> ArrayRef {
    let mut builder = ListBuilder::new(Int32Builder::new()).with_field(element());
    for row in rows {
        builder.values().append_slice(&row);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

/// Reads the rows of a token file back.
///
/// # Errors
/// The file is missing, damaged, or of other columns.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let damaged = |e: &dyn std::fmt::Display| {
        StageError::failed(format!("not a token file: {e}"))
            .at(path.display().to_string())
            .next("make the tokens again with tokenize-to-parquet")
    };
    let file = File::open(path).map_err(|e| StageError::io("read", path, e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(&e))?;
    let mut rows = Vec::new();
    for batch in builder.build().map_err(|e| damaged(&e))? {
        let batch = batch.map_err(|e| damaged(&e))?;
        rows.extend(rows_of(&batch).ok_or_else(|| damaged(&"its columns are others"))?);
    }
    Ok(rows)
}

fn rows_of(batch: &RecordBatch) -> Option<Vec<Row>> {
    let ids = batch.column_by_name("id")?.as_string_opt::<i32>()?;
    let functions = batch.column_by_name("function_sha256")?.as_string_opt::<i32>()?;
    let inputs = batch.column_by_name("input_ids")?.as_list_opt::<i32>()?;
    let labels = batch.column_by_name("labels")?.as_list_opt::<i32>()?;
    let numbers =
        |list: &ListArray, i: usize| Some(list.value(i).as_primitive_opt::<Int32Type>()?.values().to_vec());
    (0..batch.num_rows())
        .map(|i| {
            let input_ids =
                numbers(inputs, i)?.into_iter().map(|id| u32::try_from(id).ok()).collect::<Option<_>>()?;
            Some(Row {
                id: ids.value(i).to_owned(),
                function_sha256: functions.value(i).to_owned(),
                input_ids,
                labels: numbers(labels, i)?,
            })
        })
        .collect()
}
