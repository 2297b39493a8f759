//! The connection to the agent: vsock, one JSON message a line, made anew as often as it breaks.
//!
//! ```text
//! Down -- delay passes --> Connecting -- up --> Up -- error or end --> Down
//!   ^                          |
//!   +-------- refused ---------+            (closing: our side is shut, the agent's end is awaited)
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_api::{CONTROL_PORT, FromGuest, ToGuest};
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, VsockAddr, connect, getsockopt, recv,
    send, shutdown, socket,
};

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// A message longer than this is no message.
const MAX_LINE: usize = 64 * 1024;

/// Bytes on their way in, cut into lines.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// Takes bytes and gives the whole lines that they complete. `None`: the other end does not speak in lines.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        self.bytes.extend_from_slice(bytes);
        let mut lines: Vec<Vec<u8>> = self
            .bytes
            .split(|b| *b == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        self.bytes = lines.pop().unwrap_or_default();
        (self.bytes.len() <= MAX_LINE).then_some(lines)
    }
}

/// One message as a line.
pub fn encode(word: &FromGuest) -> Vec<u8> {
    // Serialising an enum of strings and numbers into memory has no way to fail.
    let mut line = serde_json::to_vec(word).unwrap_or_default();
    line.push(b'\n');
    line
}

#[derive(Debug)]
enum Link {
    Down {
        retry_at: Instant,
    },
    Connecting {
        socket: OwnedFd,
    },
    Up {
        socket: OwnedFd,
        incoming: Lines,
        outgoing: Vec<u8>,
        closing: Closing,
    },
}

/// How far the last word has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    AfterOutgoing,
    Shut,
}

/// What the connection brings.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// It is up: the agent wants to know where the container stands.
    Up,
    /// A request.
    Asked(ToGuest),
    /// The agent closed its end after the last word was sent.
    Heard,
    /// Something that is no request, for the log.
    Odd(String),
}

/// The connection, in whatever state.
pub struct Control {
    link: Link,
    delay: Duration,
}

impl Control {
    /// Connects at the next occasion.
    pub fn new(now: Instant) -> Self {
        Self {
            link: Link::Down { retry_at: now },
            delay: FIRST_DELAY,
        }
    }

    /// What to wait for, if there is a socket.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.link {
            Link::Down { .. } => None,
            Link::Connecting { socket } => Some((socket.as_fd(), PollFlags::POLLOUT)),
            Link::Up {
                socket, outgoing, ..
            } if outgoing.is_empty() => Some((socket.as_fd(), PollFlags::POLLIN)),
            Link::Up { socket, .. } => {
                Some((socket.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT))
            }
        }
    }

    /// When to come back without an event.
    pub fn deadline(&self) -> Option<Instant> {
        match self.link {
            Link::Down { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    /// Sends a message if the connection is up; if not, the next [`News::Up`] asks for it. After the `last` one nothing
    /// is sent any more.
    pub fn tell(&mut self, word: &FromGuest, last: bool) {
        if let Link::Up {
            outgoing, closing, ..
        } = &mut self.link
            && *closing == Closing::No
        {
            outgoing.extend(encode(word));
            if last {
                *closing = Closing::AfterOutgoing;
            }
        }
    }

    /// Does what can be done without waiting.
    pub fn advance(&mut self, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        let link = std::mem::replace(&mut self.link, Link::Down { retry_at: now });
        let was_up = matches!(link, Link::Up { .. });
        let next = match link {
            Link::Down { retry_at } if now < retry_at => Ok(Link::Down { retry_at }),
            Link::Down { .. } => begin(),
            Link::Connecting { socket } => finish(socket),
            Link::Up {
                socket,
                incoming,
                outgoing,
                closing,
            } => exchange(socket, incoming, outgoing, closing, &mut news),
        };
        self.link = next.unwrap_or_else(|_| {
            let retry_at = now + self.delay;
            self.delay = (self.delay * 2).min(LONGEST_DELAY);
            Link::Down { retry_at }
        });
        if !was_up && matches!(self.link, Link::Up { .. }) {
            self.delay = FIRST_DELAY;
            news.push(News::Up);
        }
        news
    }
}

fn begin() -> io::Result<Link> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    match connect(
        socket.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_HOST, CONTROL_PORT),
    ) {
        Ok(()) => Ok(up(socket)),
        Err(Errno::EINPROGRESS) => Ok(Link::Connecting { socket }),
        Err(e) => Err(e.into()),
    }
}

fn finish(socket: OwnedFd) -> io::Result<Link> {
    match getsockopt(&socket, SocketError)? {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    // No error yet may also mean not yet connected: only a connected socket has a peer.
    match nix::sys::socket::getpeername::<VsockAddr>(socket.as_raw_fd()) {
        Ok(_) => Ok(up(socket)),
        Err(Errno::ENOTCONN) => Ok(Link::Connecting { socket }),
        Err(e) => Err(e.into()),
    }
}

fn up(socket: OwnedFd) -> Link {
    Link::Up {
        socket,
        incoming: Lines::default(),
        outgoing: Vec::new(),
        closing: Closing::No,
    }
}

fn exchange(
    socket: OwnedFd,
    mut incoming: Lines,
    mut outgoing: Vec<u8>,
    mut closing: Closing,
    news: &mut Vec<News>,
) -> io::Result<Link> {
    while !outgoing.is_empty() {
        match send(socket.as_raw_fd(), &outgoing, MsgFlags::MSG_NOSIGNAL) {
            Ok(n) => {
                outgoing.drain(..n.min(outgoing.len()));
            }
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if closing == Closing::AfterOutgoing && outgoing.is_empty() {
        shutdown(socket.as_raw_fd(), Shutdown::Write)?;
        closing = Closing::Shut;
    }
    let mut buffer = [0; 4096];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => {
                if closing == Closing::Shut {
                    news.push(News::Heard);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(n) => {
                let lines = incoming
                    .push(buffer.get(..n).unwrap_or_default())
                    .ok_or(io::ErrorKind::InvalidData)?;
                news.extend(
                    lines
                        .iter()
                        .filter(|line| !line.is_empty())
                        .map(|line| decode(line)),
                );
            }
            Err(Errno::EAGAIN) => {
                return Ok(Link::Up {
                    socket,
                    incoming,
                    outgoing,
                    closing,
                });
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn decode(line: &[u8]) -> News {
    match serde_json::from_slice(line) {
        Ok(request) => News::Asked(request),
        Err(e) => News::Odd(format!("the agent sent something that is no request: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::socketpair;

    use super::*;

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let stop = br#"{"request":"stop","signal":15,"graceSeconds":10}"#;
        let mut text = stop.to_vec();
        text.extend(b"\nnonsense\n");
        let mut lines = Lines::default();
        let mut got = Vec::new();
        for byte in &text {
            got.extend(lines.push(std::slice::from_ref(byte)).unwrap());
        }
        assert_eq!(got.len(), 2);
        assert_eq!(
            decode(&got[0]),
            News::Asked(ToGuest::Stop {
                signal: 15,
                grace_seconds: 10
            })
        );
        assert!(matches!(decode(&got[1]), News::Odd(_)));
        assert_eq!(Lines::default().push(&text).unwrap().len(), 2);
        assert!(Lines::default().push(&vec![b'x'; MAX_LINE + 1]).is_none());
    }

    /// A connection over a pair of sockets, which behave as vsock does, and the agent's end of it.
    fn connected() -> (Control, OwnedFd) {
        let (ours, agents) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_NONBLOCK,
        )
        .unwrap();
        let control = Control {
            link: up(ours),
            delay: FIRST_DELAY,
        };
        (control, agents)
    }

    #[test]
    fn the_last_word_is_sent_shut_and_heard() {
        let (mut control, agents) = connected();
        let now = Instant::now();
        let mut buffer = [0; 1000];
        control.tell(&FromGuest::Started, false);
        assert!(control.interest().unwrap().1.contains(PollFlags::POLLOUT));
        assert_eq!(control.advance(now), []);
        let n = recv(agents.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        assert_eq!(&buffer[..n], b"{\"event\":\"started\"}\n");
        send(
            agents.as_raw_fd(),
            b"{\"request\":\"stop\",\"signal\":2,\"graceSeconds\":1}\n",
            MsgFlags::empty(),
        )
        .unwrap();
        assert_eq!(
            control.advance(now),
            [News::Asked(ToGuest::Stop {
                signal: 2,
                grace_seconds: 1
            })]
        );
        control.tell(&FromGuest::Exited { code: 0 }, true);
        control.tell(&FromGuest::Exited { code: 0 }, true);
        assert_eq!(control.advance(now), []);
        let n = recv(agents.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        assert_eq!(&buffer[..n], b"{\"event\":\"exited\",\"code\":0}\n");
        assert_eq!(
            recv(agents.as_raw_fd(), &mut buffer, MsgFlags::empty()),
            Ok(0)
        );
        drop(agents);
        assert_eq!(control.advance(now), [News::Heard]);
        assert_eq!(control.deadline(), Some(now + FIRST_DELAY));
    }

    #[test]
    fn a_connection_that_breaks_early_was_not_heard() {
        let (mut control, agents) = connected();
        drop(agents);
        assert_eq!(control.advance(Instant::now()), []);
        assert!(control.interest().is_none());
    }

    #[test]
    fn words_on_the_wire() {
        assert_eq!(encode(&FromGuest::Started), b"{\"event\":\"started\"}\n");
        assert_eq!(
            encode(&FromGuest::Exited { code: 143 }),
            b"{\"event\":\"exited\",\"code\":143}\n"
        );
    }
}
