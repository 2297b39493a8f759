//! Datastores, content trees, volumes.

use protocol::authority::Authority;
use protocol::digest::Digest;
use protocol::eve::config::{
    ContentTree, DatastoreConfig, DsType, Format, Volume, VolumeContentOriginType,
};
use protocol::ids::{ContentId, DatastoreId};
use protocol::image::Repository;

use super::{Object, ObjectError, Work, id};
use crate::domain::desired::{Content, ContentKind, Datastore, Login, Volume as DesiredVolume};

/// Port of a registry whose address names none.
const HTTPS: u16 = 443;

pub(super) fn datastore(
    work: &Work<'_>,
    config: &DatastoreConfig,
) -> Result<Datastore, ObjectError> {
    if config.d_type() != DsType::DsContainerRegistry {
        return Err(ObjectError::DatastoreKind(config.d_type().as_str_name()));
    }
    let address = config.fqdn.trim();
    let address = address.strip_prefix("docker://").unwrap_or(address);
    let registry = Authority::or_port(address.trim_end_matches('/'), HTTPS)?;
    let ca_certificates = config
        .ds_cert_pem
        .iter()
        .map(|pem| {
            String::from_utf8(pem.clone())
                .ok()
                .filter(|pem| pem.contains("-----BEGIN CERTIFICATE-----"))
                .ok_or(ObjectError::CertificateAuthority)
        })
        .collect::<Result<_, _>>()?;
    let (user, password) = match &config.cipher_data {
        Some(block) => {
            let clear = work.open("credentials of the datastore", block)?;
            (clear.ds_api_key, clear.ds_password)
        }
        None => (config.api_key.clone(), config.password.clone()),
    };
    let login = (!user.is_empty() || !password.is_empty()).then_some(Login { user, password });
    Ok(Datastore {
        registry,
        ca_certificates,
        login,
    })
}

pub(super) fn content(work: &Work<'_>, config: &ContentTree) -> Result<Content, ObjectError> {
    let kind = match config.iformat() {
        Format::Container => ContentKind::Container,
        Format::Raw => ContentKind::MachineRaw,
        Format::Qcow2 => ContentKind::MachineQcow2,
        other => {
            return Err(ObjectError::ImageFormat(other.as_str_name()));
        }
    };
    let store = config.ds_ids_list.first().unwrap_or(&config.ds_id);
    let datastore: DatastoreId = id(store).map_err(ObjectError::within("its datastore"))?;
    if !work.out.desired.datastores.contains_key(&datastore) {
        return Err(work.why_missing("datastore", Object::Datastore(datastore), datastore.0));
    }
    let (name, digest) = match config.url.split_once('@') {
        Some((name, digest)) => (name, digest.parse()?),
        // EVE gives the manifest's digest beside a reference with a tag.
        None if !config.sha256.is_empty() => (
            config.url.as_str(),
            Digest::from_hex(&config.sha256.to_lowercase())?,
        ),
        None => {
            return Err(ObjectError::NoDigest(config.url.clone()));
        }
    };
    Ok(Content {
        name: config.display_name.clone(),
        datastore,
        repository: repository(work, store, name)?,
        digest,
        kind,
    })
}

/// The repository, without a tag, below the datastore's path if it has one.
fn repository(work: &Work<'_>, store: &str, name: &str) -> Result<Repository, ObjectError> {
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
    Ok(joined.parse()?)
}

pub(super) fn volume(work: &Work<'_>, config: &Volume) -> Result<DesiredVolume, ObjectError> {
    let origin = config.origin.as_ref().ok_or(ObjectError::NoOrigin)?;
    if origin.r#type() != VolumeContentOriginType::VcotDownload {
        return Err(ObjectError::Origin(origin.r#type().as_str_name()));
    }
    let content: ContentId =
        id(&origin.download_content_tree_id).map_err(ObjectError::within("its content tree"))?;
    if !work.out.desired.contents.contains_key(&content) {
        return Err(work.why_missing("content tree", Object::Content(content), content.0));
    }
    let size_bytes = u64::try_from(config.maxsizebytes).map_err(|_| ObjectError::NegativeSize)?;
    Ok(DesiredVolume {
        name: config.display_name.clone(),
        content,
        generation: config.generation_count,
        size_bytes,
        readonly: config.readonly,
    })
}
