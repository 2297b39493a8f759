//! Requests of a block driver (virtio 1.2, 5.2.6): what the bytes say, and whether it can be done at all.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

/// Unit of all positions and lengths in requests, in bytes.
pub const SECTOR: u64 = 512;
/// Size of a request's header in bytes.
pub const HEADER_SIZE: usize = 16;
/// Size of one range of a discard or write-zeroes request, in bytes.
pub const RANGE_SIZE: usize = 16;

const UNMAP: u32 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read from this byte offset on.
    Read(u64),
    /// Write from this byte offset on.
    Write(u64),
    /// Make everything durable.
    Flush,
    /// Tell the serial.
    GetId,
    /// Ranges follow.
    Discard,
    /// Ranges follow.
    WriteZeroes,
    /// Something else.
    Unknown(u32),
}

/// A range that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Space may be given back.
    pub unmap: bool,
}

/// A disk as far as requests are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Size in bytes, a multiple of [`SECTOR`].
    pub size: u64,
    /// Writing is not allowed.
    pub readonly: bool,
}

/// Reads a header. A sector number beyond all disks becomes an offset beyond all disks.
pub fn parse(header: &[u8; HEADER_SIZE]) -> Request {
    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = *header;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let offset = sector.saturating_mul(SECTOR);
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => Request::Read(offset),
        VIRTIO_BLK_T_OUT => Request::Write(offset),
        VIRTIO_BLK_T_FLUSH => Request::Flush,
        VIRTIO_BLK_T_GET_ID => Request::GetId,
        VIRTIO_BLK_T_DISCARD => Request::Discard,
        VIRTIO_BLK_T_WRITE_ZEROES => Request::WriteZeroes,
        other => Request::Unknown(other),
    }
}

/// Reads a range of a discard or write-zeroes request; `None` if it asks for something that does not exist.
pub fn parse_range(bytes: &[u8; RANGE_SIZE]) -> Option<Range> {
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = *bytes;
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    if flags & !UNMAP != 0 {
        return None;
    }
    Some(Range {
        offset: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).checked_mul(SECTOR)?,
        length: u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR,
        unmap: flags & UNMAP != 0,
    })
}

impl Geometry {
    /// Whether `length` bytes from `offset` on are whole sectors of this disk.
    pub fn contains(&self, offset: u64, length: u64) -> bool {
        length.is_multiple_of(SECTOR)
            && offset
                .checked_add(length)
                .is_some_and(|end| end <= self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_sectors_of_the_disk_are_in_it() {
        let disk = Geometry {
            size: 4096,
            readonly: false,
        };
        for (offset, length, inside) in [
            (0, 4096, true),
            (4096, 0, true),
            (512, 3584, true),
            (512, 4096, false),
            (0, 511, false),
            (u64::MAX, 512, false),
            (u64::MAX - 511, 512, false),
        ] {
            assert_eq!(disk.contains(offset, length), inside, "{offset} {length}");
        }
    }

    #[test]
    fn headers_and_ranges_are_read_to_the_letter() {
        let mut header = [0; HEADER_SIZE];
        header[0] = 1;
        header[8] = 3;
        assert_eq!(parse(&header), Request::Write(1536));
        header[8..].fill(0xff);
        assert_eq!(parse(&header), Request::Write(u64::MAX));
        header[1] = 1;
        assert_eq!(parse(&header), Request::Unknown(257));

        let mut range = [0; RANGE_SIZE];
        (range[0], range[8], range[12]) = (2, 4, 1);
        assert_eq!(
            parse_range(&range),
            Some(Range {
                offset: 1024,
                length: 2048,
                unmap: true
            })
        );
        range[12] = 2;
        assert_eq!(parse_range(&range), None);
        range[12] = 0;
        range[..8].fill(0xff);
        assert_eq!(parse_range(&range), None);
    }
}
