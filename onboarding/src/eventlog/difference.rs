//! What is not as it was: the events of one boot against those of another, in words for people.
//!
//! ```text
//! log of the last good boot --.
//!                             |-- PCR by PCR: longest common run of events --> what is left on either side, paired where
//! log of this boot -----------'                                                it is the same thing with another digest
//! ```
//!
//! Events are compared by kind and digest, since nothing else of them is signed. What firmware writes beside a digest (an
//! address in memory, say) may differ from boot to boot and means nothing. Nothing here judges: policy does.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::describe::{detail, subject};
use super::{Algorithm, Event, EventLog, EventType};

/// Most changes that are put into words.
const MAX_CHANGES: usize = 200;
/// Most cells of the table in which common runs are looked for, a few hundred events on either side. Real boots differ in a
/// handful; what exceeds this has nothing in common and is paired in its order.
const MAX_CELLS: usize = 1 << 18;

/// One event that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "camelCase")]
pub enum Change {
    /// It was not there before.
    Added {
        /// Where it was measured to.
        pcr: u32,
        /// What it is, in words.
        what: String,
    },
    /// It is not there any more.
    Removed {
        /// Where it was measured to.
        pcr: u32,
        /// What it was, in words.
        what: String,
    },
    /// The same thing with another digest.
    Changed {
        /// Where it is measured to.
        pcr: u32,
        /// What it was, in words.
        from: String,
        /// What it is, in words.
        to: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { pcr, what } => write!(f, "PCR {pcr}: new: {what}"),
            Self::Removed { pcr, what } => write!(f, "PCR {pcr}: gone: {what}"),
            Self::Changed { pcr, from, to } => write!(f, "PCR {pcr}: was: {from}; is: {to}"),
        }
    }
}

/// Everything that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// By PCR, and then in the order of the boot; 200 at most.
    pub changes: Vec<Change>,
    /// How many more there are.
    pub more: usize,
}

impl Difference {
    /// Whether both boots were the same, as far as anything was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn say(&mut self, change: impl FnOnce() -> Change) {
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(change());
        } else {
            self.more += 1;
        }
    }
}

/// Compares two boots.
#[must_use]
pub fn difference(before: &EventLog, after: &EventLog) -> Difference {
    let mut found = Difference::default();
    for pcr in 0..=super::MAX_PCR {
        let (old, new) = (measured(before, pcr), measured(after, pcr));
        let start = old.iter().zip(&new).take_while(|(a, b)| same(a, b)).count();
        let (old, new) = (
            old.get(start..).unwrap_or_default(),
            new.get(start..).unwrap_or_default(),
        );
        let end = old
            .iter()
            .rev()
            .zip(new.iter().rev())
            .take_while(|(a, b)| same(a, b))
            .count();
        let (old, new) = (
            old.get(..old.len() - end).unwrap_or_default(),
            new.get(..new.len() - end).unwrap_or_default(),
        );
        // Between two events that both boots have lies a gap, and gaps are told one by one.
        let (mut done_old, mut done_new) = (0, 0);
        let mut common = common_run(old, new);
        common.push((old.len(), new.len()));
        for (at_old, at_new) in common {
            tell_gap(
                pcr,
                old.get(done_old..at_old).unwrap_or_default(),
                new.get(done_new..at_new).unwrap_or_default(),
                &mut found,
            );
            (done_old, done_new) = (at_old + 1, at_new + 1);
        }
    }
    found
}

/// What was measured into a PCR. Remarks are measured nowhere, but the one on the TPM's startup sets where PCR 0 begins.
fn measured(log: &EventLog, pcr: u32) -> Vec<&Event> {
    log.events
        .iter()
        .filter(|event| {
            event.pcr == pcr
                && (event.kind != EventType::NO_ACTION
                    || event.data.starts_with(super::replay::STARTUP_LOCALITY))
        })
        .collect()
}

fn same(one: &Event, other: &Event) -> bool {
    one.kind == other.kind
        && match one.kind {
            EventType::NO_ACTION => one.data == other.data,
            _ => one.digest(Algorithm::Sha256) == other.digest(Algorithm::Sha256),
        }
}

/// Places of a longest common subsequence, by the usual table of lengths.
fn common_run(old: &[&Event], new: &[&Event]) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    if (old.len() + 1).saturating_mul(width) > MAX_CELLS {
        return vec![];
    }
    // The length of the longest run of what begins at (i, j); lengths stay below the table's size, so 32 bits hold them.
    let mut lengths = vec![0_u32; (old.len() + 1) * width];
    let at = |lengths: &[u32], i: usize, j: usize| lengths.get(i * width + j).copied().unwrap_or(0);
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            let length = if same(a, b) {
                at(&lengths, i + 1, j + 1) + 1
            } else {
                at(&lengths, i + 1, j).max(at(&lengths, i, j + 1))
            };
            if let Some(cell) = lengths.get_mut(i * width + j) {
                *cell = length;
            }
        }
    }
    let (mut i, mut j, mut run) = (0, 0, vec![]);
    while let (Some(a), Some(b)) = (old.get(i), new.get(j)) {
        if same(a, b) {
            run.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if at(&lengths, i + 1, j) >= at(&lengths, i, j + 1) {
            i += 1;
        } else {
            j += 1;
        }
    }
    run
}

/// Tells what stands between two common events. What is about the same thing is a change; then what is of the same kind, in its order.
fn tell_gap(pcr: u32, old: &[&Event], new: &[&Event], found: &mut Difference) {
    let mut partner: Vec<Option<usize>> = vec![None; old.len()];
    let mut taken = vec![false; new.len()];
    // Pairing looks at each two, so it is left out where a gap is that long; then everything is gone and new.
    if old.len().saturating_mul(new.len()) <= MAX_CELLS {
        let about = |events: &[&Event]| events.iter().map(|e| subject(e)).collect::<Vec<_>>();
        let (old_about, new_about) = (about(old), about(new));
        for with_subject in [true, false] {
            for ((slot, before), about) in partner.iter_mut().zip(old).zip(&old_about) {
                if slot.is_some() || (with_subject && about.is_none()) {
                    continue;
                }
                let free = new.iter().zip(&new_about).zip(&mut taken).enumerate().find(
                    |(_, ((after, other), taken))| {
                        !**taken && before.kind == after.kind && (!with_subject || about == *other)
                    },
                );
                if let Some((index, (_, taken))) = free {
                    *taken = true;
                    *slot = Some(index);
                }
            }
        }
    }
    for (before, partner) in old.iter().zip(partner) {
        match partner.and_then(|index| new.get(index)) {
            Some(after) => found.say(|| Change::Changed {
                pcr,
                from: words(before),
                to: words(after),
            }),
            None => found.say(|| Change::Removed {
                pcr,
                what: words(before),
            }),
        }
    }
    for (after, taken) in new.iter().zip(taken) {
        if !taken {
            found.say(|| Change::Added {
                pcr,
                what: words(after),
            });
        }
    }
}

/// An event in words. Where the text is not what was measured, the digest is what tells two of them apart.
fn words(event: &Event) -> String {
    let described = super::describe(event);
    let text = detail(event);
    let digest = event
        .digest(Algorithm::Sha256)
        .map(hex::encode)
        .unwrap_or_default();
    let digest = digest.get(..16).unwrap_or_default();
    match described.vouched {
        Some(true) => text,
        Some(false) => format!("{text} - which is NOT what was measured (digest {digest}...)"),
        None => format!("{text}, digest {digest}..."),
    }
}

#[cfg(test)]
mod tests;
