//! PID 1 of the host's initramfs: from the kernel to systemd on a verified root file system.
//!
//! ```text
//! prepare -> load modules -> read command line -> find partition -> dm-verity -> mount -> switch root -> systemd
//!    |             |                 |                 | (30 s)          |          |          |
//!    |             | (told, goes on) |                 |                 |          |          |
//!    +-------------------------------+--- failure -----+-----------------+----------+----------+
//!                                            |
//!                                   words on all consoles -> 30 s -> restart (the boot loader counts)
//! ```

use std::convert::Infallible;

use boot::console::Consoles;
use boot::{Error, cmdline, early, modules, root, switch};

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
    for complaint in modules::load_all() {
        consoles.say(&format!("{PROGRAM}: {complaint}"));
    }
    let text =
        std::fs::read_to_string("/proc/cmdline").map_err(Error::system("read", "/proc/cmdline"))?;
    root::mount(&cmdline::parse(&text)?, TARGET, consoles)?;
    switch::switch(TARGET)
}
