//! Datastore: where images come from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::meta::Condition;
use crate::object::object;
use crate::problem::FieldError;

/// Most that further roots may take, in bytes.
const MAX_CERTIFICATES: usize = 64 * 1024;

object! {
    /// A place from which devices fetch images.
    Datastore, "datastores", DatastoreSpec, DatastoreStatus, validate
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
    /// `host` or `host:port`.
    pub authority: String,
}

impl fmt::Display for RegistryUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "docker://{}", self.authority)
    }
}

impl FromStr for RegistryUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("docker://")
            .ok_or_else(|| format!("`{text}` must begin with docker://"))?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host_fits = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.len() <= 253
                    && host
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
            }
        };
        if !host_fits {
            return Err(format!("`{text}` must name a host, without a path"));
        }
        if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(format!(
                "`{text}` must have a port from 1 to 65535, or none"
            ));
        }
        Ok(Self {
            authority: authority.to_owned(),
        })
    }
}

fn validate(spec: &DatastoreSpec, errors: &mut Vec<FieldError>) {
    if let Err(message) = spec.url.parse::<RegistryUrl>() {
        errors.push(FieldError::new("spec.url", message));
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
            ("docker://r.example", Some("docker://r.example")),
            ("docker://[fe80::1]:5000/", Some("docker://[fe80::1]:5000")),
            ("https://registry.example", None),
            ("docker://[::1]", Some("docker://[::1]")),
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
