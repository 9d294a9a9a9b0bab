//! What would run, in which order, under which key, and why. Pure: no file, clock or environment is read here.

mod graph;
mod key;
mod why;

pub use graph::{Graph, GraphError, Node, Selection, Source};
pub use key::{KEY_SCHEMA, KeyComponents, OutputDecl};
pub use why::{Difference, differences, nearest};
