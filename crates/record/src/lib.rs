//! Every type that reaches a disk or a pipe between programs.
//!
//! Plain data with serde derives and no logic: programs of this project meet through files, and these are the files.
//! Each top-level file type carries a `schema_version`; a reader refuses a version that it does not know.

pub mod compile;
pub mod corpus;
pub mod event;
pub mod exit;
pub mod experiment;
pub mod generation;
pub mod libs;
pub mod model;
pub mod mutation;
pub mod protocol;
pub mod report;
pub mod tokens;
pub mod training;

/// Sorted by key, so that the same content is always the same bytes.
pub type Map<V> = std::collections::BTreeMap<String, V>;
