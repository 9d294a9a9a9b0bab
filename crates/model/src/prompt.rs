//! The one place that knows what a model is asked and what it should answer.
//!
//! ChatML as in the official Qwen2.5 template. Special tokens are segments of their own and never parsed out of text:
//! a function's code that contains `<|im_end|>` is code. Training and generation both call this module, and
//! [`template_sha256`] travels with tokens, adapters and samples.

use std::sync::OnceLock;

use record::corpus::{CorpusRow, RowContext};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::tokenizer::{END_OF_TEXT, IM_END, IM_START, SpecialIds, Tokenizer};

pub const SYSTEM: &str = "You are a Rust testing expert.";
const INSTRUCTION: &str = "Generate tests for this function:";
const CONTEXT: &str = "It uses:";
const FEEDBACK: &str = "Earlier tests were wrong:";
const AGAIN: &str = "Write the tests again, without these faults.";

/// The label of a token that carries no loss.
pub const NO_LOSS: i32 = -100;

/// A special token of ChatML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    ImStart,
    ImEnd,
    EndOfText,
}

impl Special {
    pub fn text(self) -> &'static str {
        match self {
            Self::ImStart => IM_START,
            Self::ImEnd => IM_END,
            Self::EndOfText => END_OF_TEXT,
        }
    }

    fn id(self, ids: SpecialIds) -> u32 {
        match self {
            Self::ImStart => ids.im_start,
            Self::ImEnd => ids.im_end,
            Self::EndOfText => ids.end_of_text,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    Special(Special),
    /// Ordinary text, encoded without looking for special tokens.
    Text(String),
}

/// What a model reads: special tokens and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub segments: Vec<Segment>,
}

impl Prompt {
    /// As the chat template writes it. For people: text inside that looks like a special token can't be told apart here.
    pub fn text(&self) -> String {
        let text = |segment: &Segment| match segment {
            Segment::Special(special) => special.text().to_owned(),
            Segment::Text(text) => text.clone(),
        };
        self.segments.iter().map(text).collect()
    }

    /// Token ids; the ids of one segment do not depend on the others.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Special(special) => ids.push(special.id(tokenizer.special())),
                Segment::Text(text) => ids.extend(tokenizer.encode_plain(text)?),
            }
        }
        Ok(ids)
    }

    /// Hexadecimal; tells special tokens from text that looks like them.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for segment in &self.segments {
            let (kind, text) = match segment {
                Segment::Special(special) => (b's', special.text()),
                Segment::Text(text) => (b't', text.as_str()),
            };
            hasher.update([kind]);
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        hex::encode(hasher.finalize())
    }
}

/// Token ids with what each position is to learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub input_ids: Vec<u32>,
    /// As long as `input_ids`, not shifted: the id itself where it is to be predicted, else [`NO_LOSS`].
    pub labels: Vec<i32>,
}

impl Encoded {
    fn new(prompt: &[u32], answer: &[u32]) -> Self {
        let labels = std::iter::repeat_n(NO_LOSS, prompt.len()).chain(answer.iter().map(|&id| id as i32));
        Self { input_ids: [prompt, answer].concat(), labels: labels.collect() }
    }

    /// How many positions carry loss.
    pub fn label_tokens(&self) -> usize {
        self.labels.iter().filter(|&&label| label != NO_LOSS).count()
    }
}

/// A chat of one system and one user turn, up to where the assistant speaks.
pub fn chat(system: &str, user: &str) -> Prompt {
    let text = |text: String| Segment::Text(text);
    let (start, end) = (Segment::Special(Special::ImStart), Segment::Special(Special::ImEnd));
    let segments = vec![
        start.clone(),
        text(format!("system\n{system}")),
        end.clone(),
        text("\n".to_owned()),
        start.clone(),
        text(format!("user\n{user}")),
        end,
        text("\n".to_owned()),
        start,
        text("assistant\n".to_owned()),
    ];
    Prompt { segments }
}

/// The prompt for a row: its function and what the function uses, never its tests.
///
/// `feedback`: what was wrong with earlier tests, when they are to be written again.
pub fn render(row: &CorpusRow, feedback: Option<&str>) -> Prompt {
    chat(SYSTEM, &user_turn(row, feedback))
}

fn user_turn(row: &CorpusRow, feedback: Option<&str>) -> String {
    let mut turn = format!("{INSTRUCTION}\n\n{}", fenced(&row.function_code));
    let context = context_code(&row.context);
    if !context.is_empty() {
        turn.push_str(&format!("\n\n{CONTEXT}\n\n{}", fenced(&context)));
    }
    if let Some(feedback) = feedback {
        turn.push_str(&format!("\n\n{FEEDBACK}\n\n{}\n\n{AGAIN}", feedback.trim()));
    }
    turn
}

/// Imports, then items, as they stand before the function.
fn context_code(context: &RowContext) -> String {
    let imports = context.imports.iter().map(|i| i.trim()).collect::<Vec<_>>().join("\n");
    let items = context.items.iter().map(|i| i.trim()).collect::<Vec<_>>().join("\n\n");
    [imports, items].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

/// A Markdown fence that the code can't close: longer than any run of backticks in it.
fn fenced(code: &str) -> String {
    let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}rust\n{}\n{fence}", code.trim_matches('\n'))
}

/// What the assistant should say: the row's tests as they stand inside `mod tests`, property tests in a module of their own.
pub fn answer(row: &CorpusRow) -> String {
    let unit = row.unit_tests.trim_matches('\n').trim_end();
    let Some(property) = row.property_tests.as_deref().map(str::trim).filter(|p| !p.is_empty()) else {
        return unit.to_owned();
    };
    let property =
        format!("mod property_tests {{\n    use super::*;\n    use proptest::prelude::*;\n\n{property}\n}}");
    if unit.is_empty() { property } else { format!("{unit}\n\n{property}") }
}

/// Ids of [`render`].
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn encode_prompt(tokenizer: &Tokenizer, row: &CorpusRow, feedback: Option<&str>) -> Result<Vec<u32>> {
    render(row, feedback).encode(tokenizer)
}

/// Prompt and answer of a row. Loss on the answer's tokens and on the `<|im_end|>` that closes it, nowhere else.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn encode_training(tokenizer: &Tokenizer, row: &CorpusRow) -> Result<Encoded> {
    let prompt = encode_prompt(tokenizer, row, None)?;
    let mut answer = tokenizer.encode_plain(&answer(row))?;
    answer.push(tokenizer.special().im_end);
    Ok(Encoded::new(&prompt, &answer))
}

/// The same tokens as [`encode_training`], with loss on every one: teaches the markup too.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn encode_transcript(tokenizer: &Tokenizer, row: &CorpusRow) -> Result<Encoded> {
    let encoded = encode_training(tokenizer, row)?;
    Ok(Encoded::new(&[], &encoded.input_ids))
}

/// A row as plain source code, closed by `<|endoftext|>`, with loss on every token.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn encode_text(tokenizer: &Tokenizer, row: &CorpusRow) -> Result<Encoded> {
    let mut ids = tokenizer.encode_plain(&source_text(row))?;
    ids.push(tokenizer.special().end_of_text);
    Ok(Encoded::new(&[], &ids))
}

/// A row as a source file: context, function, tests.
pub fn source_text(row: &CorpusRow) -> String {
    let tests = format!("#[cfg(test)]\nmod tests {{\n    use super::*;\n\n{}\n}}", answer(row));
    let parts = [context_code(&row.context), row.function_code.trim_matches('\n').to_owned(), tests];
    let mut text = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n");
    text.push('\n');
    text
}

/// Hexadecimal SHA-256 of the template: of what it makes of fixed rows, so that any change of wording or layout shows.
pub fn template_sha256() -> &'static str {
    static SHA256: OnceLock<String> = OnceLock::new();
    SHA256.get_or_init(|| {
        let mut hasher = Sha256::new();
        for (row, feedback) in probe::rows() {
            hasher.update(render(&row, feedback).sha256());
            hasher.update(answer(&row));
            hasher.update([0]);
            hasher.update(source_text(&row));
            hasher.update([0]);
        }
        hex::encode(hasher.finalize())
    })
}

/// Rows that reach every branch of the template.
mod probe {
    use record::corpus::{CorpusRow, LinkTier, Oracle, RowContext, RowMetadata, SourceClass};

    pub(super) fn rows() -> [(CorpusRow, Option<&'static str>); 4] {
        let context = |imports: &[&str], items: &[&str]| RowContext {
            imports: imports.iter().map(|&i| i.to_owned()).collect(),
            items: items.iter().map(|&i| i.to_owned()).collect(),
        };
        let full = context(&["use a::B;", "use c::D;"], &["struct E;", "struct F;"]);
        [
            (row("fn f() {}", "#[test]\nfn t() {}", None, RowContext::default()), None),
            (
                row("\n/// ```\nfn f() {}\n", "\n#[test]\nfn t() {}\n", Some("proptest! {}"), full),
                Some("feedback\n"),
            ),
            (row("fn f() {}", "", Some("proptest! {}"), context(&["use a::B;"], &[])), None),
            (row("fn f() {}", "", None, context(&[], &["struct E;"])), None),
        ]
    }

    fn row(function: &str, unit: &str, property: Option<&str>, context: RowContext) -> CorpusRow {
        CorpusRow {
            id: String::new(),
            function_code: function.to_owned(),
            unit_tests: unit.to_owned(),
            property_tests: property.map(str::to_owned),
            context,
            metadata: RowMetadata {
                crate_name: String::new(),
                version: String::new(),
                path: String::new(),
                item: String::new(),
                lines: [1, 1],
                license: String::new(),
                complexity: 1,
                has_generics: false,
                has_lifetimes: false,
                is_async: false,
                is_unsafe: false,
                uses_macros: false,
                returns_result: false,
                source_class: SourceClass::Curated,
                property_class: None,
                oracle: Oracle::Human,
                link_tier: LinkTier::Curated,
                mutants_killed: 0,
                stratum: None,
                sha256: String::new(),
            },
        }
    }
}
