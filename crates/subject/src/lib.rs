//! A Rust function as data: what it is, which tests belong to it, what those tests say, and how all of it becomes one crate.
//!
//! Nothing here reads a file, a clock or the environment.

pub mod closure;
pub mod complexity;
pub mod depth;
mod error;
pub mod extract;
pub mod facts;
pub mod focal;
pub mod macros;
pub mod placement;
pub mod proptest_block;
pub mod tests;

pub use error::SubjectError;
pub use facts::facts;
pub use focal::FocalFn;
pub use placement::{Placed, assemble, extract_code};
pub use proptest_block::ProptestBlock;
pub use tests::{TestFn, TestKind, TestModule, TestSuite};
