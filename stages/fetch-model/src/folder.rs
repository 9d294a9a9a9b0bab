//! A model folder: which of its files belong to a model, and copying them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use model::{tokenizer, weights};
use stage_kit::{Context, Result, StageError};

use crate::model_error;

/// A model has these.
pub const REQUIRED: [&str; 2] = ["config.json", tokenizer::FILE];

/// A model may have these.
pub const OPTIONAL: [&str; 4] = ["generation_config.json", tokenizer::CONFIG_FILE, "README.md", "LICENSE"];

/// Copies the files of the model in `from` into `to`: configuration, tokenizer, weights (one file, or index and shards).
///
/// # Errors
/// A required file is missing or can't be read, or `to` can't be written.
pub fn take(from: &Path, to: &Path, context: &Context) -> Result<()> {
    if !from.is_dir() {
        return Err(StageError::failed("no such folder")
            .at(from.display().to_string())
            .next("check the path"));
    }
    let mut names: Vec<String> = REQUIRED.iter().map(|&n| n.to_owned()).collect();
    names.extend(OPTIONAL.iter().filter(|n| from.join(n).is_file()).map(|&n| n.to_owned()));
    if from.join(weights::FILE).exists() || !from.join(weights::INDEX).exists() {
        names.push(weights::FILE.to_owned());
    } else {
        names.push(weights::INDEX.to_owned());
        names.extend(weights::shard_files(&from.join(weights::INDEX)).map_err(model_error)?);
    }
    let sizes = names.iter().filter_map(|n| fs::metadata(from.join(n)).ok()).map(|m| m.len());
    let progress = context.progress("bytes", Some(sizes.sum()));
    for name in &names {
        copy(&from.join(name), &to.join(name), context, |n| progress.inc(n))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, context: &Context, copied: impl Fn(u64)) -> Result<()> {
    let mut input = File::open(from).map_err(|e| {
        let next = missing(&e);
        StageError::io("read", from, e).next(next)
    })?;
    let mut output = File::create(to).map_err(|e| StageError::io("create", to, e))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        context.check_cancelled()?;
        let n = input.read(&mut buffer).map_err(|e| StageError::io("read", from, e))?;
        if n == 0 {
            return Ok(());
        }
        output.write_all(&buffer[..n]).map_err(|e| StageError::io("write", to, e))?;
        copied(n as u64);
    }
}

fn missing(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "a model folder holds config.json, tokenizer.json and model.safetensors (or its index and shards)"
        }
        _ => "check the permissions of that path",
    }
}

/// The licence that a model card (`README.md`) names in its front matter.
pub fn license(dir: &Path) -> Option<String> {
    license_of_card(&fs::read_to_string(dir.join("README.md")).ok()?)
}

fn license_of_card(card: &str) -> Option<String> {
    let front = card.strip_prefix("---")?.split("\n---").next()?;
    let line = front.lines().find_map(|line| line.strip_prefix("license:"))?;
    let name = line.trim().trim_matches(['"', '\'']);
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_its_licence_in_the_front_matter_alone() {
        assert_eq!(
            license_of_card("---\nlicense: apache-2.0\ntags: [x]\n---\n# T").as_deref(),
            Some("apache-2.0")
        );
        assert_eq!(license_of_card("---\r\nlicense: \"mit\"\r\n---\r\n").as_deref(), Some("mit"));
        assert_eq!(license_of_card("---\ntags: x\n---\nlicense: mit\n"), None);
        assert_eq!(license_of_card("license: mit\n"), None);
    }
}
