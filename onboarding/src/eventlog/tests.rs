//! Made-up logs for the rules, a recorded one for the real thing.

use std::io::Read as _;

use flate2::read::GzDecoder;
use protocol::keys::sha256;

use super::*;

/// A log of one boot of an emulated PC (OVMF, systemd-boot, a UKI with systemd-stub), and the PCR values that its TPM
/// showed afterwards.
const RECORDED_LOG: &[u8] = include_bytes!("../../tests/data/ovmf-uki.log.gz");
const RECORDED_PCRS: &str = include_str!("../../tests/data/ovmf-uki.pcrs");

fn recorded() -> Vec<u8> {
    let mut log = vec![];
    GzDecoder::new(RECORDED_LOG).read_to_end(&mut log).unwrap();
    log
}

fn header(algorithms: &[(u16, u16)]) -> Vec<u8> {
    let mut spec = SPEC_ID.to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    spec.extend((algorithms.len() as u32).to_le_bytes());
    for (id, size) in algorithms {
        spec.extend(id.to_le_bytes());
        spec.extend(size.to_le_bytes());
    }
    spec.push(0);
    let mut log = vec![0, 0, 0, 0, 3, 0, 0, 0];
    log.extend([0; 20]);
    log.extend((spec.len() as u32).to_le_bytes());
    log.extend(spec);
    log
}

const SHA256_ONLY: &[(u16, u16)] = &[(0x0b, 32)];

fn add(log: &mut Vec<u8>, pcr: u32, kind: EventType, digest: [u8; 32], data: &[u8]) {
    log.extend(pcr.to_le_bytes());
    log.extend(kind.0.to_le_bytes());
    log.extend([1, 0, 0, 0, 0x0b, 0]);
    log.extend(digest);
    log.extend((data.len() as u32).to_le_bytes());
    log.extend(data);
}

/// A log with one event, in words.
fn said(kind: EventType, data: &[u8]) -> Described {
    let mut log = header(SHA256_ONLY);
    add(&mut log, 7, kind, sha256(data), data);
    describe(&parse(&log).unwrap().events[0])
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn extended(first: [u8; 32], digests: &[[u8; 32]]) -> [u8; 32] {
    digests
        .iter()
        .fold(first, |pcr, digest| sha256(&[pcr, *digest].concat()))
}

#[test]
fn a_recorded_log_explains_the_recorded_pcrs() {
    let log = parse(&recorded()).unwrap();
    assert!(log.events.len() > 30, "{}", log.events.len());
    let replayed = replay(&log).unwrap();
    let mut compared = 0;
    for line in RECORDED_PCRS.lines() {
        let (index, value) = line.split_once(' ').unwrap();
        let index: usize = index.parse().unwrap();
        // The kernel's IMA extends PCR 10 and keeps a log of its own.
        if index == 10 {
            continue;
        }
        assert_eq!(
            hex::encode(replayed[index]),
            value.to_lowercase(),
            "PCR {index}"
        );
        compared += 1;
    }
    assert_eq!(compared, 15);
}

#[test]
fn a_recorded_log_tells_what_was_booted() {
    let log = parse(&recorded()).unwrap();
    let all: Vec<Described> = log.events.iter().map(describe).collect();
    for expected in [
        "PCR 7: driver configuration variable: SecureBoot is OFF",
        "PCR 4: separator: end of the firmware's phase",
        "Calling EFI Application from Boot Option",
        "Exit Boot Services Returned with Success",
        ".linux",
        "console=ttyS0",
    ] {
        assert!(
            all.iter().any(|event| event.text.contains(expected)),
            "{expected} in {all:#?}"
        );
    }
    assert!(
        all.iter().all(|event| event.vouched != Some(false)),
        "{all:#?}"
    );
}

#[test]
fn every_cut_of_a_recorded_log_is_refused_or_shorter_by_whole_events() {
    let bytes = recorded();
    let whole = parse(&bytes).unwrap();
    let mut borders = 0;
    for length in 0..bytes.len() {
        match parse(&bytes[..length]) {
            Ok(cut) => {
                assert!(cut.events.len() < whole.events.len());
                assert_eq!(cut.events[..], whole.events[..cut.events.len()]);
                borders += 1;
            }
            Err(EventLogError::Empty) => assert_eq!(length, 0),
            Err(_) => {}
        }
    }
    assert_eq!(borders, whole.events.len());
}

#[test]
fn no_changed_byte_of_a_recorded_log_makes_anything_panic() {
    let bytes = recorded();
    for place in 0..bytes.len() {
        for value in [0, 0x7f, 0xff, bytes[place] ^ 1] {
            let mut changed = bytes.clone();
            changed[place] = value;
            if let Ok(log) = parse(&changed) {
                assert!(log.events.len() <= bytes.len() / 40);
                if place % 16 == 0 {
                    let _ = replay(&log);
                    log.events.iter().map(describe).for_each(drop);
                }
            }
        }
    }
}

#[test]
fn headers_that_are_none_are_refused_with_the_reason() {
    assert_eq!(parse(&[]), Err(EventLogError::Empty));
    assert_eq!(
        parse(&vec![0; MAX_LOG + 1]),
        Err(EventLogError::TooLong { size: MAX_LOG + 1 })
    );
    // An old log begins with an event, not with a header.
    let mut old = vec![0, 0, 0, 0, 8, 0, 0, 0];
    old.extend([0; 20]);
    old.extend([2, 0, 0, 0, b'v', b'1']);
    assert_eq!(parse(&old), Err(EventLogError::Sha1Only));
    for algorithms in [
        &[][..],
        &[(0x0b, 20)],
        &[(0x0b, 32), (0x0b, 32)],
        &[(0x99, 32)],
        &[(0x0b, 32); 9],
    ] {
        let result = parse(&header(algorithms));
        assert!(
            matches!(result, Err(EventLogError::Header(_))),
            "{algorithms:?}: {result:?}"
        );
    }
}

#[test]
fn events_that_break_the_rules_are_refused_with_their_place() {
    let mut base = header(SHA256_ONLY);
    add(&mut base, 0, EventType::SEPARATOR, [0; 32], &[0; 4]);
    let offset = base.len();
    let with = |pcr: u32, kind: EventType, change: &dyn Fn(&mut Vec<u8>)| {
        let mut event = vec![];
        add(&mut event, pcr, kind, [1; 32], b"data");
        change(&mut event);
        [base.clone(), event].concat()
    };
    assert!(parse(&with(23, EventType::IPL, &|_| {})).is_ok());
    assert!(parse(&with(u32::MAX, EventType::NO_ACTION, &|_| {})).is_ok());
    for (name, bytes) in [
        ("PCR 24", with(24, EventType::IPL, &|_| {})),
        ("no digest", with(0, EventType::IPL, &|e| e[8] = 0)),
        ("two digests", with(0, EventType::IPL, &|e| e[8] = 2)),
        ("unnamed algorithm", with(0, EventType::IPL, &|e| e[12] = 4)),
        (
            "size beyond the end",
            with(0, EventType::IPL, &|e| e[46] = 5),
        ),
        ("endless size", with(0, EventType::IPL, &|e| e[49] = 0xff)),
        ("bytes left over", with(0, EventType::IPL, &|e| e.push(0))),
    ] {
        match parse(&bytes) {
            Err(EventLogError::Event {
                number, offset: at, ..
            }) => {
                let over = name == "bytes left over";
                assert_eq!(number, if over { 2 } else { 1 }, "{name}");
                assert_eq!(at, if over { bytes.len() - 1 } else { offset }, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn events_have_a_number_limit() {
    let mut log = header(SHA256_ONLY);
    for _ in 0..=MAX_EVENTS {
        add(&mut log, 0, EventType::IPL, [0; 32], &[]);
    }
    assert_eq!(parse(&log), Err(EventLogError::TooMany));
}

#[test]
fn replay_follows_the_order_and_skips_remarks() {
    let mut log = header(SHA256_ONLY);
    add(&mut log, 4, EventType::IPL, [1; 32], b"");
    add(&mut log, 4, EventType::NO_ACTION, [9; 32], b"remark");
    add(&mut log, 5, EventType::IPL, [3; 32], b"");
    add(&mut log, 4, EventType::IPL, [2; 32], b"");
    let pcrs = replay(&parse(&log).unwrap()).unwrap();
    assert_eq!(pcrs[4], extended([0; 32], &[[1; 32], [2; 32]]));
    assert_eq!(pcrs[5], extended([0; 32], &[[3; 32]]));
    assert_eq!((pcrs[0], pcrs[16], pcrs[23]), ([0; 32], [0; 32], [0; 32]));
    assert_eq!((pcrs[17], pcrs[22]), ([0xff; 32], [0xff; 32]));
}

#[test]
fn pcr_0_begins_with_the_locality_of_the_startup() {
    let first = |locality| {
        let mut first = [0; 32];
        first[31] = locality;
        first
    };
    let mut log = header(SHA256_ONLY);
    add(
        &mut log,
        0,
        EventType::NO_ACTION,
        [0; 32],
        b"StartupLocality\0\x03",
    );
    add(&mut log, 0, EventType::IPL, [1; 32], b"");
    let pcrs = replay(&parse(&log).unwrap()).unwrap();
    assert_eq!(pcrs[0], extended(first(3), &[[1; 32]]));

    let mut log = header(SHA256_ONLY);
    add(&mut log, 0, EventType::HCRTM, [1; 32], b"HCRTM");
    let pcrs = replay(&parse(&log).unwrap()).unwrap();
    assert_eq!(pcrs[0], extended(first(4), &[[1; 32]]));
}

#[test]
fn a_log_without_sha256_cannot_be_replayed() {
    let log = parse(&header(&[(0x04, 20)])).unwrap();
    assert_eq!(replay(&log), None);
}

#[test]
fn events_are_told_in_words() {
    let variable = |name: &str, value: &[u8]| {
        let name = wide(name);
        let mut data = vec![7; 16];
        data.extend((name.len() as u64 / 2).to_le_bytes());
        data.extend((value.len() as u64).to_le_bytes());
        data.extend(name);
        data.extend(value);
        data
    };
    let image = |path: &str| {
        let mut text = wide(path);
        text.extend([0, 0]);
        let mut node = vec![4, 4];
        node.extend((text.len() as u16 + 4).to_le_bytes());
        node.extend(text);
        node.extend([0x7f, 0xff, 4, 0]);
        let mut data = vec![0; 8];
        data.extend(4096_u64.to_le_bytes());
        data.extend([0; 8]);
        data.extend((node.len() as u64).to_le_bytes());
        data.extend(node);
        data
    };
    let mut tagged = 0xf5bc_582a_u32.to_le_bytes().to_vec();
    tagged.extend(6_u32.to_le_bytes());
    tagged.extend(wide("abc"));
    let table = [
        (
            EventType::SEPARATOR,
            vec![0; 4],
            "PCR 7: separator: end of the firmware's phase",
        ),
        (
            EventType::SEPARATOR,
            vec![1, 0, 0, 0],
            "PCR 7: separator: the firmware met an ERROR while measuring",
        ),
        (
            EventType::SEPARATOR,
            vec![1, 2],
            "PCR 7: separator: unusual separator 0102",
        ),
        (
            EventType::VARIABLE_DRIVER_CONFIG,
            variable("SecureBoot", &[1]),
            "PCR 7: driver configuration variable: SecureBoot is ON",
        ),
        (
            EventType::VARIABLE_DRIVER_CONFIG,
            variable("SecureBoot", &[0]),
            "PCR 7: driver configuration variable: SecureBoot is OFF",
        ),
        (
            EventType::VARIABLE_DRIVER_CONFIG,
            variable("PK", &[]),
            "PCR 7: driver configuration variable: PK is not set",
        ),
        (
            EventType::VARIABLE_BOOT,
            variable("BootOrder", &[1, 0]),
            "PCR 7: boot variable: BootOrder = 0100",
        ),
        (
            EventType::BOOT_SERVICES_APPLICATION,
            image("\\EFI\\Linux\\a.efi"),
            "PCR 7: boot application: \\EFI\\Linux\\a.efi (4096 bytes in memory)",
        ),
        (
            EventType::EFI_ACTION,
            b"Exit Boot Services Invocation".to_vec(),
            "PCR 7: action: Exit Boot Services Invocation",
        ),
        (
            EventType::IPL,
            wide("root=/dev/sda"),
            "PCR 7: boot loader: root=/dev/sda",
        ),
        (
            EventType::IPL,
            b".initrd\0".to_vec(),
            "PCR 7: boot loader: .initrd",
        ),
        (
            EventType::EVENT_TAG,
            tagged,
            "PCR 7: tagged event: tag 0xf5bc582a: abc",
        ),
        (
            EventType::CRTM_VERSION,
            wide("edk2"),
            "PCR 7: root of trust's version: edk2",
        ),
        (
            EventType::FIRMWARE_BLOB,
            vec![1; 16],
            "PCR 7: firmware volume (16 bytes of data)",
        ),
        (
            EventType(0x1234),
            vec![],
            "PCR 7: event type 0x00001234 (0 bytes of data)",
        ),
        // What moves a cursor is not shown.
        (
            EventType::IPL,
            b"a\x1b[2Jb".to_vec(),
            "PCR 7: boot loader (6 bytes of data)",
        ),
    ];
    for (kind, data, text) in table {
        assert_eq!(said(kind, &data).text, text);
    }
}

#[test]
fn an_event_whose_digest_is_not_its_datas_is_not_vouched_for() {
    assert_eq!(said(EventType::SEPARATOR, &[0; 4]).vouched, Some(true));
    assert_eq!(said(EventType::IPL, b"text").vouched, None);
    let mut log = header(SHA256_ONLY);
    add(&mut log, 7, EventType::SEPARATOR, [5; 32], &[0; 4]);
    assert_eq!(
        describe(&parse(&log).unwrap().events[0]).vouched,
        Some(false)
    );
}
