//! dm-verity: where the hash tree is and what the kernel must be told of it (cryptsetup's on-disk format,
//! <https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity>; `Documentation/admin-guide/device-mapper/verity.rst`).
//!
//! The superblock is not signed and need not be: whatever it says, the kernel accepts no block that the root hash does not
//! vouch for. It is checked all the same, so that damage is told in words.

use imaging::parts::RootHash;

/// Length of the superblock, bytes.
pub const SUPERBLOCK_LEN: usize = 512;

/// Why a root file system's superblock is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// It ends too early.
    #[error("the superblock is cut short")]
    Short,
    /// Something else lies there.
    #[error("there is no verity superblock")]
    Absent,
    /// It is of another kind than veritysetup makes.
    #[error("its verity superblock has version {version}, type {kind}; 1 and 1 are known")]
    Version {
        /// Version of the superblock.
        version: u32,
        /// Type of the hash tree.
        kind: u32,
    },
    /// The tree is made with another hash.
    #[error("its hash algorithm is not sha256")]
    Algorithm,
    /// A block size is no power of two between 512 and 65536.
    #[error("its verity superblock has a block size of {0}")]
    BlockSize(u32),
    /// The data would not end before the superblock, or the tree not in the partition.
    #[error("its verity superblock at byte {offset} counts {data_blocks} blocks of data before it")]
    Extent {
        /// Where the superblock lies.
        offset: u64,
        /// What it says.
        data_blocks: u64,
    },
    /// The salt is longer than the format has room for.
    #[error("its verity superblock has a salt of {0} bytes")]
    Salt(usize),
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    data_block: u32,
    hash_block: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

/// Reads the superblock that lies at byte `offset` of a partition of `size` bytes.
pub fn parse(bytes: &[u8], offset: u64, size: u64) -> Result<Superblock, SuperblockError> {
    let field = |at: usize, len: usize| bytes.get(at..at + len).ok_or(SuperblockError::Short);
    let le32 = |at| {
        Ok::<u32, SuperblockError>(
            field(at, 4)?
                .iter()
                .rev()
                .fold(0, |n, b| (n << 8) | u32::from(*b)),
        )
    };
    if field(0, 8)? != b"verity\0\0" {
        return Err(SuperblockError::Absent);
    }
    let (version, kind) = (le32(8)?, le32(12)?);
    if (version, kind) != (1, 1) {
        return Err(SuperblockError::Version { version, kind });
    }
    let name = field(32, 32)?;
    if name.split(|b| *b == 0).next() != Some(b"sha256") {
        return Err(SuperblockError::Algorithm);
    }
    let (data_block, hash_block) = (le32(64)?, le32(68)?);
    for block in [data_block, hash_block] {
        if !(512..=65536).contains(&block) || !block.is_power_of_two() {
            return Err(SuperblockError::BlockSize(block));
        }
    }
    let data_blocks = (u64::from(le32(76)?) << 32) | u64::from(le32(72)?);
    let data_len = data_blocks
        .checked_mul(u64::from(data_block))
        .filter(|len| *len > 0 && *len <= offset);
    if data_len.is_none() || offset >= size || !offset.is_multiple_of(u64::from(hash_block)) {
        return Err(SuperblockError::Extent {
            offset,
            data_blocks,
        });
    }
    let salt_len = usize::from(field(80, 1)?.first().copied().unwrap_or(0))
        | usize::from(field(81, 1)?.first().copied().unwrap_or(0)) << 8;
    if salt_len > 256 {
        return Err(SuperblockError::Salt(salt_len));
    }
    Ok(Superblock {
        data_block,
        hash_block,
        data_blocks,
        salt: field(88, salt_len)?.to_vec(),
    })
}

/// The line of a device mapper table: length in sectors of 512 bytes and the target's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLine {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Parameters of the target `verity`.
    pub parameters: String,
}

/// The table for a partition `device` (`major:minor`) whose superblock lies at byte `offset`. A corrupt block restarts the
/// machine: a process that reads one would otherwise see an error that nobody understands.
pub fn table(superblock: &Superblock, device: &str, offset: u64, root: &RootHash) -> TableLine {
    let salt = if superblock.salt.is_empty() {
        "-".to_owned()
    } else {
        hex::encode(&superblock.salt)
    };
    let Superblock {
        data_block,
        hash_block,
        data_blocks,
        ..
    } = superblock;
    // The tree begins in the block after the superblock's.
    let hash_start = offset / u64::from(*hash_block) + 1;
    TableLine {
        sectors: data_blocks * u64::from(*data_block) / 512,
        parameters: format!(
            "1 {device} {device} {data_block} {hash_block} {data_blocks} {hash_start} sha256 {root} {salt} \
             1 restart_on_corruption"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Vec<u8> {
        let mut b = b"verity\0\0".to_vec();
        b.extend(1u32.to_le_bytes());
        b.extend(1u32.to_le_bytes());
        b.extend([7; 16]);
        b.extend(b"sha256");
        b.resize(64, 0);
        b.extend(4096u32.to_le_bytes());
        b.extend(4096u32.to_le_bytes());
        b.extend(100u64.to_le_bytes());
        b.extend(4u16.to_le_bytes());
        b.extend([0; 6]);
        b.extend([0xde, 0xad, 0xbe, 0xef]);
        b.resize(SUPERBLOCK_LEN, 0);
        b
    }

    const OFFSET: u64 = 100 * 4096;
    const SIZE: u64 = 1 << 30;

    #[test]
    fn a_table_line_is_made_of_a_superblock() {
        let root = "0f".repeat(32);
        let parsed = parse(&superblock(), OFFSET, SIZE).unwrap();
        let line = table(&parsed, "259:2", OFFSET, &root.parse().unwrap());
        assert_eq!(line.sectors, 800);
        assert_eq!(
            line.parameters,
            format!(
                "1 259:2 259:2 4096 4096 100 101 sha256 {root} deadbeef 1 restart_on_corruption"
            )
        );
        let unsalted = Superblock {
            salt: vec![],
            ..parsed
        };
        assert!(
            table(&unsalted, "8:1", OFFSET, &root.parse().unwrap())
                .parameters
                .contains(" - 1 restart")
        );
    }

    #[test]
    fn damage_is_told() {
        for (at, value, reason) in [
            (0, 1, "no verity superblock"),
            (8, 2, "version 2"),
            (12, 0, "type 0"),
            (33, b'x', "not sha256"),
            (65, 0x11, "block size of 4352"),
            (70, 0xff, "block size"),
            (72, 101, "counts 101 blocks"),
            (79, 0xff, "blocks of data"),
            (81, 2, "salt of 516"),
        ] {
            let mut bytes = superblock();
            bytes[at] = value;
            let error = parse(&bytes, OFFSET, SIZE).unwrap_err().to_string();
            assert!(error.contains(reason), "byte {at}: {error}");
        }
        for len in 0..92 {
            assert!(parse(&superblock()[..len], OFFSET, SIZE).is_err(), "{len}");
        }
        assert!(parse(&superblock(), OFFSET, OFFSET).is_err());
    }
}
