//! Does each mutant do under the switch what it does in the source? Runs every row's own tests on the function as it is
//! (instrumented and not), and on every mutant both ways, and prints each disagreement. A mutant that was taken out although
//! it compiles when it is written into the source is one. Exits 1 on a disagreement.
//!
//! `cargo run --release -p mutants --example crosscheck ROWS.jsonl LIBS`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use harness::{Harness, Libraries, Limits, Toolchain, parallel_map};
use mutants::score::{Prepared, ScoreOptions, run_planted, score_suite};
use record::corpus::CorpusRow;
use record::mutation::{MutantStatus, Verdict};
use sandbox::Sandbox;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// For mutants that hang where no fuel ends them.
const WALL: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Outcome {
    lines: Vec<String>,
    n_compared: usize,
    n_wrong: usize,
    n_in_source: usize,
    n_not_in_source: usize,
    operators: BTreeMap<&'static str, usize>,
}

fn main() -> Result<ExitCode, Failure> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [rows, libs] = args.as_slice() else { return Err("usage: crosscheck ROWS.jsonl LIBS".into()) };
    let rows: Vec<CorpusRow> =
        std::fs::read_to_string(rows)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let scratch = std::env::temp_dir().join(format!("crosscheck-{}", std::process::id()));
    let toolchain = Toolchain::find()?;
    let libraries = Libraries::load(libs, &toolchain)?;
    let harness = Harness::new(toolchain, libraries, Sandbox::probe(), scratch.clone(), Limits::default());
    let found = parallel_map(2, &rows, |_, row| compare(&harness, row));
    let _ = std::fs::remove_dir_all(&scratch);
    let mut total = Outcome::default();
    for (row, found) in rows.iter().zip(found) {
        let found = found.unwrap_or_else(|error| Outcome {
            lines: vec![error.to_string()],
            n_wrong: 1,
            ..Outcome::default()
        });
        for line in &found.lines {
            writeln!(std::io::stdout(), "{}: {line}", row.id)?;
        }
        total.n_compared += found.n_compared;
        total.n_wrong += found.n_wrong;
        total.n_in_source += found.n_in_source;
        total.n_not_in_source += found.n_not_in_source;
        for (operator, n) in found.operators {
            *total.operators.entry(operator).or_default() += n;
        }
    }
    writeln!(
        std::io::stdout(),
        "{} rows, {} mutants compared, {} disagreements, {} compile in the source alone, {} under the switch alone; {:?}",
        rows.len(),
        total.n_compared,
        total.n_wrong,
        total.n_in_source,
        total.n_not_in_source,
        total.operators
    )?;
    Ok(if total.n_wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(harness: &Harness, row: &CorpusRow) -> Result<Outcome, Failure> {
    let mut out = Outcome::default();
    let prepared = Prepared::judged(harness, row)?;
    if let Some(why) = &prepared.not_instrumentable {
        out.lines.push(format!("carries no mutants: {why}"));
        return Ok(out);
    }
    let score = score_suite(harness, &prepared, None, &ScoreOptions { runs: 1, ..ScoreOptions::default() })?;
    if !score.passed || !score.entered {
        out.n_wrong = 1;
        out.lines.push(format!(
            "its own tests do not pass or do not call it: {:?} {:?}",
            score.error, score.tests
        ));
        return Ok(out);
    }
    let lost = prepared.instrumented.branches.len() - prepared.branches().len();
    if lost > 0 {
        out.lines.push(format!("{lost} branch probes do not compile"));
    }
    for mutant in &prepared.instrumented.mutants {
        *out.operators.entry(mutant.mutator).or_default() += 1;
        let shown = format!("{} `{}` -> `{}`", mutant.mutator, mutant.original, mutant.replacement);
        let run = run_planted(harness, &prepared, mutant.id, None, WALL)?;
        let outcome = &score.mutants[mutant.id as usize - 1];
        let status = outcome.status;
        if outcome.in_source {
            out.n_in_source += 1;
            out.lines.push(format!("{shown}: {status:?}, in the source alone"));
        }
        match (run, status) {
            (_, MutantStatus::Ignored) => {}
            (None, MutantStatus::CompileError) => {
                if prepared.has_switch(mutant.id) {
                    out.n_not_in_source += 1;
                    out.lines.push(format!("{shown}: under the switch alone"));
                }
            }
            (None, _) => {
                out.n_wrong += 1;
                out.lines.push(format!("{shown}: does not compile in the source, is {status:?} here"));
            }
            (Some(_), MutantStatus::CompileError) => {
                out.n_wrong += 1;
                out.lines.push(format!("{shown}: was taken out, compiles in the source"));
            }
            (Some(run), _) => {
                out.n_compared += 1;
                let first = run.verdicts.values().find(|test| test.verdict != Verdict::Passed);
                let in_source = first.map(|test| test.verdict);
                let agrees = match status {
                    MutantStatus::Survived | MutantStatus::NoCoverage => in_source.is_none(),
                    MutantStatus::Timeout => in_source == Some(Verdict::Timeout),
                    _ => in_source.is_some_and(|verdict| verdict != Verdict::Timeout),
                };
                if !agrees {
                    out.n_wrong += 1;
                    out.lines.push(format!("{shown}: {in_source:?} in the source, {status:?} here"));
                }
            }
        }
    }
    Ok(out)
}
