//! The user and network namespace of a native container, and a view of its root file system with the container's ids.
//!
//! The namespaces are made by a short-lived child process and kept by bind mounts, so that they are there before the
//! container's first process: its network is set up, and its files are mounted with its ids (`mount_setattr(2)`,
//! `MOUNT_ATTR_IDMAP`), when it starts.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe};

/// Something about namespaces or mounts that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub struct NamespaceError {
    operation: &'static str,
    path: String,
    source: io::Error,
}

fn fail<E: Into<io::Error>>(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> NamespaceError {
    let path = path.display().to_string();
    move |source| NamespaceError {
        operation,
        path,
        source: source.into(),
    }
}

/// Makes a user namespace whose ids 0 to `count` - 1 are `first` and up outside, and a network namespace that belongs to
/// it, and keeps them at the two paths. Blocking, for a moment.
pub fn make(user: &Path, network: &Path, first: u32, count: u32) -> Result<(), NamespaceError> {
    for path in [user, network] {
        File::create(path).map_err(fail("creating", path))?;
    }
    let (ready_read, ready_write) = pipe().map_err(fail("making a pipe for", user))?;
    let (go_read, go_write) = pipe().map_err(fail("making a pipe for", user))?;
    // SAFETY: the child calls nothing but unshare, read, write, close and _exit, which are safe after a fork in a
    // process with threads (signal-safety(7)); it allocates nothing.
    let child = match unsafe { fork() }.map_err(fail("making a process for", user))? {
        ForkResult::Child => {
            drop((ready_read, go_write));
            let made = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
            let _ = nix::unistd::write(&ready_write, &[u8::from(made.is_ok())]);
            // Until the parent closes its end.
            let _ = nix::unistd::read(&go_read, &mut [0u8; 1]);
            // SAFETY: ends the child at once, without running what the parent registered for its own end.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    drop((ready_write, go_read));
    let result = (|| {
        let mut made = [0u8; 1];
        File::from(ready_read)
            .read_exact(&mut made)
            .map_err(fail("making the namespaces at", user))?;
        if made != [1] {
            return Err(fail("making the namespaces at", user)(io::Error::other(
                "the kernel refused",
            )));
        }
        let map = format!("0 {first} {count}\n");
        for kind in ["uid_map", "gid_map"] {
            let path = format!("/proc/{child}/{kind}");
            let path = Path::new(&path);
            let written = File::options()
                .write(true)
                .open(path)
                .and_then(|mut file| file.write_all(map.as_bytes()));
            written.map_err(fail("writing", path))?;
        }
        for (kind, path) in [("user", user), ("net", network)] {
            let source = format!("/proc/{child}/ns/{kind}");
            mount(
                Some(source.as_str()),
                path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .map_err(fail("keeping the namespace at", path))?;
        }
        Ok(())
    })();
    drop(go_write);
    let _ = waitpid(child, None);
    result
}

/// Mounts the tree at `from` at `to` with its owners mapped by a user namespace: what belongs to 0 on the disk belongs to
/// the namespace's root there.
pub fn mount_mapped(from: &Path, to: &Path, user: &Path) -> Result<(), NamespaceError> {
    let namespace = File::open(user).map_err(fail("opening", user))?;
    let from_text = CString::new(from.as_os_str().as_bytes()).map_err(fail("mounting", from))?;
    let to_text = CString::new(to.as_os_str().as_bytes()).map_err(fail("mounting at", to))?;
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: open_tree takes a directory descriptor, a C string that lives over the call, and flags.
    let tree = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            from_text.as_ptr(),
            flags,
        )
    };
    let tree = check(tree).map_err(fail("mounting", from))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(i32::try_from(tree).unwrap_or(-1)) };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    // SAFETY: the path is an empty C string, the attributes are a whole mount_attr of the size given, and both live over
    // the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map_err(fail("mapping the owners of", from))?;
    // SAFETY: two descriptors, two C strings that live over the call, and flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            to_text.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(result).map_err(fail("mounting at", to))?;
    Ok(())
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Mounts an overlay: `lower` read-only under `upper`.
pub fn mount_overlay(
    lower: &Path,
    upper: &Path,
    work: &Path,
    to: &Path,
) -> Result<(), NamespaceError> {
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        to,
        Some("overlay"),
        MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
        Some(options.as_str()),
    )
    .map_err(fail("mounting the writable root at", to))
}

/// Runs `work` on a thread in a network namespace.
pub fn inside<T: Send + 'static>(
    network: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NamespaceError> {
    let namespace = File::open(network).map_err(fail("opening", network))?;
    let thread = std::thread::Builder::new()
        .name("in-namespace".into())
        .spawn(move || nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).map(|()| work()))
        .map_err(fail("starting a thread for", network))?;
    match thread.join() {
        Ok(result) => result.map_err(fail("entering", network)),
        Err(_) => Err(fail("working in", network)(io::Error::other(
            "the thread stopped unexpectedly",
        ))),
    }
}

/// Unmounts everything at and below a directory, the last mounted first.
pub fn unmount_below(dir: &Path) -> Result<(), NamespaceError> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(fail("reading the mounts at", dir))?;
    for place in mounts_below(&table, dir).into_iter().rev() {
        let place = Path::new(&place);
        // Lazily: a process that is being killed may hold it for a moment longer.
        nix::mount::umount2(
            place,
            nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW,
        )
        .map_err(fail("unmounting", place))?;
    }
    Ok(())
}

/// The mount points at and below a directory, in the order in which they were mounted (proc_pid_mountinfo(5)).
fn mounts_below(table: &str, dir: &Path) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|place| Path::new(place).starts_with(dir))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_whole_names() {
        let table = "1 0 0:1 / / rw - ext4 /dev/vda rw\n\
                     2 1 0:2 / /run/skerry/apps/a/lower ro - erofs /dev/loop0 ro\n\
                     3 1 0:3 / /run/skerry/apps/a/rootfs rw - overlay overlay rw\n\
                     4 1 0:4 / /run/skerry/apps/ab/rootfs rw - overlay overlay rw\n";
        assert_eq!(
            mounts_below(table, Path::new("/run/skerry/apps/a")),
            ["/run/skerry/apps/a/lower", "/run/skerry/apps/a/rootfs"]
        );
    }
}
