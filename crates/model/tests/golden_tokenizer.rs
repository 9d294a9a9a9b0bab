//! The real Qwen2.5 tokenizer, which can't be shipped: built with the feature `golden-tokenizer`, and failing when
//! `TESTFORGE_TOKENIZER_DIR` does not name its folder.
#![cfg(feature = "golden-tokenizer")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::PathBuf;

use model::prompt;
use model::tokenizer::Tokenizer;
use serde_json::Value;

fn tokenizer() -> Tokenizer {
    let dir = std::env::var_os("TESTFORGE_TOKENIZER_DIR");
    let dir =
        PathBuf::from(dir.expect("TESTFORGE_TOKENIZER_DIR must name the folder of the Qwen2.5 tokenizer"));
    Tokenizer::from_dir(&dir).expect("TESTFORGE_TOKENIZER_DIR must hold a tokenizer.json")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn ids_and_text_are_those_of_transformers() {
    let tokenizer = tokenizer();
    let text = std::fs::read_to_string(common::golden("qwen2.5-encodings.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), case["decoded"].as_str().unwrap());
    }
    let chat = ids(&golden["chat_ids"]);
    assert_eq!(tokenizer.encode(golden["chat_text"].as_str().unwrap()).unwrap(), chat);
    let row = common::row("fn f() {}", "#[test]\nfn t() {}", None);
    assert_eq!(prompt::encode_prompt(&tokenizer, &row, None).unwrap(), chat);
    assert_eq!((tokenizer.special().im_end, tokenizer.n_ids()), (151_645, 151_665));
}

/// A chat encoded piece by piece has the ids of the whole text encoded at once.
#[test]
fn segments_join_without_a_seam() {
    let tokenizer = tokenizer();
    let row = common::row(
        "/// Ünï\nfn f(x: u32) -> u32 {\n    x + 1\n}\n",
        "#[test]\nfn t() {\n    assert_eq!(f(1), 2);\n}\n",
        None,
    );
    let encoded = prompt::encode_training(&tokenizer, &row).unwrap();
    let whole = format!("{}{}<|im_end|>", prompt::render(&row, None).text(), prompt::answer(&row));
    assert_eq!(encoded.input_ids, tokenizer.encode(&whole).unwrap());
}
