//! What a device has of its enrolment: what the image says, and what a grant left on the disk.

use pillar::bundle;
use pillar::grant::Grant;
use protocol::enrolment::image::{Enrolment, Way};
use serde_json::json;

use crate::protocol::vector_text;

/// The base point of P-256 (SEC 2, section 2.4.2), uncompressed.
const POINT: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

pub(super) fn image(data: &[u8]) {
    let Some(enrolment) = std::str::from_utf8(data)
        .ok()
        .and_then(|text| bundle::enrolment(text).ok())
    else {
        return;
    };
    assert!((1..=2).contains(&enrolment.order().len()));
    if enrolment.has(Way::ZeroTouch) {
        assert!(enrolment.home().unwrap().owner.epoch > 0);
    }
    assert_eq!(Enrolment::from_json(&enrolment.to_json()), Ok(enrolment));
}

pub(super) fn image_seeds() -> Vec<Vec<u8>> {
    let hash = |digits: &str| format!("sha256:{}", digits.repeat(32));
    let both = json!({"builtAt": "2026-11-20T19:50:00Z", "enrolment": {
        "order": ["zeroTouch", "eve"], "controllerKey": POINT,
        "owner": {"epoch": 1, "root": hash("ab"), "next": hash("cd")},
    }});
    let eve = json!({"builtAt": "2026-11-20T19:50:00Z", "enrolment": {"order": ["eve"]}});
    [both, eve]
        .iter()
        .map(|value| serde_json::to_vec(value).unwrap())
        .collect()
}

pub(super) fn grant(data: &[u8]) {
    let Ok(grant) = Grant::parse(data) else {
        return;
    };
    assert!(grant.certificate.len() <= 16 << 10);
    assert_eq!(Grant::parse(&grant.to_bytes()).unwrap(), grant);
    // A time that the clock can be compared with.
    assert!(grant.renew_at() >= std::time::UNIX_EPOCH);
}

pub(super) fn grant_seeds() -> Vec<Vec<u8>> {
    let pem = vector_text("openssl", "/device_certificate");
    let certificate = protocol::keys::pem_to_der(pem.as_bytes()).unwrap();
    let kept = json!({
        "device": "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
        "certificate": hex::encode(certificate),
        "level": "silver",
        "owner": {
            "epoch": 1, "delegation": 2,
            "root": format!("sha256:{}", "ab".repeat(32)),
            "next": format!("sha256:{}", "cd".repeat(32)),
        },
    });
    vec![serde_json::to_vec(&kept).unwrap()]
}
