//! Everything that is said about one sample.

use harness::{Compilation, CrateKind, Harness, HarnessError};
use record::compile::{CompileResult, Diagnostic, FixAttempt, Similarity, Span, TestFacts};
use record::corpus::CorpusRow;
use record::generation::Sample;
use scores::tokens::Tokenizer;
use stage_kit::digest::sha256_hex;
use subject::{FocalFn, assemble, facts};

use crate::places::{Part, plain_error};
use crate::policy;

/// A mended text may show the next mistake; more rounds than this are not a repair any more.
const FIX_ROUNDS: usize = 3;

/// What compiling said about one text, apart from whose sample it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judged {
    tests: String,
    refused: Option<String>,
    parses: bool,
    type_checks: Option<bool>,
    lint_clean: Option<bool>,
    links: Option<bool>,
    diagnostics: Vec<Diagnostic>,
    fixes: Vec<FixAttempt>,
    facts: Option<TestFacts>,
    similarity: Option<Similarity>,
}

impl Judged {
    pub(crate) fn result(&self, sample: &Sample) -> CompileResult {
        let judged = self.clone();
        CompileResult {
            task_id: sample.task_id.clone(),
            sample_idx: sample.sample_idx,
            round: sample.round,
            completion_sha256: sha256_hex(&sample.completion),
            tests: judged.tests,
            refused: judged.refused,
            parses: judged.parses,
            type_checks: judged.type_checks,
            lint_clean: judged.lint_clean,
            links: judged.links,
            diagnostics: judged.diagnostics,
            fixes: judged.fixes,
            facts: judged.facts,
            similarity: judged.similarity,
        }
    }
}

/// Judges `tests` as tests of `row`.
///
/// # Errors
/// When the compiler can't be run.
pub(crate) fn judge(
    harness: &Harness,
    row: &CorpusRow,
    focal: &FocalFn,
    tests: &str,
    with_fixes: bool,
) -> Result<Judged, HarnessError> {
    // Deeper text than the parser's stack bears is never shown to it.
    let too_deep = subject::depth::too_deep(tests);
    let mut judged = Judged {
        tests: tests.to_owned(),
        refused: if too_deep.is_some() { None } else { policy::refusal(tests) },
        parses: true,
        type_checks: None,
        lint_clean: None,
        links: None,
        diagnostics: Vec::new(),
        fixes: Vec::new(),
        facts: None,
        similarity: if too_deep.is_some() { None } else { similarity(row, tests) },
    };
    if let Some((_, why)) = too_deep {
        judged.parses = false;
        judged.diagnostics.push(plain_error("syntax", why));
        return Ok(judged);
    }
    if let Err(error) = syn::parse_file(tests) {
        judged.parses = false;
        judged.diagnostics.push(syntax_error(&error));
        return Ok(judged);
    }
    judged.facts = facts::facts(tests, focal).ok();
    if judged.refused.is_some() {
        return Ok(judged);
    }
    if judged.facts.as_ref().is_some_and(|facts| facts.test_names.is_empty()) {
        // Text without a test compiles too; it must not count as a test that does.
        judged.type_checks = Some(false);
        judged.diagnostics.push(plain_error("no_test", "the completion holds no test"));
        return Ok(judged);
    }
    compile(harness, row, &mut judged, with_fixes)?;
    Ok(judged)
}

fn compile(
    harness: &Harness,
    row: &CorpusRow,
    judged: &mut Judged,
    with_fixes: bool,
) -> Result<(), HarnessError> {
    let placed = assemble(row, Some(&judged.tests));
    let part = Part::of(&placed, &judged.tests);
    let checked = harness.check(&placed.source, CrateKind::Test)?;
    judged.type_checks = Some(checked.success);
    judged.diagnostics = part.diagnostics(&checked);
    if !checked.success {
        if with_fixes {
            judged.fixes = fix(harness, row, &judged.tests, part, checked)?;
        }
        return Ok(());
    }
    if let Some(linted) = harness.lint(&placed.source, CrateKind::Test)? {
        judged.lint_clean = Some(part.is_clean(&linted));
        judged.diagnostics = part.diagnostics(&linted);
    }
    let linked = harness.link(&placed.source)?;
    judged.links = Some(linked.success);
    if !linked.success {
        let errors = part.diagnostics(&linked).into_iter().filter(|d| d.level == "error");
        judged.diagnostics.extend(errors);
    }
    Ok(())
}

fn fix(
    harness: &Harness,
    row: &CorpusRow,
    tests: &str,
    part: Part,
    checked: Compilation,
) -> Result<Vec<FixAttempt>, HarnessError> {
    let mut attempts = Vec::new();
    let (mut part, mut checked, mut tests) = (part, checked, tests.to_owned());
    while attempts.len() < FIX_ROUNDS && !checked.success {
        let Some((message, mended)) = part.fixed(&checked, &tests).filter(|(_, mended)| *mended != tests)
        else {
            break;
        };
        let placed = assemble(row, Some(&mended));
        part = Part::of(&placed, &mended);
        checked = harness.check(&placed.source, CrateKind::Test)?;
        tests = mended;
        attempts.push(FixAttempt { message, tests: tests.clone(), type_checks: checked.success });
    }
    Ok(attempts)
}

fn syntax_error(error: &syn::Error) -> Diagnostic {
    let (start, end) = (error.span().start(), error.span().end());
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Diagnostic {
        level: "error".to_owned(),
        code: Some("syntax".to_owned()),
        message: error.to_string(),
        span: Some(Span {
            line_start: number(start.line),
            column_start: number(start.column + 1),
            line_end: number(end.line),
            column_end: number(end.column + 1),
        }),
    }
}

fn similarity(row: &CorpusRow, tests: &str) -> Option<Similarity> {
    let reference = reference(row);
    if reference.is_empty() {
        return None;
    }
    Some(Similarity {
        bleu4: scores::bleu::sentence_bleu(tests, &reference, Tokenizer::Rust),
        codebleu_compat: scores::codebleu::compat(tests, &reference).score,
        codebleu: scores::codebleu::strict(tests, &reference).score,
    })
}

/// The row's own tests as a model is taught to write them: property tests in a module of their own.
fn reference(row: &CorpusRow) -> String {
    let unit = row.unit_tests.trim();
    let property = row.property_tests.as_deref().map(str::trim).filter(|property| !property.is_empty());
    let property = property.map(|property| {
        format!("mod property_tests {{\n    use super::*;\n    use proptest::prelude::*;\n\n{property}\n}}")
    });
    [Some(unit.to_owned()), property]
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("\n\n")
}
