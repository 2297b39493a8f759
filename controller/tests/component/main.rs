//! The controller over real HTTPS on loopback, with simulated devices: real keys, real envelopes, and a real (emulated) TPM where
//! attestation is what is tested. Needs Debian's `swtpm`.

#![allow(missing_docs)]

mod attestation;
mod device;
mod device_api;
mod logs;
mod operator_api;
mod push;
mod site;
mod tpm;
