//! Whom and what the fleet believes, in memory: makers of TPMs and of machines, rules, policies. Read from the store when it is needed, and dropped when an
//! operator changes any of it.

use std::sync::{Arc, Mutex, PoisonError};

use onboarding::enrol::endorsement::Makers;
use onboarding::enrol::revocation;
use operator_api::{
    AttestationPolicy, BootReference, EnrolmentRule, Makes, TpmMaker, TpmMakerSpec,
};

use super::policy::Rulings;
use super::{Fleet, admission};
use crate::store::{StoreError, objects};

/// What is believed.
pub struct Trust {
    /// Makers of TPMs.
    pub makers: Makers,
    /// Makers of machines.
    pub machine_makers: Makers,
    /// Rules, in the order in which they are asked.
    pub rules: Vec<EnrolmentRule>,
    /// Policies of attestation, and references of images.
    pub rulings: Rulings,
    /// Which policies and references these are.
    pub stamp: objects::Stamp,
}

/// What is believed, as far as it was read.
#[derive(Default)]
pub struct Cache(Mutex<Slot>);

#[derive(Default)]
struct Slot {
    /// Counts changes, so that what was read before a change is not kept after it.
    epoch: u64,
    trust: Option<Arc<Trust>>,
}

impl Cache {
    fn slot(&self) -> std::sync::MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what was read.
    pub fn drop_all(&self) {
        let mut slot = self.slot();
        slot.epoch = slot.epoch.wrapping_add(1);
        slot.trust = None;
    }
}

/// A maker's certificates, with what it has revoked; or the field that is wrong, and what is wrong with it.
pub(super) fn read_maker(spec: &TpmMakerSpec) -> Result<Makers, (String, String)> {
    let mut makers = Makers::from_pem(&spec.certificates)
        .map_err(|error| ("spec.certificates".to_owned(), error.to_string()))?;
    for (number, list) in spec.revocation_lists.iter().enumerate() {
        revocation::decode(list)
            .and_then(|der| makers.revoke(&der))
            .map_err(|error| (format!("spec.revocationLists[{number}]"), error.to_string()))?;
    }
    Ok(makers)
}

impl Fleet {
    /// What is believed now.
    pub(super) async fn trust(&self) -> Result<Arc<Trust>, StoreError> {
        let epoch = {
            let slot = self.believed.slot();
            if let Some(trust) = &slot.trust {
                return Ok(trust.clone());
            }
            slot.epoch
        };
        let mut reader = self.store.read().await?;
        let mut rules: Vec<EnrolmentRule> = objects::list(&mut reader).await?;
        admission::order(&mut rules);
        let (mut makers, mut machine_makers) = (Makers::none(), Makers::none());
        for maker in objects::list::<TpmMaker>(&mut reader).await? {
            // It was read when it was written. One that cannot be any more counts for nothing: without its revocations, less still.
            match read_maker(&maker.spec) {
                Ok(read) => match maker.spec.makes {
                    Makes::Tpms => makers.join(read),
                    Makes::Machines => machine_makers.join(read),
                },
                Err((field, error)) => {
                    let maker = &maker.metadata.name;
                    tracing::error!(
                        maker,
                        field,
                        error,
                        "a maker that cannot be read; it does not count"
                    );
                }
            }
        }
        // First: what is written between the two makes the stamp an old one, and the judgement void.
        let stamp = objects::stamp_of_policies(&mut reader).await?;
        let policies: Vec<AttestationPolicy> = objects::list(&mut reader).await?;
        let references: Vec<BootReference> = objects::list(&mut reader).await?;
        let documents = references
            .into_iter()
            .map(|reference| (reference.metadata.name, reference.spec.document));
        let trust = Arc::new(Trust {
            makers,
            machine_makers,
            rules,
            rulings: Rulings::new(policies, documents),
            stamp,
        });
        let mut slot = self.believed.slot();
        if slot.epoch == epoch {
            // Of several who read the same at the same time, the first one's: whoever compares sees that nothing has changed.
            return Ok(slot.trust.get_or_insert(trust).clone());
        }
        Ok(trust)
    }
}
