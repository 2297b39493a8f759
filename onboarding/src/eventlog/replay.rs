//! What the PCRs of the SHA-256 bank must be after everything in a log was extended into them.

use ring::digest::{Context, SHA256};

use super::{Algorithm, EventLog, EventType};

/// PCRs whose values are computed.
pub const PCRS: usize = 24;

/// The remark that tells from which locality the TPM was started, then one byte (Platform Firmware Profile, 10.4.5.3).
pub(super) const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Replays the SHA-256 bank; `None` if the log does not speak of it.
///
/// PCRs begin with zeros, except PCR 0, whose last byte is the locality of the TPM's startup, and PCRs 17 to 22, which
/// begin with ones (PC Client Platform TPM Profile, table of PCR attributes).
#[must_use]
pub fn replay(log: &EventLog) -> Option<[[u8; 32]; PCRS]> {
    if !log.algorithms.contains(&Algorithm::Sha256) {
        return None;
    }
    let mut pcrs = [[0; 32]; PCRS];
    for pcr in pcrs.iter_mut().take(23).skip(17) {
        *pcr = [0xff; 32];
    }
    if let ([first, ..], Some(locality)) = (&mut pcrs, startup_locality(log))
        && let Some(last) = first.last_mut()
    {
        *last = locality;
    }
    for event in &log.events {
        if event.kind == EventType::NO_ACTION {
            continue;
        }
        let place = usize::try_from(event.pcr)
            .ok()
            .and_then(|index| pcrs.get_mut(index));
        if let (Some(pcr), Some(digest)) = (place, event.digest(Algorithm::Sha256)) {
            let mut context = Context::new(&SHA256);
            context.update(pcr);
            context.update(digest);
            pcr.copy_from_slice(context.finish().as_ref());
        }
    }
    Some(pcrs)
}

fn startup_locality(log: &EventLog) -> Option<u8> {
    // A trusted launch before the firmware leaves PCR 0 as if started from locality 4.
    if log.events.iter().any(|e| e.kind == EventType::HCRTM) {
        return Some(4);
    }
    log.events
        .iter()
        .filter(|event| event.kind == EventType::NO_ACTION)
        .find_map(|event| match event.data.strip_prefix(STARTUP_LOCALITY) {
            Some([locality]) => Some(*locality),
            _ => None,
        })
}
