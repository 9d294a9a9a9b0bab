//! The crate `harness`.
