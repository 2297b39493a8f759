//! What is believed of a boot: `skerry policy accept`, `reference import`, `makers import`, `makers revocations`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use operator_api::{
    AcceptFirmwareRequest, AttestationPolicy, BootReference, BootReferenceSpec, ConditionStatus,
    Makes, Object as _, TpmMaker, TpmMakerSpec,
};

use super::admit::{kind_of, name_of, put, read_bounded, read_text};
use crate::cli::{MakersImport, MakersRevocations, PolicyAccept, ReferenceImport};
use crate::client::Client;
use crate::failure::Failure;
use crate::terminal::{note, say};

/// Longest reference, in bytes.
const MAX_REFERENCE: u64 = 256 << 10;
/// Longest list of certificates, in bytes.
const MAX_CERTIFICATES: u64 = 512 << 10;
/// Longest revocation list, in bytes.
const MAX_LIST: u64 = 384 << 10;
/// How a list in PEM begins and ends (RFC 7468, 7).
const LIST_BEGINS: &str = "-----BEGIN X509 CRL-----";
const LIST_ENDS: &str = "-----END X509 CRL-----";

pub fn accept(args: PolicyAccept, context: Option<&str>) -> Result<(), Failure> {
    let client = super::client(context)?;
    let kind = kind_of::<AttestationPolicy>()?;
    let device = args.device.trim_start_matches("device/").to_owned();
    let what = format!("accept the firmware of device {device}");
    crate::runtime(async {
        let request = AcceptFirmwareRequest {
            device: device.clone(),
            boot: args.boot.unwrap_or_default(),
            name: args.name.unwrap_or_default(),
        };
        let body = serde_json::to_value(&request).map_err(Failure::error)?;
        let path = format!("{}/firmware", kind.path(&args.policy));
        let answer = client.post(&path, &body, &what).await?;
        let policy: AttestationPolicy = serde_json::from_value(answer).map_err(Failure::error)?;
        note("all devices attest anew");
        say(format!(
            "attestationpolicy/{} accepts {} firmwares",
            policy.metadata.name,
            policy.spec.firmware.len()
        ))
    })
}

pub fn import_reference(args: ReferenceImport, context: Option<&str>) -> Result<(), Failure> {
    let mut references = Vec::new();
    for file in &args.files {
        let name = match &args.name {
            Some(name) if args.files.len() == 1 => name.clone(),
            Some(_) => return Err(Failure::usage("--name is for one file")),
            None => reference_name(file),
        };
        let document = read_text(file, MAX_REFERENCE)?;
        references.push(BootReference::new(name, BootReferenceSpec { document }));
    }
    let client = super::client(context)?;
    crate::runtime(async {
        for reference in &references {
            put(&client, reference).await?;
        }
        Ok(())
    })
}

/// Every image's reference is called `reference.json`; the folder that it is in says more.
fn reference_name(file: &Path) -> String {
    match (name_of(file).as_str(), file.parent()) {
        ("reference", Some(folder)) if folder.file_name().is_some() => name_of(folder),
        (name, _) => name.to_owned(),
    }
}

pub fn import_makers(args: MakersImport, context: Option<&str>) -> Result<(), Failure> {
    let mut certificates = String::new();
    for file in &args.files {
        let bytes = read_bounded(file, MAX_CERTIFICATES)?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Failure::usage(format!(
                "{} is not PEM; `openssl x509 -inform der` converts DER",
                file.display()
            ))
        })?;
        certificates.push_str(text.trim_end());
        certificates.push('\n');
    }
    let makes = if args.machines {
        Makes::Machines
    } else {
        Makes::Tpms
    };
    let client = super::client(context)?;
    crate::runtime(async {
        let before = maker(&client, &args.name).await?;
        let revocation_lists = match before {
            Some(before) if before.spec.makes != makes => {
                return Err(Failure::usage(format!(
                    "tpmmaker/{} is a maker of {}, not of {makes}; take another name for the other",
                    args.name, before.spec.makes
                )));
            }
            Some(before) => before.spec.revocation_lists,
            None => Vec::new(),
        };
        let spec = TpmMakerSpec {
            makes,
            certificates,
            revocation_lists,
        };
        put(&client, &TpmMaker::new(args.name, spec)).await?;
        Ok(())
    })
}

/// A maker as it is now, if there is one.
async fn maker(client: &Client, name: &str) -> Result<Option<TpmMaker>, Failure> {
    let kind = kind_of::<TpmMaker>()?;
    let what = format!("get tpmmaker {name}");
    let found = client.find(&kind.path(name), &what).await?;
    found
        .map(serde_json::from_value)
        .transpose()
        .map_err(Failure::error)
}

pub fn import_revocations(args: MakersRevocations, context: Option<&str>) -> Result<(), Failure> {
    let mut lists = Vec::new();
    for file in &args.files {
        let found = lists_of(&read_bounded(file, MAX_LIST)?);
        if found.is_empty() {
            return Err(Failure::usage(format!(
                "{} is PEM, and no revocation list is in it (`{LIST_BEGINS}`)",
                file.display()
            )));
        }
        lists.extend(found);
    }
    let client = super::client(context)?;
    crate::runtime(async {
        let Some(mut it) = maker(&client, &args.name).await? else {
            return Err(Failure::not_found(format!(
                "there is no tpmmaker {}; `skerry makers import` makes one",
                args.name
            )));
        };
        it.spec.revocation_lists = lists;
        put(&client, &it).await?;
        let Some(written) = maker(&client, &args.name).await? else {
            return Ok(());
        };
        for list in &written.status.revocation_lists {
            note(format!("{}: {} revoked", list.issuer, list.revoked));
        }
        for condition in &written.status.conditions {
            if condition.status == ConditionStatus::False {
                note(format!("warning: {}", condition.message));
            }
        }
        note(
            "they count at enrolment; devices that are in already stay until they are renewed or revoked (`skerry revoke`)",
        );
        Ok(())
    })
}

/// The lists in a file, as the controller takes them: blocks of PEM, or base64 of what is DER then.
fn lists_of(bytes: &[u8]) -> Vec<String> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if text.contains("-----BEGIN") => text,
        _ => return vec![STANDARD.encode(bytes)],
    };
    text.split(LIST_BEGINS)
        .skip(1)
        .filter_map(|part| part.split_once(LIST_ENDS))
        .map(|(digits, _)| format!("{LIST_BEGINS}{digits}{LIST_ENDS}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_hold_several_lists_in_pem_or_one_in_der() {
        let one = format!("{LIST_BEGINS}\nMAA=\n{LIST_ENDS}\n");
        let file = format!("# two\n{one}between\n{one}");
        assert_eq!(lists_of(file.as_bytes()), [one.clone(), one]);
        assert_eq!(lists_of(&[0x30, 0]), ["MAA="]);
        assert!(lists_of(b"-----BEGIN CERTIFICATE-----").is_empty());
    }

    #[test]
    fn a_reference_is_called_after_its_image() {
        assert_eq!(
            reference_name(Path::new("target/images/production/reference.json")),
            "production"
        );
        assert_eq!(reference_name(Path::new("Image 0.2.json")), "image-0-2");
    }
}
