//! A guest at its devices, without KVM: an input is a sequence of what a guest and the host's other end may do.
//!
//! ```text
//! input --> steps: register accesses, writes to memory, rings of doorbells, bytes from the host
//!             |
//!             '--> PciBus --> VirtioPci<device> --> queues in guest memory
//! ```
//!
//! A guest may do anything at any time, so no order is kept; [`Step::Start`] and [`Step::Offer`] only do in one go what a
//! driver does in many, so that inputs reach the devices themselves.

use std::io;
use std::sync::{Arc, Mutex};

use hypervisor::event_loop::{EventLoop, READABLE, Subscriber as _, WRITABLE};
use hypervisor::memory::Memory;
use hypervisor::pci::PciBus;
use hypervisor::platform::Platform;
use hypervisor::sync::lock;
use hypervisor::virtio::Device;
use hypervisor::virtio::transport::VirtioPci;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{descriptor, guest_memory};
use crate::feed::Feed;

const MEMORY_BYTES: usize = 64 << 10;
const BAR: u32 = 0xc000_0000;
/// Where a started driver has its queues, one after the other: table, available ring, used ring.
const QUEUE_STRIDE: u64 = 0x800;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x600;
const QUEUE_SIZE: u16 = 16;
/// Buffers of offered chains begin here.
const BUFFERS: u64 = 0x2000;
/// Steps of one input at most.
pub(super) const STEPS: usize = 512;
/// Device tokens on the event loop begin here.
const SOURCE_TOKENS: u32 = 1 << 16;

/// Nobody listens to these interrupts.
pub(super) struct Silent;

impl Platform for Silent {
    fn send_msi(&self, _address: u64, _data: u32) {}
    fn set_line(&self, _line: u32, _high: bool) {}
    fn add_doorbell(&self, _address: u64, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn remove_doorbell(&self, _address: u64, _event: &EventFd) {}
}

thread_local! {
    pub(super) static MEMORY: Memory = guest_memory(MEMORY_BYTES);
}

/// A step's number in an input; see [`World::step`] for what follows it.
#[derive(Clone, Copy)]
pub(super) enum Step {
    ConfigRead,
    ConfigWrite,
    BarRead,
    BarWrite,
    BusRead,
    BusWrite,
    Memory,
    Start,
    Offer,
    Ring,
    Source,
    Host,
}

const ALL_STEPS: [Step; 12] = [
    Step::ConfigRead,
    Step::ConfigWrite,
    Step::BarRead,
    Step::BarWrite,
    Step::BusRead,
    Step::BusWrite,
    Step::Memory,
    Step::Start,
    Step::Offer,
    Step::Ring,
    Step::Source,
    Step::Host,
];

/// A device on its bus, with an empty guest memory.
pub(super) struct World<'m, D> {
    memory: &'m Memory,
    pub(super) bus: PciBus,
    device: Arc<Mutex<VirtioPci<D>>>,
    /// Chains offered on each queue so far.
    offered: [u16; 4],
    next_buffer: u64,
    _events: EventLoop,
}

impl<'m, D: Device + 'static> World<'m, D> {
    pub(super) fn new(memory: &'m Memory, device: D) -> Self {
        memory
            .write_slice(&[0; MEMORY_BYTES], GuestAddress(0))
            .unwrap();
        let device = VirtioPci::new(device, BAR, memory.clone(), Arc::new(Silent)).unwrap();
        let device = Arc::new(Mutex::new(device));
        let mut bus = PciBus::new();
        bus.add(device.clone());
        let mut events = EventLoop::new().unwrap();
        events.add(device.clone()).unwrap();
        World {
            memory,
            bus,
            device,
            offered: [0; 4],
            next_buffer: BUFFERS,
            _events: events,
        }
    }

    fn write(&self, at: u32, bytes: &[u8]) {
        self.bus.memory_write(u64::from(BAR + at), bytes);
    }

    /// What a driver does until DRIVER_OK.
    fn start(&mut self, refused: u64) {
        self.bus.config_write(1, 4, &[6, 0]);
        for status in [0, 1, 3] {
            self.write(20, &[status]);
        }
        for half in 0..2_u32 {
            let mut bits = [0; 4];
            self.write(0, &half.to_le_bytes());
            self.bus.memory_read(u64::from(BAR + 4), &mut bits);
            let bits = u32::from_le_bytes(bits) & !((refused >> (32 * half)) as u32);
            self.write(8, &half.to_le_bytes());
            self.write(12, &bits.to_le_bytes());
        }
        self.write(20, &[11]);
        for queue in 0..3_u16 {
            let base = QUEUE_STRIDE * u64::from(queue);
            self.write(22, &queue.to_le_bytes());
            self.write(24, &QUEUE_SIZE.to_le_bytes());
            self.write(26, &(queue + 1).to_le_bytes());
            self.write(32, &base.to_le_bytes());
            self.write(40, &(base + AVAILABLE).to_le_bytes());
            self.write(48, &(base + USED).to_le_bytes());
            self.write(28, &1_u16.to_le_bytes());
        }
        self.write(20, &[15]);
    }

    /// Puts a chain into a queue: readable bytes, then room of these lengths.
    fn offer(&mut self, queue: u8, readable: &[&[u8]], writable: &[u16]) {
        let queue = usize::from(queue % 4);
        let base = QUEUE_STRIDE * queue as u64;
        let count = readable.len() + writable.len();
        let head = self.offered[queue].wrapping_mul(4) % QUEUE_SIZE;
        let mut place = |length: usize| {
            let at = self.next_buffer;
            self.next_buffer += length as u64;
            if self.next_buffer >= MEMORY_BYTES as u64 {
                self.next_buffer = BUFFERS;
            }
            at
        };
        let mut table = Vec::new();
        for bytes in readable {
            let at = place(bytes.len());
            let _ = self.memory.write(bytes, GuestAddress(at));
            table.push((at, bytes.len() as u32, 0));
        }
        for length in writable {
            table.push((place(usize::from(*length)), u32::from(*length), 2));
        }
        for (index, (at, length, flags)) in table.into_iter().enumerate() {
            let number = (head + index as u16) % QUEUE_SIZE;
            let flags = flags | u16::from(index + 1 < count);
            let next = (number + 1) % QUEUE_SIZE;
            let bytes = descriptor(at, length, flags, next);
            let _ = self
                .memory
                .write(&bytes, GuestAddress(base + 16 * u64::from(number)));
        }
        let slot = u64::from(self.offered[queue] % QUEUE_SIZE);
        let ring = base + AVAILABLE;
        let _ = self
            .memory
            .write_obj(head, GuestAddress(ring + 4 + 2 * slot));
        self.offered[queue] = self.offered[queue].wrapping_add(1);
        let _ = self
            .memory
            .write_obj(self.offered[queue], GuestAddress(ring + 2));
    }

    fn ring(&self, token: u32) {
        lock(&self.device).ready(token, READABLE);
    }

    /// Takes one step out of the input.
    fn step(&mut self, feed: &mut Feed<'_>, host: &mut dyn FnMut(&[u8])) {
        let Some(step) = ALL_STEPS.get(usize::from(feed.u8()) % ALL_STEPS.len()) else {
            return;
        };
        let mut bytes = [0; 8];
        match step {
            Step::ConfigRead | Step::ConfigWrite => {
                // As the ports let it through: within one register of 32 bits.
                let slot = usize::from(feed.u8() % 4);
                let offset = usize::from(feed.u8());
                let width = 1 << (feed.u8() % 3);
                let offset = offset - offset % width;
                let bytes = bytes.get_mut(..width).unwrap();
                if matches!(step, Step::ConfigRead) {
                    self.bus.config_read(slot, offset, bytes);
                } else {
                    bytes.copy_from_slice(feed.array::<4>().get(..width).unwrap());
                    self.bus.config_write(slot, offset, bytes);
                }
            }
            Step::BarRead | Step::BarWrite | Step::BusRead | Step::BusWrite => {
                let address = match step {
                    Step::BarRead | Step::BarWrite => u64::from(BAR) + u64::from(feed.u16()),
                    _ => feed.u64(),
                };
                let width = 1 << (feed.u8() % 4);
                let bytes = bytes.get_mut(..width).unwrap();
                if matches!(step, Step::BarRead | Step::BusRead) {
                    self.bus.memory_read(address, bytes);
                } else {
                    bytes.copy_from_slice(feed.array::<8>().get(..width).unwrap());
                    self.bus.memory_write(address, bytes);
                }
            }
            Step::Memory => {
                let at = feed.u16();
                let length = usize::from(feed.u8());
                let _ = self
                    .memory
                    .write(feed.bytes(length), GuestAddress(at.into()));
            }
            Step::Start => self.start(feed.u64()),
            Step::Offer => {
                let queue = feed.u8();
                let counts = feed.u8();
                let readable: Vec<&[u8]> = (0..counts & 3)
                    .map(|_| {
                        let length = usize::from(feed.u8());
                        feed.bytes(length)
                    })
                    .collect();
                let writable: Vec<u16> = (0..counts >> 2 & 3).map(|_| feed.u16()).collect();
                self.offer(queue, &readable, &writable);
            }
            Step::Ring => self.ring(u32::from(feed.u8() % 4)),
            Step::Source => {
                let token = SOURCE_TOKENS + u32::from(feed.u8());
                lock(&self.device).ready(token, READABLE | WRITABLE);
            }
            Step::Host => {
                let length = usize::from(feed.u8());
                host(feed.bytes(length));
            }
        }
    }

    fn run(mut self, data: &[u8], host: &mut dyn FnMut(&[u8])) {
        let mut feed = Feed::new(data);
        for _ in 0..STEPS {
            if feed.is_empty() {
                break;
            }
            self.step(&mut feed, host);
        }
        lock(&self.device).finish();
    }
}

pub(super) fn drive<D: Device + 'static>(device: D, data: &[u8], host: &mut dyn FnMut(&[u8])) {
    MEMORY.with(|memory| World::new(memory, device).run(data, host));
}

/// Puts inputs together.
#[derive(Default)]
pub(super) struct Script(pub(super) Vec<u8>);

impl Script {
    pub(super) fn step(mut self, step: Step, body: &[u8]) -> Self {
        self.0.push(step as u8);
        self.0.extend(body);
        self
    }

    /// With every feature except those.
    pub(super) fn start_without(self, features: u64) -> Self {
        self.step(Step::Start, &features.to_le_bytes())
    }

    pub(super) fn start(self) -> Self {
        self.start_without(0)
    }

    pub(super) fn offer(self, queue: u8, readable: &[&[u8]], writable: &[u16]) -> Self {
        let mut body = vec![queue, (readable.len() | writable.len() << 2) as u8];
        for bytes in readable {
            body.push(bytes.len() as u8);
            body.extend(*bytes);
        }
        for length in writable {
            body.extend(length.to_le_bytes());
        }
        self.step(Step::Offer, &body)
    }

    pub(super) fn ring(self, queue: u8) -> Self {
        self.step(Step::Ring, &[queue])
    }

    pub(super) fn host(self, bytes: &[u8]) -> Self {
        self.step(Step::Host, &[&[bytes.len() as u8], bytes].concat())
    }
}

/// Accesses that fit any device.
pub(super) fn registers() -> Vec<u8> {
    let mut script = Script::default();
    for offset in [0, 4, 8, 16, 52] {
        script = script.step(Step::ConfigRead, &[1, offset, 2]);
    }
    script = script.step(Step::ConfigWrite, &[1, 16, 2, 0xff, 0xff, 0xff, 0xff]);
    script = script.step(Step::ConfigWrite, &[1, 16, 2, 0, 0, 0, 0xc0]);
    script = script.step(Step::ConfigWrite, &[1, 4, 1, 6, 0, 0, 0]);
    for register in [0_u16, 4, 18, 20, 22, 24, 32, 0x1000, 0x2000, 0x4000, 0x5000] {
        let [low, high] = register.to_le_bytes();
        script = script.step(Step::BarRead, &[low, high, 2]);
        script = script.step(Step::BarWrite, &[low, high, 2, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
    script.0
}
