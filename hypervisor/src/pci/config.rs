//! The 256 bytes of a function's configuration space (PCI Local Bus 3.0, chapter 6).
//!
//! Two arrays: the bytes, and which of their bits the guest may change. Everything that a guest does is then one masked
//! store; a BAR answers its sizing with the mask itself.

use super::Window;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// First byte after the standard header.
const HEADER_END: usize = 0x40;

/// Command bits that a guest may set: memory decoding, bus mastering, INTx off.
const COMMAND_MASK: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const MEMORY_ENABLED: u8 = 1 << 1;
const HAS_CAPABILITIES: u8 = 1 << 4;

/// Who a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id, also used as the subsystem's vendor.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem id.
    pub subsystem: u16,
}

/// Configuration space of one function.
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// Where the next capability goes, and the byte that will point to it.
    next: usize,
    link: usize,
    bar_size: u32,
}

impl ConfigSpace {
    /// A type 0 header without BARs and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut config = ConfigSpace {
            bytes: [0; 256],
            writable: [0; 256],
            next: HEADER_END,
            link: CAPABILITIES,
            bar_size: 0,
        };
        config.put(0x00, &identity.vendor.to_le_bytes());
        config.put(0x02, &identity.device.to_le_bytes());
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        config.put(0x08, &[identity.revision, interface, subclass, class]);
        config.put(0x2c, &identity.vendor.to_le_bytes());
        config.put(0x2e, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &COMMAND_MASK.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Makes BAR 0 a 32-bit memory BAR of `size` bytes (a power of two, at least 16) at `base`.
    pub fn add_memory_bar(&mut self, base: u32, size: u32) {
        self.bar_size = size;
        self.put(BAR0, &base.to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability: `body` follows id and link; `writable` says which of the body's bits the guest may change.
    /// Returns the capability's offset, or `None` if it does not fit any more.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<usize> {
        let at = self.next;
        let end = at + 2 + body.len();
        if end > self.bytes.len() {
            return None;
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.link, &[at as u8]);
        self.put(STATUS, &[HAS_CAPABILITIES]);
        self.link = at + 1;
        self.next = end.next_multiple_of(4);
        Some(at)
    }

    /// A guest reads; what lies outside reads as ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(0xff);
        }
    }

    /// A guest writes; only writable bits change.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = offset + index;
            if let (Some(stored), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *stored = *stored & !mask | byte & mask;
            }
        }
    }

    /// The memory BAR's window, if the guest has switched decoding on.
    pub fn window(&self) -> Option<Window> {
        let mut command = [0];
        self.read(COMMAND, &mut command);
        if self.bar_size == 0 || command[0] & MEMORY_ENABLED == 0 {
            return None;
        }
        Some(Window {
            base: u64::from(self.u32_at(BAR0) & !0xf),
            size: u64::from(self.bar_size),
        })
    }

    /// Four bytes at `offset`, as a little-endian number.
    pub fn u32_at(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        if let Some(bytes) = self.bytes.get_mut(at..at + data.len()) {
            bytes.copy_from_slice(data);
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        if let Some(bytes) = self.writable.get_mut(at..at + mask.len()) {
            bytes.copy_from_slice(mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 1,
            device: 2,
            class: 0x02_0000,
            revision: 3,
            subsystem: 4,
        })
    }

    #[test]
    fn identity_cannot_be_written_over() {
        let mut config = config();
        config.write(0, &[0xff; 4]);
        config.write(8, &[0xff; 4]);
        assert_eq!(config.u32_at(0), 0x0002_0001);
        assert_eq!(config.u32_at(8), 0x0200_0003);
    }

    #[test]
    fn capabilities_form_a_chain() {
        let mut config = config();
        assert_eq!(config.add_capability(9, &[5, 6, 7], &[]), Some(0x40));
        assert_eq!(
            config.add_capability(0x11, &[1; 10], &[0, 0xc0]),
            Some(0x48)
        );
        assert_eq!(config.bytes[0x34], 0x40);
        assert_eq!(config.bytes[0x41], 0x48);
        assert_eq!(config.bytes[0x49], 0);
        config.write(0x48, &[0xff; 12]);
        assert_eq!(
            config.bytes[0x4b], 0xc1,
            "only enable and mask bits of MSI-X change"
        );
        assert_eq!(config.add_capability(9, &[0; 250], &[]), None);
    }

    #[test]
    fn any_offset_and_width_changes_only_what_may_change() {
        let mut config = config();
        config.add_memory_bar(0xc000_0000, 0x1000);
        for offset in 0..300 {
            for width in 0..9 {
                config.write(offset, &[0xff; 9][..width]);
            }
        }
        for (at, expected) in [
            (0x00, 0x0002_0001),
            (0x04, u32::from(COMMAND_MASK)),
            (0x08, 0x0200_0003),
            (0x10, 0xffff_f000),
            (0x14, 0),
            (0x2c, 0x0004_0001),
            (0x3c, 0xff),
            (0x40, 0),
            (0xfc, 0),
            // Half of it outside, then all of it.
            (0xfe, 0xffff_0000),
            (0x100, u32::MAX),
        ] {
            assert_eq!(config.u32_at(at), expected, "{at:#x}");
        }
        let window = Window {
            base: 0xffff_f000,
            size: 0x1000,
        };
        assert_eq!(config.window(), Some(window));
    }
}
