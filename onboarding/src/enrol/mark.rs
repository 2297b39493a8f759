//! The owner's mark in the TPM: whose box it is, where a wiped disk does not take it away.
//!
//! ```text
//! NV index 0x01804b01:  version u8 | epoch u64 | root 32 | next 32 | delegation u64   (big endian, 81 bytes)
//!
//! none --write--> written, locked --next start of the TPM--> written, open --write (another owner state)--> written, locked
//!                                                                          '--remove--> none
//! ```
//!
//! The index is the owner hierarchy's, whose authorization is empty: whoever runs as root on a box may write it, so it is locked as soon
//! as it says what it should, and stays so until the next boot. Writes go through a salted session: what was changed on the bus is not
//! written. That keeps accidents and simple tampering out; who owns the bus could write the index himself. Reads need no secret.

use protocol::digest::Digest;
use protocol::enrolment::owner::Pinned;

use crate::tpm::template::{KeyUse, p256};
use crate::tpm::{Hierarchy, NvAttributes, Tpm, TpmError, code};
use crate::wire::{Reader, WireError, Writer};

/// In the range of the owner's indexes (TCG Registry of Reserved TPM 2.0 Handles and Localities, 2.2).
pub const INDEX: u32 = 0x0180_4b01;
/// Its length, in bytes.
pub const BYTES: u16 = 81;

const VERSION: u8 = 1;
const ATTRIBUTES: NvAttributes = NvAttributes::OWNER_WRITE
    .with(NvAttributes::OWNER_READ)
    .with(NvAttributes::AUTH_READ)
    .with(NvAttributes::WRITE_STCLEAR)
    .with(NvAttributes::NO_DA);
/// What comes and goes with use.
const STATE: NvAttributes = NvAttributes::WRITTEN.with(NvAttributes::WRITE_LOCKED);

/// Why the owner's mark could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The TPM failed.
    #[error("the owner's mark in the TPM: {0}")]
    Tpm(#[from] TpmError),
    /// It cannot be read.
    #[error(
        "the owner's mark in the TPM cannot be read: {0}; if the box may change hands, clear the TPM in the firmware's menu"
    )]
    Form(#[from] WireError),
    /// It was locked in this boot and says something else.
    #[error(
        "the owner's mark in the TPM is locked until the next boot, and says something else; start the box again"
    )]
    Locked,
}

/// The owner as the device takes it: the mark, if there is one, else the image. An image of a later root needs no more: the controller's
/// chain of successions leads there from the mark, and a thief's image leads nowhere, whatever epoch it names.
#[must_use]
pub fn effective(image: &Pinned, mark: Option<&Pinned>) -> Pinned {
    *mark.unwrap_or(image)
}

/// Reads a mark's bytes.
///
/// # Errors
/// [`WireError`] if they are of another length or version.
pub fn parse(bytes: &[u8]) -> Result<Pinned, WireError> {
    let mut reader = Reader::new(bytes);
    let version = reader.u8("version")?;
    if version != VERSION {
        return Err(WireError::Value {
            field: "version",
            value: version.into(),
        });
    }
    let pinned = Pinned {
        epoch: reader.be64("epoch")?,
        root: Digest::from_bytes(reader.array("root")?),
        next: Digest::from_bytes(reader.array("next root")?),
        delegation: reader.be64("delegation")?,
    };
    reader.end("mark")?;
    Ok(pinned)
}

/// A mark's bytes.
#[must_use]
pub fn to_bytes(pinned: &Pinned) -> Vec<u8> {
    let mut writer = Writer::new();
    writer
        .u8(VERSION)
        .u64(pinned.epoch)
        .bytes(pinned.root.bytes())
        .bytes(pinned.next.bytes())
        .u64(pinned.delegation);
    writer.into_bytes()
}

/// Reads the mark; `None` if there is none, or it was made and never written.
///
/// # Errors
/// [`MarkError`].
pub fn read(tpm: &Tpm) -> Result<Option<Pinned>, MarkError> {
    match tpm.nv_read(INDEX)? {
        Some(bytes) => Ok(Some(parse(&bytes)?)),
        None => Ok(None),
    }
}

/// What there is to do so that the index says `wanted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Remove an index that is not ours.
    Remove,
    /// Make it.
    Define,
    /// Write it.
    Write,
    /// Lock it.
    Lock,
}

/// Plans [`write()`]: `there` is the index's attributes, size and contents.
fn plan(
    there: Option<(NvAttributes, u16, Option<&[u8]>)>,
    wanted: &[u8],
) -> Result<Vec<Step>, MarkError> {
    use Step::{Define, Lock, Remove, Write};
    let Some((attributes, size, contents)) = there else {
        return Ok(vec![Define, Write, Lock]);
    };
    if attributes.without(STATE) != ATTRIBUTES || size != BYTES {
        // Made by somebody else under our number. It holds nothing that we wrote.
        return Ok(vec![Remove, Define, Write, Lock]);
    }
    let locked = attributes.has(NvAttributes::WRITE_LOCKED);
    match (contents == Some(wanted), locked) {
        (true, true) => Ok(vec![]),
        (true, false) => Ok(vec![Lock]),
        (false, false) => Ok(vec![Write, Lock]),
        (false, true) => Err(MarkError::Locked),
    }
}

/// Writes the mark if it says something else, and locks it until the next boot. To be called at every boot, also if nothing has changed.
/// Interrupted anywhere, it does the rest when it is called again.
///
/// # Errors
/// [`MarkError`].
pub fn write(tpm: &Tpm, pinned: &Pinned) -> Result<(), MarkError> {
    let wanted = to_bytes(pinned);
    let public = tpm.nv_read_public(INDEX)?;
    let contents = match &public {
        // An index of somebody else's making may not be readable by us; it is removed anyway.
        Some(public) if public.attributes.without(STATE) == ATTRIBUTES => tpm.nv_read(INDEX)?,
        _ => None,
    };
    let there = public
        .as_ref()
        .map(|public| (public.attributes, public.size, contents.as_deref()));
    let steps = plan(there, &wanted)?;
    if steps.is_empty() {
        return Ok(());
    }
    let _slots = tpm.reserve_slots();
    let key = tpm.create_primary(Hierarchy::Owner, &p256(KeyUse::Store))?;
    let session = tpm.start_hmac_session(&key, key.public())?;
    for step in steps {
        match step {
            Step::Remove => tpm.nv_undefine(INDEX, &session)?,
            Step::Define => tpm.nv_define(INDEX, ATTRIBUTES, BYTES, &session)?,
            Step::Write => tpm.nv_write(INDEX, &wanted, &session)?,
            Step::Lock => tpm.nv_write_lock(INDEX, &session)?,
        }
    }
    Ok(())
}

/// Removes the mark, if there is one: the owner gives the box away.
///
/// # Errors
/// [`MarkError`].
pub fn remove(tpm: &Tpm) -> Result<(), MarkError> {
    let _slots = tpm.reserve_slots();
    let key = tpm.create_primary(Hierarchy::Owner, &p256(KeyUse::Store))?;
    let session = tpm.start_hmac_session(&key, key.public())?;
    match tpm.nv_undefine(INDEX, &session) {
        Err(error) if error.code().is_some_and(|c| c.base() == code::HANDLE) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pinned() -> Pinned {
        Pinned {
            epoch: 3,
            root: Digest::of(b"root"),
            next: Digest::of(b"next"),
            delegation: 7,
        }
    }

    #[test]
    fn a_mark_survives_writing_and_reading_and_nothing_else_is_one() {
        let bytes = to_bytes(&pinned());
        assert_eq!(bytes.len(), usize::from(BYTES));
        assert_eq!(parse(&bytes), Ok(pinned()));
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
        assert!(parse(&[bytes.as_slice(), &[0]].concat()).is_err());
        let mut newer = bytes;
        newer[0] = 2;
        assert!(parse(&newer).is_err());
    }

    #[test]
    fn each_state_of_the_index_has_its_steps() {
        use Step::{Define, Lock, Remove, Write};
        let wanted = to_bytes(&pinned());
        let other = [1; 81];
        let (written, locked) = (NvAttributes::WRITTEN, STATE);
        let plan = |there| plan(there, &wanted).ok();
        let table = [
            (None, Some(vec![Define, Write, Lock])),
            (Some((ATTRIBUTES, BYTES, None)), Some(vec![Write, Lock])),
            (
                Some((ATTRIBUTES.with(written), BYTES, Some(&other[..]))),
                Some(vec![Write, Lock]),
            ),
            (
                Some((ATTRIBUTES.with(written), BYTES, Some(&wanted[..]))),
                Some(vec![Lock]),
            ),
            (
                Some((ATTRIBUTES.with(locked), BYTES, Some(&wanted[..]))),
                Some(vec![]),
            ),
            (
                Some((ATTRIBUTES.with(locked), BYTES, Some(&other[..]))),
                None,
            ),
            (
                Some((ATTRIBUTES.with(written), 80, None)),
                Some(vec![Remove, Define, Write, Lock]),
            ),
            (
                Some((NvAttributes::OWNER_WRITE, BYTES, None)),
                Some(vec![Remove, Define, Write, Lock]),
            ),
        ];
        for (there, steps) in table {
            assert_eq!(plan(there), steps, "{there:?}");
        }
    }

    #[test]
    fn a_thiefs_image_does_not_outbid_the_mark() {
        let image = Pinned {
            epoch: u64::MAX,
            root: Digest::of(b"thief"),
            ..pinned()
        };
        assert_eq!(effective(&image, Some(&pinned())), pinned());
        assert_eq!(effective(&image, None), image);
    }
}
