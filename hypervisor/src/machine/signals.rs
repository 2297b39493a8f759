//! SIGTERM and SIGINT end the machine in order; the end of the machine ends the main loop.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::sync::Arc;

use hypervisor_api::report::LastWords;

use crate::event_loop::{Events, READABLE, Registrar, Subscriber};
use crate::lifecycle::Lifecycle;

const SIGNAL: u32 = 0;
const ENDED: u32 = 1;

/// Waits for signals.
pub struct Signals {
    file: File,
    lifecycle: Arc<Lifecycle>,
}

impl Signals {
    /// Takes the signals over from their handlers, in this thread and those that it will start.
    pub fn new(lifecycle: Arc<Lifecycle>) -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use, and lives for the length of the calls.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            let error =
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Signals {
            // SAFETY: the descriptor was just opened and belongs to nobody else.
            file: unsafe { File::from_raw_fd(fd) },
            lifecycle,
        })
    }
}

impl Subscriber for Signals {
    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add(&self.file, SIGNAL, READABLE)?;
        // Level-triggered and never read: nothing is missed between two looks at the lifecycle.
        registrar.add(self.lifecycle.ended(), ENDED, READABLE)
    }

    fn ready(&mut self, token: u32, _events: Events) {
        if token == SIGNAL {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            if self.file.read(&mut info).is_ok() {
                self.lifecycle.end(LastWords::Killed);
            }
        }
    }
}
