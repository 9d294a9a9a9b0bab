//! What the compiler says of a source text.

/// How the text is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrateKind {
    Lib,
    /// With `--test`: `#[cfg(test)]` items are in.
    Test,
}

/// The outcome of one compiler call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compilation {
    pub success: bool,
    /// The compiler was stopped by the sandbox (time, memory): `success` is false, and no diagnostic says why.
    pub stopped: Option<String>,
    /// In the compiler's order: errors and warnings.
    pub diagnostics: Vec<RawDiagnostic>,
}

/// A diagnostic with places in the compiled text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDiagnostic {
    /// `error`, `warning`; `failure-note` and the summary lines are dropped.
    pub level: String,
    /// `E0308`, `unused_variables`, `clippy::...`.
    pub code: Option<String>,
    pub message: String,
    /// Only those inside the compiled text; a place inside a macro's definition elsewhere becomes the macro's call.
    pub spans: Vec<RawSpan>,
    pub suggestions: Vec<Suggestion>,
}

impl RawDiagnostic {
    /// The first primary span, if it lies in the compiled text.
    #[must_use]
    pub fn primary(&self) -> Option<&RawSpan> {
        self.spans.iter().find(|span| span.is_primary)
    }
}

/// A place in the compiled text: bytes from 0, lines and columns (of characters) from 1, ends exclusive except `line_end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawSpan {
    pub byte_start: usize,
    pub byte_end: usize,
    pub line_start: usize,
    pub line_end: usize,
    pub column_start: usize,
    pub column_end: usize,
    pub is_primary: bool,
}

/// A suggested change. All its edits belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    pub message: String,
    pub machine_applicable: bool,
    pub edits: Vec<Edit>,
}

/// Replaces the bytes `start..end` of the compiled text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub start: usize,
    pub end: usize,
    pub replacement: String,
}
