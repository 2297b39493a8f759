//! Virtio over PCI: registers in one memory BAR, MSI-X, doorbells (virtio 1.2, 4.1).
//!
//! ```text
//! BAR 0   0x0000 common configuration   0x1000 ISR   0x2000 device configuration
//!         0x3000 doorbells, 4 bytes a queue          0x4000 MSI-X table   0x5000 pending bits
//!
//!            status write                      FEATURES_OK accepted, DRIVER_OK
//! Reset ---------------------> Negotiating -------------------------------------> Active
//!   ^                              |                                                |  the guest broke a rule
//!   |        status = 0            v                                                v
//!   +------------------------------+--------------------------------------------- Broken (NEEDS_RESET)
//! ```

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::queue::{Broken, Virtqueue};
use super::{Device, Io, SOURCE_TOKENS, SourceRegistrar};
use crate::event_loop::{EDGE, Events, READABLE, Registrar, Subscriber};
use crate::memory::Memory;
use crate::pci::{ConfigSpace, Identity, MSIX_ENTRY_SIZE, Msix, NO_VECTOR, PciFunction, Window};
use crate::platform::Platform;

/// Size of the BAR in bytes.
pub const BAR_SIZE: u32 = 0x8000;

const COMMON: u64 = 0x0000;
const COMMON_SIZE: usize = 0x40;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const DEVICE_SIZE: u32 = 0x1000;
const NOTIFY: u64 = 0x3000;
const NOTIFY_STRIDE: u32 = 4;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;

const VIRTIO_VENDOR: u16 = 0x1af4;
/// Modern devices have this plus their kind as PCI device id (4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

/// What a virtio capability points to (4.1.4).
const COMMON_STRUCTURE: u8 = 1;
const NOTIFY_STRUCTURE: u8 = 2;
const ISR_STRUCTURE: u8 = 3;
const DEVICE_STRUCTURE: u8 = 4;
const WINDOW_STRUCTURE: u8 = 5;

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// ISR bits (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What every queue of ours can do.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    device: D,
    memory: Memory,
    queues: Vec<Virtqueue>,
    msix: Msix,
    platform: Arc<dyn Platform>,
    config: ConfigSpace,
    msix_capability: usize,
    /// The capability through which firmware reaches the BAR by configuration space (4.1.4.9).
    window_capability: usize,
    /// Where doorbells are registered with the platform.
    doorbells_at: Option<u64>,

    status: u8,
    isr: u8,
    config_vector: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
}

impl<D: Device> VirtioPci<D> {
    /// Puts `device` behind a PCI function whose BAR begins at `base`.
    pub fn new(
        device: D,
        base: u32,
        memory: Memory,
        platform: Arc<dyn Platform>,
    ) -> io::Result<Self> {
        let kind = device.kind();
        let queues = device
            .queue_sizes()
            .iter()
            .map(|size| Virtqueue::new(*size))
            .collect::<io::Result<Vec<_>>>()?;
        // One vector for configuration changes, one a queue.
        let vectors = queues.len() as u16 + 1;
        let mut config = ConfigSpace::new(&Identity {
            vendor: VIRTIO_VENDOR,
            device: DEVICE_ID_BASE + kind as u16,
            class: kind.pci_class(),
            revision: 1,
            subsystem: DEVICE_ID_BASE + kind as u16,
        });
        config.add_memory_bar(base, BAR_SIZE);
        let full = || io::Error::other("PCI configuration space is full");
        let notify_size = NOTIFY_STRIDE * queues.len() as u32;
        for (what, offset, length, extra) in [
            (COMMON_STRUCTURE, COMMON, COMMON_SIZE as u32, None),
            (ISR_STRUCTURE, ISR, 4, None),
            (DEVICE_STRUCTURE, DEVICE, DEVICE_SIZE, None),
            (NOTIFY_STRUCTURE, NOTIFY, notify_size, Some(NOTIFY_STRIDE)),
        ] {
            let body = virtio_capability(what, offset as u32, length, extra);
            config
                .add_capability(CAPABILITY_VENDOR, &body, &[])
                .ok_or_else(full)?;
        }
        let body = virtio_capability(WINDOW_STRUCTURE, 0, 0, Some(0));
        // The guest may choose BAR, offset and length, and write the data.
        let mut writable = [0xff; 18];
        writable[..2].fill(0);
        let window_capability = config
            .add_capability(CAPABILITY_VENDOR, &body, &writable)
            .ok_or_else(full)?;

        let mut body = Vec::new();
        body.extend_from_slice(&(vectors - 1).to_le_bytes());
        body.extend_from_slice(&(MSIX_TABLE as u32).to_le_bytes());
        body.extend_from_slice(&(MSIX_PENDING as u32).to_le_bytes());
        // Of message control, the guest sets "enable" and "mask all".
        let msix_capability = config
            .add_capability(CAPABILITY_MSIX, &body, &[0, 0xc0])
            .ok_or_else(full)?;

        Ok(VirtioPci {
            device,
            memory,
            queues,
            msix: Msix::new(vectors, platform.clone()),
            platform,
            config,
            msix_capability,
            window_capability,
            doorbells_at: None,
            status: 0,
            isr: 0,
            config_vector: NO_VECTOR,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
        })
    }

    /// The machine ends.
    pub fn finish(&mut self) {
        self.device.finish();
    }

    fn is_active(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    fn call(&mut self, call: impl FnOnce(&mut D, &mut Io<'_>) -> Result<(), Broken>) {
        let mut io = Io {
            memory: &self.memory,
            queues: &mut self.queues,
            msix: &mut self.msix,
        };
        if call(&mut self.device, &mut io).is_err() {
            self.give_up();
        }
    }

    /// The guest broke a rule: tell it, and do nothing more until it resets the device (2.1.2).
    fn give_up(&mut self) {
        self.status |= NEEDS_RESET;
        self.isr |= ISR_CONFIG;
        self.msix.trigger(self.config_vector);
    }

    fn features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        let mut new = status | self.status & NEEDS_RESET;
        if new & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            let unknown = self.driver_features & !self.features() != 0;
            let legacy = self.driver_features & 1 << VIRTIO_F_VERSION_1 == 0;
            if unknown || legacy {
                new &= !FEATURES_OK;
            }
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        let starts = new & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        self.status = new;
        if starts {
            self.activate();
        }
    }

    fn activate(&mut self) {
        let event_index = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.ring.set_event_idx(event_index);
            if queue.ring.ready() && !queue.ring.is_valid(&self.memory) {
                return self.give_up();
            }
        }
        self.place_doorbells();
        let features = self.driver_features;
        self.call(|device, io| device.activate(features, io));
    }

    fn reset(&mut self) {
        self.remove_doorbells();
        if self.status & DRIVER_OK != 0 {
            self.device.reset();
        }
        for queue in &mut self.queues {
            queue.ring.reset();
            queue.vector = NO_VECTOR;
        }
        self.status = 0;
        self.isr = 0;
        self.config_vector = NO_VECTOR;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
    }

    /// Registers doorbells where the BAR is now. A doorbell that cannot be registered is not lost: the write then
    /// reaches [`PciFunction::memory_write`].
    fn place_doorbells(&mut self) {
        let Some(window) = self.config.window() else {
            return;
        };
        if self.doorbells_at == Some(window.base) {
            return;
        }
        self.remove_doorbells();
        for (index, queue) in self.queues.iter().enumerate() {
            let address = doorbell(window.base, index);
            let _ = self.platform.add_doorbell(address, &queue.doorbell);
        }
        self.doorbells_at = Some(window.base);
    }

    fn remove_doorbells(&mut self) {
        if let Some(base) = self.doorbells_at.take() {
            for (index, queue) in self.queues.iter().enumerate() {
                self.platform
                    .remove_doorbell(doorbell(base, index), &queue.doorbell);
            }
        }
    }

    /// The common configuration structure (4.1.4.3) as it reads now.
    fn common_registers(&self) -> [u8; COMMON_SIZE] {
        let mut registers = [0; COMMON_SIZE];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = registers.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &self.device_feature_select.to_le_bytes());
        put(
            4,
            &half(self.features(), self.device_feature_select).to_le_bytes(),
        );
        put(8, &self.driver_feature_select.to_le_bytes());
        put(
            12,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(16, &self.config_vector.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[self.status]);
        put(22, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(24, &queue.ring.size().to_le_bytes());
            put(26, &queue.vector.to_le_bytes());
            put(28, &u16::from(queue.ring.ready()).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.ring.desc_table().to_le_bytes());
            put(40, &queue.ring.avail_ring().to_le_bytes());
            put(48, &queue.ring.used_ring().to_le_bytes());
        }
        registers
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        let Some(place) = bytes.get_mut(..data.len()) else {
            return;
        };
        place.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let (low, vector) = (value as u32, value as u16);
        match (offset, data.len()) {
            (0, 4) => self.device_feature_select = low,
            (8, 4) => self.driver_feature_select = low,
            // Features are settled once FEATURES_OK stands.
            (12, 4) if self.status & FEATURES_OK == 0 => {
                let shift = match self.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                self.driver_features =
                    self.driver_features & !(0xffff_ffff << shift) | u64::from(low) << shift;
            }
            (16, 2) => self.config_vector = self.valid_vector(vector),
            (20, 1) => self.set_status(value as u8),
            (22, 2) => self.queue_select = vector,
            (24.., _) => self.write_queue(offset, data.len(), value),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, width: usize, value: u64) {
        let valid = self.valid_vector(value as u16);
        let active = self.status & DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if (offset, width) == (26, 2) {
            queue.vector = valid;
            return;
        }
        // Rings stay where they are while the device works on them.
        if active {
            return;
        }
        let ring = &mut queue.ring;
        let low = Some(value as u32);
        let high = (width == 8).then_some((value >> 32) as u32);
        match (offset, width) {
            (24, 2) => ring.set_size(value as u16),
            // Only a reset disables a queue again.
            (28, 2) if value == 1 => ring.set_ready(true),
            (32, 4 | 8) => ring.set_desc_table_address(low, high),
            (36, 4) => ring.set_desc_table_address(None, low),
            (40, 4 | 8) => ring.set_avail_ring_address(low, high),
            (44, 4) => ring.set_avail_ring_address(None, low),
            (48, 4 | 8) => ring.set_used_ring_address(low, high),
            (52, 4) => ring.set_used_ring_address(None, low),
            _ => {}
        }
    }

    fn valid_vector(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Offset and width that the configuration-space window points to, if it points to something.
    fn window_target(&self) -> Option<(u64, usize)> {
        let mut bar = [0];
        self.config.read(self.window_capability + 4, &mut bar);
        let offset = self.config.u32_at(self.window_capability + 8);
        let length = self.config.u32_at(self.window_capability + 12);
        let known = bar == [0] && matches!(length, 1 | 2 | 4);
        known.then_some((u64::from(offset), length as usize))
    }

    /// Whether an access at `offset` touches the data of the configuration-space window.
    fn is_window_data(&self, offset: usize) -> bool {
        (self.window_capability + 16..self.window_capability + 20).contains(&offset)
    }
}

impl<D: Device> PciFunction for VirtioPci<D> {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        if self.is_window_data(offset)
            && let Some((at, width)) = self.window_target()
            && let Some(data) = data.get_mut(..width)
        {
            return self.memory_read(at, data);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        if self.is_window_data(offset)
            && let Some((at, width)) = self.window_target()
            && let Some(data) = data.get(..width)
        {
            self.memory_write(at, data);
        }
        let mut control = [0; 2];
        self.config.read(self.msix_capability + 2, &mut control);
        let control = u16::from_le_bytes(control);
        self.msix.set_control(control);
        if self.status & DRIVER_OK != 0 {
            self.place_doorbells();
        }
    }

    fn window(&self) -> Option<Window> {
        self.config.window()
    }

    fn memory_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..ISR => {
                let registers = self.common_registers();
                copy_from(&registers, (offset - COMMON) as usize, data);
            }
            ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = std::mem::take(&mut self.isr) & (ISR_QUEUE | ISR_CONFIG);
                }
            }
            DEVICE..NOTIFY => copy_from(self.device.config(), (offset - DEVICE) as usize, data),
            MSIX_TABLE..MSIX_PENDING => self.msix.read_table((offset - MSIX_TABLE) as usize, data),
            MSIX_PENDING.. => self
                .msix
                .read_pending((offset - MSIX_PENDING) as usize, data),
            _ => {}
        }
    }

    fn memory_write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..ISR => self.write_common(offset - COMMON, data),
            NOTIFY..MSIX_TABLE => {
                let index = (offset - NOTIFY) / u64::from(NOTIFY_STRIDE);
                if let Some(queue) = self.queues.get(index as usize) {
                    queue.ring();
                }
            }
            MSIX_TABLE..MSIX_PENDING => {
                let at = (offset - MSIX_TABLE) as usize;
                if at < MSIX_ENTRY_SIZE * usize::from(self.msix.vectors()) {
                    self.msix.write_table(at, data);
                }
            }
            _ => {}
        }
    }
}

impl<D: Device> Subscriber for VirtioPci<D> {
    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        for (index, queue) in self.queues.iter().enumerate() {
            registrar.add(&queue.doorbell, index as u32, READABLE | EDGE)?;
        }
        self.device.attach(&SourceRegistrar(registrar))
    }

    fn ready(&mut self, token: u32, events: Events) {
        if !self.is_active() {
            return;
        }
        match token.checked_sub(SOURCE_TOKENS) {
            // Doorbells are edge-triggered: each ring is an edge, and nobody needs to read the counter.
            None => self.call(|device, io| device.queue_ready(token as usize, io)),
            Some(token) => self.call(|device, io| device.source_ready(token, events, io)),
        }
    }
}

fn doorbell(base: u64, queue: usize) -> u64 {
    base + NOTIFY + u64::from(NOTIFY_STRIDE) * queue as u64
}

/// Half of a 64-bit feature mask, as selected.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Copies what there is; the rest keeps its bytes.
fn copy_from(source: &[u8], offset: usize, data: &mut [u8]) {
    for (to, from) in data
        .iter_mut()
        .zip(source.get(offset..).unwrap_or_default())
    {
        *to = *from;
    }
}

/// A virtio capability's bytes after id and link (4.1.4): length, type, BAR, id, padding, offset, length, and more.
fn virtio_capability(what: u8, offset: u32, length: u32, extra: Option<u32>) -> Vec<u8> {
    let size = if extra.is_some() { 20 } else { 16 };
    let mut body = vec![size, what, 0, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&length.to_le_bytes());
    if let Some(extra) = extra {
        body.extend_from_slice(&extra.to_le_bytes());
    }
    body
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
