//! A model folder: which of its files belong to a model, and copying them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use model::config::Config;
use model::{names, tokenizer, weights};
use stage_kit::{Context, Result, StageError};

use crate::model_error;

/// A configuration, a tokenizer (the largest published ones have some 35 MiB) or an index is no larger.
pub const SMALL_MAX: u64 = 64 << 20;

/// A safetensors file's header is no larger.
const HEADER_MAX: u64 = 100_000_000;

/// No file of the model's weights is larger: all of them in the widest number, and a header.
pub fn weights_max(config: &Config) -> u64 {
    names::n_parameters(config).saturating_mul(8).saturating_add(HEADER_MAX)
}

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
    names.extend(OPTIONAL.iter().filter(|n| from.join(n).exists()).map(|&n| n.to_owned()));
    let whole = from.join(weights::FILE).exists() || !from.join(weights::INDEX).exists();
    if !whole {
        names.push(weights::INDEX.to_owned());
    }
    for name in &names {
        check_file(&from.join(name), SMALL_MAX)?;
    }
    let limit = weights_max(&Config::from_dir(from).map_err(model_error)?);
    let small = names.len();
    if whole {
        names.push(weights::FILE.to_owned());
    } else {
        names.extend(weights::shard_files(&from.join(weights::INDEX)).map_err(model_error)?);
    }
    let mut total = 0;
    for (i, name) in names.iter().enumerate() {
        total += check_file(&from.join(name), if i < small { SMALL_MAX } else { limit })?;
    }
    let progress = context.progress("bytes", Some(total));
    for name in &names {
        copy(&from.join(name), &to.join(name), context, |n| progress.inc(n))?;
    }
    Ok(())
}

/// The size of a regular file of at most `limit` bytes: a pipe or a device would be read for ever.
fn check_file(path: &Path, limit: u64) -> Result<u64> {
    let meta = fs::metadata(path).map_err(|e| {
        let next = missing(&e);
        StageError::io("read", path, e).next(next)
    })?;
    if !meta.is_file() {
        return Err(StageError::failed("is no regular file")
            .at(path.display().to_string())
            .next("put the file itself there"));
    }
    if meta.len() > limit {
        return Err(StageError::failed(format!(
            "has {} bytes, and such a file of this model has {limit} at most",
            meta.len()
        ))
        .at(path.display().to_string())
        .next("check that it is what its name says, and that config.json belongs to it"));
    }
    Ok(meta.len())
}

fn copy(from: &Path, to: &Path, context: &Context, copied: impl Fn(u64)) -> Result<()> {
    let mut input = File::open(from).map_err(|e| StageError::io("read", from, e))?;
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
