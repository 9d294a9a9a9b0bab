//! The stage `mutate-score`.
