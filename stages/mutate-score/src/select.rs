//! The assured suite: for each function, samples that pass and kill, chosen one by one by how many mutants each adds.

use std::collections::BTreeSet;

use record::mutation::{MutantStatus, SelectedSample, SelectedSuite};

use crate::work::{Scored, ScoredSample};

/// One line for each function that has an acceptable sample, by task id.
pub(crate) fn selected(scored: &Scored<'_>) -> Vec<SelectedSuite> {
    let suite = |task: &&str| {
        let samples: Vec<&ScoredSample<'_>> =
            scored.samples.iter().filter(|s| s.sample.task_id == **task).collect();
        let candidates: Vec<Candidate<'_>> = samples.iter().filter_map(|s| candidate(s)).collect();
        let viable = candidates.first()?.viable;
        let order = cover(&candidates.iter().map(|c| c.kills.clone()).collect::<Vec<_>>());
        let killed: BTreeSet<u32> = candidates.iter().flat_map(|c| c.kills.iter().copied()).collect();
        let chosen = order.into_iter().map(|(i, adds)| SelectedSample {
            sample_idx: candidates[i].scored.sample.sample_idx,
            round: candidates[i].scored.sample.round,
            tests: candidates[i].scored.compile.tests.clone(),
            adds,
        });
        Some(SelectedSuite {
            task_id: (*task).to_owned(),
            samples: chosen.collect(),
            mutants_killed: u32::try_from(killed.len()).unwrap_or(u32::MAX),
            mutants_viable: viable,
        })
    };
    scored.rows.keys().filter_map(suite).collect()
}

struct Candidate<'s> {
    scored: &'s ScoredSample<'s>,
    kills: BTreeSet<u32>,
    viable: u32,
}

/// A sample is accepted when it passes, calls the function and kills a mutant.
fn candidate<'s>(scored: &'s ScoredSample<'s>) -> Option<Candidate<'s>> {
    let score = scored.score.as_ref().filter(|score| score.passed && score.entered)?;
    let kills = score.killed();
    let counted =
        |status: MutantStatus| !matches!(status, MutantStatus::CompileError | MutantStatus::Ignored);
    let viable = score.mutants.iter().filter(|mutant| counted(mutant.status)).count();
    (!kills.is_empty()).then(|| Candidate {
        scored,
        kills,
        viable: u32::try_from(viable).unwrap_or(u32::MAX),
    })
}

/// Greedy set cover: (index, what it adds), until nothing adds anything. The first of equals wins.
fn cover(sets: &[BTreeSet<u32>]) -> Vec<(usize, u32)> {
    let mut covered = BTreeSet::new();
    let mut order = Vec::new();
    loop {
        let gains = sets.iter().map(|set| set.difference(&covered).count());
        let best = gains.enumerate().max_by_key(|&(i, gain)| (gain, std::cmp::Reverse(i)));
        let Some((i, gain)) = best.filter(|(_, gain)| *gain > 0) else { return order };
        covered.extend(sets[i].iter().copied());
        order.push((i, u32::try_from(gain).unwrap_or(u32::MAX)));
    }
}

#[cfg(test)]
mod test {
    use super::cover;

    #[test]
    fn the_cover_takes_the_largest_gain_and_the_first_of_equals() {
        let sets = [[1, 2].into(), [2, 3, 4].into(), [1, 5].into(), [4].into()];
        assert_eq!(cover(&sets), [(1, 3), (2, 2)], "1 and 5 in one step, so the first set adds nothing");
        assert_eq!(cover(&[[1].into(), [1].into()]), [(0, 1)]);
        assert!(cover(&[Default::default()]).is_empty());
        assert!(cover(&[]).is_empty());
    }
}
