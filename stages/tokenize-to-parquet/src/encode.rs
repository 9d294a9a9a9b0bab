//! Rows of a corpus as token ids.

use std::path::Path;

use model::prompt::{self, Encoded};
use model::tokenizer::Tokenizer;
use record::corpus::CorpusRow;
use record::tokens::SplitTokens;
use stage_kit::{Context, Result, StageError};

use crate::{Content, OverLong, Params, model_error};

/// One row of a token file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The corpus row's.
    pub id: String,
    pub function_sha256: String,
    pub input_ids: Vec<u32>,
    /// As long as `input_ids`, not shifted; -100: no loss.
    pub labels: Vec<i32>,
}

/// The rows that fit, in the order of the corpus, and what did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    pub rows: Vec<Row>,
    pub counts: SplitTokens,
}

/// Encodes the rows of one split; `path` names its file in errors.
pub(crate) fn split(
    path: &Path,
    rows: &[CorpusRow],
    tokenizer: &Tokenizer,
    params: &Params,
    context: &Context,
) -> Result<Split> {
    let progress = context.progress("rows", Some(rows.len() as u64));
    let mut split = Split::default();
    for row in rows {
        context.check_cancelled()?;
        let encoded = encode(tokenizer, row, params.content)?;
        let length = encoded.input_ids.len() as u64;
        if length > params.max_length {
            if params.over_long == OverLong::Error {
                let limit = params.max_length;
                return Err(StageError::failed(format!("has {length} tokens, and max_length is {limit}"))
                    .at(format!("{}, row `{}`", path.display(), row.id))
                    .next("raise max_length, or set over_long = \"drop\" to leave such rows out"));
            }
            split.counts.over_long.push(row.id.clone());
        } else {
            split.push(row, encoded);
        }
        progress.inc(1);
    }
    split.counts.rows_read = rows.len() as u64;
    Ok(split)
}

fn encode(tokenizer: &Tokenizer, row: &CorpusRow, content: Content) -> Result<Encoded> {
    let encoded = match content {
        Content::Chat => prompt::encode_training(tokenizer, row),
        Content::Transcript => prompt::encode_transcript(tokenizer, row),
        Content::Text => prompt::encode_text(tokenizer, row),
    };
    encoded.map_err(model_error)
}

impl Split {
    fn push(&mut self, row: &CorpusRow, encoded: Encoded) {
        let length = encoded.input_ids.len() as u64;
        self.counts.rows += 1;
        self.counts.tokens += length;
        self.counts.label_tokens += encoded.label_tokens() as u64;
        self.counts.longest = self.counts.longest.max(length);
        self.rows.push(Row {
            id: row.id.clone(),
            function_sha256: row.metadata.sha256.clone(),
            input_ids: encoded.input_ids,
            labels: encoded.labels,
        });
    }
}
