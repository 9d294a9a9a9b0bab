//! The pipeline runner: reads `pipeline.toml`, orders stage programs, runs what is not cached, keeps what they write.
//!
//! Rooms: [`config`] (TOML with places), [`plan`] (pure: graph, keys, differences), [`cache`] (content-addressed store),
//! [`resolve`] (the world's part of a key: programs, files, tools, environment), [`exec`] (processes and scheduling),
//! [`experiment`] (the folder of a run), [`report`] (what a person or a program sees), [`cli`].

pub mod cache;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod error;
pub mod exec;
pub mod experiment;
pub mod interrupt;
pub mod plan;
pub mod report;
pub mod resolve;
