//! Tokenizers: special tokens parsed and not, damaged files.

mod common;

use common::byte_tokenizer;
use model::tokenizer::Tokenizer;

#[test]
fn special_tokens_are_parsed_only_where_asked() {
    let tokenizer = byte_tokenizer();
    let text = "<|im_start|>user\nhi<|im_end|>";
    let special = tokenizer.special();
    let parsed = tokenizer.encode(text).unwrap();
    assert_eq!((parsed[0], parsed.last().copied()), (special.im_start, Some(special.im_end)));
    let plain = tokenizer.encode_plain(text).unwrap();
    assert_eq!(plain.len(), text.len());
    for ids in [&parsed, &plain] {
        assert_eq!(tokenizer.decode(ids).unwrap(), text);
    }
    assert_eq!(tokenizer.decode_skip_special(&parsed).unwrap(), "user\nhi");
}

#[test]
fn ids_that_no_text_has_decode_to_something_and_never_panic() {
    let tokenizer = byte_tokenizer();
    assert_eq!(tokenizer.n_ids(), 259);
    assert_eq!(tokenizer.decode(&[5000, 6000]).unwrap(), "");
    let half = tokenizer.encode_plain("é").unwrap();
    assert_eq!(tokenizer.decode(&half[..1]).unwrap(), "\u{fffd}");
    assert_eq!(tokenizer.decode(&[]).unwrap(), "");
}

#[test]
fn a_missing_damaged_or_foreign_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Tokenizer::from_dir(dir.path()).unwrap_err().place().ends_with("tokenizer.json"));
    for text in ["", "{", "{}", "{\"model\": {\"type\": \"BPE\"}}"] {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err();
        assert!(error.place().ends_with("tokenizer.json"), "{error}");
    }
    let foreign = r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    let error = Tokenizer::from_bytes(foreign.as_bytes(), "foreign").unwrap_err().to_string();
    assert!(error.contains("<|im_start|>") && error.contains("ChatML"), "{error}");
}
