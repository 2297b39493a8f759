//! The service layer: every rule of the fleet stands here, and the doors (device API, operator API) only carry messages.
//!
//! | module | rules about |
//! |---|---|
//! | [`zero_touch`], [`admission`], [`waiting`], [`manifest`] | who becomes a device by its own keys |
//! | [`enrol`] | who becomes a device by the image's onboarding key |
//! | [`boots`] | what is kept of boots |
//! | [`trust`], [`rulebook`] | whom and what is believed |
//! | [`attest`], [`policy`] | who is trusted on its present boot |
//! | [`poll`] | who gets which config |
//! | [`plan`], [`names`], [`ranges`] | what a config says (pure) |
//! | [`telemetry`], [`status`], [`figures`] | what becomes of info and metrics |
//! | [`logs`] | whose logs are kept, and how much of them |
//! | [`objects`], [`view`] | what operators may write, and what they see |
//! | [`users`] | who is an operator |
//! | [`links`] | push and consoles |

pub mod admission;
mod answers;
pub mod attest;
pub mod boots;
pub mod enrol;
pub mod error;
pub mod events;
pub mod figures;
mod gate;
pub mod links;
pub mod logs;
pub mod manifest;
pub mod names;
pub mod objects;
pub mod plan;
pub mod policy;
pub mod poll;
pub mod ranges;
pub mod registry;
pub mod rulebook;
pub mod secrets;
pub mod status;
pub mod telemetry;
pub mod trust;
pub mod users;
pub mod view;
pub mod waiting;
pub mod zero_touch;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use operator_api::{Device, EnrolmentWay, ImageBundle, ImageEnrolment, ImageOwner, Object as _};
use protocol::authority::Authority;
use protocol::envelope::{self, Envelope};
use protocol::ids::DeviceId;
use protocol::link::ServerMessage;
use tokio::sync::{Semaphore, broadcast};
use uuid::Uuid;

use crate::pki::Pki;
use crate::store::{self, Store, StoreError, enrolments, identities};
pub use error::{Fault, Refused};
use events::Events;
use links::Links;
use registry::{Entry, Registry};

/// How often the owner's keys are looked after.
const OWNER_EVERY: Duration = Duration::from_secs(60);
/// How often is forgotten what is over.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What devices call this controller; goes into image bundles.
    pub server: Authority,
    /// Most bytes of logs, compressed, that are kept of a device or an app.
    pub log_share: i64,
    /// A device that was not heard from for so long counts as offline, unless its link is open. Devices ask for their config at least
    /// once a minute.
    pub offline_after: Duration,
    /// How long a nonce is good.
    pub nonce_lifetime: Duration,
    /// How long a token of an operator is good.
    pub token_lifetime: Duration,
    /// How long a challenge of enrolment is good.
    pub challenge_lifetime: Duration,
    /// How soon a machine that waits for a person asks again.
    pub waiting_retry: Duration,
    /// Most machines of a level in the waiting room.
    pub waiting_rows: i64,
    /// Most machines of a level that enter the waiting room in a minute.
    pub waiting_per_minute: u32,
    /// Most enrolments that are worked on at the same time; further ones are told to come again.
    pub enrolments_at_once: usize,
    /// How long an attestation is good where no policy says otherwise.
    pub attestation_age: Duration,
    /// How often figures and times of last contact are written to the store.
    pub flush_every: Duration,
}

impl Settings {
    /// The usual settings.
    #[must_use]
    pub fn new(server: Authority) -> Self {
        Self {
            server,
            log_share: 4 << 20,
            offline_after: Duration::from_secs(150),
            nonce_lifetime: Duration::from_secs(600),
            token_lifetime: Duration::from_secs(30 * 24 * 3600),
            challenge_lifetime: Duration::from_secs(120),
            waiting_retry: Duration::from_secs(20),
            waiting_rows: 2048,
            waiting_per_minute: 120,
            enrolments_at_once: 16,
            attestation_age: Duration::from_secs(3600),
            flush_every: Duration::from_secs(10),
        }
    }
}

/// The fleet.
pub struct Fleet {
    store: Store,
    pki: Pki,
    settings: Settings,
    registry: Registry,
    events: Events,
    links: Links,
    /// Owners of logs that have just grown.
    log_news: broadcast::Sender<Uuid>,
    /// Passwords that are being checked: each takes a good part of a second of a processor.
    password_checks: Semaphore,
    believed: trust::Cache,
    /// Places in the waiting room.
    gate: gate::Gate,
    /// Enrolments that are being opened, and those that are being worked on.
    enrol_doors: Semaphore,
    enrol_work: Semaphore,
    /// Held while a device's new certificate is taken into use.
    entering: tokio::sync::Mutex<()>,
}

/// A message of a device whose signature was checked.
pub struct Opened {
    /// The device.
    pub device: Arc<Entry>,
    /// The message.
    pub payload: Vec<u8>,
}

impl Fleet {
    /// Takes the fleet up where the store left it.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn open(store: Store, pki: Pki, settings: Settings) -> Result<Arc<Self>, StoreError> {
        let registry = Registry::default();
        let mut reader = store.read().await?;
        let revoked: HashSet<DeviceId> = store::objects::list::<Device>(&mut reader)
            .await?
            .into_iter()
            .filter(|device| device.spec.revoked)
            .filter_map(|device| device.id())
            .collect();
        let at_once = settings.enrolments_at_once;
        for known in identities::all(&mut reader).await? {
            match Entry::new(
                known.device,
                &known.certificate,
                known.token,
                known.last_seen.unwrap_or(0),
            ) {
                Ok(entry) => {
                    let entry = registry.insert(entry.until(known.certificate_ends));
                    entry.state().revoked = revoked.contains(&known.device);
                }
                Err(error) => {
                    tracing::error!(device = %known.device, %error, "a stored device certificate is damaged")
                }
            }
        }
        drop(reader);
        Ok(Arc::new(Self {
            store,
            pki,
            settings,
            registry,
            events: Events::default(),
            links: Links::new(protocol::link::SESSION_LIFETIME),
            log_news: broadcast::channel(1024).0,
            password_checks: Semaphore::new(2),
            believed: trust::Cache::default(),
            gate: gate::Gate::default(),
            enrol_doors: Semaphore::new(4 * at_once),
            enrol_work: Semaphore::new(at_once),
            entering: tokio::sync::Mutex::default(),
        }))
    }

    /// Links and consoles.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// What a new image needs to know, if its devices try to enrol in this order. The onboarding key goes along only where it is used.
    pub fn image_bundle(&self, order: &[EnrolmentWay]) -> ImageBundle {
        let (certificate, key) = self.pki.onboarding();
        let eve = order.contains(&EnrolmentWay::Eve);
        let pinned = self.pki.owner().authority().pinned();
        ImageBundle {
            server: self.settings.server.to_string(),
            root_certificate: self.pki.root_pem().to_owned(),
            tls_root_certificates: self.pki.root_pem().to_owned(),
            onboard_certificate: eve.then(|| certificate.to_owned()),
            onboard_key: eve.then(|| key.to_owned()),
            built_at: Timestamp::now(),
            enrolment: ImageEnrolment {
                order: order.to_vec(),
                owner: ImageOwner {
                    epoch: pinned.epoch,
                    root: pinned.root.to_string(),
                    next: pinned.next.to_string(),
                },
                controller_key: hex::encode(self.pki.owner().sealing().1.to_sec1()),
            },
        }
    }

    /// Answer to `/certs`, sealed.
    ///
    /// # Errors
    /// If the random source fails.
    pub fn certificates(&self) -> Result<Vec<u8>, Refused> {
        Ok(self.pki.seal(&self.pki.controller_certificates())?)
    }

    /// Opens a device's message. `path` is the id in the request's path, if there is one: it must be the sender's.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn open_message(&self, body: &[u8], path: Option<DeviceId>) -> Result<Opened, Refused> {
        if body.is_empty() {
            return Err(Refused::Empty);
        }
        self.open_envelope(Envelope::parse(body, envelope::MAX_REQUEST)?, path)
    }

    fn open_envelope(&self, envelope: Envelope, path: Option<DeviceId>) -> Result<Opened, Refused> {
        let device = self
            .registry
            .by_sender(envelope.sender())
            .ok_or_else(|| Refused::UnknownDevice(envelope.sender().to_string()))?;
        let payload = envelope.open(&device.certificate)?;
        if let Some(named) = path
            && named != device.id
        {
            return Err(Refused::OtherDevice {
                sender: device.id,
                named,
            });
        }
        self.may_speak(&device)?;
        device.seen(Timestamp::now().as_millisecond());
        Ok(Opened { device, payload })
    }

    /// Opens a device's proof on the link.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn open_proof(
        &self,
        body: &[u8],
        nonce: protocol::link::Nonce,
    ) -> Result<DeviceId, Refused> {
        let malformed = |error: protocol::link::LinkError| Refused::Malformed(error.to_string());
        let envelope = protocol::link::Proof::parse(body).map_err(malformed)?;
        let device = self
            .registry
            .by_sender(envelope.sender())
            .ok_or_else(|| Refused::UnknownDevice(envelope.sender().to_string()))?;
        protocol::link::Proof::check(envelope, &device.certificate, device.id, nonce)
            .map_err(malformed)?;
        self.may_speak(&device)?;
        device.seen(Timestamp::now().as_millisecond());
        Ok(device.id)
    }

    /// Checks that a device whose signature was good is still welcome.
    fn may_speak(&self, device: &Entry) -> Result<(), Refused> {
        if device.state().revoked {
            return Err(Refused::NotAllowed(format!(
                "device {} was revoked by an operator",
                device.id
            )));
        }
        if device.has_ended(Timestamp::now().as_millisecond()) {
            return Err(Refused::Ended(device.id));
        }
        Ok(())
    }

    /// Says that the config of these devices may have changed, after the change was committed.
    fn config_changed(&self, devices: impl IntoIterator<Item = DeviceId>) {
        for device in devices {
            if let Some(entry) = self.registry.by_id(device) {
                entry.config_changed();
                self.links.send(device, ServerMessage::ConfigChanged);
            }
        }
    }

    /// Writes figures and times of last contact to the store.
    ///
    /// # Errors
    /// If the store does not take them; they are written with the next flush then.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let dirty = self.registry.take_dirty();
        if dirty.is_empty() {
            return Ok(());
        }
        let written = async {
            let mut writer = self.store.write_soon().await?;
            for entry in &dirty {
                let figures = entry
                    .state()
                    .figures
                    .as_ref()
                    .and_then(|figures| serde_json::to_string(figures).ok());
                identities::set_seen(&mut writer, entry.id, entry.last_seen(), figures.as_deref())
                    .await?;
            }
            writer.commit().await
        };
        let written = written.await;
        if written.is_err() {
            for entry in &dirty {
                entry.seen(entry.last_seen());
            }
        }
        written
    }

    /// Forgets what is over: nonces of enrolments whose challenges have run out.
    async fn forget(&self) -> Result<(), StoreError> {
        let mut writer = self.store.write_soon().await?;
        enrolments::forget(&mut writer, Timestamp::now().as_millisecond()).await?;
        writer.commit().await
    }

    /// What goes on beside requests, for ever: flushing, forgetting, telling watchers who went offline, ending consoles that nobody
    /// took up.
    pub async fn tend(&self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut flushed = tokio::time::Instant::now();
        let (mut owner_seen, mut forgotten) = (flushed, flushed);
        loop {
            second.tick().await;
            self.links.drop_stale();
            if owner_seen.elapsed() >= OWNER_EVERY {
                owner_seen = tokio::time::Instant::now();
                if let Err(error) = self.pki.owner().refresh(Timestamp::now()) {
                    tracing::error!(%error, "looking after the owner's keys");
                }
            }
            if forgotten.elapsed() >= FORGET_EVERY {
                forgotten = tokio::time::Instant::now();
                if let Err(error) = self.forget().await {
                    tracing::error!(%error, "forgetting what is over");
                }
            }
            self.tell_presence().await;
            if flushed.elapsed() >= self.settings.flush_every {
                flushed = tokio::time::Instant::now();
                if let Err(error) = self.flush().await {
                    tracing::error!(%error, "flushing figures");
                }
            }
        }
    }
}
