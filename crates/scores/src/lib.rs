//! The crate `scores`.
