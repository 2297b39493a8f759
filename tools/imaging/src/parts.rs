//! The parts of an image: what `cargo xtask image` leaves behind and everything later is made of.
//!
//! `parts.json` lies beside the files that it describes. It is written once, by [`Parts::measure`] and [`Parts::write`],
//! and checked by everyone who uses the files: the operator's command line when it makes a stick, the installer before it
//! touches a disk. The names are fixed ([`PartName`]), so nobody builds a path out of words that came from outside.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;
use crate::digest::{Digest, DigestError, copy_hashed};
use crate::fat::MAX_FILE;

/// Name of the description in a directory of parts.
pub const PARTS_FILE: &str = "parts.json";

/// `parts.json` is a few hundred bytes; more than this is something else.
const MAX_PARTS_JSON: u64 = 64 * 1024;

/// The files that make an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PartName {
    /// Root file system with its dm-verity hash tree.
    #[serde(rename = "root.img")]
    Root,
    /// The host's unified kernel image.
    #[serde(rename = "host.efi")]
    Host,
    /// The installer's unified kernel image.
    #[serde(rename = "installer.efi")]
    Installer,
    /// The boot loader.
    #[serde(rename = "systemd-bootx64.efi")]
    Loader,
}

impl PartName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Root, Self::Host, Self::Installer, Self::Loader];

    /// Those that travel in the stick's payload; the installer itself is what the stick boots.
    pub const PAYLOAD: [Self; 3] = [Self::Root, Self::Host, Self::Loader];

    /// The file's name.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Root => "root.img",
            Self::Host => "host.efi",
            Self::Installer => "installer.efi",
            Self::Loader => "systemd-bootx64.efi",
        }
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

/// Size and digest of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Size in bytes.
    pub size: u64,
    /// Digest of the whole file.
    #[serde(with = "crate::digest::bare")]
    pub sha256: Digest,
}

/// Which image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// For the field: no shell, no ssh, no package manager.
    Production,
    /// With a shell on the serial line.
    Debug,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Production => "production",
            Self::Debug => "debug",
        })
    }
}

/// Version of an image. It becomes part of a file name on the ESP, where `+` starts the boot counter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

/// The text cannot be a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a version: 1 to 64 of A-Z a-z 0-9 . _ ~ ^ -, beginning with a letter or digit"
)]
pub struct NotAVersion(String);

impl Version {
    /// The version's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let fits = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._~^-".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAVersion(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Version {
    type Error = NotAVersion;

    fn try_from(text: String) -> Result<Self, NotAVersion> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Root of the dm-verity hash tree over the root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RootHash(#[serde(with = "crate::digest::bare")] Digest);

impl RootHash {
    /// Wraps the digest.
    pub const fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }

    /// Unique id of the partition that holds this root file system: the hash's first 128 bits, read as the text form of
    /// a GUID digit by digit (UAPI Group, Discoverable Partitions Specification, "usr and root verity").
    pub fn partition_id(&self) -> Uuid {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(self.0.bytes()) {
            *to = *from;
        }
        Uuid::from_bytes(bytes)
    }
}

impl FromStr for RootHash {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Digest::from_hex(text).map(Self)
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.hex())
    }
}

/// Why a text is not `parts.json`, without its path: the caller knows it.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// It is no JSON, or other JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A file is not in it.
    #[error("it does not list {0}")]
    NotListed(PartName),
    /// A file without bytes.
    #[error("it lists {0} as empty")]
    Empty(PartName),
    /// A file that no stick can carry.
    #[error(
        "it lists {name} with {size} bytes, more than a file on the stick can have ({MAX_FILE})"
    )]
    TooLarge {
        /// Which.
        name: PartName,
        /// Its size in bytes.
        size: u64,
    },
    /// The hash tree cannot lie where it says.
    #[error("its verityOffset {offset} is not a multiple of 4096 inside root.img ({root} bytes)")]
    VerityOffset {
        /// What it says.
        offset: u64,
        /// Size of the root file system with its tree.
        root: u64,
    },
}

/// What `parts.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parts {
    /// Version of the image.
    pub version: Version,
    /// Production or debug.
    pub variant: Variant,
    /// Root of the hash tree in `root.img`.
    pub root_hash: RootHash,
    /// Where in `root.img` the verity superblock begins, in bytes; a multiple of 4096.
    pub verity_offset: u64,
    /// Every file of [`PartName::ALL`].
    pub files: BTreeMap<PartName, FileDigest>,
}

impl Parts {
    /// Reads `parts.json` text.
    pub fn parse(json: &[u8]) -> Result<Self, PartsError> {
        let parts: Self = serde_json::from_slice(json)?;
        let size_of = |name| {
            let file = parts.files.get(&name).ok_or(PartsError::NotListed(name))?;
            Ok::<_, PartsError>(file.size)
        };
        for name in PartName::ALL {
            match size_of(name)? {
                0 => return Err(PartsError::Empty(name)),
                // Every part travels as a file on FAT32. Sizes up to this also add up without overflow.
                size if size > MAX_FILE => return Err(PartsError::TooLarge { name, size }),
                _ => {}
            }
        }
        let root = size_of(PartName::Root)?;
        if !parts.verity_offset.is_multiple_of(4096)
            || parts.verity_offset == 0
            || parts.verity_offset >= root
        {
            return Err(PartsError::VerityOffset {
                offset: parts.verity_offset,
                root,
            });
        }
        Ok(parts)
    }

    /// Reads `parts.json` from `dir`. The files themselves are not looked at: see [`Parts::verify`].
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(PARTS_FILE);
        let size = std::fs::metadata(&path)
            .map_err(Error::io("read", &path))?
            .len();
        if size > MAX_PARTS_JSON {
            let reason = format!("it has {size} bytes, more than {MAX_PARTS_JSON}");
            return Err(Error::BadParts { path, reason });
        }
        let json = std::fs::read(&path).map_err(Error::io("read", &path))?;
        Self::parse(&json).map_err(|error| Error::BadParts {
            path,
            reason: error.to_string(),
        })
    }

    /// Measures the files in `dir` and returns their description, not yet written.
    pub fn measure(
        dir: &Path,
        version: Version,
        variant: Variant,
        root_hash: RootHash,
        verity_offset: u64,
    ) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        for name in PartName::ALL {
            let path = dir.join(name.file_name());
            files.insert(name, digest_file(&path, &mut |_| ())?);
        }
        Ok(Self {
            version,
            variant,
            root_hash,
            verity_offset,
            files,
        })
    }

    /// Writes `parts.json` into `dir`, whole or not at all.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(PARTS_FILE);
        durable::write(&path, &self.to_json(), 0o644)?;
        Ok(())
    }

    /// `parts.json` as text: the same bytes for the same parts.
    pub fn to_json(&self) -> Vec<u8> {
        // Serialising structs of strings and numbers into memory has no way to fail.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// Size and digest of one file.
    pub fn file(&self, name: PartName) -> Result<FileDigest, Error> {
        self.files
            .get(&name)
            .copied()
            .ok_or(Error::PartNotListed { name })
    }

    /// Reads the files `names` in `dir` and compares them with what is written here. `progress` is told bytes done of
    /// bytes in all.
    pub fn verify(
        &self,
        dir: &Path,
        names: &[PartName],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        let mut total = 0;
        for name in names {
            total += self.file(*name)?.size;
        }
        let mut done = 0;
        for name in names {
            let wanted = self.file(*name)?;
            let path = dir.join(name.file_name());
            let size = std::fs::metadata(&path)
                .map_err(Error::io("read", &path))?
                .len();
            if size != wanted.size {
                return Err(Error::WrongPart {
                    path,
                    reason: format!("it has {size} bytes, not {}", wanted.size),
                });
            }
            let found = digest_file(&path, &mut |n| {
                done += n;
                progress(done, total);
            })?;
            if found != wanted {
                let reason = format!(
                    "its SHA-256 is {}, not {}",
                    found.sha256.hex(),
                    wanted.sha256.hex()
                );
                return Err(Error::WrongPart { path, reason });
            }
        }
        Ok(())
    }

    /// Name of the host's UKI on the ESP with a fresh boot counter of three tries
    /// (<https://systemd.io/AUTOMATIC_BOOT_ASSESSMENT/>).
    pub fn uki_name(&self) -> String {
        format!("skerry-{}+3.efi", self.version)
    }
}

fn digest_file(path: &PathBuf, step: &mut dyn FnMut(u64)) -> Result<FileDigest, Error> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let (sha256, size) =
        copy_hashed(&mut file, &mut io::sink(), step).map_err(Error::io("read", path))?;
    Ok(FileDigest { size, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample(dir: &Path) -> Parts {
        for (i, name) in PartName::ALL.into_iter().enumerate() {
            std::fs::write(dir.join(name.file_name()), vec![i as u8 + 1; 9000 + i]).unwrap();
        }
        let hash = RootHash::new(Digest::of(b"root"));
        Parts::measure(
            dir,
            "1.2.3-rc1".parse().unwrap(),
            Variant::Debug,
            hash,
            4096,
        )
        .unwrap()
    }

    #[test]
    fn written_parts_are_read_back_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        let parts = sample(dir.path());
        parts.write(dir.path()).unwrap();
        assert_eq!(Parts::load(dir.path()).unwrap(), parts);
        let mut last = (0, 0);
        parts
            .verify(dir.path(), &PartName::ALL, &mut |done, total| {
                last = (done, total)
            })
            .unwrap();
        assert_eq!(last, (36006, 36006));
        let text = String::from_utf8(parts.to_json()).unwrap();
        for word in [
            "\"variant\": \"debug\"",
            "\"rootHash\": \"",
            "\"verityOffset\": 4096",
            "\"systemd-bootx64.efi\": {",
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn a_changed_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let parts = sample(dir.path());
        let host = dir.path().join("host.efi");
        let mut bytes = std::fs::read(&host).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(&host, &bytes).unwrap();
        let error = parts
            .verify(dir.path(), &PartName::ALL, &mut |_, _| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("host.efi") && error.contains("SHA-256"),
            "{error}"
        );
        bytes.pop();
        std::fs::write(&host, &bytes).unwrap();
        let error = parts
            .verify(dir.path(), &PartName::ALL, &mut |_, _| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains("9000 bytes, not 9001"), "{error}");
    }

    #[test]
    fn foreign_json_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let good = String::from_utf8(sample(dir.path()).to_json()).unwrap();
        for (from, to, reason) in [
            ("1.2.3-rc1", "../../etc", "not a version"),
            ("1.2.3-rc1", "1+1", "not a version"),
            (
                "\"verityOffset\": 4096",
                "\"verityOffset\": 4097",
                "multiple of 4096",
            ),
            (
                "\"verityOffset\": 4096",
                "\"verityOffset\": 40960",
                "multiple of 4096",
            ),
            ("host.efi", "passwd", "unknown variant"),
            ("\"size\": 9001", "\"size\": 0", "as empty"),
            (
                "\"size\": 9001",
                "\"size\": 18446744073709551615",
                "more than a file on the stick can have",
            ),
            (
                "\"size\": 9001",
                "\"size\": 4294967296",
                "more than a file on the stick can have",
            ),
            ("debug", "test", "unknown variant"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = Parts::parse(good.replace(from, to).as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{from} -> {to}: {error}");
        }
        assert!(Parts::parse(b"{}").is_err());
    }

    #[test]
    fn the_partition_id_is_the_hash_digit_by_digit() {
        let hash: RootHash = "00112233445566778899aabbccddeeff00000000000000000000000000000000"
            .parse()
            .unwrap();
        assert_eq!(
            hash.partition_id().to_string(),
            "00112233-4455-6677-8899-aabbccddeeff"
        );
    }
}
