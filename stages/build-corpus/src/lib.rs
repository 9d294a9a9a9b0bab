//! The stage `build-corpus`.
