//! One node from miss to action entry: lock, run, check, store.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use record::event::EventKind;
use record::protocol::{PROTOCOL, REQUEST_VARIABLE, Request, Resources};

use super::process::{self, Ending, ProcessSpec};
use super::scheduler::Message;
use super::secrets::Secrets;
use super::{Cancellation, EventTail, Guard, Happening, NodeFailure};
use crate::cache::{ActionEntry, CacheError, Entry, FileLock, remove_any};
use crate::config::{Piece, pieces};
use crate::experiment::Folder;
use crate::plan::{KeyComponents, Source};
use crate::resolve::{Outlook, Workspace};

/// Code of a program that asks to be tried again.
const RETRYABLE: i32 = record::exit::ExitCode::Retryable as i32;
/// The variable that marks the processes of one execution.
const MARK: &str = "TESTFORGE_ACTION";
/// Of log lines and warnings of a stage, each time its events are looked at.
const LINES_SHOWN: usize = 100;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One execution to be made.
pub(crate) struct Job {
    pub(crate) node: usize,
    pub(crate) components: KeyComponents,
    pub(crate) key: String,
    pub(crate) forced: bool,
    pub(crate) gpus: Vec<String>,
}

pub(crate) enum JobEnd {
    Done(Box<ActionEntry>),
    /// Another runner made it while this one waited for the lock.
    Hit(Box<ActionEntry>),
    Failed(NodeFailure),
    Interrupted,
}

pub(crate) struct Executor<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) folder: &'a Folder,
    pub(crate) cancellation: &'a Cancellation,
    pub(crate) guard: &'a Guard,
    pub(crate) entries: BTreeMap<usize, ActionEntry>,
    pub(crate) send: Sender<Message>,
}

pub(super) enum Stop {
    Failed(NodeFailure),
    Interrupted,
}

impl From<CacheError> for Stop {
    fn from(error: CacheError) -> Self {
        fail(error.to_string(), error.next_step())
    }
}

pub(super) fn fail(message: impl Into<String>, next: impl Into<String>) -> Stop {
    Stop::Failed(NodeFailure { message: message.into(), log: None, tail: Vec::new(), next: next.into() })
}

fn io(action: &'static str, path: &Path, e: std::io::Error) -> Stop {
    CacheError::io(action, path, e).into()
}

/// Paths of one execution.
struct Places {
    dir: PathBuf,
    live: PathBuf,
    scratch: PathBuf,
    checkpoint: PathBuf,
    request: PathBuf,
}

impl Executor<'_> {
    pub(crate) fn run(&self, job: &Job) -> JobEnd {
        match self.try_run(job) {
            Ok(end) => end,
            Err(Stop::Interrupted) => JobEnd::Interrupted,
            // What was broken off fails in words of its own.
            Err(Stop::Failed(_)) if self.cancellation.urgent() => JobEnd::Interrupted,
            Err(Stop::Failed(failure)) => JobEnd::Failed(failure),
        }
    }

    fn name(&self, job: &Job) -> &str {
        &self.workspace.graph.nodes[job.node].name
    }

    fn try_run(&self, job: &Job) -> Result<JobEnd, Stop> {
        let _lock = self.lock(job)?;
        // Under the lock, whoever carries this action's mark is left from a runner that died.
        process::sweep(format!("{MARK}={}", self.mark(job)).as_bytes());
        let before = self.workspace.store.action(&job.key);
        if !job.forced
            && before.is_some()
            && let Outlook::Hit(entry) = self.workspace.look_up(self.name(job), &job.components)
        {
            return Ok(JobEnd::Hit(entry));
        }
        self.check_platform(job)?;
        self.check_inputs(job, "since this run began")?;
        let places = self.prepare(job)?;
        let result = self.attempts(job, &places).and_then(|wall_s| self.commit(job, &places, wall_s));
        remove_any(&places.scratch);
        let entry = result.inspect_err(|_| self.discard_outputs(job, &places))?;
        remove_any(&places.checkpoint);
        if let Some(before) = before {
            self.compare(job, &before, &entry);
        }
        Ok(JobEnd::Done(Box::new(entry)))
    }

    fn lock(&self, job: &Job) -> Result<FileLock, Stop> {
        let mut told = false;
        loop {
            if let Some(lock) = self.workspace.store.try_lock(&job.key)? {
                return Ok(lock);
            }
            if !told {
                told = true;
                self.warn(job, "another runner executes the same action: waiting for it");
            }
            self.pause(Duration::from_millis(100))?;
        }
    }

    /// What only processes of this action carry, in whichever runner.
    fn mark(&self, job: &Job) -> String {
        format!("{}:{}:", self.workspace.store.root().display(), job.key)
    }

    /// Sleeps, unless the run is interrupted.
    fn pause(&self, length: Duration) -> Result<(), Stop> {
        let until = Instant::now() + length;
        while Instant::now() < until {
            if self.cancellation.asked() {
                return Err(Stop::Interrupted);
            }
            std::thread::sleep(Duration::from_millis(20).min(length));
        }
        Ok(())
    }

    fn tell(&self, happening: Happening) {
        let _ = self.send.send(Message::Happened(happening));
    }

    fn warn(&self, job: &Job, text: &str) {
        self.tell(Happening::Warning { node: Some(self.name(job).to_owned()), text: text.to_owned() });
    }

    fn check_platform(&self, job: &Job) -> Result<(), Stop> {
        for (name, wanted) in &job.components.platform {
            let found = match name.as_str() {
                "arch" => std::env::consts::ARCH.to_owned(),
                "os" => std::env::consts::OS.to_owned(),
                _ => crate::doctor::gpu_arch().unwrap_or_else(|| "none".to_owned()),
            };
            if found != *wanted {
                return Err(fail(
                    format!("platform.{name} is \"{found}\" here, and the stage wants \"{wanted}\""),
                    "run on such a machine, or change `platform` (it is part of the key)",
                ));
            }
        }
        Ok(())
    }

    fn prepare(&self, job: &Job) -> Result<Places, Stop> {
        let dir = self.folder.node_dir(self.name(job));
        let places = Places {
            live: dir.join("live"),
            scratch: self.workspace.store.temporary("scratch"),
            checkpoint: self.workspace.store.checkpoint_dir(&job.key),
            request: dir.join("live").join("request.json"),
            dir,
        };
        remove_any(&places.dir);
        for dir in [&places.live, &places.scratch, &places.checkpoint, &places.dir.join("logs")] {
            fs::create_dir_all(dir).map_err(|e| io("create the folder", dir, e))?;
        }
        self.link_instances(job, &places)?;
        Ok(places)
    }

    /// `inputs/NAME/LABEL` for inputs that are one output of every instance.
    fn link_instances(&self, job: &Job, places: &Places) -> Result<(), Stop> {
        let graph = &self.workspace.graph;
        for (name, source) in &graph.nodes[job.node].inputs {
            let Source::Instances { nodes, output } = source else { continue };
            let dir = places.dir.join("inputs").join(name);
            fs::create_dir_all(&dir).map_err(|e| io("create the folder", &dir, e))?;
            for (label, producer) in nodes {
                let target = format!("../../../{}/{output}", graph.nodes[*producer].name);
                let link = dir.join(label);
                std::os::unix::fs::symlink(target, &link).map_err(|e| io("create the link", &link, e))?;
            }
        }
        Ok(())
    }

    fn input_paths(&self, job: &Job, places: &Places) -> BTreeMap<String, PathBuf> {
        let graph = &self.workspace.graph;
        let path = |name: &String, source: &Source| match source {
            Source::File(path) => self.workspace.pipeline.dir.join(path),
            Source::Output { node, output } => self.folder.node_dir(&graph.nodes[*node].name).join(output),
            Source::Instances { .. } => places.dir.join("inputs").join(name),
        };
        graph.nodes[job.node].inputs.iter().map(|(name, source)| (name.clone(), path(name, source))).collect()
    }

    /// Runs the program until it succeeds or must not be tried again. Returns the seconds of the last attempt.
    fn attempts(&self, job: &Job, places: &Places) -> Result<f64, Stop> {
        let (stage, _) = self.workspace.stage(&self.workspace.graph.nodes[job.node]);
        let mut attempt = 1;
        loop {
            let log = places.dir.join("logs").join(format!("attempt-{attempt}.log"));
            let started = Instant::now();
            let (ending, tail) = self.attempt(job, places, &log)?;
            let wall = started.elapsed();
            match ending {
                Ending::Exited(0) => {
                    self.check_outputs(job, places).map_err(|stop| with_log(stop, &log, &tail))?;
                    return Ok(wall.as_secs_f64());
                }
                Ending::Cancelled => return Err(Stop::Interrupted),
                Ending::Exited(RETRYABLE) if attempt <= stage.retries => {
                    let wait = FIRST_WAIT.saturating_mul(1 << (attempt - 1).min(10)).min(LONGEST_WAIT);
                    let node = self.name(job).to_owned();
                    self.tell(Happening::Retry { node, attempt, wait_s: wait.as_secs_f64() });
                    self.discard_outputs(job, places);
                    self.pause(wait)?;
                    attempt += 1;
                }
                other => return Err(with_log(describe(other, stage.timeout, attempt), &log, &tail)),
            }
        }
    }

    fn attempt(&self, job: &Job, places: &Places, log: &Path) -> Result<(Ending, Vec<String>), Stop> {
        let node = &self.workspace.graph.nodes[job.node];
        let (stage, resolved) = self.workspace.stage(node);
        let Some(program) = &resolved.program else {
            return Err(fail(
                format!("the program `{}` is not built", stage.run[0].value),
                "run without --no-build",
            ));
        };
        self.check_code(job)?;
        self.write_request(job, places)?;
        let surroundings = &self.workspace.surroundings;
        let secret_values =
            stage.secrets.iter().filter_map(|n| Some((n.clone(), surroundings.variable(n)?.clone())));
        let secrets = Secrets::new(secret_values);
        let mut environment = surroundings.stage_environment(stage, true);
        let mut set = |name: &str, value: OsString| {
            environment.retain(|(k, _)| k.to_str() != Some(name));
            environment.push((name.into(), value));
        };
        set(REQUEST_VARIABLE, places.request.clone().into_os_string());
        set("TMPDIR", places.scratch.clone().into_os_string());
        if !job.gpus.is_empty() {
            set("CUDA_VISIBLE_DEVICES", job.gpus.join(",").into());
        }
        // One execution's own mark: the guard of a dead runner must not end the next runner's stage.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mark = format!("{}{}-{clock};", self.mark(job), std::process::id());
        set(MARK, mark.clone().into());
        let spec = ProcessSpec {
            program,
            arguments: self.arguments(job, places),
            dir: &self.workspace.pipeline.dir,
            environment,
            log: log.to_owned(),
            timeout: stage.timeout,
            grace: stage.grace,
            marker: format!("{MARK}={mark}").into_bytes(),
        };
        let mut events = EventTail::new(&places.live.join("events.jsonl"));
        // An earlier attempt's events were shown.
        events.skip();
        let mut tick = || self.relay(&node.name, &mut events, &secrets);
        let ended = process::run(&spec, &secrets, self.cancellation, self.guard, &mut tick);
        secrets.mask_files(&places.live);
        if let Some((file, name)) = secrets.found_below(&places.checkpoint) {
            remove_any(&places.checkpoint);
            let _ = fs::create_dir_all(&places.checkpoint);
            let what = format!(
                "its checkpoint is deleted: the value of the secret {name} stood in {}",
                file.display()
            );
            self.warn(job, &what);
        }
        let ended = ended.map_err(|e| {
            fail(
                format!("can't run {}: {e}", program.display()),
                "check that the program can be executed here",
            )
        })?;
        if ended.0 == Ending::Exited(0) {
            self.refuse_secrets(job, places, &secrets)?;
        }
        Ok(ended)
    }

    fn refuse_secrets(&self, job: &Job, places: &Places, secrets: &Secrets) -> Result<(), Stop> {
        for output in &job.components.outputs {
            if let Some((file, name)) = secrets.found_below(&places.dir.join(&output.name)) {
                return Err(fail(
                    format!("the stage wrote the value of the secret {name} into {}", file.display()),
                    "let the stage leave it out: outputs are stored and shared",
                ));
            }
        }
        Ok(())
    }

    fn write_request(&self, job: &Job, places: &Places) -> Result<(), Stop> {
        let node = &self.workspace.graph.nodes[job.node];
        let (stage, _) = self.workspace.stage(node);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let request = Request {
            protocol: PROTOCOL,
            stage: node.name.clone(),
            key: job.key.clone(),
            inputs: self.input_paths(job, places),
            outputs: stage.outputs.keys().map(|o| (o.clone(), places.dir.join(o))).collect(),
            params: node.params.clone(),
            seed: job.components.seed,
            resources: Resources { gpus: job.gpus.len() as u32, ..stage.resources },
            scratch: places.scratch.clone(),
            checkpoint_dir: places.checkpoint.clone(),
            live_dir: places.live.clone(),
            deadline_ms: stage.timeout.map(|t| (now + t).as_millis() as u64),
        };
        let text = serde_json::to_string_pretty(&request).unwrap_or_default();
        fs::write(&places.request, text).map_err(|e| io("write", &places.request, e))
    }

    fn arguments(&self, job: &Job, places: &Places) -> Vec<OsString> {
        let node = &self.workspace.graph.nodes[job.node];
        let (stage, _) = self.workspace.stage(node);
        let inputs = self.input_paths(job, places);
        let replace = |argument: &str| -> OsString {
            if let Some(path) = crate::resolve::script(&self.workspace.pipeline.dir, argument) {
                return path.into_os_string();
            }
            let mut text = OsString::new();
            for piece in pieces(argument) {
                match piece {
                    Piece::Text(plain) => text.push(plain),
                    Piece::Input(name) => text.push(inputs.get(name).cloned().unwrap_or_default()),
                    Piece::Output(name) => text.push(places.dir.join(name)),
                    Piece::Param(name) => text.push(match node.params.get(name) {
                        Some(serde_json::Value::String(plain)) => plain.clone(),
                        Some(value) => value.to_string(),
                        None => String::new(),
                    }),
                }
            }
            text
        };
        stage.run[1..].iter().map(|a| replace(&a.value)).collect()
    }

    fn relay(&self, node: &str, events: &mut EventTail, secrets: &Secrets) {
        let clean = |text: &str| String::from_utf8_lossy(&secrets.mask(text.as_bytes())).into_owned();
        let mut progress = None;
        let mut shown = 0;
        for event in events.poll() {
            let node = node.to_owned();
            let happening = match event.kind {
                EventKind::Progress { done, total, unit } => {
                    let unit = clean(&unit);
                    progress = Some(Happening::Progress { node, done, total, unit });
                    continue;
                }
                EventKind::Log { message } => Happening::Note { node, text: clean(&message) },
                EventKind::Warning { message } => {
                    Happening::Warning { node: Some(node), text: clean(&message) }
                }
                _ => continue,
            };
            shown += 1;
            if shown <= LINES_SHOWN {
                self.tell(happening);
            }
        }
        if shown > LINES_SHOWN {
            let text = format!("... and {} more lines: see its events.jsonl", shown - LINES_SHOWN);
            self.tell(Happening::Note { node: node.to_owned(), text });
        }
        if let Some(progress) = progress {
            self.tell(progress);
        }
    }

    fn check_outputs(&self, job: &Job, places: &Places) -> Result<(), Stop> {
        let missing: Vec<String> = job
            .components
            .outputs
            .iter()
            .filter(|o| fs::symlink_metadata(places.dir.join(&o.name)).is_err())
            .map(|o| format!("`{}`", o.name))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(fail(
            format!("the program ended well, but did not write its output {}", missing.join(", ")),
            "let it write there (its path is in the request file, or {out.NAME}), or take the name out of `outputs`",
        ))
    }

    /// Inputs unchanged, outputs stored, entry written last.
    fn commit(&self, job: &Job, places: &Places, wall_s: f64) -> Result<ActionEntry, Stop> {
        self.check_inputs(job, "while the stage ran")?;
        let store = &self.workspace.store;
        let mut outputs: BTreeMap<String, Entry> = BTreeMap::new();
        for output in &job.components.outputs {
            outputs.insert(output.name.clone(), store.ingest(&places.dir.join(&output.name))?);
        }
        let mut entry =
            ActionEntry::new(job.components.clone(), outputs, wall_s, crate::experiment::timestamp());
        entry.log = last_log(places).and_then(|log| store.ingest(&log).ok());
        store.put_action(self.name(job), &entry)?;
        Ok(entry)
    }

    fn discard_outputs(&self, job: &Job, places: &Places) {
        for output in &job.components.outputs {
            remove_any(&places.dir.join(&output.name));
        }
    }

    /// The same key twice should mean the same bytes twice.
    fn compare(&self, job: &Job, before: &ActionEntry, after: &ActionEntry) {
        for (name, entry) in &after.outputs {
            if after.volatile.contains(name) || before.outputs.get(name).is_none_or(|old| old == entry) {
                continue;
            }
            let old = before.outputs.get(name).map(ToString::to_string).unwrap_or_default();
            let files = self.workspace.store.compare(&old, &entry.to_string());
            let first = files.first().map_or(String::new(), |f| format!(" (first: {f})"));
            self.warn(
                job,
                &format!("not deterministic: the output `{name}` differs from the earlier result of the same key{first}"),
            );
        }
    }
}

fn last_log(places: &Places) -> Option<PathBuf> {
    let logs = fs::read_dir(places.dir.join("logs")).ok()?.flatten();
    let number = |path: &PathBuf| {
        path.file_stem()
            .and_then(|s| s.to_str())
            .and_then(|s| s.strip_prefix("attempt-"))
            .and_then(|n| n.parse::<u32>().ok())
    };
    logs.map(|e| e.path()).max_by_key(number)
}

fn with_log(stop: Stop, log: &Path, tail: &[String]) -> Stop {
    match stop {
        Stop::Failed(mut failure) => {
            failure.log = Some(log.display().to_string());
            failure.tail = tail.to_vec();
            Stop::Failed(failure)
        }
        Stop::Interrupted => Stop::Interrupted,
    }
}

fn describe(ending: Ending, timeout: Option<Duration>, attempt: u32) -> Stop {
    let tried = if attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
    match ending {
        Ending::Exited(code) => {
            let next = match code {
                2 => "its parameters or inputs are refused: see the message above, then correct the pipeline",
                RETRYABLE => "it may succeed later: run again, or raise `retries`",
                _ => "see its log, then run again: finished stages are kept",
            };
            fail(format!("exit code {code}{tried}"), next)
        }
        Ending::Signaled(number) => {
            let name = Signal(number);
            let next = match number {
                9 => {
                    "perhaps the memory ran out (see `dmesg`): lower its memory or run fewer stages at once (--jobs 1)"
                }
                _ => "see its log, then run again",
            };
            fail(format!("killed by {name}{tried}"), next)
        }
        Ending::TimedOut => {
            let limit = timeout.map_or(0.0, |t| t.as_secs_f64());
            fail(
                format!("stopped after its timeout of {limit} s{tried}"),
                "raise `timeout` for this stage, or see in its log where it hangs",
            )
        }
        Ending::Cancelled => Stop::Interrupted,
    }
}

struct Signal(i32);

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.0 {
            4 => "SIGILL",
            6 => "SIGABRT",
            7 => "SIGBUS",
            8 => "SIGFPE",
            9 => "SIGKILL",
            11 => "SIGSEGV",
            15 => "SIGTERM",
            24 => "SIGXCPU",
            25 => "SIGXFSZ",
            _ => return write!(f, "signal {}", self.0),
        };
        write!(f, "signal {} ({name})", self.0)
    }
}
