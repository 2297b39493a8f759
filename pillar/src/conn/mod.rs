//! The connection to the controller: HTTPS requests with signed envelopes both ways.
//!
//! ```text
//!          payload --seal (device key, in the TPM)--> AuthContainer --POST--> controller
//!          payload <--open (signing certificate)----- AuthContainer <--reply-----'
//!                              |
//!                              '-- another signer named: fetch /certs, verify up to the root, try once more
//! ```
//!
//! Rules of the wire are EVE's (device API v2); the crate `protocol` makes and opens the envelopes.

pub mod certs;
pub mod error;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::authority::Authority;
use protocol::envelope::{self, Envelope, EnvelopeError, MAX_REPLY};
use protocol::keys::{CertHash, Signer};
use protocol::paths;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap};
use reqwest::{Client, Method};
use tokio::sync::Mutex;
use uuid::Uuid;

use self::certs::Verified;
pub use self::error::Error;
use crate::bundle::Bundle;
use crate::chain::chain;
use crate::clock::Clock;
use crate::generations;
use crate::status::{Status, Topic};

/// EVE's `timer.dial.timeout` and `timer.send.timeout` as they are by default; the second one shortened, because every
/// message here is small.
const DIAL: Duration = Duration::from_secs(10);
const SEND: Duration = Duration::from_secs(60);

/// Text of a refusal that is worth showing.
const MAX_HINT: usize = 200;

/// Who signs.
#[derive(Clone)]
pub struct Sender {
    /// Holder of the key.
    pub signer: Arc<dyn Signer>,
    /// Name of its certificate on the wire.
    pub hash: CertHash,
    /// PEM of the certificate where the receiver has not seen it (onboarding).
    pub certificate: Option<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status, one that means success (200, 201, 204, 304).
    pub status: u16,
    /// The body as it came.
    pub body: Bytes,
    date: Option<String>,
}

/// Serial numbers of the device.
#[derive(Clone, Debug, Default)]
pub struct Serials {
    /// The hardware's.
    pub hardware: String,
    /// The software's; empty if the image has none.
    pub software: String,
}

/// The connection. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    http: Client,
    tls: Arc<rustls::ClientConfig>,
    server: Authority,
    root_pem: Vec<u8>,
    clock: Clock,
    status: Status,
    device: Sender,
    serials: Serials,
    named: std::sync::atomic::AtomicBool,
    certs_file: PathBuf,
    certs: RwLock<Option<Arc<Verified>>>,
    fetching: Mutex<()>,
}

impl Connection {
    /// Makes the client; nothing is sent yet. The serial numbers are sent while the device has no id.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(
        bundle: &Bundle,
        tls: Arc<rustls::ClientConfig>,
        clock: Clock,
        status: Status,
        device: Sender,
        serials: Serials,
        certs_file: PathBuf,
    ) -> Result<Self, Error> {
        let http = Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .http1_only()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(DIAL)
            .timeout(SEND)
            .pool_max_idle_per_host(2)
            .user_agent(concat!("skerry-pillar/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Client(chain(&error)))?;
        let connection = Self {
            inner: Arc::new(Inner {
                http,
                tls,
                server: bundle.server.clone(),
                root_pem: bundle.root_pem.clone(),
                clock,
                status,
                device,
                serials,
                named: false.into(),
                certs_file,
                certs: RwLock::new(None),
                fetching: Mutex::new(()),
            }),
        };
        connection.load_certs();
        Ok(connection)
    }

    /// The controller.
    #[must_use]
    pub fn server(&self) -> &Authority {
        &self.inner.server
    }

    /// The TLS settings, for connections that are not plain requests.
    #[must_use]
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        self.inner.tls.clone()
    }

    /// From now on the device has an id and needs no serial numbers on its requests.
    pub fn set_named(&self) {
        self.inner
            .named
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// The certificates at hand, without asking anybody.
    #[must_use]
    pub fn known_certs(&self) -> Option<Arc<Verified>> {
        self.inner
            .certs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes the certificates that were kept on disk, if they still verify.
    fn load_certs(&self) {
        let kept = match generations::read(&self.inner.certs_file) {
            Ok(Some(raw)) => certs::verify(&raw, &self.inner.root_pem, &self.inner.clock),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "kept certificates of the controller");
                return;
            }
        };
        match kept {
            Ok(certs) => self.set_certs(certs),
            Err(error) => tracing::warn!(%error, "kept certificates of the controller not taken"),
        }
    }

    fn set_certs(&self, certs: Verified) {
        *self
            .inner
            .certs
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certs));
    }

    /// Asks for the controller's certificates, verifies and keeps them.
    ///
    /// # Errors
    /// No answer, or certificates that do not lead to the root of the image.
    pub async fn fetch_certs(&self) -> Result<Arc<Verified>, Error> {
        let _one_at_a_time = self.inner.fetching.lock().await;
        let url = self.url(paths::CERTS);
        let answer = self.send(Method::GET, paths::CERTS, None, None).await?;
        // The signature is made with a key that the content itself names: what counts is the chain inside.
        let reply = Envelope::parse(&answer.body, MAX_REPLY)
            .map_err(|source| Error::Reply { url, source })?;
        let certs = certs::verify(
            reply.payload_unchecked(),
            &self.inner.root_pem,
            &self.inner.clock,
        )?;
        let changed = self
            .known_certs()
            .is_none_or(|known| known.raw != certs.raw);
        let raw = certs.raw.clone();
        self.set_certs(certs.clone());
        if changed && let Err(error) = generations::store(self.inner.certs_file.clone(), raw).await
        {
            self.inner.status.raise(Topic::Disk, &error.to_string());
        }
        Ok(Arc::new(certs))
    }

    async fn certs(&self) -> Result<Arc<Verified>, Error> {
        match self.known_certs() {
            Some(certs) => Ok(certs),
            None => self.fetch_certs().await,
        }
    }

    /// Sends `payload` in an envelope of the device's key.
    ///
    /// # Errors
    /// See [`Error`]; any status but 200, 201, 204 and 304 is one.
    pub async fn post(&self, path: &str, payload: Vec<u8>) -> Result<Answer, Error> {
        let device = self.inner.device.clone();
        self.post_as(device, path, payload).await
    }

    /// Sends `payload` in an envelope of somebody else's key.
    ///
    /// # Errors
    /// As [`Connection::post`].
    pub async fn post_as(
        &self,
        sender: Sender,
        path: &str,
        payload: Vec<u8>,
    ) -> Result<Answer, Error> {
        let body = seal(sender, payload).await?;
        let answer = self.send(Method::POST, path, Some(body), None).await?;
        // An answer without an envelope is authenticated by TLS alone.
        if let Some(date) = &answer.date {
            self.inner.clock.confirm(date);
        }
        Ok(answer)
    }

    /// Opens the envelope of an answer: checks the signature and gives the payload. The first that is good also tells
    /// the time.
    ///
    /// # Errors
    /// A signature that is not the controller's, or an answer that is no envelope.
    pub async fn open(&self, path: &str, answer: &Answer) -> Result<Vec<u8>, Error> {
        let reply = |source| Error::Reply {
            url: self.url(path),
            source,
        };
        let envelope = Envelope::parse(&answer.body, MAX_REPLY).map_err(reply)?;
        let certs = self.certs().await?;
        let payload = match envelope.clone().open(certs.certs.signing()) {
            Err(EnvelopeError::OtherSender { .. }) => {
                let certs = self.fetch_certs().await?;
                envelope.open(certs.certs.signing()).map_err(reply)?
            }
            result => result.map_err(reply)?,
        };
        if let Some(date) = &answer.date {
            self.inner.clock.learn(date);
        }
        Ok(payload)
    }

    /// [`Connection::post`], and the payload of the signed reply as a message.
    ///
    /// # Errors
    /// As [`Connection::post`] and [`Connection::open`].
    pub async fn ask<M: prost::Message + Default>(
        &self,
        path: &str,
        request: &impl prost::Message,
        what: &'static str,
    ) -> Result<M, Error> {
        let answer = self.post(path, request.encode_to_vec()).await?;
        let payload = self.open(path, &answer).await?;
        envelope::decode(&payload, what).map_err(|source| Error::Reply {
            url: self.url(path),
            source,
        })
    }

    /// An envelope of the device's key, for other ways than a request.
    ///
    /// # Errors
    /// When the key's holder cannot sign.
    pub async fn seal(&self, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
        seal(self.inner.device.clone(), payload).await
    }

    /// The whole URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.inner.server)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        headers: Option<HeaderMap>,
    ) -> Result<Answer, Error> {
        let url = self.url(path);
        let mut request = self
            .inner
            .http
            .request(method, &url)
            .header("X-Request-Id", Uuid::new_v4().to_string());
        if !self.inner.named.load(std::sync::atomic::Ordering::Relaxed) {
            let Serials { hardware, software } = &self.inner.serials;
            request = request
                .header("X-Serial-Number", header_text(hardware))
                .header("X-Soft-Serial", header_text(software));
        }
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, paths::CONTENT_TYPE).body(body);
        }
        let unreachable = |error: reqwest::Error| {
            // The outermost layer only says that sending failed.
            let error = error.without_url();
            let reason = std::error::Error::source(&error).map_or_else(|| chain(&error), chain);
            Error::Unreachable {
                url: url.clone(),
                reason,
            }
        };
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let date = response
            .headers()
            .get(DATE)
            .and_then(|date| date.to_str().ok())
            .map(str::to_owned);
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len().saturating_add(chunk.len()) > MAX_REPLY {
                return Err(Error::TooLong {
                    url,
                    limit: MAX_REPLY,
                });
            }
            body.extend_from_slice(&chunk);
        }
        match status {
            200 | 201 | 204 | 304 => Ok(Answer {
                status,
                body: body.freeze(),
                date,
            }),
            _ => Err(Error::Status {
                url,
                status,
                hint: hint(&body),
            }),
        }
    }
}

async fn seal(sender: Sender, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
    // A TPM takes its time.
    tokio::task::spawn_blocking(move || {
        envelope::seal(
            payload,
            &sender.hash,
            sender.certificate.as_deref(),
            &*sender.signer,
        )
    })
    .await
    .map_err(|error| Error::Sign(error.to_string()))?
    .map_err(|error| Error::Sign(error.to_string()))
}

/// Visible ASCII, as a header value must be.
fn header_text(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(256)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// The text of a short body, for people.
fn hint(body: &[u8]) -> String {
    match std::str::from_utf8(body.get(..body.len().min(MAX_HINT)).unwrap_or_default()) {
        Ok(text) if !text.trim().is_empty() => format!(": {}", text.trim()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_from_firmware_cannot_break_a_header() {
        assert_eq!(header_text("AB\r\nX: y\u{e9} 1 "), "ABX: y 1");
    }

    #[test]
    fn a_refusals_text_is_shown_if_it_is_text() {
        assert_eq!(hint(b" no such device\n"), ": no such device");
        assert_eq!(hint(&[0xff, 0xfe]), "");
        assert_eq!(hint(b""), "");
    }
}
