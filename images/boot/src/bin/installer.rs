//! PID 1 of the installer stick's initramfs: installs the image that lies on the stick, then switches the machine off.
//!
//! ```text
//! prepare -> load modules -> install (see boot::install) -> "done, remove the stick" -> power off
//!    |                          |
//!    +--------- failure --------+--> words on all consoles -> wait for somebody to switch it off
//! ```

use std::time::Duration;

use boot::console::Consoles;
use boot::install::{self, PROGRAM};
use boot::modules::Modules;
use boot::{Error, early};

/// A serial line needs this long to send its last words.
const DRAIN: Duration = Duration::from_secs(1);

fn main() {
    early::guard_against_panic(PROGRAM, early::wait_for_power_off);
    let prepared = early::prepare();
    let mut consoles = Consoles::open();
    if let Err(error) = &prepared {
        consoles.say(&format!("{PROGRAM}: {error}"));
    }
    // What fails in there is told in there.
    if prepared.and_then(|()| run(&mut consoles)).is_ok() {
        std::thread::sleep(DRAIN);
        early::power_off()
    }
    consoles.say(&format!(
        "{PROGRAM}: hold the power button for five seconds to switch the machine off"
    ));
    early::wait_for_power_off()
}

fn run(consoles: &mut Consoles) -> Result<(), Error> {
    // The screen is for people: of the kernel's messages only emergencies.
    let _ = std::fs::write("/proc/sys/kernel/printk", "1");
    consoles.say(&format!("{PROGRAM}: starting"));
    let mut modules = Modules::read();
    modules.load_all();
    for complaint in modules.complaints() {
        consoles.say(&format!("{PROGRAM}: {complaint}"));
    }
    install::run(consoles)
}
