//! Who this machine is and whether it can be trusted: TPM, device keys, event log, quotes.
//!
//! Everything here is synchronous: a TPM command takes from a millisecond to seconds, so asynchronous callers put it
//! into `spawn_blocking`. Nothing here speaks HTTP.
//!
//! | side | module | what for |
//! |---|---|---|
//! | device | `tpm` | commands to a TPM 2.0 through the kernel's resource manager |
//! | device | `keys` | the device's keys and certificates, made once and found again |
//! | device | `registration`, `smbios` | EVE's registration with the image's onboarding key |
//! | device | `attest::device` | requests of the attest exchange, reading of its answers |
//! | both | `wire`, `eventlog`, `quote` | parsers of what a TPM and a firmware say |
//! | verifier | `quote::verify` | one named verdict a check |
//! | verifier | `attest::verifier` | reading of the attest requests, answers to them |
//!
//! The verifier's side needs no TPM.
//!
//! The face of the crate, for authors of its callers (bodies follow):
//!
//! ```text
//! // Device
//! tpm::Tpm::open(path: &Path) -> Result<Tpm, TpmError>                       // "/dev/tpmrm0"; Tpm is Clone + Send + Sync
//! keys::Identity::open_or_create(dir: &Path, tpm: Option<Tpm>) -> Result<Identity, IdentityError>
//!     .protection() -> Protection {Tpm, Software}
//!     .device_certificate() / .ecdh_certificate() -> &Certificate            // .pem() -> &str, .der() -> &[u8], .hash() -> [u8; 32] over DER
//!     .attestation_certificate() -> Option<&Certificate>, .endorsement() -> Option<&Endorsement>
//!     impl protocol::envelope::Signer + the ECDH trait of protocol::cipher; Identity is Send + Sync
//! registration::OnboardingKey::from_pem(certificate: &str, key: &str) -> Result<OnboardingKey, RegistrationError>   // impl Signer
//! registration::message(device: &Certificate, serial: &str, soft_serial: &str) -> Result<ZRegisterMsg, RegistrationError>
//! smbios::Machine::read(root: &Path) -> Machine {manufacturer, product, serial, uuid, bios_version, ...}    // root "/" on a device
//! attest::device::certs_request(&Identity) -> ZAttestReq
//! attest::device::nonce_request() -> ZAttestReq
//! attest::device::quote_request(&Identity, nonce: &[u8], versions: &Versions, event_log: Option<&[u8]>) -> Result<ZAttestReq, AttestError>
//! attest::device::read_certs_answer(&ZAttestResponse) -> Result<(), AttestError>
//! attest::device::read_nonce(&ZAttestResponse) -> Result<Vec<u8>, AttestError>
//! attest::device::read_quote_answer(&ZAttestResponse) -> Result<QuoteAnswer, AttestError>
//!     // QuoteAnswer {Granted{integrity_token, keys}, NonceMismatch, NoCertificate, Refused}
//!
//! // Controller
//! attest::verifier::read(&ZAttestReq) -> Result<Request, AttestError>
//!     // Request {Certificates(DeviceCertificates), Nonce, Quote(Submission), StoreKeys{integrity_token, keys}}
//! attest::verifier::DeviceCertificates::check(&self, device_certificate_der: &[u8]) -> Result<(), AttestError>
//! attest::verifier::nonce() -> [u8; 32], ::integrity_token() -> [u8; 32]
//! attest::verifier::verify(&Submission, attestation_certificate_der: Option<&[u8]>, nonce: Option<&[u8]>) -> quote::Report
//!     // Report {verdicts: Vec<Verdict>, boot: Option<BootFacts>} serde; .passed() -> bool; .response() -> QuoteResponse code
//! attest::verifier::certs_answer(), nonce_answer(&[u8]), quote_answer(..), store_keys_answer(..) -> ZAttestResponse
//! ```
