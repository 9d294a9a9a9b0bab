//! What is kept of a program: its work under the counts of rows that came lately, and graphs of what comes often.
//!
//! Rows of text give ever new counts. Launching work one by one costs the host some milliseconds, which pass while the
//! device is busy with what came before. Recording it in a graph costs a few times as much, memory of the device, and often
//! a wait until the device has nothing to do. So training has few graphs, and one gives way only to what comes twice as often.
//! Generation has few different counts and small graphs, and waits for the host where there is none.

use std::collections::BTreeMap;

/// Counts whose work is kept.
const KEPT: usize = 96;
/// After so many runs of its program an earlier run of a variant counts half.
const HALVES: f64 = 128.0;

/// When there is a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Graphs that are kept.
    graphs: usize,
    /// Runs without a graph before there is one.
    runs: u32,
}

/// On an H100 a graph of a training pass of 24 layers takes 19 to 27 MB, and recording it about as long as three runs.
pub(super) const TRAINING: Limits = Limits { graphs: 6, runs: 3 };
pub(super) const GENERATION: Limits = Limits { graphs: 48, runs: 1 };

/// Tokens and loss rows.
pub(super) type Counts = (usize, usize);

/// Work under one pair of counts.
struct Variant<W, G> {
    work: W,
    graph: Option<G>,
    /// Since it was lowered, or lost its graph.
    runs: u32,
    /// How often it was run, as counted at its last run.
    score: f64,
    last_use: u64,
}

impl<W, G> Variant<W, G> {
    fn score(&self, now: u64) -> f64 {
        self.score * libm::exp2(-((now - self.last_use) as f64) / HALVES)
    }
}

/// How work is started.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start<'a, W, G> {
    Replay(&'a G),
    OneByOne(&'a W),
}

/// The variants of one program. `W`: work; `G`: a graph of it.
pub(super) struct Variants<W, G> {
    limits: Limits,
    all: BTreeMap<Counts, Variant<W, G>>,
    uses: u64,
}

impl<W, G> Variants<W, G> {
    pub(super) fn new(limits: Limits) -> Self {
        Variants { limits, all: BTreeMap::new(), uses: 0 }
    }

    pub(super) fn has(&self, counts: Counts) -> bool {
        self.all.contains_key(&counts)
    }

    /// Keeps new work, in the place of what was not used for the longest time.
    pub(super) fn add(&mut self, counts: Counts, work: W) {
        if self.all.len() >= KEPT {
            let oldest = self.all.iter().min_by_key(|(_, variant)| variant.last_use);
            oldest.map(|(&counts, _)| counts).map(|counts| self.all.remove(&counts));
        }
        let variant = Variant { work, graph: None, runs: 0, score: 0.0, last_use: self.uses };
        self.all.insert(counts, variant);
    }

    /// The work, when there should be a graph of it and is none.
    pub(super) fn unrecorded(&self, counts: Counts) -> Option<&W> {
        let variant = self.all.get(&counts)?;
        if variant.graph.is_some() || variant.runs < self.limits.runs {
            return None;
        }
        let (count, rarest) = self.graphs();
        let has_room = count < self.limits.graphs
            || rarest.is_some_and(|(_, score)| 2.0 * score <= variant.score(self.uses));
        has_room.then_some(&variant.work)
    }

    /// How many graphs there are, and the one that is used least, with its score.
    fn graphs(&self) -> (usize, Option<(Counts, f64)>) {
        let graphs = self.all.iter().filter(|(_, variant)| variant.graph.is_some());
        let scores = graphs.clone().map(|(&counts, variant)| (counts, variant.score(self.uses)));
        (graphs.count(), scores.min_by(|a, b| a.1.total_cmp(&b.1)))
    }

    /// Gives work its graph; where there are enough, the one that is used least goes.
    pub(super) fn record(&mut self, counts: Counts, graph: G) {
        if let (count, Some((rarest, _))) = self.graphs()
            && count >= self.limits.graphs
            && let Some(variant) = self.all.get_mut(&rarest)
        {
            (variant.graph, variant.runs) = (None, 0);
        }
        if let Some(variant) = self.all.get_mut(&counts) {
            variant.graph = Some(graph);
        }
    }

    /// How the work is to be started now; it counts as used.
    pub(super) fn start(&mut self, counts: Counts) -> Option<Start<'_, W, G>> {
        self.uses += 1;
        let variant = self.all.get_mut(&counts)?;
        variant.score = variant.score(self.uses) + 1.0;
        variant.last_use = self.uses;
        variant.runs = variant.runs.saturating_add(1);
        Some(match &variant.graph {
            Some(graph) => Start::Replay(graph),
            None => Start::OneByOne(&variant.work),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names = Variants<String, String>;

    /// As a backend does.
    fn run(variants: &mut Names, counts: Counts) -> &'static str {
        if !variants.has(counts) {
            variants.add(counts, format!("work {counts:?}"));
        }
        if let Some(work) = variants.unrecorded(counts) {
            let graph = format!("graph of {work}");
            variants.record(counts, graph);
        }
        match variants.start(counts).unwrap() {
            Start::Replay(graph) => {
                assert_eq!(*graph, format!("graph of work {counts:?}"));
                "graph"
            }
            Start::OneByOne(work) => {
                assert_eq!(*work, format!("work {counts:?}"));
                "work"
            }
        }
    }

    #[test]
    fn what_comes_again_is_recorded() {
        let mut variants = Names::new(TRAINING);
        let runs: Vec<&str> = (0..5).map(|_| run(&mut variants, (64, 8))).collect();
        assert_eq!(runs, ["work", "work", "work", "graph", "graph"]);
        assert_eq!(run(&mut variants, (64, 12)), "work", "other loss rows are other work");
        let mut variants = Names::new(GENERATION);
        assert_eq!([(); 3].map(|()| run(&mut variants, (64, 64))), ["work", "graph", "graph"]);
    }

    #[test]
    fn few_are_recorded_and_one_gives_way_to_what_comes_twice_as_often() {
        let mut variants = Names::new(TRAINING);
        let first: Vec<Counts> = (0..TRAINING.graphs).map(|n| (n, 0)).collect();
        for _ in 0..300 {
            for &counts in &first {
                run(&mut variants, counts);
            }
            assert_eq!(run(&mut variants, (7, 7)), "work", "it comes no more often than the others");
        }
        assert!(first.iter().all(|&counts| run(&mut variants, counts) == "graph"));
        for round in 0..300 {
            for &counts in &first[1..] {
                assert_eq!(run(&mut variants, counts), "graph", "round {round}");
            }
            run(&mut variants, (7, 7));
            if round % 4 == 0 {
                run(&mut variants, first[0]);
            }
        }
        assert_eq!((run(&mut variants, (7, 7)), run(&mut variants, first[0])), ("graph", "work"));
        assert_eq!(variants.graphs().0, TRAINING.graphs);
    }

    #[test]
    fn work_that_was_not_used_for_long_goes_with_its_graph() {
        let mut variants = Names::new(TRAINING);
        for _ in 0..5 {
            run(&mut variants, (1, 1));
        }
        for n in 0..3 * KEPT {
            run(&mut variants, (n, 2));
            run(&mut variants, (7, 7));
            assert!(variants.all.len() <= KEPT);
        }
        let kept = (variants.graphs().0, variants.has((1, 1)), variants.has((7, 7)));
        assert_eq!(kept, (1, false, true));
    }
}
