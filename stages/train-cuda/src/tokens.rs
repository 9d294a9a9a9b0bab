//! The token files: `train.parquet` and `validation.parquet`, checked row by row before anything is trained.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use stage_kit::StageError;

/// What can be wrong with a token file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokensError {
    #[error("can't be opened: {0}")]
    Open(std::io::Error),
    #[error("damaged, or no parquet file: {0}")]
    Damaged(String),
    #[error("the column `{column}` is compressed with {codec}, which can't be read here")]
    Codec { column: String, codec: String },
    #[error("there is no column `{0}`")]
    NoColumn(&'static str),
    #[error("column `{column}` is {found}, not {wanted}")]
    ColumnType { column: &'static str, found: String, wanted: &'static str },
    #[error("row {row} (`{id}`): {what}")]
    Row { row: usize, id: String, what: String },
    #[error("row {row}: column `{column}` is null")]
    Null { row: usize, column: &'static str },
    #[error("the file's metadata has no `{0}`")]
    NoMetadata(&'static str),
    #[error("metadata `{key}` is not what it should be: {what}")]
    BadMetadata { key: &'static str, what: String },
}

impl From<ParquetError> for TokensError {
    fn from(e: ParquetError) -> Self {
        Self::Damaged(e.to_string())
    }
}

impl TokensError {
    /// As a stage's error about `path`.
    pub(crate) fn stage_error(self, path: &Path) -> StageError {
        let next = match self {
            Self::Codec { .. } => "write the file without compression, or with Snappy, gzip or LZ4",
            _ => "make the tokens again with tokenize-to-parquet, for this model",
        };
        StageError::failed(self.to_string()).at(path.display().to_string()).next(next)
    }
}

/// One row of a token file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) function_sha256: String,
    pub(crate) input_ids: Vec<u32>,
    /// -100: no loss. As long as `input_ids`.
    pub(crate) labels: Vec<i32>,
}

impl Row {
    /// Labels that carry loss: a token is predicted by the one before it, so the first label never counts.
    pub(crate) fn n_label_tokens(&self) -> u64 {
        self.labels.iter().skip(1).filter(|&&l| l != IGNORED).count() as u64
    }
}

const IGNORED: i32 = -100;

/// The key-value metadata of a token file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) tokenizer_sha256: String,
    pub(crate) template_sha256: String,
    pub(crate) holdout_sha256: BTreeSet<String>,
}

/// The rows of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TokenFile {
    pub(crate) path: PathBuf,
    pub(crate) rows: Vec<Row>,
    pub(crate) metadata: Metadata,
}

impl TokenFile {
    /// Sum of the `n` longest rows, in tokens: no micro-batch of `n` rows is longer.
    pub(crate) fn longest(&self, n: usize) -> usize {
        let mut lengths: Vec<usize> = self.rows.iter().map(|r| r.input_ids.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.iter().take(n).sum()
    }

    pub(crate) fn n_label_tokens(&self) -> u64 {
        self.rows.iter().map(Row::n_label_tokens).sum()
    }

    /// The first row whose function is one of the holdout's.
    pub(crate) fn held_out_row(&self) -> Option<&Row> {
        self.rows.iter().find(|r| self.metadata.holdout_sha256.contains(&r.function_sha256))
    }

    /// Refuses ids that the model has no row for, sequences longer than its positions, and labels of another length.
    ///
    /// # Errors
    /// [`TokensError::Row`] for the first such row.
    pub(crate) fn check(&self, vocab_size: usize, max_positions: usize) -> Result<(), TokensError> {
        for (i, row) in self.rows.iter().enumerate() {
            if let Some(what) = fault(row, vocab_size, max_positions) {
                return Err(TokensError::Row { row: i, id: row.id.clone(), what });
            }
        }
        Ok(())
    }
}

fn fault(row: &Row, vocab_size: usize, max_positions: usize) -> Option<String> {
    let n = row.input_ids.len();
    if n == 0 {
        return Some("no tokens".to_owned());
    }
    if row.labels.len() != n {
        return Some(format!("{n} input_ids and {} labels", row.labels.len()));
    }
    if n > max_positions {
        return Some(format!("{n} tokens, and the model has {max_positions} positions"));
    }
    if let Some(id) = row.input_ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Some(format!("token id {id}, and the model's vocabulary has {vocab_size} rows"));
    }
    let bad = row.labels.iter().find(|&&l| l != IGNORED && (l < 0 || l as usize >= vocab_size));
    bad.map(|l| format!("label {l}, and the model's vocabulary has {vocab_size} rows"))
}

/// Reads a whole token file.
///
/// # Errors
/// [`TokensError`] for a file that is absent, damaged, or of other columns.
pub(crate) fn read(path: &Path) -> Result<TokenFile, TokensError> {
    let file = File::open(path).map_err(TokensError::Open)?;
    // The parquet reader panics on some damaged pages (a division by zero in a dictionary, for one).
    let read = std::panic::catch_unwind(move || read_file(file));
    let (rows, metadata) =
        read.unwrap_or_else(|_| Err(TokensError::Damaged("a page can't be decoded".to_owned())))?;
    Ok(TokenFile { path: path.to_owned(), rows, metadata })
}

fn read_file(file: File) -> Result<(Vec<Row>, Metadata), TokensError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    if let Some(error) = unreadable(builder.metadata()) {
        return Err(error);
    }
    let pairs = builder.metadata().file_metadata().key_value_metadata();
    let metadata =
        metadata(pairs.into_iter().flatten().map(|p| (p.key.as_str(), p.value.as_deref().unwrap_or(""))))?;
    let mut rows = Vec::new();
    for batch in builder.build()? {
        let batch = batch.map_err(|e| TokensError::Damaged(e.to_string()))?;
        read_batch(&batch, &mut rows)?;
    }
    Ok((rows, metadata))
}

/// The first column with a codec that is not in this build: the common ones in Rust alone are.
fn unreadable(file: &ParquetMetaData) -> Option<TokensError> {
    let columns = file.row_groups().iter().flat_map(|group| group.columns());
    columns.into_iter().find_map(|column| match column.compression() {
        Compression::UNCOMPRESSED
        | Compression::SNAPPY
        | Compression::GZIP(_)
        | Compression::LZ4
        | Compression::LZ4_RAW => None,
        codec => Some(TokensError::Codec {
            column: column.column_path().parts().first().cloned().unwrap_or_default(),
            codec: codec.to_string().split('(').next().unwrap_or_default().to_lowercase(),
        }),
    })
}

fn metadata<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Metadata, TokensError> {
    let pairs: std::collections::BTreeMap<_, _> = pairs.collect();
    let text = |key: &'static str| pairs.get(key).copied().ok_or(TokensError::NoMetadata(key));
    let key = "holdout_sha256";
    let holdout: BTreeSet<String> = serde_json::from_str(text(key)?)
        .map_err(|e| TokensError::BadMetadata { key, what: e.to_string() })?;
    Ok(Metadata {
        tokenizer_sha256: text("tokenizer_sha256")?.to_owned(),
        template_sha256: text("template_sha256")?.to_owned(),
        holdout_sha256: holdout,
    })
}

fn column<'b>(batch: &'b RecordBatch, name: &'static str) -> Result<&'b ArrayRef, TokensError> {
    batch.column_by_name(name).ok_or(TokensError::NoColumn(name))
}

fn read_batch(batch: &RecordBatch, rows: &mut Vec<Row>) -> Result<(), TokensError> {
    let first = rows.len();
    let ids = texts(batch, "id", first)?;
    let functions = texts(batch, "function_sha256", first)?;
    let inputs = lists(batch, "input_ids", first)?;
    let labels = lists(batch, "labels", first)?;
    for (i, (((id, function_sha256), input), labels)) in
        ids.into_iter().zip(functions).zip(inputs).zip(labels).enumerate()
    {
        let input_ids: Result<Vec<u32>, i32> =
            input.iter().map(|&t| u32::try_from(t).map_err(|_| t)).collect();
        let input_ids = input_ids.map_err(|t| TokensError::Row {
            row: first + i,
            id: id.clone(),
            what: format!("token id {t} is negative"),
        })?;
        rows.push(Row { id, function_sha256, input_ids, labels });
    }
    Ok(())
}

fn texts(batch: &RecordBatch, name: &'static str, first: usize) -> Result<Vec<String>, TokensError> {
    let array = column(batch, name)?;
    let values: Vec<Option<&str>> = match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().collect(),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().collect(),
        DataType::Utf8View => array.as_string_view().iter().collect(),
        other => {
            return Err(TokensError::ColumnType { column: name, found: other.to_string(), wanted: "text" });
        }
    };
    let value = |(i, text): (usize, Option<&str>)| {
        text.map(str::to_owned).ok_or(TokensError::Null { row: first + i, column: name })
    };
    values.into_iter().enumerate().map(value).collect()
}

fn lists(batch: &RecordBatch, name: &'static str, first: usize) -> Result<Vec<Vec<i32>>, TokensError> {
    let array = column(batch, name)?;
    let values: Vec<Option<ArrayRef>> = match array.data_type() {
        DataType::List(_) => array.as_list::<i32>().iter().collect(),
        DataType::LargeList(_) => array.as_list::<i64>().iter().collect(),
        other => return Err(list_type(name, other)),
    };
    let list = |(i, values): (usize, Option<ArrayRef>)| {
        let null = || TokensError::Null { row: first + i, column: name };
        let values = values.ok_or_else(null)?;
        if values.null_count() > 0 { Err(null()) } else { integers(&values, name) }
    };
    values.into_iter().enumerate().map(list).collect()
}

/// int32 as tokenize-to-parquet writes it, or int64 as most other writers do, where it fits.
fn integers(values: &ArrayRef, name: &'static str) -> Result<Vec<i32>, TokensError> {
    match values.data_type() {
        DataType::Int32 => Ok(values.as_primitive::<Int32Type>().values().to_vec()),
        DataType::Int64 => {
            let wide = values.as_primitive::<Int64Type>().values().iter();
            let narrow: Option<Vec<i32>> = wide.map(|&v| i32::try_from(v).ok()).collect();
            narrow.ok_or_else(|| TokensError::Damaged(format!("column `{name}` has a number beyond 32 bits")))
        }
        other => Err(list_type(name, other)),
    }
}

fn list_type(column: &'static str, found: &DataType) -> TokensError {
    TokensError::ColumnType { column, found: found.to_string(), wanted: "list<int32>" }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{LargeListArray, ListArray, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;

    use super::*;

    fn row(ids: &[u32], labels: &[i32]) -> Row {
        Row { id: "r".into(), function_sha256: "f".into(), input_ids: ids.to_vec(), labels: labels.to_vec() }
    }

    fn file(rows: Vec<Row>) -> TokenFile {
        TokenFile { rows, ..TokenFile::default() }
    }

    #[test]
    fn the_first_label_never_counts() {
        assert_eq!(row(&[1, 2, 3], &[1, -100, 3]).n_label_tokens(), 1);
    }

    #[test]
    fn longest_bounds_every_micro_batch() {
        let f = file(vec![row(&[1; 3], &[1; 3]), row(&[1; 7], &[1; 7]), row(&[1; 5], &[1; 5])]);
        assert_eq!((f.longest(1), f.longest(2), f.longest(9)), (7, 12, 15));
    }

    #[test]
    fn rows_that_the_model_cannot_take_are_named() {
        let cases = [
            (row(&[1, 10], &[-100, 10]), "token id 10"),
            (row(&[1, 2], &[-100, 10]), "label 10"),
            (row(&[1, 2], &[-100, -1]), "label -1"),
            (row(&[1, 2], &[-100]), "1 labels"),
            (row(&[], &[]), "no tokens"),
            (row(&[1; 9], &[1; 9]), "9 tokens"),
        ];
        for (bad, text) in cases {
            let e = file(vec![row(&[1], &[1]), bad]).check(10, 8).unwrap_err().to_string();
            assert!(e.contains("row 1") && e.contains(text), "{e}");
        }
        file(vec![row(&[1, 9], &[-100, 9])]).check(10, 8).unwrap();
    }

    /// The columns of a token file, lists made by `list`.
    fn write(path: &Path, list: impl Fn(&[i64]) -> ArrayRef) {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["r0", "r1"]));
        let numbers = [1, 2, 3, 4, 5];
        let columns = [
            ("id", text.clone()),
            ("function_sha256", text),
            ("input_ids", list(&numbers)),
            ("labels", list(&numbers)),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let pairs = [("tokenizer_sha256", "t"), ("template_sha256", "p"), ("holdout_sha256", "[\"h\"]")];
        let pairs = pairs.map(|(k, v)| KeyValue::new(k.to_owned(), v.to_owned())).to_vec();
        let properties = WriterProperties::builder().set_key_value_metadata(Some(pairs)).build();
        let mut writer =
            ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    /// Two rows of two and three numbers.
    fn int32(numbers: &[i64]) -> ArrayRef {
        let values: Vec<Option<i32>> = numbers.iter().map(|&n| Some(n as i32)).collect();
        let rows = [Some(values[..2].to_vec()), Some(values[2..].to_vec())];
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(rows))
    }

    fn int64(numbers: &[i64]) -> ArrayRef {
        let values: Vec<Option<i64>> = numbers.iter().map(|&n| Some(n)).collect();
        let rows = [Some(values[..2].to_vec()), Some(values[2..].to_vec())];
        Arc::new(LargeListArray::from_iter_primitive::<Int64Type, _, _>(rows))
    }

    #[test]
    fn other_writers_integers_are_read_where_they_fit() {
        let dir = tempfile::tempdir().unwrap();
        let (narrow, wide) = (dir.path().join("narrow"), dir.path().join("wide"));
        write(&narrow, int32);
        write(&wide, int64);
        assert_eq!(read(&narrow).unwrap().rows, read(&wide).unwrap().rows);
        assert_eq!(read(&narrow).unwrap().rows[1].labels, [3, 4, 5]);
        write(&wide, |_| int64(&[1, 2, 3, 4, 1 << 40]));
        assert!(read(&wide).unwrap_err().to_string().contains("beyond 32 bits"));
    }

    /// Damage of one bit may never end the program; whether it is found depends on where it is.
    #[test]
    fn damage_is_an_error_or_another_row_and_never_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        write(&path, int32);
        let whole = std::fs::read(&path).unwrap();
        let mut n_errors = 0;
        for (i, bit) in (0..whole.len()).step_by(3).map(|i| (i, 1u8 << (i % 8))) {
            let mut damaged = whole.clone();
            damaged[i] ^= bit;
            std::fs::write(&path, &damaged).unwrap();
            n_errors += usize::from(read(&path).is_err());
        }
        assert!(n_errors > 0);
        for n in (0..whole.len()).step_by(5) {
            std::fs::write(&path, &whole[..n]).unwrap();
            assert!(read(&path).is_err(), "cut to {n} of {} bytes", whole.len());
        }
    }
}
