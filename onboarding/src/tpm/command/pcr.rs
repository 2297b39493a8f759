//! TPM2_PCR_Read and TPM2_PCR_Extend, on the SHA-256 bank.

use super::{Auth, Command, CommandCode, Handle};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{Reader, WireError, Writer};

/// TPM_ALG_SHA256.
const SHA256: u16 = 0x000b;
/// A TPML_DIGEST holds at most eight digests, so a read gives at most eight PCRs.
const AT_ONCE: u32 = 8;
/// How often to start over because PCRs changed between two reads.
const ATTEMPTS: usize = 8;

/// A set of the PCRs 0 to 23 of the SHA-256 bank, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PcrSelection(pub u32);

impl PcrSelection {
    /// PCRs 0 to 15: those that a boot leaves its marks in.
    pub const BOOT: Self = Self(0xffff);

    /// The PCRs of the set, ascending.
    pub fn indexes(self) -> impl Iterator<Item = u32> {
        (0..24).filter(move |index| self.0 & (1 << index) != 0)
    }

    /// Appends a TPML_PCR_SELECTION of one bank with three bytes of bits.
    pub(crate) fn write(self, writer: &mut Writer) {
        let [low, middle, high, _] = self.0.to_le_bytes();
        writer.u32(1).u16(SHA256).u8(3).bytes(&[low, middle, high]);
    }

    /// Reads a TPML_PCR_SELECTION that speaks of the SHA-256 bank alone; an empty list is the empty set.
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.be32("number of PCR banks")? {
            0 => Ok(Self(0)),
            1 => {
                let bank = reader.be16("PCR bank")?;
                if bank != SHA256 {
                    return Err(WireError::Value {
                        field: "PCR bank",
                        value: bank.into(),
                    });
                }
                let size = reader.u8("size of PCR selection")?;
                if size != 3 {
                    return Err(WireError::Value {
                        field: "size of PCR selection",
                        value: size.into(),
                    });
                }
                let [low, middle, high] = reader.array("PCR selection")?;
                Ok(Self(u32::from_le_bytes([low, middle, high, 0])))
            }
            other => Err(WireError::Value {
                field: "number of PCR banks",
                value: other.into(),
            }),
        }
    }
}

impl Tpm {
    /// Reads PCRs of the SHA-256 bank, ascending. All values are of one moment.
    ///
    /// # Errors
    /// [`TpmError`]; `Malformed` if the TPM has no SHA-256 bank, or the PCRs kept changing while they were read.
    pub fn pcr_read(&self, pcrs: PcrSelection) -> Result<Vec<(u32, [u8; 32])>, TpmError> {
        let malformed = |source| TpmError::Malformed {
            command: CommandCode::PCR_READ,
            handle: None,
            source,
        };
        'again: for _ in 0..ATTEMPTS {
            let mut values = vec![];
            let mut moment = None;
            let mut left = pcrs.0 & 0x00ff_ffff;
            while left != 0 {
                let ask = PcrSelection(
                    PcrSelection(left)
                        .indexes()
                        .take(AT_ONCE as usize)
                        .fold(0, |set, index| set | 1 << index),
                );
                let (counter, got, digests) = self.pcr_read_some(ask)?;
                if moment.is_some_and(|moment| moment != counter) {
                    continue 'again;
                }
                moment = Some(counter);
                if got.0 == 0 || got.0 & !ask.0 != 0 || got.indexes().count() != digests.len() {
                    return Err(malformed(WireError::Value {
                        field: "PCRs of the SHA-256 bank",
                        value: got.0.into(),
                    }));
                }
                values.extend(got.indexes().zip(digests));
                left &= !got.0;
            }
            return Ok(values);
        }
        Err(malformed(WireError::Value {
            field: "PCR update counter",
            value: ATTEMPTS as u64,
        }))
    }

    fn pcr_read_some(
        &self,
        pcrs: PcrSelection,
    ) -> Result<(u32, PcrSelection, Vec<[u8; 32]>), TpmError> {
        let command = Command::new(CommandCode::PCR_READ).parameters(|p| pcrs.write(p));
        self.run(&command, |_, reader| {
            let counter = reader.be32("PCR update counter")?;
            let got = PcrSelection::read(reader)?;
            let count = reader.be32("number of PCR values")?;
            if count > AT_ONCE {
                return Err(WireError::Limit {
                    field: "number of PCR values",
                    size: count.into(),
                    limit: AT_ONCE as usize,
                });
            }
            let mut digests = vec![];
            for _ in 0..count {
                let mut inner = Reader::new(reader.sized("PCR value", 32)?);
                digests.push(inner.array("PCR value")?);
            }
            Ok((counter, got, digests))
        })
    }

    /// Extends a PCR of the SHA-256 bank with a digest.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn pcr_extend(&self, index: u32, digest: &[u8; 32]) -> Result<(), TpmError> {
        let command = Command::new(CommandCode::PCR_EXTEND)
            .with(Handle(index), Auth::Empty)
            .parameters(|p| {
                p.u32(1).u16(SHA256).bytes(digest);
            });
        self.run_silent(&command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_has_a_bit_a_pcr_lowest_first() {
        let mut writer = Writer::new();
        PcrSelection(1 | 1 << 9 | 1 << 23).write(&mut writer);
        assert_eq!(
            writer.as_slice(),
            [0, 0, 0, 1, 0, 0x0b, 3, 0x01, 0x02, 0x80]
        );
        assert_eq!(
            PcrSelection::read(&mut Reader::new(writer.as_slice())),
            Ok(PcrSelection(1 | 1 << 9 | 1 << 23))
        );
        assert_eq!(PcrSelection::BOOT.indexes().count(), 16);
    }
}
