//! TPM2_Sign.

use super::{Auth, Command, CommandCode, Handle};
use crate::tpm::{Tpm, TpmError};
use crate::wire::EcdsaSignature;

/// TPM_ST_HASHCHECK: the tag of a ticket that says who made a digest. Unrestricted keys take an empty one.
const HASHCHECK: u16 = 0x8024;

impl Tpm {
    /// Signs a SHA-256 digest with an unrestricted P-256 signing key.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn sign(&self, key: Handle, digest: &[u8; 32]) -> Result<EcdsaSignature, TpmError> {
        let command = Command::new(CommandCode::SIGN)
            .with(key, Auth::Empty)
            .parameters(|p| {
                p.sized(digest);
                crate::wire::write_ecdsa_sha256(p);
                p.u16(HASHCHECK).u32(Handle::NULL.0).sized(&[]);
            });
        self.run(&command, |_, reader| EcdsaSignature::read(reader))
    }
}
