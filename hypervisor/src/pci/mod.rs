//! The PCI bus: one bus, functions with one memory BAR each.
//!
//! How a guest reaches configuration space is the architecture's affair; here it is a slot and an offset. Memory accesses
//! are routed by the BARs' present addresses, which the guest may move. BARs have addresses from the start, as if firmware
//! had given them.

mod config;
mod host_bridge;
mod msix;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use config::{ConfigSpace, Identity};
pub use host_bridge::HostBridge;
pub use msix::{ENTRY_SIZE as MSIX_ENTRY_SIZE, Msix, NO_VECTOR};

use crate::sync::lock;

/// Functions that fit on the bus beside the host bridge.
pub const MAX_FUNCTIONS: usize = 31;

const NOWHERE: u64 = u64::MAX;

/// One PCI function (device.function, function always 0). Offsets and widths come from the guest: any are possible.
pub trait PciFunction: Send {
    /// Reads configuration space.
    fn config_read(&mut self, offset: usize, data: &mut [u8]);

    /// Writes configuration space.
    fn config_write(&mut self, offset: usize, data: &[u8]);

    /// Where its memory BAR is now; `None` while it has none or decoding is off.
    fn window(&self) -> Option<Window>;

    /// Reads its BAR.
    fn memory_read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes its BAR.
    fn memory_write(&mut self, offset: u64, data: &[u8]);
}

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

struct Slot {
    function: Arc<Mutex<dyn PciFunction>>,
    /// Copy of the function's window, so that routing an access takes no lock of a function that it does not concern.
    base: AtomicU64,
    size: AtomicU64,
}

/// The bus with its functions, shared by all vCPUs.
pub struct PciBus {
    slots: Vec<Slot>,
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PciBus {
    /// A bus with the host bridge in slot 0.
    pub fn new() -> Self {
        let mut bus = PciBus { slots: Vec::new() };
        bus.add(Arc::new(Mutex::new(HostBridge::new())));
        bus
    }

    /// Puts a function into the next slot. The caller keeps to [`MAX_FUNCTIONS`].
    pub fn add(&mut self, function: Arc<Mutex<dyn PciFunction>>) {
        let slot = Slot {
            function,
            base: AtomicU64::new(NOWHERE),
            size: AtomicU64::new(0),
        };
        slot.refresh();
        self.slots.push(slot);
    }

    /// A guest reads configuration space; slots without a function read as ones.
    pub fn config_read(&self, slot: usize, offset: usize, data: &mut [u8]) {
        match self.slots.get(slot) {
            Some(slot) => lock(&slot.function).config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A guest writes configuration space.
    pub fn config_write(&self, slot: usize, offset: usize, data: &[u8]) {
        if let Some(slot) = self.slots.get(slot) {
            lock(&slot.function).config_write(offset, data);
            slot.refresh();
        }
    }

    /// A guest reads memory that is not RAM.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.route(address, data.len()) {
            Some((slot, offset)) => lock(&slot.function).memory_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A guest writes memory that is not RAM.
    pub fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.route(address, data.len()) {
            lock(&slot.function).memory_write(offset, data);
        }
    }

    fn route(&self, address: u64, width: usize) -> Option<(&Slot, u64)> {
        self.slots.iter().find_map(|slot| {
            let offset = address.checked_sub(slot.base.load(Ordering::Acquire))?;
            let end = offset.checked_add(width as u64)?;
            (end <= slot.size.load(Ordering::Acquire)).then_some((slot, offset))
        })
    }
}

impl Slot {
    fn refresh(&self) {
        match lock(&self.function).window() {
            Some(window) => {
                self.size.store(window.size, Ordering::Release);
                self.base.store(window.base, Ordering::Release);
            }
            None => self.base.store(NOWHERE, Ordering::Release),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function that remembers what was written into its BAR.
    struct Scratch {
        config: ConfigSpace,
        memory: Vec<u8>,
    }

    impl PciFunction for Scratch {
        fn config_read(&mut self, offset: usize, data: &mut [u8]) {
            self.config.read(offset, data);
        }
        fn config_write(&mut self, offset: usize, data: &[u8]) {
            self.config.write(offset, data);
        }
        fn window(&self) -> Option<Window> {
            self.config.window()
        }
        fn memory_read(&mut self, offset: u64, data: &mut [u8]) {
            data.copy_from_slice(&self.memory[offset as usize..][..data.len()]);
        }
        fn memory_write(&mut self, offset: u64, data: &[u8]) {
            self.memory[offset as usize..][..data.len()].copy_from_slice(data);
        }
    }

    fn bus() -> PciBus {
        let mut bus = PciBus::new();
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
            subsystem: 2,
        });
        config.add_memory_bar(0xc000_0000, 0x1000);
        bus.add(Arc::new(Mutex::new(Scratch {
            config,
            memory: vec![0; 0x1000],
        })));
        bus
    }

    fn read(bus: &PciBus, slot: usize, register: usize) -> u32 {
        let mut data = [0; 4];
        bus.config_read(slot, register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(bus: &PciBus, slot: usize, register: usize, value: u32) {
        bus.config_write(slot, register, &value.to_le_bytes());
    }

    #[test]
    fn functions_are_found_and_empty_slots_read_as_ones() {
        let bus = bus();
        assert_eq!(read(&bus, 0, 8) >> 16, 0x0600, "host bridge");
        assert_eq!(read(&bus, 1, 0), 0x1042_1af4);
        assert_eq!(read(&bus, 2, 0), u32::MAX);
    }

    #[test]
    fn a_guest_sizes_moves_and_disables_a_bar() {
        let bus = bus();
        write(&bus, 1, 4, 2);
        bus.memory_write(0xc000_0010, &[1, 2, 3, 4]);
        write(&bus, 1, 0x10, u32::MAX);
        assert_eq!(read(&bus, 1, 0x10), 0xffff_f000, "4 KiB, 32-bit memory");
        write(&bus, 1, 0x10, 0xd000_0000);
        let mut data = [0; 4];
        bus.memory_read(0xd000_0010, &mut data);
        assert_eq!(data, [1, 2, 3, 4]);
        bus.memory_read(0xc000_0010, &mut data);
        assert_eq!(data, [0xff; 4], "nobody lives at the old address");
        write(&bus, 1, 4, 0);
        bus.memory_read(0xd000_0010, &mut data);
        assert_eq!(data, [0xff; 4], "decoding is off");
    }

    #[test]
    fn accesses_across_a_window_s_end_reach_nobody() {
        let bus = bus();
        write(&bus, 1, 4, 2);
        let mut data = [0; 8];
        bus.memory_read(0xc000_0ffc, &mut data);
        assert_eq!(data, [0xff; 8]);
        data.fill(0);
        bus.memory_read(u64::MAX - 2, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}
