//! What a machine may have booted, and what follows if it is something else.
//!
//! ```text
//! image build --signs--> Reference: boot loader, UKI, kernel, command line, initramfs      (known ahead)
//! canary boots --read--> FirmwareValues --a person accepts--> Policy.firmware              (cannot be known ahead)
//!
//! Evidence --Boot::of (log parsed, replayed against the quoted PCRs)--> Boot
//! check(Policy, references, Boot) --> one verdict a check; judge() does both and appends the verdicts to the quote's report
//! ```
//!
//! The quote comes first: whoever calls this has checked (`quote::verify`) that the PCR values are what this machine's TPM signed just
//! now. From there everything leads over digests. An event's kind and data are whatever the log says; its digest is what the replay
//! proves. So each check asks what the data could be *at most*, given its digest: see [`check`](check()) for how lies about kinds are met.
//!
//! | check | asks |
//! |---|---|
//! | `bootApplications` | PCR 4: is every program of an accepted image, or of accepted firmware? |
//! | `commandLine` | PCR 12, 9: is it the command line of the image that was started, and nothing else? |
//! | `initramfs` | PCR 9, 13: is it the initramfs of that image, and nothing added? |
//! | `kernelImageSections` | PCR 11: are the sections those of that image? |
//! | `secureBoot` | PCR 7: is it on? |
//! | `revocationList` | PCR 7: is `dbx` one that was accepted? |
//! | `firmware` | PCR 0, 2, 3, and 7 without these: were they accepted for this model? |
//! | `firmwareVersion` | is it not on the list of those to be shunned? |
//!
//! Pure: no clock, no store. Which policy is a machine's, and which references there are, the controller knows.

mod boot;
mod check;
mod firmware;
mod pattern;
mod reference;
mod release;
mod spec;
pub mod stub;
mod version;

pub use boot::{Boot, Unbelieved};
pub use check::{check, judge};
pub use firmware::FirmwareValues;
pub use pattern::{NotAPattern, Pattern};
pub use reference::{PAYLOAD_TYPE, Reference, ReferenceError, SignedReference, Variant};
pub use release::{EnvelopeError, MAX_ENVELOPE, NotAKey, ReleaseKey};
pub use spec::{
    AcceptedFirmware, AcceptedReferences, Action, Actions, MAX_POLICY, Machines, Policy,
    PolicyError,
};
pub use version::{ImageVersion, NotAVersion, Versions};

#[cfg(test)]
mod tests;
