//! A control group for each running command: memory and process limits that hold for all of its processes together.
//!
//! Version 2 where the controllers are delegated to this process, else version 1 where its folders are writable.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::Limits;

const PREFIX: &str = "testforge-";
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// One folder with the controllers `memory` and `pids`.
    V2(PathBuf),
    V1 {
        memory: PathBuf,
        pids: PathBuf,
    },
}

impl Hierarchy {
    /// Tries to make a group with limits; `None` where that is not allowed.
    pub(crate) fn find() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        candidates(&groups, &mounts).into_iter().find(|candidate| {
            candidate.sweep();
            let limits = Limits {
                wall: Duration::ZERO,
                cpu_s: 0,
                memory_bytes: 64 << 20,
                file_bytes: 0,
                processes: 8,
                output_bytes: 0,
            };
            Group::create(candidate, &limits).is_ok()
        })
    }

    /// Removes what a killed process of ours left behind. Only an empty group can be removed at all.
    fn sweep(&self) {
        let parents = match self {
            Self::V2(dir) => vec![dir],
            Self::V1 { memory, pids } => vec![memory, pids],
        };
        for entry in parents.into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::V2(_) => "cgroup-v2",
            Self::V1 { .. } => "cgroup-v1",
        }
    }
}

/// Groups that wait for their next command. The kernel frees a removed group long after its removal, and has room for
/// a limited number: one per command would use them up.
#[derive(Debug)]
pub(crate) struct Pool {
    hierarchy: Hierarchy,
    /// By memory and process limit.
    free: Mutex<BTreeMap<(u64, u64), Vec<Group>>>,
}

impl Pool {
    pub(crate) fn new(hierarchy: Hierarchy) -> Self {
        Self { hierarchy, free: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.hierarchy.name()
    }

    /// An empty group with these limits. It goes back when dropped.
    pub(crate) fn take(self: &Arc<Self>, limits: &Limits) -> io::Result<Lease> {
        let key = (limits.memory_bytes, limits.processes);
        let waiting = self.free().get_mut(&key).and_then(Vec::pop);
        let group = match waiting {
            Some(group) => group,
            None => Group::create(&self.hierarchy, limits)?,
        };
        Ok(Lease { pool: Arc::clone(self), key, group: Some(group) })
    }

    fn free(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), Vec<Group>>> {
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A group in use by one command. To be dropped when the command's processes are gone.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    key: (u64, u64),
    group: Option<Group>,
}

impl Lease {
    pub(crate) fn members(&self) -> &[File] {
        self.group.as_ref().map_or(&[], |group| &group.members)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            self.pool.free().entry(self.key).or_default().push(group);
        }
    }
}

/// Folders of one group; removed when dropped, after its processes are gone.
#[derive(Debug)]
struct Group {
    dirs: Vec<PathBuf>,
    /// Writing `0` into each moves the writer into the group.
    members: Vec<File>,
}

impl Group {
    fn create(hierarchy: &Hierarchy, limits: &Limits) -> io::Result<Self> {
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let memory = limits.memory_bytes.to_string();
        let tasks = limits.processes.to_string();
        let mut group = Self { dirs: Vec::new(), members: Vec::new() };
        match hierarchy {
            Hierarchy::V2(parent) => {
                let dir = parent.join(&name);
                group.add(&dir, &[("memory.max", &memory), ("pids.max", &tasks)])?;
                // Absent without swap accounting.
                let _ = fs::write(dir.join("memory.swap.max"), "0");
            }
            Hierarchy::V1 { memory: memory_parent, pids } => {
                group.add(&memory_parent.join(&name), &[("memory.limit_in_bytes", &memory)])?;
                group.add(&pids.join(&name), &[("pids.max", &tasks)])?;
            }
        }
        Ok(group)
    }

    fn add(&mut self, dir: &Path, values: &[(&str, &str)]) -> io::Result<()> {
        fs::create_dir(dir)?;
        self.dirs.push(dir.to_path_buf());
        for (file, value) in values {
            // Opened without creating: on a plain folder the write must fail.
            io::Write::write_all(
                &mut OpenOptions::new().write(true).open(dir.join(file))?,
                value.as_bytes(),
            )?;
        }
        self.members.push(OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?);
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.members.clear();
        for dir in &self.dirs {
            // A killed process leaves its group a moment after it was reaped.
            for _ in 0..50 {
                if fs::remove_dir(dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Pure: the places worth trying, from `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn candidates(groups: &str, mounts: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    if let Some(dir) = own_dir(groups, mounts, None) {
        found.push(Hierarchy::V2(dir.clone()));
        // A group that holds processes can't have children with controllers; a sibling can.
        found.extend(dir.parent().map(|parent| Hierarchy::V2(parent.to_path_buf())));
    }
    if let (Some(memory), Some(pids)) =
        (own_dir(groups, mounts, Some("memory")), own_dir(groups, mounts, Some("pids")))
    {
        found.push(Hierarchy::V1 { memory, pids });
    }
    found
}

/// The folder of this process's own group; `controller` is `None` for version 2.
fn own_dir(groups: &str, mounts: &str, controller: Option<&str>) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|c| c == name),
        };
        ours.then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let ours = match controller {
            None => kind == "cgroup2",
            Some(name) => kind == "cgroup" && options.split(',').any(|o| o == name),
        };
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let inside = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
        ours.then(|| Path::new(point).join(inside))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "30 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 29 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

    #[test]
    fn version_2_tries_the_own_group_and_a_sibling() {
        let found = candidates("0::/user.slice/run.scope\n", V2);
        let own = PathBuf::from("/sys/fs/cgroup/user.slice/run.scope");
        assert_eq!(found, [Hierarchy::V2(own), Hierarchy::V2("/sys/fs/cgroup/user.slice".into())]);
    }

    #[test]
    fn version_1_needs_both_controllers() {
        let found = candidates("4:memory:/job\n8:pids:/\n", V1);
        let (memory, pids) = ("/sys/fs/cgroup/memory/job".into(), "/sys/fs/cgroup/pids/".into());
        assert_eq!(found, [Hierarchy::V1 { memory, pids }]);
        assert_eq!(candidates("4:memory:/job\n", V1), []);
    }

    #[test]
    fn a_mount_that_shows_a_part_of_the_tree_hides_its_prefix() {
        let mounts = "29 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        let found = candidates("0::/docker/abc/x\n", mounts);
        assert_eq!(found[0], Hierarchy::V2("/sys/fs/cgroup/x".into()));
    }
}
