//! A simulated device: speaks like a real one, and wrongly when asked to.

use onboarding::attest::{QuoteAnswer, Versions, device as exchange};
use onboarding::keys::Identity;
use onboarding::registration::{self, OnboardingKey};
use onboarding::tpm::Tpm;
use prost::Message;
use protocol::certs::ControllerCerts;
use protocol::envelope::{self, Envelope, MAX_REPLY};
use protocol::eve::attest::{ZAttestReq, ZAttestResponse};
use protocol::eve::certs::ZControllerCert;
use protocol::eve::config::{ConfigRequest, ConfigResponse};
use protocol::eve::uuid::{UuidRequest, UuidResponse};
use protocol::ids::DeviceId;
use protocol::keys::CertHash;
use protocol::paths;
use reqwest::StatusCode;
use tempfile::TempDir;

use crate::site::Site;

pub struct Device {
    pub identity: Identity,
    pub serial: String,
    pub id: DeviceId,
    pub token: Vec<u8>,
    /// Firmware's event log that goes along with quotes.
    pub event_log: Option<Vec<u8>>,
    /// The certificate that it was granted, if it enrolled by itself.
    pub granted: Option<Vec<u8>>,
    directory: TempDir,
}

impl Device {
    /// A device with keys that nobody has seen yet.
    pub fn new(serial: &str, tpm: Option<Tpm>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(directory.path(), tpm).unwrap();
        let id = DeviceId(uuid::Uuid::nil());
        Self {
            identity,
            serial: serial.to_owned(),
            id,
            token: Vec::new(),
            event_log: None,
            granted: None,
            directory,
        }
    }

    /// Takes up its keys again after its TPM was started anew.
    pub fn reopen(&mut self, tpm: Tpm) {
        self.identity = Identity::open_or_create(self.directory.path(), Some(tpm)).unwrap();
    }

    /// A device without a TPM that has registered and knows its id.
    pub async fn registered(site: &Site, serial: &str) -> Self {
        let mut device = Self::new(serial, None);
        assert_eq!(device.register(site).await, StatusCode::CREATED);
        device.learn_id(site).await;
        device
    }

    /// A device without a TPM that has registered and was attested.
    pub async fn attested(site: &Site, serial: &str) -> Self {
        let mut device = Self::registered(site, serial).await;
        device.attest(site).await;
        device
    }

    pub fn hash(&self) -> CertHash {
        match &self.granted {
            Some(certificate) => CertHash::of_der(certificate),
            None => self.identity.device_certificate().hash(),
        }
    }

    pub fn seal(&self, payload: Vec<u8>) -> Vec<u8> {
        envelope::seal(payload, &self.hash(), None, &self.identity).unwrap()
    }

    pub fn registration(&self, site: &Site) -> Vec<u8> {
        let key = OnboardingKey::from_pem(
            site.bundle.onboard_certificate.as_deref().unwrap(),
            site.bundle.onboard_key.as_deref().unwrap(),
        )
        .unwrap();
        let message =
            registration::message(self.identity.device_certificate(), &self.serial, "").unwrap();
        envelope::seal_message(&message, &key.hash(), Some(key.certificate_pem()), &key).unwrap()
    }

    pub async fn register(&self, site: &Site) -> StatusCode {
        post(site, paths::REGISTER, self.registration(site)).await.0
    }

    pub async fn learn_id(&mut self, site: &Site) {
        let (status, body) =
            post(site, paths::UUID, self.seal(UuidRequest {}.encode_to_vec())).await;
        assert_eq!(status, StatusCode::OK);
        let answer: UuidResponse = open(site, &body).await;
        self.id = answer.uuid.parse().unwrap();
    }

    /// Sends a message on a path of this device.
    pub async fn send(
        &self,
        site: &Site,
        path: &str,
        message: &impl Message,
    ) -> (StatusCode, Vec<u8>) {
        post(site, path, self.seal(message.encode_to_vec())).await
    }

    pub async fn attest_request(
        &self,
        site: &Site,
        request: &ZAttestReq,
    ) -> (StatusCode, Option<ZAttestResponse>) {
        let (status, body) = self.send(site, &paths::attest(self.id), request).await;
        let answer = if status == StatusCode::CREATED {
            Some(open(site, &body).await)
        } else {
            None
        };
        (status, answer)
    }

    pub async fn nonce(&self, site: &Site) -> Vec<u8> {
        let (_, answer) = self.attest_request(site, &exchange::nonce_request()).await;
        exchange::read_nonce(&answer.unwrap()).unwrap()
    }

    /// Makes a quote over a nonce.
    pub fn quote(&self, nonce: &[u8]) -> ZAttestReq {
        let versions = Versions {
            system: "0.1.0".to_owned(),
            firmware: "1".to_owned(),
        };
        exchange::quote_request(&self.identity, nonce, &versions, self.event_log.as_deref())
            .unwrap()
    }

    pub async fn show_quote(&self, site: &Site, quote: &ZAttestReq) -> QuoteAnswer {
        let (_, answer) = self.attest_request(site, quote).await;
        exchange::read_quote_answer(&answer.unwrap()).unwrap()
    }

    pub async fn show_certificates(&self, site: &Site) -> StatusCode {
        self.attest_request(site, &exchange::certs_request(&self.identity))
            .await
            .0
    }

    /// The whole exchange; must be granted.
    pub async fn attest(&mut self, site: &Site) -> QuoteAnswer {
        assert_eq!(self.show_certificates(site).await, StatusCode::CREATED);
        let nonce = self.nonce(site).await;
        let answer = self.show_quote(site, &self.quote(&nonce)).await;
        let QuoteAnswer::Granted {
            integrity_token, ..
        } = &answer
        else {
            panic!("{answer:?}")
        };
        self.token = integrity_token.clone();
        answer
    }

    pub async fn config_with(
        &self,
        site: &Site,
        hash: &str,
        token: &[u8],
    ) -> (StatusCode, Option<ConfigResponse>) {
        let request = ConfigRequest {
            config_hash: hash.to_owned(),
            integrity_token: token.to_vec(),
        };
        let (status, body) = self.send(site, &paths::config(self.id), &request).await;
        let answer = if status == StatusCode::OK {
            Some(open(site, &body).await)
        } else {
            None
        };
        (status, answer)
    }

    pub async fn config(&self, site: &Site, hash: &str) -> (StatusCode, Option<ConfigResponse>) {
        self.config_with(site, hash, &self.token).await
    }
}

/// Posts a body as it is.
pub async fn post(site: &Site, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let request = site
        .http
        .post(site.url(path))
        .header("content-type", paths::CONTENT_TYPE)
        .body(body);
    let response = request.send().await.unwrap();
    let status = response.status();
    if status == StatusCode::OK {
        let kind = response
            .headers()
            .get("content-type")
            .map(|value| value.to_str().unwrap().to_owned());
        let body = response.bytes().await.unwrap().to_vec();
        if !body.is_empty() {
            assert_eq!(kind.as_deref(), Some(paths::CONTENT_TYPE));
        }
        return (status, body);
    }
    (status, response.bytes().await.unwrap().to_vec())
}

/// The controller's certificates, checked up to the root as a device does it.
pub async fn certificates(site: &Site) -> ControllerCerts {
    let body = site
        .http
        .get(site.url(paths::CERTS))
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    let envelope = Envelope::parse(&body, MAX_REPLY).unwrap();
    let set: ZControllerCert =
        envelope::decode(envelope.payload_unchecked(), "ZControllerCert").unwrap();
    let certs = ControllerCerts::verify(
        &set,
        site.bundle.root_certificate.as_bytes(),
        std::time::SystemTime::now(),
    )
    .unwrap();
    // The answer is also signed by what it brings.
    envelope.open(certs.signing()).unwrap();
    certs
}

/// Opens a reply of the controller.
pub async fn open<M: Message + Default>(site: &Site, body: &[u8]) -> M {
    let certs = certificates(site).await;
    Envelope::parse(body, MAX_REPLY)
        .unwrap()
        .open_message(certs.signing(), "reply")
        .unwrap()
}
