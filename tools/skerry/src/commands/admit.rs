//! Who becomes a device: `skerry manifest import`, `manifest trust`, `approve`, `deny`, `revoke`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use operator_api::{
    Device, MAX_MANIFEST_TEXT, MachineMatch, Manifest, ManifestFormat, ManifestSpec, Object,
    TrustedKey, TrustedKeySpec, WaitingDecided, WaitingDecisionRequest, WaitingMachine,
    WaitingVerb,
};

use crate::cli::{Decide, ManifestImport, ManifestTrust, Revoke, TextFormat};
use crate::client::Client;
use crate::failure::Failure;
use crate::kinds::Kind;
use crate::terminal::{note, say};

/// Longest signature file, in bytes.
const MAX_SIGNATURE: u64 = 4096;
/// Digits of a machine's id that it is named by at least.
const ID_DIGITS: usize = 12;

/// The kind's row in the table of kinds; all that are used here are there.
pub(super) fn kind_of<T: Object>() -> Result<&'static Kind, Failure> {
    Kind::of_object(T::KIND).ok_or_else(|| Failure::error(format!("{} is no kind", T::KIND)))
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let file = std::fs::File::open(path).map_err(Failure::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(Failure::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Failure::usage(format!(
            "{} has more than {limit} bytes",
            path.display()
        )));
    }
    Ok(bytes)
}

/// The same as text.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, Failure> {
    String::from_utf8(read_bounded(path, limit)?)
        .map_err(|_| Failure::usage(format!("{} is no text in UTF-8", path.display())))
}

/// A name out of a file's: small letters, digits and `-`.
pub(super) fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut name = String::new();
    for c in stem.to_ascii_lowercase().chars().take(63) {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    name.trim_matches('-').to_owned()
}

/// Writes an object whole, and says what became of it.
pub(super) async fn put<T: Object>(client: &Client, object: &T) -> Result<bool, Failure> {
    let kind = kind_of::<T>()?;
    let name = &object.metadata().name;
    let what = format!("write {} {name}", kind.singular());
    let body = serde_json::to_value(object).map_err(Failure::error)?;
    let put = client.put(&kind.path(name), &body, None, &what).await?;
    say(format!(
        "{}/{name} {}",
        kind.singular(),
        if put.created { "created" } else { "configured" }
    ))?;
    Ok(put.created)
}

pub fn import(args: ManifestImport, context: Option<&str>) -> Result<(), Failure> {
    let limit = u64::try_from(MAX_MANIFEST_TEXT).unwrap_or(u64::MAX);
    let text = read_text(&args.file, limit)?;
    let signature = args
        .signature
        .as_deref()
        .map(|path| read_bounded(path, MAX_SIGNATURE))
        .transpose()?
        .map(|bytes| STANDARD.encode(bytes));
    let json = args.file.extension().is_some_and(|ending| ending == "json");
    let format = match (args.format, json) {
        (Some(TextFormat::Json), _) | (None, true) => ManifestFormat::Json,
        (Some(TextFormat::Csv), _) | (None, false) => ManifestFormat::Csv,
    };
    let name = args.name.unwrap_or_else(|| name_of(&args.file));
    let manifest = Manifest::new(
        name,
        ManifestSpec {
            format,
            text,
            signature,
            unsigned: args.unsigned,
        },
    );
    let client = super::client(context)?;
    crate::runtime(async {
        put(&client, &manifest).await?;
        let kind = kind_of::<Manifest>()?;
        let name = &manifest.metadata.name;
        let what = format!("get manifest {name}");
        let written = client.get(&kind.path(name), &[], &what).await?;
        let written: Manifest = serde_json::from_value(written).map_err(Failure::error)?;
        note(format!(
            "{} machines, {} of them enrolled",
            written.status.machines, written.status.enrolled
        ));
        Ok(())
    })
}

pub fn trust(args: ManifestTrust, context: Option<&str>) -> Result<(), Failure> {
    let public_key = read_text(&args.file, MAX_SIGNATURE)?;
    let key = TrustedKey::new(args.name, TrustedKeySpec { public_key });
    let client = super::client(context)?;
    crate::runtime(async { put(&client, &key).await.map(drop) })
}

pub fn decide(verb: WaitingVerb, args: Decide, context: Option<&str>) -> Result<(), Failure> {
    let request = WaitingDecisionRequest {
        decision: verb,
        machines: machines(&args.machines),
        matching: match (&args.selector, args.all) {
            (Some(selector), _) => Some(matching(selector)?),
            (None, true) => Some(MachineMatch::default()),
            (None, false) => None,
        },
        name: args.name,
        labels: labels(&args.labels)?,
    };
    let (what, done) = match verb {
        WaitingVerb::Approve => ("approve machines", "approved"),
        WaitingVerb::Deny => ("deny machines", "denied"),
    };
    let client = super::client(context)?;
    crate::runtime(async {
        let body = serde_json::to_value(&request).map_err(Failure::error)?;
        let path = format!("{}/decisions", WaitingMachine::COLLECTION);
        let answer = client.post(&path, &body, what).await?;
        let decided: WaitingDecided = serde_json::from_value(answer).map_err(Failure::error)?;
        if decided.machines.is_empty() {
            note("no machine that waits fits");
        }
        for machine in &decided.machines {
            say(format!("waitingmachine/{machine} {done}"))?;
        }
        Ok(())
    })
}

/// Machines out of arguments: ids stand for themselves, words that follow each other are one machine's.
fn machines(arguments: &[String]) -> Vec<String> {
    let mut machines: Vec<String> = Vec::new();
    let mut words: Vec<&str> = Vec::new();
    let flush = |words: &mut Vec<&str>, machines: &mut Vec<String>| {
        if !words.is_empty() {
            machines.push(words.join(" "));
            words.clear();
        }
    };
    for argument in arguments {
        let bare = argument
            .strip_prefix("waitingmachine/")
            .or_else(|| argument.strip_prefix("waiting/"))
            .unwrap_or(argument);
        let digits = bare.strip_prefix("sha256:").unwrap_or(bare);
        let id = digits.len() >= ID_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if id || bare.contains([' ', '-']) {
            flush(&mut words, &mut machines);
            machines.push(bare.to_owned());
        } else {
            words.push(bare);
        }
    }
    flush(&mut words, &mut machines);
    machines
}

/// `manufacturer=Maker*,product=NUC*,certified=true`.
fn matching(text: &str) -> Result<MachineMatch, Failure> {
    let mut matching = MachineMatch::default();
    for term in text.split(',').map(str::trim) {
        let wrong = |why: &str| Failure::usage(format!("--selector: `{term}` {why}"));
        let (key, value) = term
            .split_once('=')
            .ok_or_else(|| wrong("is not KEY=PATTERN"))?;
        let value = value.to_owned();
        match key {
            "manufacturer" => matching.manufacturer = Some(value),
            "product" => matching.product = Some(value),
            "serial" => matching.serial = Some(value),
            "endorsementIssuer" => matching.endorsement_issuer = Some(value),
            "certified" => {
                let certified = value.parse().map_err(|_| wrong("must be true or false"))?;
                matching.certified = Some(certified);
            }
            "machineCertified" => {
                let certified = value.parse().map_err(|_| wrong("must be true or false"))?;
                matching.machine_certified = Some(certified);
            }
            _ => {
                return Err(wrong(
                    "is not known; known are manufacturer, product, serial, endorsementIssuer, certified, machineCertified",
                ));
            }
        }
    }
    Ok(matching)
}

fn labels(terms: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    terms
        .iter()
        .map(|term| {
            term.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .ok_or_else(|| Failure::usage(format!("--label: `{term}` is not KEY=VALUE")))
        })
        .collect()
}

pub fn revoke(args: Revoke, context: Option<&str>) -> Result<(), Failure> {
    let client = super::client(context)?;
    let kind = kind_of::<Device>()?;
    let name = args.device.trim_start_matches("device/");
    let what = format!("revoke device {name}");
    crate::runtime(async {
        let object = client.get(&kind.path(name), &[], &what).await?;
        let mut device: Device = serde_json::from_value(object).map_err(|error| {
            Failure::error(format!(
                "{what}: {} gave no device: {error}",
                client.server()
            ))
        })?;
        device.spec.revoked = !args.undo;
        let version = device.metadata.resource_version.clone();
        let body = serde_json::to_value(&device).map_err(Failure::error)?;
        client
            .put(&kind.path(name), &body, Some(&version), &what)
            .await?;
        say(format!(
            "device/{name} {}",
            if args.undo {
                "is welcome again"
            } else {
                "revoked"
            }
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_ids_are_told_apart() {
        let arguments = |text: &[&str]| -> Vec<String> {
            machines(&text.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
        };
        let id = "ab".repeat(32);
        assert_eq!(arguments(&["acid", "bird", "cold"]), ["acid bird cold"]);
        assert_eq!(
            arguments(&["acid bird cold", "waiting/0123456789ab", &id]),
            ["acid bird cold", "0123456789ab", id.as_str()]
        );
        assert_eq!(
            arguments(&["acid-bird-cold", "dune", "echo", "fern", &id]),
            ["acid-bird-cold", "dune echo fern", id.as_str()]
        );
        assert!(arguments(&[]).is_empty());
    }

    #[test]
    fn selectors_and_names() {
        let read = matching("manufacturer=Maker*, certified=true").unwrap();
        assert_eq!(read.manufacturer.as_deref(), Some("Maker*"));
        assert_eq!(read.certified, Some(true));
        for text in ["", "x", "colour=red", "certified=yes"] {
            assert!(matching(text).is_err(), "{text}");
        }
        assert_eq!(name_of(Path::new("/x/Hall 3_boxes.CSV")), "hall-3-boxes");
        assert_eq!(name_of(Path::new("__a__.json")), "a");
    }
}
