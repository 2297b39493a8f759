//! A guest driver on real guest memory, for tests: fills rings as a kernel would, or as an attacker would.

use std::sync::Arc;
use std::sync::Mutex;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::queue::{Broken, Virtqueue};
use super::{Device, Io};
use crate::memory::Memory;
use crate::pci::Msix;
use crate::platform::fake::FakePlatform;
use crate::sync::lock;

/// A piece of a chain.
pub enum Part<'a> {
    /// Bytes for the device.
    Read(&'a [u8]),
    /// Room for this many bytes from the device.
    Write(u32),
}

/// Where one queue lies.
pub struct Ring {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    state: Mutex<RingState>,
}

#[derive(Default)]
struct RingState {
    avail_index: u16,
    used_index: u16,
    next_descriptor: u16,
    /// Writable parts of each head.
    writable: std::collections::BTreeMap<u16, Vec<(u64, u32)>>,
}

/// Three queues in 32 MiB of memory.
pub struct Driver {
    pub memory: Memory,
    pub rings: Vec<Ring>,
    size: u16,
    next_buffer: Mutex<u64>,
}

impl Driver {
    /// A driver whose queues have `size` entries.
    pub fn new(size: u16) -> Self {
        let rings = (0..3)
            .map(|index| {
                let base = 0x1_0000 * (index + 1);
                Ring {
                    desc: base,
                    avail: base + 0x4000,
                    used: base + 0x6000,
                    state: Mutex::default(),
                }
            })
            .collect();
        Driver {
            memory: crate::memory::create(&[(GuestAddress(0), 32 << 20)]).unwrap(),
            rings,
            size,
            next_buffer: Mutex::new(0x10_0000),
        }
    }

    /// The device's side of a ring.
    pub fn queue(&self, ring: &Ring) -> Virtqueue {
        let mut queue = Virtqueue::new(self.size).unwrap();
        queue.ring.set_size(self.size);
        queue
            .ring
            .set_desc_table_address(Some(ring.desc as u32), Some(0));
        queue
            .ring
            .set_avail_ring_address(Some(ring.avail as u32), Some(0));
        queue
            .ring
            .set_used_ring_address(Some(ring.used as u32), Some(0));
        queue.ring.set_ready(true);
        assert!(queue.ring.is_valid(&self.memory));
        queue
    }

    fn allocate(&self, length: usize) -> u64 {
        let mut next = lock(&self.next_buffer);
        let at = *next;
        *next = (at + length as u64).next_multiple_of(64);
        if *next > 30 << 20 {
            *next = 0x10_0000;
        }
        at
    }

    /// Offers a chain and returns its head.
    pub fn put(&self, ring: usize, parts: &[Part<'_>]) -> u16 {
        let mut raw = Vec::new();
        let mut writable = Vec::new();
        for part in parts {
            match part {
                Part::Read(bytes) => {
                    let at = self.allocate(bytes.len());
                    self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
                    raw.push((at, bytes.len() as u32, 0));
                }
                Part::Write(length) => {
                    let at = self.allocate(*length as usize);
                    writable.push((at, *length));
                    raw.push((at, *length, 2));
                }
            }
        }
        let count = raw.len();
        let mut state = lock(&self.rings[ring].state);
        if state.next_descriptor as usize + count > self.size as usize {
            state.next_descriptor = 0;
        }
        let head = state.next_descriptor;
        state.next_descriptor += count as u16;
        for (index, (at, length, flags)) in raw.into_iter().enumerate() {
            let last = index + 1 == count;
            let number = head + index as u16;
            let flags = flags | u16::from(!last);
            self.write_descriptor(ring, number, (at, length, flags, number + 1));
        }
        state.writable.insert(head, writable);
        self.offer(ring, &mut state, head);
        head
    }

    /// Offers descriptors as given: address, length, flags, next.
    pub fn put_raw(&self, ring: usize, descriptors: &[(u64, u32, u16, u16)]) {
        for (index, descriptor) in descriptors.iter().enumerate() {
            self.write_descriptor(ring, index as u16, *descriptor);
        }
        let mut state = lock(&self.rings[ring].state);
        self.offer(ring, &mut state, 0);
    }

    fn write_descriptor(&self, ring: usize, number: u16, descriptor: (u64, u32, u16, u16)) {
        let (address, length, flags, next) = descriptor;
        let at = self.rings[ring].desc + 16 * u64::from(number);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    fn offer(&self, ring: usize, state: &mut RingState, head: u16) {
        let slot = u64::from(state.avail_index % self.size);
        let avail = self.rings[ring].avail;
        self.memory
            .write_obj(head, GuestAddress(avail + 4 + 2 * slot))
            .unwrap();
        state.avail_index = state.avail_index.wrapping_add(1);
        self.memory
            .write_obj(state.avail_index, GuestAddress(avail + 2))
            .unwrap();
    }

    pub fn set_avail_index(&self, ring: usize, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.rings[ring].avail + 2))
            .unwrap();
    }

    pub fn set_avail_flags(&self, ring: usize, flags: u16) {
        self.memory
            .write_obj(flags, GuestAddress(self.rings[ring].avail))
            .unwrap();
    }

    /// What the device wrote into the chain that it returned next; `None` if it has returned nothing new.
    pub fn take_used(&self, ring: usize) -> Option<Vec<u8>> {
        let mut state = lock(&self.rings[ring].state);
        let used = self.rings[ring].used;
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        if index == state.used_index {
            return None;
        }
        let at = used + 4 + 8 * u64::from(state.used_index % self.size);
        state.used_index = state.used_index.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let written: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = Vec::new();
        for (address, length) in state.writable.remove(&(head as u16)).unwrap_or_default() {
            let mut part = vec![0; length as usize];
            self.memory
                .read_slice(&mut part, GuestAddress(address))
                .unwrap();
            bytes.extend_from_slice(&part);
        }
        assert!(
            written as usize <= bytes.len(),
            "device claims more than it had"
        );
        bytes.truncate(written as usize);
        Some(bytes)
    }
}

/// A device together with a driver, without a transport.
pub struct Rig<D> {
    pub driver: Driver,
    pub device: D,
    queues: Vec<Virtqueue>,
    msix: Msix,
}

impl<D: Device> Rig<D> {
    /// Sets the device up with all its queues and every feature that it offers.
    pub fn new(device: D) -> Self {
        let driver = Driver::new(64);
        let queues = driver
            .rings
            .iter()
            .take(device.queue_sizes().len())
            .map(|ring| driver.queue(ring))
            .collect();
        let mut rig = Rig {
            driver,
            device,
            queues,
            msix: Msix::new(4, Arc::new(FakePlatform::default())),
        };
        let features = rig.device.features();
        rig.with(|device, io| device.activate(features, io))
            .unwrap();
        rig
    }

    /// Calls the device.
    pub fn with<R>(&mut self, call: impl FnOnce(&mut D, &mut Io<'_>) -> R) -> R {
        let mut io = Io {
            memory: &self.driver.memory,
            queues: &mut self.queues,
            msix: &mut self.msix,
        };
        call(&mut self.device, &mut io)
    }

    /// Rings a doorbell.
    pub fn ring(&mut self, queue: usize) -> Result<(), Broken> {
        self.with(|device, io| device.queue_ready(queue, io))
    }
}
