//! What can be wrong with a model's files: where, what, and the next step.

use std::io;
use std::path::Path;

/// Why a part of a model could not be read, checked or written.
///
/// Each variant has a place (a file, `file: tensor`), and [`next_step`](Self::next_step) says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{place}: can't {action}: {source}")]
    Io { place: String, action: &'static str, source: io::Error },
    #[error("{place}: {message}")]
    Config { place: String, message: String },
    #[error("{place}: {message}")]
    Weights { place: String, message: String },
    #[error("{place}: {message}")]
    Adapter { place: String, message: String },
    #[error("{place}: {message}")]
    Tokenizer { place: String, message: String },
    #[error("{place}: {message}")]
    Manifest { place: String, message: String },
}

impl ModelError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { place: path.display().to_string(), action, source }
    }

    pub(crate) fn config(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { place: place.into(), message: message.into() }
    }

    pub(crate) fn weights(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Weights { place: place.into(), message: message.into() }
    }

    pub(crate) fn adapter(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Adapter { place: place.into(), message: message.into() }
    }

    pub(crate) fn tokenizer(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Tokenizer { place: place.into(), message: message.into() }
    }

    /// Where it went wrong: a file, or a file and what is inside it.
    pub fn place(&self) -> &str {
        match self {
            Self::Io { place, .. }
            | Self::Config { place, .. }
            | Self::Weights { place, .. }
            | Self::Adapter { place, .. }
            | Self::Tokenizer { place, .. }
            | Self::Manifest { place, .. } => place,
        }
    }

    /// What went wrong, without the place.
    pub fn message(&self) -> String {
        match self {
            Self::Io { action, source, .. } => format!("can't {action}: {source}"),
            Self::Config { message, .. }
            | Self::Weights { message, .. }
            | Self::Adapter { message, .. }
            | Self::Tokenizer { message, .. }
            | Self::Manifest { message, .. } => message.clone(),
        }
    }

    /// What to do about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "check the path: is this the folder of a whole model?",
                io::ErrorKind::PermissionDenied => "check the permissions of that path",
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space on that disk",
                _ => "check that disk and path",
            },
            Self::Config { .. } => {
                "only the Qwen2 architecture runs here: choose such a model, or mend the file"
            }
            Self::Weights { .. } => "fetch the model again; its weights must match its config.json",
            Self::Adapter { .. } => {
                "use an adapter that was trained for this base model in the PEFT LoRA layout"
            }
            Self::Tokenizer { .. } => "fetch the model again; its folder needs a whole tokenizer.json",
            Self::Manifest { .. } => "fetch the model again: its files and its manifest.json do not agree",
        }
    }
}
