//! A small process that starts the commands.
//!
//! A fork copies the page tables of the process that calls it, and every command takes three of them. In a program that
//! holds hundreds of megabytes that costs more than the compiler in the sandbox. So one copy of the program is made early,
//! while it is small, and forks in its place. What it starts is a child of the program nevertheless (`CLONE_PARENT`), so
//! waiting and killing are as if the program had forked itself.
//!
//! The copy makes system calls only: it was forked from a process that may have threads, so nothing may allocate there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::child::{self, check, check_len};
use crate::order::{Files, MAX_FILES, Order};
use crate::watch;

/// Where the launcher finds its socket; a child's verdict pipe takes its place.
const SOCKET: RawFd = 3;
/// Kinds of messages through the report pipe: a kind and a number, four bytes each.
const STARTED: i32 = 1;
const FAILED: i32 = 2;

/// The program's end of it. The launcher leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Launcher {
    socket: Option<OwnedFd>,
    /// The thread that is the parent of launcher and commands: they are killed when it ends, so it stays.
    keeper: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// How the start of a command went.
#[derive(Debug)]
pub(crate) struct Launched {
    /// A child of this process, to be waited for.
    pub(crate) pid: Option<libc::pid_t>,
    /// Why it is not the command.
    pub(crate) failure: Option<io::Error>,
}

impl Launcher {
    pub(crate) fn start() -> io::Result<Self> {
        let (ours, theirs) = socket_pair()?;
        let (started, answer) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let keep = move || {
            // SAFETY: the child makes system calls only and never returns.
            let forked = unsafe {
                let forked = child::fork();
                if let Ok(0) = forked {
                    serve(theirs.as_raw_fd());
                }
                forked
            };
            drop(theirs);
            let launcher = match forked {
                Ok(pid) => pid,
                Err(error) => return drop(started.send(Err(error))),
            };
            drop(started.send(Ok(())));
            // An error means that the sender is gone, which is the sign to stop.
            let _ = stopped.recv();
            reap(launcher);
        };
        let keeper = std::thread::Builder::new().name("sandbox-launcher".to_owned()).spawn(keep)?;
        answer.recv().unwrap_or_else(|_| Err(io::Error::other("the launcher's thread ended")))?;
        Ok(Self { socket: Some(ours), keeper: Some((stop, keeper)) })
    }

    /// Has the order followed. Returns when the command runs or failed to start.
    pub(crate) fn launch(&self, order: &[u8], files: &Files) -> io::Result<Launched> {
        let file = memory_file(order)?;
        let (report, reporter) = watch::pipe()?;
        let mut numbers = vec![file.as_raw_fd(), reporter.as_raw_fd()];
        numbers.extend(files.numbers());
        send(self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd), &numbers)?;
        drop(reporter);
        read_report(File::from(report))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        drop(self.socket.take());
        if let Some((stop, keeper)) = self.keeper.take() {
            drop(stop);
            let _ = keeper.join();
        }
    }
}

fn read_report(mut report: File) -> io::Result<Launched> {
    let mut messages = Vec::new();
    report.read_to_end(&mut messages)?;
    let mut launched = Launched { pid: None, failure: None };
    for message in messages.as_chunks::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *message;
        let value = i32::from_ne_bytes([e, f, g, h]);
        match i32::from_ne_bytes([a, b, c, d]) {
            STARTED => launched.pid = Some(value),
            _ => launched.failure = Some(io::Error::from_raw_os_error(value)),
        }
    }
    match launched {
        Launched { pid: None, failure: None } => {
            Err(io::Error::other("the process that starts commands is gone"))
        }
        launched => Ok(launched),
    }
}

fn memory_file(content: &[u8]) -> io::Result<File> {
    // SAFETY: the call returns a fresh descriptor or an error.
    let mut file = unsafe {
        let fd = libc::memfd_create(c"order".as_ptr(), libc::MFD_CLOEXEC);
        check(fd)?;
        File::from_raw_fd(fd)
    };
    file.write_all(content)?;
    Ok(file)
}

/// Keeps the borders of messages: orders of several threads don't mix.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the call fills both numbers with fresh descriptors.
    unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        check(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn reap(launcher: libc::pid_t) {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    while unsafe { libc::waitpid(launcher, &mut status, 0) } < 0 && child::errno() == libc::EINTR {}
}

/// Room for the control message with [`MAX_FILES`] descriptors, aligned as its header wants.
type Control = [u64; 4 + MAX_FILES];

/// One byte and the descriptors with it.
fn send(socket: RawFd, files: &[RawFd]) -> io::Result<()> {
    if files.len() > MAX_FILES {
        return Err(io::Error::other(format!(
            "a command takes {MAX_FILES} files at most, this one {}",
            files.len()
        )));
    }
    let mut control: Control = [0; _];
    let mut byte = 0_u8;
    let mut content = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: `control` has room for the header and all descriptors; everything lives across the call.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut content;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of_val(files) as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of_val(files) as u32) as usize;
        std::ptr::copy_nonoverlapping(files.as_ptr(), libc::CMSG_DATA(header).cast(), files.len());
        loop {
            match check_len(libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// The descriptors of the next order: how many. `None` when the program is gone.
unsafe fn receive(files: &mut [RawFd; MAX_FILES]) -> Option<usize> {
    let mut control: Control = [0; _];
    let mut byte = 0_u8;
    let mut content = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: as in `send`.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut content;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>();
        let length = loop {
            let length = libc::recvmsg(SOCKET, &raw mut message, libc::MSG_CMSG_CLOEXEC);
            if length >= 0 || child::errno() != libc::EINTR {
                break length;
            }
        };
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if length <= 0 {
            return None;
        }
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
            return Some(0);
        }
        let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
        let n = (bytes / size_of::<RawFd>()).min(MAX_FILES);
        std::ptr::copy_nonoverlapping(libc::CMSG_DATA(header).cast(), files.as_mut_ptr(), n);
        Some(n)
    }
}

/// The launcher: follows orders until the program is gone.
unsafe fn serve(socket: RawFd) -> ! {
    // SAFETY: system calls only, on memory of this function's own.
    unsafe {
        if settle(socket).is_err() {
            libc::_exit(1);
        }
        let mut files = [-1; MAX_FILES];
        while let Some(n) = receive(&mut files) {
            if let Some((&[order, report], others)) = files.get(..n).and_then(<[RawFd]>::split_first_chunk) {
                follow(order, report, others);
            }
            for file in files.iter().take(n) {
                libc::close(*file);
            }
        }
        libc::_exit(0)
    }
}

/// Nothing of the program's stays open or is reacted to; standard input, output and error are the null device.
unsafe fn settle(socket: RawFd) -> io::Result<()> {
    const HIGH: RawFd = 16;
    // SAFETY: this process owns its descriptors and signals.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        libc::setsid();
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        let mut none: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let socket = libc::fcntl(socket, libc::F_DUPFD, HIGH);
        check(socket)?;
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        check(null)?;
        let null = libc::fcntl(null, libc::F_DUPFD, HIGH);
        check(null)?;
        for standard in 0..SOCKET {
            check(libc::dup2(null, standard))?;
        }
        check(libc::dup3(socket, SOCKET, libc::O_CLOEXEC))?;
        child::close_range(SOCKET as libc::c_uint + 1, libc::c_uint::MAX);
    }
    Ok(())
}

/// Forks the command and reports.
unsafe fn follow(order: RawFd, report: RawFd, files: &[RawFd]) {
    // SAFETY: the child makes system calls only and never returns.
    unsafe {
        let pid = child::fork_beside();
        match pid {
            Ok(0) => {
                let error = match Order::at(order) {
                    Ok(order) => order.follow(files),
                    Err(error) => error,
                };
                tell(report, FAILED, error.raw_os_error().unwrap_or(libc::EIO));
                libc::_exit(127)
            }
            Ok(pid) => tell(report, STARTED, pid),
            Err(error) => tell(report, FAILED, error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

unsafe fn tell(report: RawFd, kind: i32, value: i32) {
    let message = [kind, value];
    // SAFETY: the message lives across the call; a pipe takes eight bytes at once.
    unsafe { libc::write(report, message.as_ptr().cast(), size_of_val(&message)) };
}
