//! TPM2_StartAuthSession and TPM2_PolicySecret: the policy under which an endorsement key may be used.

use super::{Auth, Command, CommandCode, Handle, Hierarchy, MAX_DIGEST, promised};
use crate::tpm::{Tpm, TpmError};

/// TPM_SE_POLICY.
const POLICY: u8 = 1;
/// TPM_ALG_NULL and TPM_ALG_SHA256.
const NULL: u16 = 0x0010;
const SHA256: u16 = 0x000b;

/// A policy session, flushed when this value goes out of scope.
#[derive(Debug)]
pub struct Session {
    tpm: Tpm,
    handle: Handle,
}

impl Session {
    /// Its handle, good as long as this value lives.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.tpm.flush(self.handle) {
            tracing::warn!("a session stays open in the TPM: {error}");
        }
    }
}

impl Tpm {
    /// Opens a policy session with SHA-256, unsalted and unbound: it authorizes, it does not encrypt.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn start_policy_session(&self) -> Result<Session, TpmError> {
        // The nonce only matters to the HMACs of a salted or bound session; 16 bytes are the least that is allowed.
        let nonce = self.random(16)?;
        let command = Command::new(CommandCode::START_AUTH_SESSION)
            .on(Handle::NULL)
            .on(Handle::NULL)
            .parameters(|p| {
                p.sized(&nonce).sized(&[]).u8(POLICY).u16(NULL).u16(SHA256);
            })
            .answering_handle();
        let handle = self.run(&command, |handle, reader| {
            reader.sized("TPM's nonce", MAX_DIGEST)?;
            promised(handle)
        })?;
        Ok(Session {
            tpm: self.clone(),
            handle,
        })
    }

    /// Satisfies the policy part "knows the authorization value of this hierarchy", which is empty.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn policy_secret(&self, session: &Session, hierarchy: Hierarchy) -> Result<(), TpmError> {
        let command = Command::new(CommandCode::POLICY_SECRET)
            .with(hierarchy.handle(), Auth::Empty)
            .on(session.handle)
            .parameters(|p| {
                // No nonce, no command, no reference, no expiry.
                p.sized(&[]).sized(&[]).sized(&[]).u32(0);
            });
        self.run(&command, |_, reader| {
            reader.sized("timeout", 8)?;
            reader.be16("ticket's tag")?;
            reader.be32("ticket's hierarchy")?;
            reader.sized("ticket's digest", MAX_DIGEST)?;
            Ok(())
        })
    }
}
