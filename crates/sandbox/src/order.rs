//! One command as bytes that a process without an allocator can follow where they lie.
//!
//! Everything is addressed by its distance from the start, where the [`Head`] is; [`Order::at`] turns the distances into
//! pointers. Each part starts at a multiple of eight.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use libc::{c_char, sock_filter};

use crate::child::{Confinement, Namespaces};
use crate::layers::Prepared;
use crate::{Command, SandboxError};

/// The number of the verdict pipe in every command that has one.
pub(crate) const VERDICTS: RawFd = 3;
/// Most descriptors of one order: the fixed ones and a control group of every kind.
pub(crate) const MAX_FILES: usize = 32;

/// Where a part lies and how many elements it has.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    at: usize,
    len: usize,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    program: Part,
    dir: Part,
    /// Distances of strings, then 0.
    args: Part,
    env: Part,
    uid_map: Part,
    gid_map: Part,
    filter: Part,
    rlimits: Part,
    /// 0: none; 1: with a user namespace; 2: without.
    namespaces: usize,
    landlock: usize,
    verdicts: usize,
}

/// The files of a command, in the order in which they travel behind the order itself and the report.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    pub(crate) status: BorrowedFd<'a>,
    pub(crate) landlock: Option<BorrowedFd<'a>>,
    pub(crate) verdicts: Option<BorrowedFd<'a>>,
    pub(crate) groups: Vec<BorrowedFd<'a>>,
}

impl Files<'_> {
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        let fixed = [&self.stdout, &self.stderr, &self.status];
        let chosen = self.landlock.iter().chain(&self.verdicts).chain(&self.groups);
        fixed.into_iter().chain(chosen).map(AsRawFd::as_raw_fd).collect()
    }
}

/// The order's bytes.
pub(crate) fn encode(command: &Command, prepared: &Prepared, files: &Files) -> Result<Vec<u8>, SandboxError> {
    let text = |bytes: &[u8]| {
        CString::new(bytes)
            .map_err(|e| SandboxError::Start { program: command.program.clone(), source: e.into() })
    };
    let program = text(command.program.as_os_str().as_bytes())?;
    let mut args = vec![program.clone()];
    for arg in &command.args {
        args.push(text(arg.as_bytes())?);
    }
    let mut env = Vec::new();
    for (name, value) in &command.env {
        env.push(text(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    if let Some(name) = &command.verdict_fd_env {
        env.push(text(format!("{name}={VERDICTS}").as_bytes())?);
    }
    let mut bytes = vec![0; size_of::<Head>()];
    let filter = prepared.filter.as_ref().map_or(&[][..], |filter| filter.instructions());
    let filter: Vec<u8> = filter.iter().flat_map(instruction_bytes).collect();
    let rlimits: Vec<u8> = prepared.rlimits.iter().flatten().flat_map(|n| n.to_ne_bytes()).collect();
    let head = Head {
        program: put(&mut bytes, program.as_bytes_with_nul(), 1),
        dir: put(&mut bytes, text(command.current_dir.as_os_str().as_bytes())?.as_bytes_with_nul(), 1),
        args: put_all(&mut bytes, &args),
        env: put_all(&mut bytes, &env),
        uid_map: put(&mut bytes, &prepared.uid_map, 1),
        gid_map: put(&mut bytes, &prepared.gid_map, 1),
        filter: put(&mut bytes, &filter, size_of::<sock_filter>()),
        rlimits: put(&mut bytes, &rlimits, size_of::<[u64; 2]>()),
        namespaces: match prepared.namespaces {
            None => 0,
            Some(Namespaces::User) => 1,
            Some(Namespaces::Plain) => 2,
        },
        landlock: usize::from(files.landlock.is_some()),
        verdicts: usize::from(files.verdicts.is_some()),
    };
    bytes[..size_of::<Head>()].copy_from_slice(&head.bytes());
    Ok(bytes)
}

impl Head {
    fn bytes(&self) -> Vec<u8> {
        let parts = [
            self.program,
            self.dir,
            self.args,
            self.env,
            self.uid_map,
            self.gid_map,
            self.filter,
            self.rlimits,
        ];
        let words = parts.iter().flat_map(|part| [part.at, part.len]);
        words.chain([self.namespaces, self.landlock, self.verdicts]).flat_map(usize::to_ne_bytes).collect()
    }
}

fn instruction_bytes(i: &sock_filter) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&i.code.to_ne_bytes());
    bytes[2..4].copy_from_slice(&[i.jt, i.jf]);
    bytes[4..].copy_from_slice(&i.k.to_ne_bytes());
    bytes
}

fn put(bytes: &mut Vec<u8>, part: &[u8], element: usize) -> Part {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let at = bytes.len();
    bytes.extend_from_slice(part);
    Part { at, len: part.len() / element }
}

fn put_all(bytes: &mut Vec<u8>, texts: &[CString]) -> Part {
    let mut distances: Vec<usize> =
        texts.iter().map(|text| put(bytes, text.as_bytes_with_nul(), 1).at).collect();
    distances.push(0);
    let distances: Vec<u8> = distances.into_iter().flat_map(usize::to_ne_bytes).collect();
    put(bytes, &distances, size_of::<usize>())
}

/// An order in the memory of the process that follows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    start: *mut u8,
    head: Head,
}

impl Order {
    /// Maps the file of an order into memory of the caller's own.
    ///
    /// # Safety
    /// `file` holds what [`encode`] made.
    pub(crate) unsafe fn at(file: RawFd) -> io::Result<Self> {
        // SAFETY: the mapping is private, as long as the file, and stays until the process execs.
        unsafe {
            let mut about: libc::stat = std::mem::zeroed();
            crate::child::check(libc::fstat(file, &mut about))?;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let start =
                libc::mmap(std::ptr::null_mut(), about.st_size as usize, access, libc::MAP_PRIVATE, file, 0);
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { start: start.cast(), head: start.cast::<Head>().read() })
        }
    }

    unsafe fn slice<'a, T>(self, part: Part) -> &'a mut [T] {
        // SAFETY: `encode` put `len` elements there, aligned; each part is handed out once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(part.at).cast(), part.len) }
    }

    unsafe fn texts(self, part: Part) -> *const *const c_char {
        // SAFETY: the distances become the pointers in place.
        unsafe {
            for text in self.slice::<usize>(part) {
                if *text != 0 {
                    *text += self.start as usize;
                }
            }
            self.start.add(part.at).cast()
        }
    }

    /// Becomes the command. `files` are the order's own, in their order. Returns what went wrong.
    ///
    /// # Safety
    /// To be called once, in a freshly forked child that exits when this returns.
    pub(crate) unsafe fn follow(self, files: &[RawFd]) -> io::Error {
        // SAFETY: as above.
        match unsafe { self.try_to_follow(files) } {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    unsafe fn try_to_follow(self, files: &[RawFd]) -> io::Result<std::convert::Infallible> {
        let Head { landlock, verdicts, namespaces, .. } = self.head;
        let [stdout, stderr, status, chosen @ ..] = files else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        let (landlock, chosen) = chosen.split_at_checked(landlock).unwrap_or((&[], &[]));
        let (verdicts, groups) = chosen.split_at_checked(verdicts).unwrap_or((&[], &[]));
        // SAFETY: every pointer is into the order, which stays mapped.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            crate::child::check(libc::dup2(*stdout, libc::STDOUT_FILENO))?;
            crate::child::check(libc::dup2(*stderr, libc::STDERR_FILENO))?;
            if let Some(verdicts) = verdicts.first() {
                crate::child::check(libc::dup2(*verdicts, VERDICTS))?;
            }
            crate::child::check(libc::chdir(self.start.add(self.head.dir.at).cast()))?;
            let mut confinement = Confinement {
                namespaces: match namespaces {
                    0 => None,
                    1 => Some(Namespaces::User),
                    _ => Some(Namespaces::Plain),
                },
                uid_map: self.slice(self.head.uid_map),
                gid_map: self.slice(self.head.gid_map),
                landlock: landlock.first().copied().unwrap_or(-1),
                filter: self.slice(self.head.filter),
                rlimits: self.slice(self.head.rlimits),
                groups,
                status: *status,
                verdicts: if verdicts.is_empty() { -1 } else { VERDICTS },
            };
            confinement.apply()?;
            let program = self.start.add(self.head.program.at).cast();
            libc::execve(program, self.texts(self.head.args), self.texts(self.head.env));
        }
        Err(io::Error::last_os_error())
    }
}
