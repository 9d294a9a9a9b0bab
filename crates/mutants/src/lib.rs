//! The crate `mutants`.
