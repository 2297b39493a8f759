//! Who this machine is and whether it can be trusted: TPM, device keys, event log, quotes.
//!
//! | side | module | what for |
//! |---|---|---|
//! | device | [`tpm`] | commands to a TPM 2.0 through the kernel's resource manager |
//! | device | [`keys`] | the device's keys and certificates, made once and found again |
//! | device | [`smbios`] | what the maker wrote into the machine |
//! | both | [`enrol`] | zero-touch enrolment in two flights: owner checked, TPM proven, grant sealed to it |
//! | both | [`registration`] | EVE's registration with the image's onboarding key |
//! | device | [`attest::device`] | requests of the attest exchange, reading of its answers |
//! | verifier | [`attest::verifier`] | reading of those requests, answers to them |
//! | both | [`quote`] | a boot's state, signed by a TPM; the checks over it, one named verdict each |
//! | verifier | [`policy`] | what may have been booted: signed references, accepted firmware; one verdict a check |
//! | both | [`eventlog`], [`wire`] | parsers of what a firmware and a TPM say |
//!
//! The verifier's side needs no TPM. Everything is synchronous: a TPM command takes from a millisecond to seconds, so
//! asynchronous callers put it into `spawn_blocking`. Nothing here speaks HTTP or reads a clock.

pub mod attest;
pub mod enrol;
pub mod eventlog;
pub mod keys;
pub mod policy;
pub mod quote;
pub mod registration;
pub mod smbios;
mod text;
pub mod tpm;
pub mod wire;
