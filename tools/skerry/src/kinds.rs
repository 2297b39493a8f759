//! The kinds of objects: what they are called, where they are found, and what their tables show.

use jiff::Timestamp;
use serde_json::Value;

use crate::failure::Failure;
use crate::output::{age, first_line, size_kib};
use crate::terminal::Paint;

/// A kind of object.
pub struct Kind {
    /// `kind` in an object.
    pub name: &'static str,
    /// Last part of the collection's path; also what people type.
    pub collection: &'static str,
    /// What else people type.
    aliases: &'static [&'static str],
    /// Columns of its table.
    pub columns: &'static [Column],
}

/// A column of a table.
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Only with `-o wide`.
    pub wide: bool,
    /// What it shows of an object, at a time.
    pub cell: fn(&Value, Timestamp) -> String,
}

const fn column(title: &'static str, cell: fn(&Value, Timestamp) -> String) -> Column {
    Column {
        title,
        wide: false,
        cell,
    }
}

const fn wide(title: &'static str, cell: fn(&Value, Timestamp) -> String) -> Column {
    Column {
        title,
        wide: true,
        cell,
    }
}

/// All kinds.
pub static KINDS: [Kind; 3] = [
    Kind {
        name: "Device",
        collection: "devices",
        aliases: &["device", "dev"],
        columns: &[
            column("NAME", |object, _| text(object, "/metadata/name")),
            column("PHASE", |object, _| text(object, "/status/phase")),
            column("TRUST", |object, _| device_trust(object)),
            column("ADDRESS", |object, _| device_address(object)),
            column("VERSION", |object, _| text(object, "/status/imageVersion")),
            column("SEEN", |object, now| ago(object, "/status/lastSeen", now)),
            column("AGE", |object, now| {
                ago(object, "/metadata/creationTimestamp", now)
            }),
            wide("MODEL", |object, _| {
                text(object, "/status/hardware/productName")
            }),
            wide("SERIAL", |object, _| {
                text(object, "/status/hardware/serial")
            }),
            wide("MEMORY", |object, _| device_memory(object)),
            wide("CONFIG", |object, _| device_config(object)),
            wide("UID", |object, _| text(object, "/metadata/uid")),
        ],
    },
    Kind {
        name: "App",
        collection: "apps",
        aliases: &["app"],
        columns: &[
            column("NAME", |object, _| text(object, "/metadata/name")),
            column("DEVICE", |object, _| text(object, "/spec/device")),
            column("TYPE", |object, _| app_type(object)),
            column("PHASE", |object, _| app_phase(object)),
            column("RESTARTS", |object, _| text(object, "/status/restarts")),
            column("PORTS", |object, _| app_ports(object)),
            column("AGE", |object, now| {
                ago(object, "/metadata/creationTimestamp", now)
            }),
            wide("ADDRESSES", |object, _| list(object, "/status/addresses")),
            wide("MEMORY", |object, _| {
                object
                    .pointer("/status/memoryUsedKiB")
                    .and_then(Value::as_u64)
                    .map(size_kib)
                    .unwrap_or_default()
            }),
            wide("IMAGE", |object, _| text(object, "/spec/image/reference")),
            wide("MESSAGE", |object, _| {
                first_line(&text(object, "/status/message"))
            }),
        ],
    },
    Kind {
        name: "Datastore",
        collection: "datastores",
        aliases: &["datastore", "ds"],
        columns: &[
            column("NAME", |object, _| text(object, "/metadata/name")),
            column("TYPE", |object, _| text(object, "/spec/type")),
            column("URL", |object, _| text(object, "/spec/url")),
            column("AGE", |object, now| {
                ago(object, "/metadata/creationTimestamp", now)
            }),
        ],
    },
];

impl Kind {
    /// The kind that people call `word`.
    pub fn find(word: &str) -> Option<&'static Self> {
        let word = word.to_ascii_lowercase();
        KINDS
            .iter()
            .find(|kind| kind.collection == word || kind.aliases.contains(&word.as_str()))
    }

    /// The kind that objects call `name`.
    pub fn of_object(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// `app`, as it stands before a slash.
    pub fn singular(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// Path of one object below the API's prefix.
    pub fn path(&self, name: &str) -> String {
        // Only names that the controller takes get here unchanged; a slash or a question mark must not lead elsewhere.
        let safe: String = name
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        format!("{}/{safe}", self.collection)
    }
}

/// What a command is about: all objects of a kind, or some by name.
pub struct Selection {
    /// Which kind.
    pub kind: &'static Kind,
    /// Which names; all if empty.
    pub names: Vec<String>,
}

/// Reads `KIND`, `KIND NAME...` or `KIND/NAME...`. What belongs to one kind comes together, in the order given.
pub fn select(words: &[String]) -> Result<Vec<Selection>, Failure> {
    let unknown = |word: &str| {
        let known: Vec<_> = KINDS.iter().map(|kind| kind.collection).collect();
        Failure::usage(format!(
            "there is no kind of object `{word}`; known are {}",
            known.join(", ")
        ))
    };
    let Some((first, rest)) = words.split_first() else {
        return Err(Failure::usage(
            "which objects? Write KIND, KIND NAME or KIND/NAME",
        ));
    };
    if !first.contains('/') {
        let kind = Kind::find(first).ok_or_else(|| unknown(first))?;
        if let Some(mixed) = rest.iter().find(|name| name.contains('/')) {
            return Err(Failure::usage(format!(
                "`{first}` and `{mixed}` do not go together: write KIND NAME or KIND/NAME"
            )));
        }
        return Ok(vec![Selection {
            kind,
            names: rest.to_vec(),
        }]);
    }
    let mut selections: Vec<Selection> = Vec::new();
    for word in words {
        let Some((kind, name)) = word.split_once('/').filter(|(_, name)| !name.is_empty()) else {
            return Err(Failure::usage(format!("`{word}` is not KIND/NAME")));
        };
        let kind = Kind::find(kind).ok_or_else(|| unknown(kind))?;
        match selections
            .iter_mut()
            .find(|selection| selection.kind.name == kind.name)
        {
            Some(selection) => selection.names.push(name.to_owned()),
            None => selections.push(Selection {
                kind,
                names: vec![name.to_owned()],
            }),
        }
    }
    Ok(selections)
}

/// The value at a JSON pointer as text; empty if absent.
pub fn text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn list(object: &Value, pointer: &str) -> String {
    let items = object.pointer(pointer).and_then(Value::as_array);
    items
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(",")
}

fn ago(object: &Value, pointer: &str, now: Timestamp) -> String {
    text(object, pointer)
        .parse()
        .map(|then| age(then, now))
        .unwrap_or_default()
}

/// What its attestation came to, and how strong the proof of identity is: `trusted, bronze`.
fn device_trust(object: &Value) -> String {
    let (conclusion, level) = (
        text(object, "/status/attestation/conclusion"),
        text(object, "/status/attestation/level"),
    );
    match conclusion.is_empty() {
        true => String::new(),
        false => format!("{conclusion}, {level}"),
    }
}

/// The first address of an interface that leads outside, or else of any.
fn device_address(object: &Value) -> String {
    let interfaces = object
        .pointer("/status/interfaces")
        .and_then(Value::as_array);
    let mut interfaces: Vec<_> = interfaces.into_iter().flatten().collect();
    interfaces.sort_by_key(|interface| interface.get("uplink") != Some(&Value::Bool(true)));
    interfaces
        .iter()
        .map(|interface| text(interface, "/addresses/0"))
        .find(|address| !address.is_empty())
        .unwrap_or_default()
}

fn device_memory(object: &Value) -> String {
    let number = |pointer| object.pointer(pointer).and_then(Value::as_u64);
    match (
        number("/status/memory/totalKiB"),
        number("/status/memory/availableKiB"),
    ) {
        (Some(total), Some(available)) => {
            format!(
                "{} of {}",
                size_kib(total.saturating_sub(available)),
                size_kib(total)
            )
        }
        _ => String::new(),
    }
}

fn device_config(object: &Value) -> String {
    let (wanted, applied) = (
        text(object, "/status/config/wanted"),
        text(object, "/status/config/applied"),
    );
    match (wanted.is_empty(), wanted == applied) {
        (true, _) => String::new(),
        (false, true) => "applied".to_owned(),
        (false, false) => "pending".to_owned(),
    }
}

fn app_type(object: &Value) -> String {
    let kind = text(object, "/spec/type");
    match (kind.as_str(), text(object, "/spec/isolation").as_str()) {
        ("container", "") => "container/microvm".to_owned(),
        ("container", isolation) => format!("container/{isolation}"),
        _ => kind,
    }
}

fn app_phase(object: &Value) -> String {
    let phase = text(object, "/status/phase");
    match object
        .pointer("/status/progressPercent")
        .and_then(Value::as_u64)
    {
        Some(percent) if phase == "Fetching" => format!("{phase} {percent}%"),
        _ => phase,
    }
}

fn app_ports(object: &Value) -> String {
    let ports = object.pointer("/spec/ports").and_then(Value::as_array);
    let one = |port: &Value| {
        let protocol = text(port, "/protocol");
        let protocol = if protocol.is_empty() {
            "tcp"
        } else {
            &protocol
        };
        format!(
            "{}->{}/{protocol}",
            text(port, "/device"),
            text(port, "/app")
        )
    };
    ports
        .into_iter()
        .flatten()
        .map(one)
        .collect::<Vec<_>>()
        .join(",")
}

/// Colour of a cell in the column PHASE.
pub fn phase_paint(cell: &str) -> Paint {
    match cell.split(' ').next().unwrap_or_default() {
        "Online" | "Running" => Paint::Green,
        "Offline" | "Refused" | "Failed" => Paint::Red,
        "Stopped" | "" => Paint::Plain,
        _ => Paint::Yellow,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failure::Exit;

    fn cells(object: &Value) -> Vec<String> {
        let kind = Kind::of_object(object["kind"].as_str().unwrap()).unwrap();
        kind.columns
            .iter()
            .map(|column| (column.cell)(object, Timestamp::UNIX_EPOCH))
            .collect()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_spelling_finds_its_kind() {
        for (word, name) in [
            ("devices", "Device"),
            ("device", "Device"),
            ("Dev", "Device"),
            ("APP", "App"),
            ("ds", "Datastore"),
        ] {
            assert_eq!(Kind::find(word).unwrap().name, name);
        }
        assert!(Kind::find("pods").is_none());
    }

    #[test]
    fn selections_are_read() {
        let read = |text| {
            let all = select(&words(text)).unwrap();
            all.into_iter()
                .map(|one| (one.kind.collection, one.names.join(" ")))
                .collect::<Vec<_>>()
        };
        assert_eq!(read("apps"), [("apps", String::new())]);
        assert_eq!(read("app web db"), [("apps", "web db".to_owned())]);
        assert_eq!(
            read("app/web ds/demo app/db"),
            [
                ("apps", "web db".to_owned()),
                ("datastores", "demo".to_owned())
            ]
        );
        for bad in [
            "",
            "pods",
            "pod/x",
            "app/",
            "app web ds/demo",
            "app/web demo",
        ] {
            assert_eq!(
                select(&words(bad)).err().map(|failure| failure.exit()),
                Some(Exit::Usage),
                "{bad}"
            );
        }
    }

    #[test]
    fn names_do_not_lead_elsewhere() {
        let kind = Kind::find("app").unwrap();
        assert_eq!(kind.path("web-1"), "apps/web-1");
        assert_eq!(
            kind.path("../devices?x=\u{e9}"),
            "apps/..%2Fdevices%3Fx%3D%C3%A9"
        );
    }

    #[test]
    fn a_device_is_shown() {
        let device = json!({
            "kind": "Device",
            "metadata": {"name": "box-1", "creationTimestamp": "1969-12-31T23:00:00Z"},
            "status": {
                "phase": "Online", "attestation": {"conclusion": "unproven", "level": "bronze"}, "imageVersion": "0.1.0",
                "interfaces": [{"addresses": ["10.0.0.1"]}, {"uplink": true, "addresses": ["192.0.2.7"]}],
                "memory": {"totalKiB": 2_097_152, "availableKiB": 1_966_080},
                "config": {"wanted": "a", "applied": "b"}
            }
        });
        let shown = cells(&device);
        assert_eq!(
            shown[..7],
            [
                "box-1",
                "Online",
                "unproven, bronze",
                "192.0.2.7",
                "0.1.0",
                "",
                "60m"
            ]
            .map(str::to_owned)
        );
        assert_eq!(
            shown[9..11],
            ["128Mi of 2.0Gi".to_owned(), "pending".to_owned()]
        );
    }

    #[test]
    fn an_app_is_shown() {
        let app = json!({
            "kind": "App",
            "metadata": {"name": "web"},
            "spec": {"device": "box-1", "type": "container", "ports": [{"device": 8080, "app": 80}, {"device": 53, "app": 53, "protocol": "udp"}]},
            "status": {"phase": "Fetching", "progressPercent": 40, "restarts": 0}
        });
        let shown = cells(&app);
        assert_eq!(
            shown[..6],
            [
                "web",
                "box-1",
                "container/microvm",
                "Fetching 40%",
                "0",
                "8080->80/tcp,53->53/udp"
            ]
            .map(str::to_owned)
        );
        assert_eq!(phase_paint(&shown[3]), Paint::Yellow);
    }

    #[test]
    fn what_is_missing_is_empty() {
        for kind in &KINDS {
            let object = json!({"kind": kind.name});
            assert!(cells(&object).iter().all(String::is_empty));
        }
    }
}
