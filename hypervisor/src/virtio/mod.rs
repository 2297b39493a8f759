//! Virtio 1.2 devices.
//!
//! Three layers, each ignorant of the one above:
//!
//! - [`queue`]: takes descriptor chains out of guest memory, checks them, gives them back;
//! - [`Device`]: what a device of one kind does with chains. Each kind is a folder with a `mod.rs` that holds the
//!   device, and its back end beside it;
//! - [`transport`]: registers, feature negotiation, interrupts and doorbells over PCI.
//!
//! A device lives on an event loop. Its lock is held while it works on a queue, and by a vCPU that touches its
//! registers; after a guest has booted that hardly happens, so the lock is free.

pub mod block;
pub mod console;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
pub mod vsock;

#[cfg(test)]
pub(crate) mod fake_driver;

use std::sync::atomic::{AtomicU64, Ordering};

use hypervisor_api::control::Transfer;

use crate::event_loop::{Events, Registrar};
use crate::memory::Memory;
use crate::pci::Msix;
use queue::{Broken, Chain, Virtqueue};

/// Chains that a device takes from one queue before it lets others on the same loop have their turn.
pub const TURN: usize = 256;

/// What kind of device it is (virtio 1.2, chapter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Rng = 4,
    /// Host-guest sockets.
    Vsock = 19,
}

impl Kind {
    /// PCI class code: class, subclass, interface.
    pub fn pci_class(self) -> u32 {
        match self {
            Kind::Net => 0x02_0000,
            Kind::Block => 0x01_8000,
            Kind::Console => 0x07_8000,
            Kind::Rng => 0x10_0000,
            Kind::Vsock => 0x07_8000,
        }
    }
}

/// A virtio device without its transport.
///
/// Legal order of calls: `attach` once; then any number of rounds of `activate`, (`queue_ready` | `source_ready`)*,
/// `reset`; `finish` last. An error means that the guest broke the protocol: the transport tells it so and calls
/// nothing but `reset` until the guest starts over.
pub trait Device: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Feature bits that it offers, beyond those of transport and queues.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Device configuration space as the guest reads it.
    fn config(&self) -> &[u8];

    /// Adds the descriptors of its back end, edge-triggered. Tokens are handed back in [`Device::source_ready`].
    fn attach(&mut self, _registrar: &SourceRegistrar) -> std::io::Result<()> {
        Ok(())
    }

    /// The driver is ready, with the feature bits that it accepted. Edges that came before are lost: look at
    /// everything once.
    fn activate(&mut self, features: u64, io: &mut Io<'_>) -> Result<(), Broken>;

    /// The driver rang the doorbell of `queue`.
    fn queue_ready(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken>;

    /// A descriptor that the device added under `token` has `events`.
    fn source_ready(
        &mut self,
        _token: u32,
        _events: Events,
        _io: &mut Io<'_>,
    ) -> Result<(), Broken> {
        Ok(())
    }

    /// The driver is gone; forget it. Data on its way to the back end is finished.
    fn reset(&mut self);

    /// The machine ends: bring what the guest was told is safe to where it is safe.
    fn finish(&mut self) {}
}

/// A [`Registrar`] that keeps a device's tokens apart from those of its queues.
#[derive(Clone, Debug)]
pub struct SourceRegistrar(Registrar);

/// Device tokens begin here on the loop; below are queues.
const SOURCE_TOKENS: u32 = 1 << 16;

impl SourceRegistrar {
    /// Begins to wait for `events` on `fd`. `token` must be below 2^31.
    pub fn add(
        &self,
        fd: &impl std::os::fd::AsRawFd,
        token: u32,
        events: Events,
    ) -> std::io::Result<()> {
        self.0.add(fd, SOURCE_TOKENS + token, events)
    }

    /// Stops waiting.
    pub fn remove(&self, fd: &impl std::os::fd::AsRawFd) {
        self.0.remove(fd);
    }
}

/// What a device works with while it is active.
pub struct Io<'a> {
    /// The guest's memory.
    pub memory: &'a Memory,
    /// The device's queues.
    pub queues: &'a mut [Virtqueue],
    /// Interrupts.
    pub msix: &'a mut Msix,
}

impl<'a> Io<'a> {
    /// Takes the next chain out of `queue`; with `None`, the doorbell will ring when there is one.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain<'a>>, Broken> {
        match self.queues.get_mut(queue) {
            Some(queue) => queue.pop(self.memory),
            None => Ok(None),
        }
    }

    /// Puts the chain that was taken last back to where it came from.
    pub fn unpop(&mut self, queue: usize) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.unpop();
        }
    }

    /// Gives a chain back to the driver, with what the device wrote into it.
    pub fn complete(&mut self, queue: usize, chain: Chain<'_>) -> Result<(), Broken> {
        match self.queues.get_mut(queue) {
            Some(queue) => queue.complete(self.memory, chain),
            None => Ok(()),
        }
    }

    /// Interrupts the driver for what was completed on `queue`, if it wants that.
    pub fn signal(&mut self, queue: usize) -> Result<(), Broken> {
        if let Some(queue) = self.queues.get_mut(queue)
            && let Some(vector) = queue.wants_interrupt(self.memory)?
        {
            self.msix.trigger(vector);
        }
        Ok(())
    }

    /// Has the device called again for `queue`, after the others on its loop.
    pub fn again(&self, queue: usize) {
        if let Some(queue) = self.queues.get(queue) {
            queue.ring();
        }
    }
}

/// Bytes moved by a device, readable while it works.
#[derive(Debug, Default)]
pub struct Counters {
    rx: AtomicU64,
    tx: AtomicU64,
}

impl Counters {
    /// Counts bytes towards the guest.
    pub fn add_rx(&self, bytes: u64) {
        self.rx.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes from the guest.
    pub fn add_tx(&self, bytes: u64) {
        self.tx.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The sums so far.
    pub fn read(&self) -> Transfer {
        Transfer {
            rx_bytes: self.rx.load(Ordering::Relaxed),
            tx_bytes: self.tx.load(Ordering::Relaxed),
        }
    }
}
