//! The firmware's variables, through efivarfs (`Documentation/filesystems/efivarfs.rst`): a file a variable, four bytes of
//! attributes before its value, written in one go.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use imaging::gpt::Partition;
use nix::mount::MsFlags;

use super::efi;
use crate::{Error, early};

const DIRECTORY: &str = "/sys/firmware/efi/efivars";
/// EFI_GLOBAL_VARIABLE.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Where the boot stub tells what partition it was started from (<https://systemd.io/BOOT_LOADER_INTERFACE/>).
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Kept without power, readable at boot and at run time.
const ATTRIBUTES: u32 = 7;

/// What the entry is called in the firmware's menu.
pub const DESCRIPTION: &str = "Skerry";

/// Mounts efivarfs.
pub fn mount() -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    early::mount_at("efivarfs", "efivarfs", DIRECTORY, flags, "")
}

/// Makes the boot entry for `path` on the ESP and puts it first. Returns its number.
pub fn add_boot_entry(number: u32, esp: &Partition, path: &str) -> Result<u16, Error> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(DIRECTORY).map_err(Error::system("read", DIRECTORY))? {
        let entry = entry.map_err(Error::system("read", DIRECTORY))?;
        if let Some(number) = entry.file_name().to_str().and_then(entry_number) {
            entries.push((
                number,
                read(&entry.path())
                    .ok()
                    .and_then(|value| efi::description(&value)),
            ));
        }
    }
    let order = read(&variable("BootOrder", GLOBAL)).unwrap_or_default();
    let no_room = || {
        Error::system("find a free number for", "a boot entry")(io::Error::from(
            io::ErrorKind::StorageFull,
        ))
    };
    let change =
        efi::put_first(DESCRIPTION, &entries, &efi::parse_order(&order)).ok_or_else(no_room)?;
    // The entry before the order that names it: a cut between them leaves an entry that nothing refers to.
    let name = format!("Boot{:04X}", change.number);
    write(&name, &efi::load_option(DESCRIPTION, number, esp, path))?;
    write(
        "BootOrder",
        &change
            .order
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect::<Vec<u8>>(),
    )?;
    for old in change.remove {
        // An entry too many does no harm.
        let _ = fs::remove_file(variable(&format!("Boot{old:04X}"), GLOBAL));
    }
    Ok(change.number)
}

/// Id of the partition that the running kernel was loaded from, in lower case, if the boot stub said so.
pub fn boot_partition() -> Option<String> {
    let value = read(&variable("LoaderDevicePartUUID", LOADER)).ok()?;
    let units = efi::parse_order(&value);
    let text = String::from_utf16(&units).ok()?;
    Some(text.trim_end_matches('\0').to_ascii_lowercase())
}

fn entry_number(name: &str) -> Option<u16> {
    let (number, vendor) = name.strip_prefix("Boot")?.split_once('-')?;
    let is_number = number.len() == 4 && number.bytes().all(|b| b.is_ascii_hexdigit());
    (is_number && vendor == GLOBAL).then(|| u16::from_str_radix(number, 16).ok())?
}

fn variable(name: &str, vendor: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}-{vendor}"))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    bytes
        .get(4..)
        .map(<[u8]>::to_vec)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn write(name: &str, value: &[u8]) -> Result<(), Error> {
    let path = variable(name, GLOBAL);
    // Firmware memory wears: what is there already is not written again.
    if read(&path).is_ok_and(|old| old == value) {
        return Ok(());
    }
    let bytes = [&ATTRIBUTES.to_le_bytes(), value].concat();
    let put = || -> io::Result<()> {
        let n = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?
            .write(&bytes)?;
        if n == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    };
    put().map_err(Error::system("write firmware variable", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_entries() {
        assert_eq!(entry_number(&format!("Boot00A1-{GLOBAL}")), Some(0xa1));
        for name in [
            "BootOrder",
            "Boot00A1",
            &format!("BootOrder-{GLOBAL}"),
            &format!("Boot001-{GLOBAL}"),
            &format!("Boot0001-{LOADER}"),
            &format!("Boot+001-{GLOBAL}"),
        ] {
            assert_eq!(entry_number(name), None, "{name}");
        }
    }
}
