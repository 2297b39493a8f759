//! How a TPM and a firmware write things down: fixed-width numbers, sized buffers, and the few structures that both
//! the device and the verifier have to read.
//!
//! The reader is strict and bounded. Every length is checked against what is left and against a limit before anything
//! is taken, every error says which field was being read, and nothing indexes or panics, because the bytes come from
//! outside on both sides: a TPM on a bus, a firmware's log, a device that a controller does not trust yet.
//!
//! There is a published marshaller for the whole of TPM 2.0 (`tpm2-protocol`). It covers a hundred commands on top of
//! unsafe casts into byte views and fixed-capacity buffers; this crate needs some twenty commands and two structures,
//! which fit into a few hundred lines without any unsafe code.
//!
//! Source for the structures: TCG TPM 2.0 Library, part 2 (Structures).

mod public;
mod signature;

pub use public::{
    Attributes, Curve, EccPoint, EccScheme, Name, Public, PublicKind, RsaScheme, Symmetric,
};
pub(crate) use signature::write_ecdsa_sha256;
pub use signature::{EcdsaSignature, ecdsa_to_der};

/// Why bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end in the middle of a field.
    #[error("{field}: {needed} bytes needed, {left} left")]
    Short {
        /// What was being read.
        field: &'static str,
        /// Bytes that the field takes.
        needed: usize,
        /// Bytes that were there.
        left: usize,
    },
    /// Bytes are left over behind the last field.
    #[error("{left} bytes left over behind {field}")]
    Trailing {
        /// The structure that had ended.
        field: &'static str,
        /// Bytes left over.
        left: usize,
    },
    /// A length or a count is above what this field may have.
    #[error("{field}: {size} is above the limit of {limit}")]
    Limit {
        /// What was being read.
        field: &'static str,
        /// The length or count found.
        size: u64,
        /// The most that is accepted.
        limit: usize,
    },
    /// A value that the specification does not allow here, or that this crate has no use for.
    #[error("{field}: unexpected value {value:#x}")]
    Value {
        /// What was being read.
        field: &'static str,
        /// The value found.
        value: u64,
    },
}

/// Takes fields off the front of a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            taken: 0,
        }
    }

    /// Bytes not yet taken.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Bytes taken so far: the offset of the next field.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.taken
    }

    /// Takes `count` bytes.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer are left.
    pub fn bytes(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(count) {
            Some((head, tail)) => {
                self.rest = tail;
                self.taken += count;
                Ok(head)
            }
            None => Err(WireError::Short {
                field,
                needed: count,
                left: self.rest.len(),
            }),
        }
    }

    /// Takes exactly `N` bytes.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.rest = tail;
                self.taken += N;
                Ok(*head)
            }
            None => Err(WireError::Short {
                field,
                needed: N,
                left: self.rest.len(),
            }),
        }
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// [`WireError::Short`] if none is left.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// Takes a big-endian 16-bit number, as TPMs write them.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer than 2 bytes are left.
    pub fn be16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Takes a big-endian 32-bit number.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer than 4 bytes are left.
    pub fn be32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// Takes a big-endian 64-bit number.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer than 8 bytes are left.
    pub fn be64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Takes a little-endian 16-bit number, as firmwares write them.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer than 2 bytes are left.
    pub fn le16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Takes a little-endian 32-bit number.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer than 4 bytes are left.
    pub fn le32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// Takes a little-endian 64-bit number.
    ///
    /// # Errors
    /// [`WireError::Short`] if fewer than 8 bytes are left.
    pub fn le64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Takes a TPM2B: a big-endian 16-bit length of at most `limit`, then that many bytes.
    ///
    /// # Errors
    /// [`WireError::Limit`] if the length is above `limit`, [`WireError::Short`] if the bytes end first.
    pub fn sized(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let size = usize::from(self.be16(field)?);
        if size > limit {
            return Err(WireError::Limit {
                field,
                size: size as u64,
                limit,
            });
        }
        self.bytes(field, size)
    }

    /// Says that the structure `field` ends here.
    ///
    /// # Errors
    /// [`WireError::Trailing`] if bytes are left over.
    pub fn end(self, field: &'static str) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Trailing {
                field,
                left: self.rest.len(),
            })
        }
    }
}

/// Appends fields to a byte vector, in a TPM's byte order.
#[derive(Debug, Clone, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Appends a 16-bit number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a 32-bit number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a 64-bit number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// Appends a TPM2B: length and bytes. What does not fit into a 16-bit length is cut to nothing that a TPM would
    /// accept: the length says 65535, and the TPM refuses the command by its size.
    pub fn sized(&mut self, value: &[u8]) -> &mut Self {
        self.u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.bytes(value)
    }

    /// The bytes written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Gives the bytes away.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_takes_fields_in_order_and_notices_what_is_left() {
        let mut reader = Reader::new(&[1, 0, 2, 0, 3, 9, 8, 7, 0xff]);
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.be16("b"), Ok(2));
        assert_eq!(reader.sized("c", 3), Ok(&[9, 8, 7][..]));
        assert_eq!(reader.offset(), 8);
        assert_eq!(
            reader.end("all"),
            Err(WireError::Trailing {
                field: "all",
                left: 1
            })
        );
    }

    #[test]
    fn a_length_above_the_limit_or_the_end_is_refused() {
        assert_eq!(
            Reader::new(&[0, 4, 1, 2, 3, 4]).sized("c", 3),
            Err(WireError::Limit {
                field: "c",
                size: 4,
                limit: 3
            })
        );
        assert_eq!(
            Reader::new(&[0, 4, 1, 2, 3]).sized("c", 4),
            Err(WireError::Short {
                field: "c",
                needed: 4,
                left: 3
            })
        );
        assert!(Reader::new(&[1, 2, 3]).be32("n").is_err());
    }

    #[test]
    fn byte_orders_differ() {
        assert_eq!(Reader::new(&[1, 2, 3, 4]).be32("n"), Ok(0x0102_0304));
        assert_eq!(Reader::new(&[1, 2, 3, 4]).le32("n"), Ok(0x0403_0201));
    }
}
