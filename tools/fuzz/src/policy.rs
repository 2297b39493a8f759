//! What decides over a boot: references, policies, and the boots that they are laid against.

use std::io::Read as _;
use std::sync::LazyLock;

use onboarding::eventlog::{self, EventLog};
use onboarding::policy::{Boot, FirmwareValues, Policy, Reference, SignedReference, check};
use onboarding::quote::{Evidence, Outcome};
use protocol::keys::SoftwareSigner;

use crate::Target;
use crate::feed::survives;
use crate::protocol::vector_text;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "reference",
        about: "a signed reference of an image: what is accepted is written and read as itself",
        run: reference,
        seeds: reference_seeds,
    },
    Target {
        name: "attestation-policy",
        about: "an attestation policy: what is accepted is written and read as itself, and judges a boot",
        run: policy,
        seeds: policy_seeds,
    },
    Target {
        name: "boot-judged",
        about: "an event log and the PCRs that it leads to, judged: each check speaks once, in bounds; no log but the right one passes; and the difference to the recorded boot, in bounds",
        run: judged,
        seeds: judged_seeds,
    },
];

/// Everything that the recorded boot would need to be accepted.
struct Known {
    log: EventLog,
    reference: SignedReference,
    policy: Policy,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let log = eventlog::parse(&recorded()).unwrap();
    let signer = SoftwareSigner::from_pkcs8_pem(&vector_text("openssl", "/device_key")).unwrap();
    let digest = |of: &str| format!("sha256:{of}");
    let root = "cd".repeat(32);
    let reference: Reference = serde_json::from_value(serde_json::json!({
        "releaseKey": hex::encode(signer.public_point()),
        "version": "1.2",
        "variant": "production",
        "rootHash": digest(&root),
        "bootLoader": digest("7843e376e57323bcdfebcffc8d5109eb39721c83d8bedab1dfd6431596875c2c"),
        "kernelImage": digest("c1bb052e72c430ebbc26b14281df1089a747b8a5989b90d0c6da013815b9b161"),
        "kernel": digest("6a5811d6cd13e791d1c16af3d53d7549b2f275b224a37539b2d3faebdb57f968"),
        "commandLine": format!("console=ttyS0 quiet panic=-1 roothash={root}"),
        "initramfs": digest("b4b21e36c1b0d42835ea19065d3d85c051539c740b3ac9560fb2f92890e30c3b"),
    }))
    .unwrap();
    let boot = boot(&recorded()).unwrap();
    let values = FirmwareValues::of(&boot, [&reference]).unwrap();
    let policy = serde_json::json!({
        "machines": {"manufacturer": "QEMU", "product": "*"},
        "references": {
            "releaseKeys": [reference.release_key],
            "versions": {"from": "1.0", "only": ["0.9"]},
        },
        "firmware": [{"name": "as delivered", "values": values}],
        "requireSecureBoot": false,
        "revocationLists": [digest(&root)],
        "deniedFirmware": ["1.1*"],
        "actions": {"firmware": "warn"},
        "keepRunning": true,
        "maxAgeMinutes": 30,
    });
    Known {
        log,
        policy: Policy::parse(policy.to_string().as_bytes()).unwrap(),
        reference: SignedReference::sign(reference, &signer).unwrap(),
    }
});

fn recorded() -> Vec<u8> {
    let packed = include_bytes!("../../../onboarding/tests/data/ovmf-uki.log.gz");
    let mut log = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_end(&mut log)
        .unwrap();
    log
}

/// The boot of a machine whose TPM says what its log says.
fn boot(log: &[u8]) -> Option<Boot> {
    let parsed = eventlog::parse(log).ok()?;
    let pcrs = (0..16).zip(eventlog::replay(&parsed)?).collect();
    let evidence = Evidence {
        attest: vec![],
        signature: vec![],
        pcrs,
        event_log: Some(log.to_vec()),
    };
    Some(Boot::of(Some(&evidence), "2024.02").expect("a log explains its own replay"))
}

fn reference(data: &[u8]) {
    let Ok(signed) = SignedReference::open(data) else {
        return;
    };
    survives(signed.reference());
    assert_eq!(signed.bytes(), data);
    // Nobody here has a key but one: what opens says what it said.
    assert_eq!(signed.reference(), KNOWN.reference.reference());
}

fn reference_seeds() -> Vec<Vec<u8>> {
    vec![KNOWN.reference.bytes().to_vec()]
}

fn policy(data: &[u8]) {
    let Ok(policy) = Policy::parse(data) else {
        return;
    };
    survives(&policy);
    let _ = policy.is_for("QEMU", "Standard PC");
    let boot = boot(&recorded()).unwrap();
    assert_eq!(
        check(&policy, std::slice::from_ref(&KNOWN.reference), Ok(&boot)).len(),
        8
    );
}

fn policy_seeds() -> Vec<Vec<u8>> {
    vec![
        serde_json::to_vec(&KNOWN.policy).unwrap(),
        serde_json::json!({
            "references": {"releaseKeys": [KNOWN.reference.reference().release_key]},
            "requireSecureBoot": true,
        })
        .to_string()
        .into_bytes(),
    ]
}

fn judged(data: &[u8]) {
    let Some(boot) = boot(data) else {
        return;
    };
    let found = check(
        &KNOWN.policy,
        std::slice::from_ref(&KNOWN.reference),
        Ok(&boot),
    );
    assert_eq!(found.len(), 8);
    for verdict in &found {
        assert!(verdict.to_string().len() < 64 << 10);
    }
    // The reference's command line is not the recorded one, so no log is all right that a change of the recorded one leads to.
    assert!(
        found
            .iter()
            .any(|verdict| matches!(verdict.outcome, Outcome::Fail { .. })),
        "{found:?}"
    );
    let difference = eventlog::difference(&KNOWN.log, boot.log());
    let back = eventlog::difference(boot.log(), &KNOWN.log);
    assert!(difference.changes.len() <= 200);
    assert_eq!(difference.is_empty(), back.is_empty());
    survives(&difference);
}

fn judged_seeds() -> Vec<Vec<u8>> {
    vec![recorded()]
}
