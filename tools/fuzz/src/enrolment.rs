//! The messages of zero-touch enrolment, on both sides, and what stands in a TPM's memory for it.
//!
//! The seeds are recordings of whole exchanges (`seeds/enrolment/README.md`), judged by a controller with the same keys: what is not the
//! recording proves nothing, whatever it looks like. The recordings themselves come as far as they did.

use std::sync::{LazyLock, OnceLock};

use onboarding::enrol::device::{Answering, Session};
use onboarding::enrol::endorsement::{Endorsed, Makers, form, named_serial};
use onboarding::enrol::verifier::{
    CookieKey, Delegation, Evidence, Judged, Known, challenge, read_evidence, read_hello, verify,
};
use onboarding::enrol::{EnrolError, Hello, HelloKeys, mark, revocation};
use onboarding::keys::Identity;
use onboarding::quote::Check;
use onboarding::smbios::MAX_TEXT;
use onboarding::wire::Public;
use prost::Message as _;
use protocol::cipher::SoftwareAgreement;
use protocol::digest::Digest;
use protocol::enrolment::owner::{Delegate, Pinned, root_hash};
use protocol::enrolment::wire::{
    self, Challenge, EvidenceBody, Level, MachineProof, OwnerChain, SealedGrant, evidence_body,
};
use protocol::keys::{SignError, Signer};

use crate::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "enrolment-hello",
        about: "a device's Hello: bounded in every part; a challenge is made for it, or refused for its endorsement key",
        run: hello,
        seeds: || {
            vec![
                TPM_HELLO.to_vec(),
                GOLD_HELLO.to_vec(),
                SOFTWARE_HELLO.to_vec(),
            ]
        },
    },
    Target {
        name: "enrolment-evidence",
        about: "a device's Evidence, judged: each check speaks once, and nothing but the recording is proven",
        run: evidence,
        seeds: || EVIDENCE.iter().map(|bytes| bytes.to_vec()).collect(),
    },
    Target {
        name: "enrolment-challenge",
        about: "a controller's Challenge to a device with a TPM or without: nothing but what the owner's delegate signed comes as far as its secret",
        run: challenged,
        seeds: || vec![TPM_CHALLENGE.to_vec(), SOFTWARE_CHALLENGE.to_vec()],
    },
    Target {
        name: "enrolment-grant",
        about: "a sealed grant: nothing but what was sealed for this session is opened",
        run: granted,
        seeds: || vec![TPM_GRANT.to_vec(), SOFTWARE_GRANT.to_vec()],
    },
    Target {
        name: "endorsement-certificate",
        about: "an EK certificate: trusted only if its maker signed it for this very key",
        run: certificate,
        seeds: || vec![tpm_hello().endorsement_certificate.clone().unwrap()],
    },
    Target {
        name: "tpm-makers",
        about: "an owner's list of TPM makers in PEM: whatever is taken has a certificate in it",
        run: makers,
        seeds: || vec![MAKERS.as_bytes().to_vec()],
    },
    Target {
        name: "machine-certificate",
        about: "a machine's certificate: trusted only if its maker signed it for this very key; the serial number in it is bounded",
        run: machine_certificate,
        seeds: || vec![gold_proof().certificate],
    },
    Target {
        name: "revocation-list",
        about: "a maker's list of what it has revoked, as text or DER: taken only if the maker signed it",
        run: revocation_list,
        seeds: || vec![REVOKED.to_vec(), REVOKED_TEXT.to_vec()],
    },
    Target {
        name: "owner-mark",
        about: "the owner's mark in the TPM's memory: what is understood is written as the same bytes",
        run: owner_mark,
        seeds: || vec![mark::to_bytes(&pinned())],
    },
];

pub(crate) const TPM_HELLO: &[u8] = include_bytes!("../seeds/enrolment/tpm-hello");
pub(crate) const TPM_CHALLENGE: &[u8] = include_bytes!("../seeds/enrolment/tpm-challenge");
pub(crate) const TPM_EVIDENCE: &[u8] = include_bytes!("../seeds/enrolment/tpm-evidence");
const TPM_GRANT: &[u8] = include_bytes!("../seeds/enrolment/tpm-grant");
const GOLD_HELLO: &[u8] = include_bytes!("../seeds/enrolment/gold-hello");
const GOLD_EVIDENCE: &[u8] = include_bytes!("../seeds/enrolment/gold-evidence");
const REVOKED: &[u8] = include_bytes!("../seeds/enrolment/revocation-list");
/// The same as an operator would send it.
const REVOKED_TEXT: &[u8] = include_bytes!("../seeds/enrolment/revocation-list.pem");
const GOLD_MAKERS: &str = include_str!("../seeds/enrolment/gold-makers.pem");
const MACHINE_MAKERS: &str = include_str!("../seeds/enrolment/machine-makers.pem");
/// All recorded evidence.
const EVIDENCE: [&[u8]; 3] = [TPM_EVIDENCE, GOLD_EVIDENCE, SOFTWARE_EVIDENCE];
const SOFTWARE_HELLO: &[u8] = include_bytes!("../seeds/enrolment/software-hello");
const SOFTWARE_CHALLENGE: &[u8] = include_bytes!("../seeds/enrolment/software-challenge");
const SOFTWARE_EVIDENCE: &[u8] = include_bytes!("../seeds/enrolment/software-evidence");
const SOFTWARE_GRANT: &[u8] = include_bytes!("../seeds/enrolment/software-grant");
const IDENTITY: &[u8] = include_bytes!("../seeds/enrolment/identity.json");
const MAKERS: &str = include_str!("../seeds/enrolment/makers.pem");

/// The clock of the recordings.
const NOW_MS: i64 = 1_800_000_000_000;

fn point(scalar: u8) -> [u8; 65] {
    SoftwareAgreement::from_scalar(&[scalar; 32])
        .unwrap()
        .public_point()
        .unwrap()
        .to_sec1()
}

fn pinned() -> Pinned {
    Pinned {
        epoch: 1,
        root: root_hash(&point(8)),
        next: Digest::of(b"the next root"),
        delegation: 0,
    }
}

/// Signs nothing that anybody would believe.
struct Stamp;

impl Signer for Stamp {
    fn sign_p256_sha256(&self, _message: &[u8]) -> Result<[u8; 64], SignError> {
        Ok([1; 64])
    }
}

fn bounded(hello: &Hello) {
    let machine = &hello.machine;
    for text in [
        &machine.manufacturer,
        &machine.product,
        &machine.serial,
        &machine.uuid,
        &machine.firmware_vendor,
        &machine.firmware_version,
        &hello.image_version,
    ] {
        assert!(text.chars().count() <= MAX_TEXT && !text.contains(char::is_control));
    }
    if let HelloKeys::Tpm(tpm) = &hello.keys {
        assert!(tpm.endorsement_chain.len() <= 5 && tpm.tpm_maker.len() <= 16);
    }
}

fn hello(data: &[u8]) {
    let Ok(hello) = read_hello(data) else {
        assert!(data != TPM_HELLO && data != GOLD_HELLO && data != SOFTWARE_HELLO);
        return;
    };
    bounded(&hello);
    assert_eq!(hello.bytes, data);
    let chain = OwnerChain::default();
    let delegation = Delegation {
        signer: &Stamp,
        chain: &chain,
    };
    let lifetime = std::time::Duration::from_secs(300);
    let _ = challenge(
        &hello,
        &CookieKey::new([7; 32]),
        &delegation,
        NOW_MS,
        lifetime,
    );
    let _ = hello.machine_id().words();
}

/// The makers of machines of the recordings.
static MACHINES: LazyLock<Makers> = LazyLock::new(|| Makers::from_pem(MACHINE_MAKERS).unwrap());

/// As the controller of the recordings does.
fn judge(evidence: &Evidence) -> Judged {
    static TRUSTED: LazyLock<Makers> =
        LazyLock::new(|| Makers::from_pem(&[MAKERS, GOLD_MAKERS].concat()).unwrap());
    let delegate = Delegate::known(point(9), pinned());
    verify(
        evidence,
        &Known {
            cookie_key: &CookieKey::new([7; 32]),
            delegate: &delegate,
            now_ms: NOW_MS,
            makers: &TRUSTED,
            machine_makers: &MACHINES,
            warn: &[Check::EventLog],
        },
    )
}

fn evidence(data: &[u8]) {
    let recording = EVIDENCE.contains(&data);
    let Ok(evidence) = read_evidence(data) else {
        assert!(!recording);
        return;
    };
    bounded(evidence.hello());
    let judged = judge(&evidence);
    let verdicts = &judged.report.verdicts;
    for (index, verdict) in verdicts.iter().enumerate() {
        let twice = verdicts
            .iter()
            .skip(index + 1)
            .any(|other| other.check == verdict.check);
        assert!(!twice, "{verdicts:?}");
    }
    assert!(judged.proven.is_some() || !recording, "{verdicts:?}");
    assert!(
        judged.level == Level::Gold || data != GOLD_EVIDENCE,
        "{verdicts:?}"
    );
    if let Some(proven) = judged.proven {
        // Bytes outside the code's reach are none but how the message is written down.
        let recorded = EVIDENCE
            .into_iter()
            .map(|bytes| *read_evidence(bytes).unwrap().transcript());
        assert!(recorded.into_iter().any(|one| one == proven.transcript));
    }
}

/// The recorded device without a TPM.
fn device() -> &'static Identity {
    static DEVICE: OnceLock<Identity> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("identity.json"), IDENTITY).unwrap();
        Identity::open_or_create(dir.path(), None).unwrap()
    })
}

fn answer(hello: &[u8], message: &Challenge) -> Result<Answering, EnrolError> {
    Session::from_bytes(hello.to_vec()).challenged(device(), message, &pinned(), 0, None)
}

fn challenged(data: &[u8]) {
    let Ok(message) = Challenge::decode(data) else {
        return;
    };
    match answer(SOFTWARE_HELLO, &message) {
        Ok(answering) => {
            let recorded = Challenge::decode(SOFTWARE_CHALLENGE).unwrap();
            assert_eq!(message.payload, recorded.payload);
            assert_eq!(answering.server_time_ms(), NOW_MS);
            assert_eq!(answering.pinned().delegation, 1);
        }
        Err(_) => assert_ne!(data, SOFTWARE_CHALLENGE),
    }
    // No TPM is here to open the other one's secret: that is where a challenge that is in order ends.
    match answer(TPM_HELLO, &message) {
        Err(EnrolError::Secret(_)) => {
            let recorded = Challenge::decode(TPM_CHALLENGE).unwrap();
            assert_eq!(message.payload, recorded.payload);
        }
        answered => assert!(answered.is_err() && data != TPM_CHALLENGE),
    }
}

fn granted(data: &[u8]) {
    static ANSWERING: OnceLock<Answering> = OnceLock::new();
    let answering = ANSWERING.get_or_init(|| {
        let message = Challenge::decode(SOFTWARE_CHALLENGE).unwrap();
        answer(SOFTWARE_HELLO, &message).unwrap()
    });
    let Ok(message) = SealedGrant::decode(data) else {
        return;
    };
    match answering.granted(device(), &message) {
        Ok(_) => assert_eq!(message, SealedGrant::decode(SOFTWARE_GRANT).unwrap()),
        Err(_) => assert_ne!(data, SOFTWARE_GRANT),
    }
}

fn tpm_hello() -> &'static onboarding::enrol::TpmHello {
    static HELLO: LazyLock<Hello> = LazyLock::new(|| read_hello(TPM_HELLO).unwrap());
    HELLO.tpm().unwrap()
}

fn certificate(data: &[u8]) {
    static TRUSTED: LazyLock<Makers> = LazyLock::new(|| Makers::from_pem(MAKERS).unwrap());
    let known = tpm_hello();
    assert!(form(&known.endorsement).is_some());
    let chain = [data.to_vec()];
    if let Endorsed::Trusted { .. } = TRUSTED.judge(&known.endorsement, data, &chain) {
        let recorded = known.endorsement_certificate.as_ref().unwrap();
        // What is signed; behind it stand a copy of the algorithm's name and the signature.
        let signed = 8 + usize::from(u16::from_be_bytes([recorded[6], recorded[7]]));
        assert_eq!(data.get(..signed), recorded.get(..signed));
    }
    let _ = Makers::none().judge(&known.endorsement, data, &chain);
}

/// What the recorded machine of level gold shows of its maker.
fn gold_proof() -> MachineProof {
    let message = wire::Evidence::decode(GOLD_EVIDENCE).unwrap();
    let body = EvidenceBody::decode(message.body.as_slice()).unwrap();
    match body.proof.unwrap() {
        evidence_body::Proof::Tpm(proof) => proof.machine.unwrap(),
        evidence_body::Proof::Software(_) => panic!("a recording without a TPM"),
    }
}

fn machine_certificate(data: &[u8]) {
    static KNOWN: LazyLock<(MachineProof, Public)> = LazyLock::new(|| {
        let proof = gold_proof();
        let public = Public::parse(&proof.public).unwrap();
        (proof, public)
    });
    let (recorded, public) = &*KNOWN;
    if let Some(serial) = named_serial(data) {
        assert!(!serial.is_empty() && serial.chars().count() <= MAX_TEXT);
        assert!(!serial.contains(char::is_control));
    }
    if let Endorsed::Trusted { .. } = MACHINES.judge_machine(public, data, &[data.to_vec()]) {
        let recorded = &recorded.certificate;
        let signed = 8 + usize::from(u16::from_be_bytes([recorded[6], recorded[7]]));
        assert_eq!(data.get(..signed), recorded.get(..signed));
    }
}

fn revocation_list(data: &[u8]) {
    static RECORDED: LazyLock<Makers> = LazyLock::new(|| {
        let mut makers = MACHINES.clone();
        makers.revoke(REVOKED).unwrap();
        makers
    });
    let take = |der: &[u8]| {
        let mut makers = MACHINES.clone();
        match makers.revoke(der) {
            // How it is written down aside: who it is of, what it revokes, and when.
            Ok(()) => assert_eq!(makers.revocations(), RECORDED.revocations()),
            Err(_) => assert_ne!(der, REVOKED),
        }
    };
    take(data);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(der) = revocation::decode(text)
    {
        take(&der);
    }
}

fn makers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(makers) = Makers::from_pem(text) {
        assert!(!makers.is_empty());
        assert!(text.matches("-----BEGIN").count() >= makers.len());
        let known = tpm_hello();
        let certificate = known.endorsement_certificate.as_ref().unwrap();
        let _ = makers.judge(&known.endorsement, certificate, &[]);
    }
}

fn owner_mark(data: &[u8]) {
    if let Ok(pinned) = mark::parse(data) {
        assert_eq!(mark::to_bytes(&pinned), data);
    }
}
