//! A newer report against an older one: any drop is a regression.

use record::report::{CheckVerdict, Report};

use crate::verdict::check;

/// Measures of which "more" is better, compared as numbers; of all others only the verdict counts.
const HIGHER_IS_BETTER: [&str; 5] = ["c1", "c2", "c4", "x1", "x2"];

/// Every drop, in words. Empty: nothing got worse.
pub(crate) fn drops(old: &Report, new: &Report) -> Vec<String> {
    let mut drops = Vec::new();
    if new.score < old.score {
        drops.push(format!("the score fell from {} to {}", old.score, new.score));
    }
    for before in old.checks.iter().filter(|c| c.verdict == CheckVerdict::Corroborated) {
        let now = check(&new.checks, &before.id);
        match now.map(|c| c.verdict) {
            Some(CheckVerdict::Corroborated) => {}
            Some(CheckVerdict::Falsified) => {
                drops.push(format!("{} was corroborated and is falsified ({})", before.id, before.claim));
            }
            Some(CheckVerdict::NotTested) | None => {
                drops.push(format!(
                    "{} was corroborated and is not tested any more ({})",
                    before.id, before.claim
                ));
            }
        }
    }
    for id in HIGHER_IS_BETTER {
        let value = |report: &Report| check(&report.checks, id).and_then(|c| c.measured.clone());
        let (Some(before), Some(now)) = (value(old), value(new)) else { continue };
        if now.value < before.value {
            drops.push(format!("{id} fell from {:.2} {} to {:.2}", before.value, before.unit, now.value));
        }
    }
    drops
}
