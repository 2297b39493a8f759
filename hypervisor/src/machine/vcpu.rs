//! A vCPU: runs the guest, carries what it asks for to ports and bus, and ends the machine when it must.

use std::sync::Arc;

use hypervisor_api::report::LastWords;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch::ports::Ports;
use crate::lifecycle::Lifecycle;
use crate::pci::PciBus;

/// A vCPU that is ready to run.
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    ports: Arc<Ports>,
    pci: Arc<PciBus>,
}

impl Vcpu {
    /// Puts a vCPU together.
    pub fn new(index: u8, fd: VcpuFd, ports: Arc<Ports>, pci: Arc<PciBus>) -> Self {
        Vcpu {
            index,
            fd,
            ports,
            pci,
        }
    }

    /// Its number, from 0.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Runs until the machine ends.
    pub fn run(mut self, lifecycle: &Lifecycle) {
        let mut first = self.index == 0;
        while lifecycle.checkpoint() {
            if std::mem::take(&mut first) {
                lifecycle.note_first_instruction();
            }
            if let Some(words) = self.enter() {
                lifecycle.end(words);
            }
        }
    }

    /// Enters the guest once. An answer means that this ends the machine.
    fn enter(&mut self) -> Option<LastWords> {
        let index = self.index;
        let failed = |what: String| {
            Some(LastWords::Failed {
                message: format!("vCPU {index}: {what}"),
            })
        };
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => self.ports.write(port, data),
            Ok(VcpuExit::IoIn(port, data)) => {
                self.ports.read(port, data);
                None
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.pci.memory_read(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.pci.memory_write(address, data);
                None
            }
            Ok(VcpuExit::Shutdown) => Some(LastWords::TripleFault),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => None,
            Ok(VcpuExit::FailEntry(reason, cpu)) => failed(format!(
                "the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
            )),
            Ok(VcpuExit::InternalError) => {
                let at = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
                failed(format!("KVM could not emulate the instruction at {at:#x}"))
            }
            Ok(other) => {
                let what =
                    format!("KVM left the guest for a reason that is not handled: {other:?}");
                failed(what)
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
            Err(error) => failed(format!("running the guest: {error}")),
        }
    }
}
