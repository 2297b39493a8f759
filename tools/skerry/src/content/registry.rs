//! Pushing to a registry (OCI Distribution Specification 1.1). Blobs that the registry has are not sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use imaging::digest::Digest;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use reqwest::header::HeaderValue;
use tokio_util::io::ReaderStream;

use super::{Blob, Plan, Source};
use crate::client::chain;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::terminal::note;

/// How often the progress of an upload is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Where an image goes to.
#[derive(Debug)]
pub struct Target(Reference);

impl Target {
    /// Reads `REGISTRY/REPOSITORY:TAG`. The registry must be named: nothing is ever pushed to a default one by accident.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let fault = |reason: &str| {
            Failure::usage(format!(
                "`{text}` is no target: {reason}; write REGISTRY/REPOSITORY:TAG"
            ))
        };
        let (registry, _) = text
            .split_once('/')
            .ok_or_else(|| fault("it names no registry"))?;
        if !registry.contains(['.', ':']) && registry != "localhost" {
            return Err(fault("it does not begin with a registry's host"));
        }
        let reference: Reference = text.parse().map_err(|error| fault(&format!("{error}")))?;
        if reference.digest().is_some() {
            return Err(fault("the digest is not known before the push; give a tag"));
        }
        Ok(Self(reference))
    }

    /// The repository without the registry.
    pub fn repository(&self) -> &str {
        self.0.repository()
    }
}

/// How to get in.
pub struct Access {
    /// Roots to trust, PEM; the system's if absent.
    pub roots: Option<String>,
    /// Without TLS.
    pub plain_http: bool,
    /// User and password.
    pub login: Option<(String, String)>,
}

impl Access {
    fn client(&self) -> Result<Client, Failure> {
        crate::use_ring();
        let roots = match &self.roots {
            Some(pem) => each_root(pem)?,
            None => Vec::new(),
        };
        Client::try_from(ClientConfig {
            protocol: if self.plain_http {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            // One PUT with the whole blob: chunks make a registry hash what it has again and again.
            use_monolithic_push: true,
            tls_certs_only: roots,
            connect_timeout: Some(Duration::from_secs(10)),
            user_agent: concat!("skerry/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(|error| {
            Failure::error(format!("preparing TLS for the registry: {}", chain(&error)))
        })
    }

    fn auth(&self) -> RegistryAuth {
        match &self.login {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        }
    }
}

/// Each certificate of a PEM text by itself, as the registry client wants them.
fn each_root(pem: &str) -> Result<Vec<Certificate>, Failure> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|item| {
            let der = item.map_err(|error| {
                Failure::usage(format!("the root certificates are not PEM: {error}"))
            })?;
            Ok(Certificate {
                encoding: CertificateEncoding::Der,
                data: der.to_vec(),
            })
        })
        .collect()
}

/// Pushes everything; gives the digest of the image.
pub async fn push(target: &Target, access: &Access, plan: &Plan) -> Result<Digest, Failure> {
    let Some(image) = plan.manifests.last() else {
        return Err(Failure::error("there is no manifest to push"));
    };
    let client = access.client()?;
    let reference = &target.0;
    let registry = reference.resolve_registry().to_owned();
    let fault = |what: &str, error: OciDistributionError| failure(what, &registry, &error);
    client
        .auth(reference, &access.auth(), RegistryOperation::Push)
        .await
        .map_err(|error| fault(&format!("log in to push {}", target.repository()), error))?;
    for blob in &plan.blobs {
        let what = format!("push {} to {}", blob.title, target.repository());
        // Not every registry answers HEAD properly; where it does not, the blob is simply sent.
        if client
            .blob_exists(reference, &blob.digest.to_string())
            .await
            .unwrap_or(false)
        {
            note(format!("{}: already there", blob.title));
            continue;
        }
        upload(&client, reference, blob)
            .await
            .map_err(|error| fault(&what, error))?;
    }
    for manifest in &plan.manifests {
        let what = format!(
            "push manifest {} to {}",
            manifest.digest,
            target.repository()
        );
        let media_type = HeaderValue::from_str(&manifest.media_type).map_err(|_| {
            Failure::error(format!(
                "{what}: `{}` is no media type",
                manifest.media_type
            ))
        })?;
        // The image itself gets the tag; what it refers to is found by digest.
        let to = if manifest.digest == image.digest {
            reference.clone()
        } else {
            reference.clone_with_digest(manifest.digest.to_string())
        };
        client
            .push_manifest_raw(&to, manifest.bytes.clone(), media_type)
            .await
            .map_err(|error| fault(&what, error))?;
    }
    Ok(image.digest)
}

/// Sends one blob and shows how far it is.
async fn upload(
    client: &Client,
    reference: &Reference,
    blob: &Blob,
) -> Result<(), OciDistributionError> {
    let sent = Arc::new(AtomicU64::new(0));
    let size = blob.source.size();
    let counter = Arc::clone(&sent);
    let body = pieces(&blob.source).await?.inspect(move |piece| {
        if let Ok(bytes) = piece {
            counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    });
    let mut progress = Progress::begin(format!("pushing {}", blob.title), size);
    let digest = blob.digest.to_string();
    let work = client.push_blob_stream(reference, body, &digest, Some(size));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                done?;
                progress.reach(size);
                progress.end("pushed");
                return Ok(());
            }
            () = tokio::time::sleep(TICK) => progress.reach(sent.load(Ordering::Relaxed)),
        }
    }
}

type Pieces = BoxStream<'static, Result<Bytes, OciDistributionError>>;

async fn pieces(source: &Source) -> Result<Pieces, OciDistributionError> {
    Ok(match source {
        Source::Bytes(bytes) => {
            stream::once(std::future::ready(Ok(Bytes::from(bytes.clone())))).boxed()
        }
        Source::File { path, .. } => {
            let file = tokio::fs::File::open(path).await?;
            ReaderStream::with_capacity(file, 1 << 18)
                .map(|piece| piece.map_err(OciDistributionError::from))
                .boxed()
        }
    })
}

fn failure(what: &str, registry: &str, error: &OciDistributionError) -> Failure {
    let reason = chain(error);
    let refused = matches!(
        error,
        OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::ServerError {
                code: 401 | 403,
                ..
            }
    );
    let timed_out =
        matches!(error, OciDistributionError::RequestError(error) if error.is_timeout());
    let hint = if refused {
        "; give --user and --password-file"
    } else if reason.contains("UnknownIssuer") {
        "; give the registry's root certificate with --ca"
    } else if reason.contains("InvalidContentType") || reason.contains("corrupt message") {
        "; does the registry speak TLS at all? If not: --plain-http"
    } else {
        ""
    };
    let message = format!("{what} at {registry}: {reason}{hint}");
    match (refused, timed_out) {
        (true, _) => Failure::refused(message),
        (_, true) => Failure::timed_out(message),
        _ => Failure::error(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn targets_name_registry_repository_and_tag() {
        for (text, repository, tag) in [
            ("127.0.0.1:5000/hello:latest", "hello", Some("latest")),
            (
                "registry.example.com/tools/hello:1.0",
                "tools/hello",
                Some("1.0"),
            ),
            ("localhost:5000/hello", "hello", Some("latest")),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(
                (target.repository(), target.0.tag()),
                (repository, tag),
                "{text}"
            );
        }
        for text in [
            "hello",
            "hello:latest",
            "tools/hello:1",
            "r.example/",
            "r.example/Hello:1",
            "r.example/a@sha256:00",
        ] {
            assert_eq!(
                Target::parse(text).unwrap_err().exit(),
                Exit::Usage,
                "{text}"
            );
        }
        let digest = format!("r.example/hello@sha256:{}", "0".repeat(64));
        assert!(
            Target::parse(&digest)
                .unwrap_err()
                .to_string()
                .contains("give a tag")
        );
    }
}
