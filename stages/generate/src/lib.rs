//! The stage `generate`.
