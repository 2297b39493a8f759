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
//! for each, so nothing may stay behind. Where flushing fails, or an answer with a handle is lost, the next
//! [`Tpm::reserve_slots`] tidies up.
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

/// Handles of transient objects begin here.
const FIRST_TRANSIENT: u32 = 0x8000_0000;

/// An open way to a TPM. Clones share it.
#[derive(Clone)]
pub struct Tpm {
    transport: Arc<Mutex<Box<dyn Transport>>>,
    /// Held over a sequence of commands that needs more than one object slot.
    slots: Arc<Mutex<()>>,
    tidiness: Arc<Mutex<Tidiness>>,
}

/// What must be known so that slots do not fill up with what nobody uses.
#[derive(Default)]
struct Tidiness {
    /// Objects in use.
    objects: Vec<Handle>,
    /// Sessions that could not be flushed.
    sessions: Vec<Handle>,
    /// Something may have stayed behind.
    untidy: bool,
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
            tidiness: Arc::default(),
        }
    }

    /// Reserves the object slots for a sequence of commands, until the guard is dropped. Single commands go on beside it.
    #[must_use = "the slots are reserved only as long as the guard lives"]
    pub fn reserve_slots(&self) -> MutexGuard<'_, ()> {
        // A thread that panicked while it held the guard leaves nothing half done behind: objects flush themselves.
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let untidy = self.tidiness().untidy;
        if untidy && let Err(error) = self.tidy() {
            tracing::warn!("slots of the TPM stay in use: {error}");
        }
        slots
    }

    fn tidiness(&self) -> MutexGuard<'_, Tidiness> {
        self.tidiness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes what stayed behind: every object that is loaded and not in use (the kernel's resource manager shows those of this
    /// open file only), and the sessions that are known. A session whose handle was lost with the answer stays until the file is closed:
    /// the list of sessions would hold those of others too.
    fn tidy(&self) -> Result<(), TpmError> {
        for handle in self.handles(Handle(FIRST_TRANSIENT))? {
            if !self.tidiness().objects.contains(&handle) {
                self.flush(handle)?;
            }
        }
        let sessions = self.tidiness().sessions.clone();
        for session in sessions {
            match self.flush(session) {
                Err(error) if error.code().is_none() => return Err(error),
                // It is gone, or was gone before.
                _ => self.tidiness().sessions.retain(|other| *other != session),
            }
        }
        self.tidiness().untidy = false;
        Ok(())
    }
}
