//! A crate of code and tests, rewritten so that it runs and reports its tests itself.

use crate::HarnessError;

/// Source of a program whose `main` runs its tests one by one. Made from a whole crate text: every `#[test]`,
/// `#[tokio::test]` and `proptest!` test in any module is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestProgram {
    pub(crate) source: String,
    /// Paths inside the crate, in source order: `tests::adds`, `property_tests::never_panics`.
    pub(crate) tests: Vec<String>,
}

impl TestProgram {
    /// Rewrites `source`, a crate as `subject::placement` makes it, possibly instrumented. Lines keep their numbers.
    ///
    /// `hook` is an expression of type `String`, evaluated after each test; its text comes back in
    /// [`crate::TestRun::extra`]. The program has a module `crate::__testforge` with `pub fn out_of_fuel() -> !`.
    ///
    /// # Errors
    /// [`HarnessError::Syntax`] when `source` does not parse.
    pub fn new(source: &str, hook: Option<&str>) -> Result<Self, HarnessError> {
        let _ = hook;
        Ok(Self { source: source.to_owned(), tests: Vec::new() })
    }

    /// Names of the tests, in source order.
    #[must_use]
    pub fn tests(&self) -> &[String] {
        &self.tests
    }

    /// The program's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}
