//! Landlock: which files a child may touch, and that it may neither connect nor signal outside.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

use crate::{Command, Profile, SandboxError};

/// System folders with compilers' helpers, linkers and libraries.
const TOOL_READABLE: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
];
/// What the dynamic loader of a program opens.
const LIBRARIES: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"];
/// Folders whose files named `ld-*` or `ld.so*` are dynamic loaders.
const LOADER_DIRS: &[&str] = &["/lib64", "/lib", "/usr/lib64", "/usr/lib"];
const STORES: &[&str] = &["/nix/store", "/gnu/store"];
const DEVICES: &[&str] = &["/dev/zero", "/dev/urandom", "/dev/random"];

/// The newest version whose rights are asked for.
const NEWEST: ABI = ABI::V6;

/// The Landlock version of the running kernel; `None` without Landlock.
pub(crate) fn kernel_abi() -> Option<i32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: a null attribute with the version flag only asks for a number.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    i32::try_from(abi).ok().filter(|abi| *abi > 0)
}

/// The rules of one command as a file descriptor that `landlock_restrict_self` takes. What the running kernel is too old
/// for is left out.
pub(crate) fn ruleset(command: &Command) -> Result<OwnedFd, SandboxError> {
    let fail = |e: landlock::RulesetError| SandboxError::FileRules(e.to_string());
    let mut set = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|set| set.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|set| set.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(fail)?;
    for (path, access) in grants(command) {
        let Ok(file) = PathFd::new(&path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        set = set.add_rule(PathBeneath::new(file, access)).map_err(fail)?;
    }
    Option::<OwnedFd>::from(set)
        .ok_or_else(|| SandboxError::FileRules("the kernel gave no rule set".to_owned()))
}

fn grants(command: &Command) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let all = AccessFs::from_all(NEWEST);
    let execute = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let null = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;

    let mut grants = vec![(PathBuf::from("/dev/null"), null), (command.program.clone(), execute)];
    let mut add = |paths: Vec<PathBuf>, access| grants.extend(paths.into_iter().map(|path| (path, access)));
    add(existing(DEVICES), read);
    match command.profile {
        Profile::Tool => {
            add(existing(TOOL_READABLE), execute);
            add(command.writable.clone(), all);
        }
        Profile::Program => {
            add(existing(LIBRARIES), read);
            add(existing(STORES), execute);
            add(loaders(), execute);
            add(command.writable.clone(), all & !BitFlags::from(AccessFs::Execute));
        }
    }
    add(command.readable.clone(), execute);
    grants
}

fn existing(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).filter(|path| path.exists()).collect()
}

fn loaders() -> Vec<PathBuf> {
    let entries = LOADER_DIRS.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let is_loader =
        |name: &str| name.starts_with("ld-") || name.starts_with("ld.so") || name.starts_with("ld64");
    entries.filter(|e| e.file_name().to_str().is_some_and(is_loader)).map(|e| e.path()).collect()
}
