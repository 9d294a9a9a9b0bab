//! What a running stage sees of the world: its paths, its seed, its events.

use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use record::event::{Event, EventKind};
use record::protocol::{PROTOCOL, Request, Resources};

use crate::places::{self, is_taken, partial_name};
use crate::{Progress, Result, StageError};

const EVENTS: &str = "events.jsonl";

/// One execution of a stage.
#[derive(Debug)]
pub struct Context {
    request: Request,
    by_hand: bool,
    overwrite: bool,
    cancelled: Arc<AtomicBool>,
    events: Mutex<Option<File>>,
}

impl Context {
    pub(crate) fn new(
        request: Request,
        by_hand: bool,
        overwrite: bool,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self> {
        places::prepare(&request, by_hand)?;
        let path = request.live_dir.join(EVENTS);
        let events = OpenOptions::new().create(true).append(true).open(&path);
        let events = events.map_err(|e| StageError::io("open for appending", &path, e))?;
        Ok(Self { request, by_hand, overwrite, cancelled, events: Mutex::new(Some(events)) })
    }

    /// The folder or file given for a required input.
    pub fn input(&self, name: &str) -> Result<&Path> {
        self.optional_input(name)?.ok_or_else(|| {
            StageError::usage(format!("the input `{name}` is missing")).next(format!(
                "give it: --input {name}=PATH, or `inputs = {{ {name} = ... }}` in the pipeline"
            ))
        })
    }

    /// `None` when the input was not given; an error when it was given and is not there.
    pub fn optional_input(&self, name: &str) -> Result<Option<&Path>> {
        let Some(path) = self.request.inputs.get(name) else { return Ok(None) };
        if path.exists() {
            return Ok(Some(path));
        }
        Err(StageError::usage(format!("the input `{name}` does not exist"))
            .at(path.display().to_string())
            .next("check the path"))
    }

    /// Whether whoever started the stage wants this output.
    pub fn wants(&self, output: &str) -> bool {
        self.request.outputs.contains_key(output)
    }

    /// A fresh folder to write the output into. It takes its final name when the stage succeeds.
    pub fn output_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.request.outputs.get(name).ok_or_else(|| self.no_output(name))?;
        let partial = partial_name(path);
        if !partial.exists() {
            fs::create_dir_all(&partial).map_err(|e| StageError::io("create the folder", &partial, e))?;
        }
        Ok(partial)
    }

    pub(crate) fn no_output(&self, name: &str) -> StageError {
        StageError::usage(format!("the output `{name}` is missing"))
            .next(format!("give it: --output {name}=DIR"))
    }

    pub fn seed(&self) -> u64 {
        self.request.seed
    }

    pub fn resources(&self) -> Resources {
        self.request.resources
    }

    pub fn stage(&self) -> &str {
        &self.request.stage
    }

    pub fn scratch(&self) -> &Path {
        &self.request.scratch
    }

    pub fn checkpoint_dir(&self) -> &Path {
        &self.request.checkpoint_dir
    }

    pub fn live_dir(&self) -> &Path {
        &self.request.live_dir
    }

    /// An error once SIGTERM or SIGINT has come: call it in every loop, after saving what a restart needs.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.is_cancelled() { Err(StageError::interrupted()) } else { Ok(()) }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// For code that wants the flag itself.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Progress in `unit`s ("rows", "steps", "bytes").
    pub fn progress(&self, unit: &str, total: Option<u64>) -> Progress<'_> {
        Progress::new(self, unit, total)
    }

    pub fn metric(&self, name: &str, value: f64, unit: &str, step: Option<u64>) {
        self.event(EventKind::Metric { name: name.to_owned(), value, unit: unit.to_owned(), step });
    }

    pub fn log(&self, message: &str) {
        self.say(message);
        self.event(EventKind::Log { message: message.to_owned() });
    }

    pub fn warn(&self, message: &str) {
        self.say(&format!("warning: {message}"));
        self.event(EventKind::Warning { message: message.to_owned() });
    }

    /// Appends one line to `events.jsonl`. Events inform; one that can't be written is lost and stops nothing.
    pub fn event(&self, kind: EventKind) {
        let event = Event { time_ms: now_ms(), kind };
        let Ok(mut line) = serde_json::to_string(&event) else { return };
        line.push('\n');
        if let Ok(mut file) = self.events.lock()
            && let Some(out) = file.as_mut()
            && out.write_all(line.as_bytes()).is_err()
        {
            *file = None;
        }
    }

    pub(crate) fn by_hand(&self) -> bool {
        self.by_hand
    }

    pub(crate) fn shows_bar(&self) -> bool {
        self.by_hand && std::io::stderr().is_terminal()
    }

    pub(crate) fn say(&self, line: &str) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    /// Gives every wanted output its final name, and empties the checkpoint folder; by hand of what `is_checkpoint` names.
    pub(crate) fn commit(&self, is_checkpoint: fn(&str) -> bool) -> Result<()> {
        for (name, path) in &self.request.outputs {
            let partial = partial_name(path);
            if !partial.exists() {
                return Err(StageError::internal(format!("the stage did not write its output `{name}`")));
            }
        }
        for path in self.request.outputs.values() {
            if self.overwrite && is_taken(path) {
                delete(path)?;
            }
            fs::rename(partial_name(path), path).map_err(|e| StageError::io("rename into place", path, e))?;
        }
        clear(&self.request.checkpoint_dir, |name| !self.by_hand || is_checkpoint(name))?;
        if self.by_hand {
            self.tidy();
        }
        Ok(())
    }

    /// Without a runner nobody else removes the folders beside the output. A training state stays for the monitor, and so does
    /// what somebody else put there.
    fn tidy(&self) {
        let _ = fs::remove_dir(&self.request.checkpoint_dir);
        if !self.request.live_dir.join("training_state.json").exists() {
            let _ = fs::remove_file(self.request.live_dir.join(EVENTS));
            let _ = fs::remove_dir(&self.request.live_dir);
        }
    }

    /// Deletes half-written outputs; the checkpoint stays.
    pub(crate) fn discard(&self) {
        for path in self.request.outputs.values() {
            let _ = places::remove(&partial_name(path));
        }
        if self.by_hand {
            self.tidy();
        }
    }
}

/// A context for calling a stage's `run` from another program or a test.
#[derive(Debug)]
pub struct ContextBuilder {
    request: Request,
}

impl ContextBuilder {
    /// Scratch, checkpoint and live folders lie under `root`.
    pub fn new(stage: &str, root: &Path) -> Self {
        let request = Request {
            protocol: PROTOCOL,
            stage: stage.to_owned(),
            key: String::new(),
            inputs: Default::default(),
            outputs: Default::default(),
            params: Default::default(),
            seed: 42,
            resources: Resources { cpus: 2, memory_mb: 4000, gpus: 0 },
            scratch: root.join("scratch"),
            checkpoint_dir: root.join("checkpoint"),
            live_dir: root.join("live"),
            deadline_ms: None,
        };
        Self { request }
    }

    #[must_use]
    pub fn input(mut self, name: &str, path: impl Into<PathBuf>) -> Self {
        self.request.inputs.insert(name.to_owned(), path.into());
        self
    }

    #[must_use]
    pub fn output(mut self, name: &str, path: impl Into<PathBuf>) -> Self {
        self.request.outputs.insert(name.to_owned(), path.into());
        self
    }

    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.request.seed = seed;
        self
    }

    pub fn build(self) -> Result<Context> {
        Context::new(self.request, false, true, Arc::default())
    }

    /// Runs `stage` and gives its outputs their names when it succeeds, as the program would.
    pub fn run<S: crate::Stage>(self, params: S::Params) -> Result<crate::Outcome> {
        let context = self.build()?;
        crate::stage::execute::<S>(params, &context)
    }
}

fn delete(path: &Path) -> Result<()> {
    places::remove(path).map_err(|e| StageError::io("delete", path, e))
}

fn clear(dir: &Path, goes: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| StageError::io("list", dir, e))?.flatten() {
        if goes(&entry.file_name().to_string_lossy()) {
            delete(&entry.path())?;
        }
    }
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
