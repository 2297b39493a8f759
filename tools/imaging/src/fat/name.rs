//! Names in a FAT directory: the short one of eight and three, and the long one in UTF-16 beside it
//! (Microsoft, "FAT: General Overview of On-Disk Format", version 1.03).

/// Name field of a directory entry: eight and three characters, padded with spaces.
pub type Short = [u8; 11];

/// Length of a directory entry, bytes.
pub const ENTRY_LEN: usize = 32;

/// Characters of a long name in one entry.
const UNITS_AN_ENTRY: usize = 13;

/// Whether a path component can be a name at all.
pub fn is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.encode_utf16().count() <= 255
        && name != "."
        && name != ".."
        && !name.starts_with(' ')
        && !name.ends_with([' ', '.'])
        && !name
            .chars()
            .any(|c| c.is_control() || "\"*/:<>?\\|".contains(c))
}

fn is_short_char(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || "$%'-_@~`!(){}^#&".contains(c)
}

/// The name as a short one, if it is one already.
pub fn exact_short(name: &str) -> Option<Short> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let fits = (1..=8).contains(&base.len())
        && extension.len() <= 3
        && name.ends_with('.') == name.is_empty()
        && base.chars().chain(extension.chars()).all(is_short_char);
    fits.then(|| pack(base, extension))
}

/// A short name made from a long one, different from all of `taken`; `None` when a million are taken.
pub fn made_short(name: &str, taken: &[Short]) -> Option<Short> {
    let upper: String = name.chars().map(|c| c.to_ascii_uppercase()).collect();
    let (base, extension) = upper
        .trim_start_matches('.')
        .rsplit_once('.')
        .unwrap_or((&upper, ""));
    let clean = |text: &str, len: usize| -> String {
        let kept = text.chars().filter(|c| *c != ' ' && *c != '.');
        kept.map(|c| if is_short_char(c) { c } else { '_' })
            .take(len)
            .collect()
    };
    let extension = clean(extension, 3);
    (1..1_000_000u32).find_map(|n| {
        let tail = format!("~{n}");
        let short = pack(
            &format!("{}{tail}", clean(base, 8 - tail.len())),
            &extension,
        );
        (!taken.contains(&short)).then_some(short)
    })
}

fn pack(base: &str, extension: &str) -> Short {
    let mut short = [b' '; 11];
    for (to, from) in short.iter_mut().zip(base.bytes().take(8)) {
        *to = from;
    }
    for (to, from) in short.iter_mut().skip(8).zip(extension.bytes().take(3)) {
        *to = from;
    }
    short
}

/// The entries that carry a long name, in the order in which they stand before the short one.
pub fn long_entries(name: &str, short: &Short) -> Vec<[u8; ENTRY_LEN]> {
    let checksum = short
        .iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let units: Vec<u16> = name.encode_utf16().collect();
    let pieces = units.len().div_ceil(UNITS_AN_ENTRY);
    let mut entries: Vec<[u8; ENTRY_LEN]> = units
        .chunks(UNITS_AN_ENTRY)
        .enumerate()
        .map(|(i, piece)| {
            // A name that does not fill its last entry ends with a zero; behind it stand 0xFFFF.
            let end = std::iter::once(0).chain(std::iter::repeat(0xffff));
            let text: Vec<u8> = piece
                .iter()
                .copied()
                .chain(end)
                .take(UNITS_AN_ENTRY)
                .flat_map(u16::to_le_bytes)
                .collect();
            let (first, rest) = text.split_at(10);
            let (second, third) = rest.split_at(12);
            let last = if i + 1 == pieces { 0x40 } else { 0 };
            let mut bytes = vec![(i as u8 + 1) | last];
            bytes.extend(first);
            bytes.extend([0x0f, 0, checksum]);
            bytes.extend(second);
            bytes.extend([0, 0]);
            bytes.extend(third);
            let mut entry = [0; ENTRY_LEN];
            for (to, from) in entry.iter_mut().zip(bytes) {
                *to = from;
            }
            entry
        })
        .collect();
    entries.reverse();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names() {
        for (name, short) in [
            ("BOOTX64.EFI", Some(b"BOOTX64 EFI")),
            ("EFI", Some(b"EFI        ")),
            ("loader.conf", None),
            ("TOOLONGNAME", None),
            ("A.JSON", None),
            ("A.B.C", None),
        ] {
            assert_eq!(exact_short(name).as_ref(), short, "{name}");
        }
    }

    #[test]
    fn made_names_differ() {
        let mut taken = Vec::new();
        for wanted in [b"SKERRY~1EFI", b"SKERRY~2EFI", b"SKERRY~3EFI"] {
            let short = made_short("skerry-1.2.3+3.efi", &taken).unwrap();
            assert_eq!(&short, wanted);
            taken.push(short);
        }
        assert_eq!(&made_short("parts.json", &[]).unwrap(), b"PARTS~1 JSO");
        assert_eq!(&made_short("über maß", &[]).unwrap(), b"_BERMA~1   ");
    }

    #[test]
    fn names_that_no_system_takes_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a\\b",
            "a.",
            "a ",
            " a",
            "a\n",
            "x:y",
            &"l".repeat(256),
        ] {
            assert!(!is_valid(name), "{name:?}");
        }
        for name in [
            "server",
            "skerry-1.2.3+3.efi",
            "größe.txt",
            &"l".repeat(255),
        ] {
            assert!(is_valid(name), "{name:?}");
        }
    }

    #[test]
    fn long_names_fill_entries_of_thirteen() {
        let short = *b"SKERRY~1EFI";
        for (len, entries) in [(1, 1), (13, 1), (14, 2), (26, 2), (255, 20)] {
            let made = long_entries(&"x".repeat(len), &short);
            assert_eq!(made.len(), entries);
            assert_eq!(made.first().unwrap()[0], 0x40 | entries as u8);
            assert_eq!(made.last().unwrap()[0] & 0x3f, 1);
            assert!(made.iter().all(|e| e[11] == 0x0f && e[13] == made[0][13]));
        }
    }
}
