//! The checks over a quote. Pure: no clock, no store, no TPM. That a nonce is used once and in time, that a reset count
//! does not go back, and what the PCRs may be are questions of policy, asked by the caller, who has a memory.

use protocol::keys::VerifyingKey;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use super::attest::{BankSelection, CERTIFY, GENERATED, QUOTE, Statement, parse};
use super::{Attest, Bench, Check, Evidence, Outcome, Report};
use crate::eventlog;

/// TPM_ALG_SHA256 and PCRs 0 to 15.
const ASKED: BankSelection = BankSelection {
    algorithm: 0x000b,
    pcrs: 0xffff,
};

/// The PCRs that firmware, boot loader and UKI stub extend, and nobody after them: here the event log must explain the
/// values. The running system extends the others: 10 (the kernel's IMA), 11 and 15 (systemd's boot phases, machine id, and
/// volumes; see the UAPI Group's Linux TPM PCR Registry), in logs of its own.
pub const MEASURED_BY_FIRMWARE: [u32; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14];

/// What the verifier knows beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The attestation certificate that this device registered, DER. `None`: it never registered one.
    pub attestation_certificate: Option<&'a [u8]>,
    /// Whether the device is known to have a TPM, certificate or not: it proved its keys when it enrolled.
    pub has_tpm: bool,
    /// The nonce that was given out to it. `None`: none, or not any more.
    pub nonce: Option<&'a [u8]>,
}

/// What a quote is asked, wherever the key is known from.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// The attestation key's point; or what there is instead, in words.
    pub(crate) key: Result<[u8; 65], String>,
    /// What the quote must be over. `None`: nothing that was given out, or not any more.
    pub(crate) nonce: Option<&'a [u8]>,
    /// What that check is called.
    pub(crate) nonce_check: Check,
    /// Why there is no event log although one was sent.
    pub(crate) log_fault: Option<&'a str>,
}

/// Checks a quote. `evidence` is `None` if the device sent none.
#[must_use]
pub fn verify(evidence: Option<&Evidence>, expected: Expected<'_>) -> Report {
    let mut bench = Bench::default();
    let boot = bench.run(evidence, expected);
    Report {
        verdicts: bench.verdicts,
        boot,
    }
}

impl Bench {
    fn run(
        &mut self,
        evidence: Option<&Evidence>,
        expected: Expected<'_>,
    ) -> Option<super::BootFacts> {
        let Some(evidence) = evidence else {
            // A device that once had a TPM must not become one without by leaving the quote out.
            if expected.has_tpm || expected.attestation_certificate.is_some() {
                self.fail(
                    Check::Evidence,
                    "a quote, since this device has an attestation key",
                    "none",
                );
            } else {
                self.skip(&[Check::Evidence], "the device has no TPM");
            }
            return None;
        };
        let key = expected.attestation_certificate.map_or_else(
            || Err("none".to_owned()),
            |der| match VerifyingKey::from_certificate_der(der) {
                Ok(VerifyingKey::P256(point)) => Ok(point),
                Ok(VerifyingKey::Rsa(_)) => Err("an RSA key".to_owned()),
                Err(error) => Err(error.to_string()),
            },
        );
        self.quote(
            evidence,
            &Question {
                key,
                nonce: expected.nonce,
                nonce_check: Check::Nonce,
                log_fault: None,
            },
        )
    }

    /// The checks of a quote that is there.
    pub(crate) fn quote(
        &mut self,
        evidence: &Evidence,
        question: &Question<'_>,
    ) -> Option<super::BootFacts> {
        self.say(Check::Evidence, Outcome::Pass);
        let key = match &question.key {
            Ok(key) => {
                self.say(Check::AttestationKey, Outcome::Pass);
                Some(key)
            }
            Err(seen) => {
                self.fail(
                    Check::AttestationKey,
                    "a P-256 key, known before the quote",
                    seen,
                );
                None
            }
        };
        let attest = match parse(&evidence.attest) {
            Ok(attest) => attest,
            Err(error) => {
                self.fail(Check::Structure, "a TPMS_ATTEST", error.to_string());
                self.skip(
                    &[
                        Check::Kind,
                        Check::Signature,
                        question.nonce_check,
                        Check::PcrSelection,
                        Check::PcrDigest,
                        Check::EventLog,
                        Check::EventLogReplay,
                    ],
                    "the quote cannot be read",
                );
                return None;
            }
        };
        self.compare(
            Check::Structure,
            &format!("magic number {GENERATED:#010x}"),
            &format!("magic number {:#010x}", attest.magic),
        );
        self.signature(evidence, key);
        self.nonce(&attest, question);
        self.pcrs(&attest, evidence);
        self.event_log(evidence, question.log_fault);
        Some(attest.boot)
    }

    fn signature(&mut self, evidence: &Evidence, key: Option<&[u8; 65]>) {
        let Some(key) = key else {
            self.skip(&[Check::Signature], "there is no key to check it with");
            return;
        };
        let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
            .verify(&evidence.attest, &evidence.signature);
        match verified {
            Ok(()) => {
                self.say(Check::Signature, Outcome::Pass);
            }
            Err(_) => self.fail(
                Check::Signature,
                format!("a signature by {}", short(key)),
                "one by another key, or over other bytes",
            ),
        }
    }

    fn nonce(&mut self, attest: &Attest, question: &Question<'_>) {
        match question.nonce {
            // Nonces are not secrets of the verifier: they were sent in clear, so comparing them takes no care for time.
            Some(nonce) => {
                self.compare(
                    question.nonce_check,
                    &hex::encode(nonce),
                    &hex::encode(&attest.extra_data),
                );
            }
            None => self.fail(
                question.nonce_check,
                "a nonce that this controller gave out and that is not used up",
                hex::encode(&attest.extra_data),
            ),
        }
    }

    fn pcrs(&mut self, attest: &Attest, evidence: &Evidence) {
        let (selection, digest) = match &attest.statement {
            Statement::Quote { selection, digest } => (selection, digest),
            other => {
                let kind = match other {
                    Statement::Other(kind) => *kind,
                    _ => CERTIFY,
                };
                self.fail(
                    Check::Kind,
                    format!("a quote ({QUOTE:#06x})"),
                    format!("{kind:#06x}"),
                );
                self.skip(
                    &[Check::PcrSelection, Check::PcrDigest],
                    "the statement is not a quote",
                );
                return;
            }
        };
        self.say(Check::Kind, Outcome::Pass);
        let given: Vec<u32> = evidence.pcrs.iter().map(|(index, _)| *index).collect();
        let asked: Vec<u32> = (0..16).collect();
        let outcome = if *selection == [ASKED] && given == asked {
            Outcome::Pass
        } else {
            Outcome::Fail {
                expected: "PCRs 0 to 15 of the SHA-256 bank".to_owned(),
                seen: format!("{}, with values of PCRs {given:?}", selected(selection)),
            }
        };
        self.say(Check::PcrSelection, outcome);
        let mut values = Vec::with_capacity(evidence.pcrs.len() * 32);
        for (_, value) in &evidence.pcrs {
            values.extend_from_slice(value);
        }
        let computed = ring::digest::digest(&ring::digest::SHA256, &values);
        self.compare(
            Check::PcrDigest,
            &hex::encode(digest),
            &hex::encode(computed.as_ref()),
        );
    }

    fn event_log(&mut self, evidence: &Evidence, fault: Option<&str>) {
        if let Some(fault) = fault {
            self.fail(Check::EventLog, "a crypto-agile event log", fault);
            self.skip(&[Check::EventLogReplay], "the event log cannot be read");
            return;
        }
        let Some(bytes) = &evidence.event_log else {
            self.skip(
                &[Check::EventLog, Check::EventLogReplay],
                "the device sent no event log",
            );
            return;
        };
        let log = match eventlog::parse(bytes) {
            Ok(log) => log,
            Err(error) => {
                self.fail(
                    Check::EventLog,
                    "a crypto-agile event log",
                    error.to_string(),
                );
                self.skip(&[Check::EventLogReplay], "the event log cannot be read");
                return;
            }
        };
        let Some(replayed) = eventlog::replay(&log) else {
            self.fail(
                Check::EventLog,
                "digests of the SHA-256 bank",
                format!("{:?} only", log.algorithms),
            );
            self.skip(
                &[Check::EventLogReplay],
                "the event log does not speak of the SHA-256 bank",
            );
            return;
        };
        self.say(Check::EventLog, Outcome::Pass);
        let (mut expected, mut seen) = (vec![], vec![]);
        for (index, value) in &evidence.pcrs {
            let told = usize::try_from(*index)
                .ok()
                .and_then(|index| replayed.get(index));
            if MEASURED_BY_FIRMWARE.contains(index) && told != Some(value) {
                expected.push(format!("PCR {index} = {}", hex::encode(value)));
                seen.push(format!(
                    "PCR {index} = {}",
                    told.map_or_else(String::new, hex::encode)
                ));
            }
        }
        self.compare(
            Check::EventLogReplay,
            &expected.join(", "),
            &seen.join(", "),
        );
    }
}

fn selected(selection: &[BankSelection]) -> String {
    if selection.is_empty() {
        return "no PCRs".to_owned();
    }
    selection
        .iter()
        .map(|bank| format!("bank {:#06x} PCR bits {:#08x}", bank.algorithm, bank.pcrs))
        .collect::<Vec<_>>()
        .join(" and ")
}

/// A key by the beginning of its point's hash.
fn short(key: &[u8; 65]) -> String {
    let digest = hex::encode(protocol::keys::sha256(key));
    format!("key {}", digest.get(..16).unwrap_or_default())
}

#[cfg(test)]
mod tests;
