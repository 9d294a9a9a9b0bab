//! The stage `fetch-model`.
