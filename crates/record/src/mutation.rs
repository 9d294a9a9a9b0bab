//! `test_results.json` and `mutation.json`: what the generated tests do when they run.

use serde::{Deserialize, Serialize};

use crate::Map;
use crate::compile::Isolation;

pub const MUTATION_SCHEMA_VERSION: u32 = 1;

/// `test_results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestResults {
    pub schema_version: u32,
    pub toolchain: String,
    pub isolation: Isolation,
    /// In the order of samples.jsonl, every sample: those that did not compile too.
    pub samples: Vec<SampleResult>,
    pub controls: Controls,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleResult {
    pub task_id: String,
    pub sample_idx: u32,
    pub round: u32,
    /// SHA-256 of the tests that were run, in hex: those that the compile results hold. Empty: not said.
    #[serde(default)]
    pub tests_sha256: String,
    pub stratum: Option<String>,
    pub compiled: bool,
    /// Compiled, has at least one test, and every test passed on the unchanged function, each of `runs` times.
    pub passed: bool,
    pub runs: u32,
    pub tests: Vec<TestOutcome>,
    /// `None` when the tests do not pass: a failing test kills nothing.
    pub mutants: Option<MutantCounts>,
    pub coverage: Option<Coverage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestOutcome {
    pub name: String,
    pub verdict: Verdict,
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Passed,
    Failed,
    /// Ran out of loop fuel or of time.
    Timeout,
    /// The process ended before the test reported.
    Aborted,
    /// `#[ignore]`: not run, counts as not passed.
    Ignored,
    /// Passed in one run and failed in another.
    Flaky,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MutantCounts {
    pub killed: u32,
    pub timeout: u32,
    pub survived: u32,
    /// Not reached by any test: counts as survived in the score.
    pub no_coverage: u32,
    /// Does not compile: leaves the score.
    pub unviable: u32,
    pub ignored: u32,
    /// Of killed, timeout and survived: run written into the source, each in a program of its own, because they do not
    /// compile under the switch.
    #[serde(default)]
    pub in_source: u32,
}

/// Of the focal function alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    pub branches: u32,
    pub branches_covered: u32,
    /// By the row's own tests, or 0 where it has none.
    pub branches_covered_baseline: u32,
    pub lines: u32,
    pub lines_covered: u32,
    pub lines_covered_baseline: u32,
}

/// Experiments whose outcome is known beforehand; a harness that gets them wrong measures nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Controls {
    /// The row's own tests must pass on its function, kill, and fail on a planted bug.
    pub planted_bug: Control,
    /// `assert!(true)`: must kill nothing.
    pub vacuous_test: Control,
    /// Tests of another function: must not count as tests of this one.
    pub shuffled_pairing: Control,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    pub expected: String,
    /// Cases that came out as known, of all cases.
    pub as_expected: u32,
    pub cases: u32,
    /// `None`: no case could be made.
    pub holds: Option<bool>,
}

/// `mutation.json`: mutation-testing-report-schema, major version 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MutationReport {
    pub schema_version: String,
    pub thresholds: Thresholds,
    /// One virtual file per function.
    pub files: Map<MutatedFile>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    pub high: u32,
    pub low: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MutatedFile {
    pub language: String,
    pub source: String,
    pub mutants: Vec<Mutant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mutant {
    pub id: String,
    pub mutator_name: String,
    pub replacement: String,
    pub location: Location,
    pub status: MutantStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub killed_by: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    pub start: Position,
    pub end: Position,
}

/// Both from 1, as the schema asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MutantStatus {
    Killed,
    Survived,
    NoCoverage,
    CompileError,
    RuntimeError,
    Timeout,
    Ignored,
    Pending,
}

/// `coverage.json`: what the raw sample of each function reaches, branch by branch and line by line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageReport {
    pub schema_version: u32,
    /// By task id.
    pub functions: Map<FunctionCoverage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCoverage {
    pub sample_idx: u32,
    pub round: u32,
    /// Whether the sample's tests pass; what tests reach that do not pass is not counted.
    pub passed: bool,
    pub branches: Vec<BranchCoverage>,
    pub lines: Vec<LineCoverage>,
    /// Macro calls in the function: their bodies are neither mutated nor probed.
    pub opaque_macros: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchCoverage {
    /// `then`, `else`, `arm`, `continue`, `early_return`, `short_circuit`, `both_sides`, `zero_times`, `some_times`.
    pub kind: String,
    /// In `function_code`.
    pub location: Location,
    pub covered: bool,
    /// By the row's own tests.
    pub covered_baseline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCoverage {
    /// Of `function_code`, from 1.
    pub line: u32,
    pub covered: bool,
    pub covered_baseline: bool,
}

/// A line of `selected.jsonl`: the assured suite of one function, chosen from samples that pass and kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectedSuite {
    pub task_id: String,
    /// In the order in which they were chosen: each adds the most mutants to those before it.
    pub samples: Vec<SelectedSample>,
    pub mutants_killed: u32,
    /// Mutants that compile and were run.
    pub mutants_viable: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectedSample {
    pub sample_idx: u32,
    pub round: u32,
    pub tests: String,
    /// Mutants that no sample before it kills.
    pub adds: u32,
}

/// `timings/summary.json` (volatile).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MutationTimings {
    pub schema_version: u32,
    pub wall_s: f64,
    /// Suites run: rows' own, controls and samples.
    pub suites: u64,
    /// Test processes.
    pub processes: u64,
    pub processes_per_s: f64,
}
