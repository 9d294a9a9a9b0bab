//! Tries candidates until a split is full, and holds the share of rows with property tests in it.

use std::collections::VecDeque;

use record::corpus::{CorpusRow, Funnel, SourceClass};
use stage_kit::{Context, Progress, Result, StageError};

use crate::candidates::Candidate;
use crate::similarity::Print;
use crate::trial::{Court, Outcome};
use crate::{Params, properties, split};

/// Most and fewest rows tried between two looks at whether the split is full; never a matter of the machine, so that the
/// counts do not depend on it.
const WAVE: (usize, usize) = (4, 32);
/// How far the share of rows with property tests may lie from the share asked for.
const SHARE_TOLERANCE: f64 = 0.02;

/// Fills splits with rows that were tried.
#[derive(Debug, Clone, Copy)]
pub struct Filler<'a> {
    pub court: &'a Court,
    pub params: &'a Params,
    pub context: &'a Context,
}

impl<'a> Filler<'a> {
    fn progress(&self, split: &str, kind: &str, most: usize) -> Progress<'a> {
        self.context.progress(&format!("{split} rows {kind}"), Some(most as u64))
    }

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

    /// Begins a split. The rows in `before` come first in it whatever comes.
    pub fn begin(&self, split: &'static str, mut before: Vec<CorpusRow>, wanted: u64) -> Filling<'a> {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        before.truncate(wanted);
        let (mut with, without): (Vec<_>, Vec<_>) = before.into_iter().partition(has_properties);
        let most = best_mix(wanted, wanted, wanted, self.params.property_share).with;
        let surplus = with.split_off(with.len().min(most));
        Filling { filler: *self, split, wanted, with, without, surplus, waiting: Vec::new(), left_out: 0 }
    }

    /// Whether property tests can be compiled at all.
    pub fn has_proptest(&self) -> bool {
        self.court.harness.libraries().externs.contains_key("proptest")
    }

    /// Whether the row has property tests, or laws that could become some; the smaller, the likelier.
    fn promise(&self, row: &CorpusRow) -> Option<u8> {
        if !self.has_proptest() {
            return None;
        }
        if has_properties(row) {
            return Some(0);
        }
        let laws = properties::laws(row);
        let n_signature =
            laws.iter().filter(|law| !law.is_a_guess && law.key != properties::NO_PANIC).count();
        match laws.len() {
            0 => None,
            _ if n_signature >= properties::ENOUGH => Some(0),
            n if n > n_signature && laws.iter().any(|law| law.key != properties::NO_PANIC) => Some(1),
            _ => Some(2),
        }
    }

    /// Candidates that may come to have property tests.
    pub fn promising(&self, rows: &[(Candidate, Print)]) -> usize {
        rows.iter().filter(|(candidate, _)| self.promise(&candidate.row).is_some()).count()
    }
}

/// A split that is being filled: rows with property tests first, as many as the share asks for, then rows without.
#[derive(Debug)]
pub struct Filling<'a> {
    filler: Filler<'a>,
    split: &'static str,
    wanted: usize,
    with: Vec<CorpusRow>,
    without: Vec<CorpusRow>,
    /// Rows with property tests beyond the share. Without these tests they can still be rows.
    surplus: Vec<CorpusRow>,
    /// Candidates that were not tried.
    waiting: Vec<Candidate>,
    /// Rows that hold and have no place because the share would not.
    left_out: u64,
}

impl Filling<'_> {
    /// Rows with property tests that are missing.
    pub fn missing_with(&self) -> usize {
        let share = self.filler.params.property_share;
        let asked = best_mix(self.wanted, self.wanted, self.wanted, share).with;
        if self.filler.has_proptest() { asked.saturating_sub(self.with.len()) } else { 0 }
    }

    /// Rows without property tests that are missing beside as many rows with them as there are.
    pub fn missing_without(&self) -> usize {
        let with = self.with.len() + self.surplus.len();
        let mix = best_mix(with, self.wanted, self.wanted, self.filler.params.property_share);
        let asked = if with == 0 { self.wanted } else { mix.without };
        asked.saturating_sub(self.without.len())
    }

    /// Tries those candidates that may come to have property tests, the likeliest first, until there are enough of them; the
    /// others wait.
    ///
    /// # Errors
    /// The compiler or the sandbox can't be used, or the stage was interrupted.
    pub fn seek(&mut self, candidates: Vec<Candidate>, funnel: &mut Funnel) -> Result<()> {
        let mut tiers: [Vec<Candidate>; 3] = Default::default();
        for candidate in candidates {
            match self.filler.promise(&candidate.row) {
                Some(tier) => tiers[usize::from(tier)].push(candidate),
                None => self.waiting.push(candidate),
            }
        }
        let mut candidates: VecDeque<Candidate> = tiers.into_iter().flatten().collect();
        let filler = self.filler;
        let progress =
            filler.progress(self.split, "with property tests", self.with.len() + self.missing_with());
        while self.missing_with() > 0 && !candidates.is_empty() {
            let wave = wave(&mut candidates, self.missing_with());
            self.try_wave(&wave, true, funnel)?;
            progress.set(self.with.len() as u64);
        }
        self.waiting.extend(candidates);
        Ok(())
    }

    /// Tries what is left, without property tests, until the split is full.
    ///
    /// # Errors
    /// As [`Filling::seek`].
    pub fn seek_others(&mut self, funnel: &mut Funnel) -> Result<()> {
        let missing = self.missing_without().min(self.surplus.len());
        if self.missing_with() == 0 && missing > 0 {
            let beyond = self.surplus.drain(..missing).map(|row| Candidate { row, fuller: None });
            let beyond: Vec<Candidate> = beyond.collect();
            self.try_wave(&beyond, false, funnel)?;
        }
        let mut candidates: VecDeque<Candidate> = std::mem::take(&mut self.waiting).into();
        let filler = self.filler;
        let progress = filler.progress(self.split, "without", self.without.len() + self.missing_without());
        while self.missing_without() > 0 && !candidates.is_empty() {
            let wave = wave(&mut candidates, self.missing_without());
            self.try_wave(&wave, false, funnel)?;
            progress.set(self.without.len() as u64);
        }
        self.waiting.extend(candidates);
        Ok(())
    }

    fn try_wave(&mut self, wave: &[Candidate], laws: bool, funnel: &mut Funnel) -> Result<()> {
        let plain: Vec<Candidate> = if laws { wave.to_vec() } else { wave.iter().map(bare).collect() };
        for (outcome, tried) in self.filler.judge(&plain, laws)?.into_iter().zip(wave) {
            match outcome {
                Outcome::Kept(row) if has_properties(&row) && self.missing_with() > 0 => self.with.push(*row),
                Outcome::Kept(row) if has_properties(&row) => self.surplus.push(*row),
                Outcome::Kept(row) => self.without.push(*row),
                Outcome::Dropped { reason, detail } => {
                    *funnel.dropped.entry(reason.to_owned()).or_default() += 1;
                    self.filler.context.event(note(&tried.row.id, reason, &detail));
                }
            }
        }
        Ok(())
    }

    /// The rows of the split in an order drawn from the seed, curated ones first, and what it lacks of what was
    /// asked for, in words.
    pub fn finish(mut self, funnel: &mut Funnel) -> (Vec<CorpusRow>, Vec<String>) {
        let share = self.filler.params.property_share;
        self.with.append(&mut self.surplus);
        let found = self.with.len() + self.without.len();
        if !self.with.is_empty() {
            let mix = best_mix(self.with.len(), self.without.len(), self.wanted, share);
            self.with.truncate(mix.with);
            self.without.truncate(mix.without);
        }
        self.without.truncate(self.wanted);
        let mut rows = self.with;
        rows.append(&mut self.without);
        self.left_out += (found.min(self.wanted) - rows.len().min(found)) as u64;
        let mut dropped = |reason: &str, n: usize| {
            if n > 0 {
                *funnel.dropped.entry(reason.to_owned()).or_default() += n as u64;
            }
        };
        dropped(
            "split_is_full",
            self.waiting.len() + found.saturating_sub(rows.len()) - self.left_out as usize,
        );
        dropped("share_is_full", self.left_out as usize);
        let seed = self.filler.context.seed();
        rows.sort_by_cached_key(|row| {
            let is_curated = row.metadata.crate_name == "curated";
            (!is_curated, if is_curated { row.id.clone() } else { split::draw(seed, &row.id) })
        });
        let lacks = shortfalls(self.split, &rows, self.wanted as u64, share, self.left_out);
        (rows, lacks)
    }
}

fn note(id: &str, reason: &str, detail: &str) -> record::event::EventKind {
    let fields = [("row", id), ("reason", reason), ("detail", detail)];
    let fields = fields.map(|(k, v)| (k.to_owned(), serde_json::Value::from(v))).into_iter().collect();
    record::event::EventKind::Note { name: "dropped".to_owned(), fields }
}

fn has_properties(row: &CorpusRow) -> bool {
    row.property_tests.is_some()
}

/// The candidate without property tests.
fn bare(candidate: &Candidate) -> Candidate {
    let strip = |row: &CorpusRow| {
        let mut row = row.clone();
        row.property_tests = None;
        row.metadata.property_class = None;
        if row.metadata.source_class == SourceClass::Property {
            row.metadata.source_class = SourceClass::Unit;
        }
        row
    };
    Candidate { row: strip(&candidate.row), fuller: candidate.fuller.as_ref().map(strip) }
}

/// The next candidates to try when so many rows are missing: about two in three hold.
fn wave(candidates: &mut VecDeque<Candidate>, missing: usize) -> Vec<Candidate> {
    let n = missing.saturating_add(missing / 2).clamp(WAVE.0, WAVE.1).min(candidates.len());
    candidates.drain(..n).collect()
}

/// Rows with and without property tests that a split takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mix {
    with: usize,
    without: usize,
}

/// The most rows, up to `wanted`, that so many rows with and without property tests give at the share asked for: within
/// [`SHARE_TOLERANCE`] of it, or the nearest whole number where a few rows have none within.
fn best_mix(with: usize, without: usize, wanted: usize, share: f64) -> Mix {
    let (low, high) = (share - SHARE_TOLERANCE, share + SHARE_TOLERANCE);
    // As many rows as those of one kind suffice for; two more for what rounding gives.
    let suffices = |n: usize, part: f64| {
        if part > 0.0 { (n as f64 / part) as usize } else { usize::MAX }.saturating_add(2)
    };
    let most = wanted.min(suffices(with, low)).min(suffices(without, 1.0 - high));
    for n in (1..=most.min(with.saturating_add(without))).rev() {
        let at = |share: f64| share * n as f64;
        let nearest = at(share).round() as usize;
        let mut range = ((at(low) - 1e-9).ceil() as usize, ((at(high) + 1e-9).floor() as usize).min(n));
        if range.0 > range.1 {
            range = (nearest, nearest);
        }
        let possible = (range.0.max(n.saturating_sub(without)), range.1.min(with));
        if possible.0 <= possible.1 {
            let with = nearest.clamp(possible.0, possible.1);
            return Mix { with, without: n - with };
        }
    }
    Mix { with: 0, without: 0 }
}

/// What a split lacks of what was asked for, in words.
fn shortfalls(split: &str, rows: &[CorpusRow], wanted: u64, share: f64, left_out: u64) -> Vec<String> {
    let mut found = Vec::new();
    if (rows.len() as u64) < wanted {
        found.push(format!(
            "{split}: {} of the {wanted} rows asked for could be had from these sources",
            rows.len()
        ));
    }
    if left_out > 0 {
        found.push(format!(
            "{split}: {left_out} more rows hold and were left out, or the share of {:.1} % of rows with property tests would not \
             (parameter `property_share`)",
            share * 100.0
        ));
    }
    let with = rows.iter().filter(|r| r.property_tests.is_some()).count();
    let reached = with as f64 / rows.len().max(1) as f64;
    let nearest = 0.5 / rows.len().max(1) as f64;
    if !rows.is_empty() && (reached - share).abs() > SHARE_TOLERANCE.max(nearest) + 1e-9 {
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
    fn the_share_holds_for_every_size_and_supply() {
        for (with, without) in [(0, 9), (9, 0), (1, 20), (3, 2), (10, 20), (90, 300), (300, 90), (5000, 9000)]
        {
            for wanted in [1, 2, 5, 8, 24, 160, 1000, 8000] {
                let mix = best_mix(with, without, wanted, 0.6);
                let n = mix.with + mix.without;
                assert!(mix.with <= with && mix.without <= without && n <= wanted);
                let off = (mix.with as f64 - 0.6 * n as f64).abs();
                assert!(off <= (0.02 * n as f64).max(0.5) + 1e-9, "{with} {without} {wanted}: {mix:?}");
            }
        }
        assert_eq!(best_mix(usize::MAX, usize::MAX, 8000, 0.6), Mix { with: 4800, without: 3200 });
        assert_eq!(best_mix(1000, 1000, 24, 0.6), Mix { with: 14, without: 10 }, "15 of 24 would be 62.5 %");
        assert_eq!(best_mix(58, 1000, 200, 0.6), Mix { with: 58, without: 42 }, "as many rows as 58 % allow");
        assert_eq!(best_mix(1000, 38, 200, 0.6), Mix { with: 62, without: 38 });
        assert_eq!(best_mix(10, usize::MAX, usize::MAX, 0.6), Mix { with: 10, without: 7 });
        assert_eq!(best_mix(0, 50, 30, 0.0), Mix { with: 0, without: 30 });
        assert_eq!(best_mix(50, 0, 30, 1.0), Mix { with: 30, without: 0 });
        assert_eq!(best_mix(0, 50, 30, 0.6), Mix { with: 0, without: 0 });
    }

    #[test]
    fn what_is_missing_is_said() {
        let rows = vec![with_property("b", SourceClass::Synthesized), row("d", "fn g() {}", "")];
        let found = shortfalls("train", &rows, 3, 0.6, 1);
        assert_eq!(found.len(), 3, "{found:?}: one of two is as near to 60 % as two rows come");
        assert!(
            found[0].contains("2 of the 3")
                && found[1].contains("1 more rows hold and were left out")
                && found[2].contains("synthesized")
        );
        let none = [row("d", "fn g() {}", ""), row("e", "fn h() {}", "")];
        assert!(
            shortfalls("train", &none, 2, 0.6, 0)[0]
                .contains("0.0 % of the rows have property tests, 60.0 %")
        );
        assert!(shortfalls("train", &[], 0, 0.6, 0).is_empty());
    }
}
