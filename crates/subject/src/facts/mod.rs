//! What can be seen in tests without running them.
//!
//! Values are followed by name through `let`, `for`, `if let` and `match`, scope by scope: from a call of the focal
//! function into an assertion, and from an edge value into a call. Helper functions of the suite that call the focal
//! function count as calls of it. This reads text, not types: a method of the same name on another type is not told apart.

mod calls;
pub(crate) mod comments;
mod edges;
mod scope;
mod strategies;
mod tautology;
mod walk;

use record::compile::TestFacts;

use crate::{FocalFn, SubjectError, TestSuite};

/// Reads the facts off test code: bare items or a wrapped module.
///
/// - An assertion is a call of a macro or a function whose name starts with `assert` (or `prop_assert`), or a `panic!`,
///   `unreachable!` or `todo!` under a condition. A `should_panic` test that calls the focal function makes one assertion on its result.
/// - An assertion is on the result when it mentions a call of the focal function or a variable bound to one, or a
///   variable that such a call changed (`&mut` receiver or argument).
/// - A tautology can't fail whatever the function does: constants only, both sides the same text, `x >= x`,
///   `a.is_ok() || a.is_err()`, `v.len() >= 0`, `matches!(x, _)`.
///
/// # Errors
/// `code` is not a list of Rust items.
pub fn facts(code: &str, focal: &FocalFn) -> Result<TestFacts, SubjectError> {
    let suite = TestSuite::parse(code)?;
    let found = walk::walk(&suite, focal);
    Ok(TestFacts {
        test_names: suite.tests.iter().map(|test| test.name.clone()).collect(),
        n_assertions: found.n_assertions,
        n_assertions_on_result: found.n_on_result,
        n_tautologies: found.n_tautologies,
        calls_focal: found.calls_focal,
        has_edge_case: found.has_edge_case,
        has_comment: comments::has_comment(code),
        strategy_names: strategies::names(&suite),
        redefines_focal: found.redefines_focal,
    })
}

#[cfg(test)]
#[path = "../facts_test.rs"]
mod test;
