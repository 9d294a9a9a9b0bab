//! Tries candidates until a split is full.

use record::corpus::{CorpusRow, Funnel, SourceClass};
use stage_kit::{Context, Result, StageError};

use crate::Params;
use crate::candidates::Candidate;
use crate::trial::{Court, Outcome};

/// Rows tried between two looks at whether the split is full; fixed, so that the counts do not depend on the machine.
const WAVE: usize = 32;
/// How far the share of rows with property tests may lie from the share asked for.
const SHARE_TOLERANCE: f64 = 0.02;

/// Fills splits with rows that were tried.
#[derive(Debug, Clone, Copy)]
pub struct Filler<'a> {
    pub court: &'a Court,
    pub params: &'a Params,
    pub context: &'a Context,
}

impl Filler<'_> {
    fn threads(&self) -> usize {
        match self.params.jobs {
            0 => self.context.resources().cpus.max(1) as usize,
            jobs => jobs,
        }
    }

    fn judge(&self, rows: &[Candidate], laws: bool) -> Result<Vec<Outcome>> {
        let outcomes = harness::parallel_map(self.threads(), rows, |_, candidate| {
            self.context.check_cancelled()?;
            match (self.court.judge(candidate.row.clone(), laws)?, &candidate.fuller) {
                (Outcome::Dropped { reason: "does_not_compile", .. }, Some(fuller)) => {
                    self.court.judge(fuller.clone(), laws)
                }
                (outcome, _) => Ok(outcome),
            }
        });
        outcomes.into_iter().collect()
    }

    /// Hand-written rows must all hold: one that does not is a fault to be mended.
    ///
    /// # Errors
    /// Names every row that does not hold and why.
    pub fn all(&self, collection: &str, rows: Vec<CorpusRow>) -> Result<Vec<CorpusRow>> {
        let ids: Vec<String> = rows.iter().map(|r| r.id.clone()).collect();
        let rows: Vec<Candidate> = rows.into_iter().map(|row| Candidate { row, fuller: None }).collect();
        let mut kept = Vec::new();
        let mut faults = Vec::new();
        for (outcome, id) in self.judge(&rows, false)?.into_iter().zip(ids) {
            match outcome {
                Outcome::Kept(row) => kept.push(*row),
                Outcome::Dropped { reason, detail } => faults.push(format!("{id}: {reason} {detail}")),
            }
        }
        if faults.is_empty() {
            return Ok(kept);
        }
        Err(StageError::failed(format!("hand-written rows do not hold: {}", faults.join("; ")))
            .at(format!("input {collection}"))
            .next("mend these rows: each must compile alone, pass, and kill a mutant of its function"))
    }

    /// Takes rows that hold, in order, after those in `before`, until there are `wanted`.
    ///
    /// # Errors
    /// The compiler or the sandbox can't be used, or the stage was interrupted.
    pub fn fill(
        &self,
        split: &str,
        before: Vec<CorpusRow>,
        candidates: Vec<Candidate>,
        wanted: u64,
        funnel: &mut Funnel,
    ) -> Result<Vec<CorpusRow>> {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let mut kept = before;
        kept.truncate(wanted);
        let most = candidates.len().saturating_add(kept.len()).min(wanted);
        let progress = self.context.progress(&format!("{split} rows"), Some(most as u64));
        let mut waves = candidates.chunks(WAVE);
        while kept.len() < wanted
            && let Some(wave) = waves.next()
        {
            for (outcome, tried) in self.judge(wave, true)?.into_iter().zip(wave) {
                match outcome {
                    Outcome::Kept(row) if kept.len() < wanted => kept.push(*row),
                    Outcome::Kept(_) => *funnel.dropped.entry("split_is_full".to_owned()).or_default() += 1,
                    Outcome::Dropped { reason, detail } => {
                        *funnel.dropped.entry(reason.to_owned()).or_default() += 1;
                        self.context.event(note(&tried.row.id, reason, &detail));
                    }
                }
            }
            progress.set(kept.len() as u64);
        }
        let untried: usize = waves.map(<[_]>::len).sum();
        if untried > 0 {
            *funnel.dropped.entry("split_is_full".to_owned()).or_default() += untried as u64;
        }
        thin_properties(&mut kept, self.params.property_share);
        Ok(kept)
    }
}

fn note(id: &str, reason: &str, detail: &str) -> record::event::EventKind {
    let fields = [("row", id), ("reason", reason), ("detail", detail)];
    let fields = fields.map(|(k, v)| (k.to_owned(), serde_json::Value::from(v))).into_iter().collect();
    record::event::EventKind::Note { name: "dropped".to_owned(), fields }
}

/// Takes synthesized property tests off the last rows until the share asked for is reached.
fn thin_properties(rows: &mut [CorpusRow], share: f64) {
    let target = (share * rows.len() as f64).round() as usize;
    let mut with = rows.iter().filter(|r| r.property_tests.is_some()).count();
    for row in rows.iter_mut().rev() {
        if with <= target {
            return;
        }
        if row.metadata.property_class == Some(SourceClass::Synthesized) {
            row.property_tests = None;
            row.metadata.property_class = None;
            with -= 1;
        }
    }
}

/// What a split lacks of what was asked for, in words.
pub fn shortfalls(split: &str, rows: &[CorpusRow], wanted: u64, share: f64) -> Vec<String> {
    let mut found = Vec::new();
    if (rows.len() as u64) < wanted {
        found.push(format!(
            "{split}: {} of the {wanted} rows asked for could be had from these sources",
            rows.len()
        ));
    }
    let with = rows.iter().filter(|r| r.property_tests.is_some()).count();
    let reached = with as f64 / rows.len().max(1) as f64;
    if !rows.is_empty() && (reached - share).abs() > SHARE_TOLERANCE {
        found.push(format!(
            "{split}: {:.1} % of the rows have property tests, {:.1} % are asked for",
            reached * 100.0,
            share * 100.0
        ));
    }
    let human = rows.iter().filter(|r| {
        r.property_tests.is_some() && r.metadata.property_class != Some(SourceClass::Synthesized)
    });
    let human = human.count();
    if with > human {
        found.push(format!(
            "{split}: of {with} rows with property tests, {} have tests synthesized from the signature (oracle: the function itself)",
            with - human
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::row;

    fn with_property(id: &str, class: SourceClass) -> CorpusRow {
        let mut row = row(id, "fn f() {}", "");
        row.property_tests = Some("proptest! {}".to_owned());
        row.metadata.property_class = Some(class);
        row
    }

    #[test]
    fn only_synthesized_properties_are_thinned() {
        let mut rows = vec![
            with_property("a", SourceClass::Property),
            with_property("b", SourceClass::Synthesized),
            with_property("c", SourceClass::Synthesized),
            row("d", "fn g() {}", ""),
        ];
        thin_properties(&mut rows, 0.5);
        let with: Vec<&str> =
            rows.iter().filter(|r| r.property_tests.is_some()).map(|r| r.id.as_str()).collect();
        assert_eq!(with, ["a", "b"]);
        thin_properties(&mut rows, 0.0);
        assert!(rows[0].property_tests.is_some() && rows[1].property_tests.is_none());
    }

    #[test]
    fn what_is_missing_is_said() {
        let rows = vec![with_property("b", SourceClass::Synthesized), row("d", "fn g() {}", "")];
        let found = shortfalls("train", &rows, 3, 0.6);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].contains("2 of the 3")
                && found[1].contains("50.0 %")
                && found[2].contains("synthesized")
        );
        assert!(shortfalls("train", &[], 0, 0.6).is_empty());
    }
}
