//! What is believed of a boot: `skerry policy accept`, `reference import`, `makers import`.

use std::path::Path;

use operator_api::{
    AcceptFirmwareRequest, AttestationPolicy, BootReference, BootReferenceSpec, Object as _,
    TpmMaker, TpmMakerSpec,
};

use super::admit::{kind_of, name_of, put, read_bounded, read_text};
use crate::cli::{MakersImport, PolicyAccept, ReferenceImport};
use crate::failure::Failure;
use crate::terminal::{note, say};

/// Longest reference, in bytes.
const MAX_REFERENCE: u64 = 256 << 10;
/// Longest list of certificates, in bytes.
const MAX_CERTIFICATES: u64 = 512 << 10;

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
    let maker = TpmMaker::new(args.name, TpmMakerSpec { certificates });
    let client = super::client(context)?;
    crate::runtime(async { put(&client, &maker).await.map(drop) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_called_after_its_image() {
        assert_eq!(
            reference_name(Path::new("target/images/production/reference.json")),
            "production"
        );
        assert_eq!(reference_name(Path::new("Image 0.2.json")), "image-0-2");
    }
}
