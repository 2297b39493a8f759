//! The host bridge in slot 0: an identity and nothing else. Kernels look for it before they trust the bus.

use super::{ConfigSpace, Identity, PciFunction, Window};

/// A host bridge without registers.
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// Intel's 82441FX, the plainest of bridges; nothing is expected of it beyond being there.
    pub fn new() -> Self {
        HostBridge {
            config: ConfigSpace::new(&Identity {
                vendor: 0x8086,
                device: 0x1237,
                class: 0x06_0000,
                revision: 2,
                subsystem: 0,
            }),
        }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn window(&self) -> Option<Window> {
        None
    }

    fn memory_read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn memory_write(&mut self, _offset: u64, _data: &[u8]) {}
}
