//! Boots of devices: what is kept of each, and what operators see of them.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use onboarding::eventlog::{self, MAX_LOG};
use onboarding::quote::BootFacts;
use operator_api::{Attestation, Boot, BootOccasion, BootSpec, BootStatus, Device, Object as _};
use protocol::ids::DeviceId;
use uuid::Uuid;

use super::policy::Rulings;
use super::{Fault, Fleet};
use crate::store::boots::{self, Kept, Seen};
use crate::store::{Connection, StoreError, objects};

/// What is kept of a boot; its log is packed already.
pub(super) fn seen(
    occasion: BootOccasion,
    attestation: Attestation,
    boot: Option<BootFacts>,
    pcrs: &[(u32, [u8; 32])],
    event_log: Option<PackedLog>,
    now: Timestamp,
) -> Seen {
    Seen {
        occasion,
        time: now.as_millisecond(),
        counts: boot.map(|boot| (boot.reset_count, boot.restart_count)),
        attestation,
        pcrs: pcrs
            .iter()
            .map(|(number, value)| (number.to_string(), hex::encode(value)))
            .collect(),
        event_log: event_log.map(|log| log.0),
    }
}

/// An event log as it is kept.
#[derive(Clone)]
pub(super) struct PackedLog(Vec<u8>);

impl PackedLog {
    /// Packs a log. It takes a while, so nobody does it while others wait to write.
    pub(super) fn of(log: &[u8]) -> Option<Self> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(log).ok()?;
        packed.finish().ok().map(Self)
    }
}

/// The event log of a boot that is kept.
pub(super) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let mut log = Vec::new();
    GzDecoder::new(packed)
        .take(MAX_LOG as u64)
        .read_to_end(&mut log)
        .ok()?;
    Some(log)
}

/// What is different from the last good boot, event by event. Nothing, if one of both has no log that can be read.
pub(super) async fn differences(
    connection: &mut Connection,
    device: DeviceId,
    log: Option<&[u8]>,
) -> Result<Vec<String>, StoreError> {
    let Some(good) = boots::last_good(connection, device).await? else {
        return Ok(Vec::new());
    };
    let read = |log: &[u8]| eventlog::parse(log).ok();
    let before = good
        .seen
        .event_log
        .as_deref()
        .and_then(unpack)
        .and_then(|log| read(&log));
    let (Some(before), Some(now)) = (before, log.and_then(read)) else {
        return Ok(Vec::new());
    };
    let difference = eventlog::difference(&before, &now);
    let mut words: Vec<String> = difference.changes.iter().map(ToString::to_string).collect();
    if difference.more > 0 {
        words.push(format!("and {} more", difference.more));
    }
    Ok(words)
}

impl Fleet {
    /// The boots of a device, newest first.
    ///
    /// # Errors
    /// [`Fault::NotFound`].
    pub async fn boots(&self, name: &str) -> Result<Vec<Boot>, Fault> {
        let mut reader = self.store.read().await?;
        let device: Device =
            objects::get(&mut reader, name)
                .await?
                .ok_or_else(|| Fault::NotFound {
                    kind: Device::KIND,
                    name: name.to_owned(),
                })?;
        let Some(id) = device.id() else {
            return Ok(Vec::new());
        };
        let kept = boots::list(&mut reader, id).await?;
        drop(reader);
        let trust = self.trust().await?;
        Ok(kept
            .into_iter()
            .map(|kept| shown(name, id.into(), kept, &trust.rulings))
            .collect())
    }
}

/// What a boot is called.
pub(super) fn name(device: &str, kept: &Kept) -> String {
    format!("{device}-{}", kept.seq)
}

fn shown(device: &str, id: Uuid, kept: Kept, rulings: &Rulings) -> Boot {
    let firmware = rulings.shown_firmware(&kept);
    let mut boot = Boot::new(name(device, &kept), BootSpec::default());
    let Kept { seq, seen } = kept;
    boot.metadata.uid = Some(Uuid::new_v5(&id, format!("boot/{seq}").as_bytes()));
    boot.metadata.creation_timestamp = Timestamp::from_millisecond(seen.time).ok();
    boot.status = BootStatus {
        device: device.to_owned(),
        first_seen: Timestamp::from_millisecond(seen.time).ok(),
        occasion: seen.occasion,
        reset_count: seen.counts.map(|(resets, _)| resets.into()),
        restart_count: seen.counts.map(|(_, restarts)| restarts.into()),
        attestation: seen.attestation,
        pcrs: seen.pcrs,
        firmware,
        conditions: Vec::new(),
    };
    boot
}
