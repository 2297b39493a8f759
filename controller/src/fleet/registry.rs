//! The devices that are known, in memory, so that a poll with nothing changed touches no disk.
//!
//! A device's entry holds its key, the token of its present boot, and the hash of the config that it should have. The hash is
//! dropped when something changes and found again at the next poll; the epoch keeps a hash that was computed from older objects
//! from being kept after the change:
//!
//! ```text
//! poll:   note epoch -> read objects -> compute hash -> keep it if the epoch is still the same
//! change: commit -> epoch + 1, hash dropped -> tell the device
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use protocol::envelope::Certificate;
use protocol::ids::DeviceId;
use protocol::keys::{CertHash, KeyError};

use super::figures::Figures;
use crate::store::identities::Token;

/// Devices by certificate and by id.
#[derive(Default)]
pub struct Registry(RwLock<Maps>);

#[derive(Default)]
struct Maps {
    /// By the first 16 bytes of the certificate's hash: messages may name a sender by those alone.
    by_sender: HashMap<[u8; 16], Arc<Entry>>,
    by_id: HashMap<DeviceId, Arc<Entry>>,
}

/// A known device.
pub struct Entry {
    /// Its id.
    pub id: DeviceId,
    /// What its messages are checked with.
    pub certificate: Certificate,
    /// When that ends, in milliseconds.
    certificate_ends: Option<i64>,
    /// When it was last heard from, in milliseconds; 0 if never.
    last_seen: AtomicI64,
    /// Whether `last_seen` or the figures are newer than the store's.
    dirty: AtomicBool,
    state: Mutex<State>,
}

/// What changes about a known device.
#[derive(Default)]
pub struct State {
    /// Integrity token of its present boot.
    pub token: Option<Token>,
    /// Whether an operator has turned it away.
    pub revoked: bool,
    /// Hash of the config that it should have, if known.
    pub wanted: Option<Arc<str>>,
    /// Counts changes of what the config is made from.
    pub epoch: u64,
    /// Hash that it named when it last asked for its config.
    pub applied: String,
    /// What it last measured, if it did since the controller started.
    pub figures: Option<Box<Figures>>,
    /// Whether watchers were last told that it is online, and since when.
    pub shown_online: Option<(bool, i64)>,
}

fn prefix(hash: &CertHash) -> [u8; 16] {
    let mut prefix = [0; 16];
    for (to, from) in prefix.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    prefix
}

impl Entry {
    /// An entry for a device that registered.
    ///
    /// # Errors
    /// If the certificate cannot be used.
    pub fn new(
        id: DeviceId,
        certificate_der: &[u8],
        token: Option<Token>,
        last_seen: i64,
    ) -> Result<Self, KeyError> {
        Ok(Self {
            id,
            certificate: Certificate::of_device_der(certificate_der)?,
            certificate_ends: None,
            last_seen: AtomicI64::new(last_seen),
            dirty: AtomicBool::new(false),
            state: Mutex::new(State {
                token,
                ..State::default()
            }),
        })
    }

    /// The same with a certificate that ends, in milliseconds.
    #[must_use]
    pub fn until(self, ends: impl Into<Option<i64>>) -> Self {
        Self {
            certificate_ends: ends.into(),
            ..self
        }
    }

    /// Whether its certificate has ended, at a time in milliseconds.
    pub fn has_ended(&self, now: i64) -> bool {
        self.certificate_ends.is_some_and(|ends| ends < now)
    }

    /// What changes about it. Held for moments only, never across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Every write leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it was heard from.
    pub fn seen(&self, now: i64) {
        self.last_seen.fetch_max(now, Ordering::Relaxed);
        self.dirty.store(true, Ordering::Relaxed);
    }

    /// When it was last heard from, in milliseconds; 0 if never.
    pub fn last_seen(&self) -> i64 {
        self.last_seen.load(Ordering::Relaxed)
    }

    /// Drops the hash of its config, because something that it is made from has changed.
    pub fn config_changed(&self) {
        let mut state = self.state();
        state.epoch = state.epoch.wrapping_add(1);
        state.wanted = None;
    }
}

impl Registry {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a device.
    pub fn insert(&self, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        maps.by_sender
            .insert(prefix(entry.certificate.hash()), entry.clone());
        maps.by_id.insert(entry.id, entry.clone());
        entry
    }

    /// Forgets a device.
    pub fn remove(&self, id: DeviceId) {
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = maps.by_id.remove(&id) {
            maps.by_sender.remove(&prefix(entry.certificate.hash()));
        }
    }

    /// The device that messages name so.
    pub fn by_sender(&self, sender: &CertHash) -> Option<Arc<Entry>> {
        self.read().by_sender.get(&prefix(sender)).cloned()
    }

    /// The device with this id.
    pub fn by_id(&self, id: DeviceId) -> Option<Arc<Entry>> {
        self.read().by_id.get(&id).cloned()
    }

    /// All devices.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.read().by_id.values().cloned().collect()
    }

    /// The devices of which there is something newer than the store has; they count as stored from now on.
    pub fn take_dirty(&self) -> Vec<Arc<Entry>> {
        self.read()
            .by_id
            .values()
            .filter(|entry| entry.dirty.swap(false, Ordering::Relaxed))
            .cloned()
            .collect()
    }
}
