//! What operators may write about enrolment and trust.
//!
//! | object | rule |
//! |---|---|
//! | Manifest | every line is understood; signed by a trusted key, or said not to be; no line names what another manifest names |
//! | EnrolmentRule | none but its form |
//! | TrustedKey | a P-256 public key |
//! | TpmMaker | certificates that can be read; revocation lists that one of them signed |
//! | AttestationPolicy | the verifier takes it |
//! | BootReference | signed by the key that stands in it |

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use onboarding::enrol::revocation::RevocationList;
use onboarding::policy::SignedReference;
use operator_api::{
    AttestationPolicy, BootReference, ConditionStatus, EnrolmentRule, FieldError, Manifest,
    Object as _, RevocationListStatus, TpmMaker, TrustedKey,
};
use protocol::digest::Digest;
use protocol::ids::{
    BootReferenceId, DeviceId, ManifestId, PolicyId, RuleId, TpmMakerId, TrustedKeyId,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};

use super::objects::{Governed, id_of};
use super::status::condition;
use super::trust::read_maker;
use super::{Fault, Fleet, manifest};
use crate::store::objects::Links;
use crate::store::{Connection, StoreError, identities, manifests, objects};

/// The point of a P-256 public key in PEM.
fn public_point(pem: &str) -> Result<Vec<u8>, String> {
    let (_, block) =
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    if block.label != "PUBLIC KEY" {
        return Err(format!("a PEM block {:?} is no public key", block.label));
    }
    let (rest, key) =
        SubjectPublicKeyInfo::from_der(&block.contents).map_err(|error| error.to_string())?;
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|any| any.as_oid().ok())
        .map(|oid| oid.to_id_string());
    let point = key.subject_public_key.data.to_vec();
    // RFC 5480, section 2.1.1: secp256r1.
    if !rest.is_empty()
        || curve.as_deref() != Some("1.2.840.10045.3.1.7")
        || point.len() != 65
        || point.first() != Some(&4)
    {
        return Err("it is not a P-256 key".to_owned());
    }
    Ok(point)
}

/// Name of the trusted key that made a signature.
async fn signer(
    connection: &mut Connection,
    text: &str,
    signature: &str,
) -> Result<Option<String>, Fault> {
    let Ok(signature) = STANDARD.decode(signature.trim()) else {
        return Err(Fault::field(
            "importing a manifest",
            "spec.signature",
            "is not base64",
        ));
    };
    for key in objects::list::<TrustedKey>(connection).await? {
        // What was admitted can be read.
        let Ok(point) = public_point(&key.spec.public_key) else {
            continue;
        };
        if UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(text.as_bytes(), &signature)
            .is_ok()
        {
            return Ok(Some(key.metadata.name));
        }
    }
    Ok(None)
}

/// Lines of other manifests that name the same machines.
async fn clashes(
    connection: &mut Connection,
    own: Option<ManifestId>,
    entries: &[manifests::Entry],
) -> Result<Vec<FieldError>, Fault> {
    let mut errors = Vec::new();
    for entry in entries {
        // A machine id that no machine has finds by serial number alone.
        let machine = entry
            .machine
            .unwrap_or(onboarding::enrol::MachineId::from_bytes([0; 32]));
        for line in manifests::matching(connection, &machine, &entry.serial).await? {
            if Some(line.manifest) != own && errors.len() < 10 {
                errors.push(FieldError::new(
                    format!("spec.text line {}", entry.line),
                    format!(
                        "line {} of another manifest names the same machine",
                        line.entry.line
                    ),
                ));
            }
        }
    }
    Ok(errors)
}

impl Governed for Manifest {
    const LIMIT: usize = 2 * operator_api::MAX_MANIFEST_TEXT;

    async fn admit(
        connection: &mut Connection,
        new: &Self,
        before: Option<&Self>,
    ) -> Result<Links, Fault> {
        let what = format!("importing manifest `{}`", new.metadata.name);
        let entries = manifest::read(new.spec.format, &new.spec.text)
            .map_err(|error| Fault::field(what.clone(), "spec.text", error.to_string()))?;
        if let Some(signature) = &new.spec.signature
            && signer(connection, &new.spec.text, signature)
                .await?
                .is_none()
        {
            return Err(Fault::field(
                what,
                "spec.signature",
                "no trusted key made it over these bytes; `skerry get trustedkeys` lists them",
            ));
        }
        let errors = clashes(connection, before.and_then(Self::id), &entries).await?;
        if errors.is_empty() {
            return Ok(Links::default());
        }
        Err(Fault::Invalid {
            detail: format!("{what}: it does not fit what is there"),
            errors,
        })
    }

    async fn concerned(
        _: &mut Connection,
        _: &Self,
        _: Links,
    ) -> Result<Vec<DeviceId>, StoreError> {
        Ok(Vec::new())
    }

    async fn may_go(_: &mut Connection, _: &Self) -> Result<(), Fault> {
        Ok(())
    }

    async fn written(connection: &mut Connection, object: &mut Self) -> Result<(), Fault> {
        let id = id_of(object)?;
        let entries = manifest::read(object.spec.format, &object.spec.text)
            .map_err(|error| Fault::Internal(error.to_string()))?;
        manifests::replace(connection, id, &entries).await?;
        object.status.digest = Digest::of(object.spec.text.as_bytes()).to_string();
        object.status.signed_by = match &object.spec.signature {
            Some(signature) => signer(connection, &object.spec.text, signature)
                .await?
                .unwrap_or_default(),
            None => String::new(),
        };
        objects::set_status::<Self>(connection, id, &object.status).await?;
        Ok(())
    }

    async fn shown(
        _: &Fleet,
        connection: &mut Connection,
        mut object: Self,
    ) -> Result<Self, StoreError> {
        object.spec.text.clear();
        if let Some(id) = object.id() {
            let (machines, enrolled) = manifests::count(connection, id).await?;
            object.status.machines = machines.unsigned_abs();
            object.status.enrolled = enrolled.unsigned_abs();
        }
        Ok(object)
    }
}

/// The kinds that hang on nothing, and on which the cache of what is believed hangs.
macro_rules! believed {
    ($name:ty, $id:ty, $check:expr) => {
        impl Governed for $name {
            async fn admit(
                _: &mut Connection,
                new: &Self,
                _: Option<&Self>,
            ) -> Result<Links, Fault> {
                let check: fn(&Self) -> Result<(), (&'static str, String)> = $check;
                check(new).map_err(|(field, message)| {
                    let what = format!("writing {} `{}`", Self::KIND, new.metadata.name);
                    Fault::field(what, field, message)
                })?;
                Ok(Links::default())
            }

            async fn concerned(
                _: &mut Connection,
                _: &Self,
                _: Links,
            ) -> Result<Vec<DeviceId>, StoreError> {
                Ok(Vec::new())
            }

            async fn may_go(_: &mut Connection, _: &Self) -> Result<(), Fault> {
                Ok(())
            }

            fn changed(fleet: &Fleet, _: &Self) {
                fleet.believed.drop_all();
            }

            fn gone(fleet: &Fleet, _: $id) {
                fleet.believed.drop_all();
            }

            async fn shown(
                _: &Fleet,
                _: &mut Connection,
                object: Self,
            ) -> Result<Self, StoreError> {
                Ok(object)
            }
        }
    };
}

believed!(EnrolmentRule, RuleId, |_| Ok(()));
believed!(TrustedKey, TrustedKeyId, |key| {
    public_point(&key.spec.public_key)
        .map(drop)
        .map_err(|error| ("spec.publicKey", error))
});

impl Governed for TpmMaker {
    async fn admit(_: &mut Connection, new: &Self, _: Option<&Self>) -> Result<Links, Fault> {
        read_maker(&new.spec).map_err(|(field, message)| {
            let what = format!("writing {} `{}`", Self::KIND, new.metadata.name);
            Fault::field(what, field, message)
        })?;
        Ok(Links::default())
    }

    async fn concerned(
        _: &mut Connection,
        _: &Self,
        _: Links,
    ) -> Result<Vec<DeviceId>, StoreError> {
        Ok(Vec::new())
    }

    async fn may_go(_: &mut Connection, _: &Self) -> Result<(), Fault> {
        Ok(())
    }

    async fn written(connection: &mut Connection, object: &mut Self) -> Result<(), Fault> {
        // What was admitted can be read.
        if let Ok(makers) = read_maker(&object.spec) {
            object.status.revocation_lists = makers.revocations().iter().map(list_status).collect();
        }
        objects::set_status::<Self>(connection, id_of(object)?, &object.status).await?;
        Ok(())
    }

    fn changed(fleet: &Fleet, _: &Self) {
        fleet.believed.drop_all();
    }

    fn gone(fleet: &Fleet, _: TpmMakerId) {
        fleet.believed.drop_all();
    }

    async fn shown(_: &Fleet, _: &mut Connection, object: Self) -> Result<Self, StoreError> {
        Ok(dated(object, Timestamp::now()))
    }
}

fn list_status(list: &RevocationList) -> RevocationListStatus {
    let time = |seconds: i64| Timestamp::from_second(seconds).ok();
    RevocationListStatus {
        issuer: list.issuer().to_owned(),
        revoked: u32::try_from(list.len()).unwrap_or(u32::MAX),
        made: time(list.made()),
        next: list.next().and_then(time),
    }
}

/// Says whether a maker's lists are the newest that it has promised.
fn dated(mut maker: TpmMaker, now: Timestamp) -> TpmMaker {
    let lists = &maker.status.revocation_lists;
    if lists.is_empty() {
        return maker;
    }
    let over = lists
        .iter()
        .filter_map(|list| Some((list.next.filter(|next| *next < now)?, &list.issuer)))
        .min();
    let (status, reason, message, since) = match over {
        Some((next, issuer)) => (
            ConditionStatus::False,
            "NextUpdateOver",
            format!(
                "the list of {issuer} still counts, but a newer one was due at {next}: import it"
            ),
            next,
        ),
        None => {
            let made = lists.iter().filter_map(|list| list.made).max();
            (
                ConditionStatus::True,
                "UpToDate",
                String::new(),
                made.unwrap_or(now),
            )
        }
    };
    condition(
        &mut maker.status.conditions,
        "RevocationCurrent",
        status,
        (reason, &message),
        since,
    );
    maker
}

/// The kinds on which it hangs what is believed of a boot: with every change, all devices attest anew.
macro_rules! judged {
    ($name:ty, $id:ty, $check:expr, $status:expr) => {
        impl Governed for $name {
            async fn admit(
                _: &mut Connection,
                new: &Self,
                _: Option<&Self>,
            ) -> Result<Links, Fault> {
                let check: fn(&Self) -> Result<(), (&'static str, String)> = $check;
                check(new).map_err(|(field, message)| {
                    let what = format!("writing {} `{}`", Self::KIND, new.metadata.name);
                    Fault::field(what, field, message)
                })?;
                Ok(Links::default())
            }

            async fn concerned(
                _: &mut Connection,
                _: &Self,
                _: Links,
            ) -> Result<Vec<DeviceId>, StoreError> {
                Ok(Vec::new())
            }

            async fn may_go(connection: &mut Connection, _: &Self) -> Result<(), Fault> {
                Ok(identities::end_tokens(connection).await?)
            }

            async fn written(connection: &mut Connection, object: &mut Self) -> Result<(), Fault> {
                let status: fn(&mut Self) = $status;
                status(object);
                objects::set_status::<Self>(connection, id_of(object)?, &object.status).await?;
                Ok(identities::end_tokens(connection).await?)
            }

            fn changed(fleet: &Fleet, _: &Self) {
                fleet.attest_anew();
            }

            fn gone(fleet: &Fleet, _: $id) {
                fleet.attest_anew();
            }

            async fn shown(
                _: &Fleet,
                _: &mut Connection,
                object: Self,
            ) -> Result<Self, StoreError> {
                Ok(object)
            }
        }
    };
}

judged!(
    AttestationPolicy,
    PolicyId,
    |policy| super::policy::read(&policy.spec).map(drop),
    |_| {}
);
judged!(
    BootReference,
    BootReferenceId,
    |reference| {
        SignedReference::open(reference.spec.document.as_bytes())
            .map(drop)
            .map_err(|error| ("spec.document", error.to_string()))
    },
    |object| {
        // What was admitted can be read.
        if let Ok(signed) = SignedReference::open(object.spec.document.as_bytes()) {
            let reference = signed.reference();
            object.status.image_version = reference.version.as_str().to_owned();
            object.status.variant = reference.variant.to_string();
            object.status.release_key = hex::encode(reference.release_key.point());
        }
    }
);
