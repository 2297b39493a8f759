//! Split virtqueues: chains of guest buffers, checked before any device sees them.
//!
//! A guest can write anything into its rings. Whatever breaks the rules of virtio 1.2 (2.7) beyond repair is
//! [`Broken`]; a chain that has passed consists of buffers that lie in guest memory, readable ones first.

use std::io;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Memory;
use crate::pci::NO_VECTOR;

/// Longest chain taken, in buffers: what one preadv(2) or pwritev(2) takes (IOV_MAX).
pub const MAX_BUFFERS: usize = 1024;

/// A buffer in guest memory.
pub type Buffer<'m> = VolatileSlice<'m, ()>;

/// The guest broke the rules; the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The rings themselves are not usable.
    #[error("virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A buffer lies outside guest memory.
    #[error(
        "descriptor chain {head}: buffer of {length} bytes at {address:#x} is not in guest memory"
    )]
    Outside {
        /// First descriptor of the chain.
        head: u16,
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        length: u32,
    },
    /// The chain is malformed.
    #[error("descriptor chain {head}: {what}")]
    Chain {
        /// First descriptor of the chain.
        head: u16,
        /// What is wrong.
        what: &'static str,
    },
}

/// One queue of a device: the ring, its doorbell, its interrupt vector.
pub struct Virtqueue {
    /// Ring positions and addresses.
    pub ring: Queue,
    /// Signalled when the guest rings.
    pub doorbell: EventFd,
    /// MSI-X vector, or [`NO_VECTOR`].
    pub vector: u16,
}

impl Virtqueue {
    /// A queue of at most `size` (a power of two) entries.
    pub fn new(size: u16) -> Result<Self, io::Error> {
        Ok(Virtqueue {
            ring: Queue::new(size).map_err(io::Error::other)?,
            doorbell: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            vector: NO_VECTOR,
        })
    }

    /// Takes the next chain. With `None` the driver has been asked to ring for the next one.
    pub fn pop<'m>(&mut self, memory: &'m Memory) -> Result<Option<Chain<'m>>, Broken> {
        if !self.ring.ready() {
            return Ok(None);
        }
        loop {
            // Not `pop_descriptor_chain`: that one hides an impossible ring index, and we would loop here for ever.
            if let Some(chain) = self.ring.iter(memory)?.next() {
                let head = chain.head_index();
                return Chain::gather(memory, head, chain).map(Some);
            }
            if !self.ring.enable_notification(memory)? {
                return Ok(None);
            }
        }
    }

    /// Puts back what was popped last.
    pub fn unpop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Returns a chain to the driver.
    pub fn complete(&mut self, memory: &Memory, chain: Chain<'_>) -> Result<(), Broken> {
        Ok(self.ring.add_used(memory, chain.head, chain.written)?)
    }

    /// The vector to trigger, if the driver wants an interrupt for what was completed since the last call.
    pub fn wants_interrupt(&mut self, memory: &Memory) -> Result<Option<u16>, Broken> {
        if !self.ring.ready() || !self.ring.needs_notification(memory)? {
            return Ok(None);
        }
        if !self.ring.event_idx_enabled() {
            // Without event indices the driver says it with a flag in its ring (2.7.7), which the ring does not read.
            const NO_INTERRUPT: u16 = 1;
            let flags: u16 = memory
                .read_obj(GuestAddress(self.ring.avail_ring()))
                .map_err(virtio_queue::Error::GuestMemory)?;
            if u16::from_le(flags) & NO_INTERRUPT != 0 {
                return Ok(None);
            }
        }
        Ok((self.vector != NO_VECTOR).then_some(self.vector))
    }

    /// Rings the queue's own doorbell.
    pub fn ring(&self) {
        // Fails only when 2^64-2 rings are pending; then it is ringing already.
        let _ = self.doorbell.write(1);
    }
}

/// A chain of buffers: some for the device to read, then some for it to write.
pub struct Chain<'m> {
    head: u16,
    /// What the driver wrote.
    pub readable: Buffers<'m>,
    /// Where the device writes.
    pub writable: Buffers<'m>,
    /// Bytes that the device wrote, as the used ring will say.
    written: u32,
}

impl<'m> Chain<'m> {
    fn gather(
        memory: &'m Memory,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, Broken> {
        let mut readable = Vec::new();
        let mut writable = Vec::new();
        for descriptor in descriptors {
            let length = descriptor.len();
            let outside = |_| Broken::Outside {
                head,
                address: descriptor.addr().0,
                length,
            };
            let (list, access) = if descriptor.is_write_only() {
                (&mut writable, Permissions::Write)
            } else if writable.is_empty() {
                (&mut readable, Permissions::Read)
            } else {
                let what = "a readable buffer follows a writable one";
                return Err(Broken::Chain { head, what });
            };
            let slices = memory
                .get_slices(descriptor.addr(), length as usize, access)
                .map_err(outside)?;
            for slice in slices {
                list.push(slice.map_err(outside)?);
            }
            if readable.len() + writable.len() > MAX_BUFFERS {
                let what = "more buffers than the device takes";
                return Err(Broken::Chain { head, what });
            }
        }
        Ok(Chain {
            head,
            readable: Buffers::new(readable),
            writable: Buffers::new(writable),
            written: 0,
        })
    }

    /// Reads exactly `N` bytes from the front of the readable part; `None` if it is shorter.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.readable.copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// Writes as much of `bytes` as the writable part takes, and counts it.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = self.writable.copy_from(bytes);
        self.add_written(count);
        count
    }

    /// Counts bytes that went into the writable part by another way.
    pub fn add_written(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes as u32);
    }
}

/// A list of buffers that is used up from its front.
pub struct Buffers<'m> {
    slices: Vec<Buffer<'m>>,
    first: usize,
    length: usize,
}

impl<'m> Buffers<'m> {
    fn new(slices: Vec<Buffer<'m>>) -> Self {
        let length = slices.iter().map(Buffer::len).sum();
        Buffers {
            slices,
            first: 0,
            length,
        }
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What is left, buffer by buffer.
    pub fn slices(&self) -> &[Buffer<'m>] {
        self.slices.get(self.first..).unwrap_or_default()
    }

    /// Copies to `bytes` and uses that up; returns how much there was.
    pub fn copy_to(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while let (Some(slice), Some(rest)) = (self.slices.get(self.first), bytes.get_mut(done..))
            && !rest.is_empty()
        {
            let count = slice.copy_to(rest);
            done += count;
            self.skip(count);
        }
        done
    }

    /// Copies from `bytes` and uses that up; returns how much went in.
    pub fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let (Some(slice), Some(rest)) = (self.slices.get(self.first), bytes.get(done..))
            && !rest.is_empty()
        {
            let count = slice.len().min(rest.len());
            if let Some(part) = rest.get(..count) {
                slice.copy_from(part);
            }
            done += count;
            self.skip(count);
        }
        done
    }

    /// Uses up `count` bytes, or all that is left.
    pub fn skip(&mut self, mut count: usize) {
        while let Some(slice) = self.slices.get_mut(self.first) {
            let length = slice.len();
            if count < length {
                if count > 0 {
                    if let Ok(rest) = slice.offset(count) {
                        *slice = rest;
                    }
                    self.length -= count;
                }
                return;
            }
            count -= length;
            self.length -= length;
            self.first += 1;
        }
    }

    /// Cuts the last `count` bytes off and returns them; all, if there are not more.
    pub fn split_tail(&mut self, count: usize) -> Buffers<'m> {
        let mut keep = self.length.saturating_sub(count);
        let mut head = Vec::new();
        let mut tail = Vec::new();
        for slice in self.slices.drain(..).skip(self.first) {
            let here = keep.min(slice.len());
            keep -= here;
            if here == slice.len() {
                head.push(slice);
            } else if let Ok((left, right)) = slice.split_at(here) {
                if here > 0 {
                    head.push(left);
                }
                tail.push(right);
            }
        }
        *self = Buffers::new(head);
        Buffers::new(tail)
    }

    /// The buffers as readv(2) and writev(2) take them. They are good for as long as the guest's memory is mapped.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        self.slices()
            .iter()
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::{Driver, Part};

    #[test]
    fn chains_come_out_as_they_were_put_in() {
        let driver = Driver::new(16);
        let mut queue = driver.queue(&driver.rings[0]);
        driver.put(
            0,
            &[Part::Read(b"hello "), Part::Read(b"there"), Part::Write(8)],
        );
        let mut chain = queue.pop(&driver.memory).unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (11, 8));
        assert_eq!(chain.read_array::<5>(), Some(*b"hello"));
        assert_eq!(chain.read_array::<6>(), Some(*b" there"));
        assert_eq!(chain.read_array::<1>(), None);
        assert_eq!(chain.write(b"answer too long"), 8);
        queue.complete(&driver.memory, chain).unwrap();
        assert_eq!(driver.take_used(0).unwrap(), b"answer t");
        assert!(queue.pop(&driver.memory).unwrap().is_none());
    }

    #[test]
    fn buffers_split_at_any_byte() {
        let driver = Driver::new(16);
        let mut queue = driver.queue(&driver.rings[0]);
        for cut in 0..=7 {
            driver.put(0, &[Part::Read(b"abc"), Part::Read(b"defg")]);
            let mut chain = queue.pop(&driver.memory).unwrap().unwrap();
            let mut tail = chain.readable.split_tail(cut);
            let mut bytes = [0; 7];
            let at = chain.readable.copy_to(&mut bytes);
            assert_eq!((at, tail.len()), (7 - cut, cut));
            tail.copy_to(&mut bytes[at..]);
            assert_eq!(&bytes, b"abcdefg");
        }
    }

    #[test]
    fn an_impossible_ring_index_breaks_the_queue_instead_of_hanging_it() {
        let driver = Driver::new(16);
        let mut queue = driver.queue(&driver.rings[0]);
        driver.set_avail_index(0, 1000);
        assert!(matches!(queue.pop(&driver.memory), Err(Broken::Ring(_))));
    }

    #[test]
    fn buffers_outside_memory_and_loops_are_refused_or_end() {
        let driver = Driver::new(16);
        let mut queue = driver.queue(&driver.rings[0]);
        driver.put_raw(0, &[(u64::MAX - 10, 100, 0, 0)]);
        assert!(queue.pop(&driver.memory).is_err());
        driver.put_raw(0, &[(0x1_0000_0000_0000, 16, 2, 0)]);
        assert!(queue.pop(&driver.memory).is_err());
        // A descriptor that points to itself.
        driver.put_raw(0, &[(0x8000, 16, 1, 0)]);
        let chain = queue.pop(&driver.memory).unwrap().unwrap();
        assert!(chain.readable.slices().len() <= 16);
    }

    #[test]
    fn readable_after_writable_is_refused() {
        let driver = Driver::new(16);
        let mut queue = driver.queue(&driver.rings[0]);
        driver.put(0, &[Part::Write(4), Part::Read(b"late")]);
        assert!(matches!(
            queue.pop(&driver.memory),
            Err(Broken::Chain { .. })
        ));
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_none() {
        let driver = Driver::new(16);
        let mut queue = driver.queue(&driver.rings[0]);
        queue.vector = 3;
        driver.put(0, &[Part::Write(4)]);
        let chain = queue.pop(&driver.memory).unwrap().unwrap();
        queue.complete(&driver.memory, chain).unwrap();
        assert_eq!(queue.wants_interrupt(&driver.memory).unwrap(), Some(3));
        driver.set_avail_flags(0, 1);
        assert_eq!(queue.wants_interrupt(&driver.memory).unwrap(), None);
    }
}
