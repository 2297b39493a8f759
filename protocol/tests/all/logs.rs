use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use flate2::{Compression, GzBuilder};
use protocol::logs::{
    Bundle, DeviceOrigin, LogEntry, LogTime, LogsError, MAX_BUNDLE, MAX_ENTRIES, MAX_TAGS,
    MAX_UNFOLDED, Origin,
};

use crate::support::mutations;

fn entry() -> LogEntry {
    LogEntry {
        severity: "info".into(),
        source: "pillar".into(),
        iid: "412".into(),
        content: "uplink \"eth0\" is up\n\u{1F680}".into(),
        msgid: 7,
        tags: BTreeMap::from([("boot".to_owned(), "1".to_owned())]),
        timestamp: Some(LogTime {
            seconds: 1_790_000_000,
            nanos: 5,
        }),
        filename: "src/uplink.rs:10".into(),
        function: String::new(),
    }
}

fn device_bundle() -> Bundle {
    Bundle {
        origin: Origin::Device(DeviceOrigin {
            device: "3f2504e0-4f89-41d3-9a0c-0305e82c3301".into(),
            image: "A".into(),
            version: "0.1.0".into(),
        }),
        made: 1_790_000_001,
        entries: vec![entry(), LogEntry::default()],
    }
}

#[test]
fn bundles_come_back() {
    let device = device_bundle();
    assert_eq!(Bundle::decode(&device.encode().unwrap()).unwrap(), device);
    for name in [
        "web",
        "",
        "caf\u{e9}",
        "\u{65e5}\u{672c} \u{1F680}",
        "zero\0byte",
        "a\\b",
        "no escape: \\u0041 \\\\u",
    ] {
        let app = Bundle {
            origin: Origin::App(name.to_owned()),
            ..device.clone()
        };
        assert_eq!(
            Bundle::decode(&app.encode().unwrap()).unwrap(),
            app,
            "{name:?}"
        );
    }
    let empty = Bundle {
        entries: Vec::new(),
        ..device
    };
    assert_eq!(Bundle::decode(&empty.encode().unwrap()).unwrap(), empty);
}

#[test]
fn lines_and_header_are_as_eve_writes_them() {
    let bytes = device_bundle().encode().unwrap();
    let mut gzip = flate2::read::GzDecoder::new(bytes.as_slice());
    let mut text = String::new();
    gzip.read_to_string(&mut text).unwrap();
    assert_eq!(
        text,
        concat!(
            r#"{"severity":"info","source":"pillar","iid":"412","content":"uplink \"eth0\" is up\n🚀","msgid":7,"#,
            r#""tags":{"boot":"1"},"timestamp":{"seconds":1790000000,"nanos":5},"filename":"src/uplink.rs:10"}"#,
            "\n{}\n"
        )
    );
    let header = gzip.header().unwrap();
    assert_eq!(
        header.comment(),
        Some(&br#"{"devID":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","image":"A","eveVersion":"0.1.0"}"#[..])
    );
    assert_eq!(header.mtime(), 1_790_000_001);
}

#[test]
fn versions_with_control_characters_and_backslashes_come_back() {
    for version in [
        "a\u{1}b\0",
        "\\u0041",
        "1.0 \u{20ac}\u{1F680} \"caf\u{e9}\"",
    ] {
        let bundle = Bundle {
            origin: Origin::Device(DeviceOrigin {
                version: version.to_owned(),
                ..DeviceOrigin::default()
            }),
            ..device_bundle()
        };
        assert_eq!(
            Bundle::decode(&bundle.encode().unwrap()).unwrap(),
            bundle,
            "{version:?}"
        );
    }
}

#[test]
fn names_beyond_latin_1_are_escaped() {
    let app = Bundle {
        origin: Origin::App("caf\u{e9} \u{1F680}".into()),
        made: 0,
        entries: Vec::new(),
    };
    let bytes = app.encode().unwrap();
    let gzip = flate2::bufread::GzDecoder::new(bytes.as_slice());
    assert_eq!(
        gzip.header().unwrap().filename(),
        Some(&b"caf\xe9 \\ud83d\\ude80"[..])
    );
}

fn gzip(builder: GzBuilder, text: &[u8]) -> Vec<u8> {
    let mut out = builder.write(Vec::new(), Compression::best());
    out.write_all(text).unwrap();
    out.finish().unwrap()
}

#[test]
fn what_other_implementations_write_is_read() {
    let bytes = gzip(
        GzBuilder::new().filename("web"),
        b"{\"content\":\"x\",\"tags\":null,\"timestamp\":{\"seconds\":3},\"new\":[1]}\n\n{\"msgid\":18446744073709551615}",
    );
    let bundle = Bundle::decode(&bytes).unwrap();
    assert_eq!(bundle.origin, Origin::App("web".into()));
    assert_eq!(
        bundle.entries[0].timestamp,
        Some(LogTime {
            seconds: 3,
            nanos: 0
        })
    );
    assert_eq!(bundle.entries[1].msgid, u64::MAX);
}

#[test]
fn bad_bundles_are_refused_with_the_reason() {
    let error = |bytes: &[u8]| Bundle::decode(bytes).unwrap_err();
    assert!(matches!(error(b""), LogsError::Gzip(_)));
    assert!(matches!(error(b"not gzip at all"), LogsError::Gzip(_)));
    assert!(matches!(
        error(&gzip(GzBuilder::new(), b"{}\n")),
        LogsError::Header(_)
    ));
    assert!(matches!(
        error(&gzip(GzBuilder::new().comment("{"), b"{}\n")),
        LogsError::Header(_)
    ));
    let line = error(&gzip(GzBuilder::new().filename("web"), b"{}\n{}\noops\n"));
    assert!(matches!(line, LogsError::Entry { line: 3, .. }), "{line}");
    assert!(matches!(
        error(&gzip(GzBuilder::new().filename("web"), b"\xff\xfe")),
        LogsError::Entry { line: 1, .. }
    ));
    let mut two = device_bundle().encode().unwrap();
    two.extend(device_bundle().encode().unwrap());
    assert!(matches!(error(&two), LogsError::Gzip(_)));
}

#[test]
fn bombs_and_giants_are_refused() {
    let bomb = gzip(
        GzBuilder::new().filename("web"),
        &vec![b' '; MAX_UNFOLDED + 1],
    );
    assert!(bomb.len() < MAX_BUNDLE);
    assert!(matches!(
        Bundle::decode(&bomb),
        Err(LogsError::TooLarge {
            operation: "unfolding",
            unit: "bytes",
            ..
        })
    ));
    let full = gzip(GzBuilder::new().filename("web"), &vec![b' '; MAX_UNFOLDED]);
    assert!(Bundle::decode(&full).is_ok());
    let giant = vec![0; MAX_BUNDLE + 1];
    assert!(matches!(
        Bundle::decode(&giant),
        Err(LogsError::TooLarge {
            operation: "reading",
            ..
        })
    ));
    // Text that does not compress: a counter through a multiplicative generator.
    let mut state = 1u64;
    let noise: String = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(33 + (state >> 57) as u8 % 94)
    })
    .take(100_000)
    .collect();
    let large = Bundle {
        entries: vec![LogEntry {
            content: noise,
            ..Default::default()
        }],
        ..device_bundle()
    };
    assert!(matches!(
        large.encode(),
        Err(LogsError::TooLarge {
            operation: "writing",
            ..
        })
    ));
}

#[test]
fn entries_are_counted_before_they_are_parsed() {
    let bundle = |text: &[u8]| Bundle::decode(&gzip(GzBuilder::new().filename("web"), text));
    for line in ["{}\n", "\n", "not JSON\n"] {
        let error = bundle(line.repeat(MAX_ENTRIES + 1).as_bytes()).unwrap_err();
        assert!(
            matches!(
                error,
                LogsError::TooLarge {
                    operation: "unfolding",
                    unit: "entries",
                    size,
                    limit: MAX_ENTRIES
                } if size == MAX_ENTRIES + 1
            ),
            "{error}"
        );
    }
    let full = "{}\n".repeat(MAX_ENTRIES);
    assert_eq!(bundle(full.as_bytes()).unwrap().entries.len(), MAX_ENTRIES);
    let unended = format!("{full}{{}}");
    assert!(bundle(unended.as_bytes()).is_err());
    let many = Bundle {
        entries: vec![LogEntry::default(); MAX_ENTRIES + 1],
        ..device_bundle()
    };
    assert!(matches!(
        many.encode(),
        Err(LogsError::TooLarge {
            operation: "writing",
            unit: "entries",
            ..
        })
    ));
}

#[test]
fn tags_are_bounded() {
    let entry = |count: usize| {
        let tags: BTreeMap<_, _> = (0..count).map(|i| (i.to_string(), String::new())).collect();
        let line = serde_json::json!({ "tags": tags }).to_string();
        Bundle::decode(&gzip(GzBuilder::new().filename("web"), line.as_bytes()))
    };
    assert_eq!(entry(MAX_TAGS).unwrap().entries[0].tags.len(), MAX_TAGS);
    assert!(matches!(
        entry(MAX_TAGS + 1),
        Err(LogsError::Entry { line: 1, .. })
    ));
}

#[test]
fn no_change_panics_or_changes_an_entry() {
    let good = device_bundle();
    mutations(&good.encode().unwrap(), |changed| {
        if let Ok(bundle) = Bundle::decode(changed) {
            // The header has no checksum, so only it can change; the entries are under the CRC.
            assert_eq!(bundle.entries, good.entries);
        }
    });
}
