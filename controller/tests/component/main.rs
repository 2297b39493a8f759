//! The controller over real HTTPS on loopback, with simulated devices: real keys, real envelopes, and a real (emulated) TPM where
//! attestation is what is tested. Needs Debian's `swtpm`.

// The helpers below are tests as well, though clippy counts only functions marked as such.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attestation;
mod device;
mod device_api;
mod enrol_attacks;
mod gold;
mod killed;
mod logs;
mod machine;
// The verifier's own tests have the same makers.
#[allow(dead_code)]
#[path = "../../../onboarding/tests/support/maker.rs"]
mod maker;
mod operator_api;
mod policy;
mod push;
mod site;
mod tpm;
mod zero_touch;
