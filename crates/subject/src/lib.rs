//! The crate `subject`.
