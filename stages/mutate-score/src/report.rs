//! `mutation.json` and `coverage.json`: the raw sample of each function, mutant by mutant, branch by branch.

use mutants::score::{MutantOutcome, Prepared, SuiteScore};
use record::Map;
use record::mutation::{
    BranchCoverage, CoverageReport, FunctionCoverage, LineCoverage, MUTATION_SCHEMA_VERSION, Mutant,
    MutantStatus, MutatedFile, MutationReport, Thresholds,
};

use crate::work::{ReadyRow, Scored, ScoredSample, is_compiled};

/// Version of the mutation-testing-report-schema.
const REPORT_SCHEMA: &str = "2";

pub(crate) fn mutation(scored: &Scored<'_>) -> MutationReport {
    let raw = scored.raw();
    let mut files = Map::new();
    for (task, row) in &scored.rows {
        let (Ok(prepared), Some(sample)) = (&row.prepared, raw.get(task)) else { continue };
        let mutants =
            (0..prepared.instrumented.mutants.len()).map(|i| mutant(row, prepared, sample, i)).collect();
        let file =
            MutatedFile { language: "rust".to_owned(), source: row.row.function_code.clone(), mutants };
        files.insert(format!("{task}.rs"), file);
    }
    MutationReport {
        schema_version: REPORT_SCHEMA.to_owned(),
        thresholds: Thresholds { high: 80, low: 60 },
        files,
    }
}

fn mutant(row: &ReadyRow<'_>, prepared: &Prepared, sample: &ScoredSample<'_>, i: usize) -> Mutant {
    let site = &prepared.instrumented.mutants[i];
    let outcome = sample.score.as_ref().and_then(|score| score.mutants.get(i));
    let (status, reason, killed_by) = match outcome {
        Some(outcome) => (
            outcome.status,
            reason_of(prepared, outcome, site.id),
            outcome.killed_by.iter().cloned().collect(),
        ),
        None => {
            let (status, reason) = without_run(prepared, sample, site.id);
            (status, Some(reason), Vec::new())
        }
    };
    Mutant {
        id: format!("{}#{}", row.row.id, site.id),
        mutator_name: site.mutator.to_owned(),
        replacement: site.replacement.clone(),
        location: site.location,
        status,
        status_reason: reason,
        killed_by,
    }
}

fn reason_of(prepared: &Prepared, outcome: &MutantOutcome, id: u32) -> Option<String> {
    let reason = match outcome.status {
        MutantStatus::Ignored if outcome.in_source => {
            "left out: the others of the function that have to be compiled each for itself were enough"
        }
        MutantStatus::CompileError => unviable(prepared, id),
        _ if outcome.in_source => "run in the source: it does not compile under the switch",
        _ => return None,
    };
    Some(reason.to_owned())
}

fn unviable(prepared: &Prepared, id: u32) -> &'static str {
    if prepared.has_switch(id) { "compiles under the switch alone" } else { "does not type-check" }
}

/// The status of a mutant that no test was run on, and why.
fn without_run(prepared: &Prepared, sample: &ScoredSample<'_>, id: u32) -> (MutantStatus, String) {
    if !prepared.is_viable(id) {
        return (MutantStatus::CompileError, unviable(prepared, id).to_owned());
    }
    let why = match &sample.score {
        _ if !is_compiled(sample.compile) => "the tests do not compile",
        Some(score) if score.compiled && score.tests.is_empty() => "there is no test",
        _ => "the tests do not pass on the function as it is",
    };
    (MutantStatus::NoCoverage, why.to_owned())
}

pub(crate) fn coverage(scored: &Scored<'_>) -> CoverageReport {
    let raw = scored.raw();
    let mut functions = Map::new();
    for (task, row) in &scored.rows {
        let (Ok(prepared), Some(sample)) = (&row.prepared, raw.get(task)) else { continue };
        if prepared.not_instrumentable.is_none() {
            functions.insert((*task).to_owned(), function_coverage(row, prepared, sample));
        }
    }
    CoverageReport { schema_version: MUTATION_SCHEMA_VERSION, functions }
}

fn function_coverage(row: &ReadyRow<'_>, prepared: &Prepared, sample: &ScoredSample<'_>) -> FunctionCoverage {
    let nothing = SuiteScore::default();
    let score = sample.score.as_ref().filter(|score| score.passed);
    let own = row.own.as_ref().unwrap_or(&nothing);
    let covered = score.unwrap_or(&nothing);
    let instrumented = &prepared.instrumented;
    let branches = prepared.branches().into_iter().filter_map(|number| {
        let branch = instrumented.branches.get(number as usize)?;
        Some(BranchCoverage {
            kind: branch.kind.to_owned(),
            location: branch.location,
            covered: covered.branches.contains(&number),
            covered_baseline: own.branches.contains(&number),
        })
    });
    let lines = prepared.lines().into_iter().filter_map(|number| {
        Some(LineCoverage {
            line: *instrumented.lines.get(number as usize)?,
            covered: covered.lines.contains(&number),
            covered_baseline: own.lines.contains(&number),
        })
    });
    let mut lines: Vec<LineCoverage> = lines.collect();
    lines.sort_by_key(|line| line.line);
    FunctionCoverage {
        sample_idx: sample.sample.sample_idx,
        round: sample.sample.round,
        passed: score.is_some(),
        branches: branches.collect(),
        lines,
        opaque_macros: instrumented.opaque_macros,
    }
}
