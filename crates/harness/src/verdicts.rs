//! What a test program sent over its pipe, and which verdicts follow from it. Pure.

use std::collections::BTreeMap;

use record::mutation::{TestOutcome, Verdict};
use sandbox::Status;
use serde::Deserialize;

/// One line of the runtime.
#[derive(Debug, Clone, Deserialize)]
struct Line {
    event: String,
    test: String,
    message: Option<String>,
    extra: Option<String>,
}

/// What one process reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) verdicts: BTreeMap<String, TestOutcome>,
    pub(crate) extra: BTreeMap<String, String>,
    /// Began and did not report.
    pub(crate) unfinished: Option<String>,
    /// Said that it was through with its list.
    pub(crate) done: bool,
}

impl Report {
    /// Reads the lines that carry the nonce; whatever else came through the pipe is ignored.
    pub(crate) fn read(bytes: &[u8], nonce: &str) -> Self {
        let mut report = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            let Some(json) = line.strip_prefix(nonce.as_bytes()).and_then(|rest| rest.strip_prefix(b" "))
            else {
                continue;
            };
            let Ok(line) = serde_json::from_slice::<Line>(json) else { continue };
            report.take(line);
        }
        report
    }

    /// Takes the name of a folder, which is another one each time, out of what the tests said.
    pub(crate) fn without_folder(&mut self, folder: &str) {
        for outcome in self.verdicts.values_mut() {
            if let Some(message) = outcome.message.as_mut().filter(|message| message.contains(folder)) {
                *message = message.replace(folder, ".");
            }
        }
    }

    fn take(&mut self, line: Line) {
        let verdict = match line.event.as_str() {
            "start" => {
                self.unfinished = Some(line.test);
                return;
            }
            "done" => {
                self.done = true;
                return;
            }
            "passed" => Verdict::Passed,
            "failed" => Verdict::Failed,
            "timeout" => Verdict::Timeout,
            "ignored" => Verdict::Ignored,
            _ => return,
        };
        self.unfinished = None;
        if let Some(extra) = line.extra {
            self.extra.insert(line.test.clone(), extra);
        }
        let outcome = TestOutcome { name: line.test.clone(), verdict, message: line.message };
        self.verdicts.insert(line.test, outcome);
    }
}

/// The verdict on a test whose process ended before it reported.
pub(crate) fn unreported(name: &str, status: Status) -> TestOutcome {
    let (verdict, how) = match status {
        Status::TimedOut => (Verdict::Timeout, "the process was stopped at its deadline".to_owned()),
        Status::Exit(code) => {
            (Verdict::Aborted, format!("the process ended with exit code {code} before the test did"))
        }
        Status::Signal(signal) => (Verdict::Aborted, format!("the process was ended by signal {signal}")),
    };
    TestOutcome { name: name.to_owned(), verdict, message: Some(how) }
}

/// The verdict on a test that was not begun because too many before it took for ever.
pub(crate) fn given_up(name: &str) -> TestOutcome {
    let message = Some("not run: other tests of the suite were stopped at their deadlines".to_owned());
    TestOutcome { name: name.to_owned(), verdict: Verdict::Aborted, message }
}

/// The verdict on tests that a macro makes: they are there, and nobody can say how they end.
pub(crate) fn not_run(name: &str) -> TestOutcome {
    let message = Some("tests made by a macro can't be run one by one".to_owned());
    TestOutcome { name: name.to_owned(), verdict: Verdict::Aborted, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_the_nonce_are_ignored() {
        let bytes = b"\nN1 {\"event\":\"start\",\"test\":\"a\"}\n{\"event\":\"passed\",\"test\":\"a\"}\n\
                      N2 {\"event\":\"passed\",\"test\":\"a\"}\ngarbage\xff";
        let report = Report::read(bytes, "N1");
        assert_eq!((report.verdicts.len(), report.unfinished.as_deref()), (0, Some("a")));
    }

    #[test]
    fn a_report_ends_what_was_begun() {
        let bytes = b"N {\"event\":\"start\",\"test\":\"a\"}\nN {\"event\":\"failed\",\"test\":\"a\",\"message\":\"m\",\
                      \"extra\":\"e\"}\nN {\"event\":\"done\",\"test\":\"\"}\n";
        let report = Report::read(bytes, "N");
        assert_eq!(report.verdicts["a"].verdict, Verdict::Failed);
        assert_eq!((report.extra["a"].as_str(), report.unfinished, report.done), ("e", None, true));
    }

    #[test]
    fn the_folder_of_a_run_is_not_part_of_what_a_test_said() {
        let bytes =
            b"N {\"event\":\"failed\",\"test\":\"a\",\"message\":\"at /tmp/job-1/row and /tmp/job-1\"}\n";
        let mut report = Report::read(bytes, "N");
        report.without_folder("/tmp/job-1");
        assert_eq!(report.verdicts["a"].message.as_deref(), Some("at ./row and ."));
    }
}
