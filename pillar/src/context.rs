//! What the agent's tasks share: who the device is, how it reaches its controller, and what each of them found out.
//!
//! Every fact has one writer; the others watch it.
//!
//! | fact | written by | watched by |
//! |---|---|---|
//! | `device`, `grant` | `enrol` | all that send |
//! | `attestation` | `attest` | `follow`, `report`, `bless` |
//! | `config` | `follow` | `report`, `logs` |
//! | `uplinks` | `uplink` | `report` |
//! | `observed` | reconcilers | `report`, `link` |
//! | `contact` | `follow`, `link` | `report`, `logs`, `bless` |

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use onboarding::keys::Identity;
use onboarding::smbios::Machine;
use protocol::ids::DeviceId;
use tokio::sync::{Notify, watch};

use crate::bundle::Bundle;
use crate::clock::Clock;
use crate::config::InForce;
use crate::conn::{self, Connection};
use crate::domain::observed::Observed;
use crate::grant::Grant;
use crate::paths::Paths;
use crate::status::{Status, Topic};
use crate::uplink::Uplink;

/// How far attestation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// The first try is not over.
    Trying {
        /// The controller has refused this device in an earlier start, and not trusted it since ([`crate::refusal`]).
        refused: bool,
    },
    /// The last try failed, and the next one is due.
    Failed {
        /// Why.
        reason: String,
        /// Since when.
        at: Option<SystemTime>,
        /// The controller has refused this boot, in this try or in one before it since it was last trusted.
        refused: bool,
    },
    /// The controller gave a token.
    Granted {
        /// What config requests carry.
        token: Vec<u8>,
    },
}

impl Default for Attestation {
    /// Nothing is known.
    fn default() -> Self {
        Self::Trying { refused: false }
    }
}

impl Attestation {
    /// Whether the controller does not trust this boot, or the last one that it heard of.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(
            self,
            Self::Trying { refused: true } | Self::Failed { refused: true, .. }
        )
    }
}

/// Whether the controller answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// The last exchange worked.
    pub up: bool,
    /// A config was fetched or confirmed since the agent started.
    pub config_confirmed: bool,
    /// Counts the times that contact came back; senders with a queue try at once then.
    pub returns: u64,
}

/// What tasks share.
pub struct Context {
    /// Where things lie.
    pub paths: Paths,
    /// Version of the image.
    pub version: String,
    /// What the installer stick brought.
    pub bundle: Bundle,
    /// What the firmware says about the hardware.
    pub machine: Machine,
    /// Lines and troubles.
    pub status: Status,
    /// The time.
    pub clock: Clock,
    /// The device's keys.
    pub identity: Arc<Identity>,
    /// The way to the controller.
    pub conn: Connection,
    /// The id that the controller gave.
    pub device: watch::Sender<Option<DeviceId>>,
    /// What the zero-touch way left, if the device came by it.
    pub grant: watch::Sender<Option<Arc<Grant>>>,
    /// A token that came with a grant and was not used so far. It is never written down.
    pub token: Mutex<Option<Vec<u8>>>,
    /// Which check failed, in the controller's words; empty: it has not said.
    pub refusal: Mutex<String>,
    /// How far attestation is.
    pub attestation: watch::Sender<Attestation>,
    /// The config in force.
    pub config: watch::Sender<Arc<InForce>>,
    /// Interfaces that lead out.
    pub uplinks: watch::Receiver<Vec<Uplink>>,
    /// What the reconcilers made and found.
    pub observed: watch::Receiver<Arc<Observed>>,
    /// Whether the controller answers.
    pub contact: watch::Sender<Contact>,
    /// The controller wants a new quote.
    pub reattest: Notify,
    /// The controller does not know this device any more.
    pub reenrol: Notify,
    /// There is a new config to fetch.
    pub poll: Notify,
}

impl Context {
    /// The device's id, once there is one.
    pub async fn device_id(&self) -> DeviceId {
        let mut device = self.device.subscribe();
        loop {
            if let Some(id) = *device.borrow_and_update() {
                return id;
            }
            if device.changed().await.is_err() {
                // The sender is a field of this very value.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Keeps the token that came with a grant until attestation takes it.
    pub fn keep_token(&self, token: Vec<u8>) {
        let token = (!token.is_empty()).then_some(token);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// The token that came with a grant, once.
    pub fn take_token(&self) -> Option<Vec<u8>> {
        self.token
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Notes what the controller said of a refused boot, and tells it to whoever stands before the screen.
    pub fn refused_because(&self, words: &str) {
        words.clone_into(&mut self.refusal.lock().unwrap_or_else(PoisonError::into_inner));
        let failed = match &*self.attestation.borrow() {
            Attestation::Failed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        if let Some(reason) = failed {
            self.tell_refusal(&reason);
        }
    }

    /// Tells why the device is not attested, with the controller's words if there are any.
    pub fn tell_refusal(&self, reason: &str) {
        let words = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match words.as_str() {
            "" => reason.to_owned(),
            words => format!("{reason}: {words}"),
        };
        self.status.raise(Topic::Attestation, &text);
    }

    /// Notes that the controller answered.
    pub fn in_contact(&self) {
        self.contact.send_if_modified(|contact| {
            let returned = !contact.up;
            if returned {
                contact.up = true;
                contact.returns = contact.returns.wrapping_add(1);
            }
            returned
        });
        self.status.clear(Topic::Controller);
    }

    /// Notes that something did not reach the controller, and has the config loop find out what that means.
    pub fn doubt_contact(&self) {
        if self
            .contact
            .send_if_modified(|contact| std::mem::replace(&mut contact.up, false))
        {
            self.poll.notify_one();
        }
    }

    /// Notes that the controller did not answer. Whoever finds out first says so; the words are the same for all.
    pub fn out_of_contact(&self, error: &conn::Error) {
        self.contact
            .send_if_modified(|contact| std::mem::replace(&mut contact.up, false));
        let server = self.conn.server().to_string();
        let reason = match error {
            conn::Error::Unreachable { reason, .. } => reason.clone(),
            error => error.to_string(),
        };
        self.status.raise(
            Topic::Controller,
            &format!("controller {server} cannot be reached: {reason}"),
        );
    }

    /// Waits until the controller answers somebody again.
    pub async fn contact_returns(&self) {
        let mut contact = self.contact.subscribe();
        let before = contact.borrow_and_update().returns;
        let _ = contact.wait_for(|contact| contact.returns != before).await;
    }
}
