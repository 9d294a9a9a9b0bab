//! d1 to d3: could a person read the tests?

use record::compile::TestFacts;
use record::report::Measured;
use scores::interval::{Z95, wilson};

use super::{Finding, Subject};
use crate::cohort::Function;

pub(super) fn names(subject: &Subject<'_>) -> Finding {
    let names = collect(subject, |facts| &facts.test_names);
    if names.is_empty() {
        return Finding::not_tested("no sample that parses holds a test").with(evidence(subject));
    }
    let good = names.iter().filter(|name| is_descriptive(name)).count();
    let numbered = names.iter().find(|name| is_numbered(name));
    let tail = numbered.map_or(String::new(), |name| format!("; `{name}` says nothing"));
    let detail = format!("{good} of {} test names have at least two words{tail}", names.len());
    let measured = share(good, names.len(), "%");
    Finding::new(measured.value >= 90.0 && numbered.is_none(), Some(measured), detail).with(evidence(subject))
}

pub(super) fn comments(subject: &Subject<'_>) -> Finding {
    let holdout = subject.tuned.holdout();
    let facts: Vec<&TestFacts> = holdout.iter().filter_map(Function::facts_of_tests).collect();
    if facts.is_empty() {
        return Finding::not_tested("no sample that parses holds a test").with(evidence(subject));
    }
    let k = facts.iter().filter(|f| f.has_comment).count();
    let detail = format!("{k} of {} samples that parse and hold a test have a comment", facts.len());
    Finding::at_least(Some(share(k, facts.len(), "%")), 50.0, detail).with(evidence(subject))
}

pub(super) fn strategies(subject: &Subject<'_>) -> Finding {
    let names = collect(subject, |facts| &facts.strategy_names);
    if names.is_empty() {
        return Finding::not_tested("no property test was generated").with(evidence(subject));
    }
    let k = names.iter().filter(|name| name.trim_start_matches('_').chars().count() > 1).count();
    let detail = format!("{k} of {} variables of property tests", names.len());
    Finding::at_least(Some(share(k, names.len(), "%")), 80.0, detail).with(evidence(subject))
}

fn evidence<'i>(subject: &Subject<'i>) -> [&'i record::report::Evidence; 1] {
    [&subject.inputs.tuned.compile.evidence]
}

fn collect<'i>(subject: &Subject<'i>, of: impl Fn(&'i TestFacts) -> &'i Vec<String>) -> Vec<&'i str> {
    let holdout = subject.tuned.holdout();
    holdout.iter().filter_map(Function::facts).flat_map(|f| of(f).iter().map(String::as_str)).collect()
}

fn share(k: usize, n: usize, unit: &str) -> Measured {
    let interval = wilson(k as u64, n as u64, Z95).map(|i| [i.low * 100.0, i.high * 100.0]);
    Measured {
        value: k as f64 / n as f64 * 100.0,
        unit: unit.to_owned(),
        interval95: interval,
        n: Some(n as u64),
    }
}

/// Words of a test's name, without a leading `test` and without numbers.
fn words(name: &str) -> Vec<&str> {
    let is_word = |w: &&str| w.chars().any(char::is_alphabetic);
    let words: Vec<&str> = name.split('_').filter(is_word).collect();
    if words.first().is_some_and(|w| w.trim_end_matches(|c: char| c.is_ascii_digit()) == "test") {
        words[1..].to_vec()
    } else {
        words
    }
}

fn is_descriptive(name: &str) -> bool {
    words(name).len() >= 2
}

/// `test`, `test1`, `test_2`.
fn is_numbered(name: &str) -> bool {
    words(name).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_by_their_words() {
        for good in ["test_empty_input", "returns_none", "test_add_2_numbers"] {
            assert!(is_descriptive(good), "{good}");
        }
        for bad in ["test_add", "add", "test", "test_1", "test1", "it", "test_add_1"] {
            assert!(!is_descriptive(bad), "{bad}");
        }
        assert!(is_numbered("test1") && is_numbered("test_02") && is_numbered("test"));
        assert!(!is_numbered("test_add") && !is_numbered("adds"));
    }
}
