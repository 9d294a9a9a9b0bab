//! How a process confines itself, between fork and exec: everything here is prepared before the fork and then only makes
//! system calls, because after the fork of a process with threads no lock (so no allocation) is safe.
//!
//! With namespaces there are three processes. The child of the fork enters the new namespaces and waits (the watcher);
//! its child is process 1 of the new process namespace, reaps everything and reports how the command ended (the init);
//! the init's child becomes the command. When the init ends, the kernel kills whatever is left in the namespace.

use std::io;
use std::os::fd::RawFd;

use libc::sock_filter;

use crate::filter;

/// How to leave the system's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespaces {
    /// With an own user namespace: any user may, where the system allows it.
    User,
    /// Without: root only.
    Plain,
}

/// Everything that confines a child, ready before the fork. A descriptor that isn't needed is -1.
#[derive(Debug)]
pub(crate) struct Confinement<'a> {
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) uid_map: &'a [u8],
    pub(crate) gid_map: &'a [u8],
    /// Landlock's rules.
    pub(crate) landlock: RawFd,
    /// Empty for none.
    pub(crate) filter: &'a mut [sock_filter],
    /// Resource and limit.
    pub(crate) rlimits: &'a [[u64; 2]],
    /// Writable files that move the writer into its control group.
    pub(crate) groups: &'a [RawFd],
    /// The init writes the command's wait status here.
    pub(crate) status: RawFd,
    /// Survives the exec.
    pub(crate) verdicts: RawFd,
}

impl Confinement<'_> {
    /// Confines the calling process. With namespaces, returns in a grandchild.
    ///
    /// # Safety
    /// To be called once, in a freshly forked child that will exec or exit.
    pub(crate) unsafe fn apply(&mut self) -> io::Result<()> {
        // SAFETY: system calls on values that were prepared before the fork; pointers live across each call.
        unsafe {
            libc::setsid();
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            for group in self.groups {
                check_len(libc::write(*group, b"0".as_ptr().cast(), 1))?;
            }
            if let Some(namespaces) = self.namespaces {
                self.enter(namespaces)?;
            }
            for &[resource, limit] in self.rlimits {
                let value = libc::rlimit { rlim_cur: limit, rlim_max: limit };
                check(libc::setrlimit(resource as libc::__rlimit_resource_t, &value))?;
            }
            self.keep_files()?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            drop_capabilities()?;
            if self.landlock >= 0 {
                check_len(libc::syscall(libc::SYS_landlock_restrict_self, self.landlock, 0) as isize)?;
            }
            if !self.filter.is_empty() {
                filter::set_pid(self.filter, libc::getpid() as u32);
                let program = filter::program(self.filter);
                check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program, 0, 0))?;
            }
        }
        Ok(())
    }

    unsafe fn enter(&self, namespaces: Namespaces) -> io::Result<()> {
        // SAFETY: as in `apply`.
        unsafe {
            let mut flags = libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
            if namespaces == Namespaces::User {
                flags |= libc::CLONE_NEWUSER;
            }
            check(libc::unshare(flags))?;
            if namespaces == Namespaces::User {
                write_file(c"/proc/self/setgroups", b"deny")?;
                write_file(c"/proc/self/uid_map", self.uid_map)?;
                write_file(c"/proc/self/gid_map", self.gid_map)?;
            }
            let init = fork()?;
            if init != 0 {
                watch(init);
            }
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            let command = fork()?;
            if command != 0 {
                reap(command, self.status);
            }
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))
        }
    }

    /// Marks every descriptor above stderr close-on-exec, whoever opened it, except the verdict pipe.
    unsafe fn keep_files(&self) -> io::Result<()> {
        // SAFETY: descriptors are numbers; nothing is closed here.
        unsafe {
            let cloexec = libc::CLOSE_RANGE_CLOEXEC;
            if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, cloexec) != 0 {
                for fd in 3..1024 {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
            match self.verdicts {
                ..0 => Ok(()),
                fd => check(libc::fcntl(fd, libc::F_SETFD, 0)),
            }
        }
    }
}

/// The watcher: waits for the init and leaves. Holds no descriptor, so that nobody waits for it.
unsafe fn watch(init: libc::pid_t) -> ! {
    // SAFETY: this process only waits and exits.
    unsafe {
        close_all_but(-1);
        let mut status = 0;
        while libc::waitpid(init, &mut status, 0) < 0 && errno() == libc::EINTR {}
        libc::_exit(0)
    }
}

/// The init: reaps until the command is gone, reports its status, leaves.
unsafe fn reap(command: libc::pid_t, report: RawFd) -> ! {
    // SAFETY: this process only waits, writes four bytes and exits.
    unsafe {
        close_all_but(report);
        loop {
            let mut status: libc::c_int = 0;
            let pid = libc::waitpid(-1, &mut status, 0);
            if pid == command {
                libc::write(report, (&raw const status).cast(), size_of::<libc::c_int>());
                libc::_exit(0);
            }
            if pid < 0 && errno() != libc::EINTR {
                libc::_exit(1);
            }
        }
    }
}

unsafe fn close_all_but(keep: RawFd) {
    // SAFETY: the caller uses no other descriptor afterwards.
    unsafe {
        match libc::c_uint::try_from(keep) {
            Ok(0) | Err(_) => close_range(0, libc::c_uint::MAX),
            Ok(keep) => {
                close_range(0, keep - 1);
                close_range(keep + 1, libc::c_uint::MAX);
            }
        }
    }
}

/// Closes both and all between.
///
/// # Safety
/// The caller uses none of them afterwards.
pub(crate) unsafe fn close_range(from: libc::c_uint, to: libc::c_uint) {
    // SAFETY: as above.
    unsafe {
        if from <= to && libc::syscall(libc::SYS_close_range, from, to, 0) != 0 {
            for fd in from..=to.min(1023) {
                libc::close(fd as RawFd);
            }
        }
    }
}

/// The bare system call: the C library's `fork` takes locks that another thread may have held.
pub(crate) unsafe fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: without CLONE_VM the child has its own memory, as after a fork.
    unsafe { clone(0) }
}

/// A fork whose child is a child of the caller's parent.
pub(crate) unsafe fn fork_beside() -> io::Result<libc::pid_t> {
    // SAFETY: as in `fork`.
    unsafe { clone(libc::CLONE_PARENT) }
}

unsafe fn clone(flags: libc::c_int) -> io::Result<libc::pid_t> {
    // SAFETY: the caller's.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as libc::pid_t) }
}

unsafe fn write_file(path: &std::ffi::CStr, content: &[u8]) -> io::Result<()> {
    // SAFETY: path and content live across the calls.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(fd)?;
        let written = libc::write(fd, content.as_ptr().cast(), content.len());
        let outcome = check_len(written);
        libc::close(fd);
        outcome
    }
}

/// Root keeps its user id, so that it owns its files, and loses every power beyond that.
unsafe fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    // SAFETY: both structures live across the call and have the layout of version 3.
    unsafe {
        // Ends with EINVAL past the kernel's last capability; EPERM for a user who has none to lose.
        let mut capability = 0;
        while libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 {
            capability += 1;
        }
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        let header = Header { version: VERSION_3, pid: 0 };
        let none = [0_u32; 6];
        check_len(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) as isize)
    }
}

pub(crate) fn check(code: libc::c_int) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn check_len(length: isize) -> io::Result<()> {
    if length < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
