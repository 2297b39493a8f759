//! What systemd's boot loader and UKI stub, version 252, measure of an image.
//!
//! | PCR | what | digest of |
//! |---|---|---|
//! | 4 | by the firmware: boot loader, UKI, and the kernel inside it unless Secure Boot is on | Authenticode |
//! | 9 | by the kernel: its command line, its initramfs | UTF-16 with a final zero; the bytes |
//! | 11 | the UKI's sections, each by its name and its content | name with a final zero; the bytes |
//! | 12 | the command line (loader and stub), credentials beside the UKI | UTF-16 with a final zero; cpio archive |
//! | 13 | system extensions beside the UKI | cpio archive |
//!
//! Sources: systemd-stub(7); the UAPI Group's Linux TPM PCR Registry; the kernel's Documentation/arch/x86/boot.rst and
//! drivers/firmware/efi/libstub. With Secure Boot the stub vouches for its kernel itself, past the firmware, which then measures nothing.
//! The log in `tests/data` has all of it.

use protocol::digest::Digest;
use protocol::keys::sha256;

/// Sections that the stub measures, in its order. Not `.pcrsig`, which is made from the result.
const MEASURED: [&str; 7] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey",
];

/// What systemd extends PCR 11 with as the boot goes on (systemd-pcrphase.service(8)), in this order, each or not.
const PHASES: [&str; 6] = [
    "enter-initrd",
    "leave-initrd",
    "sysinit",
    "ready",
    "shutdown",
    "final",
];

/// Prefix of the stub's mark of itself in its section `.sdmagic`, up to the version of which all this holds.
pub const MAGIC: &[u8] = b"#### LoaderInfo: systemd-stub 252";

/// What PCR 11 holds when the stub starts the kernel. `sections` are the UKI's, by name, in any order.
#[must_use]
pub fn kernel_image_pcr(sections: &[(&str, &[u8])]) -> Digest {
    let mut pcr = [0; 32];
    for name in MEASURED {
        let content = sections
            .iter()
            .find(|(other, content)| *other == name && !content.is_empty());
        if let Some((_, content)) = content {
            let mut name = name.as_bytes().to_vec();
            name.push(0);
            pcr = extend(&extend(&pcr, &name), content);
        }
    }
    Digest::from_bytes(pcr)
}

/// Digest of a command line as it is measured. For ASCII; others have no one form.
#[must_use]
pub fn command_line_digest(line: &str) -> Digest {
    let mut wide: Vec<u8> = line.encode_utf16().flat_map(u16::to_le_bytes).collect();
    wide.extend([0, 0]);
    Digest::of(&wide)
}

/// Whether a PCR 11 is the stub's, or has come from there through phases of the boot.
pub(super) fn is_reached_from(stub: &Digest, pcr: &[u8; 32]) -> bool {
    let mut reached = vec![*stub.bytes()];
    for phase in PHASES {
        let with: Vec<[u8; 32]> = reached
            .iter()
            .map(|pcr| extend(pcr, phase.as_bytes()))
            .collect();
        reached.extend(with);
    }
    reached.contains(pcr)
}

fn extend(pcr: &[u8; 32], measured: &[u8]) -> [u8; 32] {
    sha256(&[*pcr, sha256(measured)].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::recorded;

    #[test]
    fn the_recorded_stub_measured_names_and_contents_in_this_order() {
        let log = recorded();
        let digests: Vec<String> = log
            .events
            .iter()
            .filter(|event| event.pcr == 11)
            .filter_map(|event| event.digest(crate::eventlog::Algorithm::Sha256))
            .map(hex::encode)
            .collect();
        let names: Vec<String> = [".linux\0", ".osrel\0", ".cmdline\0", ".initrd\0"]
            .iter()
            .map(|name| hex::encode(sha256(name.as_bytes())))
            .collect();
        let said: Vec<String> = digests.iter().step_by(2).cloned().collect();
        assert_eq!(said, names);
        // The command line's section holds it in ASCII, without an end.
        let line = b"console=ttyS0 quiet panic=-1";
        assert_eq!(digests[5], hex::encode(sha256(line)));
    }

    #[test]
    fn the_recorded_command_line_was_measured_like_this() {
        let log = recorded();
        let digest = command_line_digest("console=ttyS0 quiet panic=-1");
        let seen: Vec<u32> = log
            .events
            .iter()
            .filter(|event| {
                event.digest(crate::eventlog::Algorithm::Sha256) == Some(digest.bytes().as_slice())
            })
            .map(|event| event.pcr)
            .collect();
        assert_eq!(seen, [12, 12, 9]);
    }

    #[test]
    fn phases_are_reached_in_their_order_only() {
        let stub = kernel_image_pcr(&[(".linux", b"kernel"), (".initrd", b"ram"), (".sbat", b"x")]);
        let mut expected = [0; 32];
        for measured in [&b".linux\0"[..], b"kernel", b".initrd\0", b"ram"] {
            expected = extend(&expected, measured);
        }
        assert_eq!(*stub.bytes(), expected);
        let after = |phases: &[&str]| {
            phases
                .iter()
                .fold(expected, |pcr, phase| extend(&pcr, phase.as_bytes()))
        };
        assert!(is_reached_from(&stub, &after(&[])));
        assert!(is_reached_from(&stub, &after(&["sysinit", "ready"])));
        assert!(!is_reached_from(&stub, &after(&["ready", "sysinit"])));
        assert!(!is_reached_from(&stub, &after(&["sysinit", "sysinit"])));
        assert!(!is_reached_from(&stub, &[0; 32]));
    }
}
