//! The small process that starts commands: who it belongs to, how big it is, what happens when it is gone.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sandbox::{Command, Limits, Profile, Sandbox, Status};

/// The tests look at all children of this process: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn shell(script: &str) -> Command {
    Command {
        program: PathBuf::from("/bin/sh"),
        args: vec!["-c".into(), script.into()],
        env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
        current_dir: PathBuf::from("/"),
        readable: Vec::new(),
        writable: Vec::new(),
        limits: Limits {
            wall: Duration::from_secs(60),
            cpu_s: 60,
            memory_bytes: 1 << 30,
            file_bytes: 1 << 20,
            processes: 64,
            output_bytes: 1 << 20,
        },
        profile: Profile::Tool,
        verdict_fd_env: None,
    }
}

/// All descendants of this process.
fn descendants() -> Vec<u32> {
    let mut found = Vec::new();
    let mut waiting = vec![std::process::id()];
    while let Some(pid) = waiting.pop() {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            waiting.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        found.push(pid);
    }
    found.retain(|pid| *pid != std::process::id());
    found
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn commands_run_on_after_the_thread_that_made_the_sandbox() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = std::thread::spawn(Sandbox::probe).join().unwrap();
    let running = {
        let sandbox = sandbox.clone();
        std::thread::spawn(move || sandbox.run(&shell("sleep 0.3; echo done")))
    };
    let done = running.join().unwrap().unwrap();
    assert_eq!((done.status, done.stdout.as_slice()), (Status::Exit(0), b"done\n".as_slice()));
}

/// Time on a CPU is that of the command and its children, not time that passes.
#[test]
fn waiting_takes_no_time_on_a_cpu_and_counting_does() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::probe();
    let waited = sandbox.run(&shell("sleep 0.6")).unwrap();
    assert!(
        waited.wall >= Duration::from_millis(600) && waited.cpu < Duration::from_millis(300),
        "{waited:?}"
    );
    let counted = sandbox.run(&shell("i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done")).unwrap();
    assert!(counted.cpu > Duration::from_millis(40) && counted.cpu <= counted.wall * 2, "{counted:?}");
}

#[test]
fn the_last_sandbox_leaves_neither_process_nor_descriptor() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let sandbox = Sandbox::probe();
    let lower = sandbox.at_most(1);
    drop(sandbox);
    assert_eq!(lower.run(&shell("exit 5")).unwrap().status, Status::Exit(5));
    let missing = Command { program: PathBuf::from("/no/such/program"), ..shell("") };
    assert!(lower.run(&missing).is_err());
    let elsewhere = Command { current_dir: PathBuf::from("/no/such/folder"), ..shell("") };
    assert!(lower.run(&elsewhere).is_err());
    drop(lower);
    assert_eq!((descriptors(), descendants()), (before, Vec::new()));
}

#[test]
fn memory_of_the_program_is_not_copied_for_a_command() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const BALLAST: usize = 256 << 20;
    let sandbox = Sandbox::probe();
    let ballast = vec![1_u8; BALLAST];
    std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.run(&shell("sleep 1")));
        let resident = |pid: u32| {
            let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            statm.split(' ').nth(1).map_or(0, |pages| pages.parse::<usize>().unwrap() * 4096)
        };
        until("a command beside the launcher", || descendants().len() > 1);
        while !running.is_finished() {
            for pid in descendants() {
                assert!(resident(pid) < BALLAST / 4, "process {pid} holds {} bytes", resident(pid));
            }
        }
        assert_eq!(running.join().unwrap().unwrap().status, Status::Exit(0));
    });
    assert_eq!(ballast.iter().map(|byte| usize::from(*byte)).sum::<usize>(), BALLAST);
}

#[test]
fn arguments_beyond_one_message_arrive_whole() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = shell("echo $# ${#100000} $0");
    command.args.push("zero".into());
    command.args.extend((0..100_000).map(|n| OsString::from(format!("{n:08}"))));
    let done = Sandbox::probe().run(&command).unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "100000 8 zero\n");
}

#[test]
fn without_its_launcher_a_command_is_refused() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::probe();
    let launchers = descendants();
    assert_eq!(launchers.len(), 1);
    let kill = std::process::Command::new("kill").args(["-9", &launchers[0].to_string()]).status().unwrap();
    assert!(kill.success());
    until("the end of the launcher", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", launchers[0])).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    let error = sandbox.run(&shell("true")).unwrap_err().to_string();
    assert!(error.contains("/bin/sh"), "{error}");
}
