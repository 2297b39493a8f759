//! The public area of a TPM object (TPMT_PUBLIC): what kind of key it is, what it may be used for, its public point or
//! modulus. The verifier computes an object's name from it; the device fills in templates with it.

use ring::digest;

use super::{Reader, WireError, Writer, signature::padded};

const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_RSASSA: u16 = 0x0014;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECDH: u16 = 0x0019;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;

/// An object's attributes (TPMA_OBJECT), a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attributes(pub u32);

impl Attributes {
    /// The object never leaves this TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// The object never gets another parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM itself made the secret part.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// The object's authorization value permits its use.
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    /// Administration takes the object's policy.
    pub const ADMIN_WITH_POLICY: Self = Self(1 << 7);
    /// A wrong authorization value does not count towards lockout.
    pub const NO_DA: Self = Self(1 << 10);
    /// The key works only on what the TPM itself made (signing) or knows the shape of (decrypting).
    pub const RESTRICTED: Self = Self(1 << 16);
    /// The key decrypts or derives.
    pub const DECRYPT: Self = Self(1 << 17);
    /// The key signs.
    pub const SIGN: Self = Self(1 << 18);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if every attribute of `other` is among these.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The symmetric cipher by which a storage key protects its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Symmetric {
    /// None: not a storage key.
    None,
    /// AES in CFB mode with a key of this many bits.
    AesCfb {
        /// 128, 192 or 256.
        bits: u16,
    },
}

/// The signing or key exchange scheme that an elliptic curve key is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EccScheme {
    /// Not bound.
    Any,
    /// ECDSA with SHA-256.
    EcdsaSha256,
    /// ECDH with SHA-256.
    EcdhSha256,
}

/// The signing scheme that an RSA key is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RsaScheme {
    /// Not bound.
    Any,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsassaSha256,
}

/// A curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384: met as endorsement key only.
    P384,
}

/// A point on P-256, coordinates left-padded to 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EccPoint {
    /// The coordinate X.
    pub x: [u8; 32],
    /// The coordinate Y.
    pub y: [u8; 32],
}

impl EccPoint {
    /// The uncompressed form of SEC 1: 4, X, Y.
    #[must_use]
    pub fn to_sec1(self) -> [u8; 65] {
        let mut bytes = [4; 65];
        for (place, byte) in bytes
            .iter_mut()
            .skip(1)
            .zip(self.x.iter().chain(self.y.iter()))
        {
            *place = *byte;
        }
        bytes
    }

    /// Reads the uncompressed form of SEC 1. Whether the point lies on the curve is for its user to check.
    #[must_use]
    pub fn from_sec1(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        match (
            reader.u8("form"),
            reader.array("x"),
            reader.array("y"),
            reader.left(),
        ) {
            (Ok(4), Ok(x), Ok(y), 0) => Some(Self { x, y }),
            _ => None,
        }
    }

    /// Reads a TPMS_ECC_POINT.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are cut or a coordinate is longer than 32 bytes.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            x: padded("point x", reader.sized("point x", 32)?)?,
            y: padded("point y", reader.sized("point y", 32)?)?,
        })
    }

    /// Appends a TPMS_ECC_POINT.
    pub fn write(&self, writer: &mut Writer) {
        writer.sized(&self.x).sized(&self.y);
    }
}

/// What is particular to a kind of key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKind {
    /// An elliptic curve key.
    Ecc {
        /// Protection of children, for storage keys.
        symmetric: Symmetric,
        /// Scheme that the key is bound to.
        scheme: EccScheme,
        /// The curve.
        curve: Curve,
        /// Coordinate X as the TPM gave it; in a template, what makes this primary key differ from others.
        x: Vec<u8>,
        /// Coordinate Y.
        y: Vec<u8>,
    },
    /// An RSA key.
    Rsa {
        /// Protection of children, for storage keys.
        symmetric: Symmetric,
        /// Scheme that the key is bound to.
        scheme: RsaScheme,
        /// Length of the modulus, in bits.
        bits: u16,
        /// Public exponent; 0 means 65537.
        exponent: u32,
        /// The modulus; in a template, what makes this primary key differ from others.
        modulus: Vec<u8>,
    },
}

/// A public area whose name algorithm is SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// What the object is and may do.
    pub attributes: Attributes,
    /// Digest of the policy that permits its use; empty for none.
    pub policy: Vec<u8>,
    /// Algorithm and public part.
    pub kind: PublicKind,
}

/// An object's name: the algorithm's id and the digest of its public area, 34 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(pub Vec<u8>);

impl Public {
    /// Parses a TPMT_PUBLIC that fills `bytes`.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are cut or left over, or if an algorithm is none of those above.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let public = Self::read(&mut reader)?;
        reader.end("public area")?;
        Ok(public)
    }

    /// Parses a TPM2B_PUBLIC: a 16-bit length, then the public area.
    ///
    /// # Errors
    /// As [`Public::parse`].
    pub fn parse_sized(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let public = Self::parse(reader.sized("public area", 1024)?)?;
        reader.end("sized public area")?;
        Ok(public)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let algorithm = reader.be16("key algorithm")?;
        let name_hash = reader.be16("name algorithm")?;
        if name_hash != ALG_SHA256 {
            // The one P-384 endorsement template uses SHA-384 names; nothing here does.
            return Err(WireError::Value {
                field: "name algorithm",
                value: name_hash.into(),
            });
        }
        let attributes = Attributes(reader.be32("object attributes")?);
        let policy = reader.sized("policy digest", 64)?.to_vec();
        let kind = match algorithm {
            ALG_ECC => {
                let symmetric = read_symmetric(reader)?;
                let scheme = match reader.be16("key scheme")? {
                    ALG_NULL => EccScheme::Any,
                    ALG_ECDSA => {
                        expect_sha256(reader)?;
                        EccScheme::EcdsaSha256
                    }
                    ALG_ECDH => {
                        expect_sha256(reader)?;
                        EccScheme::EcdhSha256
                    }
                    other => return Err(unexpected("key scheme", other)),
                };
                let curve = match reader.be16("curve")? {
                    CURVE_P256 => Curve::P256,
                    CURVE_P384 => Curve::P384,
                    other => return Err(unexpected("curve", other)),
                };
                let kdf = reader.be16("key derivation")?;
                if kdf != ALG_NULL {
                    return Err(unexpected("key derivation", kdf));
                }
                PublicKind::Ecc {
                    symmetric,
                    scheme,
                    curve,
                    x: reader.sized("point x", 48)?.to_vec(),
                    y: reader.sized("point y", 48)?.to_vec(),
                }
            }
            ALG_RSA => {
                let symmetric = read_symmetric(reader)?;
                let scheme = match reader.be16("key scheme")? {
                    ALG_NULL => RsaScheme::Any,
                    ALG_RSASSA => {
                        expect_sha256(reader)?;
                        RsaScheme::RsassaSha256
                    }
                    other => return Err(unexpected("key scheme", other)),
                };
                PublicKind::Rsa {
                    symmetric,
                    scheme,
                    bits: reader.be16("modulus bits")?,
                    exponent: reader.be32("exponent")?,
                    modulus: reader.sized("modulus", 512)?.to_vec(),
                }
            }
            other => return Err(unexpected("key algorithm", other)),
        };
        Ok(Self {
            attributes,
            policy,
            kind,
        })
    }

    /// The TPMT_PUBLIC in bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u16(match self.kind {
            PublicKind::Ecc { .. } => ALG_ECC,
            PublicKind::Rsa { .. } => ALG_RSA,
        });
        writer
            .u16(ALG_SHA256)
            .u32(self.attributes.0)
            .sized(&self.policy);
        match &self.kind {
            PublicKind::Ecc {
                symmetric,
                scheme,
                curve,
                x,
                y,
            } => {
                write_symmetric(&mut writer, *symmetric);
                match scheme {
                    EccScheme::Any => writer.u16(ALG_NULL),
                    EccScheme::EcdsaSha256 => writer.u16(ALG_ECDSA).u16(ALG_SHA256),
                    EccScheme::EcdhSha256 => writer.u16(ALG_ECDH).u16(ALG_SHA256),
                };
                writer.u16(match curve {
                    Curve::P256 => CURVE_P256,
                    Curve::P384 => CURVE_P384,
                });
                writer.u16(ALG_NULL).sized(x).sized(y);
            }
            PublicKind::Rsa {
                symmetric,
                scheme,
                bits,
                exponent,
                modulus,
            } => {
                write_symmetric(&mut writer, *symmetric);
                match scheme {
                    RsaScheme::Any => writer.u16(ALG_NULL),
                    RsaScheme::RsassaSha256 => writer.u16(ALG_RSASSA).u16(ALG_SHA256),
                };
                writer.u16(*bits).u32(*exponent).sized(modulus);
            }
        }
        writer.into_bytes()
    }

    /// The TPM2B_PUBLIC in bytes.
    #[must_use]
    pub fn to_sized_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.sized(&self.to_bytes());
        writer.into_bytes()
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> Name {
        let mut name = ALG_SHA256.to_be_bytes().to_vec();
        name.extend_from_slice(digest::digest(&digest::SHA256, &self.to_bytes()).as_ref());
        Name(name)
    }

    /// The public point, if this is a P-256 key that has one.
    #[must_use]
    pub fn p256_point(&self) -> Option<EccPoint> {
        match &self.kind {
            PublicKind::Ecc {
                curve: Curve::P256,
                x,
                y,
                ..
            } => Some(EccPoint {
                x: padded("point x", x).ok()?,
                y: padded("point y", y).ok()?,
            }),
            _ => None,
        }
    }
}

fn unexpected(field: &'static str, value: u16) -> WireError {
    WireError::Value {
        field,
        value: value.into(),
    }
}

fn expect_sha256(reader: &mut Reader<'_>) -> Result<(), WireError> {
    match reader.be16("scheme hash")? {
        ALG_SHA256 => Ok(()),
        other => Err(unexpected("scheme hash", other)),
    }
}

fn read_symmetric(reader: &mut Reader<'_>) -> Result<Symmetric, WireError> {
    match reader.be16("symmetric algorithm")? {
        ALG_NULL => Ok(Symmetric::None),
        ALG_AES => {
            let bits = reader.be16("symmetric key bits")?;
            match reader.be16("symmetric mode")? {
                ALG_CFB => Ok(Symmetric::AesCfb { bits }),
                other => Err(unexpected("symmetric mode", other)),
            }
        }
        other => Err(unexpected("symmetric algorithm", other)),
    }
}

fn write_symmetric(writer: &mut Writer, symmetric: Symmetric) {
    match symmetric {
        Symmetric::None => writer.u16(ALG_NULL),
        Symmetric::AesCfb { bits } => writer.u16(ALG_AES).u16(bits).u16(ALG_CFB),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Public {
        Public {
            attributes: Attributes::SIGN.with(Attributes::FIXED_TPM),
            policy: vec![],
            kind: PublicKind::Ecc {
                symmetric: Symmetric::None,
                scheme: EccScheme::EcdsaSha256,
                curve: Curve::P256,
                x: vec![1; 32],
                y: vec![2; 32],
            },
        }
    }

    #[test]
    fn a_public_area_survives_writing_and_reading() {
        let rsa = Public {
            attributes: Attributes::DECRYPT,
            policy: vec![7; 32],
            kind: PublicKind::Rsa {
                symmetric: Symmetric::AesCfb { bits: 128 },
                scheme: RsaScheme::Any,
                bits: 2048,
                exponent: 0,
                modulus: vec![9; 256],
            },
        };
        for public in [key(), rsa] {
            assert_eq!(Public::parse(&public.to_bytes()), Ok(public.clone()));
            assert_eq!(Public::parse_sized(&public.to_sized_bytes()), Ok(public));
        }
    }

    #[test]
    fn every_cut_and_every_extra_byte_is_refused() {
        let mut bytes = key().to_bytes();
        for length in 0..bytes.len() {
            assert!(
                Public::parse(&bytes[..length]).is_err(),
                "cut to {length} bytes"
            );
        }
        bytes.push(0);
        assert!(Public::parse(&bytes).is_err());
    }

    #[test]
    fn a_name_is_the_hash_algorithm_and_the_hash() {
        let name = key().name();
        assert_eq!(name.0.len(), 34);
        assert_eq!(name.0[..2], [0, 0x0b]);
        assert_eq!(
            name.0[2..],
            *digest::digest(&digest::SHA256, &key().to_bytes()).as_ref()
        );
    }

    #[test]
    fn points_travel_in_sec1_form() {
        let point = key().p256_point().unwrap();
        assert_eq!(EccPoint::from_sec1(&point.to_sec1()), Some(point));
        assert_eq!(EccPoint::from_sec1(&[4; 64]), None);
        assert_eq!(EccPoint::from_sec1(&[3; 65]), None);
    }
}
