//! The report's pages: HTML, Markdown, the reflection, linked data. Pure: from facts to text.

mod charts;
mod examples;
mod findings;
mod html;
mod jsonld;
mod markdown;
mod sections;
mod text;

use record::report::{Check, Report};

pub(crate) use jsonld::document as jsonld;

use crate::Params;
use crate::checks::Subject;
use crate::cohort::Cohort;
use crate::verdict;
use examples::Example;
use findings::Findings;

/// What all pages say.
pub(crate) struct Page<'p> {
    params: &'p Params,
    subject: &'p Subject<'p>,
    report: &'p Report,
    drops: Option<&'p [String]>,
    pub(crate) sentence: String,
    findings: Findings,
    base: Option<Cohort<'p>>,
    examples: Vec<Example<'p>>,
}

impl<'p> Page<'p> {
    pub(crate) fn new(
        params: &'p Params,
        subject: &'p Subject<'p>,
        report: &'p Report,
        drops: Option<&'p [String]>,
    ) -> Self {
        Self {
            params,
            subject,
            report,
            drops,
            sentence: verdict::sentence(subject, report),
            findings: Findings::of(&subject.tuned),
            base: subject.inputs.base.as_ref().map(|base| Cohort::new(&subject.inputs.corpus, base)),
            examples: examples::choose(subject, params.n_examples),
        }
    }

    /// Checks of the group with that letter.
    fn group(&self, letter: char) -> impl Iterator<Item = &'p Check> {
        self.report.checks.iter().filter(move |c| c.id.starts_with(letter))
    }
}
