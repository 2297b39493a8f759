//! Datastore: where images come from.

use std::fmt;
use std::str::FromStr;

use protocol::authority::{Authority, AuthorityError};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use crate::meta::Condition;
use crate::object::object;
use crate::problem::FieldError;

/// Port of a registry whose address names none.
const HTTPS: u16 = 443;
/// Most that further roots may take, in bytes.
const MAX_CERTIFICATES: usize = 64 * 1024;
/// Longest user name and longest password, in bytes.
const MAX_CREDENTIAL: usize = 4096;

object! {
    /// A place from which devices fetch images.
    Datastore, "datastores", protocol::ids::DatastoreId, DatastoreSpec, DatastoreStatus, validate
}

/// Where it is and how to trust it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatastoreSpec {
    /// What sort of place.
    #[serde(rename = "type", default)]
    pub kind: DatastoreType,
    /// `docker://host` or `docker://host:port`, as seen from the devices; always TLS.
    pub url: String,
    /// Further roots to trust for it, PEM, besides those of the web.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
    /// Who to log in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// Who to log in as. Devices get it encrypted to their own keys, once their boot is proven.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password. It is not given back; written without it, the one that is there stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Credentials({}, ..)", self.user)
    }
}

/// What sort of place a datastore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DatastoreType {
    /// An OCI registry.
    #[default]
    Registry,
}

/// What the controller knows of a datastore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatastoreStatus {
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

/// A registry's address: `docker://host` or `docker://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryUrl {
    /// Where it is; port 443 if the address has none.
    pub authority: Authority,
}

impl fmt::Display for RegistryUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "docker://{}", self.authority)
    }
}

impl FromStr for RegistryUrl {
    type Err = RegistryUrlError;

    fn from_str(text: &str) -> Result<Self, RegistryUrlError> {
        let rest = text
            .strip_prefix("docker://")
            .ok_or_else(|| RegistryUrlError::Scheme(text.to_owned()))?;
        Authority::or_port(rest.strip_suffix('/').unwrap_or(rest), HTTPS)
            .map(|authority| Self { authority })
            .map_err(|source| RegistryUrlError::Authority {
                text: text.to_owned(),
                source,
            })
    }
}

/// Why a text is not a [`RegistryUrl`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegistryUrlError {
    /// It begins with something else.
    #[error("`{0}` must begin with docker://")]
    Scheme(String),
    /// What follows is no host.
    #[error("`{text}` must be docker://HOST or docker://HOST:PORT, without a path: {source}")]
    Authority {
        /// The whole text.
        text: String,
        /// What is wrong.
        source: AuthorityError,
    },
}

fn validate(spec: &DatastoreSpec, errors: &mut Vec<FieldError>) {
    if let Err(error) = spec.url.parse::<RegistryUrl>() {
        errors.push(FieldError::new("spec.url", error.to_string()));
    }
    if let Some(Credentials { user, password }) = &spec.credentials {
        if user.is_empty() || user.len() > MAX_CREDENTIAL {
            errors.push(FieldError::new(
                "spec.credentials.user",
                format!("must be 1 to {MAX_CREDENTIAL} bytes"),
            ));
        }
        if password
            .as_ref()
            .is_some_and(|password| password.len() > MAX_CREDENTIAL)
        {
            errors.push(FieldError::new(
                "spec.credentials.password",
                format!("must be at most {MAX_CREDENTIAL} bytes"),
            ));
        }
    }
    if let Some(pem) = &spec.ca_certificates {
        if pem.len() > MAX_CERTIFICATES {
            errors.push(FieldError::new(
                "spec.caCertificates",
                format!("{} bytes; at most {MAX_CERTIFICATES} fit", pem.len()),
            ));
        } else if !pem.contains("-----BEGIN CERTIFICATE-----") {
            errors.push(FieldError::new(
                "spec.caCertificates",
                "holds no PEM certificate (-----BEGIN CERTIFICATE-----)",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, wanted) in [
            ("docker://10.0.2.2:5000", Some("docker://10.0.2.2:5000")),
            ("docker://r.example", Some("docker://r.example:443")),
            ("docker://[fe80::1]:5000/", Some("docker://[fe80::1]:5000")),
            ("https://registry.example", None),
            ("docker://[::1]", Some("docker://[::1]:443")),
            ("ftp://x", None),
            ("registry.example", None),
            ("docker://x/path", None),
            ("docker://", None),
            ("docker://x:0", None),
            ("docker://x:70000", None),
            ("docker://[x]:1", None),
            ("docker://user@x", None),
        ] {
            assert_eq!(
                text.parse::<RegistryUrl>()
                    .ok()
                    .map(|url| url.to_string())
                    .as_deref(),
                wanted,
                "{text}"
            );
        }
    }
}
