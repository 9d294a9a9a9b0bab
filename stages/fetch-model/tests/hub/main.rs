//! Downloads from a hub that a local server plays.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod client;
mod failures;
mod hostile;
mod server;
