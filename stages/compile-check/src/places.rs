//! Where the generated tests stand in the compiled text, and what the compiler says about that part. Pure.

use std::ops::Range;

use harness::{Compilation, Edit, RawDiagnostic, RawSpan};
use record::compile::{Diagnostic, Span};
use subject::Placed;

/// The part of a compiled text that was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// From 1, half open.
    lines: Range<usize>,
    bytes: Range<usize>,
}

impl Part {
    pub(crate) fn of(placed: &Placed, tests: &str) -> Self {
        let lines = placed.tests_lines.start as usize..placed.tests_lines.end as usize;
        let start: usize = placed.source.split_inclusive('\n').take(lines.start - 1).map(str::len).sum();
        Self { lines, bytes: start..start + tests.len() }
    }

    fn holds(&self, span: &RawSpan) -> bool {
        self.lines.contains(&span.line_start) && self.lines.contains(&span.line_end)
    }

    fn span(&self, span: &RawSpan) -> Option<Span> {
        let line = |line: usize| u32::try_from(line + 1 - self.lines.start).unwrap_or(u32::MAX);
        let column = |column: usize| u32::try_from(column).unwrap_or(u32::MAX);
        self.holds(span).then(|| Span {
            line_start: line(span.line_start),
            column_start: column(span.column_start),
            line_end: line(span.line_end),
            column_end: column(span.column_end),
        })
    }

    /// Errors wherever they stand, warnings where they stand in the tests: the others are about the row.
    pub(crate) fn diagnostics(&self, compilation: &Compilation) -> Vec<Diagnostic> {
        let mut found: Vec<Diagnostic> = Vec::new();
        for raw in &compilation.diagnostics {
            let span = raw.primary().and_then(|span| self.span(span));
            if raw.level == "error" || span.is_some() {
                let (level, code, message) = (raw.level.clone(), raw.code.clone(), raw.message.clone());
                found.push(Diagnostic { level, code, message, span });
            }
        }
        found.extend(compilation.stopped.iter().map(|reason| plain_error("stopped", reason)));
        found
    }

    /// Whether the linter found nothing in the tests.
    pub(crate) fn is_clean(&self, compilation: &Compilation) -> bool {
        compilation.success && !self.diagnostics(compilation).iter().any(|d| d.span.is_some())
    }

    /// The tests with every suggestion applied that the compiler calls machine-applicable and that belongs to an error
    /// in them; with the suggestions' texts. `None` when there is none.
    pub(crate) fn fixed(&self, compilation: &Compilation, tests: &str) -> Option<(String, String)> {
        let errors = compilation.diagnostics.iter().filter(|d| d.level == "error");
        let mut edits: Vec<Edit> = Vec::new();
        let mut messages: Vec<&str> = Vec::new();
        for suggestion in errors.flat_map(|d: &RawDiagnostic| &d.suggestions) {
            let inside = |e: &Edit| self.bytes.start <= e.start && e.end <= self.bytes.end;
            let clashes =
                |e: &Edit| edits.iter().any(|other| e.start < other.end && other.start < e.end || e == other);
            if suggestion.machine_applicable
                && suggestion.edits.iter().all(inside)
                && !suggestion.edits.iter().any(clashes)
            {
                edits.extend(suggestion.edits.iter().cloned());
                messages.push(&suggestion.message);
            }
        }
        if edits.is_empty() {
            return None;
        }
        edits.sort_by_key(|edit| std::cmp::Reverse((edit.start, edit.end)));
        let mut text = tests.to_owned();
        for edit in edits {
            let range = edit.start - self.bytes.start..edit.end - self.bytes.start;
            text.get(range.clone())?;
            text.replace_range(range, &edit.replacement);
        }
        messages.dedup();
        Some((messages.join("; "), text))
    }
}

/// An error without a place.
pub(crate) fn plain_error(code: &str, message: &str) -> Diagnostic {
    Diagnostic {
        level: "error".to_owned(),
        code: Some(code.to_owned()),
        message: message.to_owned(),
        span: None,
    }
}

#[cfg(test)]
mod tests {
    use harness::Suggestion;

    use super::*;

    const TESTS: &str = "line é one\nline two";

    fn part() -> Part {
        let placed = Placed {
            source: format!("fn f() {{}}\nmod tests {{\n{TESTS}\nuse super::*;\n}}\n"),
            function_lines: 1..2,
            tests_lines: 3..5,
            property_lines: None,
        };
        Part::of(&placed, TESTS)
    }

    fn raw(level: &str, lines: (usize, usize), suggestions: Vec<Suggestion>) -> RawDiagnostic {
        let span = RawSpan {
            byte_start: 0,
            byte_end: 0,
            line_start: lines.0,
            line_end: lines.1,
            column_start: 3,
            column_end: 4,
            is_primary: true,
        };
        let (level, message) = (level.to_owned(), "m".to_owned());
        RawDiagnostic { level, code: None, message, spans: vec![span], suggestions }
    }

    fn compilation(diagnostics: Vec<RawDiagnostic>) -> Compilation {
        Compilation { success: true, stopped: None, diagnostics }
    }

    #[test]
    fn places_count_from_the_first_line_of_the_tests() {
        let found = part().diagnostics(&compilation(vec![
            raw("warning", (4, 4), vec![]),
            raw("warning", (1, 1), vec![]),
            raw("error", (1, 1), vec![]),
            raw("warning", (5, 5), vec![]),
        ]));
        let places: Vec<_> = found.iter().map(|d| (d.level.as_str(), d.span.map(|s| s.line_start))).collect();
        assert_eq!(places, [("warning", Some(2)), ("error", None)]);
    }

    #[test]
    fn only_findings_in_the_tests_spoil_them() {
        assert!(part().is_clean(&compilation(vec![raw("warning", (1, 1), vec![])])));
        assert!(!part().is_clean(&compilation(vec![raw("warning", (3, 3), vec![])])));
    }

    fn suggestion(edits: &[(usize, usize, &str)], sure: bool) -> Suggestion {
        let edit =
            |&(start, end, text): &(usize, usize, &str)| Edit { start, end, replacement: text.to_owned() };
        Suggestion {
            message: "try".to_owned(),
            machine_applicable: sure,
            edits: edits.iter().map(edit).collect(),
        }
    }

    #[test]
    fn certain_suggestions_inside_the_tests_are_applied_together() {
        let at = "fn f() {}\nmod tests {\n".len();
        let good = suggestion(&[(at, at + 4, "LINE"), (at + 12, at + 16, "row")], true);
        let clash = suggestion(&[(at + 2, at + 3, "x")], true);
        let unsure = suggestion(&[(at + 17, at + 18, "x")], false);
        let outside = suggestion(&[(0, 2, "pub fn")], true);
        let errors = compilation(vec![raw("error", (3, 3), vec![outside, good, clash, unsure])]);
        assert_eq!(part().fixed(&errors, TESTS).unwrap().1, "LINE é one\nrow two");
        let warnings =
            compilation(vec![raw("warning", (3, 3), vec![suggestion(&[(at, at + 1, "L")], true)])]);
        assert_eq!(part().fixed(&warnings, TESTS), None);
    }
}
