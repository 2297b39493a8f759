//! What operators see: the stored object, what its device told, and what only memory knows (who is connected, what was measured).

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use operator_api::{
    Alarm, App, AppPhase, Attestation, AttestationConclusion, AttestationLevel, ConditionStatus,
    Device, DevicePhase, Object, VerdictOutcome, WatchEventType,
};
use protocol::ids::{AppId, DeviceId};

use super::events::Change;
use super::figures::Figures;
use super::links::{ConsoleEnd, NoConsole};
use super::objects::Governed;
use super::registry::Entry;
use super::status::{app_conditions, condition};
use super::{Fault, Fleet};
use crate::store::{Connection, StoreError, identities, objects, waiting};

fn time(milliseconds: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds)
        .ok()
        .filter(|_| milliseconds > 0)
}

impl Fleet {
    fn is_online(&self, entry: &Entry, now: i64) -> bool {
        let patience = i64::try_from(self.settings.offline_after.as_millis()).unwrap_or(i64::MAX);
        now.saturating_sub(entry.last_seen()) < patience || self.links.is_open(entry.id)
    }

    /// A device as operators see it.
    pub(super) async fn show_device(
        &self,
        connection: &mut Connection,
        device: Device,
    ) -> Result<Device, StoreError> {
        let Some(id) = device.id() else {
            return Ok(device);
        };
        let Some(stored) = identities::shown(connection, id).await? else {
            return Ok(device);
        };
        let alarms = match &stored.machine {
            Some(own) => waiting::alarms(connection, id, own).await?,
            None => Vec::new(),
        };
        Ok(self.present(device, id, stored, alarms))
    }

    /// Devices as operators see them.
    pub(super) async fn show_devices(
        &self,
        connection: &mut Connection,
        devices: Vec<Device>,
    ) -> Result<Vec<Device>, StoreError> {
        let mut stored: HashMap<DeviceId, identities::Shown> = identities::all_shown(connection)
            .await?
            .into_iter()
            .collect();
        let mut present = Vec::with_capacity(devices.len());
        for device in devices {
            present.push(
                match device.id().and_then(|id| Some((id, stored.remove(&id)?))) {
                    Some((id, stored)) => {
                        let alarms = match &stored.machine {
                            Some(own) => waiting::alarms(connection, id, own).await?,
                            None => Vec::new(),
                        };
                        self.present(device, id, stored, alarms)
                    }
                    None => device,
                },
            );
        }
        Ok(present)
    }

    /// Puts together what is stored of a device and what memory knows.
    fn present(
        &self,
        mut device: Device,
        id: DeviceId,
        stored: identities::Shown,
        alarms: Vec<Alarm>,
    ) -> Device {
        let entry = self.registry.by_id(id);
        let now = Timestamp::now();
        let status = &mut device.status;
        status.attestation = stored.attestation;
        if let Some(machine) = &stored.machine {
            status.machine_id = machine.to_string();
            status.machine_words = machine.words();
            let (unique, words) = match alarms.first() {
                None => (true, ("NoOther", String::new())),
                Some(alarm) => (
                    false,
                    (
                        "SecondMachine",
                        format!(
                            "{}; its key is {}, this device's {}",
                            alarm.message, alarm.other, alarm.own
                        ),
                    ),
                ),
            };
            let since = alarms.first().map_or(now, |alarm| alarm.time);
            condition(
                &mut status.conditions,
                "Unique",
                unique.into(),
                (words.0, &words.1),
                since,
            );
        }
        status.alarms = alarms;
        let mut last_seen = stored.last_seen.unwrap_or(0);
        let mut presence_since = None;
        let mut figures = None;
        if let Some(entry) = &entry {
            last_seen = last_seen.max(entry.last_seen());
            status.online = self.is_online(entry, now.as_millisecond());
            let state = entry.state();
            presence_since = state
                .shown_online
                .filter(|(online, _)| *online == status.online)
                .and_then(|(_, since)| time(since));
            status.config.wanted = state.wanted.as_deref().unwrap_or_default().to_owned();
            if status.config.applied.is_empty() {
                status.config.applied.clone_from(&state.applied);
            }
            figures = state.figures.as_deref().cloned();
        }
        status.last_seen = time(last_seen);
        status.memory = figures
            .or_else(|| parse(stored.figures.as_deref()))
            .and_then(|figures| figures.memory);
        status.phase = if device.spec.revoked {
            DevicePhase::Revoked
        } else {
            phase(&status.attestation, stored.owes_quote, status.online)
        };
        let presence = if status.online {
            ("HeardFrom", "")
        } else {
            ("NotHeardFrom", "it has not been in touch")
        };
        let since = presence_since.or(status.last_seen).unwrap_or(now);
        condition(
            &mut status.conditions,
            "Online",
            status.online.into(),
            presence,
            since,
        );
        let (attested, reason, message) = attested(&status.attestation);
        condition(
            &mut status.conditions,
            "Attested",
            attested,
            (reason, &message),
            status.attestation.time.unwrap_or(now),
        );
        let (applied, words) = match (
            status.config.wanted.as_str(),
            status.config.applied.as_str(),
        ) {
            ("", _) | (_, "") => (ConditionStatus::Unknown, ("NotAsked", "")),
            (wanted, applied) if wanted == applied => (ConditionStatus::True, ("Applied", "")),
            _ => (ConditionStatus::False, ("Older", "it has another config")),
        };
        condition(
            &mut status.conditions,
            "ConfigApplied",
            applied,
            words,
            status.last_seen.unwrap_or(now),
        );
        device
    }

    /// An app as operators see it.
    pub(super) async fn show_app(
        &self,
        connection: &mut Connection,
        mut app: App,
    ) -> Result<App, StoreError> {
        let Some(id) = app.id() else {
            return Ok(app);
        };
        let Some(device) = objects::device_of(connection, id).await? else {
            return Ok(app);
        };
        app.status.device_uid = Some(device.into());
        if let Some(figures) = self
            .figures(connection, device)
            .await?
            .and_then(|figures| figures.apps.get(&id).copied())
        {
            app.status.restarts = figures.restarts;
            if app.status.phase == AppPhase::Running {
                app.status.memory_used_kib = figures.memory_kib;
                app.status.monitor_memory_kib = figures.monitor_kib;
            }
        }
        if app.status.conditions.is_empty() {
            app_conditions(
                &mut app.status,
                app.metadata
                    .creation_timestamp
                    .unwrap_or_else(Timestamp::now),
            );
        }
        Ok(app)
    }

    async fn figures(
        &self,
        connection: &mut Connection,
        device: DeviceId,
    ) -> Result<Option<Figures>, StoreError> {
        let entry = self.registry.by_id(device);
        if let Some(figures) = entry
            .as_ref()
            .and_then(|entry| entry.state().figures.as_deref().cloned())
        {
            return Ok(Some(figures));
        }
        Ok(identities::shown(connection, device)
            .await?
            .and_then(|stored| parse(stored.figures.as_deref())))
    }

    /// Tells watchers of an object.
    pub(super) fn tell<T: Object>(&self, object: &T, what: WatchEventType) {
        if !self.events.watched() {
            return;
        }
        if let (Some(uid), Ok(value)) = (object.metadata().uid, serde_json::to_value(object)) {
            self.events.tell(Change {
                kind: T::KIND,
                uid,
                what,
                object: value,
            });
        }
    }

    /// Tells watchers of a device.
    pub(super) async fn tell_device(&self, id: DeviceId, what: WatchEventType) {
        self.tell_by_id::<Device>(id, what).await;
    }

    /// Tells watchers of an app.
    pub(super) async fn tell_app(&self, id: AppId, what: WatchEventType) {
        self.tell_by_id::<App>(id, what).await;
    }

    /// Watchers are told of what is stored already, so trouble here costs them news, and the sender of the change nothing.
    async fn tell_by_id<T: Governed>(&self, id: T::Id, what: WatchEventType) {
        if !self.events.watched() {
            return;
        }
        let found = async {
            let mut reader = self.store.read().await?;
            match objects::by_id::<T>(&mut reader, id).await? {
                Some(object) => T::shown(self, &mut reader, object).await.map(Some),
                None => Ok(None),
            }
        };
        match found.await {
            Ok(Some(object)) => self.tell(&object, what),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, kind = T::KIND, uid = %id, "telling watchers"),
        }
    }

    /// Tells watchers of devices that came or went.
    pub(super) async fn tell_presence(&self) {
        let now = Timestamp::now().as_millisecond();
        for entry in self.registry.all() {
            let online = self.is_online(&entry, now);
            let news = {
                let mut state = entry.state();
                let news = state.shown_online.is_none_or(|(shown, _)| shown != online);
                if news {
                    state.shown_online =
                        Some((online, if online { now } else { entry.last_seen() }));
                }
                news
            };
            if news {
                self.tell_device(entry.id, WatchEventType::Modified).await;
            }
        }
    }

    /// Changes of objects from now on.
    pub fn watch(&self) -> tokio::sync::broadcast::Receiver<Arc<Change>> {
        self.events.subscribe()
    }

    /// Opens an app's console.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Unavailable`] if its device has no link open.
    pub async fn open_console(&self, name: &str) -> Result<ConsoleEnd, Fault> {
        let app: App = self.get(name).await?;
        let not_connected = || {
            Fault::Unavailable(format!(
                "device `{}` is not connected, so the console of app `{name}` cannot be opened",
                app.spec.device
            ))
        };
        let (Some(id), Some(device)) = (app.id(), app.status.device_uid) else {
            return Err(not_connected());
        };
        match self.links.open_console(device.into(), id) {
            Ok((session, end)) => {
                tracing::info!(app = %name, %session, "console asked for");
                Ok(end)
            }
            Err(NoConsole::NotConnected) => Err(not_connected()),
            Err(NoConsole::TooMany) => {
                Err(Fault::TooMany("too many consoles wait for their devices"))
            }
        }
    }
}

/// Where a device stands. While it owes a quote, one that was refused before does not count any more.
fn phase(attestation: &Attestation, owes_quote: bool, online: bool) -> DevicePhase {
    match (attestation.time.is_some(), attestation.conclusion) {
        (true, AttestationConclusion::Trusted | AttestationConclusion::Unproven) if online => {
            DevicePhase::Online
        }
        (true, AttestationConclusion::Trusted | AttestationConclusion::Unproven) => {
            DevicePhase::Offline
        }
        _ if owes_quote => DevicePhase::Attesting,
        (true, AttestationConclusion::Refused) => DevicePhase::Refused,
        (false, _) => DevicePhase::Registered,
    }
}

/// The condition `Attested`, with its reason and message. It holds for a proven boot only.
fn attested(attestation: &Attestation) -> (ConditionStatus, &'static str, String) {
    let of = |outcome| {
        attestation
            .verdicts
            .iter()
            .filter(move |verdict| verdict.outcome == outcome)
    };
    if attestation.time.is_none() {
        let message = "it has sent no quote yet".to_owned();
        return (ConditionStatus::Unknown, "NoQuote", message);
    }
    match attestation.conclusion {
        AttestationConclusion::Trusted => (ConditionStatus::True, "QuoteAccepted", String::new()),
        AttestationConclusion::Unproven => {
            let unchecked =
                |check: &str| of(VerdictOutcome::NotChecked).find(|verdict| verdict.check == check);
            // What is told is what stands in the way, not the first thing that was left out.
            let (reason, verdict) = match (attestation.level, unchecked("policy")) {
                (AttestationLevel::None, _) => (
                    "NoTpm",
                    unchecked("evidence").or_else(|| of(VerdictOutcome::NotChecked).next()),
                ),
                (_, Some(verdict)) => ("NoPolicy", Some(verdict)),
                _ => (
                    "NoEventLog",
                    unchecked("eventLog").or_else(|| unchecked("eventLogReplay")),
                ),
            };
            let why = verdict.map_or("", |verdict| verdict.detail.as_str());
            let message = format!("what it booted is not proven: {why}");
            (ConditionStatus::False, reason, message)
        }
        AttestationConclusion::Refused => {
            let failed: Vec<&str> = of(VerdictOutcome::Failed)
                .map(|verdict| verdict.check.as_str())
                .collect();
            (ConditionStatus::False, "QuoteRefused", failed.join(", "))
        }
    }
}

fn parse(figures: Option<&str>) -> Option<Figures> {
    figures.and_then(|text| serde_json::from_str(text).ok())
}

#[cfg(test)]
mod tests {
    use operator_api::Verdict;

    use super::*;

    #[test]
    fn what_is_not_proven_is_not_called_attested() {
        let after = |conclusion, level, outcome| Attestation {
            conclusion,
            level,
            time: Some(Timestamp::UNIX_EPOCH),
            verdicts: vec![Verdict {
                check: "eventLog".to_owned(),
                outcome,
                detail: "the reason".to_owned(),
            }],
            differences: Vec::new(),
        };
        use AttestationConclusion::{Refused, Trusted, Unproven};
        use AttestationLevel::{Bronze, None};
        use VerdictOutcome::{Failed, NotChecked, Passed};
        let unproven = "what it booted is not proven: the reason";
        for (attestation, owes, standing, status, reason, message) in [
            (
                Attestation::default(),
                false,
                DevicePhase::Registered,
                ConditionStatus::Unknown,
                "NoQuote",
                "it has sent no quote yet",
            ),
            (
                Attestation::default(),
                true,
                DevicePhase::Attesting,
                ConditionStatus::Unknown,
                "NoQuote",
                "it has sent no quote yet",
            ),
            (
                after(Trusted, Bronze, Passed),
                false,
                DevicePhase::Online,
                ConditionStatus::True,
                "QuoteAccepted",
                "",
            ),
            (
                after(Unproven, Bronze, NotChecked),
                false,
                DevicePhase::Online,
                ConditionStatus::False,
                "NoEventLog",
                unproven,
            ),
            (
                after(Unproven, None, NotChecked),
                false,
                DevicePhase::Online,
                ConditionStatus::False,
                "NoTpm",
                unproven,
            ),
            (
                after(Refused, None, Failed),
                false,
                DevicePhase::Refused,
                ConditionStatus::False,
                "QuoteRefused",
                "eventLog",
            ),
            (
                after(Refused, None, Failed),
                true,
                DevicePhase::Attesting,
                ConditionStatus::False,
                "QuoteRefused",
                "eventLog",
            ),
        ] {
            assert_eq!(phase(&attestation, owes, true), standing);
            assert_eq!(attested(&attestation), (status, reason, message.to_owned()));
        }
    }
}
