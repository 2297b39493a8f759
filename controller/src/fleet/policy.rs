//! Policies of attestation: which one is a machine's, what it makes of a boot, and accepting a model's firmware.
//!
//! The operator's object and the verifier's policy have the same JSON; what it means is the verifier's to say (`onboarding::policy`).

use jiff::Timestamp;
use onboarding::attest::verifier::Submission;
use onboarding::policy::{self, Boot as JudgedBoot, FirmwareValues, Policy, SignedReference};
use onboarding::quote::{Check, Evidence, Outcome, Report, Verdict};
use operator_api::{
    AcceptFirmwareRequest, AcceptedFirmware, AttestationPolicy, AttestationPolicySpec, Device,
    Object as _, VerdictOutcome,
};
use protocol::link::ServerMessage;

use super::boots::{name as boot_name, unpack};
use super::objects::Written;
use super::{Fault, Fleet};
use crate::store::{boots, identities};

/// A policy as the verifier takes it.
pub struct Ruling {
    /// Its name.
    pub name: String,
    /// What it says.
    pub policy: Policy,
}

/// What is known of policies.
#[derive(Default)]
pub struct Rulings {
    /// Policies, those that say most about a machine first.
    rulings: Vec<Ruling>,
    /// References of all images that were imported.
    pub references: Vec<SignedReference>,
}

/// Reads an operator's policy as the verifier does.
pub(super) fn read(spec: &AttestationPolicySpec) -> Result<Policy, (&'static str, String)> {
    let json = serde_json::to_vec(spec).map_err(|error| ("spec", error.to_string()))?;
    Policy::parse(&json).map_err(|error| ("spec", error.to_string()))
}

impl Rulings {
    /// Takes what was admitted; what can no longer be read counts for nothing, and the log says so.
    pub(super) fn new(
        policies: Vec<AttestationPolicy>,
        documents: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut policies = policies;
        let says = |policy: &AttestationPolicy| {
            let machines = &policy.spec.machines;
            usize::from(machines.manufacturer.is_some()) + usize::from(machines.product.is_some())
        };
        policies.sort_by(|a, b| (says(b), &a.metadata.name).cmp(&(says(a), &b.metadata.name)));
        let mut rulings = Vec::new();
        for object in policies {
            match read(&object.spec) {
                Ok(policy) => rulings.push(Ruling {
                    name: object.metadata.name,
                    policy,
                }),
                Err((_, error)) => {
                    tracing::error!(policy = object.metadata.name, error, "a stored policy");
                }
            }
        }
        let mut references = Vec::new();
        for (name, document) in documents {
            match SignedReference::open(document.as_bytes()) {
                Ok(reference) => references.push(reference),
                Err(error) => tracing::error!(reference = name, %error, "a stored reference"),
            }
        }
        Self {
            rulings,
            references,
        }
    }

    /// The policy for a machine.
    #[must_use]
    pub fn of(&self, manufacturer: &str, product: &str) -> Option<&Ruling> {
        self.rulings
            .iter()
            .find(|ruling| ruling.policy.is_for(manufacturer, product))
    }

    /// Adds the policy's verdicts to a report. Gives the policy, if there is one for the machine.
    ///
    /// A fleet without any policy trusts every boot that its log explains, and says so. Once there is one, a machine that none is for is
    /// not trusted: what it says that it is would otherwise choose how it is judged.
    pub(super) fn judge(
        &self,
        report: &mut Report,
        (manufacturer, product): (&str, &str),
        submission: &Submission,
    ) -> Option<&Ruling> {
        let ruling = self.of(manufacturer, product);
        report.verdicts.push(Verdict {
            check: Check::Policy,
            outcome: match ruling {
                Some(_) => Outcome::Pass,
                None if self.rulings.is_empty() => Outcome::Warn {
                    expected: "a policy".to_owned(),
                    seen: "none at all: every boot that its log explains is trusted".to_owned(),
                },
                None => Outcome::NotApplicable {
                    reason: format!("no policy is for {manufacturer} {product}"),
                },
            },
        });
        let ruling = ruling?;
        // What came of the boot stands in the verdicts.
        let _ = policy::judge(
            report,
            &ruling.policy,
            &self.references,
            submission.evidence.as_ref(),
            &submission.versions.firmware,
        );
        Some(ruling)
    }

    /// What the firmware of a boot measured; in words why that cannot be said.
    fn firmware(&self, kept: &boots::Kept, version: &str) -> Result<FirmwareValues, String> {
        let mut pcrs: Vec<(u32, [u8; 32])> = Vec::new();
        for (number, value) in &kept.seen.pcrs {
            let mut bytes = [0; 32];
            let number = number.parse().map_err(|_| "a PCR's number".to_owned())?;
            hex::decode_to_slice(value, &mut bytes).map_err(|_| "a PCR's value".to_owned())?;
            pcrs.push((number, bytes));
        }
        pcrs.sort_unstable();
        let evidence = Evidence {
            attest: Vec::new(),
            signature: Vec::new(),
            pcrs,
            event_log: kept.seen.event_log.as_deref().and_then(unpack),
        };
        let boot = JudgedBoot::of(Some(&evidence), version).map_err(|error| error.to_string())?;
        let known = self.references.iter().map(SignedReference::reference);
        FirmwareValues::of(&boot, known)
    }

    /// The same as operators see it.
    pub(super) fn shown_firmware(
        &self,
        kept: &boots::Kept,
    ) -> Option<operator_api::FirmwareValues> {
        let values = self.firmware(kept, "").ok()?;
        serde_json::from_value(serde_json::to_value(values).ok()?).ok()
    }
}

impl Fleet {
    /// Takes the tokens of all devices away, so that each attests anew: what is believed of a boot has changed.
    pub(super) fn attest_anew(&self) {
        self.believed.drop_all();
        for entry in self.registry.all() {
            entry.state().token = None;
            entry.config_changed();
            self.links.send(entry.id, ServerMessage::ConfigChanged);
        }
    }

    /// Accepts the firmware of a device's last boot for all machines that a policy is for.
    ///
    /// # Errors
    /// [`Fault::NotFound`]; [`Fault::Conflict`] if the boot is not one to learn from.
    pub async fn accept_firmware(
        &self,
        name: &str,
        request: &AcceptFirmwareRequest,
    ) -> Result<Written<AttestationPolicy>, Fault> {
        let what = format!("accepting the firmware of device `{}`", request.device);
        let policy: AttestationPolicy = self.get(name).await?;
        let device: Device = self.get(&request.device).await?;
        let Some(id) = device.id() else {
            return Err(Fault::Internal(format!("{what}: it has no uid")));
        };
        let trust = self.trust().await?;
        let mut reader = self.store.read().await?;
        let ground = identities::ground(&mut reader, id).await?;
        let kept = boots::list(&mut reader, id).await?;
        drop(reader);
        let facts = ground.facts.unwrap_or_default();
        let (manufacturer, product) = model(&facts, &device);
        let fits = read(&policy.spec).is_ok_and(|policy| policy.is_for(manufacturer, product));
        if !fits {
            return Err(Fault::Conflict(format!(
                "{what}: policy `{name}` is not for {manufacturer} {product}"
            )));
        }
        let held = |kept: &&boots::Kept| can_be_learned_from(&kept.seen.attestation.verdicts);
        let last = match request.boot.as_str() {
            "" => kept.iter().find(held).ok_or_else(|| {
                Fault::Conflict(format!(
                    "{what}: no boot of it was seen whose quote and event log hold"
                ))
            }),
            // The one that a person has looked at, whatever was booted since.
            name => kept
                .iter()
                .find(|kept| boot_name(&request.device, kept) == name)
                .ok_or_else(|| Fault::Conflict(format!("{what}: no boot `{name}` of it is kept")))
                .and_then(|kept| {
                    Some(kept).filter(held).ok_or_else(|| {
                        Fault::Conflict(format!(
                            "{what}: quote or event log of boot `{name}` do not hold"
                        ))
                    })
                }),
        }?;
        let values = trust
            .rulings
            .firmware(last, &facts.firmware_version)
            .map_err(|why| Fault::Conflict(format!("{what}: {why}")))?;
        let values: operator_api::FirmwareValues = serde_json::to_value(values)
            .and_then(serde_json::from_value)
            .map_err(|error| Fault::Internal(format!("{what}: {error}")))?;
        let mut changed = policy;
        let known = changed
            .spec
            .firmware
            .iter()
            .any(|accepted| accepted.values == values);
        if !known {
            let name = match request.name.as_str() {
                "" => format!(
                    "{} of {}",
                    Timestamp::now().strftime("%Y-%m-%d"),
                    request.device
                ),
                name => name.to_owned(),
            };
            changed
                .spec
                .firmware
                .push(AcceptedFirmware { name, values });
        }
        let version = changed.metadata.resource_version.clone();
        self.put(name, changed, Some(&version)).await
    }
}

/// Whether a boot's quote is its TPM's own, of just then, and explained by the event log. What policy says to it is what acceptance is about.
fn can_be_learned_from(verdicts: &[operator_api::Verdict]) -> bool {
    let passed = |check: Check| {
        verdicts.iter().any(|verdict| {
            named(verdict) == Some(check) && verdict.outcome == VerdictOutcome::Passed
        })
    };
    let odd = verdicts.iter().any(|verdict| {
        verdict.outcome == VerdictOutcome::Failed
            && !named(verdict).is_some_and(Check::is_of_policy)
    });
    !odd && [
        Check::AttestationKey,
        Check::Structure,
        Check::Signature,
        Check::PcrSelection,
        Check::PcrDigest,
        Check::EventLogReplay,
    ]
    .into_iter()
    .all(passed)
        && (passed(Check::Nonce) || passed(Check::Transcript))
}

/// The check of a verdict that is kept; nothing for one of another version.
fn named(verdict: &operator_api::Verdict) -> Option<Check> {
    serde_json::from_value(verdict.check.as_str().into()).ok()
}

/// Maker and model of a device: as it said when it enrolled, or as it reports.
pub(super) fn model<'a>(
    facts: &'a operator_api::MachineFacts,
    device: &'a Device,
) -> (&'a str, &'a str) {
    let hardware = &device.status.hardware;
    let pick = |said: &'a str, reported: &'a str| if said.is_empty() { reported } else { said };
    (
        pick(&facts.manufacturer, &hardware.manufacturer),
        pick(&facts.product, &hardware.product_name),
    )
}

#[cfg(test)]
mod tests {
    use operator_api::{AcceptedReferences, PolicyAction, PolicyMachines};

    use super::*;

    /// A key on the curve: the group's generator (SEC 2, section 2.4.2).
    const KEY: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

    fn policy(name: &str, manufacturer: Option<&str>, product: Option<&str>) -> AttestationPolicy {
        AttestationPolicy::new(
            name,
            AttestationPolicySpec {
                machines: PolicyMachines {
                    manufacturer: manufacturer.map(str::to_owned),
                    product: product.map(str::to_owned),
                },
                references: AcceptedReferences {
                    release_keys: vec![KEY.to_owned()],
                    variants: vec!["production".to_owned()],
                    ..AcceptedReferences::default()
                },
                firmware: Vec::new(),
                require_secure_boot: true,
                revocation_lists: Vec::new(),
                denied_firmware: vec!["1.*".to_owned()],
                actions: [("firmware".to_owned(), PolicyAction::Warn)].into(),
                keep_running: true,
                max_age_minutes: 60,
            },
        )
    }

    #[test]
    fn the_policy_that_says_most_counts() {
        let rulings = Rulings::new(
            vec![
                policy("all", None, None),
                policy("b-model", None, Some("NUC*")),
                policy("a-maker", Some("Maker"), None),
                policy("both", Some("Maker"), Some("NUC*")),
            ],
            [],
        );
        for (manufacturer, product, name) in [
            ("Maker", "NUC 7", "both"),
            ("Maker", "Other", "a-maker"),
            ("Other", "NUC 7", "b-model"),
            ("Other", "Other", "all"),
        ] {
            assert_eq!(rulings.of(manufacturer, product).unwrap().name, name);
        }
    }

    #[test]
    fn what_the_verifier_does_not_take_is_not_admitted() {
        assert!(read(&policy("a", None, None).spec).is_ok());
        let changes: [fn(&mut AttestationPolicySpec); 4] = [
            |spec| spec.max_age_minutes = 0,
            |spec| spec.references.release_keys.clear(),
            |spec| spec.references.variants = vec!["other".to_owned()],
            |spec| spec.actions = [("quote".to_owned(), PolicyAction::Warn)].into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut spec = policy("a", None, None).spec;
            change(&mut spec);
            assert!(read(&spec).is_err(), "change {number}");
        }
    }
}
