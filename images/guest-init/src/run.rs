//! The loop: waits for the process, the agent, the power button and the clock, and does what [`crate::machine`] says.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use guest_api::{FromGuest, ToGuest};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use crate::console::Console;
use crate::control::{Control, News};
use crate::machine::{Action, Event, State};

/// Also without news the loop looks around this often.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);

/// What the kernel sends to PID 1 when the machine's power button is pressed: `CONFIG_ACPI_TINY_POWER_BUTTON_SIGNAL` in
/// `images/guest/kernel.config`.
const POWER_BUTTON: Signal = Signal::SIGPWR;

/// A container that was started.
pub struct Container {
    /// Its process.
    pub process: Pid,
    /// What a press of the power button stands for.
    pub stop: ToGuest,
}

/// Tells of ended children and of the power button. Made before the first child is, so that none is missed.
pub fn signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(POWER_BUTTON);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Sees the container through, from `state` to power-off; without one it says so and powers off.
pub fn run(
    mut state: State,
    container: Option<Container>,
    signals: Option<&SignalFd>,
    console: &mut Console,
) -> ! {
    let child = container.as_ref().map(|container| container.process);
    let mut control = Control::new(Instant::now());
    loop {
        let now = Instant::now();
        let mut events = Vec::new();
        while let Some(Ok(Some(signal))) = signals.map(SignalFd::read_signal) {
            if signal.ssi_signo == POWER_BUTTON as u32
                && let Some(container) = &container
            {
                events.push(Event::PowerButton(container.stop.clone()));
            }
        }
        events.extend(reap(child).map(Event::Ended));
        for news in control.advance(now) {
            match news {
                News::Up => control.tell(&state.word(), matches!(state, State::Over { .. })),
                News::Asked(request) => events.push(Event::Asked(request)),
                News::Heard => events.push(Event::Heard),
                News::Odd(words) => console.say(&words),
            }
        }
        events.push(Event::Tick);
        for event in events {
            let (next, actions) = state.step(event, now);
            state = next;
            for action in actions {
                match action {
                    Action::Tell => {
                        console.say(&words(&state.word()));
                        control.tell(&state.word(), matches!(state, State::Over { .. }));
                    }
                    Action::Signal(number) => signal(child, number, console),
                    Action::PowerOff => power_off(),
                }
            }
        }
        wait(&state, &control, signals, now);
    }
}

fn wait(state: &State, control: &Control, signals: Option<&SignalFd>, now: Instant) {
    let deadline = [state.deadline(), control.deadline()]
        .into_iter()
        .flatten()
        .min();
    let limit = deadline
        .map_or(LOOK_ANYWAY, |at| at.saturating_duration_since(now))
        .min(LOOK_ANYWAY);
    // Rounded up: a millisecond too early would be a turn for nothing.
    let millis = u16::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    let mut fds: Vec<PollFd> = signals
        .iter()
        .map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN))
        .collect();
    if let Some((socket, interest)) = control.interest() {
        fds.push(PollFd::new(socket, interest));
    }
    if let Err(e) = poll(&mut fds, PollTimeout::from(millis))
        && e != Errno::EINTR
    {
        // Cannot happen with these arguments; if it does, the loop must not spin.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Buries all dead children; the exit code of `child` if it is among them.
fn reap(child: Option<Pid>) -> Option<i32> {
    let mut code = None;
    loop {
        let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Err(Errno::EINTR) => continue,
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => continue,
        };
        if Some(pid) == child {
            code = Some(ended);
        }
    }
}

fn signal(child: Option<Pid>, number: i32, console: &mut Console) {
    let Some(child) = child else { return };
    // SAFETY: kill(2) takes two numbers; the process is a child that was not waited for yet, so its number is still its own.
    let result = unsafe { nix::libc::kill(child.as_raw(), number) };
    if result != 0 {
        console.say(&format!(
            "cannot send signal {number} to the container: {}",
            std::io::Error::last_os_error()
        ));
    }
}

/// A message as the console's reader likes it.
fn words(word: &FromGuest) -> String {
    match word {
        FromGuest::Started => "the process runs".to_owned(),
        FromGuest::Exited { code } => format!("the process ended with code {code}"),
        FromGuest::Failed { message } => message.clone(),
    }
}

/// Writes everything out and switches the machine off.
pub fn power_off() -> ! {
    sync();
    // Only fails without the right to, which PID 1 has.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
