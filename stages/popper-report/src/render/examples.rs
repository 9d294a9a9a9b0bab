//! Real generated tests, drawn by the seed: not the best, not the worst.

use std::borrow::Cow;

use record::report::CheckVerdict;
use scores::philox::Stream;

use super::text::clipped;
use crate::checks::Subject;
use crate::cohort::{Function, Split};

/// Purpose of the random stream; 0 is the bootstrap's.
const PURPOSE: u32 = 1;
/// Characters of an answer that are shown.
const SHOWN_MAX: usize = 8_000;
/// Of a message.
const MESSAGE_MAX: usize = 300;

pub(super) struct Example<'p> {
    pub(super) function: Function<'p>,
    /// The test code that was compiled, or the whole completion where no code was found in it.
    pub(super) shown: Cow<'p, str>,
    pub(super) is_raw: bool,
    pub(super) verdict: CheckVerdict,
    pub(super) outcome: String,
}

pub(super) fn choose<'p>(subject: &'p Subject<'p>, n: u32) -> Vec<Example<'p>> {
    let mut pool: Vec<Function<'p>> = subject.tuned.of(Split::Holdout);
    pool.extend(subject.tuned.of(Split::Stress));
    pool.retain(|f| f.compile.is_some());
    let mut stream = Stream::new(subject.seed, PURPOSE);
    let n = pool.len().min(n as usize);
    for i in 0..n {
        let left = u32::try_from(pool.len() - i).unwrap_or(u32::MAX);
        pool.swap(i, i + stream.below(left) as usize);
    }
    pool.truncate(n);
    pool.into_iter().map(example).collect()
}

fn example(function: Function<'_>) -> Example<'_> {
    let tests = function.compile.map_or("", |c| c.tests.as_str());
    let is_raw = tests.trim().is_empty();
    let raw = function.sample.map_or("", |s| s.completion.as_str());
    let (verdict, outcome) = outcome(&function);
    let shown = clipped(if is_raw { raw } else { tests }.trim_end(), SHOWN_MAX);
    Example { function, shown, is_raw, verdict, outcome }
}

fn outcome(function: &Function<'_>) -> (CheckVerdict, String) {
    let Some(compile) = function.compile else { return (CheckVerdict::NotTested, "no sample".to_owned()) };
    let bad = |text: String| (CheckVerdict::Falsified, text);
    let first_error = || {
        let error = compile.diagnostics.iter().find(|d| d.level == "error");
        error.map_or(String::new(), |d| {
            let code = d.code.as_ref().map_or(String::new(), |c| format!("{c}: "));
            let line = d.span.map_or(String::new(), |s| format!(" (line {})", s.line_start));
            format!(": {code}{}{line}", clipped(&d.message, MESSAGE_MAX))
        })
    };
    if let Some(reason) = &compile.refused {
        return bad(format!("refused: {}", clipped(reason, MESSAGE_MAX)));
    }
    if !compile.parses {
        return bad(format!("does not parse{}", first_error()));
    }
    if compile.type_checks != Some(true) {
        return bad(format!("does not type-check{}", first_error()));
    }
    if compile.links != Some(true) {
        return bad(format!("does not link{}", first_error()));
    }
    let Some(run) = function.run else { return (CheckVerdict::NotTested, "was not run".to_owned()) };
    if !run.passed {
        let passed = run.tests.iter().filter(|t| t.verdict == record::mutation::Verdict::Passed).count();
        return bad(format!("{passed} of {} tests pass", run.tests.len()));
    }
    let mutants = function.mutants();
    let kills = if mutants.denominator > 0.0 {
        format!(", kills {} of {} mutants", mutants.numerator, mutants.denominator)
    } else {
        ", no mutant to kill".to_owned()
    };
    (CheckVerdict::Corroborated, format!("all {} tests pass{kills}", run.tests.len()))
}
