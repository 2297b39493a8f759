//! Block device (virtio 1.2, 5.2) with one queue.
//!
//! [`request`] reads what the driver asks for and judges it without touching anything; this file carries it out on an
//! [`Image`]. Requests are carried out one after the other on the disks' own thread, so that a slow disk holds up other
//! disks at most.

mod image;
pub mod request;

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};

use super::queue::{Broken, Buffers, Chain};
use super::{Counters, Device, Io, Kind, TURN};
pub use image::{HeaderError, Image, ImageError, check_header, open};
use request::{Geometry, HEADER_SIZE, RANGE_SIZE, Request, SECTOR};

/// Entries of the queue, and with it requests under way.
const QUEUE_SIZE: u16 = 256;
/// Data buffers in one request at most: the queue's size less header and status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Ranges in one discard or write-zeroes request at most.
const RANGES: u32 = 16;
/// Sectors in one such range at most: 1 GiB.
const RANGE_SECTORS: u32 = 1 << 21;
/// Length of a serial, zero-padded.
const SERIAL_LENGTH: usize = 20;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const FAILED: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A block device.
pub struct Block {
    image: Box<dyn Image>,
    geometry: Geometry,
    serial: [u8; SERIAL_LENGTH],
    config: [u8; 60],
    counters: Arc<Counters>,
}

impl Block {
    /// A device on `image`. `serial` is cut at 20 bytes.
    pub fn new(
        image: Box<dyn Image>,
        readonly: bool,
        serial: &str,
        counters: Arc<Counters>,
    ) -> Self {
        let mut padded = [0; SERIAL_LENGTH];
        for (to, from) in padded.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        // A last piece that is no whole sector cannot be reached.
        let size = image.size() / SECTOR * SECTOR;
        Block {
            image,
            geometry: Geometry { size, readonly },
            serial: padded,
            config: config_space(size / SECTOR),
            counters,
        }
    }

    /// Carries out the request in `chain` and writes its status.
    fn serve(&mut self, chain: &mut Chain<'_>) {
        // The last byte of the chain is the status, wherever the buffers end (5.2.6).
        let mut status = chain.writable.split_tail(1);
        if status.is_empty() {
            return;
        }
        let answer = match chain.read_array::<HEADER_SIZE>() {
            Some(header) => self.carry_out(request::parse(&header), chain),
            None => FAILED,
        };
        // The used length counts from the start; a short answer leaves a gap before the status (2.7.8.2 allows it to
        // be too small, not too large).
        let unused = chain.writable.len();
        chain.writable.skip(unused);
        status.copy_from(&[answer]);
        if unused == 0 {
            chain.add_written(1);
        }
    }

    fn carry_out(&mut self, request: Request, chain: &mut Chain<'_>) -> u8 {
        let result = match request {
            Request::Read(offset) => {
                let length = chain.writable.len();
                if !self.geometry.contains(offset, length as u64) {
                    return FAILED;
                }
                self.image.read(&chain.writable, offset).map(|()| {
                    chain.writable.skip(length);
                    chain.add_written(length);
                    self.counters.add_rx(length as u64);
                })
            }
            Request::Write(offset) => {
                let length = chain.readable.len() as u64;
                if self.geometry.readonly || !self.geometry.contains(offset, length) {
                    return FAILED;
                }
                self.image
                    .write(&chain.readable, offset)
                    .map(|()| self.counters.add_tx(length))
            }
            Request::Flush => self.image.flush(),
            Request::GetId => {
                chain.write(&self.serial);
                Ok(())
            }
            Request::Discard | Request::WriteZeroes => {
                return self.ranges(request, &mut chain.readable);
            }
            Request::Unknown(_) => return UNSUPPORTED,
        };
        if result.is_ok() { OK } else { FAILED }
    }

    fn ranges(&mut self, request: Request, ranges: &mut Buffers<'_>) -> u8 {
        let length = ranges.len();
        if self.geometry.readonly
            || !length.is_multiple_of(RANGE_SIZE)
            || length / RANGE_SIZE > RANGES as usize
        {
            return FAILED;
        }
        let mut bytes = [0; RANGE_SIZE];
        while ranges.copy_to(&mut bytes) == RANGE_SIZE {
            let Some(range) = request::parse_range(&bytes) else {
                return UNSUPPORTED;
            };
            if range.length > u64::from(RANGE_SECTORS) * SECTOR
                || !self.geometry.contains(range.offset, range.length)
            {
                return FAILED;
            }
            let result = match request {
                _ if range.length == 0 => Ok(()),
                Request::Discard => self.image.discard(range.offset, range.length),
                _ => self
                    .image
                    .write_zeroes(range.offset, range.length, range.unmap),
            };
            if result.is_err() {
                return FAILED;
            }
        }
        OK
    }
}

/// Device configuration (5.2.4), 60 bytes up to and including write-zeroes.
fn config_space(sectors: u64) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = config.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &sectors.to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(36, &RANGE_SECTORS.to_le_bytes());
    put(40, &RANGES.to_le_bytes());
    // Discards need no alignment, but pay off in pages.
    put(44, &8_u32.to_le_bytes());
    put(48, &RANGE_SECTORS.to_le_bytes());
    put(52, &RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let features =
            1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        if self.geometry.readonly {
            features | 1 << VIRTIO_BLK_F_RO
        } else {
            features | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64, _io: &mut Io<'_>) -> Result<(), Broken> {
        Ok(())
    }

    fn queue_ready(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut left = TURN;
        while let Some(mut chain) = io.pop(queue)? {
            self.serve(&mut chain);
            io.complete(queue, chain)?;
            // At once and not after the last one: the driver may be waiting for just this.
            io.signal(queue)?;
            left -= 1;
            if left == 0 {
                io.again(queue);
                break;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn finish(&mut self) {
        // There is nobody left to tell.
        let _ = self.image.flush();
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
