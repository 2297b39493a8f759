//! Making, loading, keeping and forgetting keys: TPM2_CreatePrimary, TPM2_Create, TPM2_Load, TPM2_ReadPublic,
//! TPM2_EvictControl, TPM2_FlushContext.

use serde::{Deserialize, Serialize};

use super::{Auth, Command, CommandCode, Handle, Hierarchy, MAX_BUFFER, MAX_DIGEST, promised};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{Name, Public, Reader, WireError, Writer};

/// A key outside its TPM: the public area, and the secret part wrapped by its parent inside the TPM. Of no use without
/// that TPM, so it may be kept in a plain file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBlob {
    /// TPMT_PUBLIC.
    #[serde(with = "crate::text::base64_bytes")]
    pub public: Vec<u8>,
    /// The contents of a TPM2B_PRIVATE.
    #[serde(with = "crate::text::base64_bytes")]
    pub private: Vec<u8>,
}

/// A key loaded into one of the TPM's three slots; flushed when this value goes out of scope.
#[derive(Debug)]
pub struct Object {
    tpm: Tpm,
    handle: Handle,
    public: Public,
    name: Name,
}

impl Object {
    /// Its handle, good as long as this value lives.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// Its public area.
    #[must_use]
    pub fn public(&self) -> &Public {
        &self.public
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let flushed = self.tpm.flush(self.handle);
        let mut tidiness = self.tpm.tidiness();
        tidiness.objects.retain(|handle| *handle != self.handle);
        if let Err(error) = flushed {
            tracing::warn!("a key stays loaded in the TPM: {error}");
            tidiness.untidy = true;
        }
    }
}

/// Skips what a creation tells about its circumstances: creationData, creationHash, creationTicket. Its reader would be
/// a policy that asks which PCRs stood where when a key was made; none does.
fn skip_creation(reader: &mut Reader<'_>) -> Result<(), WireError> {
    reader.sized("creation data", MAX_BUFFER)?;
    reader.sized("creation hash", MAX_DIGEST)?;
    reader.be16("creation ticket's tag")?;
    reader.be32("creation ticket's hierarchy")?;
    reader.sized("creation ticket's digest", MAX_DIGEST)?;
    Ok(())
}

fn read_public(reader: &mut Reader<'_>) -> Result<Public, WireError> {
    Public::parse(reader.sized("public area", MAX_BUFFER)?)
}

/// Reads an object's name, which follows from its public area: the codes of salted sessions are made over it.
fn read_name(reader: &mut Reader<'_>, public: &Public) -> Result<Name, WireError> {
    let (seen, name) = (reader.sized("name", MAX_DIGEST + 2)?, public.name());
    if seen == name.0 {
        Ok(name)
    } else {
        Err(WireError::Value {
            field: "name that is not that of the public area, its length",
            value: seen.len() as u64,
        })
    }
}

/// The parameters that CreatePrimary and Create share: no authorization value, no data, no outside information, no PCRs.
fn creation_parameters(writer: &mut Writer, template: &Public) {
    writer.sized(&[0, 0, 0, 0]);
    writer.sized(&template.to_bytes()).sized(&[]).u32(0);
}

impl Tpm {
    /// Makes a primary key from its hierarchy's seed: the same template gives the same key, until the hierarchy is
    /// cleared. An RSA key may take seconds.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create_primary(
        &self,
        hierarchy: Hierarchy,
        template: &Public,
    ) -> Result<Object, TpmError> {
        let command = Command::new(CommandCode::CREATE_PRIMARY)
            .with(hierarchy.handle(), Auth::Empty)
            .parameters(|p| creation_parameters(p, template))
            .answering_handle();
        let (handle, public, name) = self.run(&command, |handle, reader| {
            let handle = promised(handle)?;
            let public = read_public(reader)?;
            skip_creation(reader)?;
            let name = read_name(reader, &public)?;
            Ok((handle, public, name))
        })?;
        Ok(self.object(handle, public, name))
    }

    fn object(&self, handle: Handle, public: Public, name: Name) -> Object {
        self.tidiness().objects.push(handle);
        Object {
            tpm: self.clone(),
            handle,
            public,
            name,
        }
    }

    /// Makes a key under a loaded parent. It is not loaded thereby.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create(&self, parent: &Object, template: &Public) -> Result<KeyBlob, TpmError> {
        let command = Command::new(CommandCode::CREATE)
            .with(parent.handle, Auth::Empty)
            .parameters(|p| creation_parameters(p, template));
        self.run(&command, |_, reader| {
            let private = reader.sized("private area", MAX_BUFFER)?.to_vec();
            let public = read_public(reader)?.to_bytes();
            skip_creation(reader)?;
            Ok(KeyBlob { public, private })
        })
    }

    /// Loads a key under the parent under which it was made.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::is_foreign_key`] if this TPM did not make it, or was cleared since.
    pub fn load(&self, parent: &Object, key: &KeyBlob) -> Result<Object, TpmError> {
        let public = Public::parse(&key.public).map_err(|source| TpmError::Malformed {
            command: CommandCode::LOAD,
            handle: None,
            source,
        })?;
        let command = Command::new(CommandCode::LOAD)
            .with(parent.handle, Auth::Empty)
            .parameters(|p| {
                p.sized(&key.private).sized(&key.public);
            })
            .answering_handle();
        let (handle, name) = self.run(&command, |handle, reader| {
            let name = read_name(reader, &public)?;
            Ok((promised(handle)?, name))
        })?;
        Ok(self.object(handle, public, name))
    }

    /// Reads the public area and the name of any object.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::is_no_such_handle`] if there is none.
    pub fn read_public(&self, handle: Handle) -> Result<(Public, Name), TpmError> {
        let command = Command::new(CommandCode::READ_PUBLIC).on(handle);
        self.run(&command, |_, reader| {
            let public = read_public(reader)?;
            let name = Name(reader.sized("name", MAX_DIGEST + 2)?.to_vec());
            reader.sized("qualified name", MAX_DIGEST + 2)?;
            Ok((public, name))
        })
    }

    /// Makes a loaded key persistent under the handle `persistent` (0x81000000 to 0x817fffff for the owner), or removes
    /// it from there if `object` is that handle itself.
    ///
    /// # Errors
    /// [`TpmError`]; [`code::NV_DEFINED`](crate::tpm::code::NV_DEFINED) if the handle is in use.
    pub fn evict_control(&self, object: Handle, persistent: Handle) -> Result<(), TpmError> {
        let command = Command::new(CommandCode::EVICT_CONTROL)
            .with(Hierarchy::Owner.handle(), Auth::Empty)
            .on(object)
            .parameters(|p| {
                p.u32(persistent.0);
            });
        self.run_silent(&command)
    }

    /// Removes an object or a session from its slot.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn flush(&self, handle: Handle) -> Result<(), TpmError> {
        self.run_silent(&Command::new(CommandCode::FLUSH_CONTEXT).on(handle))
    }
}
