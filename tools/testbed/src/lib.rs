//! A rugged PC as a Rust value.
//!
//! Tests and the demo read like what a person in the field does:
//!
//! ```no_run
//! # fn main() -> Result<(), testbed::Error> {
//! # use std::{path::Path, time::Duration};
//! use testbed::{Pc, Spec};
//!
//! let mut pc = Pc::build(Spec::new("SK-0001"), Path::new("/tmp/box-1"))?;
//! pc.plug_stick(Path::new("stick.img"));
//! pc.power_on()?;
//! pc.serial().expect("skerry-installer: done", Duration::from_secs(300))?;
//! pc.wait_off(Duration::from_secs(60))?;
//! pc.unplug_stick();
//! pc.power_on()?;
//! # Ok(()) }
//! ```
//!
//! The machine is QEMU's q35 with UEFI firmware (OVMF), a TPM (swtpm), a disk and a network card on QEMU's user network,
//! where the host is 10.0.2.2. The processor is emulated with AMD's virtualisation, so that KVM works inside ([`accel`]).
//! A [`Pc`] may be powered on and off many times; its disk, firmware variables and TPM stay in its directory. Dropping it
//! pulls the plug.

pub mod accel;
mod command;
mod emulator;
mod error;
pub mod nested;
mod pc;
mod qmp;
mod screen;
mod serial;
mod spec;
mod tpm;

pub use accel::Accelerator;
pub use emulator::Emulator;
pub use error::Error;
pub use pc::Pc;
pub use screen::Screen;
pub use serial::Serial;
pub use spec::{Bus, Clock, DirectBoot, Drive, Forward, MANUFACTURER, Nic, Spec};
pub use tpm::maker_certificates;
