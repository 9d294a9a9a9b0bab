//! An untrusted program: tries one thing, named by its first argument. Exit codes: 0 it worked, 7 it was refused.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};

unsafe extern "C" {
    fn fork() -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
    fn getppid() -> i32;
    fn setsid() -> i32;
    fn syscall(number: i64, ...) -> i64;
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
