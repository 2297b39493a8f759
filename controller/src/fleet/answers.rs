//! What machines are told in the two flights when it is no grant.

use std::time::Duration;

use onboarding::enrol::verifier::{Evidence, Judged};
use onboarding::enrol::{EnrolError, MachineId};
use onboarding::quote::Check;
use protocol::enrolment::wire::answer::Kind;
use protocol::enrolment::wire::{Answer, Reason, Refusal, Wait};

use super::admission::Decision;

/// An answer that is not a grant.
pub(super) fn refusal(reason: Reason, text: impl Into<String>) -> Answer {
    let retry_seconds = match reason {
        Reason::Busy => 10,
        Reason::Challenge => 5,
        Reason::Denied => 120,
        _ => 60,
    };
    Answer {
        kind: Some(Kind::Refusal(Refusal {
            reason: reason.into(),
            text: text.into(),
            retry_seconds,
        })),
    }
}

pub(super) fn busy() -> Answer {
    refusal(Reason::Busy, "the controller is busy; trying again")
}

/// What to tell a device whose message failed. What failed inside the controller is for its log.
pub(super) fn failed(error: &EnrolError) -> Answer {
    match error.reason() {
        Reason::Busy => {
            tracing::error!(%error, "enrolment");
            busy()
        }
        reason => {
            tracing::info!(%error, "enrolment: a message was refused");
            refusal(reason, error.to_string())
        }
    }
}

/// The refusal of a proof that does not hold.
pub(super) fn unproven(evidence: &Evidence, judged: &Judged) -> Answer {
    let machine = evidence.machine_id();
    let mut texts = Vec::new();
    for failed in judged.report.failures() {
        tracing::warn!(%machine, verdict = %failed, "enrolment: a proof does not hold");
        texts.push(failed.check.claim());
    }
    let stale = [Check::Challenge, Check::Hello]
        .into_iter()
        .any(|check| judged.report.failed(check));
    let reason = if stale {
        Reason::Challenge
    } else {
        Reason::Proof
    };
    let text = match texts.as_slice() {
        [] => "the proof is not complete".to_owned(),
        _ => format!("this does not hold: {}", texts.join("; ")),
    };
    refusal(reason, text)
}

/// What a machine is told that does not become a device now; `retry` is how soon one that waits asks again.
pub(super) fn hold(
    decision: &Decision,
    machine: &MachineId,
    reason: &str,
    retry: Duration,
) -> Answer {
    if matches!(decision, Decision::Refuse { .. }) {
        return refusal(
            Reason::Denied,
            format!("{reason}; an operator can let it in all the same"),
        );
    }
    tracing::info!(%machine, reason, "a machine waits");
    Answer {
        kind: Some(Kind::Wait(Wait {
            retry_seconds: u32::try_from(retry.as_secs()).unwrap_or(u32::MAX),
            reason: format!("an operator has to approve this machine: {reason}"),
        })),
    }
}
