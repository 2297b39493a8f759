//! TPM2_StartAuthSession, TPM2_PolicySecret, TPM2_PolicyCommandCode, TPM2_PolicyOR: the policies under which an endorsement key may be
//! used, and a machine's initial attestation key be certified.

use super::{Auth, Command, CommandCode, Handle, Hierarchy, MAX_DIGEST, promised};
use crate::tpm::template::MACHINE_BRANCHES;
use crate::tpm::{Tpm, TpmError, crypto};

/// TPM_ALG_AES, TPM_ALG_SHA256, TPM_ALG_CFB.
const AES: u16 = 0x0006;
const SHA256: u16 = 0x000b;
const CFB: u16 = 0x0043;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It shows that we know an authorization value, which is empty here, and protects what is said.
    Hmac,
    /// It collects the parts of a policy.
    Policy,
}

impl Kind {
    /// TPM_SE.
    fn number(self) -> u8 {
        match self {
            Self::Hmac => 0,
            Self::Policy => 1,
        }
    }
}

/// A session, flushed when this value goes out of scope.
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
            let mut tidiness = self.tpm.tidiness();
            tidiness.sessions.push(self.handle);
            tidiness.untidy = true;
        }
    }
}

impl Tpm {
    /// Opens a session with SHA-256 and AES-128-CFB, salted by a secret encrypted to `key`, bound to nothing. Gives the TPM's nonce
    /// too.
    pub(super) fn start_session(
        &self,
        key: Handle,
        nonce: &[u8],
        salt: &[u8],
        kind: Kind,
    ) -> Result<(Session, Vec<u8>), TpmError> {
        let command = Command::new(CommandCode::START_AUTH_SESSION)
            .on(key)
            .on(Handle::NULL)
            .parameters(|p| {
                p.sized(nonce).sized(salt).u8(kind.number());
                p.u16(AES).u16(128).u16(CFB).u16(SHA256);
            })
            .answering_handle();
        let (handle, nonce) = self.run(&command, |handle, reader| {
            let nonce = reader.sized("TPM's nonce", MAX_DIGEST)?.to_vec();
            Ok((promised(handle)?, nonce))
        })?;
        let session = Session {
            tpm: self.clone(),
            handle,
        };
        Ok((session, nonce))
    }

    /// A session in which a machine's initial attestation key may be certified ([`Tpm::certify_by_policy`]): whoever administers it shows
    /// the endorsement hierarchy's authorization value, which is empty, and does nothing else (TPM 2.0 Keys for Device Identity and
    /// Attestation, 7.3.6). Nothing secret goes through it, so it has no salt.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn start_machine_session(&self) -> Result<Session, TpmError> {
        let command = CommandCode::START_AUTH_SESSION;
        let nonce: [u8; 16] =
            crypto::random().map_err(|source| TpmError::Share { command, source })?;
        let (session, _) = self.start_session(Handle::NULL, &nonce, &[], Kind::Policy)?;
        self.policy_secret(&session, Hierarchy::Endorsement)?;
        let only = Command::new(CommandCode::POLICY_COMMAND_CODE)
            .on(session.handle)
            .parameters(|p| {
                p.u32(CommandCode::CERTIFY.0);
            });
        self.run_silent(&only)?;
        let one_of = Command::new(CommandCode::POLICY_OR)
            .on(session.handle)
            .parameters(|p| {
                p.u32(u32::try_from(MACHINE_BRANCHES.len()).unwrap_or(u32::MAX));
                for branch in &MACHINE_BRANCHES {
                    p.sized(branch);
                }
            });
        self.run_silent(&one_of)?;
        Ok(session)
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
