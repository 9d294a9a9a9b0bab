//! `runner`.
