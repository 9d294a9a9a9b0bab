//! `compile_results.json`: does a generated test parse, type-check, lint and link?

use serde::{Deserialize, Serialize};

pub const COMPILE_SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompileResults {
    pub schema_version: u32,
    /// `rustc -vV`.
    pub toolchain: String,
    /// `None` where no `clippy-driver` was found: then lints are not tested.
    pub linter: Option<String>,
    pub isolation: Isolation,
    /// In the order of samples.jsonl.
    pub samples: Vec<CompileResult>,
}

/// What stood between generated code and the machine while it was compiled or run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// 0: rlimits, timeouts and an empty environment; 1: + Landlock and seccomp; 2: + namespaces (no network); 3: + cgroup.
    pub level: u8,
    /// The layers by name, sorted.
    pub layers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompileResult {
    pub task_id: String,
    pub sample_idx: u32,
    pub round: u32,
    /// SHA-256 of the completion, in hex: which sample this is about, whatever its number. Empty: not said.
    #[serde(default)]
    pub completion_sha256: String,
    /// The test code taken out of the completion: what was compiled.
    pub tests: String,
    /// Refused before compiling (`include!`, `std::process`, ...), with the reason.
    pub refused: Option<String>,
    pub parses: bool,
    /// `None`: not reached, because an earlier step failed.
    pub type_checks: Option<bool>,
    /// `None`: not reached, or no linter.
    pub lint_clean: Option<bool>,
    pub links: Option<bool>,
    /// Errors and warnings, positions in `tests`.
    pub diagnostics: Vec<Diagnostic>,
    /// Machine-applicable suggestions that were applied, and what came of it.
    pub fixes: Vec<FixAttempt>,
    /// `None` when the tests do not parse.
    pub facts: Option<TestFacts>,
    /// Against the row's own tests; `None` when the row has none.
    pub similarity: Option<Similarity>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// `error` or `warning`.
    pub level: String,
    /// `E0308`, `unused_variables`, `clippy::...`; `syntax` for a parse error.
    pub code: Option<String>,
    pub message: String,
    /// From 1, in the generated tests; `None` when the place lies outside them.
    pub span: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub line_start: u32,
    pub column_start: u32,
    pub line_end: u32,
    pub column_end: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixAttempt {
    pub message: String,
    pub tests: String,
    pub type_checks: bool,
}

/// What can be seen in the tests without running them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestFacts {
    pub test_names: Vec<String>,
    pub n_assertions: u32,
    /// Assertions that mention the focal function's result: a call of it, or a variable bound to one.
    pub n_assertions_on_result: u32,
    /// `assert!(true)`, `assert_eq!(e, e)` and their like.
    pub n_tautologies: u32,
    /// The focal function is called at all.
    pub calls_focal: bool,
    /// An empty, zero, `None`, MIN or MAX value reaches a call of the focal function.
    pub has_edge_case: bool,
    pub has_comment: bool,
    /// Names of proptest variables.
    pub strategy_names: Vec<String>,
    /// The tests define the focal function again.
    pub redefines_focal: bool,
}

/// Similarity to the reference tests, each in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    pub bleu4: f64,
    /// As Python codebleu 0.7.0 computes it, faults included.
    pub codebleu_compat: f64,
    pub codebleu: f64,
}
