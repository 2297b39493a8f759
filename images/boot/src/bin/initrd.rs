//! PID 1 of the host's initramfs: from the kernel to systemd on a verified root file system.
//!
//! ```text
//! prepare -> read command line -> load modules until the partition is there -> dm-verity -> mount -> switch -> systemd
//!    |              |                     | (30 s; a module that fails             |          |         |
//!    |              |                     |  is told, and the next one tried)      |          |         |
//!    +--------------+------- failure -----+----------------------------------------+----------+---------+
//!                               |
//!             words on all consoles -> 30 s -> restart (the boot loader counts)
//! ```

use std::convert::Infallible;
use std::time::Instant;

use boot::console::Consoles;
use boot::modules::Modules;
use boot::{Error, cmdline, early, root, switch};

const PROGRAM: &str = "skerry-initrd";
const TARGET: &str = "/sysroot";

fn main() {
    early::guard_against_panic(PROGRAM, early::restart);
    let prepared = early::prepare();
    let mut consoles = Consoles::open();
    let Err(error) = prepared.and_then(|()| run(&mut consoles));
    early::give_up(PROGRAM, &mut consoles, &error)
}

fn run(consoles: &mut Consoles) -> Result<Infallible, Error> {
    let mut stages = Stages::begin();
    let mut modules = Modules::read();
    let text =
        std::fs::read_to_string("/proc/cmdline").map_err(Error::system("read", "/proc/cmdline"))?;
    let mounted = cmdline::parse(&text)
        .and_then(|arguments| root::mount(&arguments, TARGET, &mut modules, consoles));
    for complaint in modules.complaints() {
        consoles.say(&format!("{PROGRAM}: {complaint}"));
    }
    mounted?;
    stages.reached("root");
    let init = switch::switch(TARGET)?;
    stages.reached("switch");
    stages.tell();
    switch::become_init(init)
}

/// Where the time went: a line in the kernel's log, for whoever measures a boot.
struct Stages {
    text: String,
    last: Instant,
}

impl Stages {
    fn begin() -> Self {
        Self {
            text: format!("<6>{PROGRAM}:"),
            last: Instant::now(),
        }
    }

    fn reached(&mut self, stage: &str) {
        let now = Instant::now();
        let millis = now.duration_since(self.last).as_millis();
        self.text.push_str(&format!(" {stage} {millis} ms"));
        self.last = now;
    }

    fn tell(&self) {
        // Nothing hangs on it.
        let _ = std::fs::write("/dev/kmsg", &self.text);
    }
}
