//! The agent's side of the control connection of a container's microVM.
//!
//! guest-init connects when it boots and again when the connection broke (this agent was restarted). The newest
//! connection counts. What arrives comes from inside a guest: lines are bounded, and what cannot be read ends the
//! connection. Only its own monitor may connect ([`crate::peer`]).

use std::path::Path;

use guest_api::{FromGuest, ToGuest};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::host::files::{FileError, fail};
use crate::peer;

/// Longest line that a guest may send: 64 KiB.
const LINE_LIMIT: u64 = 64 * 1024;

/// A guest's control connection, whether it stands or not.
pub struct Guest {
    task: JoinHandle<()>,
    events: mpsc::Receiver<FromGuest>,
    /// What was asked last; a new connection is told again.
    request: watch::Sender<Option<ToGuest>>,
    connected: watch::Receiver<bool>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Guest {
    /// Listens at `socket`, to which the monitor with `uid` will connect. The directory belongs to that monitor; the
    /// socket is made at `workshop`, in a directory of root's.
    pub fn listen(workshop: &Path, socket: &Path, uid: u32) -> Result<Self, FileError> {
        let listener = peer::listen(workshop, socket, uid).map_err(fail("listening at", socket))?;
        let (event, events) = mpsc::channel(8);
        let (request, requested) = watch::channel(None);
        let (connect, connected) = watch::channel(false);
        let task = tokio::spawn(serve(listener, uid, event, requested, connect));
        Ok(Self {
            task,
            events,
            request,
            connected,
        })
    }

    /// The next thing that the guest reports.
    pub async fn event(&mut self) -> Option<FromGuest> {
        self.events.recv().await
    }

    /// What it reported and nobody has taken yet.
    pub fn pending(&mut self) -> Option<FromGuest> {
        self.events.try_recv().ok()
    }

    /// Asks something of the guest, now and at each new connection. Gives whether there is a connection.
    pub fn ask(&self, request: ToGuest) -> bool {
        self.request.send_replace(Some(request));
        *self.connected.borrow()
    }
}

async fn serve(
    listener: UnixListener,
    uid: u32,
    event: mpsc::Sender<FromGuest>,
    requested: watch::Receiver<Option<ToGuest>>,
    connected: watch::Sender<bool>,
) {
    let Some(mut stream) = accept(&listener, uid).await else {
        return;
    };
    loop {
        connected.send_replace(true);
        let next = tokio::select! {
            () = talk(stream, &event, requested.clone()) => {
                connected.send_replace(false);
                accept(&listener, uid).await
            }
            next = accept(&listener, uid) => next,
        };
        match next {
            Some(next) => stream = next,
            None => return,
        }
    }
}

/// The next connection of the monitor with `uid`; nobody else has anything to say here.
async fn accept(listener: &UnixListener, uid: u32) -> Option<UnixStream> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match peer::is(&stream, uid) {
                Ok(()) => return Some(stream),
                Err(error) => {
                    tracing::warn!(%error, "a guest's control connection was refused")
                }
            },
            Err(error) => {
                tracing::warn!(%error, "a guest's control connection could not be taken");
                return None;
            }
        }
    }
}

async fn talk(
    stream: UnixStream,
    event: &mpsc::Sender<FromGuest>,
    mut requested: watch::Receiver<Option<ToGuest>>,
) {
    let (read, mut write) = stream.into_split();
    let hear = async {
        let mut read = BufReader::new(read);
        loop {
            let mut line = Vec::new();
            match (&mut read)
                .take(LINE_LIMIT)
                .read_until(b'\n', &mut line)
                .await
            {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            match parse(&line) {
                Some(said) => {
                    if event.send(said).await.is_err() {
                        return;
                    }
                }
                None => {
                    tracing::warn!(
                        "a guest said something that cannot be understood; its connection is closed"
                    );
                    return;
                }
            }
        }
    };
    let tell = async {
        requested.mark_changed();
        while requested.changed().await.is_ok() {
            let request = requested.borrow_and_update().clone();
            let Some(request) = request else { continue };
            let mut line = serde_json::to_vec(&request).unwrap_or_default();
            line.push(b'\n');
            if write.write_all(&line).await.is_err() {
                return;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = hear => {}
        () = tell => {}
    }
}

/// Reads one line of a guest.
#[must_use]
pub fn parse(line: &[u8]) -> Option<FromGuest> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_arrive_requests_are_told_again_and_the_newest_connection_counts() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock_1024");
        let workshop = dir.path().join("guest.sock");
        let uid = nix::unistd::getuid().as_raw();
        let mut guest = Guest::listen(&workshop, &socket, uid).unwrap();
        let stop = ToGuest::Stop {
            signal: 15,
            grace_seconds: 5,
        };
        assert!(!guest.ask(stop.clone()));

        let mut first = UnixStream::connect(&socket).await.unwrap();
        first.write_all(b"{\"event\":\"started\"}\n").await.unwrap();
        assert_eq!(guest.event().await, Some(FromGuest::Started));
        let mut line = String::new();
        BufReader::new(&mut first)
            .read_line(&mut line)
            .await
            .unwrap();
        assert_eq!(serde_json::from_str::<ToGuest>(&line).unwrap(), stop);

        let mut second = UnixStream::connect(&socket).await.unwrap();
        line.clear();
        BufReader::new(&mut second)
            .read_line(&mut line)
            .await
            .unwrap();
        assert_eq!(serde_json::from_str::<ToGuest>(&line).unwrap(), stop);
        second
            .write_all(b"{\"event\":\"exited\",\"code\":3}\n")
            .await
            .unwrap();
        assert_eq!(guest.event().await, Some(FromGuest::Exited { code: 3 }));
        // The first was closed.
        assert_eq!(first.read(&mut [0u8; 8]).await.unwrap_or(0), 0);

        // Nonsense closes the connection, and a third may come.
        second.write_all(b"nonsense\n").await.unwrap();
        assert_eq!(second.read(&mut [0u8; 8]).await.unwrap_or(0), 0);
        let mut third = UnixStream::connect(&socket).await.unwrap();
        third
            .write_all(b"{\"event\":\"failed\",\"message\":\"no root\"}\n")
            .await
            .unwrap();
        assert_eq!(
            guest.event().await,
            Some(FromGuest::Failed {
                message: "no root".into()
            })
        );
    }

    #[tokio::test]
    async fn only_its_own_monitor_is_listened_to() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock_1024");
        let uid = nix::unistd::getuid().as_raw() + 1;
        let _guest = Guest::listen(&dir.path().join("guest.sock"), &socket, uid).unwrap();
        let mut stranger = UnixStream::connect(&socket).await.unwrap();
        let _ = stranger.write_all(b"{\"event\":\"started\"}\n").await;
        assert_eq!(stranger.read(&mut [0u8; 8]).await.unwrap_or(0), 0);
    }

    #[test]
    fn only_whole_lines_are_read() {
        assert_eq!(
            parse(b"{\"event\":\"started\"}\n"),
            Some(FromGuest::Started)
        );
        assert_eq!(parse(b"{\"event\":\"started\"}"), None);
        assert_eq!(parse(b"\n"), None);
        assert_eq!(parse(&[0xff; 100]), None);
    }
}
