//! Who may run beside whom: cpus, memory, GPU ids. Pure, apart from [`Machine::probe`].

use record::protocol::Resources;

/// What the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub cpus: u32,
    pub memory_mb: u64,
    /// Ids as `CUDA_VISIBLE_DEVICES` takes them.
    pub gpus: Vec<String>,
}

impl Machine {
    /// `visible` is the runner's own `CUDA_VISIBLE_DEVICES`.
    pub fn probe(visible: Option<&str>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let gpus = match visible {
            Some(list) => {
                list.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect()
            }
            None => (0..count_gpus()).map(|i| i.to_string()).collect(),
        };
        Self { cpus, memory_mb: memory_mb(), gpus }
    }
}

fn count_gpus() -> usize {
    let devices = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let numbered = devices.filter(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("nvidia"));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    let count = numbered.count();
    if count == 0 && std::path::Path::new("/dev/dxg").exists() { 1 } else { count }
}

fn memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib: Option<u64> = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok());
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit: Option<u64> = limit.and_then(|text| text.trim().parse().ok());
    let installed = kib.map_or(u64::MAX, |k| k / 1024);
    limit.map_or(installed, |bytes| installed.min(bytes >> 20))
}

/// What is free at the moment.
#[derive(Debug, Clone)]
pub struct Pool {
    total: Machine,
    free_cpus: u32,
    free_memory_mb: u64,
    free_gpus: Vec<String>,
    running: u32,
    jobs: Option<u32>,
}

/// What one node holds while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    cpus: u32,
    memory_mb: u64,
    pub gpus: Vec<String>,
}

impl Pool {
    /// `jobs` bounds how many nodes run at once, whatever they need.
    pub fn new(total: Machine, jobs: Option<u32>) -> Self {
        let (free_cpus, free_memory_mb, free_gpus) = (total.cpus, total.memory_mb, total.gpus.clone());
        Self { total, free_cpus, free_memory_mb, free_gpus, running: 0, jobs }
    }

    /// Whether the machine has that many GPUs at all.
    pub fn has_gpus(&self, wanted: u32) -> bool {
        wanted as usize <= self.total.gpus.len()
    }

    /// Takes what a node asks for, cut to what the machine has: a node that wants more runs alone.
    pub fn take(&mut self, wanted: &Resources) -> Option<Grant> {
        if self.jobs.is_some_and(|jobs| self.running >= jobs.max(1)) {
            return None;
        }
        let cpus = wanted.cpus.min(self.total.cpus);
        let memory_mb = wanted.memory_mb.min(self.total.memory_mb);
        let gpus = wanted.gpus as usize;
        if cpus > self.free_cpus || memory_mb > self.free_memory_mb || gpus > self.free_gpus.len() {
            return None;
        }
        self.free_cpus -= cpus;
        self.free_memory_mb -= memory_mb;
        self.running += 1;
        Some(Grant { cpus, memory_mb, gpus: self.free_gpus.drain(..gpus).collect() })
    }

    pub fn give_back(&mut self, grant: Grant) {
        self.free_cpus += grant.cpus;
        self.free_memory_mb += grant.memory_mb;
        self.running -= 1;
        self.free_gpus.extend(grant.gpus);
        self.free_gpus.sort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(jobs: Option<u32>) -> Pool {
        Pool::new(Machine { cpus: 4, memory_mb: 1000, gpus: vec!["0".into(), "1".into()] }, jobs)
    }

    fn want(cpus: u32, memory_mb: u64, gpus: u32) -> Resources {
        Resources { cpus, memory_mb, gpus }
    }

    #[test]
    fn nodes_share_what_there_is() {
        let mut pool = pool(None);
        let first = pool.take(&want(3, 0, 1)).unwrap();
        assert_eq!(first.gpus, ["0"]);
        assert!(pool.take(&want(2, 0, 0)).is_none());
        assert!(pool.take(&want(1, 2000, 0)).is_some(), "more than all: cut");
        assert!(pool.take(&want(1, 1, 0)).is_none());
        pool.give_back(first);
        assert_eq!(pool.take(&want(1, 0, 2)).unwrap().gpus, ["0", "1"]);
    }

    #[test]
    fn a_greedy_node_runs_alone() {
        let mut pool = pool(None);
        let all = pool.take(&want(64, 0, 0)).unwrap();
        assert!(pool.take(&want(1, 0, 0)).is_none());
        pool.give_back(all);
        assert!(pool.take(&want(1, 0, 0)).is_some());
    }

    #[test]
    fn jobs_bound_the_number() {
        let mut pool = pool(Some(1));
        assert!(pool.take(&want(1, 0, 0)).is_some());
        assert!(pool.take(&want(1, 0, 0)).is_none());
        assert!(!pool.has_gpus(3));
    }
}
