//! Datastores, content trees, volumes.

use protocol::digest::{Digest, DigestError};
use protocol::eve::config::{
    ContentTree, DatastoreConfig, DsType, Format, Volume, VolumeContentOriginType,
};
use protocol::image::{Repository, RepositoryError};

use super::{Object, Work, uuid};
use crate::domain::desired::{Content, ContentKind, Datastore, Volume as DesiredVolume};
use crate::domain::ids::{ContentId, DatastoreId};

pub(super) fn datastore(work: &Work<'_>, config: &DatastoreConfig) -> Result<Datastore, String> {
    if config.d_type() != DsType::DsContainerRegistry {
        return Err(format!(
            "datastores of kind {} are not supported; only container registries are",
            config.d_type().as_str_name()
        ));
    }
    let registry = config
        .fqdn
        .trim()
        .strip_prefix("docker://")
        .unwrap_or(config.fqdn.trim())
        .trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if registry.is_empty() || !registry.chars().all(plain) {
        return Err(format!(
            "{:?} is not the address of a registry; expected docker://host or docker://host:port",
            config.fqdn
        ));
    }
    let ca_certificates = config
        .ds_cert_pem
        .iter()
        .map(|pem| {
            String::from_utf8(pem.clone())
                .ok()
                .filter(|pem| pem.contains("-----BEGIN CERTIFICATE-----"))
                .ok_or_else(|| {
                    "a further certificate authority of the datastore is not PEM".to_owned()
                })
        })
        .collect::<Result<_, _>>()?;
    let (user, password) = match &config.cipher_data {
        Some(block) => {
            let clear = work
                .open(block)
                .map_err(|error| format!("credentials of the datastore: {error}"))?;
            (clear.ds_api_key, clear.ds_password)
        }
        None => (config.api_key.clone(), config.password.clone()),
    };
    let login = (!user.is_empty() || !password.is_empty()).then_some((user, password));
    Ok(Datastore {
        registry: registry.to_owned(),
        ca_certificates,
        login,
    })
}

pub(super) fn content(work: &Work<'_>, config: &ContentTree) -> Result<Content, String> {
    let kind = match config.iformat() {
        Format::Container => ContentKind::Container,
        Format::Raw => ContentKind::MachineRaw,
        Format::Qcow2 => ContentKind::MachineQcow2,
        other => {
            return Err(format!(
                "images in format {} are not supported; use CONTAINER, RAW or QCOW2",
                other.as_str_name()
            ));
        }
    };
    let store = config.ds_ids_list.first().unwrap_or(&config.ds_id);
    let datastore = DatastoreId(uuid(store).map_err(|error| format!("its datastore: {error}"))?);
    if !work.out.desired.datastores.contains_key(&datastore) {
        return Err(work.why_missing("datastore", Object::Datastore(datastore), datastore.0));
    }
    let (name, digest) = match config.url.split_once('@') {
        Some((name, digest)) => (name, digest.parse()),
        // EVE gives the manifest's digest beside a reference with a tag.
        None if !config.sha256.is_empty() => (
            config.url.as_str(),
            Digest::from_hex(&config.sha256.to_lowercase()),
        ),
        None => {
            return Err(format!(
                "{:?} has no digest; use repository@sha256:...",
                config.url
            ));
        }
    };
    let digest = digest.map_err(|error: DigestError| error.to_string())?;
    Ok(Content {
        name: config.display_name.clone(),
        datastore,
        repository: repository(work, store, name)?,
        digest,
        kind,
    })
}

/// The repository, without a tag, below the datastore's path if it has one.
fn repository(work: &Work<'_>, store: &str, name: &str) -> Result<Repository, String> {
    let base = work
        .config
        .datastores
        .iter()
        .find(|datastore| datastore.id == store)
        .map_or("", |d| d.dpath.as_str());
    // The part after the last slash may carry a tag; the digest makes it meaningless.
    let untagged = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    };
    let joined = [base.trim_matches('/'), untagged.trim_matches('/')]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    joined
        .parse()
        .map_err(|error: RepositoryError| error.to_string())
}

pub(super) fn volume(work: &Work<'_>, config: &Volume) -> Result<DesiredVolume, String> {
    let origin = config
        .origin
        .as_ref()
        .ok_or("it says not from what it is to be made")?;
    if origin.r#type() != VolumeContentOriginType::VcotDownload {
        return Err(format!(
            "volumes of origin {} are not supported; only downloaded ones are",
            origin.r#type().as_str_name()
        ));
    }
    let content = uuid(&origin.download_content_tree_id)
        .map(ContentId)
        .map_err(|error| format!("its content tree: {error}"))?;
    if !work.out.desired.contents.contains_key(&content) {
        return Err(work.why_missing("content tree", Object::Content(content), content.0));
    }
    let size_bytes =
        u64::try_from(config.maxsizebytes).map_err(|_| "its size is negative".to_owned())?;
    Ok(DesiredVolume {
        name: config.display_name.clone(),
        content,
        generation: config.generation_count,
        size_bytes,
        readonly: config.readonly,
    })
}
