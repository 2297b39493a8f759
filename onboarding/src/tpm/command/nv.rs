//! TPM2_NV_ReadPublic and TPM2_NV_Read: what the TPM's maker left in it, such as the EK certificate.

use super::{Auth, Command, CommandCode, Handle, Hierarchy, MAX_DIGEST};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{Reader, WireError};

/// TPMA_NV: readable with the index's own authorization; written at least once.
const AUTH_READ: u32 = 1 << 18;
const WRITTEN: u32 = 1 << 29;

/// Bytes per read: TPM2_PT_NV_BUFFER_MAX is at least 512 with TPMs for PCs.
const CHUNK: usize = 512;

/// An NV index's public area.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NvPublic {
    /// Attributes (TPMA_NV).
    pub attributes: u32,
    /// Size of its data, in bytes.
    pub size: u16,
}

impl NvPublic {
    /// Reads the contents of a TPM2B_NV_PUBLIC.
    fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.be32("NV index")?;
        reader.be16("name algorithm")?;
        let attributes = reader.be32("NV attributes")?;
        reader.sized("NV policy", MAX_DIGEST)?;
        let size = reader.be16("NV data size")?;
        reader.end("NV public area")?;
        Ok(Self { attributes, size })
    }
}

impl Tpm {
    /// Reads an NV index's public area; `None` if there is no such index.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn nv_read_public(&self, index: u32) -> Result<Option<NvPublic>, TpmError> {
        let command = Command::new(CommandCode::NV_READ_PUBLIC).on(Handle(index));
        let public = self.run(&command, |_, reader| {
            let public = NvPublic::parse(reader.sized("NV public area", 256)?)?;
            reader.sized("NV name", MAX_DIGEST + 2)?;
            Ok(public)
        });
        match public {
            Ok(public) => Ok(Some(public)),
            Err(error) if error.is_no_such_handle() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads an NV index whole, with its own empty authorization if it allows that, else with the owner's; `None` if
    /// there is no such index or nothing was ever written to it.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn nv_read(&self, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
        let public = match self.nv_read_public(index)? {
            Some(public) if public.attributes & WRITTEN != 0 => public,
            _ => return Ok(None),
        };
        let reader_handle = if public.attributes & AUTH_READ != 0 {
            Handle(index)
        } else {
            Hierarchy::Owner.handle()
        };
        let size = usize::from(public.size);
        let mut data = Vec::with_capacity(size);
        while data.len() < size {
            let wanted = (size - data.len()).min(CHUNK);
            let command = Command::new(CommandCode::NV_READ)
                .with(reader_handle, Auth::Empty)
                .on(Handle(index))
                .parameters(|p| {
                    // Both fit: the size of an index is a 16-bit number.
                    p.u16(u16::try_from(wanted).unwrap_or(u16::MAX))
                        .u16(u16::try_from(data.len()).unwrap_or(u16::MAX));
                });
            let chunk = self.run(&command, |_, reader| {
                let chunk = reader.sized("NV data", wanted)?;
                if chunk.len() == wanted {
                    Ok(chunk.to_vec())
                } else {
                    Err(WireError::Short {
                        field: "NV data",
                        needed: wanted,
                        left: chunk.len(),
                    })
                }
            })?;
            data.extend_from_slice(&chunk);
        }
        Ok(Some(data))
    }
}
