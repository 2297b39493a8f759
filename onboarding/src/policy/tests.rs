//! The recorded boot, judged as it is and with one thing changed at a time.

use std::io::Read as _;

use flate2::read::GzDecoder;
use protocol::digest::Digest;
use protocol::keys::{SoftwareSigner, sha256};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::check::verdicts;
use super::*;
use crate::eventlog::{Algorithm, Event, EventLog, EventType, parse, replay};
use crate::quote::{Check, Conclusion, Evidence, Outcome, Report, Verdict};

const LINE: &str = "console=ttyS0 quiet panic=-1";

/// A boot of an emulated PC: see `tests/data/README.md`.
pub(super) fn recorded() -> EventLog {
    let packed = include_bytes!("../../tests/data/ovmf-uki.log.gz");
    let mut log = vec![];
    GzDecoder::new(packed.as_slice())
        .read_to_end(&mut log)
        .unwrap();
    parse(&log).unwrap()
}

fn recorded_pcr(index: usize) -> [u8; 32] {
    let text = include_str!("../../tests/data/ovmf-uki.pcrs");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{index} ")))
        .unwrap();
    hex::decode(line).unwrap().try_into().unwrap()
}

fn digest(hex: &str) -> Digest {
    Digest::from_hex(hex).unwrap()
}

fn signer() -> (SoftwareSigner, ReleaseKey) {
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .unwrap();
    let signer = SoftwareSigner::from_pkcs8_der(key.as_ref()).unwrap();
    let key = ReleaseKey::from_point(signer.public_point()).unwrap();
    (signer, key)
}

/// What a build of the recorded image would have known ahead. The boot loader's digest is also the Authenticode digest of the
/// file in Debian's systemd-boot-efi 252.39-1~deb12u2.
fn reference(key: ReleaseKey) -> Reference {
    Reference {
        release_key: key,
        version: "1.2".parse().unwrap(),
        variant: Variant::Production,
        root_hash: Digest::of(b"root"),
        boot_loader: digest("7843e376e57323bcdfebcffc8d5109eb39721c83d8bedab1dfd6431596875c2c"),
        kernel_image: digest("c1bb052e72c430ebbc26b14281df1089a747b8a5989b90d0c6da013815b9b161"),
        kernel: digest("6a5811d6cd13e791d1c16af3d53d7549b2f275b224a37539b2d3faebdb57f968"),
        command_line: LINE.to_owned(),
        initramfs: digest("b4b21e36c1b0d42835ea19065d3d85c051539c740b3ac9560fb2f92890e30c3b"),
        kernel_image_pcr: Some(Digest::from_bytes(recorded_pcr(11))),
    }
}

/// The log as bytes, SHA-256 only.
fn bytes_of(log: &EventLog) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut bytes = vec![0, 0, 0, 0, 3, 0, 0, 0];
    bytes.extend([0; 20]);
    bytes.extend((spec.len() as u32).to_le_bytes());
    bytes.extend(spec);
    for event in &log.events {
        bytes.extend(event.pcr.to_le_bytes());
        bytes.extend(event.kind.0.to_le_bytes());
        bytes.extend([1, 0, 0, 0, 0x0b, 0]);
        bytes.extend(event.digest(Algorithm::Sha256).unwrap());
        bytes.extend((event.data.len() as u32).to_le_bytes());
        bytes.extend(&event.data);
    }
    bytes
}

/// The boot that a machine would have gone through to have this log.
fn boot(log: &EventLog) -> Boot {
    Boot::of(Some(&evidence(log)), "2024.02-4").unwrap()
}

fn evidence(log: &EventLog) -> Evidence {
    let replayed = replay(log).unwrap();
    Evidence {
        attest: vec![],
        signature: vec![],
        pcrs: (0..16).zip(replayed).collect(),
        event_log: Some(bytes_of(log)),
    }
}

/// Everything that the recorded boot shows is accepted.
fn policy(key: ReleaseKey) -> Policy {
    let values = FirmwareValues::of(&boot(&recorded()), [&reference(key)]).unwrap();
    Policy {
        machines: Machines::default(),
        references: AcceptedReferences {
            release_keys: vec![key],
            versions: Versions::default(),
            variants: vec![Variant::Production],
        },
        firmware: vec![AcceptedFirmware {
            name: "as delivered".to_owned(),
            values,
        }],
        require_secure_boot: false,
        revocation_lists: vec![],
        denied_firmware: vec!["1.0*".parse().unwrap()],
        actions: Actions::default(),
        keep_running: true,
        max_age_minutes: 60,
    }
}

fn find(log: &mut EventLog, text: &str) -> usize {
    log.events
        .iter()
        .position(|event| crate::eventlog::describe(event).text.contains(text))
        .unwrap_or_else(|| panic!("{text}"))
}

fn measure(event: &mut Event, bytes: &[u8]) {
    event.digests = vec![(Algorithm::Sha256, sha256(bytes).to_vec())];
}

fn new_event(pcr: u32, kind: EventType, measured: &[u8], data: &[u8]) -> Event {
    Event {
        number: 0,
        pcr,
        kind,
        digests: vec![(Algorithm::Sha256, sha256(measured).to_vec())],
        data: data.to_vec(),
    }
}

/// Changes a variable of PCR 7, measured as it then is.
fn set_variable(log: &mut EventLog, name: &str, value: &[u8]) {
    let at = find(log, &format!("variable: {name} "));
    let event = &mut log.events[at];
    let name_units = u64::from_le_bytes(event.data[16..24].try_into().unwrap()) as usize;
    event.data[24..32].copy_from_slice(&(value.len() as u64).to_le_bytes());
    event.data.truncate(32 + 2 * name_units);
    event.data.extend(value);
    let data = event.data.clone();
    measure(event, &data);
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

fn failed(verdicts: &[Verdict]) -> Vec<(Check, &str, &str)> {
    verdicts
        .iter()
        .filter_map(|verdict| match &verdict.outcome {
            Outcome::Fail { expected, seen } => {
                Some((verdict.check, expected.as_str(), seen.as_str()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn the_recorded_boot_passes() {
    let (_, key) = signer();
    let found = verdicts(&policy(key), &[&reference(key)], Ok(&boot(&recorded())));
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "yes: every program that was started is an accepted one",
            "yes: the kernel's command line is that of the image",
            "yes: the kernel's initramfs is that of the image",
            "yes: the UKI's sections are those of the image",
            "not checked: Secure Boot is on; the policy does not ask for it; it is off",
            "yes: Secure Boot's revocation list is an accepted one",
            "yes: the firmware was accepted for this model",
            "yes: the firmware's version is not to be shunned",
        ]
    );
}

/// One thing is changed, in the log (and so in the PCRs), or in policy and references.
struct Case {
    name: &'static str,
    log: fn(&mut EventLog),
    policy: fn(&mut Policy),
    reference: fn(&mut Reference),
    /// Checks that fail, with words out of what is expected and seen.
    fails: &'static [(Check, &'static str, &'static str)],
}

const SAME: Case = Case {
    name: "",
    log: |_| (),
    policy: |_| (),
    reference: |_| (),
    fails: &[],
};

const CASES: &[Case] = &[
    Case {
        name: "another UKI",
        log: |log| {
            let at = find(log, "skerry-1.efi");
            measure(&mut log.events[at], b"another UKI");
        },
        fails: &[
            (
                Check::BootApplications,
                "programs of accepted images (1.2)",
                "PCR 4: boot application: \\EFI\\Linux\\skerry-1.efi (14472033 bytes in memory), digest ",
            ),
            (
                Check::CommandLine,
                "of an accepted image",
                "\"console=ttyS0 quiet panic=-1\"",
            ),
            (Check::Initramfs, "of an accepted image", "not known"),
            (
                Check::KernelImageSections,
                "of an accepted image",
                "not known",
            ),
        ],
        ..SAME
    },
    Case {
        name: "a program before the boot loader",
        log: |log| {
            let at = find(log, "BOOTX64.EFI");
            let data = log.events[at].data.clone();
            let event = new_event(4, EventType::BOOT_SERVICES_APPLICATION, b"evil", &data);
            log.events.insert(at, event);
        },
        fails: &[(
            Check::BootApplications,
            "programs of accepted images",
            "PCR 4: boot application: \\EFI\\BOOT\\BOOTX64.EFI (140891 bytes in memory), digest b5c1fb2e",
        )],
        ..SAME
    },
    Case {
        name: "a program that calls itself a remark",
        log: |log| {
            let at = find(log, "BOOTX64.EFI");
            let text = b"Calling EFI Application from Boot Option";
            let event = new_event(4, EventType::EFI_ACTION, b"evil", text);
            log.events.insert(at, event);
        },
        fails: &[(
            Check::BootApplications,
            "",
            "action: Calling EFI Application",
        )],
        ..SAME
    },
    Case {
        name: "a program that calls itself a remark, and shows all that its digest is of",
        log: |log| {
            let program = [b"MZ".as_slice(), &[0; 300]].concat();
            let at = find(log, "BOOTX64.EFI");
            let event = new_event(4, EventType::EFI_ACTION, &program, &program);
            log.events.insert(at, event);
        },
        fails: &[(Check::BootApplications, "", "PCR 4: action: MZ, digest ")],
        ..SAME
    },
    Case {
        name: "a program that calls itself a separator",
        log: |log| {
            let at = find(log, "BOOTX64.EFI");
            let event = new_event(4, EventType::SEPARATOR, b"evil", &[0; 4]);
            log.events.insert(at, event);
        },
        fails: &[(
            Check::BootApplications,
            "",
            "separator: end of the firmware's phase, digest b5c1fb2e",
        )],
        ..SAME
    },
    Case {
        name: "a firmware's remark that boot devices are left out",
        log: |log| {
            let at = find(log, "BOOTX64.EFI");
            let text = b"BOOT ATTEMPTS OMITTED";
            let event = new_event(4, EventType::OMIT_BOOT_DEVICE_EVENTS, text, text);
            log.events.insert(at, event);
        },
        ..SAME
    },
    Case {
        name: "a program in an event of no known kind",
        log: |log| {
            let at = find(log, "BOOTX64.EFI");
            let event = new_event(4, EventType(0x1234), b"evil", b"");
            log.events.insert(at, event);
        },
        fails: &[(Check::BootApplications, "", "event type 0x00001234")],
        ..SAME
    },
    Case {
        name: "a kernel that is not the image's",
        log: |log| {
            let at = find(log, "12085184 bytes in memory");
            measure(&mut log.events[at], b"kernel");
        },
        fails: &[(Check::BootApplications, "", "no file, device path 0403")],
        ..SAME
    },
    Case {
        name: "no kernel measured, as with Secure Boot",
        log: |log| {
            let at = find(log, "12085184 bytes in memory");
            log.events.remove(at);
        },
        ..SAME
    },
    Case {
        name: "nothing but the boot loader",
        log: |log| {
            for text in ["12085184 bytes in memory", "skerry-1.efi"] {
                let at = find(log, text);
                log.events.remove(at);
            }
        },
        fails: &[
            (Check::BootApplications, "", "no program that is an image's"),
            (Check::CommandLine, "", ""),
            (Check::Initramfs, "", ""),
            (Check::KernelImageSections, "", ""),
        ],
        ..SAME
    },
    Case {
        name: "a maker's tool that was accepted with the firmware",
        log: |log| {
            let at = find(log, "BOOTX64.EFI");
            let data = log.events[at].data.clone();
            let event = new_event(4, EventType::BOOT_SERVICES_APPLICATION, b"tool", &data);
            log.events.insert(at, event);
        },
        policy: |policy| {
            policy.firmware[0].values.programs.push(Digest::of(b"tool"));
        },
        ..SAME
    },
    Case {
        name: "another command line, as it is typed into the boot loader's editor",
        log: |log| {
            for event in &mut log.events {
                if event.pcr == 12 {
                    event.data = wide("console=ttyS0 quiet panic=-1 init=/bin/sh");
                    let data = event.data.clone();
                    measure(event, &data);
                }
            }
            let at = find(log, "LOADED_IMAGE::LoadOptions");
            measure(
                &mut log.events[at],
                &wide("console=ttyS0 quiet panic=-1 init=/bin/sh"),
            );
        },
        fails: &[(
            Check::CommandLine,
            "\"console=ttyS0 quiet panic=-1\"",
            "\"console=ttyS0 quiet panic=-1 init=/bin/sh\"; ",
        )],
        ..SAME
    },
    Case {
        name: "another command line under the right one's name",
        log: |log| {
            for event in &mut log.events {
                if event.pcr == 12 {
                    measure(event, &wide("init=/bin/sh"));
                }
            }
        },
        fails: &[(
            Check::CommandLine,
            "\"console=ttyS0 quiet panic=-1\"",
            "PCR 12: boot loader: console=ttyS0 quiet panic=-1, digest ",
        )],
        ..SAME
    },
    Case {
        name: "no command line measured at all",
        log: |log| {
            log.events.retain(|event| {
                event.pcr != 12 && !event.data.ends_with(b"LOADED_IMAGE::LoadOptions\0")
            });
        },
        fails: &[(Check::CommandLine, "", "none was measured")],
        ..SAME
    },
    Case {
        name: "a command line measured by the kernel only, as with Secure Boot and no boot loader",
        log: |log| log.events.retain(|event| event.pcr != 12),
        ..SAME
    },
    Case {
        name: "credentials beside the UKI",
        log: |log| {
            let event = new_event(
                12,
                EventType::IPL,
                b"a cpio archive",
                &wide("Credentials initrd"),
            );
            let at = find(log, "PCR 11");
            log.events.insert(at, event);
        },
        fails: &[(
            Check::CommandLine,
            "",
            "PCR 12: boot loader: Credentials initrd, digest ",
        )],
        ..SAME
    },
    Case {
        name: "a system extension beside the UKI",
        log: |log| {
            let event = new_event(
                13,
                EventType::IPL,
                b"a cpio archive",
                &wide("System extension initrd"),
            );
            let at = find(log, "PCR 11");
            log.events.insert(at, event);
        },
        fails: &[(
            Check::Initramfs,
            "and nothing besides",
            "PCR 13: boot loader: System extension initrd",
        )],
        ..SAME
    },
    Case {
        name: "another initramfs",
        log: |log| {
            let at = find(log, "Linux initrd");
            measure(&mut log.events[at], b"initramfs with more in it");
        },
        fails: &[(
            Check::Initramfs,
            "sha256:b4b21e36",
            "PCR 9: tagged event: tag 0x8f3b22ec: Linux initrd, digest ",
        )],
        ..SAME
    },
    Case {
        name: "other sections of the UKI",
        log: |log| {
            let at = find(log, ".initrd");
            measure(&mut log.events[at + 1], b"another");
        },
        fails: &[(Check::KernelImageSections, "PCR 11 = ", "PCR 11 = ")],
        ..SAME
    },
    Case {
        name: "a later phase of the boot",
        log: |log| {
            for phase in [&b"sysinit"[..], b"ready"] {
                log.events.push(new_event(11, EventType::IPL, phase, b""));
            }
        },
        ..SAME
    },
    Case {
        name: "Secure Boot off where it must be on",
        policy: |policy| policy.require_secure_boot = true,
        fails: &[(Check::SecureBoot, "on", "off")],
        ..SAME
    },
    Case {
        name: "Secure Boot on where it was off when the firmware was accepted",
        log: |log| set_variable(log, "SecureBoot", &[1]),
        policy: |policy| policy.require_secure_boot = true,
        fails: &[(Check::Firmware, "Secure Boot off", "Secure Boot on")],
        ..SAME
    },
    Case {
        name: "Secure Boot said to be on, measured as off",
        log: |log| {
            let at = find(log, "variable: SecureBoot ");
            if let Some(value) = log.events[at].data.last_mut() {
                *value = 1;
            }
        },
        policy: |policy| policy.require_secure_boot = true,
        fails: &[
            (
                Check::SecureBoot,
                "on",
                "SecureBoot is ON: what it says is not what was measured",
            ),
            (
                Check::RevocationList,
                "an empty list",
                "not what was measured",
            ),
            (Check::Firmware, "can be read", "not what was measured"),
        ],
        ..SAME
    },
    Case {
        name: "Secure Boot off under another kind of event, on in one that follows",
        log: |log| {
            let at = find(log, "variable: SecureBoot ");
            let mut on = log.events[at].clone();
            log.events[at].kind = EventType::EFI_ACTION;
            if let Some(value) = on.data.last_mut() {
                *value = 1;
            }
            let data = on.data.clone();
            measure(&mut on, &data);
            log.events.insert(at + 1, on);
        },
        policy: |policy| policy.require_secure_boot = true,
        fails: &[
            (
                Check::SecureBoot,
                "on",
                "nothing of this kind belongs before PCR 7's separator",
            ),
            (Check::RevocationList, "", ""),
            (Check::Firmware, "", ""),
        ],
        ..SAME
    },
    Case {
        name: "Secure Boot off among what accepts programs, on in one that follows",
        log: |log| {
            let at = find(log, "variable: SecureBoot ");
            let mut on = log.events[at].clone();
            log.events[at].kind = EventType::VARIABLE_AUTHORITY;
            if let Some(value) = on.data.last_mut() {
                *value = 1;
            }
            let data = on.data.clone();
            measure(&mut on, &data);
            log.events.insert(at + 1, on);
        },
        policy: |policy| policy.require_secure_boot = true,
        fails: &[
            (
                Check::SecureBoot,
                "on",
                "it is no variable that accepts programs",
            ),
            (Check::RevocationList, "", ""),
            (Check::Firmware, "", ""),
        ],
        ..SAME
    },
    Case {
        name: "Secure Boot on once more behind the separator",
        log: |log| {
            let at = find(log, "variable: SecureBoot ");
            let mut on = log.events[at].clone();
            if let Some(value) = on.data.last_mut() {
                *value = 1;
            }
            let data = on.data.clone();
            measure(&mut on, &data);
            log.events.push(on);
        },
        policy: |policy| policy.require_secure_boot = true,
        fails: &[
            (Check::SecureBoot, "on", "off"),
            (Check::Firmware, "the rest of PCR 7", "the rest of PCR 7"),
        ],
        ..SAME
    },
    Case {
        name: "Secure Boot said twice",
        log: |log| {
            let at = find(log, "variable: SecureBoot ");
            let event = log.events[at].clone();
            log.events.insert(at, event);
        },
        fails: &[
            (Check::RevocationList, "", "SecureBoot is measured twice"),
            (Check::Firmware, "", "SecureBoot is measured twice"),
        ],
        ..SAME
    },
    Case {
        name: "a revocation list that nobody accepted",
        log: |log| set_variable(log, "dbx", b"a later list"),
        fails: &[(Check::RevocationList, "an empty list", "sha256:")],
        ..SAME
    },
    Case {
        name: "a revocation list that was accepted by itself",
        log: |log| set_variable(log, "dbx", b"a later list"),
        policy: |policy| policy.revocation_lists.push(Digest::of(b"a later list")),
        ..SAME
    },
    Case {
        name: "another key that may sign programs",
        log: |log| set_variable(log, "db", b"somebody's key"),
        fails: &[(
            Check::Firmware,
            "as in \"as delivered\": Secure Boot's db = e3b0c442",
            "firmware \"2024.02-4\": Secure Boot's db = ",
        )],
        ..SAME
    },
    Case {
        name: "other firmware",
        log: |log| {
            let at = find(log, "firmware volume");
            measure(&mut log.events[at], b"patched");
        },
        fails: &[(
            Check::Firmware,
            "PCR 0 (the firmware's code) = ",
            "PCR 0 (the firmware's code) = ",
        )],
        ..SAME
    },
    Case {
        name: "an option ROM",
        log: |log| {
            let event = new_event(2, EventType::BOOT_SERVICES_DRIVER, b"rom", b"");
            log.events.insert(3, event);
        },
        fails: &[(
            Check::Firmware,
            "PCR 2 (code of plugged-in devices) = ",
            "PCR 2",
        )],
        ..SAME
    },
    Case {
        name: "firmware of a canary, not yet accepted",
        policy: |policy| policy.firmware.clear(),
        fails: &[
            (Check::RevocationList, "none was yet", "an empty list"),
            (
                Check::Firmware,
                "none was yet",
                "firmware \"2024.02-4\", PCR 0 = ",
            ),
        ],
        ..SAME
    },
    Case {
        name: "firmware to be shunned",
        policy: |policy| policy.denied_firmware.push("2024.02*".parse().unwrap()),
        fails: &[(
            Check::FirmwareVersion,
            "none of 1.0*; 2024.02*",
            "\"2024.02-4\"",
        )],
        ..SAME
    },
    Case {
        name: "an image of another version",
        policy: |policy| policy.references.versions.from = Some("1.3".parse().unwrap()),
        fails: &[
            (
                Check::BootApplications,
                "no reference is known that the policy accepts",
                "of image 1.2: accepted versions are from 1.3 on",
            ),
            (Check::CommandLine, "", ""),
            (Check::Initramfs, "", ""),
            (Check::KernelImageSections, "", ""),
        ],
        ..SAME
    },
    Case {
        name: "a debug image",
        reference: |reference| reference.variant = Variant::Debug,
        fails: &[
            (
                Check::BootApplications,
                "",
                "of image 1.2 (debug): the variant debug is not accepted",
            ),
            (Check::CommandLine, "", ""),
            (Check::Initramfs, "", ""),
            (Check::KernelImageSections, "", ""),
        ],
        ..SAME
    },
    Case {
        name: "an image of another releaser",
        policy: |policy| policy.references.release_keys = vec![signer().1],
        fails: &[
            (Check::BootApplications, "", "is not accepted"),
            (Check::CommandLine, "", ""),
            (Check::Initramfs, "", ""),
            (Check::KernelImageSections, "", ""),
        ],
        ..SAME
    },
    Case {
        name: "what fails is let pass",
        log: |log| {
            set_variable(log, "dbx", b"a later list");
            set_variable(log, "db", b"somebody's key");
        },
        policy: |policy| policy.actions.revocation_list = Action::Warn,
        fails: &[(Check::Firmware, "Secure Boot's db", "Secure Boot's db")],
        ..SAME
    },
];

#[test]
fn each_change_fails_the_checks_that_it_concerns_and_no_others() {
    let mut wrong = vec![];
    for case in CASES {
        let (_, key) = signer();
        let mut policy = policy(key);
        let mut reference = reference(key);
        let mut log = recorded();
        (case.log)(&mut log);
        (case.reference)(&mut reference);
        (case.policy)(&mut policy);
        let found = verdicts(&policy, &[&reference], Ok(&boot(&log)));
        assert_eq!(found.len(), 8);
        let failed = failed(&found);
        let is_as_told = failed.len() == case.fails.len()
            && failed.iter().zip(case.fails).all(
                |((failed, expected, seen), (check, words, seen_words))| {
                    failed == check && expected.contains(words) && seen.contains(seen_words)
                },
            );
        if !is_as_told {
            wrong.push((
                case.name,
                failed
                    .into_iter()
                    .map(|it| format!("{it:?}"))
                    .collect::<Vec<_>>(),
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_policy_lets_pass_is_told_and_refuses_nothing() {
    let (_, key) = signer();
    let mut policy = policy(key);
    policy.actions.revocation_list = Action::Warn;
    let mut log = recorded();
    set_variable(&mut log, "dbx", b"a later list");
    let found = verdicts(&policy, &[&reference(key)], Ok(&boot(&log)));
    let verdict = found
        .iter()
        .find(|verdict| verdict.check == Check::RevocationList)
        .unwrap();
    let text = verdict.to_string();
    assert!(
        text.starts_with("let pass: not so: Secure Boot's revocation list is an accepted one; expected an empty list, seen sha256:"),
        "{text}"
    );
    let json = serde_json::to_value(verdict).unwrap();
    assert_eq!(json["outcome"], "warn");
    assert_eq!(json["check"], "revocationList");
    assert_eq!(failed(&found), []);
}

#[test]
fn a_log_that_is_left_out_is_no_way_around() {
    let (_, key) = signer();
    let found = verdicts(&policy(key), &[&reference(key)], Err(&Unbelieved::NoLog));
    assert_eq!(failed(&found).len(), 8);
    let found = verdicts(&policy(key), &[&reference(key)], Err(&Unbelieved::NoTpm));
    assert!(
        found
            .iter()
            .all(|it| matches!(&it.outcome, Outcome::NotApplicable { reason } if reason == "the device has no TPM"))
    );
}

#[test]
fn the_quote_is_judged_before_what_it_says() {
    let (_, key) = signer();
    let passed = [
        Check::AttestationKey,
        Check::Structure,
        Check::Kind,
        Check::Signature,
        Check::Nonce,
        Check::PcrSelection,
        Check::PcrDigest,
        Check::EventLog,
        Check::EventLogReplay,
    ];
    let mut report = Report {
        verdicts: passed
            .map(|check| Verdict {
                check,
                outcome: Outcome::Pass,
            })
            .to_vec(),
        boot: None,
    };
    let mut stale = report.clone();
    let evidence = evidence(&recorded());
    // No reference is known, so the programs are nobody's.
    let judged = judge(&mut report, &policy(key), &[], Some(&evidence), "");
    assert_eq!(judged.unwrap(), Boot::of(Some(&evidence), "").unwrap());
    assert_eq!(report.conclusion(), Conclusion::Refused);
    assert!(report.failed(Check::BootApplications));
    // It is that device's quote all the same.
    assert!(report.is_of_known_tpm());

    stale.verdicts[4].outcome = Outcome::Fail {
        expected: "a nonce".to_owned(),
        seen: "another".to_owned(),
    };
    let judged = judge(&mut stale, &policy(key), &[], Some(&evidence), "");
    assert_eq!(judged, Err(Unbelieved::NotQuoted));
    assert!(!stale.is_of_known_tpm());
    assert_eq!(stale.verdicts.len(), passed.len() + 8);
    assert_eq!(stale.failures().count(), 1);
    let (quote, policy) = stale.verdicts.split_at(passed.len());
    assert!(quote.iter().all(|it| !it.check.is_of_policy()));
    assert!(policy.iter().all(|it| it.check.is_of_policy()));
}

#[test]
fn only_a_log_that_explains_the_pcrs_makes_a_boot() {
    let log = recorded();
    let good = evidence(&log);
    assert!(Boot::of(Some(&good), "").is_ok());
    assert_eq!(Boot::of(None, ""), Err(Unbelieved::NoTpm));
    let with = |change: fn(&mut Evidence)| {
        let mut evidence = evidence(&log);
        change(&mut evidence);
        Boot::of(Some(&evidence), "")
    };
    assert_eq!(with(|it| it.event_log = None), Err(Unbelieved::NoLog));
    assert!(matches!(
        with(|it| it.event_log = Some(vec![1])),
        Err(Unbelieved::Unreadable(_))
    ));
    assert_eq!(with(|it| it.pcrs.truncate(15)), Err(Unbelieved::Pcrs));
    assert_eq!(with(|it| it.pcrs.swap(0, 1)), Err(Unbelieved::Pcrs));
    assert_eq!(
        with(|it| it.pcrs[4].1[0] ^= 1),
        Err(Unbelieved::Unexplained(4))
    );
    // The running system extends these.
    for index in [10, 11, 15] {
        let mut evidence = evidence(&log);
        evidence.pcrs[index].1[0] ^= 1;
        assert!(Boot::of(Some(&evidence), "").is_ok());
    }
}

#[test]
fn a_canary_shows_its_firmware() {
    let (_, key) = signer();
    let values = FirmwareValues::of(&boot(&recorded()), [&reference(key)]).unwrap();
    assert_eq!(values.version, "2024.02-4");
    assert_eq!(*values.pcr0.bytes(), recorded_pcr(0));
    assert_eq!(*values.pcr2.bytes(), recorded_pcr(2));
    assert_eq!(*values.pcr3.bytes(), recorded_pcr(3));
    assert!(!values.secure_boot);
    assert_eq!(values.revocation_list, Digest::of(&[]));
    assert_eq!(values.programs, []);
    // Nothing is known of the image: its programs are shown to whoever accepts.
    let unknown = FirmwareValues::of(&boot(&recorded()), []).unwrap();
    assert_eq!(unknown.programs.len(), 3);
    let json = serde_json::to_string(&values).unwrap();
    assert_eq!(
        serde_json::from_str::<FirmwareValues>(&json).unwrap(),
        values
    );
}

#[test]
fn a_policy_is_read_strictly() {
    let (_, key) = signer();
    let good = serde_json::to_value(policy(key)).unwrap();
    let read = |json: &serde_json::Value| Policy::parse(json.to_string().as_bytes());
    assert_eq!(read(&good).unwrap(), policy(key));
    let least = format!(r#"{{"references":{{"releaseKeys":["{key}"]}},"requireSecureBoot":true}}"#);
    let least = Policy::parse(least.as_bytes()).unwrap();
    assert!(least.keep_running && least.max_age_minutes == 60);
    assert_eq!(least.references.variants, [Variant::Production]);
    assert!(least.is_for("anybody", "anything"));
    for (pointer, value, reason) in [
        (
            "/maxAgeMinutes",
            serde_json::json!(0),
            "maxAgeMinutes: 1 to 10080",
        ),
        (
            "/references/releaseKeys",
            serde_json::json!([]),
            "a key is needed",
        ),
        (
            "/references/releaseKeys",
            serde_json::json!(["04"]),
            "is not a release key",
        ),
        (
            "/references/variants",
            serde_json::json!([]),
            "production or debug",
        ),
        (
            "/references/versions",
            serde_json::json!({"from": "2", "to": "1"}),
            "no version is from 2 to 1",
        ),
        (
            "/references/versions",
            serde_json::json!({"form": "2"}),
            "unknown field",
        ),
        (
            "/deniedFirmware",
            serde_json::json!([""]),
            "is not a pattern",
        ),
        (
            "/deniedFirmware",
            serde_json::json!(vec!["a"; 129]),
            "129 entries",
        ),
        (
            "/firmware/0/name",
            serde_json::json!("a\u{1b}"),
            "no control characters",
        ),
        (
            "/actions",
            serde_json::json!({"signature": "warn"}),
            "unknown field",
        ),
        (
            "/actions/firmware",
            serde_json::json!("ignore"),
            "unknown variant",
        ),
    ] {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        let error = read(&changed).unwrap_err().to_string();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
    let mut policy = policy(key);
    policy.machines.product = "Gateway *".parse().unwrap();
    assert!(policy.is_for("Dell", "Gateway 3200") && !policy.is_for("Dell", "Laptop"));
    assert!(Policy::parse(&vec![b' '; MAX_POLICY + 1]).is_err());
}

#[test]
fn a_reference_is_signed_read_and_refused_when_changed() {
    let (key_holder, key) = signer();
    let mut reference = reference(key);
    reference.command_line = format!("quiet roothash={}", reference.root_hash.hex());
    let signed = SignedReference::sign(reference.clone(), &key_holder).unwrap();
    let again = SignedReference::open(signed.bytes()).unwrap();
    assert_eq!((again.reference(), &again), (&reference, &signed));

    let envelope: serde_json::Value = serde_json::from_slice(signed.bytes()).unwrap();
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut envelope = envelope.clone();
        *envelope.pointer_mut(pointer).unwrap() = value;
        SignedReference::open(envelope.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    };
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(
        serde_json::to_string(&reference)
            .unwrap()
            .replace("quiet", "debug"),
    );
    for (pointer, value, reason) in [
        (
            "/payload",
            payload.into(),
            "its signature is not that of release key",
        ),
        ("/payload", "e30=".into(), "missing field"),
        ("/payload", "e30".into(), "its payload is not base64"),
        ("/payload", "A".repeat(60_000).into(), "it has 45000 bytes"),
        (
            "/payloadType",
            "text/plain".into(),
            "holds a \"text/plain\"",
        ),
        ("/signatures", serde_json::json!([]), "0 signatures"),
        (
            "/signatures/0/sig",
            "AAAA".into(),
            "its signature is not that",
        ),
        (
            "/signatures/0/keyid",
            "k".repeat(300).into(),
            "it has 300 bytes",
        ),
    ] {
        let error = changed(pointer, value);
        assert!(error.contains(reason), "{pointer}: {error}");
    }
    assert!(SignedReference::open(&vec![b' '; MAX_ENVELOPE + 1]).is_err());

    let (another, _) = signer();
    assert!(matches!(
        SignedReference::sign(reference.clone(), &another),
        Err(ReferenceError::OtherKey(_))
    ));
    for line in ["", " quiet", "\u{e9}", "a\nb", &"x".repeat(2049)] {
        let mut bad = reference.clone();
        bad.command_line = line.to_owned();
        assert!(matches!(
            SignedReference::sign(bad, &key_holder),
            Err(ReferenceError::CommandLine)
        ));
    }
    reference.root_hash = Digest::of(b"another root");
    assert!(matches!(
        SignedReference::sign(reference, &key_holder),
        Err(ReferenceError::RootHash(_))
    ));
}
