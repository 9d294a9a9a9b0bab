//! A small process that outlives a killed runner just long enough to end its stages.
//!
//! The runner tells it every process group that starts and ends, over a pipe. When the pipe closes while groups are
//! left, the runner is gone: the guard ends them, politely first.

use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use record::exit::ExitCode;
use rustix::process::{Pid, Signal};

use super::process::{signal, sweep};

/// The hidden subcommand that the guard runs as.
pub(crate) const SUBCOMMAND: &str = "guard-stages";
const GRACE: Duration = Duration::from_secs(2);

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

    pub(crate) fn add(&self, group: Pid, marker: &[u8]) {
        self.tell(&format!("+{} {}\n", group.as_raw_nonzero(), hex::encode(marker)));
    }

    pub(crate) fn remove(&self, group: Pid) {
        self.tell(&format!("-{}\n", group.as_raw_nonzero()));
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
    let mut groups: Vec<(Pid, Vec<u8>)> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Some((sign, rest)) = line.split_at_checked(1) else { continue };
        let mut words = rest.split(' ');
        let Some(pid) = words.next().and_then(|w| w.parse().ok()).and_then(Pid::from_raw) else { continue };
        match sign {
            "+" => groups.push((pid, words.next().and_then(|w| hex::decode(w).ok()).unwrap_or_default())),
            _ => groups.retain(|(known, _)| *known != pid),
        }
    }
    groups.iter().for_each(|(group, _)| signal(*group, Signal::TERM));
    let alive = |group: &Pid| rustix::process::test_kill_process_group(*group).is_ok();
    let mut waited = Duration::ZERO;
    while waited < GRACE && groups.iter().any(|(group, _)| alive(group)) {
        std::thread::sleep(Duration::from_millis(20));
        waited += Duration::from_millis(20);
    }
    for (group, marker) in &groups {
        signal(*group, Signal::KILL);
        sweep(marker);
    }
    ExitCode::Ok
}
