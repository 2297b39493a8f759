//! A TPM 2.0: commands out, typed answers back.
//!
//! ```text
//! Tpm::sign(key, digest) -> command (bytes) -> Transport -> answer (bytes) -> EcdsaSignature
//!                             ^                                 |
//!                             +-- again, if the TPM says busy --+
//! ```
//!
//! A [`Tpm`] is one open way to the TPM, shared by its clones; commands on it run one after the other. Each command has a
//! file of its own under `command`, with its parameters, its answer, and the parser of that answer. Loaded objects and
//! sessions are [`Object`] and [`Session`] values that flush themselves when they go out of scope: a TPM has three slots
//! for each, so nothing may stay behind.
//!
//! Keys are authorized by empty password or by policy. What nobody on the bus may see or change goes through a [`Salted`] session:
//! its salt is encrypted to a key in the TPM, each command and answer carries a code made with it, and the first parameter may
//! be encrypted. Those are the opened secret of a credential, shared points, and the owner's mark; everything else on the bus is
//! digests, signatures, public keys and wrapped ones.

mod command;
pub(crate) mod crypto;
mod error;
mod rc;
pub mod template;
mod transport;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use command::{
    Attested, Capabilities, CommandCode, Handle, Hierarchy, KeyBlob, NvAttributes, NvPublic,
    Object, PcrSelection, Properties, Salted, Session, Startup,
};
pub use crypto::ShareError;
pub use error::TpmError;
pub use rc::{About, ResponseCode, code};
pub use transport::{DeviceFile, MAX_MESSAGE, Socket, Transport};

/// An open way to a TPM. Clones share it.
#[derive(Clone)]
pub struct Tpm {
    transport: Arc<Mutex<Box<dyn Transport>>>,
    /// Held over a sequence of commands that needs more than one object slot.
    slots: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Tpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tpm")
    }
}

impl Tpm {
    /// The kernel's resource manager device, on a machine with one TPM.
    pub const DEVICE: &'static str = "/dev/tpmrm0";

    /// Opens the kernel's resource manager device at `path`.
    ///
    /// # Errors
    /// [`TpmError::Open`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, TpmError> {
        match DeviceFile::open(path) {
            Ok(device) => Ok(Self::over(device)),
            Err(source) => Err(TpmError::Open {
                path: path.to_path_buf(),
                source,
            }),
        }
    }

    /// Connects to an emulator on a unix socket (`swtpm socket --tpm2 --server type=unixio,path=...`).
    ///
    /// # Errors
    /// [`TpmError::Open`] if the socket cannot be connected.
    pub fn connect_unix(path: &Path) -> Result<Self, TpmError> {
        match Socket::unix(path) {
            Ok(socket) => Ok(Self::over(socket)),
            Err(source) => Err(TpmError::Open {
                path: path.to_path_buf(),
                source,
            }),
        }
    }

    /// A TPM behind any transport: a proxy that records or breaks things, in tests.
    #[must_use]
    pub fn over(transport: impl Transport + 'static) -> Self {
        Self {
            transport: Arc::new(Mutex::new(Box::new(transport))),
            slots: Arc::new(Mutex::new(())),
        }
    }

    /// Reserves the object slots for a sequence of commands, until the guard is dropped. Single commands go on beside it.
    #[must_use = "the slots are reserved only as long as the guard lives"]
    pub fn reserve_slots(&self) -> MutexGuard<'_, ()> {
        // A thread that panicked while it held the guard leaves nothing half done behind: objects flush themselves.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
