//! What is wrong with a pipeline file, and where.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};

use super::node::Span;

/// The text of a pipeline file under the name that errors show.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    pub text: Arc<str>,
}

impl Source {
    /// Line and column from 1, of a byte offset. A column counts characters.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }

    pub(crate) fn snippet(&self, span: &Range<usize>) -> &str {
        self.text.get(span.clone()).unwrap_or("")
    }
}

/// One fault of the configuration. Its text begins with `FILE:LINE:COLUMN:` wherever it has a place.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct ConfigError {
    message: String,
    #[help]
    help: Option<String>,
    #[source_code]
    source_code: Option<NamedSource<Arc<str>>>,
    #[label("{label}")]
    span: Option<SourceSpan>,
    label: String,
    cause: Option<String>,
}

impl ConfigError {
    /// A fault at `span` of the file, or of the command line where `span` is `None`.
    pub fn at(source: &Source, span: &Span, message: impl Into<String>) -> Self {
        let message = message.into();
        let name = source.path.display().to_string();
        let Some(range) = span else {
            return Self {
                message,
                help: None,
                source_code: None,
                span: None,
                label: String::new(),
                cause: None,
            };
        };
        let (line, column) = source.line_column(range.start);
        Self {
            message: format!("{name}:{line}:{column}: {message}"),
            help: None,
            source_code: Some(NamedSource::new(name, Arc::clone(&source.text))),
            span: Some(SourceSpan::from(range.clone())),
            label: "here".to_owned(),
            cause: None,
        }
    }

    /// A fault of the file as a whole.
    pub fn of_file(path: &Path, message: impl Into<String>) -> Self {
        let message = format!("{}: {}", path.display(), message.into());
        Self { message, help: None, source_code: None, span: None, label: String::new(), cause: None }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        let help = help.into();
        self.help = (!help.is_empty()).then_some(help);
        self
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Of several faults with the same cause, only the first is shown.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub fn help_text(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// In the order of the file, one of each cause.
pub fn in_order(mut errors: Vec<ConfigError>) -> Vec<ConfigError> {
    errors.sort_by_key(|e| e.span.map_or(0, |span| span.offset()));
    let mut causes = BTreeSet::new();
    errors.retain(|e| e.cause.as_ref().is_none_or(|cause| causes.insert(cause.clone())));
    errors
}

/// The known name nearest to `wrong`, where one is near enough to be meant.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).max(1);
    let distance = |k: &str| strsim::damerau_levenshtein(&wrong.to_lowercase(), &k.to_lowercase());
    let best = known.into_iter().map(|k| (distance(k), k)).min();
    best.filter(|(d, _)| *d <= limit).map(|(_, k)| k)
}

/// "did you mean `x`?", or the list of what there is.
pub fn suggestion<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(wrong, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => String::new(),
        None => format!("there is: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_listed() {
        assert_eq!(suggestion("outpts", ["inputs", "outputs"]), "did you mean `outputs`?");
        assert_eq!(suggestion("zzz", ["run", "env"]), "there is: run, env");
        assert_eq!(suggestion("zzz", []), "");
    }

    #[test]
    fn columns_count_characters() {
        let source = Source { path: "p.toml".into(), text: "a = 1\nä = 2".into() };
        assert_eq!(source.line_column(0), (1, 1));
        assert_eq!(source.line_column("a = 1\nä".len()), (2, 2));
    }
}
