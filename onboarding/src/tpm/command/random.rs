//! TPM2_GetRandom.

use super::{Command, CommandCode, MAX_DIGEST};
use crate::tpm::{Tpm, TpmError};
use crate::wire::WireError;

impl Tpm {
    /// Draws `count` random bytes. A TPM gives at most a digest's length at a time, so this may take several commands.
    ///
    /// # Errors
    /// [`TpmError`]; `Malformed` if the TPM gives nothing.
    pub fn random(&self, count: usize) -> Result<Vec<u8>, TpmError> {
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            let wanted = (count - drawn.len()).min(32);
            let command = Command::new(CommandCode::GET_RANDOM).parameters(|p| {
                p.u16(u16::try_from(wanted).unwrap_or(32));
            });
            let some = self.run(&command, |_, reader| {
                let some = reader.sized("random bytes", MAX_DIGEST)?;
                if some.is_empty() || some.len() > wanted {
                    return Err(WireError::Value {
                        field: "random bytes",
                        value: some.len() as u64,
                    });
                }
                Ok(some.to_vec())
            })?;
            drawn.extend_from_slice(&some);
        }
        Ok(drawn)
    }
}
