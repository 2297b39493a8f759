//! What machine is this? Told before anything is changed, and kept in the report on the stick.
//!
//! Everything is read from sysfs and procfs; devices count by what the bus says of them, so that no driver is needed.

use std::path::Path;

use crate::block::{self, Bus, Disk, text};

/// A machine as the installer found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Maker, product.
    pub product: String,
    /// Serial number, if the maker filled it in.
    pub serial: Option<String>,
    /// Name of the processor and number of logical ones.
    pub cpu: (String, usize),
    /// Intel's or AMD's virtualisation, if the processor has it and the firmware leaves it on.
    pub virtualisation: Option<&'static str>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether firmware announces a TPM 2.0.
    pub tpm: bool,
    /// Whether it was started by UEFI.
    pub uefi: bool,
    /// Network adapters, `vendor:device` of PCI.
    pub network: Vec<String>,
}

/// Reads it all below `root` (`/`).
pub fn look(root: &Path) -> Hardware {
    let dmi = |name: &str| {
        text(&root.join("sys/class/dmi/id").join(name)).filter(|text| is_filled_in(text))
    };
    let cpuinfo = text(&root.join("proc/cpuinfo")).unwrap_or_default();
    let meminfo = text(&root.join("proc/meminfo")).unwrap_or_default();
    let product: Vec<String> = ["sys_vendor", "product_name"]
        .into_iter()
        .filter_map(dmi)
        .collect();
    Hardware {
        product: if product.is_empty() {
            "unknown machine".to_owned()
        } else {
            product.join(" ")
        },
        serial: dmi("product_serial").or_else(|| dmi("board_serial")),
        cpu: processor(&cpuinfo),
        virtualisation: virtualisation(&cpuinfo),
        memory_mib: memory_kib(&meminfo) / 1024,
        tpm: root.join("sys/firmware/acpi/tables/TPM2").exists()
            || root.join("sys/class/tpm/tpm0").exists(),
        uefi: root.join("sys/firmware/efi").is_dir(),
        network: network(root),
    }
}

impl Hardware {
    /// The report, a line a fact; then what will not work on this machine.
    pub fn lines(&self, disks: &[Disk]) -> Vec<String> {
        let yes_no = |yes| if yes { "yes" } else { "no" };
        let mut lines = vec![
            format!(
                "machine: {}, serial {}",
                self.product,
                self.serial.as_deref().unwrap_or("unknown")
            ),
            format!("processor: {}, {} logical", self.cpu.0, self.cpu.1),
            format!("virtualisation: {}", self.virtualisation.unwrap_or("no")),
            format!("memory: {} MiB", self.memory_mib),
            format!("TPM 2.0: {}", yes_no(self.tpm)),
            format!("UEFI: {}", yes_no(self.uefi)),
            format!(
                "network: {} adapters{}",
                self.network.len(),
                list(&self.network)
            ),
        ];
        for disk in disks {
            let bus = match disk.bus {
                Bus::Internal => "built in",
                Bus::Usb => "USB",
                Bus::Card => "memory card",
            };
            let model = if disk.model.is_empty() {
                "unknown model"
            } else {
                &disk.model
            };
            lines.push(format!(
                "disk: {}, {} MiB, {model}, {bus}",
                disk.name,
                disk.size >> 20
            ));
        }
        for (missing, consequence) in [
            (
                self.virtualisation.is_none(),
                "no virtual machine can run here: switch on VT-x or AMD-V (SVM) in the firmware",
            ),
            (
                !self.tpm,
                "the device cannot attest: switch on the TPM (PTT, fTPM) in the firmware",
            ),
            (
                self.network.is_empty(),
                "no network adapter on the PCI bus: the device needs another way to its controller",
            ),
        ] {
            if missing {
                lines.push(format!("warning: {consequence}"));
            }
        }
        lines
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!(" ({})", names.join(", "))
    }
}

/// Makers leave these in fields that they did not fill in.
fn is_filled_in(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let empty = [
        "to be filled",
        "not specified",
        "default string",
        "system serial",
        "none",
        "n/a",
        "unknown",
    ];
    !empty.iter().any(|e| lower.starts_with(e))
        && lower
            .bytes()
            .any(|b| b.is_ascii_alphanumeric() && b != b'0')
}

fn processor(cpuinfo: &str) -> (String, usize) {
    let values = |name: &'static str| {
        cpuinfo.lines().filter_map(move |l| {
            l.split_once(':')
                .filter(|(n, _)| n.trim() == name)
                .map(|(_, v)| v.trim())
        })
    };
    let name = values("model name").next().unwrap_or("unknown processor");
    (name.to_owned(), values("processor").count())
}

fn virtualisation(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("flags").and_then(|l| l.split_once(':')))?
        .1;
    flags.split_ascii_whitespace().find_map(|flag| match flag {
        "vmx" => Some("VT-x"),
        "svm" => Some("AMD-V"),
        _ => None,
    })
}

fn memory_kib(meminfo: &str) -> u64 {
    let value = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    value
        .and_then(|v| v.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn network(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("sys/bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let dir = entry.path();
        // PCI base class 02: network controller.
        if text(&dir.join("class")).is_some_and(|class| class.starts_with("0x02"))
            && let (Some(vendor), Some(device)) =
                (text(&dir.join("vendor")), text(&dir.join("device")))
        {
            let bare = |id: &str| id.trim_start_matches("0x").to_owned();
            found.push(format!("{}:{}", bare(&vendor), bare(&device)));
        }
    }
    found.sort();
    found
}

/// The machine's disks, with an empty list where sysfs has none.
pub fn disks(root: &Path) -> Vec<Disk> {
    block::disks(&root.join("sys")).unwrap_or_default()
}

/// A name for the report's file: the serial number, or else the first part of `fallback`, in letters that every file
/// system takes.
pub fn report_name(hardware: &Hardware, fallback: &str) -> String {
    let clean = |text: &str| -> String {
        let kept = text.chars().map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        });
        kept.take(32)
            .collect::<String>()
            .trim_matches('_')
            .to_owned()
    };
    let serial = hardware
        .serial
        .as_deref()
        .map(clean)
        .filter(|name| !name.is_empty());
    format!("report-{}.txt", serial.unwrap_or_else(|| clean(fallback)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::tests::put;

    fn machine() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("sys/class/dmi/id/sys_vendor", "Rugged\n"),
            ("sys/class/dmi/id/product_name", "Box 9\n"),
            (
                "sys/class/dmi/id/product_serial",
                "To Be Filled By O.E.M.\n",
            ),
            ("sys/class/dmi/id/board_serial", "B/77 1\n"),
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: CPU X\nflags\t\t: fpu svm lm\n\nprocessor\t: 1\n",
            ),
            (
                "proc/meminfo",
                "MemTotal:        2048000 kB\nMemFree: 1 kB\n",
            ),
            ("sys/firmware/acpi/tables/TPM2", ""),
            ("sys/firmware/efi/x", ""),
            ("sys/bus/pci/devices/0000:00:02.0/class", "0x020000\n"),
            ("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n"),
            ("sys/bus/pci/devices/0000:00:02.0/device", "0x15f3\n"),
            ("sys/bus/pci/devices/0000:00:03.0/class", "0x010802\n"),
        ] {
            put(dir.path(), path, text);
        }
        dir
    }

    #[test]
    fn a_machine_is_read_from_its_files() {
        let dir = machine();
        let hardware = look(dir.path());
        assert_eq!(
            hardware,
            Hardware {
                product: "Rugged Box 9".into(),
                serial: Some("B/77 1".into()),
                cpu: ("CPU X".into(), 2),
                virtualisation: Some("AMD-V"),
                memory_mib: 2000,
                tpm: true,
                uefi: true,
                network: vec!["8086:15f3".into()],
            }
        );
        assert!(!hardware.lines(&[]).iter().any(|l| l.starts_with("warning")));
        assert_eq!(report_name(&hardware, "x"), "report-B_77_1.txt");
    }

    #[test]
    fn what_is_missing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let hardware = look(dir.path());
        let lines = hardware.lines(&[]).join("\n");
        for word in [
            "unknown machine",
            "virtualisation: no",
            "AMD-V (SVM)",
            "TPM (PTT, fTPM)",
            "0 adapters",
        ] {
            assert!(lines.contains(word), "{word}: {lines}");
        }
        assert_eq!(
            report_name(&hardware, "5b1c3a52-0f67"),
            "report-5b1c3a52-0f67.txt"
        );
    }

    #[test]
    fn placeholders_are_no_serials() {
        for text in [
            "0",
            "000000",
            "Default string",
            "None",
            "To be filled by O.E.M.",
            "...",
            "Not Specified",
        ] {
            assert!(!is_filled_in(text), "{text}");
        }
        assert!(is_filled_in("SN-0001"));
    }
}
