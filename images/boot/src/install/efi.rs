//! Boot entries of UEFI firmware, as bytes (UEFI specification 2.10, sections 3.1.3, 10.3.4.9 and 10.3.5.1).

use imaging::gpt::Partition;

/// Whether firmware may start the entry by itself.
const ACTIVE: u32 = 1;

/// The load option for a program on a partition. `path` has `/` between its components.
pub fn load_option(description: &str, number: u32, partition: &Partition, path: &str) -> Vec<u8> {
    let text = |text: &str| -> Vec<u8> {
        text.encode_utf16()
            .chain(std::iter::once(0))
            .flat_map(u16::to_le_bytes)
            .collect()
    };
    // Hard drive node; its sectors are the device's own, as in the partition table.
    let mut drive = Vec::new();
    drive.extend(number.to_le_bytes());
    drive.extend(partition.first.to_le_bytes());
    drive.extend((partition.last - partition.first + 1).to_le_bytes());
    drive.extend(partition.id.to_bytes_le());
    // Table format GPT, signature type GUID.
    drive.extend([2, 2]);
    let mut devices = node(4, 1, &drive);
    devices.extend(node(4, 4, &text(&format!("\\{}", path.replace('/', "\\")))));
    devices.extend(node(0x7f, 0xff, &[]));

    let mut option = ACTIVE.to_le_bytes().to_vec();
    option.extend((devices.len() as u16).to_le_bytes());
    option.extend(text(description));
    option.extend(devices);
    option
}

fn node(kind: u8, subkind: u8, data: &[u8]) -> Vec<u8> {
    let mut node = vec![kind, subkind];
    node.extend((data.len() as u16 + 4).to_le_bytes());
    node.extend(data);
    node
}

/// The description in a load option; `None` if it is not one.
pub fn description(option: &[u8]) -> Option<String> {
    let units: Vec<u16> = option
        .get(6..)?
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_le_bytes([*pair.first()?, *pair.get(1)?])))
        .collect();
    let end = units.iter().position(|unit| *unit == 0)?;
    String::from_utf16(units.get(..end)?).ok()
}

/// What is to be done to the firmware's variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Number of the entry to write.
    pub number: u16,
    /// Numbers of old entries of the same name to remove.
    pub remove: Vec<u16>,
    /// The new boot order.
    pub order: Vec<u16>,
}

/// Puts an entry called `name` first. `entries` are those that exist, by number and description; `order` the order so far.
/// An entry of that name is taken over, so that installing again does not fill the firmware's memory.
pub fn put_first(name: &str, entries: &[(u16, Option<String>)], order: &[u16]) -> Option<Change> {
    let mut same: Vec<u16> = entries
        .iter()
        .filter(|(_, description)| description.as_deref() == Some(name))
        .map(|(n, _)| *n)
        .collect();
    same.sort_unstable();
    let free = || (0..=u16::MAX).find(|n| entries.iter().all(|(taken, _)| taken != n));
    let number = same.first().copied().or_else(free)?;
    let remove: Vec<u16> = same.into_iter().filter(|n| *n != number).collect();
    let rest = order
        .iter()
        .copied()
        .filter(|n| *n != number && !remove.contains(n));
    let order = std::iter::once(number).chain(rest).collect();
    Some(Change {
        number,
        remove,
        order,
    })
}

/// The variable `BootOrder` as numbers.
pub fn parse_order(bytes: &[u8]) -> Vec<u16> {
    bytes
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_le_bytes([*pair.first()?, *pair.get(1)?])))
        .collect()
}

#[cfg(test)]
mod tests {
    use imaging::gpt::TYPE_ESP;
    use uuid::uuid;

    use super::*;

    #[test]
    fn a_load_option_has_the_firmwares_layout() {
        let partition = Partition {
            kind: TYPE_ESP,
            id: uuid!("00112233-4455-6677-8899-aabbccddeeff"),
            first: 2048,
            last: 4095,
            attributes: 0,
            label: String::new(),
        };
        let option = load_option("Sk", 1, &partition, "EFI/a");
        let wanted = "01000000 4000 53006b000000 \
                      04012a00 01000000 0008000000000000 0008000000000000 33221100554477668899aabbccddeeff 0202 \
                      04041200 5c004500460049005c0061000000 7fff0400";
        assert_eq!(hex::encode(&option), wanted.replace(' ', ""));
        assert_eq!(description(&option).as_deref(), Some("Sk"));
        for len in 0..12 {
            assert_eq!(description(&option[..len]), None, "{len}");
        }
    }

    #[test]
    fn the_entry_comes_first_and_stays_one() {
        let entry = |n, name: &str| (n, Some(name.to_owned()));
        let firmware = [entry(0, "UiApp"), entry(2, "UEFI QEMU"), (5, None)];
        assert_eq!(
            put_first("Skerry", &firmware, &[0, 2]).unwrap(),
            Change {
                number: 1,
                remove: vec![],
                order: vec![1, 0, 2]
            }
        );
        let again = [entry(0, "UiApp"), entry(7, "Skerry"), entry(3, "Skerry")];
        assert_eq!(
            put_first("Skerry", &again, &[7, 0, 3, 9]).unwrap(),
            Change {
                number: 3,
                remove: vec![7],
                order: vec![3, 0, 9]
            }
        );
        assert_eq!(
            put_first("Skerry", &[], &[]).unwrap(),
            Change {
                number: 0,
                remove: vec![],
                order: vec![0]
            }
        );
        assert_eq!(parse_order(&[1, 0, 0, 2, 9]), [1, 0x200]);
    }
}
