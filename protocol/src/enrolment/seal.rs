//! Sealed requests and answers: an inspecting proxy can carry them, and neither read nor change them.
//!
//! ```text
//! device                                              controller
//!   hpke::seal(flight's name, message) -- SealedRequest -->  hpke::open
//!   key = exporter("answer")                                 key = exporter("answer")
//!   open(key) <------------------------ SealedAnswer ------  seal(key)
//! ```
//!
//! The answer's key is used for one answer, with a random nonce all the same, since a controller that is asked twice with the same
//! bytes may answer twice (RFC 9458 section 4.4 does likewise).

use prost::Message as _;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;

use super::hpke::{self, Exporter, HpkeError, Sealed};
use super::wire::{Answer, SealedAnswer, SealedRequest};
use super::{MAX_ANSWER, MAX_REQUEST};
use crate::cipher::{KeyAgreement, Point};
use crate::keys::sha256;

/// Bytes of the SHA-256 of the controller's key that name it in a request.
pub const KEY_ID_BYTES: usize = 8;

/// Which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flight {
    /// The first.
    Hello,
    /// The second.
    Evidence,
}

impl Flight {
    /// HPKE's `info`: a message of one flight cannot be passed off as the other's.
    fn info(self) -> &'static [u8] {
        match self {
            Self::Hello => b"skerry enrolment 1 hello",
            Self::Evidence => b"skerry enrolment 1 evidence",
        }
    }
}

/// Why a sealed message was not accepted.
#[derive(Debug, Error)]
pub enum SealError {
    /// Longer than it may be.
    #[error("enrolment: a message of {size} bytes is longer than {limit}")]
    TooLong {
        /// Its length.
        size: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// Not the message that it should be.
    #[error("enrolment: reading the sealed {what}: {source}")]
    Decode {
        /// "request" or "answer".
        what: &'static str,
        /// Where decoding stopped.
        source: prost::DecodeError,
    },
    /// Sealed to another key.
    #[error(
        "enrolment: the request is sealed to the controller key {found}, this controller has {wanted}; the device's image is of another controller, or older than the controller's key"
    )]
    OtherKey {
        /// Key id in the request, hexadecimal.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// A part has not the form that it should have.
    #[error("enrolment: the sealed {0} has a part of the wrong length")]
    Form(&'static str),
    /// It cannot be opened.
    #[error("enrolment: {0}")]
    Hpke(#[from] HpkeError),
    /// The answer cannot be opened.
    #[error(
        "enrolment: the answer was not made for this request: something between device and controller changed it, or it is not the controller that the image names"
    )]
    Answer,
    /// No random bytes to be had.
    #[error("enrolment: the random source failed")]
    Random,
}

/// Names a controller's key.
#[must_use]
pub fn key_id(controller: &Point) -> [u8; KEY_ID_BYTES] {
    let [a, b, c, d, e, f, g, h, ..] = sha256(&controller.to_sec1());
    [a, b, c, d, e, f, g, h]
}

/// The key of one answer.
#[derive(Debug)]
pub struct AnswerKey([u8; 32]);

impl AnswerKey {
    fn of(exporter: &Exporter) -> Result<Self, HpkeError> {
        Ok(Self(exporter.export(b"answer")?))
    }

    fn cipher(&self) -> Result<LessSafeKey, SealError> {
        UnboundKey::new(&AES_256_GCM, &self.0)
            .map(LessSafeKey::new)
            .map_err(|_| SealError::Hpke(HpkeError::Length))
    }

    /// Seals an answer: the body of the response.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn seal(&self, answer: &Answer) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| SealError::Random)?;
        let mut data = answer.encode_to_vec();
        self.cipher()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut data)
            .map_err(|_| SealError::Hpke(HpkeError::Length))?;
        Ok(SealedAnswer {
            nonce: nonce.to_vec(),
            ciphertext: data,
        }
        .encode_to_vec())
    }

    /// Opens the body of the response to this key's request.
    ///
    /// # Errors
    /// [`SealError`]: too long, malformed, or not made with this key.
    pub fn open(&self, body: &[u8]) -> Result<Answer, SealError> {
        within(body.len(), MAX_ANSWER)?;
        let decode = |source| SealError::Decode {
            what: "answer",
            source,
        };
        let sealed = SealedAnswer::decode(body).map_err(decode)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed.nonce)
            .map_err(|_| SealError::Form("answer"))?;
        let mut data = sealed.ciphertext;
        let clear = self
            .cipher()?
            .open_in_place(nonce, Aad::empty(), &mut data)
            .map_err(|_| SealError::Answer)?;
        Answer::decode(&*clear).map_err(decode)
    }
}

fn within(size: usize, limit: usize) -> Result<(), SealError> {
    if size <= limit {
        Ok(())
    } else {
        Err(SealError::TooLong { size, limit })
    }
}

/// Seals a Hello or an Evidence to the controller. Gives the body of the request and the key of its answer.
///
/// # Errors
/// [`SealError::TooLong`], [`SealError::Hpke`].
pub fn seal_request(
    controller: &Point,
    flight: Flight,
    message: &[u8],
) -> Result<(Vec<u8>, AnswerKey), SealError> {
    let (sealed, exporter) = hpke::seal(controller, flight.info(), None, &[], message)?;
    let body = SealedRequest {
        key_id: key_id(controller).to_vec(),
        encapsulated: sealed.encapsulated.to_vec(),
        ciphertext: sealed.ciphertext,
    }
    .encode_to_vec();
    within(body.len(), MAX_REQUEST)?;
    Ok((body, AnswerKey::of(&exporter)?))
}

/// Opens a request's body with the controller's key `own`, whose public point is `point`. Gives the message as it was sent and the
/// key of its answer.
///
/// # Errors
/// [`SealError`]: too long, malformed, for another key, or changed on its way.
pub fn open_request(
    own: &dyn KeyAgreement,
    point: &Point,
    flight: Flight,
    body: &[u8],
) -> Result<(Vec<u8>, AnswerKey), SealError> {
    within(body.len(), MAX_REQUEST)?;
    let request = SealedRequest::decode(body).map_err(|source| SealError::Decode {
        what: "request",
        source,
    })?;
    let wanted = key_id(point);
    if request.key_id != wanted {
        return Err(SealError::OtherKey {
            found: hex::encode(request.key_id.get(..KEY_ID_BYTES).unwrap_or_default()),
            wanted: hex::encode(wanted),
        });
    }
    let sealed = Sealed::from_parts(&request.encapsulated, &request.ciphertext)
        .ok_or(SealError::Form("request"))?;
    let (message, exporter) = hpke::open(own, point, flight.info(), None, &[], &sealed)?;
    Ok((message, AnswerKey::of(&exporter)?))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Wait, answer};
    use super::*;
    use crate::cipher::SoftwareAgreement;

    fn key(byte: u8) -> (SoftwareAgreement, Point) {
        let key = SoftwareAgreement::from_scalar(&[byte; 32]).unwrap();
        let point = key.public_point().unwrap();
        (key, point)
    }

    fn wait() -> Answer {
        Answer {
            kind: Some(answer::Kind::Wait(Wait {
                retry_seconds: 5,
                reason: "x".to_owned(),
            })),
        }
    }

    #[test]
    fn a_request_and_its_answer_arrive() {
        let (own, point) = key(1);
        let (body, device) = seal_request(&point, Flight::Hello, b"hello").unwrap();
        let (message, controller) = open_request(&own, &point, Flight::Hello, &body).unwrap();
        assert_eq!(message, b"hello");
        let sealed = controller.seal(&wait()).unwrap();
        assert_eq!(device.open(&sealed).unwrap(), wait());
        assert_ne!(controller.seal(&wait()).unwrap(), sealed);
    }

    #[test]
    fn nothing_passes_for_what_it_is_not() {
        let (own, point) = key(1);
        let (other, other_point) = key(2);
        let (body, device) = seal_request(&point, Flight::Hello, b"hello").unwrap();
        // Another flight, another controller, each changed byte, each cut.
        assert!(open_request(&own, &point, Flight::Evidence, &body).is_err());
        let error = open_request(&other, &other_point, Flight::Hello, &body).unwrap_err();
        assert!(matches!(error, SealError::OtherKey { .. }), "{error}");
        for place in 0..body.len() {
            let mut changed = body.clone();
            changed[place] ^= 1;
            if let Ok((message, _)) = open_request(&own, &point, Flight::Hello, &changed) {
                panic!("byte {place} changed, and {message:?} came out");
            }
            assert!(open_request(&own, &point, Flight::Hello, &body[..place]).is_err());
        }
        // An answer to another request.
        let (second, _) = seal_request(&point, Flight::Hello, b"hello").unwrap();
        let (_, controller) = open_request(&own, &point, Flight::Hello, &second).unwrap();
        let answer = controller.seal(&wait()).unwrap();
        assert!(matches!(device.open(&answer), Err(SealError::Answer)));
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_read() {
        let (own, point) = key(1);
        assert!(matches!(
            open_request(&own, &point, Flight::Hello, &vec![0; MAX_REQUEST + 1]),
            Err(SealError::TooLong { .. })
        ));
        assert!(matches!(
            seal_request(&point, Flight::Hello, &vec![0; MAX_REQUEST]),
            Err(SealError::TooLong { .. })
        ));
        assert!(matches!(
            AnswerKey([0; 32]).open(&vec![0; MAX_ANSWER + 1]),
            Err(SealError::TooLong { .. })
        ));
    }
}
