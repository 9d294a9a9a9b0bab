//! What this machine can do, found out by doing it once.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use record::compile::Isolation;

use crate::cgroup::{Hierarchy, Lease, Pool};
use crate::child::{Confinement, Namespaces};
use crate::filter::Filter;
use crate::{Command, Limits, Profile, SandboxError, rules, watch};

/// What confines one command, on the side of the program that asks for it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) uid_map: Vec<u8>,
    pub(crate) gid_map: Vec<u8>,
    pub(crate) landlock: Option<OwnedFd>,
    pub(crate) filter: Option<Filter>,
    pub(crate) rlimits: Vec<[u64; 2]>,
    /// Must outlive the child.
    pub(crate) group: Option<Lease>,
}

/// The layers that work here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layers {
    pub(crate) landlock_abi: Option<i32>,
    pub(crate) seccomp: bool,
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) cgroup: Option<Arc<Pool>>,
}

impl Layers {
    /// Tries each layer alone, in a child that does nothing else.
    pub(crate) fn probe() -> Self {
        let only = |layers: Self| layers.works().then_some(layers);
        let landlock = only(Self { landlock_abi: rules::kernel_abi(), ..Self::default() });
        let seccomp = only(Self { seccomp: true, ..Self::default() });
        let namespaces = [Namespaces::User, Namespaces::Plain]
            .into_iter()
            .find_map(|kind| only(Self { namespaces: Some(kind), ..Self::default() }));
        let cgroup = only(Self {
            cgroup: Hierarchy::find().map(|found| Arc::new(Pool::new(found))),
            ..Self::default()
        });
        let found = Self {
            landlock_abi: landlock.and_then(|l| l.landlock_abi),
            seccomp: seccomp.is_some(),
            namespaces: namespaces.and_then(|l| l.namespaces),
            cgroup: cgroup.and_then(|l| l.cgroup),
        };
        if found.works() { found } else { Self { namespaces: None, cgroup: None, ..found } }
    }

    pub(crate) fn isolation(&self) -> Isolation {
        let mut layers = vec!["rlimits".to_owned()];
        layers.extend(self.landlock_abi.map(|abi| format!("landlock-abi{abi}")));
        layers.extend(self.seccomp.then(|| "seccomp".to_owned()));
        layers.extend(self.namespaces.map(|kind| {
            match kind {
                Namespaces::User => "namespaces-user-net-pid-ipc",
                Namespaces::Plain => "namespaces-net-pid-ipc",
            }
            .to_owned()
        }));
        layers.extend(self.cgroup.as_ref().map(|pool| pool.name().to_owned()));
        layers.sort();
        let level =
            match (self.landlock_abi.is_some() && self.seccomp, self.namespaces.is_some(), &self.cgroup) {
                (false, ..) => 0,
                (true, false, _) => 1,
                (true, true, None) => 2,
                (true, true, Some(_)) => 3,
            };
        Isolation { level, layers }
    }

    /// What stands between this machine and `level`, in words.
    pub(crate) fn missing(&self, level: u8) -> Vec<String> {
        let needs = [
            (1, self.landlock_abi.is_some(), "Landlock (kernel 5.13, enabled at boot)"),
            (1, self.seccomp, "seccomp"),
            (2, self.namespaces.is_some(), "user namespaces (containers and some distributions forbid them)"),
            (3, self.cgroup.is_some(), "a writable control group with the memory and pids controllers"),
        ];
        needs
            .iter()
            .filter(|(at, has, _)| *at <= level && !has)
            .map(|(_, _, name)| (*name).to_owned())
            .collect()
    }

    /// What these layers are for one command.
    pub(crate) fn prepare(&self, command: &Command) -> Result<Prepared, SandboxError> {
        let system = SandboxError::system;
        let group = match &self.cgroup {
            Some(pool) => Some(pool.take(&command.limits).map_err(system("make a control group"))?),
            None => None,
        };
        let landlock = self.landlock_abi.map(|_| rules::ruleset(command)).transpose()?;
        // SAFETY: these calls only return numbers.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Ok(Prepared {
            namespaces: self.namespaces,
            uid_map: format!("{uid} {uid} 1").into_bytes(),
            gid_map: format!("{gid} {gid} 1").into_bytes(),
            landlock,
            filter: self.seccomp.then(|| Filter::new(command.profile)),
            rlimits: self.rlimits(command).into_iter().map(|(what, limit)| [what.into(), limit]).collect(),
            group,
        })
    }

    fn rlimits(&self, command: &Command) -> Vec<(libc::__rlimit_resource_t, u64)> {
        let limits = &command.limits;
        let files = match command.profile {
            Profile::Tool => 4096,
            Profile::Program => 256,
        };
        let mut rlimits = vec![
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_CPU, limits.cpu_s),
            (libc::RLIMIT_AS, limits.memory_bytes),
            (libc::RLIMIT_FSIZE, limits.file_bytes),
            (libc::RLIMIT_NOFILE, files),
            (libc::RLIMIT_STACK, 8 << 20),
        ];
        // Outside a user namespace this one counts all processes of the user, whoever started them.
        if self.namespaces == Some(Namespaces::User) {
            rlimits.push((libc::RLIMIT_NPROC, limits.processes));
        }
        for (resource, wanted) in &mut rlimits {
            *wanted = (*wanted).min(hard_limit(*resource));
        }
        rlimits
    }

    /// Forks a child that applies these layers and exits.
    fn works(&self) -> bool {
        self.try_once().unwrap_or(false)
    }

    fn try_once(&self) -> Result<bool, SandboxError> {
        let system = SandboxError::system;
        let prepared = self.prepare(&probe_command())?;
        let (mut from_init, to_parent) = pipe_file()?;
        let groups: Vec<_> = prepared.group.iter().flat_map(Lease::members).map(AsRawFd::as_raw_fd).collect();
        let mut filter =
            prepared.filter.as_ref().map_or_else(Vec::new, |filter| filter.instructions().to_vec());
        let mut confinement = Confinement {
            namespaces: prepared.namespaces,
            uid_map: &prepared.uid_map,
            gid_map: &prepared.gid_map,
            landlock: prepared.landlock.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            filter: &mut filter,
            rlimits: &prepared.rlimits,
            groups: &groups,
            status: to_parent.as_raw_fd(),
            verdicts: -1,
        };
        // SAFETY: the child applies the layers (system calls only) and exits without returning.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let code = if confinement.apply().is_ok() { 0 } else { 1 };
                libc::_exit(code);
            }
            pid
        };
        if pid < 0 {
            return Err(system("fork")(std::io::Error::last_os_error()));
        }
        drop(to_parent);
        let mut status = 0;
        // SAFETY: waits for the child made above.
        while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
            if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
                return Ok(false);
            }
        }
        let mut report = Vec::new();
        from_init.read_to_end(&mut report).map_err(system("read a pipe"))?;
        let inner = report.try_into().map(i32::from_ne_bytes);
        Ok(status == 0 && (self.namespaces.is_none() || inner == Ok(0)))
    }
}

fn pipe_file() -> Result<(std::fs::File, OwnedFd), SandboxError> {
    let (read, write) = watch::pipe().map_err(SandboxError::system("make a pipe"))?;
    debug_assert!(write.as_raw_fd() > 2);
    Ok((read.into(), write))
}

fn hard_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut value = libc::rlimit { rlim_cur: 0, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the call fills the structure.
    unsafe { libc::getrlimit(resource, &mut value) };
    value.rlim_max
}

fn probe_command() -> Command {
    Command {
        program: PathBuf::from("/"),
        args: Vec::new(),
        env: Default::default(),
        current_dir: PathBuf::from("/"),
        readable: Vec::new(),
        writable: Vec::new(),
        limits: Limits {
            wall: Duration::from_secs(10),
            cpu_s: 10,
            memory_bytes: 1 << 40,
            file_bytes: 1 << 20,
            processes: 64,
            output_bytes: 0,
        },
        profile: Profile::Program,
        verdict_fd_env: None,
    }
}
