//! Whose volume is this? The label, read from a boot sector without mounting anything.

/// The label in a volume's first sector (512 bytes suffice), if that is a FAT boot sector.
pub fn label(sector: &[u8]) -> Option<String> {
    if sector.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    // FAT32 has a 16-bit count of FAT sectors of zero, and its extended fields lie 28 bytes further on.
    let extended = if sector.get(22..24)? == [0, 0] {
        66
    } else {
        38
    };
    if *sector.get(extended)? != 0x29 || !sector.get(extended + 16..)?.starts_with(b"FAT") {
        return None;
    }
    let label = sector.get(extended + 5..extended + 16)?;
    let text = std::str::from_utf8(label).ok().filter(|t| t.is_ascii())?;
    Some(text.trim_end_matches(' ').to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Volume, plan};
    use super::*;
    use crate::gpt::SectorSize;

    #[test]
    fn the_label_of_both_kinds_is_found_and_nothing_else() {
        for (kind, size) in [(Kind::Fat16, 16 << 20), (Kind::Fat32, 40 << 20)] {
            let volume = Volume {
                size,
                sector: SectorSize::B512,
                kind,
                label: "SKERRY-CFG",
                serial: 0,
                hidden_sectors: 0,
            };
            let mut out = Vec::new();
            plan(volume, &[])
                .unwrap()
                .write::<std::io::Error>(&mut out, &mut |_, _| Ok(()))
                .unwrap();
            assert_eq!(label(&out[..512]).as_deref(), Some("SKERRY-CFG"));
            assert_eq!(label(&out[..300]), None);
            out[510] = 0;
            assert_eq!(label(&out[..512]), None);
        }
        assert_eq!(label(&[]), None);
        assert_eq!(label(&[0; 512]), None);
    }
}
