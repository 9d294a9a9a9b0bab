//! The stage `prebuild-libs`.
