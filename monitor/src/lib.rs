//! Watches an experiment from outside: reads its folder, never writes to it, works on a running, finished or dead run.
//!
//! `source` reads files, `state` is a pure reduction of what was read, `headless` turns it into text or JSON.

pub mod headless;
pub mod source;
pub mod state;
