//! One program in its own process group, from start to the last of its descendants.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group, waitid, waitpid,
};

use super::output::LogCapture;
use super::secrets::Secrets;
use super::{Cancellation, Guard};

const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_millis(100);

/// What to start, and how it may end.
pub(crate) struct ProcessSpec<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) dir: &'a Path,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) log: PathBuf,
    pub(crate) timeout: Option<Duration>,
    pub(crate) grace: Duration,
    /// How a variable begins that no other process has: finds descendants that left the group.
    pub(crate) marker: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Signaled(i32),
    TimedOut,
    Cancelled,
}

/// Runs to the end; afterwards nothing of it is left running. Returns how it ended and its last lines.
pub(crate) fn run(
    spec: &ProcessSpec<'_>,
    secrets: &Secrets,
    cancellation: &Cancellation,
    guard: &Guard,
    tick: &mut dyn FnMut(),
) -> std::io::Result<(Ending, Vec<String>)> {
    guard.add(&spec.marker);
    let ended = run_guarded(spec, secrets, cancellation, tick);
    guard.remove(&spec.marker);
    ended
}

fn run_guarded(
    spec: &ProcessSpec<'_>,
    secrets: &Secrets,
    cancellation: &Cancellation,
    tick: &mut dyn FnMut(),
) -> std::io::Result<(Ending, Vec<String>)> {
    let mut child = Command::new(spec.program)
        .args(&spec.arguments)
        .current_dir(spec.dir)
        .env_clear()
        .envs(spec.environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_child(&child);
    let pipes: Vec<Box<dyn std::io::Read + Send>> = [
        child.stdout.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>),
        child.stderr.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>),
    ]
    .into_iter()
    .flatten()
    .collect();
    let capture = LogCapture::start(&spec.log, secrets, pipes);
    if capture.is_err() {
        signal(group, Signal::KILL);
    }
    let asked = supervise(spec, &child, cancellation, tick);
    // The leader is a zombie until `wait`: its group's number can't belong to anybody else yet.
    signal(group, Signal::KILL);
    let status = child.wait()?;
    sweep(&spec.marker);
    let tail = capture?.finish();
    let ending = asked.unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt;
        status.code().map_or_else(|| Ending::Signaled(status.signal().unwrap_or(0)), Ending::Exited)
    });
    Ok((ending, tail))
}

/// Returns when the leader has ended; `Some` where the runner made it end.
fn supervise(
    spec: &ProcessSpec<'_>,
    child: &Child,
    cancellation: &Cancellation,
    tick: &mut dyn FnMut(),
) -> Option<Ending> {
    let group = Pid::from_child(child);
    let deadline = spec.timeout.map(|t| Instant::now() + t);
    let mut pause = SHORTEST_PAUSE;
    let mut next_tick = Instant::now() + TICK;
    let mut asked: Option<(Ending, Instant)> = None;
    loop {
        if has_ended(group) {
            tick();
            return asked.map(|(ending, _)| ending);
        }
        let now = Instant::now();
        if let Some((_, until)) = &asked {
            if now >= *until || cancellation.urgent() {
                signal(group, Signal::KILL);
            }
        } else {
            let late = deadline.is_some_and(|d| now >= d);
            let why =
                if cancellation.asked() { Some(Ending::Cancelled) } else { late.then_some(Ending::TimedOut) };
            if let Some(why) = why {
                signal(group, Signal::TERM);
                // A stopped process would never see it.
                signal(group, Signal::CONT);
                asked = Some((why, now + spec.grace));
            }
        }
        if now >= next_tick {
            tick();
            next_tick = now + TICK;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn has_ended(leader: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(leader), options) {
        Ok(status) => status.is_some(),
        Err(rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}

/// A group that is gone already is no error.
pub(crate) fn signal(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

/// Kills descendants that left the group, found by their environment.
pub(crate) fn sweep(marker: &[u8]) {
    for _ in 0..5 {
        let found = marked(&BTreeSet::from([marker.to_vec()]));
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn marked(markers: &BTreeSet<Vec<u8>>) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::process::id();
    processes
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            let hit = pid as u32 != own
                && environment
                    .split(|b| *b == 0)
                    .any(|variable| markers.iter().any(|marker| variable.starts_with(marker)));
            hit.then(|| Pid::from_raw(pid)).flatten()
        })
        .collect()
}

/// Descendants that no longer carry a mark, because they emptied their environment and left their group, become children
/// of this process when their parents end. At the end of a run they are ended too.
#[derive(Debug)]
pub(crate) struct Orphanage {
    own: Vec<Pid>,
}

impl Orphanage {
    /// From now on; whoever is a child of this process already is none of its business.
    pub(crate) fn open() -> Self {
        let own = children();
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        Self { own }
    }

    /// Ends whoever came. No stage may be running.
    pub(crate) fn close(self) {
        for _ in 0..200 {
            let mut found = children();
            found.retain(|pid| !self.own.contains(pid));
            if found.is_empty() {
                break;
            }
            for pid in found {
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn children() -> Vec<Pid> {
    let own = std::process::id();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // After the name, which may hold anything: state, parent.
            let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            (parent == own).then(|| Pid::from_raw(pid)).flatten()
        })
        .collect()
}
