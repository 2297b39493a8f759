//! A function's MSI-X table and pending bits (PCI Local Bus 3.0, 6.8.2).
//!
//! ```text
//!            trigger, not masked: message sent
//!   idle ------------------------------------> idle
//!     |  trigger, vector or function masked                 unmask
//!     +--------------------------------------> pending ---------------> idle, message sent
//! ```

use std::sync::Arc;

use crate::platform::Platform;

/// Size of a table entry in bytes.
pub const ENTRY_SIZE: usize = 16;
/// What a driver writes where it wants no interrupt.
pub const NO_VECTOR: u16 = 0xffff;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASKED: u8 = 1;

#[derive(Clone, Copy)]
struct Entry {
    /// Address (8 bytes), data (4), control (4; bit 0 masks).
    bytes: [u8; ENTRY_SIZE],
    pending: bool,
}

/// Table, pending bits, and the way to the guest.
pub struct Msix {
    entries: Vec<Entry>,
    control: u16,
    platform: Arc<dyn Platform>,
}

impl Msix {
    /// A table of `vectors` entries (1 to 2,048), all masked, as after reset.
    pub fn new(vectors: u16, platform: Arc<dyn Platform>) -> Self {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[12] = VECTOR_MASKED;
        Msix {
            entries: vec![
                Entry {
                    bytes,
                    pending: false
                };
                usize::from(vectors)
            ],
            control: 0,
            platform,
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// The guest wrote the capability's message control word.
    pub fn set_control(&mut self, control: u16) {
        self.control = control;
        for index in 0..self.entries.len() {
            self.deliver_pending(index);
        }
    }

    /// Sends the interrupt of `vector`, now or when it is unmasked. Vectors that do not exist send nothing.
    pub fn trigger(&mut self, vector: u16) {
        let index = usize::from(vector);
        if self.control & ENABLE == 0 {
            return;
        }
        if let Some(entry) = self.entries.get_mut(index) {
            entry.pending = true;
            self.deliver_pending(index);
        }
    }

    fn deliver_pending(&mut self, index: usize) {
        let open = self.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        if let Some(entry) = self.entries.get_mut(index)
            && open
            && entry.pending
            && entry.bytes[12] & VECTOR_MASKED == 0
        {
            entry.pending = false;
            let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, ..] = entry.bytes;
            self.platform.send_msi(
                u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
                u32::from_le_bytes([d0, d1, d2, d3]),
            );
        }
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let entry = self.entries.get(at / ENTRY_SIZE);
            *byte = entry.map_or(0, |entry| entry.bytes[at % ENTRY_SIZE]);
        }
    }

    /// The guest writes the table.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(entry) = self.entries.get_mut(at / ENTRY_SIZE) {
                entry.bytes[at % ENTRY_SIZE] = *byte;
            }
        }
        self.deliver_pending(offset / ENTRY_SIZE);
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = (0..8)
                .filter(|bit| self.entries.get(at * 8 + bit).is_some_and(|e| e.pending))
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fake::FakePlatform;

    fn msix() -> (Arc<FakePlatform>, Msix) {
        let platform = Arc::new(FakePlatform::default());
        let mut msix = Msix::new(2, platform.clone());
        msix.write_table(16, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(24, &0x41_u32.to_le_bytes());
        (platform, msix)
    }

    #[test]
    fn an_open_vector_sends_at_once() {
        let (platform, mut msix) = msix();
        msix.set_control(ENABLE);
        msix.write_table(28, &0_u32.to_le_bytes());
        msix.trigger(1);
        assert_eq!(platform.take_messages(), [(0xfee0_0000, 0x41)]);
    }

    #[test]
    fn a_masked_vector_sends_once_when_opened() {
        let (platform, mut msix) = msix();
        msix.set_control(ENABLE);
        msix.trigger(1);
        msix.trigger(1);
        let mut pending = [0];
        msix.read_pending(0, &mut pending);
        assert_eq!((platform.take_messages().len(), pending), (0, [2]));
        msix.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(platform.take_messages().len(), 1);
        msix.set_control(ENABLE | FUNCTION_MASK);
        msix.trigger(1);
        assert_eq!(platform.take_messages().len(), 0);
        msix.set_control(ENABLE);
        assert_eq!(platform.take_messages().len(), 1);
    }

    #[test]
    fn what_does_not_exist_is_harmless() {
        let (platform, mut msix) = msix();
        msix.set_control(ENABLE);
        msix.trigger(2);
        msix.trigger(NO_VECTOR);
        msix.write_table(1 << 20, &[0xff; 8]);
        msix.read_table(1 << 20, &mut [0; 8]);
        msix.read_pending(1 << 20, &mut [0; 8]);
        assert_eq!(platform.take_messages().len(), 0);
    }
}
