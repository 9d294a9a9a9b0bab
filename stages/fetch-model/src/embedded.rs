//! Models that need no download: a named shape with weights from the seed, and the tokenizer that comes with this program.

use std::fs;
use std::path::Path;

use model::Dtype;
use model::config::{Config, GenerationConfig};
use model::init;
use model::tokenizer::{self, Tokenizer};
use stage_kit::{Result, StageError};

use crate::model_error;

const TOKENIZER: &[u8] = include_bytes!("../embedded/tiny/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../embedded/tiny/tokenizer_config.json");

/// Of the tokenizer and of weights made from a seed: this project's own.
pub(crate) const LICENSE: &str = "MIT OR Apache-2.0";

/// Writes a whole model folder but for its manifest.
pub(crate) fn write(config: &Config, dtype: Dtype, seed: u64, dir: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_bytes(TOKENIZER, "the embedded tokenizer").map_err(model_error)?;
    let special = tokenizer.special();
    let generation = GenerationConfig {
        eos_token_ids: vec![special.im_end, special.end_of_text],
        pad_token_id: Some(special.end_of_text),
        bos_token_id: None,
    };
    let (config_text, generation_text) = (config.to_json(dtype), generation.to_json());
    let files: [(&str, &[u8]); 4] = [
        (tokenizer::FILE, TOKENIZER),
        (tokenizer::CONFIG_FILE, TOKENIZER_CONFIG),
        ("config.json", config_text.as_bytes()),
        ("generation_config.json", generation_text.as_bytes()),
    ];
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::write(&path, bytes).map_err(|e| StageError::io("write", &path, e))?;
    }
    init::random_weights_in(config, seed, dtype).save(dir, None).map_err(model_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_tokenizer_fits_the_tiny_shape() {
        let tokenizer = Tokenizer::from_bytes(TOKENIZER, "embedded").unwrap();
        let config = init::architecture("tiny").unwrap();
        assert_eq!(tokenizer.n_ids() as usize, config.vocab_size);
        let text = "/// Ünïcödé 日本語\nfn f(x: &'a [u8]) -> Result<(), E> {\n\tx.len() == 12\n}\n";
        assert_eq!(tokenizer.decode(&tokenizer.encode_plain(text).unwrap()).unwrap(), text);
        let written = "<|im_start|>a<|im_end|>";
        assert_eq!(tokenizer.encode(written).unwrap().len(), 3);
        let plain = tokenizer.encode_plain(written).unwrap();
        assert!(
            !plain.contains(&tokenizer.special().im_start) && !plain.contains(&tokenizer.special().im_end)
        );
        assert_eq!(tokenizer.decode(&plain).unwrap(), written);
    }
}
