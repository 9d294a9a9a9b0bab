//! Newline-delimited JSON on standard output: `open`, one line per happening, `close`.

use std::io::Write;

use serde_json::{Value, json};

use super::{Opening, Reporter, Summary};
use crate::exec::Happening;

#[derive(Debug, Default)]
pub struct Json;

impl Json {
    fn line(&self, value: &Value) {
        let _ = writeln!(std::io::stdout().lock(), "{value}");
    }
}

impl Reporter for Json {
    fn open(&mut self, opening: &Opening) {
        self.line(&json!({"event": "open", "run": opening}));
    }

    fn happened(&mut self, happening: &Happening) {
        self.line(&value(happening));
    }

    fn close(&mut self, summary: &Summary) {
        self.line(&json!({"event": "close", "run": summary}));
    }
}

fn value(happening: &Happening) -> Value {
    match happening {
        Happening::Hit { node, key, saved_s } => {
            json!({"event": "hit", "node": node, "key": key, "saved_s": saved_s})
        }
        Happening::Start { node, key, reasons } => {
            json!({"event": "start", "node": node, "key": key, "reasons": reasons})
        }
        Happening::Progress { node, done, total, unit } => {
            json!({"event": "progress", "node": node, "done": done, "total": total, "unit": unit})
        }
        Happening::Note { node, text } => json!({"event": "note", "node": node, "text": text}),
        Happening::Warning { node, text } => json!({"event": "warning", "node": node, "text": text}),
        Happening::Retry { node, attempt, wait_s } => {
            json!({"event": "retry", "node": node, "attempt": attempt, "wait_s": wait_s})
        }
        Happening::Done { node, wall_s } => json!({"event": "done", "node": node, "wall_s": wall_s}),
        Happening::Failed { node, failure } => json!({"event": "failed", "node": node, "failure": failure}),
        Happening::Skipped { node, because } => json!({"event": "skipped", "node": node, "because": because}),
        Happening::Interrupted { node } => json!({"event": "interrupted", "node": node}),
    }
}
