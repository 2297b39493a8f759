//! The PC: a fixed-hardware ACPI machine with an in-kernel interrupt controller and timer.
//!
//! [`layout`] says where everything lies, [`boot`] puts a kernel and its papers into memory, [`acpi`] describes the
//! machine to it, [`cpu`] gives each vCPU its identity and first state, [`ports`] answers port I/O.

pub mod acpi;
pub mod boot;
pub mod cpu;
pub mod layout;
mod pci_ports;
pub mod ports;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;

/// Puts the in-kernel PIC, IOAPIC, local APICs and PIT into a new machine. Must come before its vCPUs.
pub fn create_interrupt_controller(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    vm.set_tss_address(layout::KVM_TSS as usize)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config {
        // Port 0x61 too, which Linux reads when it calibrates against the PIT.
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })
}
