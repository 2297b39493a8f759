//! One thread that waits for many descriptors and calls whoever they belong to.
//!
//! A [`Subscriber`] is registered once and gets a [`Registrar`], with which it adds and removes descriptors from
//! whatever thread it is on. Everything is edge-triggered unless asked otherwise: a subscriber that stops before a
//! descriptor is drained must remember that.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// Events to wait for and events that came: bits of epoll(7).
pub type Events = u32;
/// Something to read, or a peer that left.
pub const READABLE: Events = libc::EPOLLIN as u32;
/// Room to write.
pub const WRITABLE: Events = libc::EPOLLOUT as u32;
/// Report changes only.
pub const EDGE: Events = libc::EPOLLET as u32;
/// The peer is gone (always reported).
pub const GONE: Events = (libc::EPOLLHUP | libc::EPOLLERR) as u32;

/// Someone who is called when descriptors are ready.
pub trait Subscriber: Send {
    /// Called once, before the first event.
    fn attach(&mut self, registrar: Registrar) -> io::Result<()>;

    /// A descriptor that was added with `token` has `events`.
    fn ready(&mut self, token: u32, events: Events);
}

/// Adds and removes the descriptors of one subscriber.
#[derive(Clone, Debug)]
pub struct Registrar {
    epoll: Arc<OwnedFd>,
    subscriber: u32,
}

impl Registrar {
    /// Begins to wait for `events` on `fd`.
    pub fn add(&self, fd: &impl AsRawFd, token: u32, events: Events) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token, events)
    }

    /// Changes what is waited for.
    pub fn modify(&self, fd: &impl AsRawFd, token: u32, events: Events) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), token, events)
    }

    /// Stops waiting. Closing the descriptor does the same.
    pub fn remove(&self, fd: &impl AsRawFd) {
        // Fails only if it was never added; the end is the same.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd.as_raw_fd(), 0, 0);
    }

    fn control(&self, operation: i32, fd: RawFd, token: u32, events: Events) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events,
            u64: u64::from(self.subscriber) << 32 | u64::from(token),
        };
        // SAFETY: `event` lives for the length of the call, and the kernel checks both descriptors.
        let result =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The loop of one thread.
pub struct EventLoop {
    epoll: Arc<OwnedFd>,
    subscribers: Vec<Arc<Mutex<dyn Subscriber>>>,
}

impl EventLoop {
    /// An empty loop.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(EventLoop {
            // SAFETY: the descriptor was just opened and belongs to nobody else.
            epoll: Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }),
            subscribers: Vec::new(),
        })
    }

    /// Registers a subscriber and lets it add its descriptors.
    pub fn add(&mut self, subscriber: Arc<Mutex<dyn Subscriber>>) -> io::Result<()> {
        let registrar = Registrar {
            epoll: self.epoll.clone(),
            subscriber: self.subscribers.len() as u32,
        };
        lock(&subscriber).attach(registrar)?;
        self.subscribers.push(subscriber);
        Ok(())
    }

    /// Whether anyone has registered.
    pub fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
    }

    /// Waits for events and calls those whom they concern, once.
    pub fn turn(&mut self) -> io::Result<()> {
        const BATCH: usize = 16;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: the array has room for BATCH events.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                BATCH as i32,
                -1,
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        for event in events.iter().take(count as usize) {
            let (who, what) = ({ event.u64 }, { event.events });
            if let Some(subscriber) = self.subscribers.get((who >> 32) as usize) {
                lock(subscriber).ready(who as u32, what);
            }
        }
        Ok(())
    }
}
