//! TPM2_MakeCredential and TPM2_ActivateCredential: a secret that only the TPM with this endorsement key can read, and
//! only if it also holds that attestation key.

use super::{Auth, Command, CommandCode, Handle, MAX_BUFFER, MAX_DIGEST, Object, Protect, fits};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{Name, Public};

impl Tpm {
    /// Wraps `secret` (at most 32 bytes) for the TPM that holds `endorsement_key` and an object named `name`. Any party
    /// can do this, without a TPM too: [`crate::enrol::credential::make`]. Gives the wrapped secret (TPM2B_ID_OBJECT's contents) and
    /// the encrypted seed (TPM2B_ENCRYPTED_SECRET's contents).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn make_credential(
        &self,
        endorsement_key: Handle,
        secret: &[u8],
        name: &Name,
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        fits(CommandCode::MAKE_CREDENTIAL, "the secret", secret, 32)?;
        let command = Command::new(CommandCode::MAKE_CREDENTIAL)
            .on(endorsement_key)
            .parameters(|p| {
                p.sized(secret).sized(&name.0);
            });
        self.run(&command, |_, reader| {
            let wrapped = reader.sized("wrapped secret", MAX_BUFFER)?.to_vec();
            let seed = reader.sized("encrypted seed", MAX_BUFFER)?.to_vec();
            Ok((wrapped, seed))
        })
    }

    /// Unwraps a secret that was wrapped for this endorsement key and for `key`. It crosses the bus encrypted, so that only whoever
    /// holds the endorsement key that the device knows (`known`) could read it.
    ///
    /// # Errors
    /// [`TpmError`]; the TPM answers with an integrity or value error if the secret was wrapped for others.
    pub fn activate_credential(
        &self,
        key: &Object,
        endorsement_key: &Object,
        known: &Public,
        wrapped: &[u8],
        seed: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let code = CommandCode::ACTIVATE_CREDENTIAL;
        fits(code, "the wrapped secret", wrapped, MAX_DIGEST * 2 + 4)?;
        fits(code, "the encrypted seed", seed, 512)?;
        let session = self.start_endorsement_session(endorsement_key, known)?;
        let command = Command::new(code)
            .with_object(key, Auth::Empty)
            .with_object(endorsement_key, Auth::Salted(&session, Protect::Answer))
            .parameters(|p| {
                p.sized(wrapped).sized(seed);
            });
        self.run(&command, |_, reader| {
            Ok(reader.sized("secret", MAX_DIGEST)?.to_vec())
        })
    }
}
