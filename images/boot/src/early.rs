//! The first steps of PID 1, and its last ones when it fails.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::Error;
use crate::console::Consoles;

/// How long last words stand on the screen before the machine starts again.
pub const LAST_WORDS: Duration = Duration::from_secs(30);

/// Mounts the kernel's file systems and makes the console standard input and output. What is mounted already stays.
pub fn prepare() -> Result<(), Error> {
    let common = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (kind, target, flags, options) in [
        ("proc", "/proc", common | MsFlags::MS_NODEV, ""),
        ("sysfs", "/sys", common | MsFlags::MS_NODEV, ""),
        ("devtmpfs", "/dev", common, "mode=0755"),
        ("tmpfs", "/run", common | MsFlags::MS_NODEV, "mode=0755"),
    ] {
        mount_at(kind, kind, target, flags, options)?;
    }
    // The kernel had no /dev/console to give to its init; without one, a write to standard error would be an error.
    if let Ok(console) = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")
    {
        let _ = dup2_stdin(&console)
            .and_then(|()| dup2_stdout(&console))
            .and_then(|()| dup2_stderr(&console));
    }
    Ok(())
}

/// Mounts and makes the directory for it.
pub fn mount_at(
    source: &str,
    kind: &str,
    target: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), Error> {
    if !Path::new(target).is_dir() {
        std::fs::create_dir_all(target).map_err(Error::system("make directory", target))?;
    }
    match mount(Some(source), target, Some(kind), flags, Some(options)) {
        // EBUSY: the same file system is there already.
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(e) => Err(Error::system(
            "mount",
            format!("{source} ({kind}) at {target}"),
        )(io::Error::from(e))),
    }
}

/// Lets a panic, which would be a mistake in this program, end in words too and not in the kernel's.
pub fn guard_against_panic(program: &'static str, end: fn() -> !) {
    std::panic::set_hook(Box::new(move |info| {
        let mut consoles = Consoles::open();
        consoles.say(&format!(
            "{program}: stopped by a mistake in the program itself: {info}"
        ));
        consoles.say(&format!("{program}: please report this line."));
        end()
    }));
}

/// Says why, waits so that it can be read, starts the machine again: the boot loader counts the try and takes the other
/// image when this one has none left.
pub fn give_up(program: &str, consoles: &mut Consoles, error: &Error) -> ! {
    consoles.say(&format!("{program}: {error}"));
    consoles.say(&format!("{program}: {}", error.advice()));
    consoles.say(&format!(
        "{program}: starting again in {} s",
        LAST_WORDS.as_secs()
    ));
    restart()
}

/// Waits, then restarts the machine.
pub fn restart() -> ! {
    std::thread::sleep(LAST_WORDS);
    nix::unistd::sync();
    // Only fails without the right to, which PID 1 has.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    wait_for_power_off()
}

/// Switches the machine off.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    wait_for_power_off()
}

/// Does nothing more: PID 1 must not end.
pub fn wait_for_power_off() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
