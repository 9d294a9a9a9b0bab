//! What this machine has and lacks, and what each thing is needed for.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::resolve::capture;

const LIMIT: Duration = Duration::from_secs(20);
/// Bytes that the default pipeline writes: the model twice, its cache, checkpoints.
const DISK_WANTED: u64 = 20 << 30;

/// One line of the doctor's report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub name: String,
    pub ok: bool,
    /// The version, the place, or what is wrong.
    pub detail: String,
    pub needed_for: String,
}

/// What the NVIDIA driver says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvidia {
    pub name: String,
    pub driver: String,
    pub cuda: Option<String>,
}

/// The first GPU and its driver, from the kernel's own files.
pub fn nvidia() -> Option<Nvidia> {
    let version = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let driver = version
        .split_whitespace()
        .find(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut gpus: Vec<PathBuf> =
        fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten().map(|e| e.path()).collect();
    gpus.sort();
    let information = gpus.first().and_then(|gpu| fs::read_to_string(gpu.join("information")).ok());
    let name = information.as_deref().and_then(|t| t.lines().find_map(|l| l.strip_prefix("Model:")));
    let name = name.map_or_else(|| "unknown".to_owned(), |n| n.trim().to_owned());
    Some(Nvidia { name, driver: driver.to_owned(), cuda: None })
}

/// `sm_90`, from `nvidia-smi`; `None` without a GPU.
pub(crate) fn gpu_arch() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let smi = std::env::split_paths(&path).map(|d| d.join("nvidia-smi")).find(|p| p.is_file())?;
    let arguments = ["--query-gpu=compute_cap", "--format=csv,noheader"].map(OsString::from);
    let text = capture(&smi, &arguments, Path::new("/"), &[], LIMIT).ok()?;
    let digits: String = text.lines().next()?.chars().filter(char::is_ascii_digit).collect();
    (!digits.is_empty()).then(|| format!("sm_{digits}"))
}

pub fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name").and_then(|r| r.split_once(':')));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, n)| n.trim().to_owned())
}

/// Looks at everything. `dir` is the folder whose disk is measured.
pub fn examine(dir: &Path, environment: &BTreeMap<OsString, OsString>) -> Vec<Finding> {
    let mut findings = vec![
        tool(environment, "rustc", "compile-check, mutate-score and build-corpus compile generated tests"),
        tool(environment, "cargo", "prebuild-libs, and the build of this workspace"),
        tool(environment, "cc", "linking of every Rust program"),
        tool(environment, "clippy-driver", "lints of generated tests (without it they are \"not tested\")"),
        tool(environment, "git", "the commit in experiment.json"),
    ];
    findings.extend(gpu_findings(environment));
    findings.push(hub(environment));
    findings.extend(sandbox_findings(environment));
    findings.push(disk(dir));
    findings
}

fn finding(name: &str, found: Result<String, String>, needed_for: &str) -> Finding {
    let ok = found.is_ok();
    let detail = found.unwrap_or_else(|e| e);
    Finding { name: name.to_owned(), ok, detail, needed_for: needed_for.to_owned() }
}

fn variable<'a>(environment: &'a BTreeMap<OsString, OsString>, name: &str) -> Option<&'a OsString> {
    environment.get(OsStr::new(name)).filter(|v| !v.is_empty())
}

fn tool(environment: &BTreeMap<OsString, OsString>, name: &str, needed_for: &str) -> Finding {
    let path = variable(environment, "PATH").cloned().unwrap_or_default();
    let program = std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file());
    let all: Vec<(OsString, OsString)> = environment.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let found = program.ok_or_else(|| "not on PATH".to_owned()).and_then(|program| {
        let text = capture(&program, &["--version".into()], Path::new("/"), &all, LIMIT)?;
        Ok(text.lines().next().unwrap_or("").to_owned())
    });
    finding(name, found, needed_for)
}

fn gpu_findings(environment: &BTreeMap<OsString, OsString>) -> Vec<Finding> {
    let driver = nvidia()
        .map(|n| format!("{} (driver {})", n.name, n.driver))
        .ok_or_else(|| "no NVIDIA driver".to_owned());
    let library = |names: &[&str]| {
        find_library(environment, names)
            .map(|p| p.display().to_string())
            .ok_or_else(|| "not found".to_owned())
    };
    vec![
        finding("nvidia driver", driver, "device = cuda"),
        finding("libcuda", library(&["libcuda.so.1"]), "device = cuda"),
        finding(
            "NVRTC",
            library(&["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]),
            "compiling CUDA kernels",
        ),
        finding(
            "cuBLASLt",
            library(&["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"]),
            "matrix products on the GPU",
        ),
    ]
}

fn find_library(environment: &BTreeMap<OsString, OsString>, names: &[&str]) -> Option<PathBuf> {
    let configured = variable(environment, "LD_LIBRARY_PATH").cloned().unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&configured).filter(|d| d.is_absolute()).collect();
    for name in ["CUDA_PATH", "CUDA_HOME"] {
        dirs.extend(variable(environment, name).map(|d| Path::new(d).join("lib64")));
    }
    let standard = [
        "/usr/local/cuda/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
        "/usr/local/nvidia/lib64",
        "/usr/lib/wsl/lib",
    ];
    dirs.extend(standard.map(PathBuf::from));
    dirs.iter().flat_map(|d| names.iter().map(move |n| d.join(n))).find(|p| p.exists())
}

fn hub(environment: &BTreeMap<OsString, OsString>) -> Finding {
    let home = variable(environment, "HF_HOME")
        .map(PathBuf::from)
        .or_else(|| variable(environment, "HOME").map(|h| Path::new(h).join(".cache").join("huggingface")));
    let offline = variable(environment, "HF_HUB_OFFLINE").is_some_and(|v| v != "0");
    let endpoint = variable(environment, "HF_ENDPOINT");
    let token = if variable(environment, "HF_TOKEN").is_some() { "set" } else { "not set" };
    let found = match home {
        None => Err("neither HF_HOME nor HOME is set".to_owned()),
        Some(home) => {
            let host =
                endpoint.map_or_else(|| "its default".to_owned(), |e| e.to_string_lossy().into_owned());
            let mode = if offline { ", offline" } else { "" };
            Ok(format!("cache {}, endpoint {host}, HF_TOKEN {token}{mode}", home.display()))
        }
    };
    finding(
        "model hub",
        found,
        "fetch-model with a hub id (`embedded:` and `file:` need none); not contacted here",
    )
}

/// The highest Landlock ABI that the kernel grants; makes rule sets and enforces none.
fn landlock() -> Result<String, String> {
    use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

    let granted = |abi: ABI| {
        let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        rules.handle_access(AccessFs::from_all(abi)).and_then(Ruleset::create).is_ok()
    };
    let known = [(5, ABI::V5), (3, ABI::V3), (2, ABI::V2), (1, ABI::V1)];
    let found = known.into_iter().find(|(_, abi)| granted(*abi));
    found.map(|(n, _)| format!("ABI {n} or later")).ok_or_else(|| "the kernel does not grant it".to_owned())
}

/// Makes a user and a network namespace for a moment, where `unshare` is installed.
fn namespaces(environment: &BTreeMap<OsString, OsString>) -> Result<String, String> {
    let path = variable(environment, "PATH").cloned().unwrap_or_default();
    let Some(unshare) = std::env::split_paths(&path).map(|d| d.join("unshare")).find(|p| p.is_file()) else {
        let offered = Path::new("/proc/self/ns/user").exists();
        let hint = "not tried (`unshare` is not installed)";
        return if offered {
            Ok(format!("in the kernel, {hint}"))
        } else {
            Err("the kernel has none".to_owned())
        };
    };
    let arguments = ["--user", "--map-root-user", "--net", "true"].map(OsString::from);
    let all: Vec<(OsString, OsString)> = environment.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    capture(&unshare, &arguments, Path::new("/"), &all, LIMIT).map(|_| "made one".to_owned())
}

fn sandbox_findings(environment: &BTreeMap<OsString, OsString>) -> Vec<Finding> {
    let seccomp = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let seccomp = if seccomp.contains("Seccomp:") {
        Ok("in the kernel".to_owned())
    } else {
        Err("not in the kernel".to_owned())
    };
    let version_2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let cgroup = cgroup(version_2, &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    vec![
        finding("user namespaces", namespaces(environment), "sandbox level 2: no network for generated code"),
        finding("Landlock", landlock(), "sandbox level 1: file access of generated code"),
        finding("seccomp", seccomp, "sandbox level 1: system calls of generated code"),
        finding("cgroup", cgroup, "sandbox level 3: memory and process limits"),
    ]
}

/// Either version limits memory and processes, version 1 with both of its controllers. Whether a group may be made there only the
/// sandbox can tell, which names what it reached.
fn cgroup(version_2: bool, mounts: &str) -> Result<String, String> {
    let is_mounted = |controller| {
        let right = |line: &str| line.split_once(" - ").map(|(_, right)| right.to_owned());
        mounts.lines().filter_map(right).any(|right| {
            right.starts_with("cgroup ") && right.split([' ', ',']).any(|option| option == controller)
        })
    };
    match (version_2, is_mounted("memory") && is_mounted("pids")) {
        (true, _) => Ok("version 2 is mounted".to_owned()),
        (false, true) => Ok("version 1 is mounted, memory and pids".to_owned()),
        (false, false) => Err("neither version 2 nor memory and pids of version 1 are mounted".to_owned()),
    }
}

fn disk(dir: &Path) -> Finding {
    let found = rustix::fs::statvfs(dir).map_err(|e| e.to_string()).and_then(|s| {
        let free = s.f_bavail.saturating_mul(s.f_frsize);
        let text = format!("{:.1} GiB free at {}", free as f64 / (1u64 << 30) as f64, dir.display());
        if free >= DISK_WANTED { Ok(text) } else { Err(text) }
    });
    finding("disk", found, "20 GiB for the default pipeline; the embedded profile needs about 2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_version_of_control_groups_will_do() {
        let line = |kind: &str, options: &str| {
            format!("30 29 0:27 / /sys/fs/cgroup/memory rw,relatime - {kind} none rw,{options}\n")
        };
        let (memory, pids) = (line("cgroup", "memory"), line("cgroup", "pids"));
        assert!(cgroup(true, "").is_ok());
        assert!(cgroup(false, &format!("{memory}{pids}")).is_ok());
        assert!(cgroup(false, &line("cgroup", "cpu,memory,pids")).is_ok());
        for mounts in [String::new(), memory.clone(), pids.clone(), line("tmpfs", "memory,pids")] {
            assert!(cgroup(false, &mounts).is_err(), "{mounts}");
        }
        assert!(cgroup(false, &format!("{memory}{}", line("cgroup2", "pids"))).is_err());
    }
}
