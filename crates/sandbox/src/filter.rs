//! The seccomp filter: a list of system calls that a child may not make.
//!
//! A deny list, because a compiler and its linker use hundreds of calls. Written as classic BPF directly, so that the
//! child's own process id can be filled in after the fork without allocating.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_JUMP, BPF_K, BPF_LD, BPF_RET, BPF_STMT, BPF_W, c_long,
    sock_filter,
};

use crate::Profile;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

/// Offsets in `struct seccomp_data`; arguments are 64 bits wide, their low halves come first.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARG0: u32 = 16;
const ARG1: u32 = 24;

/// Stands for the child's process id until [`set_pid`].
const PID_MARK: u32 = 0x7FFF_FF01;
/// Calls of the x32 ABI carry this bit: another number for the same call.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

/// A filter program, ready to be installed after a fork.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Vec<sock_filter>,
}

impl Filter {
    pub(crate) fn new(profile: Profile) -> Self {
        let mut filter = Self { program: Vec::with_capacity(320) };
        filter.check_architecture();
        for &(call, errno) in FOR_ALL {
            filter.deny(call, errno);
        }
        filter.namespaces_in_clone(profile);
        if profile == Profile::Program {
            for &(call, errno) in FOR_PROGRAMS {
                filter.deny(call, errno);
            }
            filter.allow_first_argument(libc::SYS_tgkill, PID_MARK);
            filter.allow_first_argument(libc::SYS_prlimit64, 0);
            // The owner of a pipe gets a signal of one's choice when something comes through it.
            filter.deny_second_argument(libc::SYS_fcntl, [libc::F_SETOWN, F_SETOWN_EX, F_SETSIG]);
        }
        filter.push(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW);
        filter
    }

    pub(crate) fn instructions(&self) -> &[sock_filter] {
        &self.program
    }

    fn check_architecture(&mut self) {
        self.push(BPF_LD | BPF_W | BPF_ABS, ARCH);
        self.jump(BPF_JEQ, AUDIT_ARCH, 1, 0);
        self.push(BPF_RET | BPF_K, libc::SECCOMP_RET_KILL_PROCESS);
        self.push(BPF_LD | BPF_W | BPF_ABS, NR);
        #[cfg(target_arch = "x86_64")]
        {
            self.jump(BPF_JGE, X32_BIT, 0, 1);
            self.refuse(libc::ENOSYS);
        }
    }

    fn deny(&mut self, call: c_long, errno: i32) {
        self.jump(BPF_JEQ, call as u32, 0, 1);
        self.refuse(errno);
    }

    /// A program may start threads but no processes; a tool may start processes but no namespaces.
    fn namespaces_in_clone(&mut self, profile: Profile) {
        self.jump(BPF_JEQ, libc::SYS_clone as u32, 0, 4);
        self.push(BPF_LD | BPF_W | BPF_ABS, ARG0);
        match profile {
            Profile::Program => self.jump(BPF_JSET, libc::CLONE_THREAD as u32, 1, 0),
            Profile::Tool => self.jump(BPF_JSET, NEW_NAMESPACES, 0, 1),
        }
        self.refuse(libc::EPERM);
        self.push(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW);
    }

    fn allow_first_argument(&mut self, call: c_long, only: u32) {
        self.jump(BPF_JEQ, call as u32, 0, 4);
        self.push(BPF_LD | BPF_W | BPF_ABS, ARG0);
        self.jump(BPF_JEQ, only, 1, 0);
        self.refuse(libc::EPERM);
        self.push(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW);
    }

    fn deny_second_argument(&mut self, call: c_long, values: [i32; 3]) {
        self.jump(BPF_JEQ, call as u32, 0, 6);
        self.push(BPF_LD | BPF_W | BPF_ABS, ARG1);
        for (i, value) in values.into_iter().enumerate() {
            self.jump(BPF_JEQ, value as u32, 3 - i as u8, 0);
        }
        self.push(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW);
        self.refuse(libc::EPERM);
    }

    fn refuse(&mut self, errno: i32) {
        self.push(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32);
    }

    fn push(&mut self, code: u32, k: u32) {
        // SAFETY: the macro-like function only builds a value.
        self.program.push(unsafe { BPF_STMT(code as u16, k) });
    }

    fn jump(&mut self, test: u32, k: u32, if_true: u8, if_false: u8) {
        // SAFETY: the macro-like function only builds a value.
        self.program.push(unsafe { BPF_JUMP((BPF_JMP | test | BPF_K) as u16, k, if_true, if_false) });
    }
}

/// Puts the calling process's id in place of the mark. Safe between fork and exec.
pub(crate) fn set_pid(instructions: &mut [sock_filter], pid: u32) {
    for instruction in instructions {
        if instruction.k == PID_MARK {
            instruction.k = pid;
        }
    }
}

/// The instructions as the kernel takes them.
pub(crate) fn program(instructions: &mut [sock_filter]) -> libc::sock_fprog {
    libc::sock_fprog { len: instructions.len() as u16, filter: instructions.as_mut_ptr() }
}

/// Refused to compilers and programs alike. `ENOSYS` where callers have a fallback for an older kernel: glibc goes back
/// from `clone3`, whose flags a filter can't read, to `clone`.
const FOR_ALL: &[(c_long, i32)] = &[
    (libc::SYS_clone3, libc::ENOSYS),
    (libc::SYS_io_uring_setup, libc::ENOSYS),
    (libc::SYS_io_uring_enter, libc::ENOSYS),
    (libc::SYS_io_uring_register, libc::ENOSYS),
    (libc::SYS_socket, libc::EACCES),
    (libc::SYS_ptrace, libc::EPERM),
    (libc::SYS_process_vm_readv, libc::EPERM),
    (libc::SYS_process_vm_writev, libc::EPERM),
    (libc::SYS_pidfd_open, libc::EPERM),
    (libc::SYS_pidfd_getfd, libc::EPERM),
    (libc::SYS_pidfd_send_signal, libc::EPERM),
    (libc::SYS_kcmp, libc::EPERM),
    (libc::SYS_mount, libc::EPERM),
    (libc::SYS_umount2, libc::EPERM),
    (libc::SYS_pivot_root, libc::EPERM),
    (libc::SYS_chroot, libc::EPERM),
    (libc::SYS_move_mount, libc::EPERM),
    (libc::SYS_open_tree, libc::EPERM),
    (libc::SYS_fsopen, libc::EPERM),
    (libc::SYS_fsmount, libc::EPERM),
    (libc::SYS_fsconfig, libc::EPERM),
    (libc::SYS_fspick, libc::EPERM),
    (libc::SYS_unshare, libc::EPERM),
    (libc::SYS_setns, libc::EPERM),
    (libc::SYS_bpf, libc::EPERM),
    (libc::SYS_perf_event_open, libc::EPERM),
    (libc::SYS_userfaultfd, libc::EPERM),
    (libc::SYS_keyctl, libc::EPERM),
    (libc::SYS_add_key, libc::EPERM),
    (libc::SYS_request_key, libc::EPERM),
    (libc::SYS_init_module, libc::EPERM),
    (libc::SYS_finit_module, libc::EPERM),
    (libc::SYS_delete_module, libc::EPERM),
    (libc::SYS_kexec_load, libc::EPERM),
    (libc::SYS_kexec_file_load, libc::EPERM),
    (libc::SYS_reboot, libc::EPERM),
    (libc::SYS_swapon, libc::EPERM),
    (libc::SYS_swapoff, libc::EPERM),
    (libc::SYS_sethostname, libc::EPERM),
    (libc::SYS_setdomainname, libc::EPERM),
    (libc::SYS_settimeofday, libc::EPERM),
    (libc::SYS_clock_settime, libc::EPERM),
    (libc::SYS_adjtimex, libc::EPERM),
    (libc::SYS_clock_adjtime, libc::EPERM),
    (libc::SYS_acct, libc::EPERM),
    (libc::SYS_quotactl, libc::EPERM),
    (libc::SYS_syslog, libc::EPERM),
    (libc::SYS_name_to_handle_at, libc::EPERM),
    (libc::SYS_open_by_handle_at, libc::EPERM),
    (libc::SYS_personality, libc::EPERM),
    (libc::SYS_shmget, libc::EPERM),
    (libc::SYS_semget, libc::EPERM),
    (libc::SYS_msgget, libc::EPERM),
    (libc::SYS_mq_open, libc::EPERM),
    // A process that leaves its group would outlive the kill of the group.
    (libc::SYS_setsid, libc::EPERM),
    (libc::SYS_setpgid, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_ioperm, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_iopl, libc::EPERM),
];

/// Refused to untrusted programs: other processes, signals to others, and what Landlock does not cover (modes, owners,
/// times and attributes of files that belong to the same user).
const FOR_PROGRAMS: &[(c_long, i32)] = &[
    (libc::SYS_execveat, libc::EPERM),
    // A file in memory lies under no folder that a rule could name, and could be executed.
    (libc::SYS_memfd_create, libc::EPERM),
    (libc::SYS_kill, libc::EPERM),
    (libc::SYS_tkill, libc::EPERM),
    (libc::SYS_rt_sigqueueinfo, libc::EPERM),
    (libc::SYS_rt_tgsigqueueinfo, libc::EPERM),
    (libc::SYS_setpriority, libc::EPERM),
    (libc::SYS_ioprio_set, libc::EPERM),
    (libc::SYS_sched_setattr, libc::EPERM),
    (libc::SYS_sched_setparam, libc::EPERM),
    (libc::SYS_sched_setscheduler, libc::EPERM),
    (libc::SYS_sched_setaffinity, libc::EPERM),
    (libc::SYS_migrate_pages, libc::EPERM),
    (libc::SYS_move_pages, libc::EPERM),
    (libc::SYS_fchmod, libc::EPERM),
    (libc::SYS_fchmodat, libc::EPERM),
    (FCHMODAT2, libc::EPERM),
    (libc::SYS_fchown, libc::EPERM),
    (libc::SYS_fchownat, libc::EPERM),
    (libc::SYS_setxattr, libc::EPERM),
    (libc::SYS_lsetxattr, libc::EPERM),
    (libc::SYS_fsetxattr, libc::EPERM),
    (libc::SYS_removexattr, libc::EPERM),
    (libc::SYS_lremovexattr, libc::EPERM),
    (libc::SYS_fremovexattr, libc::EPERM),
    (libc::SYS_utimensat, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_utime, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_utimes, libc::EPERM),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_futimesat, libc::EPERM),
];

/// The same number on every architecture; younger than some C libraries.
const FCHMODAT2: c_long = 452;
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_stays_inside_the_program() {
        for profile in [Profile::Tool, Profile::Program] {
            let filter = Filter::new(profile);
            let n = filter.program.len();
            assert!(n < 4096, "the kernel takes at most 4096 instructions");
            for (i, instruction) in filter.program.iter().enumerate() {
                if u32::from(instruction.code) & 7 == BPF_JMP {
                    assert!(i + 1 + usize::from(instruction.jt.max(instruction.jf)) < n, "instruction {i}");
                }
            }
        }
    }

    #[test]
    fn the_process_id_replaces_its_mark_once() {
        let mut filter = Filter::new(Profile::Program);
        let marks = |filter: &Filter, k: u32| filter.program.iter().filter(|i| i.k == k).count();
        assert_eq!(marks(&filter, PID_MARK), 1);
        set_pid(&mut filter.program, 0x1234_5678);
        assert_eq!((marks(&filter, PID_MARK), marks(&filter, 0x1234_5678)), (0, 1));
    }
}
