//! What a TPM, a firmware and a device say of themselves.

use std::collections::VecDeque;
use std::io::{self, Read as _};

use onboarding::attest::{NONCE_BYTES, device, verifier};
use onboarding::eventlog::{self, MAX_EVENTS};
use onboarding::quote::{self, Evidence, Expected};
use onboarding::tpm::template::{EkAlgorithm, KeyUse};
use onboarding::tpm::{
    Handle, Hierarchy, MAX_MESSAGE, PcrSelection, Tpm, Transport, code, template,
};
use onboarding::wire::{EcdsaSignature, Public, PublicKind, Reader, Writer};
use onboarding::{registration, smbios};
use prost::Message as _;
use protocol::cipher::SoftwareAgreement;
use protocol::envelope::decode;
use protocol::eve::attest::{
    AttestVersionInfo, AttestVersionType, AttestVolumeKey, AttestVolumeKeyData, TpmHashAlgo,
    TpmPcrValue, ZAttestQuote, ZAttestReq, ZAttestReqType, ZAttestResponse,
};
use protocol::eve::certs::ZCertType;
use protocol::eve::register::ZRegisterMsg;

use crate::Target;
use crate::feed::Feed;
use crate::protocol::{vector, vector_text};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "event-log",
        about: "a firmware's event log: bounded, no larger than its bytes; replayed, and each event put into words",
        run: event_log,
        seeds: event_log_seeds,
    },
    Target {
        name: "quote",
        about: "a TPMS_ATTEST and a signature, verified: each check speaks once, and nothing forged is trusted",
        run: quote,
        seeds: quote_seeds,
    },
    Target {
        name: "tpm-public",
        about: "a TPMT_PUBLIC and a TPM2B_PUBLIC: what is understood is written as the same bytes",
        run: tpm_public,
        seeds: tpm_public_seeds,
    },
    Target {
        name: "tpm-answers",
        about: "answers of a TPM to our commands, one after the other",
        run: tpm_answers,
        seeds: tpm_answers_seeds,
    },
    Target {
        name: "attest-request",
        about: "a device's ZAttestReq: bounded in every part; a quote in it is verified",
        run: attest_request,
        seeds: attest_request_seeds,
    },
    Target {
        name: "attest-answer",
        about: "a controller's ZAttestResponse: an accepted nonce has a length that the API allows",
        run: attest_answer,
        seeds: attest_answer_seeds,
    },
    Target {
        name: "device-registration",
        about: "a ZRegisterMsg with its certificate: accepted serials are short and plain",
        run: device_registration,
        seeds: || vec![vector("signed-containers", "/registration/payload")],
    },
    Target {
        name: "smbios-text",
        about: "a maker's string: cleaned, it is short, plain, and clean",
        run: smbios_text,
        seeds: || {
            vec![
                b"  PowerEdge \t R740 ".to_vec(),
                b"To be filled by O.E.M.".to_vec(),
            ]
        },
    },
];

fn event_log(data: &[u8]) {
    let Ok(log) = eventlog::parse(data) else {
        return;
    };
    assert!(log.events.len() <= MAX_EVENTS);
    let held: usize = log
        .events
        .iter()
        .map(|event| {
            event.data.len()
                + event
                    .digests
                    .iter()
                    .map(|(_, digest)| digest.len())
                    .sum::<usize>()
        })
        .sum();
    assert!(held <= data.len(), "{held} bytes out of {}", data.len());
    let _ = eventlog::replay(&log);
    for event in &log.events {
        let described = eventlog::describe(event);
        assert!(!described.text.contains('\n'), "{:?}", described.text);
        assert!(
            described.text.len() <= 16 << 10,
            "{} bytes",
            described.text.len()
        );
    }
}

/// Enough of a recorded log to have events of most kinds.
fn recorded_log() -> Vec<u8> {
    let packed = include_bytes!("../../../onboarding/tests/data/ovmf-uki.log.gz");
    let mut log = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_end(&mut log)
        .unwrap();
    log
}

fn event_log_seeds() -> Vec<Vec<u8>> {
    // One event, made by hand: changes hit its fields more often than those of a long log.
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut short = vec![0, 0, 0, 0, 3, 0, 0, 0];
    short.extend([0; 20]);
    short.extend((spec.len() as u32).to_le_bytes());
    short.extend(&spec);
    short.extend([7, 0, 0, 0, 1, 0, 0, 0x80, 1, 0, 0, 0, 0x0b, 0]);
    short.extend([5; 32]);
    let mut variable = vec![1; 16];
    variable.extend(10_u64.to_le_bytes());
    variable.extend(1_u64.to_le_bytes());
    variable.extend("SecureBoot".encode_utf16().flat_map(u16::to_le_bytes));
    variable.push(1);
    short.extend((variable.len() as u32).to_le_bytes());
    short.extend(variable);
    vec![short, recorded_log()]
}

const NONCE: &[u8] = b"a nonce of 20 bytes!";

/// A quote as a TPM would write it.
fn quote_bytes() -> Vec<u8> {
    let mut w = Writer::new();
    w.u32(quote::GENERATED)
        .u16(quote::QUOTE)
        .sized(&[0; 34])
        .sized(NONCE);
    w.u32(0).u32(123_456).u32(7).u32(0).u8(1).u32(1).u32(2);
    w.u32(1).u16(0x0b).u8(3).bytes(&[0xff, 0xff, 0]);
    w.sized(&[5; 32]);
    w.into_bytes()
}

fn quote(data: &[u8]) {
    let mut feed = Feed::new(data);
    let signature_length = usize::from(feed.u8());
    let signature = feed.bytes(signature_length).to_vec();
    let attest = feed.rest();
    if let Ok(parsed) = quote::parse(attest) {
        assert!(parsed.extra_data.len() + parsed.signer.len() <= attest.len());
    }
    let certificate = vector_text("openssl", "/device_certificate");
    let certificate = protocol::keys::pem_to_der(certificate.as_bytes()).unwrap();
    let evidence = Evidence {
        attest: attest.to_vec(),
        signature,
        pcrs: (0..16).map(|index| (index, [0; 32])).collect(),
        event_log: None,
    };
    let report = quote::verify(
        Some(&evidence),
        Expected {
            attestation_certificate: Some(&certificate),
            has_tpm: true,
            nonce: Some(NONCE),
        },
    );
    judged(&report);
}

/// What holds of every report here: nobody has the key, so nothing is trusted.
fn judged(report: &quote::Report) {
    let verdicts = &report.verdicts;
    for (index, verdict) in verdicts.iter().enumerate() {
        assert!(
            verdicts
                .iter()
                .skip(index + 1)
                .all(|other| other.check != verdict.check),
            "{verdicts:?}"
        );
    }
    assert_ne!(report.conclusion(), quote::Conclusion::Trusted);
}

fn quote_seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![8, 0x30, 6, 2, 1, 1, 2, 1, 1];
    seed.extend(quote_bytes());
    vec![seed]
}

fn tpm_public(data: &[u8]) {
    if let Ok(public) = Public::parse(data) {
        assert_eq!(public.to_bytes(), data);
        assert_eq!(public.name().0.len(), 34);
        let _ = public.p256_point();
    }
    if let Ok(public) = Public::parse_sized(data) {
        assert_eq!(public.to_sized_bytes(), data);
    }
    let mut reader = Reader::new(data);
    if let Ok(signature) = EcdsaSignature::read(&mut reader) {
        assert_eq!(signature.to_fixed().len(), 64);
        assert!(signature.to_der().len() <= 72);
    }
}

fn publics() -> Vec<Public> {
    vec![
        template::p256(KeyUse::Attest),
        template::endorsement_key(EkAlgorithm::Rsa2048),
        template::endorsement_key(EkAlgorithm::P256),
    ]
}

/// r and s of a signature on the wire.
fn signature() -> Vec<u8> {
    let mut w = Writer::new();
    w.u16(0x18).u16(0x0b).sized(&[1; 32]).sized(&[0x80; 32]);
    w.into_bytes()
}

fn tpm_public_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![signature()];
    for public in publics() {
        seeds.push(public.to_bytes());
        seeds.push(public.to_sized_bytes());
    }
    seeds
}

/// A TPM that says what the input says.
struct Scripted(VecDeque<Vec<u8>>);

impl Transport for Scripted {
    fn exchange(&mut self, _command: &[u8]) -> io::Result<Vec<u8>> {
        let answer = self.0.pop_front().ok_or(io::ErrorKind::UnexpectedEof)?;
        let refusal = answer
            .get(6..10)
            .and_then(|code| Some(u32::from_be_bytes(code.try_into().ok()?)));
        // A busy TPM is asked again after a while, which nobody has here.
        match refusal {
            Some(code::RETRY | code::YIELDED | code::TESTING | code::NV_RATE) => {
                Err(io::ErrorKind::ResourceBusy.into())
            }
            _ => Ok(answer),
        }
    }
}

fn tpm_answers(data: &[u8]) {
    let mut feed = Feed::new(data);
    let command = feed.u8();
    let mut answers = VecDeque::new();
    while !feed.is_empty() && answers.len() < 64 {
        let length = usize::from(feed.u16()).min(MAX_MESSAGE);
        answers.push_back(feed.bytes(length).to_vec());
    }
    let tpm = Tpm::over(Scripted(answers));
    let key = Handle(0x8100_0001);
    match command % 10 {
        0 => drop(tpm.properties()),
        1 => drop(tpm.capabilities()),
        2 => drop(tpm.handles(key)),
        3 => {
            if let Ok(values) = tpm.pcr_read(PcrSelection::BOOT) {
                let read: Vec<u32> = values.iter().map(|(index, _)| *index).collect();
                assert_eq!(read, PcrSelection::BOOT.indexes().collect::<Vec<_>>());
            }
        }
        4 => {
            if let Ok(Some(bytes)) = tpm.nv_read(0x1c0_0002) {
                assert!(bytes.len() <= usize::from(u16::MAX));
            }
        }
        5 => {
            if let Ok(bytes) = tpm.random(48) {
                assert_eq!(bytes.len(), 48);
            }
        }
        6 => drop(tpm.read_public(key)),
        7 => drop(tpm.quote(key, NONCE, PcrSelection::BOOT)),
        8 => {
            if let Ok(object) =
                tpm.create_primary(Hierarchy::Owner, &template::p256(KeyUse::Attest))
            {
                drop(tpm.create(&object, &template::p256(KeyUse::Attest)));
            }
        }
        _ => {
            // A storage key that the input names, and a session salted to it: no code in an answer fits.
            if let Ok(object) = tpm.create_primary(Hierarchy::Owner, &template::p256(KeyUse::Store))
                && let Ok(session) = tpm.start_hmac_session(&object, object.public())
                && let Some(point) = object.public().p256_point()
            {
                assert!(tpm.ecdh_zgen(&object, &session, &point).is_err());
            }
        }
    }
}

/// An answer's frame.
fn answer(tag: u16, body: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    w.u16(tag).u32(10 + body.len() as u32).u32(0).bytes(body);
    w.into_bytes()
}

/// An answer to an authorized command.
fn authorized(handle: Option<u32>, parameters: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    if let Some(handle) = handle {
        w.u32(handle);
    }
    w.u32(parameters.len() as u32).bytes(parameters);
    w.sized(&[]).u8(1).sized(&[]);
    answer(0x8002, w.as_slice())
}

fn tpm_answers_seeds() -> Vec<Vec<u8>> {
    let mut seed_of = Vec::new();
    // A list of two properties, twice.
    let mut w = Writer::new();
    w.u8(0)
        .u32(6)
        .u32(2)
        .u32(0x105)
        .u32(0x4d53_4654)
        .u32(0x10b)
        .u32(1);
    seed_of.push((0, vec![answer(0x8001, w.as_slice()); 2]));
    // PCRs, eight at a time, with the same update counter.
    let half = |bits: [u8; 3]| {
        let mut w = Writer::new();
        w.u32(9).u32(1).u16(0x0b).u8(3).bytes(&bits).u32(8);
        for _ in 0..8 {
            w.sized(&[3; 32]);
        }
        answer(0x8001, w.as_slice())
    };
    seed_of.push((3, vec![half([0xff, 0, 0]), half([0, 0xff, 0])]));
    // An NV index of four bytes.
    let mut nv = Writer::new();
    nv.u32(0x1c0_0002)
        .u16(0x0b)
        .u32(1 << 29 | 1 << 18)
        .sized(&[])
        .u16(4);
    let mut w = Writer::new();
    w.sized(nv.as_slice()).sized(&[0; 34]);
    let mut read = Writer::new();
    read.sized(&[1, 2, 3, 4]);
    seed_of.push((
        4,
        vec![
            answer(0x8001, w.as_slice()),
            authorized(None, read.as_slice()),
        ],
    ));
    let mut w = Writer::new();
    w.sized(&[4; 32]);
    seed_of.push((5, vec![answer(0x8001, w.as_slice()); 2]));
    // A public area, its name and its qualified name.
    let public = template::p256(KeyUse::Attest);
    let mut w = Writer::new();
    w.bytes(&public.to_sized_bytes())
        .sized(&public.name().0)
        .sized(&[0; 34]);
    seed_of.push((6, vec![answer(0x8001, w.as_slice())]));
    let mut w = Writer::new();
    w.sized(&quote_bytes()).bytes(&signature());
    seed_of.push((7, vec![authorized(None, w.as_slice())]));
    // A primary key.
    let mut w = Writer::new();
    w.bytes(&public.to_sized_bytes()).sized(&[]).sized(&[]);
    w.u16(0x8021)
        .u32(0x4000_0001)
        .sized(&[])
        .sized(&public.name().0);
    seed_of.push((8, vec![authorized(Some(0x8000_0000), w.as_slice())]));
    // A storage key with a point on the curve, a session salted to it, and a shared point whose code does not fit.
    let mut storage = template::p256(KeyUse::Store);
    let own = SoftwareAgreement::from_scalar(&[5; 32]).unwrap();
    let point = own.public_point().unwrap();
    if let PublicKind::Ecc { x, y, .. } = &mut storage.kind {
        *x = point.x().to_vec();
        *y = point.y().to_vec();
    }
    let mut made = Writer::new();
    made.bytes(&storage.to_sized_bytes()).sized(&[]).sized(&[]);
    made.u16(0x8021)
        .u32(0x4000_0001)
        .sized(&[])
        .sized(&storage.name().0);
    let mut session = Writer::new();
    session.u32(0x0200_0000).sized(&[7; 32]);
    let mut shared = Writer::new();
    shared.sized(&[&[0, 32][..], &[1; 32], &[0, 32], &[2; 32]].concat());
    seed_of.push((
        9,
        vec![
            authorized(Some(0x8000_0000), made.as_slice()),
            answer(0x8001, session.as_slice()),
            authorized(None, shared.as_slice()),
        ],
    ));
    seed_of
        .into_iter()
        .map(|(command, answers)| {
            let mut seed = vec![command];
            for answer in answers {
                seed.extend((answer.len() as u16).to_le_bytes());
                seed.extend(answer);
            }
            seed
        })
        .collect()
}

fn attest_request(data: &[u8]) {
    let Ok(message) = decode::<ZAttestReq>(data, "ZAttestReq") else {
        return;
    };
    match verifier::read(&message) {
        Ok(verifier::Request::Certificates(certificates)) => {
            let device = vector_text("openssl", "/device_certificate");
            let device = protocol::keys::pem_to_der(device.as_bytes()).unwrap();
            let _ = certificates.check(&device);
        }
        Ok(verifier::Request::Quote(submission)) => {
            if let Some(evidence) = &submission.evidence {
                assert!(evidence.pcrs.len() <= 24);
                assert!(evidence.pcrs.is_sorted_by(|one, other| one.0 <= other.0));
                if let Some(log) = &evidence.event_log {
                    assert!(log.len() <= eventlog::MAX_LOG + 1);
                }
            }
            judged(&verifier::verify(&submission, None, Some(NONCE)));
        }
        Ok(verifier::Request::StoreKeys { keys, .. }) => assert!(keys.len() <= 8),
        Ok(verifier::Request::Nonce) | Err(_) => {}
    }
}

fn attest_request_seeds() -> Vec<Vec<u8>> {
    let quote = ZAttestQuote {
        attest_data: quote_bytes(),
        signature: vec![0x30, 6, 2, 1, 1, 2, 1, 1],
        pcr_values: (0..16)
            .map(|index| TpmPcrValue {
                index,
                hash_algo: TpmHashAlgo::Sha256.into(),
                value: vec![index as u8; 32],
            })
            .collect(),
        tpm_binary_event_log: include_bytes!("../../../onboarding/tests/data/ovmf-uki.log.gz")
            .to_vec(),
        versions: vec![AttestVersionInfo {
            version_type: AttestVersionType::Eve.into(),
            version: "1.0".to_owned(),
        }],
        ..ZAttestQuote::default()
    };
    let quote = ZAttestReq {
        req_type: ZAttestReqType::AttestReqQuote.into(),
        quote: Some(quote),
        ..ZAttestReq::default()
    };
    let keys = vec![AttestVolumeKey {
        key: AttestVolumeKeyData::default().encode_to_vec(),
        ..AttestVolumeKey::default()
    }];
    let pem = vector_text("openssl", "/device_certificate");
    let certificates = ZAttestReq {
        req_type: ZAttestReqType::AttestReqCert.into(),
        certs: [
            ZCertType::CertTypeDeviceEcdhExchange,
            ZCertType::CertTypeDeviceRestrictedSigning,
        ]
        .map(|kind| protocol::certs::certificate(kind, pem.as_bytes(), None))
        .to_vec(),
        ..ZAttestReq::default()
    };
    vec![
        device::nonce_request().encode_to_vec(),
        device::store_keys_request(vec![1; 16], keys).encode_to_vec(),
        certificates.encode_to_vec(),
        vector("messages", "/attest_quote"),
        quote.encode_to_vec(),
    ]
}

fn attest_answer(data: &[u8]) {
    let Ok(message) = decode::<ZAttestResponse>(data, "ZAttestResponse") else {
        return;
    };
    let _ = device::read_certs_answer(&message);
    if let Ok(nonce) = device::read_nonce(&message) {
        assert!(NONCE_BYTES.contains(&nonce.len()));
    }
    if let Ok(answer) = device::read_quote_answer(&message) {
        let again = verifier::quote_answer(&answer);
        assert_eq!(device::read_quote_answer(&again).unwrap(), answer);
    }
    if let Ok(answer) = device::read_store_keys_answer(&message) {
        let again = verifier::store_keys_answer(answer);
        assert_eq!(device::read_store_keys_answer(&again).unwrap(), answer);
    }
}

fn attest_answer_seeds() -> Vec<Vec<u8>> {
    use onboarding::attest::{QuoteAnswer, StoreKeysAnswer};
    let granted = QuoteAnswer::Granted {
        integrity_token: vec![1; 32],
        keys: vec![],
    };
    let mut seeds: Vec<Vec<u8>> = [
        verifier::certs_answer(),
        verifier::nonce_answer(NONCE),
        verifier::quote_answer(&granted),
        verifier::quote_answer(&QuoteAnswer::NonceMismatch),
        verifier::store_keys_answer(StoreKeysAnswer::Stored),
    ]
    .iter()
    .map(prost::Message::encode_to_vec)
    .collect();
    seeds.push(vector("messages", "/attest_reply"));
    seeds
}

fn device_registration(data: &[u8]) {
    let Ok(message) = decode::<ZRegisterMsg>(data, "ZRegisterMsg") else {
        return;
    };
    let Ok(read) = registration::read(&message) else {
        return;
    };
    for serial in [&read.serial, &read.soft_serial] {
        assert!(serial.chars().count() <= protocol::registration::MAX_SERIAL);
        assert!(!serial.chars().any(char::is_control));
    }
}

fn smbios_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let clean = smbios::clean(text);
    assert!(clean.chars().count() <= smbios::MAX_TEXT);
    assert!(!clean.chars().any(char::is_control));
    assert_eq!(clean.trim(), clean);
}
