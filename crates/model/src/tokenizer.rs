//! Text to token ids and back: `tokenizer.json` through the `tokenizers` crate.
//!
//! Two ways in. [`Tokenizer::encode`] parses special tokens written in the text, as transformers does.
//! [`Tokenizer::encode_plain`] never does: text that somebody else wrote can't place a special token, whatever it says.

use std::fs;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{ModelError, Result};

pub const FILE: &str = "tokenizer.json";
pub const CONFIG_FILE: &str = "tokenizer_config.json";

pub const IM_START: &str = "<|im_start|>";
pub const IM_END: &str = "<|im_end|>";
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Ids of the special tokens that a chat needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    pub im_start: u32,
    pub im_end: u32,
    pub end_of_text: u32,
}

/// A tokenizer with the special tokens of ChatML.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    parsing: tokenizers::Tokenizer,
    /// The same without added tokens.
    plain: tokenizers::Tokenizer,
    special: SpecialIds,
    sha256: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`.
    ///
    /// # Errors
    /// The file is missing or damaged, or lacks one of the special tokens of ChatML.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = fs::read(&path).map_err(|e| ModelError::io("read", &path, e))?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of a `tokenizer.json`; `place` names it in errors.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub fn from_bytes(bytes: &[u8], place: &str) -> Result<Self> {
        let damaged =
            |e: &dyn std::fmt::Display| ModelError::tokenizer(place, format!("not a tokenizer: {e}"));
        let parsing = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| damaged(&e))?;
        let mut json: Value = serde_json::from_slice(bytes).map_err(|e| damaged(&e))?;
        if let Some(object) = json.as_object_mut() {
            object.insert("added_tokens".to_owned(), Value::Array(Vec::new()));
        }
        let plain = tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|e| damaged(&e))?;
        let id = |token: &str| {
            parsing.token_to_id(token).ok_or_else(|| {
                ModelError::tokenizer(place, format!("has no token `{token}`, which ChatML needs"))
            })
        };
        let special =
            SpecialIds { im_start: id(IM_START)?, im_end: id(IM_END)?, end_of_text: id(END_OF_TEXT)? };
        Ok(Self { parsing, plain, special, sha256: hex::encode(Sha256::digest(bytes)) })
    }

    /// Ids of `text`; special tokens written in it become themselves.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text (byte-level ones have one for every byte).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.parsing, text)
    }

    /// Ids of `text`; special tokens written in it are ordinary text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.plain, text)
    }

    /// The text of `ids`, special tokens included. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The decoder of the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, false)
    }

    /// The text of `ids` without special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_skip_special(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, true)
    }

    fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.parsing
            .decode(ids, skip_special)
            .map_err(|e| ModelError::tokenizer(FILE, format!("can't decode: {e}")))
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token)
    }

    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// One more than the highest id. A model's embedding may have more rows: their ids decode to nothing.
    pub fn n_ids(&self) -> u32 {
        self.parsing.get_vocab(true).into_values().max().map_or(0, |id| id + 1)
    }

    /// Hexadecimal, of the bytes of `tokenizer.json`.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false);
    encoding
        .map(|e| e.get_ids().to_vec())
        .map_err(|e| ModelError::tokenizer(FILE, format!("can't encode: {e}")))
}
