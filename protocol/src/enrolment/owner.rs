//! Whom a device takes orders from: the owner's root key, the roots that follow it, and the controller that a root delegates to.
//!
//! ```text
//! image: epoch, H(root 1), H(root 2)
//!            root 1 --delegation--> controller's signing key --signs--> challenges, grants
//!            root 2 --succession (epoch 2, H(root 1), H(root 3)), signed by root 2--> becomes the root
//! ```
//!
//! Each root is named by its hash before it is used, so a stolen present root cannot appoint a successor: only the key that was named
//! beforehand can take over, and it says itself which one comes after it. A device moves forward along successions and never back; what
//! it has reached is its [`Pinned`], which it keeps.
//!
//! Roots sign rarely and may lie in a safe. The delegate signs each challenge and each grant.

use prost::Message as _;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::transcript::Transcript;
use super::wire::{DelegationPayload, OwnerChain, OwnerStatement, SuccessionPayload};
use crate::cipher::Point;
use crate::digest::Digest;
use crate::keys::{SignError, Signer};

/// Most successions in one chain: a device that slept through more is enrolled anew.
pub const MAX_SUCCESSIONS: usize = 16;
/// Longest payload of a statement, in bytes.
const MAX_PAYLOAD: usize = 512;

const SUCCESSION: &[u8] = b"skerry owner 1 succession\0";
const DELEGATION: &[u8] = b"skerry owner 1 delegation\0";
const CHALLENGE: &[u8] = b"skerry owner 1 challenge\0";
const GRANT: &[u8] = b"skerry owner 1 grant\0";

/// The owner as far as a device knows: at first from its image, later from what it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// Counts roots, from 1.
    pub epoch: u64,
    /// Hash of the present root's point.
    pub root: Digest,
    /// Hash of the point of the root that may follow.
    pub next: Digest,
    /// Highest serial of a delegation that was seen of this root; 0: none.
    #[serde(default)]
    pub delegation: u64,
}

/// Who signs for the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delegate {
    /// Uncompressed point.
    key: [u8; 65],
    /// What the device keeps from now on.
    pub pinned: Pinned,
}

/// Why somebody was not believed to speak for the owner.
#[derive(Debug, Error)]
pub enum OwnerError {
    /// There is no delegation.
    #[error("checking who the controller speaks for: it shows no delegation by an owner")]
    Missing,
    /// Something is longer than it may be.
    #[error("checking who the controller speaks for: {what} is longer than {limit}")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// The most that is taken.
        limit: usize,
    },
    /// A statement cannot be read.
    #[error("checking who the controller speaks for: reading the {what}: {source}")]
    Decode {
        /// "succession" or "delegation".
        what: &'static str,
        /// Where decoding stopped.
        source: prost::DecodeError,
    },
    /// A statement's signature is not its signer's.
    #[error("checking who the controller speaks for: the signature under the {0} does not fit")]
    Signature(&'static str),
    /// The root is another one.
    #[error(
        "checking who the controller speaks for: its owner's root key is {found}, this device belongs to {wanted}; if the box changed hands, its former owner must release it, or it is installed anew with the new owner's stick and its TPM cleared"
    )]
    OtherRoot {
        /// Hash of the key that signed.
        found: Digest,
        /// The hash that the device has.
        wanted: Digest,
    },
    /// A succession that does not follow.
    #[error(
        "checking who the controller speaks for: a succession to epoch {found} does not follow epoch {epoch}"
    )]
    Order {
        /// Where the device stands.
        epoch: u64,
        /// What the statement says.
        found: u64,
    },
    /// The delegation is of another epoch than the root.
    #[error(
        "checking who the controller speaks for: the delegation is of epoch {found}, the root of epoch {epoch}"
    )]
    Epoch {
        /// The root's.
        epoch: u64,
        /// The delegation's.
        found: u64,
    },
    /// An older delegation than one seen before.
    #[error(
        "checking who the controller speaks for: delegation {found} was withdrawn, number {seen} was seen before"
    )]
    Withdrawn {
        /// The serial seen before.
        seen: u64,
        /// The serial now.
        found: u64,
    },
    /// The delegation has run out.
    #[error(
        "checking who the controller speaks for: the delegation ended at {not_after} s since 1970, and it is {now} at least"
    )]
    Expired {
        /// When it ended.
        not_after: i64,
        /// The device's time floor.
        now: i64,
    },
    /// A key is no point on the curve.
    #[error("checking who the controller speaks for: the delegate's key is no point on P-256")]
    Key,
    /// What the delegate is said to have signed, it has not.
    #[error("checking the controller's {0}: the signature is not that of the owner's delegate")]
    NotSigned(&'static str),
}

/// The hash that names a root key, over its uncompressed point.
#[must_use]
pub fn root_hash(point: &[u8]) -> Digest {
    Digest::of(point)
}

/// The chain from `pinned` to the delegate. `floor` is the earliest time that it can be, seconds since 1970.
///
/// Successions at or before the pinned epoch are skipped, so that one chain serves devices of any age.
///
/// # Errors
/// [`OwnerError`].
pub fn verify(chain: &OwnerChain, pinned: &Pinned, floor: i64) -> Result<Delegate, OwnerError> {
    if chain.successions.len() > MAX_SUCCESSIONS {
        return Err(OwnerError::TooLong {
            what: "the list of successions",
            limit: MAX_SUCCESSIONS,
        });
    }
    let mut pinned = *pinned;
    for statement in &chain.successions {
        let payload: SuccessionPayload = decode("succession", statement)?;
        if payload.epoch <= pinned.epoch {
            continue;
        }
        pinned = succeed(&pinned, statement, &payload)?;
    }
    let statement = chain.delegation.as_ref().ok_or(OwnerError::Missing)?;
    let payload: DelegationPayload = decode("delegation", statement)?;
    let signer = root_hash(&statement.signer);
    if signer != pinned.root {
        return Err(OwnerError::OtherRoot {
            found: signer,
            wanted: pinned.root,
        });
    }
    check("delegation", DELEGATION, statement)?;
    if payload.epoch != pinned.epoch {
        return Err(OwnerError::Epoch {
            epoch: pinned.epoch,
            found: payload.epoch,
        });
    }
    if payload.serial < pinned.delegation {
        return Err(OwnerError::Withdrawn {
            seen: pinned.delegation,
            found: payload.serial,
        });
    }
    if payload.not_after < floor {
        return Err(OwnerError::Expired {
            not_after: payload.not_after,
            now: floor,
        });
    }
    let key = Point::from_sec1(&payload.signing_key)
        .map_err(|_| OwnerError::Key)?
        .to_sec1();
    Ok(Delegate {
        key,
        pinned: Pinned {
            delegation: payload.serial,
            ..pinned
        },
    })
}

fn succeed(
    pinned: &Pinned,
    statement: &OwnerStatement,
    payload: &SuccessionPayload,
) -> Result<Pinned, OwnerError> {
    let order = OwnerError::Order {
        epoch: pinned.epoch,
        found: payload.epoch,
    };
    if pinned.epoch.checked_add(1) != Some(payload.epoch) {
        return Err(order);
    }
    let signer = root_hash(&statement.signer);
    if signer != pinned.next {
        return Err(OwnerError::OtherRoot {
            found: signer,
            wanted: pinned.next,
        });
    }
    check("succession", SUCCESSION, statement)?;
    let next = <[u8; 32]>::try_from(payload.next.as_slice()).ok();
    match next {
        Some(next) if payload.predecessor == pinned.root.bytes() => Ok(Pinned {
            epoch: payload.epoch,
            root: signer,
            next: Digest::from_bytes(next),
            delegation: 0,
        }),
        _ => Err(order),
    }
}

fn decode<M: prost::Message + Default>(
    what: &'static str,
    statement: &OwnerStatement,
) -> Result<M, OwnerError> {
    if statement.payload.len() > MAX_PAYLOAD {
        return Err(OwnerError::TooLong {
            what,
            limit: MAX_PAYLOAD,
        });
    }
    M::decode(statement.payload.as_slice()).map_err(|source| OwnerError::Decode { what, source })
}

fn check(what: &'static str, context: &[u8], statement: &OwnerStatement) -> Result<(), OwnerError> {
    let message = [context, &statement.payload].concat();
    if fits(&statement.signer, &message, &statement.signature) {
        Ok(())
    } else {
        Err(OwnerError::Signature(what))
    }
}

fn fits(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
        .verify(message, signature)
        .is_ok()
}

impl Delegate {
    /// A delegate whose key is known otherwise: the controller's own, which checks its challenges when they come back.
    #[must_use]
    pub fn known(key: [u8; 65], pinned: Pinned) -> Self {
        Self { key, pinned }
    }

    /// Checks the signature under a challenge's payload.
    ///
    /// # Errors
    /// [`OwnerError::NotSigned`].
    pub fn check_challenge(&self, payload: &[u8], signature: &[u8]) -> Result<(), OwnerError> {
        self.check("challenge", &[CHALLENGE, payload].concat(), signature)
    }

    /// Checks the signature under a grant's payload.
    ///
    /// # Errors
    /// [`OwnerError::NotSigned`].
    pub fn check_grant(
        &self,
        transcript: &Transcript,
        payload: &[u8],
        signature: &[u8],
    ) -> Result<(), OwnerError> {
        self.check("grant", &grant_message(transcript, payload), signature)
    }

    fn check(
        &self,
        what: &'static str,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), OwnerError> {
        if fits(&self.key, message, signature) {
            Ok(())
        } else {
            Err(OwnerError::NotSigned(what))
        }
    }
}

fn grant_message(transcript: &Transcript, payload: &[u8]) -> Vec<u8> {
    [GRANT, transcript.bytes().as_slice(), payload].concat()
}

/// A root's statement that it takes over. `root` signs; `point` is its public key.
///
/// # Errors
/// What keeps the holder of the key from signing.
pub fn succession(
    root: &dyn Signer,
    point: &[u8; 65],
    payload: &SuccessionPayload,
) -> Result<OwnerStatement, SignError> {
    statement(root, point, SUCCESSION, payload.encode_to_vec())
}

/// A root's statement of who signs for it. `root` signs; `point` is its public key.
///
/// # Errors
/// What keeps the holder of the key from signing.
pub fn delegation(
    root: &dyn Signer,
    point: &[u8; 65],
    payload: &DelegationPayload,
) -> Result<OwnerStatement, SignError> {
    statement(root, point, DELEGATION, payload.encode_to_vec())
}

fn statement(
    root: &dyn Signer,
    point: &[u8; 65],
    context: &[u8],
    payload: Vec<u8>,
) -> Result<OwnerStatement, SignError> {
    let signature = root.sign_p256_sha256(&[context, &payload].concat())?;
    Ok(OwnerStatement {
        payload,
        signer: point.to_vec(),
        signature: signature.to_vec(),
    })
}

/// The delegate's signature over a challenge's payload.
///
/// # Errors
/// What keeps the holder of the key from signing.
pub fn sign_challenge(delegate: &dyn Signer, payload: &[u8]) -> Result<[u8; 64], SignError> {
    delegate.sign_p256_sha256(&[CHALLENGE, payload].concat())
}

/// The delegate's signature over a grant's payload.
///
/// # Errors
/// What keeps the holder of the key from signing.
pub fn sign_grant(
    delegate: &dyn Signer,
    transcript: &Transcript,
    payload: &[u8],
) -> Result<[u8; 64], SignError> {
    delegate.sign_p256_sha256(&grant_message(transcript, payload))
}

#[cfg(test)]
mod tests;
