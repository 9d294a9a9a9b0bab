//! The parent's side: reads the child's pipes and waits for its end or the deadline, in one thread without polling.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Without a process descriptor (kernels before 5.3) the child is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A pipe of which the first `limit` bytes are kept and the rest is read and dropped.
#[derive(Debug)]
pub(crate) struct Drain<R> {
    pipe: Option<R>,
    pub(crate) bytes: Vec<u8>,
    limit: usize,
    pub(crate) truncated: bool,
}

impl<R: Read + AsRawFd> Drain<R> {
    pub(crate) fn new(pipe: Option<R>, limit: usize) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            set_nonblocking(pipe.as_raw_fd())?;
        }
        Ok(Self { pipe, bytes: Vec::new(), limit, truncated: false })
    }

    fn fd(&self) -> RawFd {
        self.pipe.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Reads what is there. A pipe that ended or failed is closed.
    fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut buffer = [0; 16 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    let kept = n.min(self.limit - self.bytes.len());
                    self.bytes.extend_from_slice(&buffer[..kept]);
                    self.truncated |= kept < n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.pipe = None;
    }
}

/// A process that can be waited for together with pipes.
#[derive(Debug)]
pub(crate) struct Watched {
    pid: libc::pid_t,
    descriptor: Option<OwnedFd>,
    reaped: bool,
}

impl Watched {
    pub(crate) fn new(pid: libc::pid_t) -> Self {
        // SAFETY: the call returns a fresh descriptor or an error.
        let descriptor = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as RawFd))
        };
        Self { pid, descriptor, reaped: false }
    }

    /// Reads the pipes until the process ends (true) or the deadline passes (false). The process is not reaped: its id
    /// stays its own until the caller has killed its group.
    pub(crate) fn wait<O, E, V>(
        &self,
        out: &mut Drain<O>,
        err: &mut Drain<E>,
        verdicts: &mut Drain<V>,
        deadline: Instant,
    ) -> io::Result<bool>
    where
        O: Read + AsRawFd,
        E: Read + AsRawFd,
        V: Read + AsRawFd,
    {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let process = self.descriptor.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            let timeout = if self.descriptor.is_some() { left } else { left.min(LOOK_INTERVAL) };
            poll([process, out.fd(), err.fd(), verdicts.fd()], timeout)?;
            out.read();
            err.read();
            verdicts.read();
            if self.ended()? {
                return Ok(true);
            }
        }
    }

    fn ended(&self) -> io::Result<bool> {
        // SAFETY: an all-zero siginfo_t is a valid value, and the call fills it.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            if libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, options) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(info.si_pid() == self.pid)
        }
    }

    /// Kills what is left of the process and its group. Returns how the process ended, and the time that it and all that it
    /// waited for had a CPU.
    pub(crate) fn end(&mut self) -> io::Result<(ExitStatus, Duration)> {
        self.kill_group();
        let mut status = 0;
        // SAFETY: an all-zero rusage is a valid value.
        let mut used: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the call fills both values; a child is reaped once.
        while unsafe { libc::wait4(self.pid, &mut status, 0, &mut used) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.reaped = true;
        let time = |t: libc::timeval| {
            Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_micros(t.tv_usec.unsigned_abs())
        };
        Ok((ExitStatus::from_raw(status), time(used.ru_utime) + time(used.ru_stime)))
    }

    fn kill_group(&self) {
        // SAFETY: the group is led by a child that was not reaped yet, so the number can't belong to others.
        unsafe {
            libc::kill(-self.pid, libc::SIGKILL);
            libc::kill(self.pid, libc::SIGKILL);
        }
    }
}

/// A child that nobody waited for to its end is not left behind.
impl Drop for Watched {
    fn drop(&mut self) {
        if !self.reaped {
            // Nothing can be done about a failure here.
            let _ = self.end();
        }
    }
}

/// Whatever is still in the pipe of an ended process.
pub(crate) fn drain_rest<R: Read + AsRawFd>(drain: &mut Drain<R>) {
    drain.read();
    drain.pipe = None;
}

/// A pipe whose ends are both closed on exec: (read end, write end).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the call fills both numbers with fresh descriptors.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: changes a flag of an open descriptor.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Negative descriptors are skipped by the kernel.
fn poll(fds: [RawFd; 4], timeout: Duration) -> io::Result<()> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
    // SAFETY: the array lives across the call.
    let n = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) };
    match n {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            e => Err(e),
        },
    }
}
