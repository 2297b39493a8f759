//! The last bytes of an endless stream, addressed by their position in it.

use std::collections::VecDeque;

/// Keeps the last `limit` bytes.
pub struct Ring {
    bytes: VecDeque<u8>,
    limit: usize,
    /// Position of the first byte kept.
    start: u64,
}

impl Ring {
    /// An empty ring; memory is taken as bytes come.
    pub fn new(limit: usize) -> Self {
        Ring {
            bytes: VecDeque::new(),
            limit,
            start: 0,
        }
    }

    /// Appends to the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        let surplus = bytes.len().saturating_sub(self.limit);
        let bytes = bytes.get(surplus..).unwrap_or_default();
        let drop = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..drop);
        self.bytes.extend(bytes);
        self.start += (surplus + drop) as u64;
    }

    /// Position of the oldest byte kept.
    pub fn oldest(&self) -> u64 {
        self.start
    }

    /// A piece of the stream from `position` on, or from the oldest byte if that is gone, and where it begins. Empty
    /// only if there is nothing newer.
    pub fn since(&self, position: u64) -> (u64, &[u8]) {
        let from = position.max(self.start);
        let skip = (from - self.start) as usize;
        let (front, back) = self.bytes.as_slices();
        let piece = match front.get(skip..) {
            Some(piece) if !piece.is_empty() => piece,
            _ => back
                .get(skip.saturating_sub(front.len())..)
                .unwrap_or_default(),
        };
        (from, piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ring: &Ring, mut position: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let (from, piece) = ring.since(position);
            if piece.is_empty() {
                return bytes;
            }
            bytes.extend_from_slice(piece);
            position = from + piece.len() as u64;
        }
    }

    #[test]
    fn positions_stay_true_while_old_bytes_go() {
        let mut ring = Ring::new(8);
        ring.push(b"abcdef");
        assert_eq!(all(&ring, 2), b"cdef");
        ring.push(b"ghij");
        assert_eq!(ring.oldest(), 2);
        assert_eq!(all(&ring, 0), b"cdefghij");
        assert_eq!(all(&ring, 7), b"hij");
        ring.push(b"0123456789AB");
        assert_eq!(ring.oldest(), 14);
        assert_eq!(all(&ring, 3), b"456789AB");
        assert_eq!(all(&ring, 22), b"");
    }
}
