//! The real `runner` program on small pipelines of scriptable stages, broken on purpose.

mod build;
mod cache;
mod config;
mod crash;
mod flow;
mod hostile;
mod process;
mod protocol;
mod purity;
mod support;
