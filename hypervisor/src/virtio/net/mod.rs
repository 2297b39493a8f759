//! Network card (virtio 1.2, 5.1) with one queue pair, on a tap.
//!
//! Frames travel with their virtio-net header: checksums and segmentation are left to whoever does them best. A frame
//! towards the guest is read into one buffer and spread over as many chains as it needs (mergeable buffers), so that
//! the guest can offer small ones.

mod tap;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};

use super::queue::{Broken, Chain};
use super::{Counters, Device, Io, Kind, SourceRegistrar, TURN};
use crate::event_loop::{EDGE, Events, READABLE};
pub use tap::{HEADER_SIZE, Tap, TapError};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const TAP: u32 = 0;
/// The largest frame with its header: 64 KiB of IP packet, Ethernet header.
const FRAME_MAX: usize = HEADER_SIZE + 14 + 65_535;
/// Where the header counts the chains that a frame was spread over.
const NUM_BUFFERS: usize = 10;

/// Hardware address and MTU of a card.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Hardware address.
    pub mac: [u8; 6],
    /// MTU offered to the guest.
    pub mtu: Option<u16>,
}

/// A network card.
pub struct Net {
    tap: Tap,
    config: [u8; 12],
    has_mtu: bool,
    mergeable: bool,
    /// A frame that was read and not yet delivered, and its length; 0: none.
    frame: Box<[u8]>,
    waiting: usize,
    counters: Arc<Counters>,
}

impl Net {
    /// A card on `tap`.
    pub fn new(tap: Tap, settings: &Settings, counters: Arc<Counters>) -> Self {
        let mut config = [0; 12];
        let [m0, m1, m2, m3, m4, m5] = settings.mac;
        let [t0, t1] = settings.mtu.unwrap_or(0).to_le_bytes();
        // mac, status (2), queue pairs (2), mtu
        config.copy_from_slice(&[m0, m1, m2, m3, m4, m5, 0, 0, 1, 0, t0, t1]);
        Net {
            tap,
            config,
            has_mtu: settings.mtu.is_some(),
            mergeable: false,
            frame: Box::default(),
            waiting: 0,
            counters,
        }
    }

    /// Moves frames from the tap to the guest until one of them has no more.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        if self.frame.is_empty() {
            // Zeroed pages come from the system untouched: memory is used as far as frames are long.
            self.frame = vec![0; FRAME_MAX].into_boxed_slice();
        }
        for turn in 0.. {
            if turn == TURN {
                io.again(RECEIVE);
                break;
            }
            if self.waiting == 0 {
                match self.tap.receive(&mut self.frame) {
                    Ok(count) if count > HEADER_SIZE => self.waiting = count,
                    // Not a frame; and an empty read says that nothing is left.
                    Ok(0) => break,
                    Ok(_) => continue,
                    // WouldBlock; or the interface is down, and an edge comes when it is up again.
                    Err(_) => break,
                }
            }
            if !self.deliver(io)? {
                break;
            }
            self.counters.add_rx((self.waiting - HEADER_SIZE) as u64);
            self.waiting = 0;
        }
        io.signal(RECEIVE)
    }

    /// Puts the waiting frame into chains; false if the guest has too few at the moment.
    fn deliver(&mut self, io: &mut Io<'_>) -> Result<bool, Broken> {
        let mut chains: Vec<Chain<'_>> = Vec::new();
        let mut room = 0;
        while room < self.waiting {
            if !self.mergeable && !chains.is_empty() {
                // The one chain is too small. The driver is wrong; the frame is lost, the card is not.
                break;
            }
            let Some(chain) = io.pop(RECEIVE)? else {
                for _ in chains {
                    io.unpop(RECEIVE);
                }
                return Ok(false);
            };
            room += chain.writable.len();
            chains.push(chain);
        }
        let count = chains.len() as u16;
        if let Some(place) = self.frame.get_mut(NUM_BUFFERS..NUM_BUFFERS + 2) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        let mut rest = self.frame.get(..self.waiting).unwrap_or_default();
        for mut chain in chains {
            let done = chain.write(rest);
            rest = rest.get(done..).unwrap_or_default();
            io.complete(RECEIVE, chain)?;
        }
        Ok(true)
    }

    fn transmit(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut left = TURN;
        while let Some(chain) = io.pop(TRANSMIT)? {
            let length = chain.readable.len();
            if length > HEADER_SIZE && length <= FRAME_MAX {
                // A frame that the host does not take is lost, as on any wire.
                if self.tap.send(&chain.readable.iovecs()).is_ok() {
                    self.counters.add_tx((length - HEADER_SIZE) as u64);
                }
            }
            io.complete(TRANSMIT, chain)?;
            left -= 1;
            if left == 0 {
                io.again(TRANSMIT);
                break;
            }
        }
        io.signal(TRANSMIT)
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if self.has_mtu {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn attach(&mut self, registrar: &SourceRegistrar) -> io::Result<()> {
        registrar.add(&self.tap, TAP, READABLE | EDGE)
    }

    fn activate(&mut self, features: u64, io: &mut Io<'_>) -> Result<(), Broken> {
        self.mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        // If the host refuses, frames come finished and small, which every guest takes.
        let _ = self.tap.set_offloads(features);
        self.receive(io)
    }

    fn queue_ready(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        match queue {
            RECEIVE => self.receive(io),
            _ => self.transmit(io),
        }
    }

    fn source_ready(
        &mut self,
        _token: u32,
        _events: Events,
        io: &mut Io<'_>,
    ) -> Result<(), Broken> {
        self.receive(io)
    }

    fn reset(&mut self) {
        self.waiting = 0;
        let _ = self.tap.set_offloads(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::{Part, Rig};
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    /// A card on one end of a datagram pair: like a tap, one frame a read.
    fn rig() -> (UnixDatagram, Rig<Net>) {
        let (wire, card) = UnixDatagram::pair().unwrap();
        card.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        let settings = Settings {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: Some(1400),
        };
        let tap = Tap::from_file(File::from(OwnedFd::from(card)));
        (wire, Rig::new(Net::new(tap, &settings, Arc::default())))
    }

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0; HEADER_SIZE];
        frame.extend((0..length).map(|index| index as u8));
        frame
    }

    #[test]
    fn a_long_frame_is_spread_over_small_chains() {
        let (wire, mut rig) = rig();
        for _ in 0..3 {
            rig.driver.put(RECEIVE, &[Part::Write(1000)]);
        }
        wire.send(&frame(2500)).unwrap();
        rig.with(|net, io| net.source_ready(TAP, READABLE, io))
            .unwrap();
        let mut received = Vec::new();
        while let Some(part) = rig.driver.take_used(RECEIVE) {
            received.extend_from_slice(&part);
        }
        assert_eq!(received[NUM_BUFFERS..HEADER_SIZE], [3, 0]);
        assert_eq!(received[HEADER_SIZE..], frame(2500)[HEADER_SIZE..]);
        assert_eq!(rig.device.counters.read().rx_bytes, 2500);
    }

    #[test]
    fn a_frame_waits_until_the_guest_has_room_for_all_of_it() {
        let (wire, mut rig) = rig();
        rig.driver.put(RECEIVE, &[Part::Write(1000)]);
        wire.send(&frame(1500)).unwrap();
        rig.with(|net, io| net.source_ready(TAP, READABLE, io))
            .unwrap();
        assert_eq!(rig.driver.take_used(RECEIVE), None);
        rig.driver.put(RECEIVE, &[Part::Write(1000)]);
        rig.ring(RECEIVE).unwrap();
        let mut received = rig.driver.take_used(RECEIVE).unwrap();
        received.extend(rig.driver.take_used(RECEIVE).unwrap());
        assert_eq!(received.len(), HEADER_SIZE + 1500);
    }

    #[test]
    fn frames_from_the_guest_leave_whole_and_nonsense_does_not() {
        let (wire, mut rig) = rig();
        let sent = frame(600);
        rig.driver.put(
            TRANSMIT,
            &[
                Part::Read(&sent[..HEADER_SIZE]),
                Part::Read(&sent[HEADER_SIZE..]),
            ],
        );
        rig.driver.put(TRANSMIT, &[Part::Read(b"short")]);
        rig.ring(TRANSMIT).unwrap();
        let mut buffer = [0; 2000];
        let count = wire.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], &sent);
        assert!(wire.recv(&mut buffer).is_err());
        assert!(
            rig.driver.take_used(TRANSMIT).is_some() && rig.driver.take_used(TRANSMIT).is_some()
        );
    }

    #[test]
    fn the_guest_reads_its_address_and_mtu() {
        let (_wire, rig) = rig();
        assert_eq!(rig.device.config()[..6], [2, 0, 0, 0, 0, 1]);
        assert_eq!(rig.device.config()[10..], 1400_u16.to_le_bytes());
    }
}
