//! The control protocol: one JSON request a line, one JSON answer a line, over the monitor's unix socket.
//!
//! ```text
//!            create                 vCPUs run                 guest powers off, resets, crashes, or kill
//!  (process) ------> Starting ------------------> Running ------------------------------------------> (process ends,
//!                                                 |    ^                                               last words stay)
//!                                           pause v    | resume
//!                                                 Paused
//! ```

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

/// What can be asked of a running monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    /// Report state and counters.
    State,
    /// Stop all vCPUs where they are.
    Pause,
    /// Let paused vCPUs go on.
    Resume,
    /// Ask the guest to power off (ACPI power button). Answers at once; the guest takes its time.
    Shutdown,
    /// End the machine now. Disks are flushed, the guest is not asked.
    Kill,
}

/// What the monitor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
pub enum Answer {
    /// The request was carried out.
    Done,
    /// The state that was asked for.
    State(State),
    /// The request could not be carried out.
    Refused {
        /// Why, in words.
        reason: String,
    },
}

/// State and counters of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Where in its life the machine is.
    pub phase: Phase,
    /// Microseconds from the start of the monitor's process to the first vCPU's first instruction.
    pub boot_micros: u64,
    /// Per disk: bytes read, bytes written.
    pub disks: Vec<Transfer>,
    /// Per network interface: bytes received by, bytes sent by the guest.
    pub nets: Vec<Transfer>,
}

/// Bytes moved by a device since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// Towards the guest.
    pub rx_bytes: u64,
    /// From the guest.
    pub tx_bytes: u64,
}

/// Where in its life a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Devices are being made; no vCPU has run.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs stand still on request.
    Paused,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket could not be reached, written or read.
    #[error("talking to the monitor at {path}: {source}")]
    Io {
        /// The monitor's control socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The answer was no answer.
    #[error("the monitor at {path} gave an answer that cannot be read: {source}")]
    Answer {
        /// The monitor's control socket.
        path: PathBuf,
        /// What was wrong with it.
        source: serde_json::Error,
    },
    /// The monitor refused.
    #[error("the monitor at {path} refused: {reason}")]
    Refused {
        /// The monitor's control socket.
        path: PathBuf,
        /// Its reason.
        reason: String,
    },
}

/// Longest answer that is read, in bytes: 64 KiB. The longest that a monitor gives has some ten devices' counters.
pub const ANSWER_LIMIT: usize = 64 * 1024;

/// How long [`ask`] waits in all.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Sends one request and waits for its answer, five seconds at most. Blocking; a refusal is an error.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ControlError> {
    Client {
        socket,
        owner: None,
        patience: PATIENCE,
    }
    .ask(request)
}

/// Somebody who asks a monitor, and trusts it with nothing: not to answer, not to stop answering, and not to be the one
/// that was meant.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The monitor's control socket.
    pub socket: &'a Path,
    /// The uid that must listen there; anybody, if there is none. A monitor that owns the socket's directory can put a
    /// link in its place that leads to somebody else's socket.
    pub owner: Option<u32>,
    /// How long connecting, asking and answering may take together.
    pub patience: Duration,
}

impl Client<'_> {
    /// Sends one request and waits for its answer. Blocking; a refusal is an error.
    ///
    /// # Errors
    /// When there is no answer in time, none that can be read, or a refusal.
    pub fn ask(&self, request: &Request) -> Result<Answer, ControlError> {
        let path = || self.socket.to_owned();
        let io = |source| ControlError::Io {
            path: path(),
            source,
        };
        let parse = |source| ControlError::Answer {
            path: path(),
            source,
        };
        let until = Instant::now() + self.patience;
        let mut stream = self.connect(until).map_err(io)?;
        let mut line = serde_json::to_vec(request).map_err(parse)?;
        line.push(b'\n');
        // A request fits into any socket's buffer, so that one timeout holds for all of it.
        stream
            .set_write_timeout(Some(left(until).map_err(io)?))
            .and_then(|()| stream.write_all(&line))
            .map_err(io)?;
        let answer = read_answer(&mut stream, until).map_err(io)?;
        match serde_json::from_slice(&answer).map_err(parse)? {
            Answer::Refused { reason } => Err(ControlError::Refused {
                path: path(),
                reason,
            }),
            answer => Ok(answer),
        }
    }

    fn connect(&self, until: Instant) -> io::Result<UnixStream> {
        let socket = socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // Connecting waits for room in the listener's queue as long as sending may take (unix(7), net/unix/af_unix.c).
        let patience = left(until)?;
        let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
        let timeout = TimeVal::new(seconds, i64::from(patience.subsec_micros()));
        socket::setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(self.socket)?)?;
        if let Some(owner) = self.owner {
            let peer = socket::getsockopt(&socket, sockopt::PeerCredentials)?.uid();
            if peer != owner {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("uid {peer} listens there and not its monitor, uid {owner}"),
                ));
            }
        }
        Ok(UnixStream::from(socket))
    }
}

/// What is left until then, for a socket's timeout (which must not be zero).
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left < Duration::from_micros(1) {
        Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
    } else {
        Ok(left)
    }
}

/// One line, within the limits.
fn read_answer(stream: &mut UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A socket's timeout looks like this.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let bytes = chunk.get(..count).unwrap_or_default();
        let end = bytes.iter().position(|byte| *byte == b'\n');
        answer.extend_from_slice(bytes.get(..end.unwrap_or(count)).unwrap_or_default());
        if answer.len() > ANSWER_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an answer of more than {ANSWER_LIMIT} bytes"),
            ));
        }
        if end.is_some() {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say what they expect by failing")]

    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;

    /// A monitor that does `answer` with its first connection. Its directory is new and goes with the value.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str, answer: impl FnOnce(UnixStream) + Send + 'static) -> Self {
            let dir = std::env::temp_dir().join(format!("skerry-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let place = Self(dir);
            let listener = UnixListener::bind(place.socket()).unwrap();
            socket::listen(&listener, socket::Backlog::new(1).unwrap()).unwrap();
            std::thread::spawn(move || answer(listener.accept().unwrap().0));
            place
        }

        fn socket(&self) -> PathBuf {
            self.0.join("control.sock")
        }

        fn ask(&self, owner: Option<u32>) -> Result<Answer, ControlError> {
            let client = Client {
                socket: &self.socket(),
                owner,
                patience: Duration::from_millis(500),
            };
            client.ask(&Request::State)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(self.socket());
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    fn own_uid() -> u32 {
        nix::unistd::getuid().as_raw()
    }

    #[test]
    fn an_answer_comes_in_pieces_and_from_whom_it_should() {
        let place = Place::new("pieces", |mut stream| {
            for piece in [&b"{\"answer\":"[..], b"\"done\"}", b"\nmore"] {
                stream.write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(place.ask(Some(own_uid())).unwrap(), Answer::Done);
    }

    #[test]
    fn somebody_elses_socket_is_told_nothing() {
        let (told, heard) = std::sync::mpsc::channel();
        let place = Place::new("stranger", move |mut stream| {
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
            told.send(said).unwrap();
        });
        let error = place.ask(Some(own_uid() + 1)).unwrap_err().to_string();
        assert!(error.contains("listens there"), "{error}");
        assert_eq!(heard.recv().unwrap(), b"");
    }

    #[test]
    fn an_answer_without_end_is_cut_off() {
        let place = Place::new(
            "endless",
            |mut stream| {
                while stream.write_all(&[b'x'; 4096]).is_ok() {}
            },
        );
        let error = place.ask(None).unwrap_err().to_string();
        assert!(error.contains("more than 65536 bytes"), "{error}");
    }

    #[test]
    fn an_answer_that_drips_is_not_waited_for() {
        let place = Place::new("drip", |mut stream| {
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begun = Instant::now();
        let error = place.ask(None).unwrap_err().to_string();
        assert!(error.contains("in time"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_listener_whose_queue_is_full_is_not_waited_for() {
        let place = Place::new("queue", |stream| {
            std::thread::sleep(Duration::from_secs(3));
            drop(stream);
        });
        // The listener is asleep: these fill its queue.
        let begun = Instant::now();
        let mut held = Vec::new();
        let error = loop {
            let client = Client {
                socket: &place.socket(),
                owner: None,
                patience: Duration::from_millis(300),
            };
            match client.connect(Instant::now() + client.patience) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            assert!(held.len() < 100);
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
