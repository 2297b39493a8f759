//! The controller's door, as a crowd of machines comes to it: one connection each, no session of TLS taken up again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use operator_api::{API_PREFIX, ImageBundle, TokenRequest, TokenResponse};
use protocol::cipher::Point;
use protocol::enrolment::owner::Pinned;
use reqwest::Client;
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::machines::Home;
use crate::site::{Controller, Site};

/// Requests on their way at the same time; fewer than the controller works on at once.
pub const AT_ONCE: usize = 12;

pub struct Door {
    runtime: Runtime,
    tls: rustls::ClientConfig,
    url: String,
}

impl Door {
    pub fn of(controller: &Controller) -> Result<Door> {
        let root = controller.data().join("pki/root.pem");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(
            CertificateDer::from_pem_file(&root)
                .with_context(|| format!("reading {}", root.display()))?,
        )?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.resumption = Resumption::disabled();
        Ok(Door {
            runtime: Runtime::new().context("starting the client")?,
            tls,
            url: controller.url(),
        })
    }

    /// A connection that stays open between its requests.
    pub fn connection(&self) -> Result<Client> {
        Ok(Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .pool_idle_timeout(Duration::from_secs(600))
            .timeout(Duration::from_secs(60))
            .build()?)
    }

    /// Whom an image of this site would name.
    pub fn home(&self, site: &Site) -> Result<Home> {
        let file = site.controller.data().join("admin-password");
        let password = std::fs::read_to_string(&file)
            .with_context(|| format!("reading {}", file.display()))?;
        let client = self.connection()?;
        let url = &self.url;
        let bundle: ImageBundle = self.runtime.block_on(async {
            let login = TokenRequest {
                user: "admin".to_owned(),
                password: password.trim().to_owned(),
            };
            let request = client
                .post(format!("{url}{API_PREFIX}/tokens"))
                .json(&login);
            let token: TokenResponse = request.send().await?.error_for_status()?.json().await?;
            let request = client
                .get(format!("{url}{API_PREFIX}/imagebundle?enrolment=zeroTouch"))
                .bearer_auth(&token.token);
            anyhow::Ok(request.send().await?.error_for_status()?.json().await?)
        })?;
        let (owner, key) = (&bundle.enrolment.owner, &bundle.enrolment.controller_key);
        let key = hex::decode(key).context("the bundle's controller key")?;
        Ok(Home {
            controller: Point::from_sec1(&key)?,
            owner: Pinned {
                epoch: owner.epoch,
                root: owner.root.parse()?,
                next: owner.next.parse()?,
                delegation: 0,
            },
        })
    }

    /// Sends everything, some at a time, and gives the answers in order, with the time that it took from the first to the last.
    pub fn send(
        &self,
        path: &str,
        requests: Vec<(Client, Vec<u8>)>,
    ) -> Result<(Vec<Vec<u8>>, Duration)> {
        let url = format!("{}{path}", self.url);
        self.runtime.block_on(async {
            let turns = Arc::new(Semaphore::new(AT_ONCE));
            let mut tasks = JoinSet::new();
            let count = requests.len();
            let start = Instant::now();
            for (index, (client, body)) in requests.into_iter().enumerate() {
                let (turns, url) = (turns.clone(), url.clone());
                tasks.spawn(async move {
                    let _turn = turns.acquire().await?;
                    let answer = client.post(&url).body(body).send().await?;
                    let status = answer.status();
                    let bytes = answer.bytes().await?;
                    ensure!(
                        status.is_success(),
                        "the controller answers {status}: {}",
                        String::from_utf8_lossy(&bytes)
                    );
                    anyhow::Ok((index, bytes.to_vec()))
                });
            }
            let mut answers = vec![Vec::new(); count];
            while let Some(done) = tasks.join_next().await {
                let (index, bytes) = done.context("a request ended before its answer")??;
                if let Some(place) = answers.get_mut(index) {
                    *place = bytes;
                }
            }
            Ok((answers, start.elapsed()))
        })
    }
}
