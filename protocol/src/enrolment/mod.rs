//! Zero-touch enrolment: what device and controller say in the two flights, and the keys that they say it with.
//!
//! ```text
//! device                                                        controller
//!   | -- sealed to the image's controller key: Hello ------------> |   keeps nothing
//!   | <----- Challenge, signed by the owner's delegate ----------- |
//!   |  owner checked; TPM2_ActivateCredential gives the secret     |
//!   | -- sealed: Evidence (certified keys, quote, log, MAC) -----> |   nonce struck out, verdicts written
//!   | <----- Grant, sealed to secret and agreement key ----------- |   or Wait, or Refusal
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`wire`] | the messages, generated from `proto/enrolment.proto` |
//! | [`image`] | what an image tells its device about enrolling |
//! | [`hpke`] | hybrid public key encryption (RFC 9180) with keys that may be a TPM's |
//! | [`seal`] | sealed requests and their answers |
//! | [`owner`] | whom a device takes orders from: root, successions, delegation |
//! | [`transcript`] | what binds the flights together, and the keys derived from the secret |
//! | [`words`] | a fingerprint that people can read to each other |
//!
//! The reasons stand in the book's page "Enrolment".

pub mod hpke;
pub mod image;
pub mod owner;
pub mod seal;
pub mod transcript;
pub mod words;

/// The messages.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/skerry.enrolment.v1.rs"));
}

/// Version of the protocol that this crate speaks.
pub const VERSION: u32 = 1;
/// Largest body of a request, in bytes: an event log of a megabyte packs into far less.
pub const MAX_REQUEST: usize = 512 << 10;
/// Largest body of an answer, in bytes.
pub const MAX_ANSWER: usize = 64 << 10;
/// Bytes of a nonce and of the challenge's secret.
pub const NONCE_BYTES: usize = 32;
