//! Digests of files: computed while bytes pass by, and written in `parts.json` as digits alone.

use std::io::{self, Read, Write};

pub use protocol::digest::{Digest, DigestError, Hasher};

/// Copies everything from `from` to `to`, hashing as it goes; gives digest and size. `step` is told the size in bytes of each piece copied.
pub fn copy_hashed(
    from: &mut dyn Read,
    to: &mut dyn Write,
    step: &mut dyn FnMut(u64),
) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let piece = buffer.get(..n).unwrap_or_default();
        hasher.update(piece);
        to.write_all(piece)?;
        size += n as u64;
        step(n as u64);
    }
}

/// For serde's `with`: 64 hexadecimal digits, without the name of the algorithm.
pub(crate) mod bare {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Digest;

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&digest.hex())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        Digest::from_hex(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_hashes_what_passes() {
        let data = vec![7; 3_000_000];
        let (mut out, mut seen) = (Vec::new(), 0);
        let (digest, len) =
            copy_hashed(&mut data.as_slice(), &mut out, &mut |n| seen += n).unwrap();
        assert_eq!(
            (digest, len, seen),
            (Digest::of(&data), 3_000_000, 3_000_000)
        );
        assert_eq!(out, data);
    }
}
