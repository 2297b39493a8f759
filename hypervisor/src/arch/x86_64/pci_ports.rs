//! PCI configuration mechanism 1: the guest writes where to into one port, and reads or writes there through four others
//! (PCI Local Bus 3.0, 3.2.2.3.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::layout::{PCI_ADDRESS_PORT, PCI_DATA_PORT};
use crate::pci::PciBus;

/// Last of the data ports.
const DATA_END: u16 = PCI_DATA_PORT + 3;

/// The ports, and the bus behind them.
pub struct PciPorts {
    bus: Arc<PciBus>,
    /// What was last written to the address port.
    address: AtomicU32,
}

impl PciPorts {
    /// The ports of one bus, bus 0.
    pub fn new(bus: Arc<PciBus>) -> Self {
        PciPorts {
            bus,
            address: AtomicU32::new(0),
        }
    }

    /// A guest reads.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match port {
            PCI_ADDRESS_PORT if data.len() == 4 => {
                data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            }
            PCI_DATA_PORT..=DATA_END => {
                if let Some((slot, offset)) = self.target(port, data.len()) {
                    self.bus.config_read(slot, offset, data);
                }
            }
            _ => {}
        }
    }

    /// A guest writes.
    pub fn write(&self, port: u16, data: &[u8]) {
        match (port, data) {
            (PCI_ADDRESS_PORT, &[a, b, c, d]) => self
                .address
                .store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed),
            (PCI_DATA_PORT..=DATA_END, _) => {
                if let Some((slot, offset)) = self.target(port, data.len()) {
                    self.bus.config_write(slot, offset, data);
                }
            }
            _ => {}
        }
    }

    /// The slot and offset that the data ports lead to at the moment, for an access that stays within one register.
    fn target(&self, port: u16, width: usize) -> Option<(usize, usize)> {
        let address = self.address.load(Ordering::Relaxed);
        let within = usize::from(port - PCI_DATA_PORT);
        let enabled = address >> 31 == 1;
        let bus = address >> 16 & 0xff;
        let function = address >> 8 & 0b111;
        if !enabled || bus != 0 || function != 0 || within + width > 4 {
            return None;
        }
        let slot = (address >> 11 & 0b1_1111) as usize;
        Some((slot, (address & 0xfc) as usize + within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST_BRIDGE: u32 = 0x1237_8086;

    fn ports() -> PciPorts {
        PciPorts::new(Arc::new(PciBus::new()))
    }

    fn read<const N: usize>(ports: &PciPorts, address: u32, port: u16) -> [u8; N] {
        ports.write(PCI_ADDRESS_PORT, &address.to_le_bytes());
        let mut data = [0; N];
        ports.read(port, &mut data);
        data
    }

    #[test]
    fn the_address_leads_to_slot_and_register() {
        let ports = ports();
        for (address, port, expected) in [
            (1 << 31, PCI_DATA_PORT, HOST_BRIDGE),
            (1 << 31 | 3, PCI_DATA_PORT, HOST_BRIDGE),
            (0, PCI_DATA_PORT, u32::MAX),
            (1 << 31 | 1 << 16, PCI_DATA_PORT, u32::MAX),
            (1 << 31 | 1 << 8, PCI_DATA_PORT, u32::MAX),
            (1 << 31 | 1 << 11, PCI_DATA_PORT, u32::MAX),
            (1 << 31, PCI_DATA_PORT + 1, u32::MAX),
            (1 << 31, PCI_ADDRESS_PORT, 1 << 31),
        ] {
            let found = u32::from_le_bytes(read(&ports, address, port));
            assert_eq!(found, expected, "{address:#x} {port:#x}");
        }
        assert_eq!(read(&ports, 1 << 31, PCI_DATA_PORT + 2), [0x37, 0x12]);
        assert_eq!(read(&ports, 1 << 31 | 8, PCI_DATA_PORT + 3), [6]);
    }

    #[test]
    fn writes_reach_the_register_too() {
        let ports = ports();
        let line = 1 << 31 | 0x3c;
        ports.write(PCI_ADDRESS_PORT, &u32::to_le_bytes(line));
        ports.write(PCI_DATA_PORT, &[7]);
        assert_eq!(read(&ports, line, PCI_DATA_PORT), [7]);
    }
}
