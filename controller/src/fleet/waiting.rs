//! The waiting room: machines that have proven their keys, and what a person decides about them.

use onboarding::enrol::MachineId;
use operator_api::{
    FieldError, MachineMatch, Object as _, WaitingDecided, WaitingDecision, WaitingDecisionRequest,
    WaitingMachine, WaitingMachineSpec, WaitingVerb, is_dns_label, is_label,
};
use uuid::Uuid;

use super::{Fault, Fleet, admission};
use crate::store::waiting::{self, Decision, Waiting};

/// Digits of a machine's id that make its name, and that name it at least.
const NAME_DIGITS: usize = 12;
/// Most machines in one request.
const MAX_MACHINES: usize = 1000;
/// Most labels.
const MAX_LABELS: usize = 16;

fn name(machine: &MachineId) -> String {
    machine.to_string().chars().take(NAME_DIGITS).collect()
}

fn shown(waiting: Waiting) -> WaitingMachine {
    let mut machine = WaitingMachine::new(name(&waiting.machine), WaitingMachineSpec::default());
    machine.metadata.uid = Some(Uuid::new_v5(&Uuid::nil(), waiting.machine.bytes()));
    machine.metadata.creation_timestamp = waiting.status.first_seen;
    machine.metadata.labels = waiting.labels;
    machine.status = waiting.status;
    machine
}

/// Whether a text names a machine: its id or the beginning of it, or all of its words. Keys cost nothing to make, so a machine whose first
/// words are those of another can be made, and approved in its place.
fn names(text: &str, machine: &MachineId) -> bool {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.strip_prefix("sha256:").unwrap_or(&text);
    if digits.len() >= NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return machine.to_string().starts_with(digits);
    }
    let said: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c == '-')
        .filter(|word| !word.is_empty())
        .collect();
    let words = machine.words();
    let own: Vec<&str> = words.split(' ').collect();
    own == said
}

impl Fleet {
    /// All machines that wait, those that came first first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn waiting(&self) -> Result<Vec<WaitingMachine>, Fault> {
        let waiting = waiting::list(&mut *self.store.read().await?).await?;
        Ok(waiting.into_iter().map(shown).collect())
    }

    /// One machine.
    ///
    /// # Errors
    /// [`Fault::NotFound`]; [`Fault::Invalid`] if several have this name.
    pub async fn waiting_machine(&self, text: &str) -> Result<WaitingMachine, Fault> {
        let all = waiting::list(&mut *self.store.read().await?).await?;
        Ok(shown(one(&all, text)?.clone()))
    }

    /// Forgets a machine and what was decided about it.
    ///
    /// # Errors
    /// As [`Fleet::waiting_machine`].
    pub async fn forget_waiting(&self, text: &str) -> Result<WaitingMachine, Fault> {
        let mut writer = self.store.write().await?;
        let all = waiting::list(&mut writer).await?;
        let machine = one(&all, text)?.clone();
        waiting::remove(&mut writer, &machine.machine).await?;
        waiting::calm(&mut writer, &machine.machine).await?;
        writer.commit().await?;
        Ok(shown(machine))
    }

    /// Approves or denies machines.
    ///
    /// # Errors
    /// [`Fault::Invalid`], [`Fault::NotFound`]; nothing is decided then.
    pub async fn decide_waiting(
        &self,
        request: &WaitingDecisionRequest,
        by: &str,
    ) -> Result<WaitingDecided, Fault> {
        check(request)?;
        let mut writer = self.store.write().await?;
        let all = waiting::list(&mut writer).await?;
        let mut chosen = Vec::new();
        for text in &request.machines {
            chosen.push(one(&all, text)?);
        }
        if let Some(matching) = &request.matching {
            chosen.extend(fitting(&all, matching));
        }
        chosen.dedup_by_key(|waiting| waiting.machine);
        if request.name.is_some() && chosen.len() != 1 {
            return Err(Fault::field(
                "deciding about machines that wait",
                "name",
                format!("is for one machine; this is about {}", chosen.len()),
            ));
        }
        let decision = Decision {
            decision: match request.decision {
                WaitingVerb::Approve => WaitingDecision::Approved,
                WaitingVerb::Deny => WaitingDecision::Denied,
            },
            by,
            name: request.name.as_deref().unwrap_or_default(),
            labels: &request.labels,
        };
        for waiting in &chosen {
            waiting::decide(&mut writer, &waiting.machine, decision).await?;
            if request.decision == WaitingVerb::Deny {
                waiting::calm(&mut writer, &waiting.machine).await?;
            }
        }
        waiting::bound_decided(&mut writer).await?;
        writer.commit().await?;
        let machines: Vec<String> = chosen
            .iter()
            .map(|waiting| name(&waiting.machine))
            .collect();
        for machine in &machines {
            tracing::info!(machine, decision = %decision.decision, by, "decided");
        }
        Ok(WaitingDecided { machines })
    }
}

fn check(request: &WaitingDecisionRequest) -> Result<(), Fault> {
    let mut errors = Vec::new();
    if request.machines.is_empty() && request.matching.is_none() {
        errors.push(FieldError::new(
            "machines",
            "which? Name machines, or say what they must match",
        ));
    }
    if request.machines.len() > MAX_MACHINES {
        errors.push(FieldError::new(
            "machines",
            format!("at most {MAX_MACHINES} at once"),
        ));
    }
    if request
        .name
        .as_ref()
        .is_some_and(|name| !is_dns_label(name))
    {
        errors.push(FieldError::new(
            "name",
            "must be lower-case letters, digits and `-`, at most 63",
        ));
    }
    let bad = request
        .labels
        .iter()
        .any(|(key, value)| !is_label(key, value));
    if bad || request.labels.len() > MAX_LABELS {
        errors.push(FieldError::new(
            "labels",
            format!("at most {MAX_LABELS}, of letters, digits, `-`, `_` and `.`"),
        ));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Fault::Invalid {
        detail: "deciding about machines that wait".to_owned(),
        errors,
    })
}

/// The one machine that a text names.
fn one<'a>(all: &'a [Waiting], text: &str) -> Result<&'a Waiting, Fault> {
    let mut found = all.iter().filter(|waiting| names(text, &waiting.machine));
    match (found.next(), found.next()) {
        (Some(waiting), None) => Ok(waiting),
        (Some(_), Some(_)) => Err(Fault::field(
            "finding a machine that waits",
            "machines",
            format!(
                "`{}` names several; give more of it",
                text.chars().take(80).collect::<String>()
            ),
        )),
        (None, _) => Err(Fault::NotFound {
            kind: WaitingMachine::KIND,
            name: text.chars().take(80).collect(),
        }),
    }
}

/// Those about which nothing was decided, and that fit.
fn fitting<'a>(
    all: &'a [Waiting],
    matching: &'a MachineMatch,
) -> impl Iterator<Item = &'a Waiting> {
    all.iter().filter(|waiting| {
        waiting.status.decision == WaitingDecision::Waiting
            && admission::matches(matching, waiting.status.level, &waiting.status.hardware)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_its_id_or_its_words() {
        let machine = MachineId::from_bytes([0xab; 32]);
        let words = machine.words();
        for text in [
            "ab".repeat(32),
            format!("sha256:{}", "ab".repeat(32)),
            "AB".repeat(6),
            words.clone(),
            words.replace(' ', "-"),
            words.replace(' ', "  "),
        ] {
            assert!(names(&text, &machine), "{text}");
        }
        for text in [
            "",
            "abab",
            "cdcdcdcdcdcd",
            &words.split(' ').take(7).collect::<Vec<_>>().join(" "),
            &words.split(' ').skip(1).collect::<Vec<_>>().join(" "),
            &format!("{words} {words}"),
        ] {
            assert!(!names(text, &machine), "{text}");
        }
    }
}
