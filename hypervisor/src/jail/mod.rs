//! What this process may do at all.
//!
//! The process starts as an unprivileged uid (whoever starts it sees to that) and gives up the rest by itself.

use std::io;

mod seccomp;

pub use seccomp::{Thread, confine};

/// From now on no program that this process could start gains privileges.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// One heap for all threads, and freed memory given back early.
///
/// glibc would give each thread a heap of its own; ours hardly allocate while the machine runs, and never at once.
pub fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before there are other threads; the arguments are numbers from malloc.h.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
    }
}
