//! A small process that outlives a killed runner just long enough to end its stages.
//!
//! The runner tells it, over a pipe, which stage is about to start and which has ended. When the pipe closes while
//! stages are left, the runner is gone: the guard finds their processes by the marker in their environment and ends
//! them, politely first.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use record::exit::ExitCode;
use rustix::process::{Pid, Signal, getpgid, kill_process};

use super::process::{marked, signal};

/// The hidden subcommand that the guard runs as.
pub(crate) const SUBCOMMAND: &str = "guard-stages";
const GRACE: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_millis(500);

/// The runner's end. Without a guard process, everything else works as well.
#[derive(Debug, Default)]
pub struct Guard {
    state: Mutex<Option<(Child, ChildStdin)>>,
}

impl Guard {
    /// Starts the guard as `exe guard-stages`.
    pub fn start(exe: &Path) -> Self {
        let child = Command::new(exe)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        let started = child.ok().and_then(|mut child| child.stdin.take().map(|pipe| (child, pipe)));
        Self { state: Mutex::new(started) }
    }

    /// Before the process starts: one that is killed between its start and a note of it would be lost.
    pub(crate) fn add(&self, marker: &[u8]) {
        self.tell(&format!("+{}\n", hex::encode(marker)));
    }

    pub(crate) fn remove(&self, marker: &[u8]) {
        self.tell(&format!("-{}\n", hex::encode(marker)));
    }

    fn tell(&self, line: &str) {
        if let Ok(mut state) = self.state.lock()
            && let Some((_, pipe)) = state.as_mut()
            && pipe.write_all(line.as_bytes()).is_err()
        {
            *state = None;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(state) = self.state.get_mut()
            && let Some((mut child, pipe)) = state.take()
        {
            drop(pipe);
            let _ = child.wait();
        }
    }
}

/// The guard's whole life.
pub fn guard_main() -> ExitCode {
    // Only the end of the pipe ends the guard.
    for number in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        let _ = signal_hook::flag::register(number, std::sync::Arc::default());
    }
    let mut markers: BTreeSet<Vec<u8>> = BTreeSet::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Some((sign, rest)) = line.split_at_checked(1) else { continue };
        let Ok(marker) = hex::decode(rest) else { continue };
        if sign == "+" {
            markers.insert(marker);
        } else {
            markers.remove(&marker);
        }
    }
    if !markers.is_empty() {
        end_all(&markers);
    }
    ExitCode::Ok
}

/// Ends every process with one of the markers, and the groups that such processes lead.
fn end_all(markers: &BTreeSet<Vec<u8>>) {
    let started = Instant::now();
    let mut asked: Vec<Pid> = Vec::new();
    while started.elapsed() < GRACE {
        let found = marked(markers);
        // A process that was just being started shows its marker a little later.
        if found.is_empty() && started.elapsed() > SETTLE {
            return;
        }
        for pid in found {
            if !asked.contains(&pid) {
                asked.push(pid);
                send(pid, Signal::TERM);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for _ in 0..10 {
        let found = marked(markers);
        if found.is_empty() {
            return;
        }
        found.into_iter().for_each(|pid| send(pid, Signal::KILL));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn send(pid: Pid, number: Signal) {
    let _ = kill_process(pid, number);
    if getpgid(Some(pid)) == Ok(pid) {
        signal(pid, number);
    }
}
