//! Prompts: the official template, labels, and text that tries to be markup.

mod common;

use common::{byte_tokenizer, golden, row};
use model::prompt::{self, NO_LOSS, Segment};
use proptest::prelude::*;
use serde_json::Value;

#[test]
fn a_chat_is_rendered_as_the_official_template_does() {
    let text = std::fs::read_to_string(golden("qwen2.5-encodings.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let expected = golden["chat_text"].as_str().unwrap();
    assert_eq!(prompt::render(&row("fn f() {}", "", None), None).text(), expected);
    let user = "Generate tests for this function:\n\n```rust\nfn f() {}\n```";
    assert_eq!(prompt::chat(prompt::SYSTEM, user).text(), expected);
}

#[test]
fn context_and_feedback_have_their_place_and_tests_never_show() {
    let mut row = row("fn f() -> E { E }", "#[test]\nfn secret() {}", Some("proptest! { hidden }"));
    row.context.imports = vec!["use std::fmt;".to_owned()];
    row.context.items = vec!["struct E;".to_owned(), "struct F;".to_owned()];
    let text = prompt::render(&row, Some("it did not compile")).text();
    assert!(text.contains("```rust\nuse std::fmt;\n\nstruct E;\n\nstruct F;\n```"), "{text}");
    assert!(text.contains("it did not compile"));
    assert!(!text.contains("secret") && !text.contains("hidden"));
    assert!(text.ends_with("<|im_start|>assistant\n"));
    assert_ne!(prompt::render(&row, None).sha256(), prompt::render(&row, Some("x")).sha256());
}

#[test]
fn code_with_backticks_stays_inside_its_fence() {
    let text = prompt::render(&row("/// ```\n/// f();\n/// ````\nfn f() {}", "", None), None).text();
    assert!(text.contains("`````rust\n/// ```\n/// f();\n/// ````\nfn f() {}\n`````"), "{text}");
}

#[test]
fn only_the_answer_and_its_end_carry_loss() {
    let tokenizer = byte_tokenizer();
    let row = row("fn f() {}", "#[test]\nfn t() {}\n", None);
    let prompt = prompt::encode_prompt(&tokenizer, &row, None).unwrap();
    let encoded = prompt::encode_training(&tokenizer, &row).unwrap();
    assert_eq!(encoded.input_ids.len(), encoded.labels.len());
    let (before, after) = encoded.labels.split_at(prompt.len());
    assert_eq!(encoded.input_ids[..prompt.len()], prompt);
    assert!(before.iter().all(|l| *l == NO_LOSS));
    let ids: Vec<u32> = after.iter().map(|l| u32::try_from(*l).unwrap()).collect();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "#[test]\nfn t() {}<|im_end|>");
    assert_eq!(ids, encoded.input_ids[prompt.len()..]);
    assert_eq!(encoded.label_tokens(), ids.len());
    let transcript = prompt::encode_transcript(&tokenizer, &row).unwrap();
    assert_eq!(transcript.input_ids, encoded.input_ids);
    assert_eq!(transcript.label_tokens(), transcript.input_ids.len());
}

#[test]
fn property_tests_follow_in_a_module_of_their_own() {
    let answer = prompt::answer(&row("fn f() {}", "#[test]\nfn t() {}", Some("proptest! {\n}")));
    assert!(answer.starts_with("#[test]\nfn t() {}\n\nmod property_tests {\n    use super::*;"), "{answer}");
    assert!(answer.ends_with("proptest! {\n}\n}"));
    assert!(prompt::answer(&row("fn f() {}", "", Some("proptest! {}"))).starts_with("mod property_tests {"));
    assert_eq!(
        prompt::answer(&row("fn f() {}", "\n#[test]\nfn t() {}\n\n", Some(" \n"))),
        "#[test]\nfn t() {}"
    );
}

#[test]
fn plain_text_is_a_source_file_that_ends() {
    let tokenizer = byte_tokenizer();
    let mut row = row("fn f() {}", "#[test]\nfn t() {}", None);
    row.context.imports = vec!["use std::fmt;".to_owned()];
    let encoded = prompt::encode_text(&tokenizer, &row).unwrap();
    let text = tokenizer.decode(&encoded.input_ids).unwrap();
    let expected = "use std::fmt;\n\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n#[test]\nfn t() {}\n}\n<|endoftext|>";
    assert_eq!(text, expected);
    assert_eq!(encoded.label_tokens(), encoded.input_ids.len());
}

#[test]
fn the_template_has_one_hash() {
    let sha256 = prompt::template_sha256();
    assert_eq!(sha256.len(), 64);
    assert_eq!(sha256, prompt::template_sha256());
}

proptest! {
    /// Whatever a function, its context, its tests or feedback contain: special tokens stand where the template puts them.
    #[test]
    fn nothing_can_place_a_special_token(
        parts in proptest::collection::vec("(<\\|im_end\\|>|<\\|im_start\\|>system\n|<\\|endoftext\\|>|[a-z`\n ]{0,6}|\\PC{0,3}){0,4}", 4)
    ) {
        let tokenizer = byte_tokenizer();
        let mut row = row(&parts[0], &parts[1], None);
        row.context.items = vec![parts[2].clone()];
        let special = tokenizer.special();
        let count = |ids: &[u32], id: u32| ids.iter().filter(|&&i| i == id).count();
        let ids = prompt::encode_prompt(&tokenizer, &row, Some(&parts[3])).unwrap();
        prop_assert_eq!(count(&ids, special.im_start), 3);
        prop_assert_eq!(count(&ids, special.im_end), 2);
        prop_assert_eq!(count(&ids, special.end_of_text), 0);
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), prompt::render(&row, Some(&parts[3])).text());
        let trained = prompt::encode_training(&tokenizer, &row).unwrap();
        prop_assert_eq!(count(&trained.input_ids, special.im_end), 3);
        prop_assert_eq!(trained.input_ids.last(), Some(&special.im_end));
        let text = prompt::encode_text(&tokenizer, &row).unwrap();
        prop_assert_eq!(count(&text.input_ids, special.end_of_text), 1);
        prop_assert_eq!(count(&text.input_ids, special.im_end), 0);
    }

    /// A prompt's hash tells text that looks like a special token from the token.
    #[test]
    fn hashes_tell_markup_from_text(text in "[a-z]{0,4}") {
        let chat = prompt::chat("s", &text);
        let flat = prompt::Prompt { segments: vec![Segment::Text(chat.text())] };
        prop_assert_eq!(flat.text(), chat.text());
        prop_assert_ne!(flat.sha256(), chat.sha256());
    }
}
