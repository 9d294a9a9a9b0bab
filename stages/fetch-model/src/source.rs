//! Where a model comes from, as the parameter `source` says it.

use std::path::PathBuf;

use model::Dtype;
use model::config::Config;
use model::init;
use stage_kit::{Result, StageError};

/// A parsed `source`.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    Hub { id: String },
    File { dir: PathBuf },
    Random { config: Config, dtype: Dtype },
    Input,
}

impl Source {
    /// Reads the parameter `source`.
    ///
    /// # Errors
    /// It is none of the known forms, or names a shape that does not exist.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |message: String| {
            StageError::usage(message).at(format!("fetch-model parameter source, `{text}`"))
        };
        if text == "input" {
            return Ok(Self::Input);
        }
        match text.split_once(':') {
            Some(("file", dir)) if !dir.is_empty() => Ok(Self::File { dir: PathBuf::from(dir) }),
            Some(("random", name)) => random(name, Dtype::Bf16).ok_or_else(|| {
                wrong(format!("there is no shape `{name}`"))
                    .next(format!("the shapes are: {}", init::ARCHITECTURES.join(", ")))
            }),
            Some(("embedded", name)) => match name {
                "tiny" => random("tiny", Dtype::F32)
                    .ok_or_else(|| StageError::internal("the shape of the embedded model is missing")),
                _ => Err(wrong(format!("there is no embedded model `{name}`"))
                    .next("the embedded model is embedded:tiny")),
            },
            None if is_hub_id(text) => Ok(Self::Hub { id: text.to_owned() }),
            _ => Err(wrong("not a source of models".to_owned())
                .next("write a hub id (owner/name), file:DIR, random:NAME, embedded:tiny or input")),
        }
    }
}

fn random(name: &str, dtype: Dtype) -> Option<Source> {
    init::architecture(name).map(|config| Source::Random { config, dtype })
}

/// `owner/name` of letters, digits, `-`, `_` and `.`, as hubs allow.
fn is_hub_id(text: &str) -> bool {
    let part = |part: &str| {
        let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        plain && !part.is_empty() && !part.contains("..") && !part.starts_with(['-', '.'])
    };
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        assert_eq!(
            Source::parse("Qwen/Qwen2.5-Coder-0.5B").unwrap(),
            Source::Hub { id: "Qwen/Qwen2.5-Coder-0.5B".into() }
        );
        assert_eq!(Source::parse("file:a/b").unwrap(), Source::File { dir: "a/b".into() });
        assert_eq!(Source::parse("input").unwrap(), Source::Input);
        let shapes = ["random:qwen2.5-coder-0.5b", "random:tiny", "embedded:tiny"];
        assert!(shapes.iter().all(|s| matches!(Source::parse(s), Ok(Source::Random { .. }))));
    }

    #[test]
    fn anything_else_is_refused_with_a_next_step() {
        for text in
            ["", "file:", "random:huge", "embedded:huge", "a/b/c", "../x", "a/..", "http://x/y", "name"]
        {
            let error = Source::parse(text).unwrap_err();
            assert_eq!(error.code(), stage_kit::ExitCode::Usage, "{text}");
            assert!(error.place().unwrap().contains(text));
        }
    }
}
