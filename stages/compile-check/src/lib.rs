//! The stage `compile-check`.
