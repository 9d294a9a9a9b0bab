//! Repair rounds: which samples of an earlier round are asked for again, and what they are told.

use std::collections::BTreeMap;

use record::compile::{CompileResult, CompileResults, Diagnostic};

/// A prompt has room for so many complaints; the first ones are usually the cause of the rest.
const DIAGNOSTICS_MAX: usize = 8;

/// A sample that failed, and what to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) sample_idx: u32,
    /// Of the new sample.
    pub(crate) round: u32,
    pub(crate) text: String,
}

/// Failures of the newest round of each sample, by task.
pub(crate) fn repairs(results: &CompileResults) -> BTreeMap<String, Vec<Repair>> {
    let mut newest: BTreeMap<(&str, u32), &CompileResult> = BTreeMap::new();
    for result in &results.samples {
        let key = (result.task_id.as_str(), result.sample_idx);
        if newest.get(&key).is_none_or(|known| known.round < result.round) {
            newest.insert(key, result);
        }
    }
    let mut repairs: BTreeMap<String, Vec<Repair>> = BTreeMap::new();
    for ((task, sample_idx), result) in newest {
        if failed(result) {
            let repair = Repair { sample_idx, round: result.round + 1, text: text(result) };
            repairs.entry(task.to_owned()).or_default().push(repair);
        }
    }
    repairs
}

/// Does not compile. A lint alone is no failure.
fn failed(result: &CompileResult) -> bool {
    result.refused.is_some()
        || !result.parses
        || result.type_checks == Some(false)
        || result.links == Some(false)
}

fn text(result: &CompileResult) -> String {
    let mut parts = Vec::new();
    let tests = result.tests.trim_matches('\n');
    if !tests.is_empty() {
        parts.push(fenced(tests));
    }
    parts.extend(result.refused.iter().map(|reason| format!("refused: {reason}")));
    let errors: Vec<&Diagnostic> = result.diagnostics.iter().filter(|d| d.level == "error").collect();
    parts.push(
        errors.iter().take(DIAGNOSTICS_MAX).map(|d| complaint(d, tests)).collect::<Vec<_>>().join("\n"),
    );
    if errors.len() > DIAGNOSTICS_MAX {
        parts.push(format!("and {} more errors", errors.len() - DIAGNOSTICS_MAX));
    }
    if errors.is_empty() && result.refused.is_none() {
        parts.push("the tests could not be compiled".to_owned());
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// `error[E0308]: message (line 3: "let x: u8 = -1;")`
fn complaint(diagnostic: &Diagnostic, tests: &str) -> String {
    let code = diagnostic.code.as_deref().map_or(String::new(), |c| format!("[{c}]"));
    let place = diagnostic.span.map_or(String::new(), |span| {
        let line = tests.lines().nth(span.line_start.saturating_sub(1) as usize).unwrap_or("").trim();
        if line.is_empty() {
            format!(" (line {})", span.line_start)
        } else {
            format!(" (line {}: `{line}`)", span.line_start)
        }
    });
    format!("error{code}: {}{place}", diagnostic.message.trim())
}

/// A fence that the code can't close.
fn fenced(code: &str) -> String {
    let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}rust\n{code}\n{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::compile::{Isolation, Span};

    fn result(task: &str, sample_idx: u32, round: u32, type_checks: Option<bool>) -> CompileResult {
        CompileResult {
            completion_sha256: String::new(),
            task_id: task.into(),
            sample_idx,
            round,
            tests: "#[test]\nfn t() { f(); }".into(),
            refused: None,
            parses: type_checks.is_some(),
            type_checks,
            lint_clean: None,
            links: type_checks,
            diagnostics: vec![],
            fixes: vec![],
            facts: None,
            similarity: None,
        }
    }

    fn results(samples: Vec<CompileResult>) -> CompileResults {
        CompileResults {
            schema_version: 1,
            toolchain: String::new(),
            linter: None,
            isolation: Isolation { level: 0, layers: vec![] },
            samples,
        }
    }

    #[test]
    fn only_the_newest_round_s_failures_are_asked_for_again() {
        let found = repairs(&results(vec![
            result("a", 0, 0, Some(false)),
            result("a", 0, 1, Some(true)),
            result("a", 1, 1, Some(false)),
            result("a", 1, 0, Some(true)),
            result("b", 0, 0, None),
            result("c", 0, 0, Some(true)),
        ]));
        let short: Vec<(&str, u32, u32)> = found
            .iter()
            .flat_map(|(t, rs)| rs.iter().map(move |r| (t.as_str(), r.sample_idx, r.round)))
            .collect();
        assert_eq!(short, [("a", 1, 2), ("b", 0, 1)]);
    }

    #[test]
    fn the_text_quotes_the_tests_and_the_errors_with_their_line() {
        let mut failed = result("a", 0, 0, Some(false));
        let span = Some(Span { line_start: 2, column_start: 1, line_end: 2, column_end: 2 });
        let diagnostic = |level: &str, message: &str| Diagnostic {
            level: level.into(),
            code: Some("E0425".into()),
            message: message.into(),
            span,
        };
        failed.diagnostics = vec![diagnostic("warning", "unused"), diagnostic("error", "no `f`")];
        let wanted =
            "```rust\n#[test]\nfn t() { f(); }\n```\n\nerror[E0425]: no `f` (line 2: `fn t() { f(); }`)";
        assert_eq!(text(&failed), wanted);
        failed.diagnostics = vec![diagnostic("error", "e"); 20];
        assert!(text(&failed).ends_with("and 12 more errors"));
    }

    #[test]
    fn a_refused_sample_is_told_why() {
        let mut refused = result("a", 0, 0, None);
        refused.refused = Some("uses std::process".into());
        assert!(text(&refused).ends_with("refused: uses std::process"));
    }
}
