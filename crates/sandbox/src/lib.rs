//! The crate `sandbox`.
