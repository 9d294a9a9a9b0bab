//! The stage `tokenize-to-parquet`.
