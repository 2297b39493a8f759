//! Salted sessions: each command and its answer carry a code that only the TPM and this program can make, and their first parameters may
//! be encrypted (TCG TPM 2.0 Library, part 1, 19 and 21).
//!
//! ```text
//! salt, encrypted to a key in the TPM, and both ends' nonces --KDFa("ATH")--> session key
//! session key, newer nonce, older nonce --KDFa("CFB")--> AES key and initial value of one parameter
//! session key over H(command, names, parameters), both nonces, attributes --HMAC--> the code
//! ```
//!
//! Whoever records the bus sees the encrypted salt and nothing of what it protects. Whoever also changes what goes over it would have
//! to put a key of his own in the place of the TPM's: so the salt is encrypted to the key that the device knows, and not to
//! the one that the TPM shows just now.
//!
//! No object here has an authorization value, so the session key alone makes the code, in HMAC and in policy sessions alike (part 1,
//! 19.6.5 and 19.6.13).

use std::sync::{Mutex, PoisonError};

use super::session::{Kind, Session};
use super::{AnswerAuth, CONTINUE_SESSION, CommandCode, Hierarchy, Object};
use crate::tpm::crypto::{self, DIGEST, Label};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{Public, Writer};

/// TPMA_SESSION: the command's first parameter is encrypted; the answer's is.
const DECRYPT: u8 = 1 << 5;
const ENCRYPT: u8 = 1 << 6;

/// Which first parameter is encrypted. It must be a sized buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protect {
    /// None: the code alone.
    Nothing,
    /// The command's.
    Command,
    /// The answer's.
    Answer,
}

impl Protect {
    fn attributes(self) -> u8 {
        CONTINUE_SESSION
            | match self {
                Self::Nothing => 0,
                Self::Command => DECRYPT,
                Self::Answer => ENCRYPT,
            }
    }
}

/// A salted session, flushed when this value goes out of scope. Commands with it run one after the other.
pub struct Salted {
    session: Session,
    key: [u8; DIGEST],
    /// The TPM's last nonce.
    nonce: Mutex<Vec<u8>>,
}

impl std::fmt::Debug for Salted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Salted({:#010x})", self.session.handle().0)
    }
}

impl Salted {
    /// The session as a handle, for commands that build up its policy.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// One use of the session: draws our nonce.
    pub(super) fn exchange(
        &self,
        command: CommandCode,
        protect: Protect,
    ) -> Result<Exchange<'_>, TpmError> {
        Ok(Exchange {
            session: self,
            protect,
            ours: crypto::random().map_err(|source| TpmError::Share { command, source })?,
            theirs: self
                .nonce
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    }
}

/// A salted session in one command and its answer.
pub(super) struct Exchange<'a> {
    session: &'a Salted,
    protect: Protect,
    ours: [u8; DIGEST],
    theirs: Vec<u8>,
}

impl Exchange<'_> {
    /// Encrypts the first parameter, if that is asked for.
    pub(super) fn encrypt(&self, parameters: &mut [u8]) {
        if self.protect == Protect::Command
            && let Some(data) = first_parameter(parameters)
        {
            let (key, iv) = self.parameter_key(&self.ours, &self.theirs);
            crypto::encrypt(&key, &iv, data);
        }
    }

    fn parameter_key(&self, newer: &[u8], older: &[u8]) -> ([u8; 16], [u8; 16]) {
        let both: [u8; 32] = crypto::kdfa(&self.session.key, "CFB", newer, older);
        let (mut key, mut iv) = ([0; 16], [0; 16]);
        let (head, tail) = both.split_at(16);
        key.copy_from_slice(head);
        iv.copy_from_slice(tail);
        (key, iv)
    }

    /// Appends the command's authorization (TPMS_AUTH_COMMAND).
    pub(super) fn write(
        &self,
        command: CommandCode,
        names: &[u8],
        parameters: &[u8],
        area: &mut Writer,
    ) {
        let attributes = self.protect.attributes();
        let hash = crypto::digest(&[&command.0.to_be_bytes(), names, parameters]);
        let code = crypto::mac(
            &self.session.key,
            &[&hash, &self.ours, &self.theirs, &[attributes]],
        );
        area.u32(self.session.session.handle().0)
            .sized(&self.ours)
            .u8(attributes)
            .sized(&code);
    }

    /// Checks the answer's authorization over `parameters`, and decrypts its first parameter in `clear`. False if the code does not
    /// fit.
    pub(super) fn answered(
        self,
        command: CommandCode,
        auth: &AnswerAuth<'_>,
        parameters: &[u8],
        clear: &mut [u8],
    ) -> bool {
        // An answer comes only with response code 0.
        let hash = crypto::digest(&[&[0; 4], &command.0.to_be_bytes(), parameters]);
        let attributes = [auth.attributes];
        let signed: [&[u8]; 4] = [&hash, auth.nonce, &self.ours, &attributes];
        if !crypto::mac_fits(&self.session.key, &signed, auth.code) {
            return false;
        }
        if self.protect == Protect::Answer {
            // Signed by the TPM: whether it has encrypted.
            if auth.attributes & ENCRYPT == 0 {
                return false;
            }
            let (key, iv) = self.parameter_key(auth.nonce, &self.ours);
            if let Some(data) = first_parameter(clear) {
                crypto::decrypt(&key, &iv, data);
            }
        }
        *self
            .session
            .nonce
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = auth.nonce.to_vec();
        true
    }
}

/// The bytes of the sized buffer at the front.
fn first_parameter(parameters: &mut [u8]) -> Option<&mut [u8]> {
    let (length, rest) = parameters.split_first_chunk_mut::<2>()?;
    rest.get_mut(..usize::from(u16::from_be_bytes(*length)))
}

impl Tpm {
    /// Opens a session whose salt only the holder of `known` can read: that is `key`'s public area as it was when it was first
    /// seen. If the loaded key is another one, no answer will fit.
    fn start_salted(&self, key: &Object, known: &Public, kind: Kind) -> Result<Salted, TpmError> {
        let share = |source| TpmError::Share {
            command: CommandCode::START_AUTH_SESSION,
            source,
        };
        let salt = crypto::share(known, Label::Secret).map_err(share)?;
        let ours: [u8; DIGEST] = crypto::random().map_err(share)?;
        let (session, theirs) = self.start_session(key.handle(), &ours, &salt.encrypted, kind)?;
        Ok(Salted {
            session,
            key: crypto::kdfa(&salt.seed, "ATH", &theirs, &ours),
            nonce: Mutex::new(theirs),
        })
    }

    /// Opens a salted session that stands for empty passwords.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn start_hmac_session(&self, key: &Object, known: &Public) -> Result<Salted, TpmError> {
        self.start_salted(key, known, Kind::Hmac)
    }

    /// Opens a salted session in which the policy of endorsement keys is satisfied.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn start_endorsement_session(
        &self,
        key: &Object,
        known: &Public,
    ) -> Result<Salted, TpmError> {
        let salted = self.start_salted(key, known, Kind::Policy)?;
        self.policy_secret(&salted.session, Hierarchy::Endorsement)?;
        Ok(salted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parameter_is_found_within_its_bounds() {
        assert_eq!(first_parameter(&mut [0, 2, 7, 8, 9]), Some(&mut [7, 8][..]));
        assert_eq!(first_parameter(&mut [0, 3, 7, 8]), None);
        assert_eq!(first_parameter(&mut [0]), None);
    }

    #[test]
    fn attributes_are_those_of_the_specification() {
        assert_eq!(Protect::Nothing.attributes(), 0x01);
        assert_eq!(Protect::Command.attributes(), 0x21);
        assert_eq!(Protect::Answer.attributes(), 0x41);
    }
}
