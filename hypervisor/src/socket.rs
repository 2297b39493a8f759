//! Unix sockets as all parts of the monitor make and use them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Making it failed.
    #[error("making the socket {path}: {source}")]
    Make {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No descriptors left.
    #[error("making an event descriptor: {0}")]
    Resources(io::Error),
}

impl SocketError {
    /// For descriptors that belong to a socket but have no path.
    pub fn resources(source: io::Error) -> Self {
        SocketError::Resources(source)
    }
}

/// A non-blocking listening socket that only the own uid (and root) may connect to: mode 0600, by the process's umask,
/// so that there is no moment in which it is open to others. A socket that a former process left is replaced;
/// anything else at the path is an error.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let make = |source| SocketError::Make {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(make)?,
        Ok(_) => return Err(make(io::ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(make(error)),
    }
    let listener = UnixListener::bind(path).map_err(make)?;
    listener.set_nonblocking(true).map_err(make)?;
    Ok(listener)
}

/// From now on, files and sockets that the process makes belong to its uid alone.
pub fn make_private() {
    // SAFETY: umask cannot fail and touches no memory.
    unsafe { libc::umask(0o177) };
}

/// Sends without waiting, and without a signal if the peer is gone.
pub fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and length describe `bytes`.
        let count = unsafe {
            libc::send(
                stream.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Connects without waiting: a listener whose queue is full is an error.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;

    let bytes = path.as_os_str().as_bytes();
    // SAFETY: sockaddr_un is plain data, for which zeroes are valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the address is initialised, and its length is passed.
    let result = unsafe {
        libc::connect(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd.into())
}
