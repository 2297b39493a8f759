//! TPM2_Quote and TPM2_Certify: what the TPM says of its PCRs and of its keys.

use super::{Auth, Command, CommandCode, Handle, MAX_BUFFER, Object, PcrSelection, Session, fits};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{EcdsaSignature, Reader, WireError};

/// TPM_ALG_NULL as scheme: the attestation key's own, ECDSA with SHA-256.
const KEYS_OWN_SCHEME: u16 = 0x0010;

/// What the TPM says, and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// TPMS_ATTEST: the bytes that are signed.
    pub attest: Vec<u8>,
    /// Signature over their SHA-256 digest.
    pub signature: EcdsaSignature,
}

fn read(reader: &mut Reader<'_>) -> Result<Attested, WireError> {
    Ok(Attested {
        attest: reader.sized("statement", MAX_BUFFER)?.to_vec(),
        signature: EcdsaSignature::read(reader)?,
    })
}

impl Tpm {
    /// Has the TPM sign a digest of the selected PCRs, together with `qualifying` (at most 64 bytes), its clock and its
    /// reset counters.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn quote(
        &self,
        key: Handle,
        qualifying: &[u8],
        pcrs: PcrSelection,
    ) -> Result<Attested, TpmError> {
        fits(CommandCode::QUOTE, "the nonce", qualifying, 64)?;
        let command = Command::new(CommandCode::QUOTE)
            .with(key, Auth::Empty)
            .parameters(|p| {
                p.sized(qualifying).u16(KEYS_OWN_SCHEME);
                pcrs.write(p);
            });
        self.run(&command, |_, reader| read(reader))
    }

    /// Has the TPM sign that `object` is in it, and what it may be used for, together with `qualifying` (at most 64 bytes).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn certify(
        &self,
        object: &Object,
        key: &Object,
        qualifying: &[u8],
    ) -> Result<Attested, TpmError> {
        self.certified(object, Auth::Empty, key, qualifying)
    }

    /// The same of an object whose administration takes a policy, which `session` satisfies.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn certify_by_policy(
        &self,
        object: &Object,
        session: &Session,
        key: &Object,
        qualifying: &[u8],
    ) -> Result<Attested, TpmError> {
        self.certified(object, Auth::Policy(session), key, qualifying)
    }

    fn certified(
        &self,
        object: &Object,
        auth: Auth<'_>,
        key: &Object,
        qualifying: &[u8],
    ) -> Result<Attested, TpmError> {
        fits(CommandCode::CERTIFY, "the nonce", qualifying, 64)?;
        let command = Command::new(CommandCode::CERTIFY)
            .with_object(object, auth)
            .with_object(key, Auth::Empty)
            .parameters(|p| {
                p.sized(qualifying).u16(KEYS_OWN_SCHEME);
            });
        self.run(&command, |_, reader| read(reader))
    }
}
