//! `monitor`.
