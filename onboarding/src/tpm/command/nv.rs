//! The TPM's own memory: TPM2_NV_ReadPublic and TPM2_NV_Read for what its maker left there, such as the EK certificate;
//! TPM2_NV_DefineSpace, TPM2_NV_Write, TPM2_NV_WriteLock and TPM2_NV_UndefineSpace for what this device keeps there.

use super::{Auth, Command, CommandCode, Handle, Hierarchy, MAX_DIGEST, Protect, Salted, fits};
use crate::tpm::rc::code as rc;
use crate::tpm::{ResponseCode, Tpm, TpmError};
use crate::wire::{Name, Reader, WireError, Writer};

/// TPM_ALG_SHA256.
const SHA256: u16 = 0x000b;

/// Bytes per read or write: TPM2_PT_NV_BUFFER_MAX is at least 512 with TPMs for PCs.
const CHUNK: usize = 512;

/// What may be done with an NV index, and what was (TPMA_NV; part 2, 13.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NvAttributes(pub u32);

impl NvAttributes {
    /// The owner writes, with the owner hierarchy's authorization.
    pub const OWNER_WRITE: Self = Self(1 << 1);
    /// No more writes until the next start of the TPM.
    pub const WRITE_LOCKED: Self = Self(1 << 11);
    /// It can be locked in that way.
    pub const WRITE_STCLEAR: Self = Self(1 << 14);
    /// The owner reads.
    pub const OWNER_READ: Self = Self(1 << 17);
    /// Whoever knows the index's own authorization reads; it is empty here.
    pub const AUTH_READ: Self = Self(1 << 18);
    /// Wrong authorizations do not count towards lockout, and lockout does not keep from its use.
    pub const NO_DA: Self = Self(1 << 25);
    /// It cannot be read until the next start of the TPM.
    pub const READ_LOCKED: Self = Self(1 << 28);
    /// It was written at least once.
    pub const WRITTEN: Self = Self(1 << 29);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without the others.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True if every attribute of `other` is among these.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// An NV index's public area, its name algorithm SHA-256 unless a maker has chosen another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NvPublic {
    /// What may be done with it.
    pub attributes: NvAttributes,
    /// Size of its data, in bytes.
    pub size: u16,
    /// Its name as the TPM says: it follows from all of the above, so it changes with the first write.
    pub name: Name,
}

impl NvPublic {
    /// Reads the contents of a TPM2B_NV_PUBLIC.
    fn parse(bytes: &[u8], name: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.be32("NV index")?;
        reader.be16("name algorithm")?;
        let attributes = NvAttributes(reader.be32("NV attributes")?);
        reader.sized("NV policy", MAX_DIGEST)?;
        let size = reader.be16("NV data size")?;
        reader.end("NV public area")?;
        Ok(Self {
            attributes,
            size,
            name: Name(name.to_vec()),
        })
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
            let public = reader.sized("NV public area", 256)?;
            NvPublic::parse(public, reader.sized("NV name", MAX_DIGEST + 2)?)
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
            Some(public) if public.attributes.has(NvAttributes::WRITTEN) => public,
            _ => return Ok(None),
        };
        let reader_handle = if public.attributes.has(NvAttributes::AUTH_READ) {
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

    /// Makes an index of `size` bytes in the owner's name, with an empty authorization of its own and no policy.
    ///
    /// # Errors
    /// [`TpmError`]; [`code::NV_DEFINED`](crate::tpm::code::NV_DEFINED) if there is one,
    /// [`code::NV_SPACE`](crate::tpm::code::NV_SPACE) if there is no room.
    pub fn nv_define(
        &self,
        index: u32,
        attributes: NvAttributes,
        size: u16,
        session: &Salted,
    ) -> Result<(), TpmError> {
        let mut public = Writer::new();
        public
            .u32(index)
            .u16(SHA256)
            .u32(attributes.0)
            .sized(&[])
            .u16(size);
        let command = Command::new(CommandCode::NV_DEFINE_SPACE)
            .with(
                Hierarchy::Owner.handle(),
                Auth::Salted(session, Protect::Nothing),
            )
            .parameters(|p| {
                p.sized(&[]).sized(public.as_slice());
            });
        self.run_silent(&command)
    }

    /// Writes an index whole, with the owner's authorization. Short data is written in one command, and so whole or not at all.
    ///
    /// # Errors
    /// [`TpmError`]; [`code::NV_LOCKED`](crate::tpm::code::NV_LOCKED) if it is locked.
    pub fn nv_write(&self, index: u32, data: &[u8], session: &Salted) -> Result<(), TpmError> {
        fits(
            CommandCode::NV_WRITE,
            "the data",
            data,
            usize::from(u16::MAX),
        )?;
        for (number, chunk) in data.chunks(CHUNK).enumerate() {
            let offset = u16::try_from(number.saturating_mul(CHUNK)).unwrap_or(u16::MAX);
            let command = self
                .nv_command(CommandCode::NV_WRITE, index, session)?
                .parameters(|p| {
                    p.sized(chunk).u16(offset);
                });
            self.run_silent(&command)?;
        }
        Ok(())
    }

    /// Locks an index against writes until the next start of the TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn nv_write_lock(&self, index: u32, session: &Salted) -> Result<(), TpmError> {
        self.run_silent(&self.nv_command(CommandCode::NV_WRITE_LOCK, index, session)?)
    }

    /// Removes an index of the owner's.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::is_no_such_handle`] if there is none.
    pub fn nv_undefine(&self, index: u32, session: &Salted) -> Result<(), TpmError> {
        self.run_silent(&self.nv_command(CommandCode::NV_UNDEFINE_SPACE, index, session)?)
    }

    /// A command of the owner's on an index, which is named as it is now.
    fn nv_command<'a>(
        &self,
        code: CommandCode,
        index: u32,
        session: &'a Salted,
    ) -> Result<Command<'a>, TpmError> {
        let public = self.nv_read_public(index)?.ok_or(TpmError::Refused {
            command: code,
            handle: Some(index),
            code: ResponseCode(rc::HANDLE),
        })?;
        Ok(Command::new(code)
            .with(
                Hierarchy::Owner.handle(),
                Auth::Salted(session, Protect::Nothing),
            )
            .on_named(Handle(index), &public.name))
    }
}
