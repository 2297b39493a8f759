//! A UEFI variable as it is measured: UEFI_VARIABLE_DATA of the PC Client Platform Firmware Profile, 10.2.6.

use crate::wire::Reader;

/// Vendor of `SecureBoot`, `PK` and `KEK`: EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c, as its bytes lie in memory
/// (UEFI Specification, 3.3 and appendix A).
pub const GLOBAL: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];
/// Vendor of `db` and `dbx`: EFI_IMAGE_SECURITY_DATABASE_GUID, d719b2cb-3d3a-4596-a3bc-dad00e67656f (UEFI Specification, 32.6.1).
pub const IMAGE_SECURITY: [u8; 16] = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
];

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable<'a> {
    /// GUID of whoever defines the name.
    pub vendor: [u8; 16],
    /// The name, whole. It may hold anything, characters that move a cursor included.
    pub name: String,
    /// The value; empty if the variable is not set.
    pub value: &'a [u8],
}

impl<'a> Variable<'a> {
    /// Takes an event's data apart; `None` if it is anything else, or longer.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let vendor = reader.array("vendor").ok()?;
        let name_units = usize::try_from(reader.le64("name's length").ok()?).ok()?;
        let size = usize::try_from(reader.le64("value's length").ok()?).ok()?;
        let (units, []) = reader
            .bytes("name", name_units.checked_mul(2)?)
            .ok()?
            .as_chunks::<2>()
        else {
            return None;
        };
        let name = char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit)))
            .collect::<Result<_, _>>()
            .ok()?;
        let value = reader.bytes("value", size).ok()?;
        reader.end("variable").ok()?;
        Some(Self {
            vendor,
            name,
            value,
        })
    }
}
