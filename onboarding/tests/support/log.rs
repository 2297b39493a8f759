//! A boot that a test makes up: its event log, and the PCRs that go with it.

use onboarding::keys::Identity;
use protocol::keys::sha256;

/// An event log of the given events (PCR, type, data), digests over the data; and the digests in order.
pub fn event_log(events: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut log = vec![0; 8];
    log[4] = 3;
    log.extend([0; 20]);
    let mut header = b"Spec ID Event03\0".to_vec();
    header.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    log.extend((header.len() as u32).to_le_bytes());
    log.extend(header);
    for (pcr, kind, data) in events {
        log.extend(pcr.to_le_bytes());
        log.extend(kind.to_le_bytes());
        log.extend([1, 0, 0, 0, 0x0b, 0]);
        log.extend(sha256(data));
        log.extend((data.len() as u32).to_le_bytes());
        log.extend(*data);
    }
    log
}

/// A short boot.
pub const BOOT: &[(u32, u32, &[u8])] = &[
    (0, 8, b"v\x001\0\0\0"),
    (4, 0x8000_0007, b"Calling EFI Application from Boot Option"),
    (7, 4, &[0; 4]),
    (12, 0xd, b"r\0o\0o\0t\0"),
];

/// Extends the PCRs as that boot would.
pub fn boot(identity: &Identity, events: &[(u32, u32, &[u8])]) {
    for (pcr, _, data) in events {
        identity
            .tpm()
            .unwrap()
            .pcr_extend(*pcr, &sha256(data))
            .unwrap();
    }
}
