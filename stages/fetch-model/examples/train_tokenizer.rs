//! Trains the tokenizer of the embedded model: a byte-level BPE with Qwen2.5's way of splitting text.
//!
//! ```text
//! cargo run -p fetch-model --example train_tokenizer -- OUT.json VOCAB_SIZE FILE_OR_FOLDER...
//! ```
//!
//! Reads every `.rs` file given, folders in sorted order. The same files give the same bytes.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// As in Qwen2.5: contractions, words with one leading mark, single digits, marks, line ends, white space.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Their ids are 0, 1, 2, ...
const SPECIAL: [&str; 7] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let out = PathBuf::from(args.next().ok_or("OUT.json is missing")?);
    let vocab_size: usize =
        args.next().and_then(|n| n.to_str()?.parse().ok()).ok_or("VOCAB_SIZE is missing")?;
    let mut files = Vec::new();
    for path in args {
        collect(Path::new(&path), &mut files)?;
    }
    if files.is_empty() {
        return Err("no .rs file among the paths given".into());
    }
    let texts = files.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    fs::write(&out, train(&texts, vocab_size).map_err(|e| e as Box<dyn Error>)?)?;
    Ok(())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_dir() {
        let mut entries = fs::read_dir(path)?.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| collect(entry, files));
    }
    if path.extension().is_some_and(|e| e == "rs") {
        files.push(path.to_owned());
    }
    Ok(())
}

fn train(texts: &[String], vocab_size: usize) -> tokenizers::Result<String> {
    let special: Vec<AddedToken> =
        SPECIAL.iter().map(|t| AddedToken::from(*t, true).normalized(false)).collect();
    let mut tokenizer = Tokenizer::new(BPE::default());
    let split = Split::new(SplitPattern::Regex(SPLIT.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, true, false);
    let parts = vec![PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)];
    tokenizer
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(parts)))
        .with_decoder(Some(bytes));
    let mut trainer = TrainerWrapper::from(
        BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(special.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    tokenizer.train(&mut trainer, texts.iter())?;
    tokenizer.add_special_tokens(&special);
    let mut text = tokenizer.to_string(false)?;
    text.push('\n');
    Ok(text)
}
