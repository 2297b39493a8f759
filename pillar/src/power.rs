//! The power button: whoever stands at the box presses it, and the box goes down in good order, apps first.
//!
//! ```text
//!   looking for buttons --> waiting for a press --> systemctl poweroff (apps get their time to end, disks are synced)
//! ```
//!
//! systemd leaves this to logind, which needs a D-Bus daemon; neither is in the image. The kernel gives the button as an
//! input device (drivers/acpi/button.c); what it can send is told in sysfs, and what it sends is a `struct input_event`
//! (Documentation/input/input.rst in the kernel source).

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::host::program::{Program, ProgramError};
use crate::status::{Status, Subject};

/// Input devices come and go, and the button's driver may come after the agent.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// `EV_KEY` and `KEY_POWER` of linux/input-event-codes.h.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// Size of `struct input_event` on 64 bits: two 8-byte times, type, code, value.
const EVENT: usize = 24;

/// Where the system shows its input devices.
#[derive(Clone, Debug)]
pub struct Sources {
    /// A folder for each device, with what it can send.
    pub classes: PathBuf,
    /// Their device files.
    pub devices: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            classes: "/sys/class/input".into(),
            devices: "/dev/input".into(),
        }
    }
}

/// Waits for the power button, and powers the machine off when it is pressed.
///
/// # Errors
/// When the machine could not be told to power off.
pub async fn run(sources: Sources, status: Status) -> Result<(), ProgramError> {
    pressed(&sources).await;
    status.say(Subject::Power, "the power button was pressed; powering off");
    // The machine's own end, and not a kill: apps are units, and get the time that they were promised.
    Program::new("systemctl")
        .args(["poweroff", "--no-block"])
        .run()
        .await?;
    std::future::pending().await
}

/// Returns when a power button is pressed, on whichever device.
async fn pressed(sources: &Sources) {
    let mut watched = JoinSet::new();
    let mut known = BTreeSet::new();
    loop {
        for name in buttons(&sources.classes) {
            if known.insert(name.clone()) {
                let device = sources.devices.join(&name);
                watched.spawn(async move {
                    let outcome = watch(device).await;
                    (name, outcome)
                });
            }
        }
        tokio::select! {
            Some(ended) = watched.join_next() => match ended {
                Ok((_, Ok(()))) => return,
                Ok((name, Err(error))) => {
                    // It is looked at again next time, if it is still there.
                    tracing::debug!(%name, %error, "input device is gone");
                    tokio::time::sleep(LOOK_AGAIN).await;
                    known.remove(&name);
                }
                Err(error) => tracing::warn!(%error, "watching an input device"),
            },
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Names of the input devices that can send the power key.
fn buttons(classes: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(classes) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("event"))
        .filter(|name| {
            let file = classes.join(name).join("device/capabilities/key");
            std::fs::read_to_string(file).is_ok_and(|bits| has_key(&bits, KEY_POWER))
        })
        .collect()
}

/// Whether a key is in a capability bitmap: 64-bit words in hexadecimal, the highest first.
fn has_key(bitmap: &str, key: u16) -> bool {
    bitmap
        .split_whitespace()
        .rev()
        .nth(usize::from(key / 64))
        .and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word >> (key % 64) & 1 == 1)
}

/// Returns when the device sends a press of the power key.
async fn watch(device: PathBuf) -> std::io::Result<()> {
    let (told, ended) = oneshot::channel();
    // A thread that sleeps in `read`: the runtime's own blocking threads are few, and this one may never end. It holds
    // nothing that the end of the process would not free.
    std::thread::Builder::new()
        .name("power button".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            let _ = told.send(read_press(&device));
        })?;
    ended
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))
}

fn read_press(device: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::open(device)?;
    let mut events = [0; 16 * EVENT];
    loop {
        match file.read(&mut events) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(read) if events[..read].chunks_exact(EVENT).any(is_press) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether an event is the power key going down; its release and its repeats are not.
fn is_press(event: &[u8]) -> bool {
    let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    word(16) == EV_KEY && word(18) == KEY_POWER && word(20) == 1 && word(22) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut event = vec![0; 16];
        event.extend(kind.to_ne_bytes());
        event.extend(code.to_ne_bytes());
        event.extend(value.to_ne_bytes());
        event
    }

    #[test]
    fn the_key_going_down_is_a_press_and_nothing_else_is() {
        for (what, event, press) in [
            ("down", event(1, 116, 1), true),
            ("up", event(1, 116, 0), false),
            ("held", event(1, 116, 2), false),
            ("another key", event(1, 30, 1), false),
            ("end of report", event(0, 0, 0), false),
            ("switch with the same number", event(5, 116, 1), false),
        ] {
            assert_eq!(is_press(&event), press, "{what}");
        }
    }

    #[test]
    fn capabilities_are_read_from_the_highest_word_down() {
        for (bitmap, has) in [
            // An ACPI power button, a keyboard, a lid switch, rubbish.
            ("10000000000000 0\n", true),
            (
                "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe\n",
                true,
            ),
            ("0\n", false),
            ("1 0\n", false),
            ("zz 0\n", false),
            ("", false),
        ] {
            assert_eq!(has_key(bitmap, KEY_POWER), has, "{bitmap:?}");
        }
    }

    #[tokio::test]
    async fn a_device_that_appears_later_is_found_and_its_press_seen() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources {
            classes: dir.path().join("class"),
            devices: dir.path().join("dev"),
        };
        let capabilities = sources.classes.join("event3/device/capabilities");
        std::fs::create_dir_all(&capabilities).unwrap();
        std::fs::create_dir_all(&sources.devices).unwrap();
        std::fs::write(capabilities.join("key"), "10000000000000 0\n").unwrap();
        let fifo = sources.devices.join("event3");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Read and write, so that opening waits for nobody.
        let mut button = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&fifo)
            .unwrap();
        let waiting = tokio::spawn(async move { pressed(&sources).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        std::io::Write::write_all(&mut button, &event(1, 116, 1)).unwrap();
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap()
            .unwrap();
    }
}
