//! What went wrong, counted: where samples are lost on the way, and to which errors.

use std::collections::BTreeMap;

use record::mutation::Verdict;

use super::text::clipped;
use crate::cohort::{Cohort, Function};

#[derive(Debug)]
pub(super) struct Findings {
    /// Holdout functions left after each step that counts.
    pub(super) funnel: Vec<(&'static str, usize)>,
    pub(super) total: usize,
    /// Error code (or `syntax`, `refused`) with its number of samples and one message, most frequent first.
    pub(super) errors: Vec<(String, usize, String)>,
    /// Verdicts of tests that did not pass, most frequent first.
    pub(super) verdicts: Vec<(&'static str, usize)>,
}

const ERRORS_MAX: usize = 8;
/// Characters of a compiler's message that are shown; it may quote a whole line of generated code.
const MESSAGE_MAX: usize = 300;

impl Findings {
    pub(super) fn of(cohort: &Cohort<'_>) -> Self {
        let holdout = cohort.holdout();
        let count = |of: &dyn Fn(&Function<'_>) -> bool| holdout.iter().filter(|f| of(f)).count();
        let mut funnel = vec![
            ("a sample exists", count(&|f| f.compile.is_some())),
            ("it parses", count(&|f| f.parses())),
            ("it type-checks", count(&|f| f.type_checks())),
            ("it links", count(&|f| f.links())),
        ];
        if cohort.counts_runs {
            funnel.push(("its tests pass", count(&|f| f.passes())));
            funnel.push(("they kill a mutant", count(&|f| f.mutants().numerator > 0.0)));
        }
        Self { funnel, total: holdout.len(), errors: errors(&holdout), verdicts: verdicts(&holdout) }
    }
}

fn errors(holdout: &[Function<'_>]) -> Vec<(String, usize, String)> {
    let mut found: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for compile in holdout.iter().filter_map(|f| f.compile) {
        let mut of_sample: BTreeMap<String, String> = BTreeMap::new();
        if let Some(reason) = &compile.refused {
            of_sample.insert("refused".to_owned(), reason.clone());
        }
        for diagnostic in compile.diagnostics.iter().filter(|d| d.level == "error") {
            let code = diagnostic.code.clone().unwrap_or_else(|| "no code".to_owned());
            of_sample.entry(code).or_insert_with(|| diagnostic.message.clone());
        }
        for (code, message) in of_sample {
            found.entry(code).or_insert((0, message)).0 += 1;
        }
    }
    let shown = |message: &str| clipped(message, MESSAGE_MAX).into_owned();
    let mut list: Vec<_> = found.into_iter().map(|(code, (n, message))| (code, n, shown(&message))).collect();
    list.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    list.truncate(ERRORS_MAX);
    list
}

fn verdicts(holdout: &[Function<'_>]) -> Vec<(&'static str, usize)> {
    let mut found: BTreeMap<&'static str, usize> = BTreeMap::new();
    for test in holdout.iter().filter_map(|f| f.run).flat_map(|run| &run.tests) {
        if test.verdict != Verdict::Passed {
            *found.entry(verdict_word(test.verdict)).or_default() += 1;
        }
    }
    let mut list: Vec<_> = found.into_iter().collect();
    list.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    list
}

pub(super) fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::Timeout => "ran out of time",
        Verdict::Aborted => "aborted",
        Verdict::Ignored => "ignored",
        Verdict::Flaky => "flaky",
    }
}
