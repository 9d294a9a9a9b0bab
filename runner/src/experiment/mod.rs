//! The folder of a run: outputs of every node, logs, and the view that people expect at its root.

mod config_yaml;
mod folder;
mod lock;
mod record;
mod view;

pub use config_yaml::{config_yaml, sha256_hex};
pub use folder::{Folder, latest, node_log};
pub use lock::{Change, make_lock, verify_lock, write_lock};
pub use record::{GitState, RecordWriter, git_state};
pub(crate) use view::output_path;
pub use view::{clear_view, write_view};

/// Now, RFC 3339 in UTC, whole seconds.
pub fn timestamp() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
