//! The stage `popper-report`.
