//! The program of the end-to-end test `hypervisor`: it is the init of an outer machine that has KVM and nothing else, the
//! init of the guests that run in there, and a container's process in one of them. It is not shipped.
//!
//! ```text
//! outer machine (emulated PC, the host image's kernel)      guests (the microVMs' kernel)
//!   /init = this, role=outer        --- skerry-vmm -->        /init = this, role=guest scene=devices, ticks, ...
//!   says `probe: ...` on its serial line                      says on its consoles what it found
//! ```
//!
//! With role=check it runs a guest of nine bytes on bare KVM and says whether that worked ([`check`]).
//!
//! The kernel's command line says which role it has. A scene is played by both sides: [`outer`] starts the monitor and says
//! what must be seen, [`guest`] does it.

mod check;
mod guest;
mod monitor;
mod outer;
mod system;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("container") {
        return guest::container();
    }
    if let Err(error) = system::begin() {
        println!("probe: FAILED beginning: {error}");
        system::power_off();
    }
    match system::from_command_line("role").as_deref() {
        Some("guest") => guest::run(),
        Some("check") => check::run(),
        _ => outer::run(),
    }
}
