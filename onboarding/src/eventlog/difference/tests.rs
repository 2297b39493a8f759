//! The recorded boot against itself, changed in one place or another.

use std::io::Read as _;

use flate2::read::GzDecoder;
use protocol::keys::sha256;

use super::super::{EventLog, parse};
use super::*;

fn recorded() -> EventLog {
    let packed = include_bytes!("../../../tests/data/ovmf-uki.log.gz");
    let mut log = vec![];
    GzDecoder::new(packed.as_slice())
        .read_to_end(&mut log)
        .unwrap();
    parse(&log).unwrap()
}

/// Replaces data and digest of the event whose words hold `text`.
fn change(log: &mut EventLog, text: &str, edit: impl FnOnce(&mut Event)) {
    let event = log
        .events
        .iter_mut()
        .find(|event| super::super::describe(event).text.contains(text))
        .unwrap_or_else(|| panic!("{text}"));
    edit(event);
}

fn measure(event: &mut Event, bytes: &[u8]) {
    event.digests = vec![(Algorithm::Sha256, sha256(bytes).to_vec())];
}

fn told(before: &EventLog, after: &EventLog) -> Vec<String> {
    let found = difference(before, after);
    assert_eq!(found.more, 0);
    found.changes.iter().map(ToString::to_string).collect()
}

#[test]
fn the_same_boot_has_no_difference() {
    let log = recorded();
    assert!(difference(&log, &log).is_empty());
    // Where an image lay in memory is not measured.
    let mut moved = log.clone();
    change(&mut moved, "skerry-1.efi", |event| event.data[0] ^= 1);
    assert_eq!(told(&log, &moved), [] as [String; 0]);
}

#[test]
fn another_kernel_image_is_told_with_its_parts() {
    let log = recorded();
    let mut other = log.clone();
    change(&mut other, "skerry-1.efi", |event| {
        measure(event, b"another")
    });
    let digest = hex::encode(sha256(b"another"));
    let said = told(&log, &other);
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(
        said[0].starts_with(
            "PCR 4: was: boot application: \\EFI\\Linux\\skerry-1.efi (14472033 bytes in memory), digest c1bb052e72c430eb..."
        ),
        "{}",
        said[0]
    );
    assert!(said[0].contains(&digest[..16]), "{}", said[0]);
}

#[test]
fn what_is_new_and_what_is_gone_is_told_in_its_place() {
    let log = recorded();
    let mut more = log.clone();
    let at = more
        .events
        .iter()
        .position(|event| event.kind == EventType::BOOT_SERVICES_APPLICATION)
        .unwrap();
    let mut event = more.events[at].clone();
    measure(&mut event, b"a program before ours");
    more.events.insert(at, event);
    let digest = hex::encode(sha256(b"a program before ours"));
    assert_eq!(
        told(&log, &more),
        [format!(
            "PCR 4: new: boot application: \\EFI\\BOOT\\BOOTX64.EFI (140891 bytes in memory), digest {}...",
            &digest[..16]
        )]
    );
    assert_eq!(
        told(&more, &log),
        [format!(
            "PCR 4: gone: boot application: \\EFI\\BOOT\\BOOTX64.EFI (140891 bytes in memory), digest {}...",
            &digest[..16]
        )]
    );
}

#[test]
fn secure_boots_variables_are_told_by_their_values() {
    let log = recorded();
    let mut other = log.clone();
    change(&mut other, "SecureBoot is OFF", |event| {
        // The flag is the last byte.
        assert_eq!(event.data.pop(), Some(0));
        event.data.push(1);
        let data = event.data.clone();
        measure(event, &data);
    });
    change(&mut other, "dbx is not set", |event| {
        event.data[24] = 2;
        event.data.extend([7, 8]);
        let data = event.data.clone();
        measure(event, &data);
    });
    assert_eq!(
        told(&log, &other),
        [
            "PCR 7: was: driver configuration variable: SecureBoot is OFF; is: driver configuration variable: SecureBoot is ON",
            "PCR 7: was: driver configuration variable: dbx is not set; is: driver configuration variable: dbx = 0708",
        ]
    );
}

#[test]
fn a_text_that_was_not_measured_is_marked() {
    let log = recorded();
    let mut other = log.clone();
    change(&mut other, "SecureBoot is OFF", |event| {
        measure(event, b"something else");
    });
    let said = told(&log, &other);
    assert!(
        said[0].contains("SecureBoot is OFF - which is NOT what was measured"),
        "{said:?}"
    );
}

#[test]
fn the_startups_locality_counts_although_it_is_a_remark() {
    let log = recorded();
    let mut other = log.clone();
    let mut remark = other.events[0].clone();
    remark.kind = EventType::NO_ACTION;
    remark.data = b"StartupLocality\0\x03".to_vec();
    other.events.insert(0, remark);
    let said = told(&log, &other);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("PCR 0: new: remark: StartupLocality"));
}

#[test]
fn logs_with_nothing_in_common_are_compared_in_bounds() {
    let log = recorded();
    let many = |byte: u8| {
        let mut log = log.clone();
        let mut event = log.events[0].clone();
        event.digests = vec![(Algorithm::Sha256, vec![byte; 32])];
        log.events = vec![event; 3000];
        log
    };
    let found = difference(&many(1), &many(2));
    assert_eq!(found.changes.len(), MAX_CHANGES);
    assert_eq!(found.more, 6000 - MAX_CHANGES);
}

#[test]
fn it_is_written_and_read_as_json() {
    let log = recorded();
    let mut other = log.clone();
    other.events.pop();
    let found = difference(&log, &other);
    let text = serde_json::to_string(&found).unwrap();
    assert!(
        text.starts_with(r#"{"changes":[{"change":"removed","pcr":5,"what":"action: Exit Boot"#),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<Difference>(&text).unwrap(), found);
}
