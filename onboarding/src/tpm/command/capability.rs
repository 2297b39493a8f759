//! TPM2_GetCapability: what this TPM is, what it can do, and how it is doing.

use super::{Command, CommandCode, Handle};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{Reader, WireError};

const CAP_ALGORITHMS: u32 = 0;
const CAP_HANDLES: u32 = 1;
const CAP_COMMANDS: u32 = 2;
const CAP_PROPERTIES: u32 = 6;
const CAP_CURVES: u32 = 8;

const FIXED_PROPERTIES: u32 = 0x100;
const VARIABLE_PROPERTIES: u32 = 0x200;

const MANUFACTURER: u32 = 0x105;
const VENDOR_STRING: [u32; 4] = [0x106, 0x107, 0x108, 0x109];
const FIRMWARE_VERSION: [u32; 2] = [0x10b, 0x10c];
const PERMANENT: u32 = 0x200;
const LOCKOUT_COUNTER: u32 = 0x20e;
const MAX_AUTH_FAIL: u32 = 0x20f;
const LOCKOUT_RECOVERY: u32 = 0x210;

/// TPMA_PERMANENT: inLockout, ownerAuthSet.
const IN_LOCKOUT: u32 = 1 << 9;
const OWNER_AUTH_SET: u32 = 1 << 0;

/// More of a list than any TPM has; a bound on what one that talks nonsense can make us read.
const MAX_ENTRIES: usize = 1024;

/// Who made the TPM and how it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Properties {
    /// The maker's four letters, such as `INTC` or `IBM`.
    pub manufacturer: String,
    /// The maker's name for the chip.
    pub vendor: String,
    /// The version of its firmware, four 16-bit numbers as makers write it.
    pub firmware: String,
    /// The same as the one number that the TPM signs in its statements.
    pub firmware_version: u64,
    /// Authorization failures counted against lockout now.
    pub failures: u32,
    /// Failures at which it locks out.
    pub failures_allowed: u32,
    /// Seconds until one failure is forgotten.
    pub forgets_after_s: u32,
    /// True while it is locked out: keys with an authorization that counts cannot be used. Ours can.
    pub in_lockout: bool,
    /// True if the owner hierarchy has a password: our keys cannot be made.
    pub owner_password: bool,
}

/// What this TPM can do of what the designs of this crate may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// RSA keys.
    pub rsa: bool,
    /// Curve P-256.
    pub p256: bool,
    /// ECDSA.
    pub ecdsa: bool,
    /// SHA-256.
    pub sha256: bool,
    /// AES in CFB mode: encrypted sessions.
    pub aes_cfb: bool,
    /// The command `ECDH_ZGen`.
    pub ecdh_zgen: bool,
    /// The command `Quote`.
    pub quote: bool,
    /// The command `ActivateCredential`.
    pub activate_credential: bool,
}

impl Capabilities {
    /// What is missing for this crate's keys and quotes, in words; empty if nothing is.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        [
            (self.p256, "curve P-256"),
            (self.ecdsa, "ECDSA"),
            (self.sha256, "SHA-256"),
            // The endorsement key's template and every encrypted session use it (TCG EK Credential Profile, B.3 and B.4).
            (self.aes_cfb, "AES in CFB mode"),
            (self.ecdh_zgen, "command ECDH_ZGen"),
            (self.quote, "command Quote"),
            (self.activate_credential, "command ActivateCredential"),
        ]
        .into_iter()
        .filter_map(|(there, name)| (!there).then_some(name))
        .collect()
    }
}

impl Tpm {
    /// Reads who made the TPM and how it is doing.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn properties(&self) -> Result<Properties, TpmError> {
        let mut list = self.property_list(FIXED_PROPERTIES)?;
        list.extend(self.property_list(VARIABLE_PROPERTIES)?);
        let value = |tag| list.iter().find(|(t, _)| *t == tag).map_or(0, |(_, v)| *v);
        let text = |tags: &[u32]| {
            tags.iter()
                .flat_map(|tag| value(*tag).to_be_bytes())
                .filter(|byte| byte.is_ascii_graphic() || *byte == b' ')
                .map(char::from)
                .collect::<String>()
                .trim()
                .to_owned()
        };
        let [high, low] = FIRMWARE_VERSION.map(value);
        Ok(Properties {
            manufacturer: text(&[MANUFACTURER]),
            vendor: text(&VENDOR_STRING),
            firmware: format!(
                "{}.{}.{}.{}",
                high >> 16,
                high & 0xffff,
                low >> 16,
                low & 0xffff
            ),
            firmware_version: u64::from(high) << 32 | u64::from(low),
            failures: value(LOCKOUT_COUNTER),
            failures_allowed: value(MAX_AUTH_FAIL),
            forgets_after_s: value(LOCKOUT_RECOVERY),
            in_lockout: value(PERMANENT) & IN_LOCKOUT != 0,
            owner_password: value(PERMANENT) & OWNER_AUTH_SET != 0,
        })
    }

    /// Reads what the TPM can do.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn capabilities(&self) -> Result<Capabilities, TpmError> {
        let algorithms = self.list(CAP_ALGORITHMS, 0, |reader| {
            let algorithm = reader.be16("algorithm")?;
            reader.be32("algorithm's attributes")?;
            Ok(u32::from(algorithm))
        })?;
        let commands = self.list(CAP_COMMANDS, 0, |reader| {
            // TPMA_CC: the command's number in the low 16 bits.
            Ok(reader.be32("command")? & 0xffff)
        })?;
        let curves = self.list(CAP_CURVES, 0, |reader| Ok(u32::from(reader.be16("curve")?)))?;
        let command = |code: CommandCode| commands.contains(&code.0);
        Ok(Capabilities {
            rsa: algorithms.contains(&0x0001),
            p256: curves.contains(&0x0003),
            ecdsa: algorithms.contains(&0x0018),
            sha256: algorithms.contains(&0x000b),
            aes_cfb: algorithms.contains(&0x0006) && algorithms.contains(&0x0043),
            ecdh_zgen: command(CommandCode::ECDH_ZGEN),
            quote: command(CommandCode::QUOTE),
            activate_credential: command(CommandCode::ACTIVATE_CREDENTIAL),
        })
    }

    /// Lists the handles that exist from `first` on, of the same kind (top byte).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn handles(&self, first: Handle) -> Result<Vec<Handle>, TpmError> {
        self.list(CAP_HANDLES, first.0, |reader| {
            reader.be32("handle").map(Handle)
        })
    }

    /// One group of properties. A group has at most 256, and one answer has room for them.
    fn property_list(&self, first: u32) -> Result<Vec<(u32, u32)>, TpmError> {
        let mut list = self.list(CAP_PROPERTIES, first, |reader| {
            Ok((reader.be32("property")?, reader.be32("property's value")?))
        })?;
        list.retain(|(tag, _)| (first..first + 0x100).contains(tag));
        Ok(list)
    }

    fn list<T>(
        &self,
        capability: u32,
        first: u32,
        entry: impl Fn(&mut Reader<'_>) -> Result<T, WireError>,
    ) -> Result<Vec<T>, TpmError> {
        let command = Command::new(CommandCode::GET_CAPABILITY).parameters(|p| {
            p.u32(capability).u32(first).u32(MAX_ENTRIES as u32);
        });
        self.run(&command, |_, reader| {
            // What does not fit into one answer (moreData) is beyond what is looked for here: lists are in ascending
            // order, and an answer takes at least 169 algorithms, 254 commands, 127 properties.
            reader.u8("more data")?;
            let seen = reader.be32("capability")?;
            if seen != capability {
                return Err(WireError::Value {
                    field: "capability",
                    value: seen.into(),
                });
            }
            let count = reader.be32("number of entries")?;
            let count = usize::try_from(count)
                .ok()
                .filter(|count| *count <= MAX_ENTRIES)
                .ok_or(WireError::Limit {
                    field: "number of entries",
                    size: count.into(),
                    limit: MAX_ENTRIES,
                })?;
            (0..count).map(|_| entry(reader)).collect()
        })
    }
}
