//! What an untrusted program and an untrusted source text can't do, at every level that this machine reaches.
//!
//! A test that needs more than the machine offers prints `NOT RUN` to stderr past the test harness's capture, so that it
//! can't be taken for a pass unseen.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sandbox::{Command, Finished, Limits, Profile, Sandbox, Status};

const REFUSED: Status = Status::Exit(7);
const WORKED: Status = Status::Exit(0);

fn limits() -> Limits {
    Limits {
        wall: Duration::from_secs(60),
        cpu_s: 60,
        memory_bytes: 1 << 30,
        file_bytes: 64 << 20,
        processes: 64,
        output_bytes: 1 << 20,
    }
}

fn sysroot() -> &'static Path {
    static SYSROOT: OnceLock<PathBuf> = OnceLock::new();
    SYSROOT.get_or_init(|| {
        let out = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
        PathBuf::from(String::from_utf8(out.stdout).unwrap().trim())
    })
}

fn rustc(args: &[&str], dir: &Path) -> Command {
    let path = OsString::from("/usr/local/bin:/usr/bin:/bin");
    Command {
        program: sysroot().join("bin/rustc"),
        args: args.iter().map(OsString::from).collect(),
        env: BTreeMap::from([("PATH".into(), path), ("TMPDIR".into(), dir.into())]),
        current_dir: dir.to_path_buf(),
        readable: vec![sysroot().to_path_buf()],
        writable: vec![dir.to_path_buf()],
        limits: Limits { memory_bytes: 8 << 30, processes: 512, file_bytes: 1 << 30, ..limits() },
        profile: Profile::Tool,
        verdict_fd_env: None,
    }
}

/// The attacking program, compiled once, inside the strongest sandbox there is.
fn attack_program() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &PROGRAM
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::copy("tests/programs/attack.rs", dir.path().join("attack.rs")).unwrap();
            let command = rustc(&["--edition=2024", "attack.rs", "-o", "attack"], dir.path());
            let done = Sandbox::probe().run(&command).unwrap();
            assert_eq!(done.status, WORKED, "{}", String::from_utf8_lossy(&done.stderr));
            let program = dir.path().join("attack");
            (dir, program)
        })
        .1
}

fn attack(args: &[&str]) -> Command {
    Command {
        program: attack_program().to_path_buf(),
        args: args.iter().map(OsString::from).collect(),
        env: BTreeMap::new(),
        current_dir: PathBuf::from("/"),
        readable: Vec::new(),
        writable: Vec::new(),
        limits: limits(),
        profile: Profile::Program,
        verdict_fd_env: None,
    }
}

/// Runs `test` at every level from `lowest` to the machine's; says loudly what could not be run.
fn at_levels(name: &str, lowest: u8, test: impl Fn(&Sandbox, u8)) {
    let sandbox = Sandbox::probe();
    let reached = sandbox.isolation().level;
    for level in lowest..=3 {
        if level > reached {
            let _ = writeln!(
                std::io::stderr(),
                "NOT RUN: {name} at level {level}: this machine reaches {reached}"
            );
            continue;
        }
        let lower = sandbox.at_most(level);
        assert_eq!(lower.isolation().level, level);
        test(&lower, level);
    }
}

fn status(sandbox: &Sandbox, args: &[&str]) -> Status {
    run(sandbox, &attack(args)).status
}

fn run(sandbox: &Sandbox, command: &Command) -> Finished {
    sandbox.run(command).unwrap()
}

#[test]
fn the_attacks_work_without_a_sandbox() {
    // Otherwise a refusal below would prove nothing.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let bare =
        |args: &[&str]| std::process::Command::new(attack_program()).args(args).status().unwrap().code();
    for args in [
        vec!["nothing"],
        vec!["read", "/etc/passwd"],
        vec!["write", file.to_str().unwrap()],
        vec!["chmod", file.to_str().unwrap()],
        vec!["delete", file.to_str().unwrap()],
        vec!["signal-parent"],
        vec!["exec", "/bin/sh"],
        vec!["env"],
        vec!["exec-from-memory"],
        vec!["signal-by-pipe", "1"],
    ] {
        let mut child = std::process::Command::new(attack_program());
        let code = child.args(&args).stdin(std::process::Stdio::null()).status().unwrap().code();
        assert_eq!(code, Some(0), "{args:?}");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(bare(&["tcp", &listener.local_addr().unwrap().to_string()]), Some(0));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(bare(&["udp", &socket.local_addr().unwrap().to_string()]), Some(0));
    assert_eq!(bare(&["tgkill", &std::process::id().to_string()]), Some(0));
}

#[test]
fn a_harmless_program_runs_at_every_level() {
    at_levels("a harmless program", 0, |sandbox, level| {
        assert_eq!(status(sandbox, &["nothing"]), WORKED, "level {level}");
        assert_eq!(status(sandbox, &["threads"]), WORKED, "level {level}");
    });
}

#[test]
fn files_outside_can_be_neither_read_nor_written() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    std::fs::write(&own, "content").unwrap();
    let own = own.to_str().unwrap();
    let home = std::env::var("HOME").unwrap_or_else(|_| "/".to_owned());
    at_levels("files outside", 1, |sandbox, level| {
        for args in [
            ["read", "/etc/hostname"],
            ["read", "/etc/passwd"],
            ["read", "/proc/self/environ"],
            ["list", "/proc"],
            ["list", &home],
            ["list", "/"],
            ["read", own],
            ["write", own],
            ["append", own],
            ["delete", own],
            ["chmod", own],
            ["write", "/tmp/testforge-escape"],
            ["write", "/dev/shm/testforge-escape"],
        ] {
            assert_eq!(status(sandbox, &args), REFUSED, "level {level}: {args:?}");
        }
        assert_eq!(std::fs::read_to_string(own).unwrap(), "content");
    });
}

#[test]
fn a_writable_folder_is_writable_and_a_readable_one_is_not() {
    at_levels("given folders", 1, |sandbox, level| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let file = file.to_str().unwrap();
        let mut command = attack(&["write", file]);
        command.readable = vec![dir.path().to_path_buf()];
        assert_eq!(run(sandbox, &command).status, REFUSED, "level {level}");
        command.writable = vec![dir.path().to_path_buf()];
        assert_eq!(run(sandbox, &command).status, WORKED, "level {level}");
        assert_eq!(std::fs::read(file).unwrap(), b"x");
    });
}

#[test]
fn there_is_no_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = listener.local_addr().unwrap().to_string();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = socket.local_addr().unwrap().to_string();
    at_levels("the network", 1, |sandbox, level| {
        assert_eq!(status(sandbox, &["tcp", &tcp]), REFUSED, "level {level}");
        assert_eq!(status(sandbox, &["udp", &udp]), REFUSED, "level {level}");
        assert_eq!(status(sandbox, &["udp", "192.0.2.1:53"]), REFUSED, "level {level}");
    });
}

#[test]
fn other_processes_are_out_of_reach() {
    let own = std::process::id().to_string();
    at_levels("other processes", 1, |sandbox, level| {
        for args in
            [["signal-parent", ""], ["signal", &own], ["signal", "1"], ["tgkill", &own], ["leave-group", ""]]
        {
            assert_eq!(status(sandbox, &args), REFUSED, "level {level}: {args:?}");
        }
    });
}

/// Also by the ways of the kernel that few programs know.
#[test]
fn calls_that_no_test_needs_are_refused() {
    let calls = [
        ("socket", libc::SYS_socket),
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("bpf", libc::SYS_bpf),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("memfd_create", libc::SYS_memfd_create),
        ("shmget", libc::SYS_shmget),
        ("mq_open", libc::SYS_mq_open),
        ("unshare", libc::SYS_unshare),
        ("setns", libc::SYS_setns),
        ("mount", libc::SYS_mount),
        ("execveat", libc::SYS_execveat),
        ("clone3", libc::SYS_clone3),
    ];
    at_levels("rare system calls", 1, |sandbox, level| {
        for (name, number) in calls {
            let number = number.to_string();
            assert_eq!(status(sandbox, &["system-call", &number]), REFUSED, "level {level}: {name}");
        }
        let own = std::process::id().to_string();
        for args in [["signal-by-pipe", &own], ["signal-by-pipe", "1"], ["exec-from-memory", ""]] {
            assert_eq!(status(sandbox, &args), REFUSED, "level {level}: {args:?}");
        }
    });
    at_levels("limits", 1, |sandbox, level| {
        for resource in [libc::RLIMIT_AS, libc::RLIMIT_FSIZE, libc::RLIMIT_NOFILE] {
            let resource = resource.to_string();
            assert_eq!(status(sandbox, &["raise-limit", &resource]), REFUSED, "level {level}: {resource}");
        }
    });
}

#[test]
fn no_child_process_can_be_started() {
    at_levels("child processes", 1, |sandbox, level| {
        assert_eq!(status(sandbox, &["exec", "/bin/sh"]), REFUSED, "level {level}");
        assert_eq!(status(sandbox, &["fork-bomb"]), REFUSED, "level {level}");
    });
}

#[test]
fn threads_are_bounded() {
    at_levels("a thread bomb", 3, |sandbox, _| {
        let done = run(sandbox, &attack(&["thread-bomb"]));
        assert_eq!(done.status, REFUSED);
        let made: u32 = String::from_utf8(done.stdout).unwrap().trim().parse().unwrap();
        assert!(made <= 64, "{made} threads");
    });
}

#[test]
fn memory_is_bounded() {
    at_levels("a memory bomb", 0, |sandbox, level| {
        let ended = status(sandbox, &["memory"]);
        assert!(matches!(ended, Status::Signal(libc::SIGABRT | libc::SIGKILL)), "level {level}: {ended:?}");
    });
}

#[test]
fn a_file_can_not_fill_the_disk() {
    at_levels("disk fill", 0, |sandbox, level| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = attack(&["fill", dir.path().join("big").to_str().unwrap()]);
        command.writable = vec![dir.path().to_path_buf()];
        assert_eq!(run(sandbox, &command).status, Status::Signal(libc::SIGXFSZ), "level {level}");
        assert!(std::fs::metadata(dir.path().join("big")).unwrap().len() <= 64 << 20);
    });
}

#[test]
fn endless_programs_end_at_the_deadline() {
    at_levels("endless programs", 0, |sandbox, level| {
        for kind in ["loop", "sleep", "chatter"] {
            let mut command = attack(&[kind]);
            command.limits.wall = Duration::from_millis(300);
            command.limits.output_bytes = 1000;
            let began = Instant::now();
            let done = run(sandbox, &command);
            assert_eq!(done.status, Status::TimedOut, "level {level}: {kind}");
            assert!(began.elapsed() < Duration::from_secs(20), "level {level}: {kind}");
            assert!(done.stdout.len() <= 1000);
            assert_eq!(done.truncated, kind == "chatter");
        }
    });
}

#[test]
fn cpu_time_is_bounded() {
    at_levels("cpu time", 0, |sandbox, level| {
        let mut command = attack(&["loop"]);
        command.limits.cpu_s = 1;
        let ended = run(sandbox, &command).status;
        assert!(matches!(ended, Status::Signal(libc::SIGXCPU | libc::SIGKILL)), "level {level}: {ended:?}");
    });
}

#[test]
fn nothing_is_inherited() {
    at_levels("inheritance", 0, |sandbox, level| {
        assert_eq!(status(sandbox, &["env"]), REFUSED, "level {level}");
        assert_eq!(status(sandbox, &["stdin"]), REFUSED, "level {level}");
    });
}

#[test]
fn the_way_a_program_ends_is_told() {
    at_levels("ways to end", 0, |sandbox, level| {
        assert_eq!(status(sandbox, &["abort"]), Status::Signal(libc::SIGABRT), "level {level}");
        let overflow = status(sandbox, &["stack"]);
        assert!(
            matches!(overflow, Status::Signal(libc::SIGABRT | libc::SIGSEGV)),
            "level {level}: {overflow:?}"
        );
        let mut command = attack(&["verdict"]);
        command.verdict_fd_env = Some("VERDICT_FD".to_owned());
        let done = run(sandbox, &command);
        assert_eq!((done.status, done.verdicts), (Status::Exit(3), b"line one\n".to_vec()), "level {level}");
    });
}

#[test]
fn a_missing_program_is_an_error_that_names_it() {
    at_levels("a missing program", 0, |sandbox, _| {
        let command = Command { program: PathBuf::from("/no/such/program"), ..attack(&[]) };
        let message = sandbox.run(&command).unwrap_err().to_string();
        assert!(message.contains("/no/such/program"), "{message}");
    });
}

#[test]
fn source_text_can_not_include_files_from_outside() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret.txt");
    std::fs::write(&secret, "secret").unwrap();
    at_levels("include_str!", 1, |sandbox, level| {
        for path in ["/etc/hostname", secret.to_str().unwrap()] {
            let dir = tempfile::tempdir().unwrap();
            let text = format!("pub const TEXT: &str = include_str!({path:?});");
            std::fs::write(dir.path().join("lib.rs"), text).unwrap();
            let done = run(sandbox, &rustc(&["--crate-type=lib", "--emit=metadata", "lib.rs"], dir.path()));
            assert_eq!(done.status, Status::Exit(1), "level {level}: {path}");
            let stderr = String::from_utf8(done.stderr).unwrap();
            assert!(stderr.contains("Permission denied"), "level {level}: {stderr}");
        }
    });
}

#[test]
fn many_at_once_do_not_mix_their_pipes() {
    let sandbox = Sandbox::probe();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let mut command = attack(&["verdict"]);
                    command.verdict_fd_env = Some("VERDICT_FD".to_owned());
                    let done = run(&sandbox, &command);
                    assert_eq!((done.status, done.verdicts), (Status::Exit(3), b"line one\n".to_vec()));
                }
            });
        }
    });
}

#[test]
fn a_level_that_is_not_reached_is_refused() {
    let none = Sandbox::probe().at_most(0);
    let message = none.require(1).unwrap_err().to_string();
    assert!(message.contains("Landlock") && message.contains("level 1 is required"), "{message}");
    none.require(0).unwrap();
}
