//! Sealed requests and answers of enrolment: the first thing that a stranger's bytes meet at a controller, and what a device makes of whatever
//! answers it.
//!
//! The seeds are sealed recordings (`seeds/enrolment/README.md`) for a controller key that is fixed here. HPKE lets nothing changed through, so
//! that alone would never get a changed message behind the seal: each input is also taken as what somebody seals who knows the controller's
//! public key, which is everybody, or as what the controller answers.

use std::sync::LazyLock;

use onboarding::enrol::verifier::{read_evidence, read_hello};
use prost::Message as _;
use protocol::cipher::{Point, SoftwareAgreement};
use protocol::enrolment::seal::{AnswerKey, Flight, key_id, open_request, seal_request};
use protocol::enrolment::wire::answer::Kind;
use protocol::enrolment::wire::{Answer, Challenge, SealedRequest};
use protocol::enrolment::{MAX_ANSWER, MAX_REQUEST};

use crate::Target;
use crate::enrolment::{TPM_CHALLENGE, TPM_EVIDENCE, TPM_HELLO};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "sealed-request",
        about: "a sealed request at the controller: nothing but the recording opens, and in its own flight; what a stranger seals opens as it was",
        run: request,
        seeds: || vec![HELLO.to_vec(), EVIDENCE.to_vec(), TPM_HELLO.to_vec()],
    },
    Target {
        name: "sealed-answer",
        about: "a sealed answer at the device: nothing but the recording opens; what the controller seals opens as it was",
        run: answer,
        seeds: || vec![ANSWER.to_vec(), recorded_answer().encode_to_vec()],
    },
];

const HELLO: &[u8] = include_bytes!("../seeds/enrolment/sealed-hello");
const EVIDENCE: &[u8] = include_bytes!("../seeds/enrolment/sealed-evidence");
const ANSWER: &[u8] = include_bytes!("../seeds/enrolment/sealed-answer");

/// The recordings, sealed and not.
const FLIGHTS: [(Flight, &[u8], &[u8]); 2] = [
    (Flight::Hello, HELLO, TPM_HELLO),
    (Flight::Evidence, EVIDENCE, TPM_EVIDENCE),
];

/// The controller's key of the recordings.
static CONTROLLER: LazyLock<(SoftwareAgreement, Point)> = LazyLock::new(|| {
    let key = SoftwareAgreement::from_scalar(&[10; 32]).unwrap();
    let point = key.public_point().unwrap();
    (key, point)
});

/// Opens it as the controller does, for `flight`.
fn open(flight: Flight, body: &[u8]) -> Option<(Vec<u8>, AnswerKey)> {
    let (key, point) = &*CONTROLLER;
    open_request(key, point, flight, body).ok()
}

fn request(data: &[u8]) {
    for (flight, sealed, recorded) in FLIGHTS {
        match open(flight, data) {
            Some((message, _)) => {
                // Around what is sealed, bytes may stand that nobody reads.
                assert_eq!(message, recorded);
                assert!(data.len() <= MAX_REQUEST);
                let named = SealedRequest::decode(data).unwrap().key_id;
                assert_eq!(named, key_id(&CONTROLLER.1));
            }
            None => assert_ne!(data, sealed),
        }
        // The same bytes inside.
        let Ok((body, device)) = seal_request(&CONTROLLER.1, flight, data) else {
            assert!(data.len() > MAX_REQUEST - 1024);
            continue;
        };
        let (message, controller) = open(flight, &body).unwrap();
        assert_eq!(message, data);
        let _ = read_hello(&message);
        let _ = read_evidence(&message);
        let sealed = controller.seal(&Answer::default()).unwrap();
        assert_eq!(device.open(&sealed).unwrap(), Answer::default());
    }
}

/// The key of the recorded answer: both ends have the same, the device from sealing and the controller from opening.
fn answer_key() -> &'static AnswerKey {
    static KEY: LazyLock<AnswerKey> = LazyLock::new(|| open(Flight::Hello, HELLO).unwrap().1);
    &KEY
}

fn recorded_answer() -> Answer {
    Answer {
        kind: Some(Kind::Challenge(Challenge::decode(TPM_CHALLENGE).unwrap())),
    }
}

fn answer(data: &[u8]) {
    match answer_key().open(data) {
        Ok(answer) => {
            assert_eq!(answer, recorded_answer());
            assert!(data.len() <= MAX_ANSWER);
        }
        Err(_) => assert_ne!(data, ANSWER),
    }
    let Ok(inside) = Answer::decode(data) else {
        return;
    };
    let sealed = answer_key().seal(&inside).unwrap();
    match answer_key().open(&sealed) {
        Ok(answer) => assert_eq!(answer, inside),
        Err(_) => assert!(sealed.len() > MAX_ANSWER),
    }
}

/// The recordings that are sealed here, sealed anew, by their names in `seeds/enrolment`.
///
/// # Panics
/// When the messages there are not what they should be.
#[must_use]
pub fn recordings() -> [(&'static str, Vec<u8>); 3] {
    let seal = |flight, message| seal_request(&CONTROLLER.1, flight, message).unwrap();
    let (hello, key) = seal(Flight::Hello, TPM_HELLO);
    [
        ("sealed-hello", hello),
        ("sealed-answer", key.seal(&recorded_answer()).unwrap()),
        ("sealed-evidence", seal(Flight::Evidence, TPM_EVIDENCE).0),
    ]
}
