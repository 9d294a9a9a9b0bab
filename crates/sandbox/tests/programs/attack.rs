//! An untrusted program: tries one thing, named by its first argument. Exit codes: 0 it worked, 7 it was refused.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};

unsafe extern "C" {
    fn fork() -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
    fn getppid() -> i32;
    fn setsid() -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn fcntl(fd: i32, command: i32, ...) -> i32;
    fn execv(path: *const std::ffi::c_char, args: *const *const std::ffi::c_char) -> i32;
    fn setrlimit(resource: u32, limits: *const [u64; 2]) -> i32;
}

fn verdict(worked: bool) -> ! {
    std::process::exit(if worked { 0 } else { 7 })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args[1].as_str() {
        "nothing" => verdict(true),
        "read" => verdict(std::fs::read(&args[2]).is_ok()),
        "list" => verdict(std::fs::read_dir(&args[2]).is_ok()),
        "write" => verdict(std::fs::write(&args[2], b"x").is_ok()),
        "append" => verdict(std::fs::OpenOptions::new().append(true).open(&args[2]).is_ok()),
        "delete" => verdict(std::fs::remove_file(&args[2]).is_ok()),
        "chmod" => {
            use std::os::unix::fs::PermissionsExt;
            verdict(std::fs::set_permissions(&args[2], std::fs::Permissions::from_mode(0o777)).is_ok())
        }
        "tcp" => verdict(TcpStream::connect(&args[2]).is_ok()),
        "udp" => verdict(UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"x", &args[2])).is_ok()),
        "exec" => verdict(std::process::Command::new(&args[2]).status().is_ok()),
        "signal-parent" => verdict(unsafe { kill(getppid(), 0) } == 0),
        "signal" => verdict(unsafe { kill(args[2].parse().unwrap(), 0) } == 0),
        "tgkill" => {
            let pid: i32 = args[2].parse().unwrap();
            verdict(unsafe { syscall(234, pid, pid, 0) } == 0)
        }
        "system-call" => {
            let number: i64 = args[2].parse().unwrap();
            let zeros = [0_u8; 512];
            // A size, flags and a pointer: enough for each call here to be answered otherwise than by a refusal.
            let result = unsafe { syscall(number, 1_i64, zeros.as_ptr(), 0_i64, 0_i64, 0_i64) };
            let error = std::io::Error::last_os_error().raw_os_error();
            verdict(result >= 0 || !matches!(error, Some(1 | 13 | 38)))
        }
        // The kernel signals the owner of a pipe when something comes through it.
        "signal-by-pipe" => {
            use std::os::fd::AsRawFd;
            let (reader, mut writer) = std::io::pipe().unwrap();
            let (fd, pid) = (reader.as_raw_fd(), args[2].parse::<i32>().unwrap());
            let (set_flags, o_async, set_owner, set_signal, sigusr1) = (4, 0x2000, 8, 10, 10);
            let owned = unsafe {
                fcntl(fd, set_signal, sigusr1) == 0 && fcntl(fd, set_owner, pid) == 0 && fcntl(fd, set_flags, o_async) == 0
            };
            verdict(owned && writer.write_all(b"x").is_ok())
        }
        "exec-from-memory" => {
            use std::os::fd::FromRawFd;
            let fd = unsafe { syscall(319, c"program".as_ptr(), 0_i64) };
            if fd < 0 {
                verdict(false);
            }
            let mut file = unsafe { std::fs::File::from_raw_fd(fd as i32) };
            // It may read its own program.
            file.write_all(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
            let path = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).unwrap();
            let list = [path.as_ptr(), c"nothing".as_ptr(), std::ptr::null()];
            unsafe { execv(path.as_ptr(), list.as_ptr()) };
            verdict(false)
        }
        "raise-limit" => verdict(unsafe { setrlimit(args[2].parse().unwrap(), &[u64::MAX, u64::MAX]) } == 0),
        "leave-group" => verdict(unsafe { setsid() } > 0),
        "env" => verdict(std::env::vars().next().is_some()),
        "stdin" => {
            let mut text = String::new();
            verdict(std::io::stdin().read_line(&mut text).unwrap() > 0)
        }
        "fork-bomb" => {
            let mut made = 0;
            while made < 100_000 && unsafe { fork() } >= 0 {
                made += 1;
            }
            verdict(made > 0)
        }
        "thread-bomb" => {
            for made in 0..100_000 {
                let thread = std::thread::Builder::new().stack_size(16 << 10);
                if thread.spawn(|| std::thread::sleep(std::time::Duration::from_secs(60))).is_err() {
                    println!("{made}");
                    verdict(false);
                }
            }
            verdict(true)
        }
        "memory" => {
            let mut blocks: Vec<Vec<u8>> = Vec::new();
            for _ in 0..64 {
                blocks.push(vec![1; 64 << 20]);
            }
            verdict(blocks.len() == 64)
        }
        "fill" => {
            let mut file = std::fs::File::create(&args[2]).unwrap();
            let block = vec![0; 1 << 20];
            for _ in 0..512 {
                file.write_all(&block).unwrap();
            }
            verdict(true)
        }
        "loop" => loop {
            std::hint::spin_loop();
        },
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(600)),
        "abort" => std::process::abort(),
        "stack" => {
            fn down(n: u64) -> u64 {
                let mut room = [n; 512];
                std::hint::black_box(&mut room);
                if n == u64::MAX { 0 } else { down(n + 1) + room[7] }
            }
            println!("{}", down(0));
        }
        "chatter" => loop {
            let _ = std::io::stdout().write_all(&[b'x'; 4096]);
        },
        "threads" => {
            let threads: Vec<_> = (0..4).map(|i| std::thread::spawn(move || i * 2)).collect();
            verdict(threads.into_iter().map(|t| t.join().unwrap()).sum::<i32>() == 12)
        }
        "verdict" => {
            use std::os::fd::FromRawFd;
            let fd: i32 = std::env::var("VERDICT_FD").unwrap().parse().unwrap();
            let mut pipe = unsafe { std::fs::File::from_raw_fd(fd) };
            pipe.write_all(b"line one\n").unwrap();
            std::process::exit(3);
        }
        other => panic!("no attack called {other}"),
    }
}
