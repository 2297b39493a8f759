//! Speaks to an OCI registry (OCI Distribution Specification 1.1, the pull half) over TLS.
//!
//! Bodies are handed on as streams: an image may be larger than the device's memory.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use protocol::digest::Digest;
use protocol::image::Repository;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, RANGE, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::manifest::{DOCUMENT_LIMIT, accepted_types};
use crate::chain::chain;
use crate::domain::desired::{Datastore, Login};
use crate::tls::SYSTEM_ROOTS;

/// A registry that did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The data store's settings cannot be used.
    #[error("the registry {registry} cannot be used: {reason}")]
    Settings {
        /// `host:port`.
        registry: String,
        /// What is wrong with the settings.
        reason: String,
    },
    /// No answer, or none that could be read.
    #[error("fetching {url}: {reason}")]
    Transport {
        /// What was asked for.
        url: String,
        /// All that the layers below said.
        reason: String,
    },
    /// An answer, but not the one hoped for.
    #[error("fetching {url}: the registry answered {status}{hint}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// What the operator can do.
        hint: &'static str,
    },
    /// The answer's content is wrong.
    #[error("fetching {url}: {reason}")]
    Content {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A registry and what is needed to ask it.
pub struct Registry {
    client: reqwest::Client,
    base: Url,
    login: Option<Login>,
    /// The value of the Authorization header that was accepted last.
    authorization: Mutex<Option<String>>,
}

/// A blob's bytes, from some offset on.
pub struct BlobStream {
    /// Offset of the first byte.
    pub from: u64,
    /// The bytes.
    pub bytes: std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>,
}

impl Registry {
    /// Makes a client for a data store. Nothing is sent yet.
    pub fn new(datastore: &Datastore) -> Result<Self, RegistryError> {
        let registry = &datastore.registry;
        let bad = |reason: String| RegistryError::Settings {
            registry: registry.to_string(),
            reason,
        };
        let base = Url::parse(&format!("https://{registry}/v2/"))
            .map_err(|error| bad(error.to_string()))?;
        let mut roots = rustls::RootCertStore::empty();
        for pem in &datastore.ca_certificates {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                certificate
                    .map_err(|error| error.to_string())
                    .and_then(|certificate| {
                        roots.add(certificate).map_err(|error| error.to_string())
                    })
                    .map_err(|reason| {
                        bad(format!(
                            "a certificate authority of the data store cannot be read: {reason}"
                        ))
                    })?;
            }
        }
        if let Ok(certificates) = CertificateDer::pem_file_iter(SYSTEM_ROOTS) {
            roots.add_parsable_certificates(certificates.flatten());
        }
        if roots.is_empty() {
            return Err(bad(
                "no certificate authority is known; give the data store the registry's".into(),
            ));
        }
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .connect_timeout(Duration::from_secs(15))
            .read_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(10))
            .redirect(reqwest::redirect::Policy::limited(5))
            .user_agent(concat!("skerry/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| bad(chain(&error)))?;
        Ok(Self {
            client,
            base,
            login: datastore.login.clone(),
            authorization: Mutex::new(None),
        })
    }

    /// A manifest's bytes, whole, checked against its digest.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Vec<u8>, RegistryError> {
        let url = self.url(repository, "manifests", digest)?;
        let response = self.get(repository, &url, None).await?;
        let mut body = response.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| transport(&url, error))?;
            if (bytes.len() + piece.len()) as u64 > DOCUMENT_LIMIT {
                return Err(content(
                    &url,
                    format!("the manifest is larger than {DOCUMENT_LIMIT} bytes"),
                ));
            }
            bytes.extend_from_slice(&piece);
        }
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(content(
                &url,
                format!(
                    "the manifest has the digest {found}, not the one asked for; it was changed on its way or in the registry"
                ),
            ));
        }
        Ok(bytes)
    }

    /// A blob's bytes from `from` on; the registry may choose to send it from the beginning.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobStream, RegistryError> {
        let url = self.url(repository, "blobs", digest)?;
        let response = self
            .get(repository, &url, (from > 0).then_some(from))
            .await?;
        let start = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok());
            match range.and_then(range_start) {
                Some(start) if start == from => start,
                _ => {
                    return Err(content(
                        &url,
                        "it answered with another range than the one asked for".into(),
                    ));
                }
            }
        } else {
            0
        };
        let bytes = response
            .bytes_stream()
            .map(move |piece| piece.map_err(|error| transport(&url, error)));
        Ok(BlobStream {
            from: start,
            bytes: Box::pin(bytes),
        })
    }

    fn url(
        &self,
        repository: &Repository,
        what: &str,
        digest: &Digest,
    ) -> Result<Url, RegistryError> {
        self.base
            .join(&format!("{repository}/{what}/{digest}"))
            .map_err(|error| RegistryError::Settings {
                registry: self.base.authority().to_owned(),
                reason: error.to_string(),
            })
    }

    async fn get(
        &self,
        repository: &Repository,
        url: &Url,
        from: Option<u64>,
    ) -> Result<Response, RegistryError> {
        let mut tried_to_log_in = false;
        loop {
            let mut request = self
                .client
                .get(url.clone())
                .header(ACCEPT, accepted_types());
            if let Some(authorization) = self.authorization.lock().await.as_ref() {
                request = request.header(AUTHORIZATION, authorization);
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request
                .send()
                .await
                .map_err(|error| transport(url, error))?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !tried_to_log_in {
                tried_to_log_in = true;
                let challenge = response
                    .headers()
                    .get(WWW_AUTHENTICATE)
                    .and_then(|value| value.to_str().ok())
                    .and_then(parse_challenge);
                let accepted = self.answer(challenge, repository, url).await?;
                *self.authorization.lock().await = Some(accepted);
                continue;
            }
            if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT && from.is_some() {
                return Ok(response);
            }
            let hint = match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    "; check the data store's user name and password"
                }
                StatusCode::NOT_FOUND => "; check repository and digest of the image",
                StatusCode::TOO_MANY_REQUESTS => "; it limits the number of downloads",
                _ => "",
            };
            return Err(RegistryError::Status {
                url: url.to_string(),
                status,
                hint,
            });
        }
    }

    /// The Authorization header that answers a challenge.
    async fn answer(
        &self,
        challenge: Option<Challenge>,
        repository: &Repository,
        url: &Url,
    ) -> Result<String, RegistryError> {
        let basic = self.login.as_ref().map(|Login { user, password }| {
            let both =
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {both}")
        });
        match challenge {
            Some(Challenge::Basic) => basic.ok_or_else(|| RegistryError::Status {
                url: url.to_string(),
                status: StatusCode::UNAUTHORIZED,
                hint: "; the data store has no user name and password",
            }),
            Some(Challenge::Bearer { realm, service }) => {
                let mut token_url = Url::parse(&realm).map_err(|error| {
                    content(
                        url,
                        format!("its token service {realm:?} has no usable address: {error}"),
                    )
                })?;
                {
                    let mut query = token_url.query_pairs_mut();
                    if let Some(service) = &service {
                        query.append_pair("service", service);
                    }
                    query.append_pair("scope", &format!("repository:{repository}:pull"));
                }
                let mut request = self.client.get(token_url.clone());
                if let Some(basic) = basic {
                    request = request.header(AUTHORIZATION, basic);
                }
                let response = request
                    .send()
                    .await
                    .map_err(|error| transport(&token_url, error))?;
                if !response.status().is_success() {
                    return Err(RegistryError::Status {
                        url: token_url.to_string(),
                        status: response.status(),
                        hint: "; check the data store's user name and password",
                    });
                }
                let mut bytes = Vec::new();
                let mut body = response.bytes_stream();
                while let Some(piece) = body.next().await {
                    bytes.extend_from_slice(&piece.map_err(|error| transport(&token_url, error))?);
                    if bytes.len() > 64 * 1024 {
                        return Err(content(
                            &token_url,
                            "the token is larger than 64 KiB".into(),
                        ));
                    }
                }
                let token = parse_token(&bytes).map_err(|error| {
                    content(&token_url, format!("the token cannot be read: {error}"))
                })?;
                Ok(format!("Bearer {token}"))
            }
            None => Err(RegistryError::Status {
                url: url.to_string(),
                status: StatusCode::UNAUTHORIZED,
                hint: "; it asks for a kind of login that is not supported (Basic and Bearer are)",
            }),
        }
    }
}

/// How a registry wants to be logged in to.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// With user name and password each time.
    Basic,
    /// With a token.
    Bearer {
        /// Who gives one.
        realm: String,
        /// For whom it is.
        service: Option<String>,
    },
}

/// Reads a WWW-Authenticate header (RFC 9110, 11.6.1) as far as registries use it: one challenge, quoted parameters.
#[must_use]
pub fn parse_challenge(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after
                .split_once(',')
                .map_or((after, ""), |(value, after)| (value, after)),
        };
        match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
    })
}

/// What is wrong with the answer of a registry's token service.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not the JSON that it must be.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// What it gives cannot stand in a header.
    #[error("it has characters that no header may have")]
    Characters,
}

/// Reads the answer of a token service (Docker's token authentication): a token under either of its two names, which
/// fits into an Authorization header. Where there is none it is empty, and the registry will say what it thinks of that.
///
/// # Errors
/// [`TokenError`].
pub fn parse_token(json: &[u8]) -> Result<String, TokenError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
    }
    let answer: Answer = serde_json::from_slice(json)?;
    let token = if answer.token.is_empty() {
        answer.access_token
    } else {
        answer.token
    };
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(token)
    } else {
        Err(TokenError::Characters)
    }
}

/// The first byte of `bytes 5-9/10`.
#[must_use]
pub fn range_start(header: &str) -> Option<u64> {
    header
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .parse()
        .ok()
}

fn transport(url: &Url, error: reqwest::Error) -> RegistryError {
    RegistryError::Transport {
        url: url.to_string(),
        // Which URL is told already.
        reason: chain(&error.without_url()),
    }
}

fn content(url: &Url, reason: String) -> RegistryError {
    RegistryError::Content {
        url: url.to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        assert_eq!(parse_challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(
            parse_challenge(
                "Bearer realm=\"https://auth.example/token\",service=\"reg\",scope=\"repository:a:pull\""
            ),
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("reg".into())
            })
        );
        assert_eq!(
            parse_challenge("bearer service=reg, realm=https://a/t"),
            Some(Challenge::Bearer {
                realm: "https://a/t".into(),
                service: Some("reg".into())
            })
        );
        for bad in [
            "",
            "Digest realm=\"x\"",
            "Bearer",
            "Bearer realm=\"unclosed",
            "Bearer service=\"x\"",
        ] {
            assert_eq!(parse_challenge(bad), None, "{bad}");
        }
    }

    #[test]
    fn tokens_are_read() {
        for (json, token) in [
            (r#"{"token":"a.b-c_","expires_in":300}"#, "a.b-c_"),
            (r#"{"access_token":"x"}"#, "x"),
            (r#"{"token":"a","access_token":"b"}"#, "a"),
            (r#"{"token":"","access_token":"b"}"#, "b"),
            ("{}", ""),
        ] {
            assert_eq!(parse_token(json.as_bytes()).unwrap(), token, "{json}");
        }
        for bad in [
            "",
            "[",
            r#"{"token":7}"#,
            r#"{"token":"a\r\nHost: b"}"#,
            r#"{"token":"a b"}"#,
            r#"{"token":"\u20ac"}"#,
        ] {
            assert!(parse_token(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("lines 5-9/10"), None);
    }
}
