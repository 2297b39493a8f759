//! Sockets that lie in a directory of somebody whom the agent does not trust: a monitor's.
//!
//! ```text
//! <run>/apps/<id>/        root's: what lies here is what the agent put here
//!     vm/                 the monitor's own: any name in it may be a link to anywhere at any moment
//!         console.sock    whoever is asked to connect there looks who really listens
//! ```
//!
//! A path through such a directory is only ever connected to, and what is behind it is believed only if the kernel says
//! that the directory's owner listens there (SO_PEERCRED, unix(7)). A socket that the agent makes there is made beside
//! it, in root's directory, and moved in when it is as it should be; renaming follows no link.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

/// The uid that must listen at `socket`: the owner of the directory that it lies in, which is no link.
///
/// # Errors
/// When the directory cannot be looked at, or is none.
pub fn owner(socket: &Path) -> io::Result<u32> {
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let about = std::fs::symlink_metadata(dir)?;
    if about.is_dir() {
        Ok(about.uid())
    } else {
        Err(io::Error::other("its directory is a link or a file"))
    }
}

/// Connects to a socket if the owner of its directory listens there.
///
/// # Errors
/// When nobody listens, or somebody else does.
pub async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let owner = owner(socket)?;
    let stream = UnixStream::connect(socket).await?;
    is(&stream, owner)?;
    Ok(stream)
}

/// Whether the other end of a connection belongs to `uid`.
///
/// # Errors
/// When it belongs to somebody else.
pub fn is(stream: &UnixStream, uid: u32) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer == uid {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("uid {peer} is at the other end and not uid {uid}"),
        ))
    }
}

/// Listens at `place` for `uid` alone. The socket is made at `workshop`, which must lie in a directory that only root
/// writes to, on the same file system.
///
/// # Errors
/// When it cannot be made or moved.
pub fn listen(workshop: &Path, place: &Path, uid: u32) -> io::Result<UnixListener> {
    match std::fs::remove_file(workshop) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(workshop)?;
    std::fs::set_permissions(workshop, std::fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::lchown(workshop, Some(uid), Some(uid))?;
    std::fs::rename(workshop, place)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> u32 {
        nix::unistd::getuid().as_raw()
    }

    #[tokio::test]
    async fn a_link_where_the_socket_is_to_be_is_replaced_and_what_it_leads_to_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("vm");
        std::fs::create_dir(&theirs).unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "victim").unwrap();
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o644)).unwrap();
        let place = theirs.join("vsock.sock_1024");
        std::os::unix::fs::symlink(&victim, &place).unwrap();
        let listener = listen(&dir.path().join("guest.sock"), &place, own()).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"victim");
        let mode = std::fs::metadata(&victim).unwrap().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(
            std::fs::symlink_metadata(&place).unwrap().mode() & 0o777,
            0o600
        );
        let (stream, accepted) = tokio::join!(connect(&place), listener.accept());
        stream.unwrap();
        is(&accepted.unwrap().0, own()).unwrap();
    }

    #[tokio::test]
    async fn somebody_else_behind_the_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("vm");
        std::fs::create_dir(&theirs).unwrap();
        // We listen in a directory that is said to belong to another uid; only root can say so.
        let _listener = UnixListener::bind(theirs.join("console.sock")).unwrap();
        std::os::unix::fs::chown(&theirs, Some(own() + 1), None).unwrap();
        let error = connect(&theirs.join("console.sock")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        // A directory that is a link is none.
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(owner(&dir.path().join("link/x")).is_err());
    }
}
