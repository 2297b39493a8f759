//! The checks. Each passes only if nothing else can be behind the digests that the replay has proven.
//!
//! An intruder who runs before our boot loader can add events at the log's end, and can write whatever it likes for kind and data of any
//! event. It cannot change the digests of what was measured before it, nor their order. So:
//!
//! - PCR 4: an event is a program of a known digest, or a remark or separator *whose own data has the digest*, short and plain, which no
//!   program is. Whatever is something else counts against the boot, under whichever name it goes.
//! - PCR 9, 12, 13: every digest is one that the image predicts; names are for the words only.
//! - PCR 7: see `firmware`.

use protocol::digest::Digest;

use super::boot::{Boot, Unbelieved};
use super::firmware::{FirmwareValues, SecureBoot, digest_of, is_action, is_program, is_separator};
use super::reference::{Reference, SignedReference};
use super::spec::{Action, Policy};
use super::stub;
use crate::eventlog::{self, Event};
use crate::quote::{Check, Evidence, Outcome, Report, Verdict};

/// Policy's checks, in their order.
const CHECKS: [Check; 8] = [
    Check::BootApplications,
    Check::CommandLine,
    Check::Initramfs,
    Check::KernelImageSections,
    Check::SecureBoot,
    Check::RevocationList,
    Check::Firmware,
    Check::FirmwareVersion,
];
/// Most things that one verdict lists.
const MAX_LISTED: usize = 8;
/// Mark of the kernel's event on its command line (LOAD_OPTIONS_EVENT_TAG_ID in drivers/firmware/efi/libstub/efistub.h).
const LOAD_OPTIONS_TAG: [u8; 4] = 0x8f3b_22ed_u32.to_le_bytes();

/// How a check came out, before policy says what follows.
enum Finding {
    Pass,
    Fail { expected: String, seen: String },
    NotApplicable(String),
}

fn fail(expected: impl Into<String>, seen: impl Into<String>) -> Finding {
    Finding::Fail {
        expected: expected.into(),
        seen: seen.into(),
    }
}

/// Judges a boot: one verdict a check of policy, in the order of the table in [`crate::policy`].
///
/// `references` are those that are known, accepted or not. Without a boot: if the TPM did not speak or the log was found untrue, nothing is
/// judged here, for the quote's report says enough; if the log was left out, each check fails, since leaving it out must not
/// be a way around them.
#[must_use]
pub fn check(
    policy: &Policy,
    references: &[SignedReference],
    boot: Result<&Boot, &Unbelieved>,
) -> Vec<Verdict> {
    let known: Vec<&Reference> = references.iter().map(SignedReference::reference).collect();
    verdicts(policy, &known, boot)
}

/// Adds policy's verdicts to the report over a quote, and gives the boot that was judged, to be compared with others and learned from.
/// `evidence` is what the report is about; `stated_firmware` the firmware's version as the device tells it, empty if it does not.
///
/// # Errors
/// [`Unbelieved`] if there is no boot that could be judged; the verdicts say so as well.
pub fn judge(
    report: &mut Report,
    policy: &Policy,
    references: &[SignedReference],
    evidence: Option<&Evidence>,
    stated_firmware: &str,
) -> Result<Boot, Unbelieved> {
    let boot = match evidence {
        Some(_) if !report.is_of_known_tpm() => Err(Unbelieved::NotQuoted),
        _ => Boot::of(evidence, stated_firmware),
    };
    report
        .verdicts
        .extend(check(policy, references, boot.as_ref()));
    boot
}

pub(super) fn verdicts(
    policy: &Policy,
    known: &[&Reference],
    boot: Result<&Boot, &Unbelieved>,
) -> Vec<Verdict> {
    let findings = match boot {
        Ok(boot) => findings(policy, known, boot),
        Err(Unbelieved::NoLog) => {
            CHECKS.map(|_| fail("an event log, which shows what was booted", "none"))
        }
        Err(why) => CHECKS.map(|_| Finding::NotApplicable(why.to_string())),
    };
    CHECKS
        .into_iter()
        .zip(findings)
        .map(|(check, finding)| Verdict {
            check,
            outcome: match (finding, policy.actions.of(check)) {
                (Finding::Pass, _) => Outcome::Pass,
                (Finding::Fail { expected, seen }, Action::Refuse) => {
                    Outcome::Fail { expected, seen }
                }
                (Finding::Fail { expected, seen }, Action::Warn) => {
                    Outcome::Warn { expected, seen }
                }
                (Finding::NotApplicable(reason), _) => Outcome::NotApplicable { reason },
            },
        })
        .collect()
}

fn findings(policy: &Policy, known: &[&Reference], boot: &Boot) -> [Finding; 8] {
    let accepted: Vec<&Reference> = known
        .iter()
        .copied()
        .filter(|reference| policy.accepts(reference).is_ok())
        .collect();
    let started = started_image(&accepted, boot);
    let secure_boot = SecureBoot::of(boot);
    [
        boot_applications(policy, known, &accepted, started, boot),
        started.map_or_else(
            || no_image("command line", &seen_command_lines(boot)),
            |image| command_line(image, boot),
        ),
        started.map_or_else(
            || no_image("initramfs", "that of a program that is not known"),
            |image| initramfs(image, boot),
        ),
        started.map_or_else(
            || no_image("kernel image", "that of a program that is not known"),
            |image| kernel_image_sections(image, boot),
        ),
        secure_boot_is_on(policy, secure_boot.as_ref()),
        revocation_list(policy, secure_boot.as_ref()),
        firmware(policy, known, boot),
        firmware_version(policy, boot),
    ]
}

fn no_image(what: &str, seen: &str) -> Finding {
    fail(format!("the {what} of an accepted image"), seen)
}

/// The accepted image that was started: the last whose UKI the firmware measured. What ran after it, it started itself.
fn started_image<'a>(accepted: &[&'a Reference], boot: &Boot) -> Option<&'a Reference> {
    boot.measured(4)
        .filter_map(digest_of)
        .fold(None, |found, digest| {
            accepted
                .iter()
                .copied()
                .find(|reference| reference.kernel_image == digest)
                .or(found)
        })
}

fn boot_applications(
    policy: &Policy,
    known: &[&Reference],
    accepted: &[&Reference],
    started: Option<&Reference>,
    boot: &Boot,
) -> Finding {
    let titles = accepted.iter().map(|reference| reference.title());
    let expected = match accepted {
        [] => "programs of an accepted image; but no reference is known that the policy accepts"
            .to_owned(),
        _ => format!("programs of accepted images ({})", list(titles)),
    };
    let own = |digest: &Digest| {
        let mut accepted = policy.firmware.iter();
        accepted.any(|firmware| firmware.values.programs.contains(digest))
    };
    // The kernel is started by the UKI around it, so it is that one's, or the UKI is not what it seems.
    let fits = |digest: &Digest| {
        accepted
            .iter()
            .any(|it| it.boot_loader == *digest || it.kernel_image == *digest)
            || started.is_some_and(|it| it.kernel == *digest)
            || own(digest)
    };
    let foreign: Vec<String> = boot
        .measured(4)
        .filter(|event| {
            let fits = digest_of(event).is_some_and(|digest| fits(&digest));
            !(is_action(event) || is_separator(event) || fits && is_program(event))
        })
        .map(|event| foreign_program(policy, known, event))
        .collect();
    if !foreign.is_empty() {
        fail(expected, list(foreign))
    } else if started.is_none() {
        fail(expected, "no program that is an image's")
    } else {
        Finding::Pass
    }
}

/// A program that does not belong there, with what is known of it.
fn foreign_program(policy: &Policy, known: &[&Reference], event: &Event) -> String {
    let words = eventlog::describe(event).text;
    let Some(digest) = digest_of(event) else {
        return words;
    };
    let is_part = |it: &&&Reference| [it.boot_loader, it.kernel_image, it.kernel].contains(&digest);
    let image = match known.iter().find(is_part) {
        None => String::new(),
        Some(image) => match policy.accepts(image) {
            Err(why) => format!(", of image {}: {why}", image.title()),
            Ok(()) => format!(", of image {}, which was not started", image.title()),
        },
    };
    format!("{words}, digest {}{image}", digest.hex())
}

fn command_line(image: &Reference, boot: &Boot) -> Finding {
    let wanted = stub::command_line_digest(&image.command_line);
    let is_wanted = |event: &Event| digest_of(event) == Some(wanted);
    let others: Vec<String> = boot
        .measured(12)
        .chain(
            boot.measured(9)
                .filter(|event| event.data.starts_with(&LOAD_OPTIONS_TAG)),
        )
        .filter(|event| !is_wanted(event))
        .map(handed_over)
        .collect();
    let expected = format!("{:?}", image.command_line);
    if !others.is_empty() {
        fail(expected, list(others))
    } else if boot.measured(12).chain(boot.measured(9)).any(is_wanted) {
        Finding::Pass
    } else {
        fail(expected, "none was measured")
    }
}

/// What was measured as a command line: its text, if the digest is that of the text.
fn handed_over(event: &Event) -> String {
    let digest = digest_of(event);
    let text = eventlog::data_as_text(event);
    match text {
        Some(text) if digest == Some(Digest::of(&event.data)) => format!("{text:?}"),
        _ => format!(
            "{}, digest {}",
            eventlog::describe(event).text,
            digest.map(|digest| digest.hex()).unwrap_or_default()
        ),
    }
}

fn seen_command_lines(boot: &Boot) -> String {
    match list(boot.measured(12).map(handed_over)) {
        text if text.is_empty() => "none was measured".to_owned(),
        text => text,
    }
}

fn initramfs(image: &Reference, boot: &Boot) -> Finding {
    let line = stub::command_line_digest(&image.command_line);
    let expected = format!("{} and nothing besides", image.initramfs);
    let others: Vec<String> = boot
        .measured(9)
        .filter(|event| {
            let digest = digest_of(event);
            // Another command line has a verdict of its own.
            digest != Some(line)
                && digest != Some(image.initramfs)
                && !event.data.starts_with(&LOAD_OPTIONS_TAG)
        })
        .chain(boot.measured(13))
        .map(handed_over)
        .collect();
    if !others.is_empty() {
        fail(expected, list(others))
    } else if boot
        .measured(9)
        .any(|event| digest_of(event) == Some(image.initramfs))
    {
        Finding::Pass
    } else {
        fail(expected, "none was measured")
    }
}

fn kernel_image_sections(image: &Reference, boot: &Boot) -> Finding {
    let pcr = boot.pcr(11);
    match &image.kernel_image_pcr {
        None => Finding::NotApplicable(format!(
            "the reference of image {} does not say what its stub measures",
            image.title()
        )),
        Some(wanted) if stub::is_reached_from(wanted, &pcr) => Finding::Pass,
        Some(wanted) => fail(
            format!(
                "PCR 11 = {}, or what systemd's phases of the boot make of it",
                wanted.hex()
            ),
            format!("PCR 11 = {}", hex::encode(pcr)),
        ),
    }
}

fn secure_boot_is_on(policy: &Policy, seen: Result<&SecureBoot, &String>) -> Finding {
    match (policy.require_secure_boot, seen) {
        (true, Ok(it)) if it.enabled => Finding::Pass,
        (true, Ok(_)) => fail("on", "off"),
        (true, Err(why)) => fail("on", why.as_str()),
        (false, Ok(it)) => Finding::NotApplicable(format!(
            "the policy does not ask for it; it is {}",
            if it.enabled { "on" } else { "off" }
        )),
        (false, Err(why)) => {
            Finding::NotApplicable(format!("the policy does not ask for it; {why}"))
        }
    }
}

fn revocation_list(policy: &Policy, seen: Result<&SecureBoot, &String>) -> Finding {
    let mut accepted: Vec<Digest> = policy
        .firmware
        .iter()
        .map(|firmware| firmware.values.revocation_list)
        .chain(policy.revocation_lists.iter().copied())
        .collect();
    accepted.sort_unstable();
    accepted.dedup();
    let expected = || match accepted.as_slice() {
        [] => "a list that was accepted; none was yet".to_owned(),
        _ => list(accepted.iter().map(revocation_words)),
    };
    match seen {
        Ok(it) if accepted.contains(&it.revocation_list) => Finding::Pass,
        Ok(it) => fail(expected(), revocation_words(&it.revocation_list)),
        Err(why) => fail(expected(), why.as_str()),
    }
}

fn revocation_words(digest: &Digest) -> String {
    if *digest == Digest::of(&[]) {
        "an empty list".to_owned()
    } else {
        digest.to_string()
    }
}

fn firmware(policy: &Policy, known: &[&Reference], boot: &Boot) -> Finding {
    let seen = match FirmwareValues::of(boot, known.iter().copied()) {
        Ok(seen) => seen,
        Err(why) => return fail("firmware whose measurements can be read", why),
    };
    let closest = policy
        .firmware
        .iter()
        .map(|accepted| (accepted, seen.differences(&accepted.values)))
        .min_by_key(|(_, differences)| differences.len());
    match closest {
        None => fail(
            "firmware that a person accepted; none was yet",
            format!(
                "{}, PCR 0 = {}",
                version_words(&seen.version),
                seen.pcr0.hex()
            ),
        ),
        Some((_, differences)) if differences.is_empty() => Finding::Pass,
        Some((accepted, differences)) => {
            let (expected, seen_words): (Vec<String>, Vec<String>) =
                differences.into_iter().unzip();
            let name = [&accepted.name, &accepted.values.version]
                .into_iter()
                .find(|name| !name.is_empty());
            fail(
                format!(
                    "as in {}: {}",
                    name.map_or_else(
                        || "the accepted firmware".to_owned(),
                        |name| format!("{name:?}")
                    ),
                    list(expected)
                ),
                format!("{}: {}", version_words(&seen.version), list(seen_words)),
            )
        }
    }
}

fn version_words(version: &str) -> String {
    match version {
        "" => "firmware without a version".to_owned(),
        version => format!("firmware {version:?}"),
    }
}

fn firmware_version(policy: &Policy, boot: &Boot) -> Finding {
    if policy.denied_firmware.is_empty() {
        return Finding::NotApplicable("the policy names no firmware to be shunned".to_owned());
    }
    let versions = boot.firmware_versions();
    let denied: Vec<String> = versions
        .iter()
        .filter(|version| !version.is_empty())
        .filter(|version| {
            let mut denied = policy.denied_firmware.iter();
            denied.any(|pattern| pattern.fits(version))
        })
        .map(|version| format!("{version:?}"))
        .collect();
    if !denied.is_empty() {
        let patterns = policy.denied_firmware.iter().map(ToString::to_string);
        fail(format!("none of {}", list(patterns)), list(denied))
    } else if versions.iter().all(String::is_empty) {
        fail(
            "a version, so that it can be compared with those to be shunned",
            "none",
        )
    } else {
        Finding::Pass
    }
}

/// Things in a row, so many that a person reads them.
fn list(items: impl IntoIterator<Item = String>) -> String {
    let mut items = items.into_iter();
    let mut shown: Vec<String> = items.by_ref().take(MAX_LISTED).collect();
    let more = items.count();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join("; ")
}
