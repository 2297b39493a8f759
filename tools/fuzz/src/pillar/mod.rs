//! What reaches the agent: configs, images, registries, guests, and its own files.

use std::fs;
use std::path::Component;
use std::time::{Duration, UNIX_EPOCH};

use pillar::logs::journal;
use pillar::reconcile::volume::plan::FileName;
use pillar::reconcile::workload::guest;
use pillar::report::procfs;
use pillar::{bless, bundle, clock, generations, uplink};
use protocol::authority::Authority;
use serde_json::json;

use crate::Target;
use crate::feed::survives;
use crate::protocol::vector_text;

mod config;
mod image;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "desired",
        about: "a config, translated: references lead somewhere, numbers keep their bounds, addresses are given out once",
        run: config::desired,
        seeds: config::desired_seeds,
    },
    Target {
        name: "ledger",
        about: "the ledger's JSON: what is understood is written and read as itself and serves another desired state",
        run: config::ledger,
        seeds: config::ledger_seeds,
    },
    Target {
        name: "content-manifest",
        about: "manifests, indexes and configs of images: blobs have sizes within the limits",
        run: image::content_manifest,
        seeds: image::content_manifest_seeds,
    },
    Target {
        name: "layer",
        about: "a layer (tar; gzip; zstd), unpacked: nothing outside its root is touched, and no more than the limits is made",
        run: image::layer,
        seeds: image::layer_seeds,
    },
    Target {
        name: "registry-headers",
        about: "a registry's challenge and range, and names of repositories, which are harmless in a URL",
        run: image::registry_headers,
        seeds: image::registry_headers_seeds,
    },
    Target {
        name: "registry-token",
        about: "the answer of a registry's token service: a token that fits into a header",
        run: image::registry_token,
        seeds: image::registry_token_seeds,
    },
    Target {
        name: "image-user",
        about: "an image's user among its accounts: numbers that are some",
        run: image::image_user,
        seeds: image::image_user_seeds,
    },
    Target {
        name: "journal",
        about: "a line of journalctl: what goes on is bounded, and its cursor fits on a command line",
        run: journal_line,
        seeds: journal_seeds,
    },
    Target {
        name: "guest-event",
        about: "a line of guest-init: what is understood is written and read as itself",
        run: guest_event,
        seeds: guest_event_seeds,
    },
    Target {
        name: "http-date",
        about: "a Date header",
        run: http_date,
        seeds: || vec![b"Fri, 20 Nov 2026 20:00:00 GMT".to_vec()],
    },
    Target {
        name: "clock-floor",
        about: "the file with the last known time: a time that a clock can have, which is written as itself",
        run: clock_floor,
        seeds: || vec![b"1795204800".to_vec(), b" 253402300799\n".to_vec()],
    },
    Target {
        name: "server",
        about: "the bundle's server, which is read as itself again, and its PEM files",
        run: server,
        seeds: server_seeds,
    },
    Target {
        name: "durable",
        about: "a durable file: what is taken is what its first line vouches for",
        run: durable_file,
        seeds: durable_seeds,
    },
    Target {
        name: "boot-variable",
        about: "the boot loader's variable: a path that stays on its partition, and a name without its counter",
        run: boot_variable,
        seeds: boot_variable_seeds,
    },
    Target {
        name: "lease",
        about: "a lease of networkd: its domain is no line of its own in resolv.conf",
        run: lease,
        seeds: || vec![b"# private\nDNS=10.0.2.3 fe80::1\nDOMAINNAME=site.example\n".to_vec()],
    },
    Target {
        name: "procfs",
        about: "/proc/meminfo, /proc/stat and a process's stat with a spiteful name",
        run: procfs_files,
        seeds: procfs_seeds,
    },
    Target {
        name: "volume-name",
        about: "a volume's file name, which is written as the same text",
        run: volume_name,
        seeds: || vec![b"00000000-0000-4000-8000-000000000003#7.qcow2".to_vec()],
    },
];

fn journal_line(data: &[u8]) {
    let Some(entry) = journal::parse(data) else {
        return;
    };
    assert!(journal::good_cursor(&entry.cursor));
    assert!(!entry.cursor.contains(char::is_whitespace));
    assert!(entry.log.content.len() <= 33 << 10);
    let nanos = entry.log.timestamp.map_or(0, |time| time.nanos);
    assert!((0..1_000_000_000).contains(&nanos));
    survives(&entry.log);
}

fn journal_seeds() -> Vec<Vec<u8>> {
    let line = |extra: serde_json::Value| {
        let mut line = json!({
            "__CURSOR": "s=abc;i=1;b=def;m=2;t=3;x=4", "__REALTIME_TIMESTAMP": "1795204800123456",
            "PRIORITY": "6", "SYSLOG_IDENTIFIER": "pillar", "_PID": "7",
        });
        for (key, value) in extra.as_object().unwrap() {
            line[key] = value.clone();
        }
        serde_json::to_vec(&line).unwrap()
    };
    vec![
        line(json!({"MESSAGE": "hello", "_SYSTEMD_UNIT": "pillar.service"})),
        line(json!({"MESSAGE": [104, 105, 255], "_TRANSPORT": "stdout",
            "_SYSTEMD_UNIT": "skerry-app-00000000-0000-4000-8000-000000000005.service"})),
        line(json!({"MESSAGE": ["one", "two"], "PRIORITY": ["3", "4"]})),
    ]
}

fn guest_event(data: &[u8]) {
    if let Some(event) = guest::parse(data) {
        survives(&event);
        let line = guest_init::control::encode(&event);
        assert_eq!(guest::parse(&line), Some(event));
    }
}

fn guest_event_seeds() -> Vec<Vec<u8>> {
    use guest_api::FromGuest;
    let failed = FromGuest::Failed {
        message: "mount \"/x\": no".to_owned(),
    };
    [FromGuest::Started, FromGuest::Exited { code: 137 }, failed]
        .iter()
        .map(guest_init::control::encode)
        .collect()
}

fn http_date(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(seconds) = clock::parse_http_date(text)
    {
        // The year 9999 ends there.
        assert!(seconds < 253_402_300_800);
    }
}

fn clock_floor(data: &[u8]) {
    let Some(seconds) = clock::parse_floor(data) else {
        return;
    };
    // The year 9999 ends there.
    assert!(seconds < 253_402_300_800);
    assert_eq!(
        clock::parse_floor(seconds.to_string().as_bytes()),
        Some(seconds)
    );
    let floor = UNIX_EPOCH + Duration::from_secs(seconds);
    assert!(clock::Clock::unset(floor).seconds() >= seconds);
}

fn server(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(server) = Authority::or_port(text.trim(), 443)
    {
        assert_ne!(server.port(), 0);
        assert!(!server.host().contains(['/', '@', '?', '#', ' ']) && server.host().is_ascii());
        assert_eq!(server.to_string().parse(), Ok(server));
    }
    let _ = bundle::certificates(data);
}

fn server_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "controller.example\n",
        "10.0.2.2:8443",
        "[fe80::1]:443",
        "[::1]",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    seeds.push(vector_text("openssl", "/device_certificate").into_bytes());
    seeds
}

fn durable_file(data: &[u8]) {
    if let Some(payload) = generations::check(data) {
        assert!(data.ends_with(payload) && payload.len() < data.len());
    }
}

fn durable_seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    ["", "{\"a\":1}"]
        .iter()
        .map(|payload| {
            let path = dir.path().join("file");
            generations::write(&path, payload.as_bytes()).unwrap();
            fs::read(path).unwrap()
        })
        .collect()
}

fn boot_variable(data: &[u8]) {
    let Some(path) = bless::counted_path(data) else {
        return;
    };
    assert!(
        path.components()
            .all(|part| matches!(part, Component::Normal(_))),
        "{path:?}"
    );
    if let Some(name) = path.file_name().and_then(|name| name.to_str())
        && let Some(good) = bless::good_name(name)
    {
        assert!(good.to_ascii_lowercase().ends_with(".efi") && good.len() < name.len());
    }
}

fn boot_variable_seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![6, 0, 0, 0];
    let path = "\\EFI\\Linux\\skerry-1.0+2-1.efi";
    seed.extend(path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    vec![seed]
}

fn lease(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let lease = uplink::Lease::parse(text);
    assert!(lease.domain.len() <= 253);
    assert!(!lease.domain.contains(char::is_whitespace));
    for gateways in uplink::routers(text).values() {
        assert!(gateways.iter().all(|address| !address.is_unspecified()));
    }
}

fn procfs_files(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let memory = procfs::Memory::parse(text);
    let _ = memory.used();
    let _ = procfs::parse_cpu(text, 100);
    let _ = procfs::parse_boot_time(text);
    let _ = procfs::Process::parse(text, 100, 4096);
}

fn procfs_seeds() -> Vec<Vec<u8>> {
    [
        "MemTotal:        8000000 kB\nMemFree: 100 kB\nMemAvailable:    4000000 kB\n",
        "cpu  100 2 30 4000 5 6 7 8 9 10\ncpu0 1 2 3 4\nintr 5\nbtime 1795204800\n",
        "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 11 12 0 0 20 0 3 0 400 5000000 600 18446744073709551615\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

fn volume_name(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(name) = FileName::parse(text)
    {
        assert_eq!(name.text(), text);
    }
}
