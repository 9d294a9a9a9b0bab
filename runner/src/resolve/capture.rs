//! Short commands that are asked for a text: versions, descriptions.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// An answer longer than this is cut: none is a text that somebody asked for.
const LONGEST: u64 = 16 << 20;
/// What a child of the command may keep a pipe open after the command has ended.
const LINGER: Duration = Duration::from_secs(1);

/// Runs a short command in a process group of its own, of which nothing is left afterwards, and returns what it printed
/// on standard output.
pub(crate) fn capture(
    program: &Path,
    arguments: &[OsString],
    dir: &Path,
    environment: &[(OsString, OsString)],
    limit: Duration,
) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .envs(environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| format!("can't run {}: {e}", program.display()))?;
    let group = Pid::from_child(&child);
    let stdout = child.stdout.take().map(read);
    let stderr = child.stderr.take().map(read);
    let started = Instant::now();
    let mut failure = None;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < limit && !crate::interrupt::stop() => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(None) => {
                failure.get_or_insert_with(|| {
                    if crate::interrupt::stop() {
                        "interrupted".to_owned()
                    } else {
                        format!("no answer within {} s", limit.as_secs())
                    }
                });
                let _ = kill_process_group(group, Signal::KILL);
                break child.wait().map_err(|e| e.to_string())?;
            }
            Err(e) => return Err(e.to_string()),
        }
    };
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let _ = kill_process_group(group, Signal::KILL);
    if let Some(failure) = failure {
        return Err(failure);
    }
    if !status.success() {
        let text = String::from_utf8_lossy(&stderr);
        let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
        return Err(format!("{status}: {last}"));
    }
    String::from_utf8(stdout).map_err(|_| "the answer is not UTF-8".to_owned())
}

/// Chunks as they come; the end of the channel is the end of the pipe.
fn read(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let (mut chunk, mut total) = (vec![0; 16 * 1024], 0);
        while let Ok(n) = pipe.read(&mut chunk) {
            total += n as u64;
            // What is too much is still taken from the pipe, so that its writer can end.
            if n == 0 || (total <= LONGEST && send.send(chunk[..n].to_vec()).is_err()) {
                break;
            }
        }
    });
    receive
}

fn collect(pipe: Option<Receiver<Vec<u8>>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let until = Instant::now() + LINGER;
    while let Some(chunk) =
        pipe.as_ref().and_then(|p| p.recv_timeout(until.saturating_duration_since(Instant::now())).ok())
    {
        bytes.extend(chunk);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<String, String> {
        capture(Path::new("/bin/sh"), &["-c".into(), script.into()], Path::new("/"), &[], limit)
    }

    #[test]
    fn an_answer_a_failure_and_a_silence() {
        let long = Duration::from_secs(20);
        assert_eq!(sh("echo yes", long).unwrap(), "yes\n");
        assert!(sh("echo reason >&2; exit 3", long).unwrap_err().contains("reason"));
        assert!(sh("sleep 100", Duration::from_millis(50)).unwrap_err().contains("no answer"));
    }

    #[test]
    fn a_child_that_keeps_the_pipe_open_holds_nobody_up() {
        let started = Instant::now();
        assert_eq!(sh("sleep 100 & echo yes", Duration::from_secs(20)).unwrap(), "yes\n");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
