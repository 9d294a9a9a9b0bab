//! What the compiler says of a source text: its JSON messages, read into places in that text.

use serde::Deserialize;

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

/// The compiler's messages about the file `name`, from what it wrote to stderr, and what it wrote that is no message.
pub(crate) fn read_messages(stderr: &str, name: &str) -> (Vec<RawDiagnostic>, String) {
    let mut diagnostics = Vec::new();
    let mut rest = String::new();
    for line in stderr.lines() {
        match serde_json::from_str::<Message>(line) {
            Ok(message) => diagnostics.extend(message.diagnostic(name)),
            Err(_) => {
                rest.push_str(line);
                rest.push('\n');
            }
        }
    }
    (diagnostics, rest)
}

#[derive(Debug, Deserialize)]
struct Message {
    message: String,
    code: Option<Code>,
    level: String,
    spans: Vec<JsonSpan>,
    #[serde(default)]
    children: Vec<Message>,
}

#[derive(Debug, Deserialize)]
struct Code {
    code: String,
}

#[derive(Debug, Deserialize)]
struct JsonSpan {
    file_name: String,
    byte_start: usize,
    byte_end: usize,
    line_start: usize,
    line_end: usize,
    column_start: usize,
    column_end: usize,
    is_primary: bool,
    suggested_replacement: Option<String>,
    suggestion_applicability: Option<String>,
    expansion: Option<Box<Expansion>>,
}

#[derive(Debug, Deserialize)]
struct Expansion {
    span: JsonSpan,
}

impl Message {
    /// `None` for the closing summary ("aborting due to 2 previous errors").
    fn diagnostic(self, name: &str) -> Option<RawDiagnostic> {
        let is_summary = self.spans.is_empty()
            && self.code.is_none()
            && (self.message.starts_with("aborting due to") || self.message.ends_with(" emitted"));
        if is_summary || !(self.level.starts_with("error") || self.level == "warning") {
            return None;
        }
        let level = if self.level == "warning" { "warning" } else { "error" };
        let spans = self.spans.iter().filter_map(|span| span.inside(name)).collect();
        let suggestions =
            [&self].into_iter().chain(&self.children).filter_map(|m| m.suggestion(name)).collect();
        Some(RawDiagnostic {
            level: level.to_owned(),
            code: self.code.map(|code| code.code),
            message: self.message,
            spans,
            suggestions,
        })
    }

    fn suggestion(&self, name: &str) -> Option<Suggestion> {
        let spans: Vec<&JsonSpan> = self.spans.iter().filter(|s| s.suggested_replacement.is_some()).collect();
        // Several ways to mend it come as spans that overlap: then none is certain.
        let mut places: Vec<_> = spans.iter().map(|s| (s.byte_start, s.byte_end)).collect();
        places.sort_unstable();
        let overlap = places.windows(2).any(|w| w[0] == w[1] || w[0].1 > w[1].0);
        if spans.is_empty() || overlap || spans.iter().any(|s| s.file_name != name) {
            return None;
        }
        let certain = |s: &&JsonSpan| s.suggestion_applicability.as_deref() == Some("MachineApplicable");
        let edits = spans.iter().map(|s| Edit {
            start: s.byte_start,
            end: s.byte_end,
            replacement: s.suggested_replacement.clone().unwrap_or_default(),
        });
        Some(Suggestion {
            message: self.message.clone(),
            machine_applicable: spans.iter().all(certain),
            edits: edits.collect(),
        })
    }
}

impl JsonSpan {
    /// The span, or the call of the macro that it comes from, in the file `name`.
    fn inside(&self, name: &str) -> Option<RawSpan> {
        let mut span = self;
        while span.file_name != name {
            span = &span.expansion.as_ref()?.span;
        }
        Some(RawSpan {
            byte_start: span.byte_start,
            byte_end: span.byte_end,
            line_start: span.line_start,
            line_end: span.line_end,
            column_start: span.column_start,
            column_end: span.column_end,
            is_primary: self.is_primary,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(file: &str, bytes: [usize; 2], extra: &str) -> String {
        format!(
            r#"{{"file_name":"{file}","byte_start":{},"byte_end":{},"line_start":3,"line_end":3,"column_start":1,
            "column_end":9,"is_primary":true,"suggested_replacement":null,"suggestion_applicability":null,
            "expansion":null{extra}}}"#,
            bytes[0], bytes[1]
        )
        .replace('\n', "")
    }

    fn message(level: &str, text: &str, spans: &[String], children: &[String]) -> String {
        let (spans, children) = (spans.join(","), children.join(","));
        format!(
            r#"{{"message":"{text}","code":null,"level":"{level}","spans":[{spans}],"children":[{children}]}}"#
        )
    }

    #[test]
    fn a_place_in_a_macro_becomes_its_call() {
        let inner = span("row.rs", [10, 20], "");
        let outer = span("/rustc/macros.rs", [1, 2], "").replace(
            r#""expansion":null"#,
            &format!(r#""expansion":{{"span":{inner},"macro_decl_name":"assert!"}}"#),
        );
        let (found, rest) = read_messages(&message("error", "no", &[outer], &[]), "row.rs");
        assert_eq!((found[0].primary().unwrap().byte_start, rest.as_str()), (10, ""));
    }

    #[test]
    fn summaries_and_notes_are_dropped_and_other_text_is_kept() {
        let text = [
            message("error", "aborting due to 1 previous error", &[], &[]),
            message("failure-note", "For more information", &[], &[]),
            message("warning", "1 warning emitted", &[], &[]),
            message("error: internal compiler error", "bug", &[], &[]),
            "thread 'rustc' panicked".to_owned(),
        ];
        let (found, rest) = read_messages(&text.join("\n"), "row.rs");
        assert_eq!((found.len(), found[0].level.as_str()), (1, "error"));
        assert_eq!(rest, "thread 'rustc' panicked\n");
    }

    #[test]
    fn only_certain_suggestions_without_alternatives_count() {
        let with = |replacement: &str, how: &str| {
            span("row.rs", [5, 6], "")
                .replace(
                    r#""suggested_replacement":null"#,
                    &format!(r#""suggested_replacement":"{replacement}""#),
                )
                .replace(
                    r#""suggestion_applicability":null"#,
                    &format!(r#""suggestion_applicability":"{how}""#),
                )
        };
        let certain = message("help", "try", &[with("a", "MachineApplicable")], &[]);
        let maybe = message("help", "try", &[with("a", "MaybeIncorrect")], &[]);
        let two =
            message("help", "try", &[with("a", "MachineApplicable"), with("b", "MachineApplicable")], &[]);
        let (found, _) = read_messages(&message("error", "no", &[], &[certain, maybe, two]), "row.rs");
        let certain: Vec<bool> = found[0].suggestions.iter().map(|s| s.machine_applicable).collect();
        assert_eq!(certain, [true, false]);
    }
}
