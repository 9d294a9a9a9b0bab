//! Small models, rows and tokenizers for the tests of this crate.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::Tensor;
use model::config::Config;
use model::tokenizer::Tokenizer;
use record::corpus::CorpusRow;
use serde_json::{Value, json};

pub(crate) fn golden(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/golden")).join(path)
}

pub(crate) fn small(tied: bool) -> Config {
    Config {
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 2,
        vocab_size: 10,
        max_position_embeddings: 32,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: tied,
    }
}

/// Every tensor filled with numbers that name it.
pub(crate) fn numbered(config: &Config) -> BTreeMap<String, Tensor> {
    let tensors = model::names::expected(config).into_iter().enumerate().map(|(i, (name, shape))| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|j| (i * 1000 + j) as f32).collect();
        (name, Tensor::from_f32(shape, &values).unwrap())
    });
    tensors.collect()
}

/// A tokenizer of single bytes (as byte-level BPE writes them) and the special tokens of ChatML.
pub(crate) fn byte_tokenizer() -> Tokenizer {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let bytes = alphabet.iter().map(char::to_string);
    let vocab: serde_json::Map<String, Value> = special
        .iter()
        .map(|s| (*s).to_owned())
        .chain(bytes)
        .enumerate()
        .map(|(i, s)| (s, json!(i)))
        .collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
        .collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), "bytes").unwrap()
}

pub(crate) fn row(function: &str, tests: &str, property: Option<&str>) -> CorpusRow {
    let row = json!({
        "id": "r", "function_code": function, "unit_tests": tests, "property_tests": property,
        "context": {"imports": [], "items": []},
        "metadata": {
            "crate": "c", "version": "1.0.0", "path": "src/lib.rs", "item": "f", "lines": [1, 2], "license": "MIT",
            "complexity": 1, "has_generics": false, "has_lifetimes": false, "is_async": false, "is_unsafe": false,
            "uses_macros": false, "returns_result": false, "source_class": "unit", "oracle": "human",
            "link_tier": "name", "mutants_killed": 0, "sha256": "0".repeat(64),
        },
    });
    serde_json::from_value(row).unwrap()
}
