//! Experiments whose outcome is known beforehand. A harness that gets them wrong measures nothing.

use mutants::score::{Prepared, ScoreError, ScoreOptions, SuiteScore, planted_bug_is_found, score_suite};
use record::corpus::CorpusRow;
use record::mutation::{Control, Controls};
use subject::FocalFn;

use crate::work::Work;

/// What came of the controls on one row; `None`: no case could be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RowControls {
    pub planted_bug: Option<bool>,
    pub vacuous_test: Option<bool>,
    pub shuffled_pairing: Option<bool>,
    pub n_suites: u32,
    pub n_processes: u32,
}

const VACUOUS: &str = "#[test]\nfn vacuous() {\n    assert!(true);\n}\n";

/// The next row with a function of another name and tests of its own. A row that knows that name would understand the
/// tests: they might well be about its function, too.
pub(crate) fn stranger<'r>(rows: &[&'r CorpusRow], own: usize) -> Option<&'r CorpusRow> {
    let name = |row: &CorpusRow| FocalFn::of(row).map(|focal| focal.name).ok();
    let own_name = name(rows[own]);
    let knows = |name: &str| {
        let texts = rows[own].context.items.iter().chain([&rows[own].function_code]);
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        texts.flat_map(|text| text.split(|c| !is_word(c))).any(|word| word == name)
    };
    let is_strange = |other: Option<String>| other != own_name && !other.is_some_and(|name| knows(&name));
    let after = rows.iter().cycle().skip(own + 1).take(rows.len().saturating_sub(1));
    after.copied().find(|row| !row.unit_tests.trim().is_empty() && is_strange(name(row)))
}

pub(crate) fn run(
    work: &Work<'_>,
    prepared: &Prepared,
    own: &SuiteScore,
    stranger: Option<&CorpusRow>,
) -> Result<RowControls, ScoreError> {
    let mut controls =
        RowControls { planted_bug: reference_fails(work, prepared, own), ..Default::default() };
    if own.passed && controls.planted_bug.is_none() {
        controls.planted_bug = planted_bug_is_found(work.harness, prepared, None, own, work.options)?;
        controls.n_suites += u32::from(controls.planted_bug.is_some());
        controls.n_processes += u32::from(controls.planted_bug.is_some());
    }
    let once = ScoreOptions { runs: 1, ..work.options.clone() };
    let mut score = |tests: &str| -> Result<SuiteScore, ScoreError> {
        let score = score_suite(work.harness, prepared, Some(tests), &once)?;
        controls.n_suites += 1;
        controls.n_processes += score.n_processes;
        Ok(score)
    };
    let vacuous = score(VACUOUS)?;
    // It must run and pass, or killing nothing would prove nothing.
    let vacuous = vacuous.passed && vacuous.killed().is_empty();
    let shuffled = match stranger {
        Some(row) => {
            let foreign = score(&row.unit_tests)?;
            Some(!foreign.passed || foreign.killed().is_empty())
        }
        None => None,
    };
    controls.vacuous_test = Some(vacuous);
    controls.shuffled_pairing = shuffled;
    Ok(controls)
}

/// `Some(false)`: the row's own tests do not pass on its function, or kill no mutant although the corpus says that they do.
/// Where those fail nothing can be said of others.
fn reference_fails(work: &Work<'_>, prepared: &Prepared, own: &SuiteScore) -> Option<bool> {
    let has_tests = !own.compiled || !own.tests.is_empty();
    let runs_all = work.options.limit == 0 && prepared.viable().next().is_some();
    let is_known_to_kill = prepared.instrumented.row().metadata.mutants_killed > 0;
    let is_blind = own.passed && runs_all && is_known_to_kill && own.killed().is_empty();
    (has_tests && !own.passed || is_blind).then_some(false)
}

pub(crate) fn sum<'c>(rows: impl Iterator<Item = &'c RowControls>) -> Controls {
    let rows: Vec<&RowControls> = rows.collect();
    let control = |expected: &str, of: fn(&RowControls) -> Option<bool>| {
        let cases: Vec<bool> = rows.iter().copied().filter_map(of).collect();
        let as_expected = cases.iter().filter(|good| **good).count();
        Control {
            expected: expected.to_owned(),
            as_expected: u32::try_from(as_expected).unwrap_or(u32::MAX),
            cases: u32::try_from(cases.len()).unwrap_or(u32::MAX),
            holds: (!cases.is_empty()).then_some(as_expected == cases.len()),
        }
    };
    Controls {
        planted_bug: control(
            "the function's own tests pass on it, kill, and fail where such a mutant is written into its source",
            |row| row.planted_bug,
        ),
        vacuous_test: control("`assert!(true)` passes and kills nothing", |row| row.vacuous_test),
        shuffled_pairing: control(
            "the tests of another function do not compile here, do not pass, or kill nothing",
            |row| row.shuffled_pairing,
        ),
    }
}

#[cfg(test)]
mod test {
    use super::{RowControls, sum};

    #[test]
    fn a_control_without_a_case_says_so_and_one_failure_breaks_it() {
        let good =
            RowControls { vacuous_test: Some(true), planted_bug: Some(true), ..RowControls::default() };
        let bad = RowControls { vacuous_test: Some(false), ..RowControls::default() };
        let all = sum([&good, &bad].into_iter());
        assert_eq!(all.planted_bug.holds, Some(true));
        assert_eq!(
            (all.vacuous_test.as_expected, all.vacuous_test.cases, all.vacuous_test.holds),
            (1, 2, Some(false))
        );
        assert_eq!(all.shuffled_pairing.holds, None);
    }
}
