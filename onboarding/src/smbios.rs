//! What a machine's maker wrote into it: name, serial number, firmware version.
//!
//! Linux shows SMBIOS strings under `/sys/class/dmi/id` (Documentation/ABI/testing/sysfs-class-dmi), a device tree's under
//! `/proc/device-tree`. Makers leave fillers in many of them ("To be filled by O.E.M."); those count as absent, because a
//! serial number that half the world has is none.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Longest string that is kept, in characters: EVE's limit for serial numbers.
pub const MAX_TEXT: usize = 256;

/// What fillers look like, in small letters.
const FILLERS: &[&str] = &[
    "0",
    "0123456789",
    "00000000",
    "123456789",
    "1234567890",
    "chassis serial number",
    "default",
    "default string",
    "empty",
    "inva",
    "n/a",
    "na",
    "none",
    "not applicable",
    "not available",
    "not specified",
    "o.e.m.",
    "oem",
    "serial number",
    "system manufacturer",
    "system product name",
    "system serial number",
    "system version",
    "to be filled by o.e.m.",
    "to be filled by o.e.m",
    "undefined",
    "unknown",
    "xxxxxxxx",
];

/// What the maker says of a machine. Absent strings are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Maker.
    pub manufacturer: String,
    /// Product name.
    pub product: String,
    /// Product version.
    pub version: String,
    /// Serial number.
    pub serial: String,
    /// SMBIOS UUID.
    pub uuid: String,
    /// Maker of the firmware.
    pub firmware_vendor: String,
    /// Version of the firmware.
    pub firmware_version: String,
    /// Date of the firmware, as its maker writes it.
    pub firmware_date: String,
}

impl Machine {
    /// Reads what is there below `root` (`/` on a device). What cannot be read is absent.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let dmi = |names: &[&str]| first(root, "sys/class/dmi/id", names);
        let tree = |names: &[&str]| first(root, "proc/device-tree", names);
        let or = |a: String, b: String| if a.is_empty() { b } else { a };
        Self {
            manufacturer: dmi(&["sys_vendor", "board_vendor"]),
            product: or(dmi(&["product_name", "board_name"]), tree(&["model"])),
            version: dmi(&["product_version", "board_version"]),
            serial: or(
                dmi(&["product_serial", "board_serial", "chassis_serial"]),
                tree(&["serial-number"]),
            ),
            uuid: uuid(dmi(&["product_uuid"])),
            firmware_vendor: dmi(&["bios_vendor"]),
            firmware_version: dmi(&["bios_version"]),
            firmware_date: dmi(&["bios_date"]),
        }
    }

    /// Firmware's maker, version and date in one line, for the quote's version text.
    #[must_use]
    pub fn firmware(&self) -> String {
        [
            &self.firmware_vendor,
            &self.firmware_version,
            &self.firmware_date,
        ]
        .into_iter()
        .filter(|text| !text.is_empty())
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
    }
}

/// The first of the files that says something.
fn first(root: &Path, folder: &str, names: &[&str]) -> String {
    names
        .iter()
        .map(|name| text(&root.join(folder).join(name)))
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut bytes));
    match read {
        Ok(_) => clean(&String::from_utf8_lossy(&bytes)),
        Err(_) => String::new(),
    }
}

/// Makes a maker's string fit for comparing and showing: no control characters, no spaces around it, one space inside, at
/// most [`MAX_TEXT`] characters, nothing if it is a filler.
#[must_use]
pub fn clean(text: &str) -> String {
    let words: Vec<String> = text
        .split(|c: char| c.is_whitespace() || c.is_control() || c == '\u{fffd}')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    let text: String = words.join(" ").chars().take(MAX_TEXT).collect();
    let small = text.to_lowercase();
    let one_letter = |letters: &str| {
        let mut letters = letters.chars();
        let first = letters.next();
        letters.all(|c| Some(c) == first)
    };
    // "0000000", "........", "FFFFFFFF".
    if FILLERS.contains(&small.as_str()) || (small.len() > 1 && one_letter(&small)) {
        return String::new();
    }
    text
}

/// A UUID of zeros or ones, or in a maker's well-known sample form, is none.
fn uuid(text: String) -> String {
    let digits: String = text
        .chars()
        .filter(char::is_ascii_hexdigit)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let sample = "03000200040005000006000700080009";
    let all_same = digits
        .chars()
        .next()
        .is_none_or(|first| digits.chars().all(|c| c == first));
    if digits.len() != 32 || all_same || digits == sample {
        return String::new();
    }
    text.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn makers_fillers_count_as_absent() {
        for filler in [
            "To Be Filled By O.E.M.",
            " Default string\n",
            "00000000000",
            "........",
            "System Serial Number",
            "",
            "\0\0",
        ] {
            assert_eq!(clean(filler), "", "{filler:?}");
        }
        assert_eq!(clean(" 4CE0 \t 12345\n"), "4CE0 12345");
        assert_eq!(clean("A\u{7}B"), "A B");
        assert_eq!(clean(&"ab".repeat(300)).chars().count(), MAX_TEXT);
    }

    #[test]
    fn a_machine_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let dmi = root.path().join("sys/class/dmi/id");
        fs::create_dir_all(&dmi).unwrap();
        for (name, text) in [
            ("sys_vendor", "Acme\n"),
            ("product_name", "Box 9\n"),
            ("product_serial", "Not Specified\n"),
            ("board_serial", "B-77\n"),
            ("product_uuid", "8F1E33A0-0000-4B1D-9C55-0A0B0C0D0E0F\n"),
            ("bios_vendor", "EDK II\n"),
            ("bios_version", "1.2\n"),
        ] {
            fs::write(dmi.join(name), text).unwrap();
        }
        let machine = Machine::read(root.path());
        assert_eq!(machine.manufacturer, "Acme");
        assert_eq!(machine.serial, "B-77");
        assert_eq!(machine.uuid, "8f1e33a0-0000-4b1d-9c55-0a0b0c0d0e0f");
        assert_eq!(machine.firmware(), "EDK II 1.2");
        assert_eq!(
            Machine::read(&root.path().join("nowhere")),
            Machine::default()
        );
    }

    #[test]
    fn uuids_that_many_machines_have_are_none() {
        for sample in [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "short",
        ] {
            assert_eq!(uuid(sample.to_owned()), "", "{sample}");
        }
    }
}
