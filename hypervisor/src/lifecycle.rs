//! Where in its life the machine is, and what its vCPUs may do.
//!
//! ```text
//!            run                          end (guest powers off, resets, faults; kill; a failure)
//! Starting --------> Running -----------------------------------------------------------> Ended(last words)
//!    |                |    ^                                                                     ^
//!    |          pause v    | resume                                                              |
//!    |               Paused ---------------------------------------------------------------------+
//!    +-------------------------------------------------------------------------------------------+
//! ```
//!
//! vCPU threads pass a [`Lifecycle::checkpoint`] before each entry into the guest. While the machine does not run they
//! are held there ("parked"); when it has ended they are sent home. A vCPU inside the guest is fetched with a signal,
//! again and again until it has come: one that arrives just before the entry would otherwise be lost.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor_api::control;
use hypervisor_api::report::LastWords;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::sync::lock;

/// How long vCPUs may take to stop. They take microseconds, unless the host is very busy.
const STOP_TIME: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Paused,
    Ended(LastWords),
}

struct Inner {
    phase: Phase,
    /// vCPU threads that are held at the checkpoint, or have gone home.
    parked: usize,
    threads: Vec<libc::pthread_t>,
}

/// The machine's life, shared by all its threads.
pub struct Lifecycle {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// False only while vCPUs may run: what they look at before each entry.
    hold: AtomicBool,
    ended: EventFd,
    process_start: Instant,
    boot_micros: AtomicU64,
}

impl Lifecycle {
    /// A machine that is being built, by a process that began at `process_start`.
    pub fn new(process_start: Instant) -> std::io::Result<Self> {
        register_signal_handler(SIGRTMIN(), ignore)
            .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
        Ok(Lifecycle {
            inner: Mutex::new(Inner {
                phase: Phase::Starting,
                parked: 0,
                threads: Vec::new(),
            }),
            changed: Condvar::new(),
            hold: AtomicBool::new(true),
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            process_start,
            boot_micros: AtomicU64::new(0),
        })
    }

    /// Becomes readable when the machine has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// The last words, if the machine has ended.
    pub fn last_words(&self) -> Option<LastWords> {
        match &lock(&self.inner).phase {
            Phase::Ended(words) => Some(words.clone()),
            _ => None,
        }
    }

    /// Phase and boot time, as the control socket tells them.
    pub fn phase(&self) -> (control::Phase, u64) {
        let phase = match lock(&self.inner).phase {
            Phase::Starting => control::Phase::Starting,
            Phase::Paused => control::Phase::Paused,
            // Between its last instruction and the end of the process it still counts as running.
            Phase::Running | Phase::Ended(_) => control::Phase::Running,
        };
        (phase, self.boot_micros.load(Ordering::Relaxed))
    }

    /// Takes a vCPU's thread under control.
    pub fn adopt(&self, thread: &JoinHandle<()>) {
        lock(&self.inner).threads.push(thread.as_pthread_t());
    }

    /// All is built: vCPUs may run.
    pub fn run(&self) {
        self.change(|phase| (*phase == Phase::Starting).then_some(Phase::Running));
    }

    /// Stops all vCPUs where they are. An error says why not.
    pub fn pause(&self) -> Result<(), &'static str> {
        if !self.change(|phase| (*phase == Phase::Running).then_some(Phase::Paused)) {
            return Err("the machine is not running");
        }
        if self.wait_for_vcpus() {
            return Ok(());
        }
        self.change(|phase| (*phase == Phase::Paused).then_some(Phase::Running));
        Err("the vCPUs did not stop in time")
    }

    /// Lets paused vCPUs go on. An error says why not.
    pub fn resume(&self) -> Result<(), &'static str> {
        if self.change(|phase| (*phase == Phase::Paused).then_some(Phase::Running)) {
            Ok(())
        } else {
            Err("the machine is not paused")
        }
    }

    /// Ends the machine. The first last words count.
    pub fn end(&self, words: LastWords) {
        let first = self.change(|phase| match phase {
            Phase::Ended(_) => None,
            _ => Some(Phase::Ended(words)),
        });
        if first {
            // Fails only when the counter is full, which it is not.
            let _ = self.ended.write(1);
        }
    }

    /// Waits until no vCPU runs any more; false if that takes too long.
    pub fn wait_for_vcpus(&self) -> bool {
        let deadline = Instant::now() + STOP_TIME;
        let mut inner = lock(&self.inner);
        while inner.parked < inner.threads.len() {
            if Instant::now() > deadline {
                return false;
            }
            for thread in &inner.threads {
                // SAFETY: the threads are never joined nor detached while the machine's state lives, so their ids stay
                // valid; the signal has a handler.
                unsafe { libc::pthread_kill(*thread, SIGRTMIN()) };
            }
            inner = self
                .changed
                .wait_timeout(inner, Duration::from_millis(1))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// A vCPU asks whether it may enter the guest; it is held here while it may not. False: go home.
    pub fn checkpoint(&self) -> bool {
        !self.hold.load(Ordering::Acquire) || self.park()
    }

    fn park(&self) -> bool {
        let mut inner = lock(&self.inner);
        inner.parked += 1;
        self.changed.notify_all();
        loop {
            match inner.phase {
                Phase::Starting | Phase::Paused => {
                    inner = self
                        .changed
                        .wait(inner)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Phase::Running => {
                    inner.parked -= 1;
                    return true;
                }
                Phase::Ended(_) => return false,
            }
        }
    }

    /// The first vCPU is about to execute its first instruction.
    pub fn note_first_instruction(&self) {
        let micros = self.process_start.elapsed().as_micros() as u64;
        self.boot_micros.store(micros, Ordering::Relaxed);
    }

    fn change(&self, next: impl FnOnce(&Phase) -> Option<Phase>) -> bool {
        let mut inner = lock(&self.inner);
        let Some(phase) = next(&inner.phase) else {
            return false;
        };
        self.hold.store(phase != Phase::Running, Ordering::Release);
        inner.phase = phase;
        self.changed.notify_all();
        true
    }
}

/// A signal's only purpose is to interrupt KVM_RUN.
extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Ends the machine if the thread that holds this panics.
pub struct EndOnPanic(pub std::sync::Arc<Lifecycle>);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current().name().unwrap_or("?").to_owned();
            self.0.end(LastWords::Failed {
                message: format!(
                    "thread {name} of the monitor panicked; its message is on standard error"
                ),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A vCPU that counts its entries into the guest.
    fn vcpu(life: &Arc<Lifecycle>) -> (Arc<AtomicU64>, JoinHandle<()>) {
        let count = Arc::new(AtomicU64::new(0));
        let (life, seen) = (life.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            while life.checkpoint() {
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        (count, thread)
    }

    #[test]
    fn vcpus_run_only_between_run_and_end() {
        let life = Arc::new(Lifecycle::new(Instant::now()).unwrap());
        let (count, thread) = vcpu(&life);
        life.adopt(&thread);
        assert_eq!(life.pause(), Err("the machine is not running"));
        assert_eq!(count.load(Ordering::Relaxed), 0);
        life.run();
        while count.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        life.pause().unwrap();
        let stopped = count.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(count.load(Ordering::Relaxed), stopped);
        assert_eq!(life.phase().0, control::Phase::Paused);
        life.resume().unwrap();
        assert_eq!(life.resume(), Err("the machine is not paused"));
        life.end(LastWords::PowerOff);
        life.end(LastWords::Killed);
        assert!(life.wait_for_vcpus());
        thread.join().unwrap();
        assert_eq!(life.last_words(), Some(LastWords::PowerOff));
    }

    #[test]
    fn a_paused_machine_can_be_killed() {
        let life = Arc::new(Lifecycle::new(Instant::now()).unwrap());
        let (_, thread) = vcpu(&life);
        life.adopt(&thread);
        life.run();
        life.pause().unwrap();
        life.end(LastWords::Killed);
        thread.join().unwrap();
        assert_eq!(life.last_words(), Some(LastWords::Killed));
    }

    #[test]
    fn a_panic_is_a_failure_of_the_machine() {
        let life = Arc::new(Lifecycle::new(Instant::now()).unwrap());
        let guard = EndOnPanic(life.clone());
        let thread = std::thread::Builder::new().name("vcpu0".to_owned());
        let result = thread
            .spawn(move || {
                let _guard = guard;
                std::panic::resume_unwind(Box::new(()));
            })
            .unwrap()
            .join();
        assert!(result.is_err());
        assert!(
            matches!(life.last_words(), Some(LastWords::Failed { message }) if message.contains("vcpu0"))
        );
    }
}
