//! What devices may ask of the hypervisor: interrupts and doorbells. Nothing else of KVM reaches them.

use vmm_sys_util::eventfd::EventFd;

/// Interrupts towards the guest, doorbells from it.
pub trait Platform: Send + Sync {
    /// Sends a message-signalled interrupt: the guest put `address` and `data` into an MSI-X table.
    fn send_msi(&self, address: u64, data: u32);

    /// Sets the level of an interrupt controller's input.
    fn set_line(&self, line: u32, high: bool);

    /// From now on a guest's write to `address` signals `event` without leaving the kernel.
    fn add_doorbell(&self, address: u64, event: &EventFd) -> std::io::Result<()>;

    /// Ends what [`Platform::add_doorbell`] began.
    fn remove_doorbell(&self, address: u64, event: &EventFd);
}

/// KVM as a platform.
///
/// Message-signalled interrupts go by KVM_SIGNAL_MSI and not by irqfd: one system call as well, but without an event
/// descriptor and a routing table entry a vector. Each change of that table waits for an RCU grace period, which a
/// booting guest would pay for on each vector of each queue.
pub struct KvmPlatform(std::sync::Arc<kvm_ioctls::VmFd>);

impl KvmPlatform {
    /// Wraps a machine.
    pub fn new(vm: std::sync::Arc<kvm_ioctls::VmFd>) -> Self {
        KvmPlatform(vm)
    }
}

impl Platform for KvmPlatform {
    fn send_msi(&self, address: u64, data: u32) {
        let msi = kvm_bindings::kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // An address that names no vCPU is the guest's mistake; it gets no interrupt.
        let _ = self.0.signal_msi(msi);
    }

    fn set_line(&self, line: u32, high: bool) {
        // Fails only for lines that do not exist; ours are constants.
        let _ = self.0.set_irq_line(line, high);
    }

    fn add_doorbell(&self, address: u64, event: &EventFd) -> std::io::Result<()> {
        // No data match: each queue has an address of its own, and KVM can then skip decoding the instruction.
        self.0
            .register_ioevent(
                event,
                &kvm_ioctls::IoEventAddress::Mmio(address),
                kvm_ioctls::NoDatamatch,
            )
            .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
    }

    fn remove_doorbell(&self, address: u64, event: &EventFd) {
        let _ = self.0.unregister_ioevent(
            event,
            &kvm_ioctls::IoEventAddress::Mmio(address),
            kvm_ioctls::NoDatamatch,
        );
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A platform that writes down what is asked of it.

    use super::*;
    use crate::sync::lock;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    #[derive(Default)]
    pub struct FakePlatform {
        pub messages: Mutex<Vec<(u64, u32)>>,
        pub lines: Mutex<BTreeMap<u32, bool>>,
        pub doorbells: Mutex<Vec<u64>>,
    }

    impl FakePlatform {
        pub fn line(&self, line: u32) -> bool {
            lock(&self.lines).get(&line).copied().unwrap_or(false)
        }

        pub fn take_messages(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut lock(&self.messages))
        }
    }

    impl Platform for FakePlatform {
        fn send_msi(&self, address: u64, data: u32) {
            lock(&self.messages).push((address, data));
        }

        fn set_line(&self, line: u32, high: bool) {
            lock(&self.lines).insert(line, high);
        }

        fn add_doorbell(&self, address: u64, _event: &EventFd) -> std::io::Result<()> {
            lock(&self.doorbells).push(address);
            Ok(())
        }

        fn remove_doorbell(&self, address: u64, _event: &EventFd) {
            lock(&self.doorbells).retain(|known| *known != address);
        }
    }
}
