//! What a TPM signs (TPMS_ATTEST; TCG TPM 2.0 Library, part 2, 10.12).

use serde::{Deserialize, Serialize};

use crate::wire::{Reader, WireError};

/// TPM_GENERATED_VALUE: "\xffTCG". A restricted key never signs foreign bytes that begin like this.
pub const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
pub const QUOTE: u16 = 0x8018;
/// TPM_ST_ATTEST_CERTIFY.
pub const CERTIFY: u16 = 0x8017;

/// Most PCR banks in a selection.
const MAX_BANKS: usize = 16;

/// What the TPM says of itself at the moment of signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootFacts {
    /// Milliseconds that the TPM has been powered, over its life.
    pub clock_ms: u64,
    /// How often it was reset: counts boots.
    pub reset_count: u32,
    /// How often it was resumed from suspend since the last reset.
    pub restart_count: u32,
    /// False if the clock may have been higher before than it is now, because the power went away unannounced.
    pub clock_safe: bool,
    /// Version of the TPM's firmware, in its maker's form.
    pub firmware_version: u64,
}

/// A selection of PCRs in one bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BankSelection {
    /// The bank's algorithm (TPM_ALG_ID).
    pub algorithm: u16,
    /// A bit a PCR, PCR 0 lowest.
    pub pcrs: u32,
}

/// What is particular to the kind of statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// A quote of PCRs.
    Quote {
        /// Which.
        selection: Vec<BankSelection>,
        /// Digest of their values, one after the other.
        digest: Vec<u8>,
    },
    /// That a key is in the TPM.
    Certify {
        /// Its name.
        name: Vec<u8>,
    },
    /// Another kind, by its tag; its contents are left unread.
    Other(u16),
}

/// A TPMS_ATTEST taken apart. Whether its magic number is right is one of the verifier's checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest {
    /// Must be [`GENERATED`].
    pub magic: u32,
    /// Qualified name of the signing key.
    pub signer: Vec<u8>,
    /// What the caller gave: the nonce.
    pub extra_data: Vec<u8>,
    /// Clock, counters and firmware.
    pub boot: BootFacts,
    /// The statement itself.
    pub statement: Statement,
}

/// Takes a TPMS_ATTEST apart.
///
/// # Errors
/// [`WireError`] if it is cut, has bytes left over, or has fields longer than the specification allows.
pub fn parse(bytes: &[u8]) -> Result<Attest, WireError> {
    let mut reader = Reader::new(bytes);
    let magic = reader.be32("magic number")?;
    let kind = reader.be16("kind of statement")?;
    let signer = reader.sized("signer's name", 2 + 64)?.to_vec();
    let extra_data = reader.sized("nonce", 2 + 64)?.to_vec();
    let clock_ms = reader.be64("clock")?;
    let reset_count = reader.be32("reset count")?;
    let restart_count = reader.be32("restart count")?;
    let clock_safe = match reader.u8("clock's safety")? {
        0 => false,
        1 => true,
        other => {
            return Err(WireError::Value {
                field: "clock's safety",
                value: other.into(),
            });
        }
    };
    let firmware_version = reader.be64("firmware version")?;
    let statement = match kind {
        QUOTE => {
            let statement = Statement::Quote {
                selection: selection(&mut reader)?,
                digest: reader.sized("digest of PCRs", 64)?.to_vec(),
            };
            reader.end("quote")?;
            statement
        }
        CERTIFY => {
            let statement = Statement::Certify {
                name: reader.sized("certified key's name", 2 + 64)?.to_vec(),
            };
            reader.sized("certified key's qualified name", 2 + 64)?;
            reader.end("certification")?;
            statement
        }
        other => Statement::Other(other),
    };
    Ok(Attest {
        magic,
        signer,
        extra_data,
        boot: BootFacts {
            clock_ms,
            reset_count,
            restart_count,
            clock_safe,
            firmware_version,
        },
        statement,
    })
}

fn selection(reader: &mut Reader<'_>) -> Result<Vec<BankSelection>, WireError> {
    let count = reader.be32("number of PCR banks")?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_BANKS)
        .ok_or(WireError::Limit {
            field: "number of PCR banks",
            size: count.into(),
            limit: MAX_BANKS,
        })?;
    let mut banks = Vec::with_capacity(count);
    for _ in 0..count {
        let algorithm = reader.be16("PCR bank")?;
        let size = usize::from(reader.u8("size of PCR selection")?);
        if size > 4 {
            return Err(WireError::Limit {
                field: "size of PCR selection",
                size: size as u64,
                limit: 4,
            });
        }
        let pcrs = reader
            .bytes("PCR selection", size)?
            .iter()
            .rev()
            .fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        banks.push(BankSelection { algorithm, pcrs });
    }
    Ok(banks)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::Writer;

    /// A quote as a TPM would write it.
    pub(crate) fn quote_bytes(nonce: &[u8], pcrs: &[u8; 3], digest: &[u8]) -> Vec<u8> {
        let mut w = Writer::new();
        w.u32(GENERATED).u16(QUOTE).sized(&[0; 34]).sized(nonce);
        w.u32(0)
            .u32(123_456)
            .u32(7)
            .u32(2)
            .u8(1)
            .u32(0x20)
            .u32(0x30);
        w.u32(1).u16(0x000b).u8(3).bytes(pcrs).sized(digest);
        w.into_bytes()
    }

    #[test]
    fn a_quote_is_taken_apart() {
        let attest = parse(&quote_bytes(b"nonce", &[0xff, 0xff, 0], &[9; 32])).unwrap();
        assert_eq!(attest.magic, GENERATED);
        assert_eq!(attest.extra_data, b"nonce");
        assert_eq!(
            attest.boot,
            BootFacts {
                clock_ms: 123_456,
                reset_count: 7,
                restart_count: 2,
                clock_safe: true,
                firmware_version: 0x20_0000_0030
            }
        );
        assert_eq!(
            attest.statement,
            Statement::Quote {
                selection: vec![BankSelection {
                    algorithm: 0x0b,
                    pcrs: 0xffff
                }],
                digest: vec![9; 32]
            }
        );
    }

    #[test]
    fn every_cut_and_every_extra_byte_is_refused() {
        let mut bytes = quote_bytes(b"nonce", &[0xff, 0xff, 0], &[9; 32]);
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "cut to {length}");
        }
        bytes.push(0);
        assert!(parse(&bytes).is_err());
    }

    #[test]
    fn another_kind_of_statement_is_named() {
        let mut bytes = quote_bytes(b"nonce", &[0xff, 0xff, 0], &[9; 32]);
        bytes[5] = 0x14;
        assert_eq!(parse(&bytes).unwrap().statement, Statement::Other(0x8014));
        // A quote's contents are not a certification's.
        bytes[5] = 0x17;
        assert!(parse(&bytes).is_err());
    }

    #[test]
    fn no_changed_byte_makes_the_parser_panic() {
        let bytes = quote_bytes(b"nonce", &[0xff, 0xff, 0], &[9; 32]);
        for place in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[place] = value;
                // Whatever comes of it, sizes stay within what was given.
                if let Ok(attest) = parse(&changed) {
                    assert!(attest.extra_data.len() <= 66 && attest.signer.len() <= 66);
                }
            }
        }
    }
}
