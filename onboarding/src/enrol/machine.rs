//! Which machine it is around the TPM: what its maker says of it.
//!
//! ```text
//! endorsement key --opened the secret--> attestation key <--certify each other--> initial attestation key
//!        | certificate                                                                  | certificate
//! a TPM maker of the owner's                                    a machine maker of the owner's, and the machine's serial number
//! ```
//!
//! The certificate speaks of a point and not of what kind of key it is, and makers certify signing keys for the same machines (IDevID),
//! which would sign anything. So the device's attestation key must certify the initial one too: it is a restricted key in a genuine TPM, as
//! the endorsement certificate and the opened secret have shown, and the name that it signs holds the other's attributes. The initial key's
//! own statement shows the same from the other side. Both are over this session. A TPM that is not known to be genuine shows nothing by
//! that: its machine's key counts as not checked.

use protocol::enrolment::transcript::Transcript;
use protocol::enrolment::wire::Statement;

use super::certified::{Fault, point, says_of};
use super::endorsement::{Endorsed, Makers, named_serial};
use crate::quote::{Bench, Check, Outcome};
use crate::tpm::template::is_machine_key;
use crate::wire::Public;

/// What a device shows of its machine's maker.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// The initial attestation key.
    pub(super) public: Public,
    /// Its certificate, DER.
    pub(super) certificate: Vec<u8>,
    /// Certificates beside it.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) attestation_certified: Statement,
    pub(super) machine_certified: Statement,
}

/// What is known of the machine around a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineStanding {
    /// It shows nothing of its maker.
    Silent,
    /// It shows a certificate that proves nothing here: of a maker that the owner does not know, for no serial number, or beside a TPM that
    /// is not known to be genuine.
    Unproven,
    /// A maker that the owner trusts has certified the TPM, for a machine with another serial number than this one says.
    Another {
        /// The trusted authority to which the certificate leads.
        maker: String,
        /// The serial number in the certificate.
        serial: String,
    },
    /// A maker that the owner trusts has certified the TPM, for this machine.
    Known {
        /// The trusted authority to which the certificate leads.
        maker: String,
    },
}

/// What is judged, and what is known of it already.
pub(super) struct Case<'a> {
    pub(super) shown: Option<&'a Shown>,
    /// The device's attestation key.
    pub(super) attestation: &'a Public,
    /// The serial number that the machine says.
    pub(super) serial: &'a str,
    pub(super) transcript: &'a Transcript,
    /// Whether a maker that the owner trusts has certified the TPM's endorsement key.
    pub(super) genuine: bool,
}

/// Judges it, with a verdict for each of the three checks.
pub(super) fn judge(bench: &mut Bench, case: &Case<'_>, makers: &Makers) -> MachineStanding {
    let Some(shown) = case.shown else {
        bench.skip(
            &[
                Check::MachineCertificate,
                Check::MachineKey,
                Check::MachineSerial,
            ],
            "the machine's maker has left no certificate in the TPM",
        );
        return MachineStanding::Silent;
    };
    let maker = certificate(bench, shown, makers);
    let key = key(bench, shown, case);
    let Some(maker) = maker else {
        bench.skip(
            &[Check::MachineSerial],
            "there is no certificate of a trusted maker to compare it with",
        );
        return MachineStanding::Unproven;
    };
    match serial(bench, shown, case.serial) {
        Serial::Same if key => MachineStanding::Known { maker },
        Serial::Other(serial) if key => MachineStanding::Another { maker, serial },
        _ => MachineStanding::Unproven,
    }
}

/// The maker that vouches for the machine, if the owner trusts it.
fn certificate(bench: &mut Bench, shown: &Shown, makers: &Makers) -> Option<String> {
    let check = Check::MachineCertificate;
    match makers.judge_machine(&shown.public, &shown.certificate, &shown.chain) {
        Endorsed::Trusted { maker } => {
            bench.say(check, Outcome::Pass);
            Some(maker)
        }
        Endorsed::Untrusted { issuer } => {
            bench.skip(
                &[check],
                &format!(
                    "its issuer is not among the makers of machines that the owner trusts: {issuer}"
                ),
            );
            None
        }
        Endorsed::Refuted(what) => {
            bench.fail(
                check,
                "a certificate for the initial attestation key, signed by who it says and not revoked",
                what,
            );
            None
        }
    }
}

/// Whether the initial attestation key is in the TPM of the device's attestation key.
fn key(bench: &mut Bench, shown: &Shown, case: &Case<'_>) -> bool {
    let check = Check::MachineKey;
    match together(shown, case) {
        Err((expected, seen)) => {
            bench.fail(check, expected, seen);
            false
        }
        Ok(()) if case.genuine => bench.say(check, Outcome::Pass),
        Ok(()) => {
            bench.skip(
                &[check],
                "no maker that the owner trusts has certified the TPM, so what it says of its keys proves nothing",
            );
            false
        }
    }
}

fn together(shown: &Shown, case: &Case<'_>) -> Result<(), Fault> {
    let own = shown.public.p256_point().and_then(point);
    let (true, Some(own)) = (is_machine_key(&shown.public), own) else {
        return Err((
            "a restricted P-256 signing key, made in the TPM and fixed to it",
            format!("attributes {:#010x}", shown.public.attributes.0),
        ));
    };
    let Some(attestation) = case.attestation.p256_point().and_then(point) else {
        return Err(("an attestation key on P-256", "none".to_owned()));
    };
    let by = |whose: &'static str| {
        move |(expected, seen): Fault| (expected, format!("{seen} ({whose})"))
    };
    let name = case.attestation.name();
    says_of(&own, &shown.attestation_certified, &name, case.transcript)
        .map_err(by("the initial attestation key on the attestation key"))?;
    let name = shown.public.name();
    says_of(
        &attestation,
        &shown.machine_certified,
        &name,
        case.transcript,
    )
    .map_err(by("the attestation key on the initial one"))
}

enum Serial {
    Same,
    Other(String),
    Unnamed,
}

/// Whether the machine says the serial number that its maker has certified.
fn serial(bench: &mut Bench, shown: &Shown, said: &str) -> Serial {
    let check = Check::MachineSerial;
    let Some(certified) = named_serial(&shown.certificate) else {
        bench.skip(
            &[check],
            "the certificate of the machine's maker names no serial number",
        );
        return Serial::Unnamed;
    };
    if bench.compare(check, &format!("{certified:?}"), &format!("{said:?}")) {
        Serial::Same
    } else {
        Serial::Other(certified)
    }
}
