//! TPM2_Quote.

use super::{Auth, Command, CommandCode, Handle, MAX_BUFFER, PcrSelection, fits};
use crate::tpm::{Tpm, TpmError};
use crate::wire::EcdsaSignature;

/// TPM_ALG_NULL as scheme: the attestation key's own, ECDSA with SHA-256.
const KEYS_OWN_SCHEME: u16 = 0x0010;

/// What the TPM says of its PCRs, and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// TPMS_ATTEST: the bytes that are signed.
    pub attest: Vec<u8>,
    /// Signature over their SHA-256 digest.
    pub signature: EcdsaSignature,
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
    ) -> Result<Quoted, TpmError> {
        fits(CommandCode::QUOTE, "the nonce", qualifying, 64)?;
        let command = Command::new(CommandCode::QUOTE)
            .with(key, Auth::Empty)
            .parameters(|p| {
                p.sized(qualifying).u16(KEYS_OWN_SCHEME);
                pcrs.write(p);
            });
        self.run(&command, |_, reader| {
            Ok(Quoted {
                attest: reader.sized("quote", MAX_BUFFER)?.to_vec(),
                signature: EcdsaSignature::read(reader)?,
            })
        })
    }
}
