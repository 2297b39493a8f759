//! Packet headers of virtio sockets (virtio 1.2, 5.10.6).

/// Size of a header in bytes.
pub const HEADER_SIZE: usize = 44;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// The only type of socket that the device knows.
pub const STREAM: u16 = 1;

/// The sender will not receive any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender will not send any more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Open a connection.
    Request,
    /// The connection is open.
    Response,
    /// There is no (such) connection any more.
    Reset,
    /// One or both directions end.
    Shutdown,
    /// Data.
    Data,
    /// Only the credit fields matter.
    CreditUpdate,
    /// Please send a credit update.
    CreditRequest,
    /// Not in the specification.
    Unknown(u16),
}

impl From<u16> for Operation {
    fn from(number: u16) -> Self {
        match number {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            other => Operation::Unknown(other),
        }
    }
}

impl From<Operation> for u16 {
    fn from(operation: Operation) -> u16 {
        match operation {
            Operation::Request => 1,
            Operation::Response => 2,
            Operation::Reset => 3,
            Operation::Shutdown => 4,
            Operation::Data => 5,
            Operation::CreditUpdate => 6,
            Operation::CreditRequest => 7,
            Operation::Unknown(number) => number,
        }
    }
}

/// A packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender's context id.
    pub source_cid: u64,
    /// Receiver's context id.
    pub destination_cid: u64,
    /// Sender's port.
    pub source_port: u32,
    /// Receiver's port.
    pub destination_port: u32,
    /// Bytes of data that follow.
    pub length: u32,
    /// Type of socket.
    pub kind: u16,
    /// What it is for.
    pub operation: Operation,
    /// For [`Operation::Shutdown`]: which directions.
    pub flags: u32,
    /// Credit: size of the sender's receive buffer, in bytes.
    pub buffer: u32,
    /// Credit: bytes that the sender has taken out of that buffer so far, modulo 2^32.
    pub forwarded: u32,
}

impl Header {
    /// Reads a header. Every content is one; whether it makes sense is for the reader to judge.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        Header {
            source_cid: u64::from_le_bytes(part(bytes, 0)),
            destination_cid: u64::from_le_bytes(part(bytes, 8)),
            source_port: u32::from_le_bytes(part(bytes, 16)),
            destination_port: u32::from_le_bytes(part(bytes, 20)),
            length: u32::from_le_bytes(part(bytes, 24)),
            kind: u16::from_le_bytes(part(bytes, 28)),
            operation: u16::from_le_bytes(part(bytes, 30)).into(),
            flags: u32::from_le_bytes(part(bytes, 32)),
            buffer: u32::from_le_bytes(part(bytes, 36)),
            forwarded: u32::from_le_bytes(part(bytes, 40)),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            if let Some((place, after)) =
                std::mem::take(&mut rest).split_at_mut_checked(field.len())
            {
                place.copy_from_slice(field);
                rest = after;
            }
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.destination_port.to_le_bytes());
        put(&self.length.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&u16::from(self.operation).to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buffer.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        bytes
    }
}

fn part<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    let mut part = [0; N];
    if let Some(source) = bytes.get(at..at + N) {
        part.copy_from_slice(source);
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        let bytes: [u8; HEADER_SIZE] = std::array::from_fn(|index| index as u8 * 3);
        let header = Header::parse(&bytes);
        assert_eq!(header.encode(), bytes);
        assert_eq!(header.source_port, u32::from_le_bytes([48, 51, 54, 57]));
        assert_eq!(
            header.operation,
            Operation::Unknown(u16::from_le_bytes([90, 93]))
        );
    }
}
