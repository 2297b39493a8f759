//! One virtual machine, one process, on KVM.
//!
//! Where to begin reading: [`machine`] builds a machine from its description and runs it to its end; [`lifecycle`] is
//! the state diagram that everything else moves along. Below them:
//!
//! | module | answers |
//! |---|---|
//! | [`config`] | Is this description sound? |
//! | [`arch`] | What does the processor's architecture want: memory map, boot protocol, CPUID, ACPI, ports? |
//! | [`memory`] | Where does the guest's memory come from? |
//! | [`pci`] | Which device does an access reach? |
//! | [`virtio`] | How do devices talk to drivers? One folder a device. |
//! | [`serial`], [`console`] | What does the guest print, who types? |
//! | [`event_loop`] | Who waits for what? |
//! | [`control`] | What may be asked from outside while it runs? |
//! | [`jail`] | What may this process do at all? |
//! | [`last_words`] | Why did it end? |
//!
//! Threads: the main thread runs the event loop of all devices but disks, and of the control socket; one thread runs
//! the event loop of the disks, if there are any; one thread runs each vCPU. Everything that comes from the guest is
//! hostile: it may be refused or make its device unusable, and must not cause a panic, an unbounded loop or an
//! unbounded allocation.

#[cfg(not(target_os = "linux"))]
compile_error!("KVM is a part of Linux");

pub mod arch;
pub mod config;
pub mod console;
pub mod control;
pub mod event_loop;
pub mod jail;
pub mod last_words;
pub mod lifecycle;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod serial;
pub mod socket;
pub mod sync;
pub mod virtio;
