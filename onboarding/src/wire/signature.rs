//! ECDSA signatures on P-256: as a TPM gives them (two numbers), as EVE's envelope wants them (64 bytes), and as X.509
//! and the quote want them (DER).

use super::{Reader, WireError, Writer};

/// TPM_ALG_ECDSA (TCG Algorithm Registry).
const ALG_ECDSA: u16 = 0x0018;
/// TPM_ALG_SHA256.
const ALG_SHA256: u16 = 0x000b;

/// An ECDSA signature on P-256 over a SHA-256 digest: r and s, each left-padded to 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EcdsaSignature {
    /// The number r.
    pub r: [u8; 32],
    /// The number s.
    pub s: [u8; 32],
}

impl EcdsaSignature {
    /// Reads a TPMT_SIGNATURE and accepts ECDSA over SHA-256 only.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are cut, or the algorithms are others.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let algorithm = reader.be16("signature algorithm")?;
        if algorithm != ALG_ECDSA {
            return Err(WireError::Value {
                field: "signature algorithm",
                value: algorithm.into(),
            });
        }
        let hash = reader.be16("signature hash")?;
        if hash != ALG_SHA256 {
            return Err(WireError::Value {
                field: "signature hash",
                value: hash.into(),
            });
        }
        Ok(Self {
            r: padded("signature r", reader.sized("signature r", 32)?)?,
            s: padded("signature s", reader.sized("signature s", 32)?)?,
        })
    }

    /// r and s behind each other: 64 bytes.
    #[must_use]
    pub fn to_fixed(self) -> [u8; 64] {
        let mut fixed = [0; 64];
        let (r, s) = fixed.split_at_mut(32);
        r.copy_from_slice(&self.r);
        s.copy_from_slice(&self.s);
        fixed
    }

    /// ASN.1 DER: a sequence of two integers (RFC 3279, 2.2.3). 8 to 72 bytes.
    #[must_use]
    pub fn to_der(self) -> Vec<u8> {
        let mut body = Vec::with_capacity(70);
        for number in [&self.r, &self.s] {
            let skip = number.iter().take_while(|byte| **byte == 0).count();
            let digits = number.get(skip..).unwrap_or_default();
            // A DER integer is signed: a set top bit gets a zero byte in front; zero itself is one zero byte.
            let sign = digits.first().is_none_or(|byte| byte & 0x80 != 0);
            body.push(0x02);
            body.push(u8::try_from(digits.len() + usize::from(sign)).unwrap_or(u8::MAX));
            if sign {
                body.push(0);
            }
            body.extend_from_slice(digits);
        }
        let mut der = vec![0x30, u8::try_from(body.len()).unwrap_or(u8::MAX)];
        der.append(&mut body);
        der
    }
}

/// Turns 64 bytes r||s into DER.
#[must_use]
pub fn ecdsa_to_der(fixed: &[u8; 64]) -> Vec<u8> {
    let (r, s) = fixed.split_at(32);
    let mut signature = EcdsaSignature {
        r: [0; 32],
        s: [0; 32],
    };
    signature.r.copy_from_slice(r);
    signature.s.copy_from_slice(s);
    signature.to_der()
}

/// Left-pads a number of at most 32 bytes: TPMs may leave out leading zeros.
pub(super) fn padded(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], WireError> {
    let mut number = [0; 32];
    let start = number.len().checked_sub(bytes.len());
    match start.and_then(|start| number.get_mut(start..)) {
        Some(place) => {
            place.copy_from_slice(bytes);
            Ok(number)
        }
        None => Err(WireError::Limit {
            field,
            size: bytes.len() as u64,
            limit: 32,
        }),
    }
}

/// Appends the scheme ECDSA with SHA-256 (TPMT_SIG_SCHEME).
pub(crate) fn write_ecdsa_sha256(writer: &mut Writer) {
    writer.u16(ALG_ECDSA).u16(ALG_SHA256);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_has_the_shortest_form_of_each_number() {
        let mut signature = EcdsaSignature {
            r: [0; 32],
            s: [0; 32],
        };
        signature.r[31] = 0x80;
        signature.s[30] = 1;
        assert_eq!(
            signature.to_der(),
            [0x30, 0x08, 0x02, 0x02, 0x00, 0x80, 0x02, 0x02, 0x01, 0x00]
        );
        let largest = EcdsaSignature {
            r: [0xff; 32],
            s: [0x7f; 32],
        };
        assert_eq!(largest.to_der().len(), 2 + 35 + 34);
        assert_eq!(ecdsa_to_der(&largest.to_fixed()), largest.to_der());
    }

    #[test]
    fn short_numbers_of_a_tpm_are_padded_and_long_ones_refused() {
        let mut bytes = vec![0, 0x18, 0, 0x0b, 0, 1, 7, 0, 2, 1, 2];
        let signature = EcdsaSignature::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(signature.r[31], 7);
        assert_eq!(signature.s[30..], [1, 2]);
        bytes[5] = 33;
        assert!(EcdsaSignature::read(&mut Reader::new(&bytes)).is_err());
    }
}
