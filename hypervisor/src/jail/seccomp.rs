//! Which system calls each kind of thread may make, once the machine is built.
//!
//! Everything else kills the process: a thread that calls anything not on its list is not ours any more.
//!
//! | thread | lives on |
//! |---|---|
//! | main | events, sockets, taps, random bytes, terminals' signals, pausing vCPUs; at the end: disks and last words |
//! | disks | events, reading and writing images |
//! | vCPU | KVM_RUN and the few machine ioctls that devices' registers need, doorbells, console events |
//!
//! A filter is inherited by threads made later; the main thread is confined last and makes none.

use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The main event loop.
    Main,
    /// The disks' event loop.
    Disks,
    /// A vCPU.
    Vcpu,
}

/// What every thread needs: memory, locks, the clock, its own end, and the way out of a panic.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    // Standard error, by the panic handler; and abort.
    libc::SYS_writev,
    libc::SYS_tgkill,
    // Reading CPU sets and its own name: the standard library when it reports a panic.
    libc::SYS_getcwd,
    // Seeds of hash tables, the first time that a thread makes one.
    libc::SYS_getrandom,
];

const MAIN: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_poll,
    // The guest's time to power off begins.
    libc::SYS_timerfd_settime,
    // At the end of the machine: bringing disks in order, leaving last words.
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_openat,
    libc::SYS_rename,
    libc::SYS_unlink,
];

const DISKS: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    // KVM_SIGNAL_MSI.
    libc::SYS_ioctl,
];

const VCPU: &[libc::c_long] = &[
    // KVM_RUN, KVM_SIGNAL_MSI, KVM_IOEVENTFD, KVM_IRQ_LINE; TUNSETOFFLOAD when a driver starts or resets a card.
    libc::SYS_ioctl,
    // A driver starts a device: it looks at its back end once, and drops connections of the driver before.
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_fcntl,
];

/// Confines the calling thread, for good.
pub fn confine(thread: Thread) -> io::Result<()> {
    let program = program(thread).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

fn program(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let own = match thread {
        Thread::Main => MAIN,
        Thread::Disks => DISKS,
        Thread::Vcpu => VCPU,
    };
    let rules = COMMON
        .iter()
        .chain(own)
        .map(|number| (*number, Vec::new()))
        .collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_makes_a_filter() {
        for thread in [Thread::Main, Thread::Disks, Thread::Vcpu] {
            assert!(!program(thread).unwrap().is_empty());
        }
    }

    /// A confined child that makes `call`: how it ended.
    fn confined(thread: Thread, call: fn()) -> i32 {
        // SAFETY: the child only makes system calls and ends without running anything of the test harness.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let ok = super::super::no_new_privileges().and_then(|()| confine(thread));
            if ok.is_ok() {
                call();
            }
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(ok.is_err())) };
        }
        let mut status = 0;
        // SAFETY: the status is valid for writing.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        status
    }

    #[test]
    fn what_is_not_on_the_list_kills() {
        let fork: fn() = || {
            // SAFETY: the child of the child ends at once, if there ever is one.
            unsafe { libc::syscall(libc::SYS_fork) };
        };
        for thread in [Thread::Main, Thread::Disks, Thread::Vcpu] {
            assert_eq!(confined(thread, || {}), 0, "{thread:?}");
            assert_eq!(
                libc::WTERMSIG(confined(thread, fork)),
                libc::SIGSYS,
                "{thread:?}"
            );
        }
        let connect: fn() = || {
            // SAFETY: a null address is refused by the kernel.
            unsafe { libc::connect(-1, std::ptr::null(), 0) };
        };
        assert_eq!(confined(Thread::Main, connect), 0);
        assert_eq!(
            libc::WTERMSIG(confined(Thread::Disks, connect)),
            libc::SIGSYS
        );
    }
}
