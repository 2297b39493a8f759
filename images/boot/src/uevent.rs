//! Waiting for hardware: the kernel tells of each new device on a netlink socket
//! (`Documentation/core-api/kobject.rst`, "Uevents").

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// Also without news the world is looked at this often: a lost message must not cost more.
const LOOK_ANYWAY: Duration = Duration::from_millis(500);

/// The kernel's news of devices.
pub struct Uevents {
    socket: Option<OwnedFd>,
}

impl Uevents {
    /// Listens from now on. Without the socket, waiting works by looking often.
    pub fn listen() -> Self {
        let open = || -> io::Result<OwnedFd> {
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::NetlinkKObjectUEvent,
            )?;
            // Group 1: the kernel's own messages.
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
            Ok(fd)
        };
        Self {
            socket: open().ok(),
        }
    }

    /// Waits for news, at most `limit`. Says whether there was any; takes all that there is.
    pub fn wait(&self, limit: Duration) -> bool {
        let limit = limit.min(LOOK_ANYWAY);
        let Some(socket) = &self.socket else {
            std::thread::sleep(limit.min(Duration::from_millis(20)));
            return true;
        };
        let millis = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, PollTimeout::from(millis)), Ok(n) if n > 0) {
            return false;
        }
        let mut buffer = [0; 8192];
        loop {
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) | Err(Errno::EINTR) => {}
                // ENOBUFS: messages were lost, which is news too. EAGAIN: no more.
                Err(_) => return true,
            }
        }
    }

    /// Calls `look` now and after each piece of news until it finds something or `limit` has passed. `late` is called
    /// once, when a tenth of the limit has passed.
    pub fn until<T>(
        &self,
        limit: Duration,
        late: &mut dyn FnMut(),
        look: &mut dyn FnMut() -> Option<T>,
    ) -> Option<T> {
        let start = Instant::now();
        let mut told = false;
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            let left = limit
                .checked_sub(start.elapsed())
                .filter(|left| !left.is_zero())?;
            if !told && start.elapsed() > limit / 10 {
                told = true;
                late();
            }
            self.wait(left);
        }
    }

    /// Waits until there was no news for `quiet`, at most `limit`.
    pub fn settle(&self, quiet: Duration, limit: Duration) {
        let start = Instant::now();
        let mut last_news = start;
        while last_news.elapsed() < quiet && start.elapsed() < limit {
            if self.wait(quiet.saturating_sub(last_news.elapsed())) && self.socket.is_some() {
                last_news = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_ends_with_what_is_found_or_with_the_limit() {
        let events = Uevents::listen();
        let mut looks = 0;
        let found = events.until(Duration::from_secs(5), &mut || (), &mut || {
            looks += 1;
            (looks == 2).then_some(looks)
        });
        assert_eq!(found, Some(2));
        let mut late = 0;
        let found: Option<()> =
            events.until(Duration::from_millis(600), &mut || late += 1, &mut || None);
        assert_eq!((found, late), (None, 1));
    }
}
