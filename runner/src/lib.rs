//! The pipeline runner: reads `pipeline.toml`, orders stage programs, runs what is not cached, keeps what they write.
//!
//! Rooms: [`config`] (TOML with places), [`plan`] (pure: graph, keys, differences), [`cache`] (content-addressed store),
//! [`resolve`] (the world's part of a key: programs, files, tools, environment), [`exec`] (processes and scheduling),
//! [`experiment`] (the folder of a run), [`report`] (what a person or a program sees), [`cli`].

pub mod cache;
pub mod config;
pub mod plan;
