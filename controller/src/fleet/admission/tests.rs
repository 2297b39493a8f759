use operator_api::{EnrolmentRuleSpec, Object as _};
use uuid::Uuid;

use super::*;
use crate::store::manifests::Entry;

const OWN: MachineId = MachineId::from_bytes([1; 32]);
const OTHER: MachineId = MachineId::from_bytes([2; 32]);

fn device(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

fn applicant() -> Applicant {
    Applicant {
        machine: OWN,
        level: AttestationLevel::Bronze,
        facts: MachineFacts {
            manufacturer: "Maker".to_owned(),
            product: "NUC 7".to_owned(),
            serial: "SN-1".to_owned(),
            ..MachineFacts::default()
        },
        standing: MachineStanding::Silent,
        counters: Some(Counters {
            resets: 5,
            clock: 1000,
        }),
    }
}

fn memory() -> Memory<'static> {
    Memory {
        enrolled: None,
        lines: Vec::new(),
        person: None,
        others: Vec::new(),
        rules: &[],
        now: Timestamp::UNIX_EPOCH,
    }
}

fn enrolled() -> Enrolled {
    Enrolled {
        device: device(1),
        revoked: false,
        serial: "SN-1".to_owned(),
        model: ("Maker".to_owned(), "NUC 7".to_owned()),
        level: Some(AttestationLevel::Bronze),
        certified_serial: String::new(),
        counters: Some(Counters {
            resets: 4,
            clock: 9000,
        }),
    }
}

fn line(machine: Option<MachineId>, serial: &str, used: Option<DeviceId>) -> Line {
    Line {
        manifest: ManifestId(Uuid::from_u128(7)),
        entry: Entry {
            line: 2,
            machine,
            serial: serial.to_owned(),
            name: "press".to_owned(),
            labels: BTreeMap::new(),
        },
        device: used,
    }
}

fn person(decision: WaitingDecision) -> Option<Person> {
    Some(Person {
        decision,
        name: "by-hand".to_owned(),
        labels: BTreeMap::new(),
    })
}

fn rule(name: &str, priority: u32, effect: RuleEffect, matching: MachineMatch) -> EnrolmentRule {
    EnrolmentRule::new(
        name,
        EnrolmentRuleSpec {
            priority,
            effect,
            matching,
            labels: BTreeMap::new(),
            until: None,
        },
    )
}

/// The decision in one word with the name of the device, and the checks that failed.
fn outcome(applicant: &Applicant, memory: &Memory<'_>) -> (String, Vec<Check>) {
    let decided = decide(applicant, memory);
    let word = match decided.decision {
        Decision::Again(_) => "again".to_owned(),
        Decision::Admit(admitted) => format!("admit {}", admitted.name).trim().to_owned(),
        Decision::Wait { .. } => "wait".to_owned(),
        Decision::Refuse { .. } => "refuse".to_owned(),
        Decision::Deny { .. } => "deny".to_owned(),
    };
    let failed = decided
        .verdicts
        .iter()
        .filter(|verdict| failed(&verdict.outcome))
        .map(|verdict| verdict.check)
        .collect();
    (word, failed)
}

#[test]
fn what_becomes_of_a_machine_that_is_no_device() {
    use WaitingDecision::{Approved, Denied, Waiting};
    let none = Vec::new();
    let unique = vec![Check::EndorsementUnique];
    let serial = vec![Check::Serial];
    type Change = fn(&mut Memory<'static>);
    let table: [(&str, Change, &str, &[Check]); 14] = [
        ("unknown", |_| {}, "wait", &none),
        ("undecided", |m| m.person = person(Waiting), "wait", &none),
        (
            "approved",
            |m| m.person = person(Approved),
            "admit by-hand",
            &none,
        ),
        ("denied", |m| m.person = person(Denied), "deny", &none),
        (
            "by id",
            |m| m.lines = vec![line(Some(OWN), "", None)],
            "admit press",
            &none,
        ),
        (
            "by serial",
            |m| m.lines = vec![line(None, "SN-1", None)],
            "admit press",
            &none,
        ),
        (
            "by both",
            |m| m.lines = vec![line(Some(OWN), "SN-1", None)],
            "admit press",
            &none,
        ),
        (
            "moved board",
            |m| m.lines = vec![line(Some(OWN), "SN-2", None)],
            "refuse",
            &serial,
        ),
        (
            "posing, not there yet",
            |m| m.lines = vec![line(Some(OTHER), "SN-1", None)],
            "refuse",
            &unique,
        ),
        (
            "line used",
            |m| m.lines = vec![line(None, "SN-1", Some(device(9)))],
            "refuse",
            &none,
        ),
        (
            "second key",
            |m| m.others = vec![(device(9), OTHER)],
            "refuse",
            &unique,
        ),
        (
            "second key, approved",
            |m| {
                m.others = vec![(device(9), OTHER)];
                m.person = person(Approved);
            },
            "admit by-hand",
            &unique,
        ),
        (
            "denied, though in a manifest",
            |m| {
                m.lines = vec![line(Some(OWN), "", None)];
                m.person = person(Denied);
            },
            "deny",
            &none,
        ),
        (
            "own line before another's serial",
            |m| m.lines = vec![line(None, "SN-1", None), line(Some(OWN), "SN-1", None)],
            "admit press",
            &none,
        ),
    ];
    for (what, change, word, checks) in table {
        let mut memory = memory();
        change(&mut memory);
        assert_eq!(
            outcome(&applicant(), &memory),
            (word.to_owned(), checks.to_vec()),
            "{what}"
        );
    }
}

#[test]
fn a_serial_number_alone_lets_in_nothing_without_a_tpm() {
    let applicant = Applicant {
        level: AttestationLevel::None,
        ..applicant()
    };
    for (machine, word) in [(None, "wait"), (Some(OWN), "admit press")] {
        let memory = Memory {
            lines: vec![line(machine, "SN-1", None)],
            ..memory()
        };
        assert_eq!(outcome(&applicant, &memory).0, word, "{machine:?}");
    }
}

#[test]
fn an_alarm_names_the_device_that_is_posed_as() {
    let memory = Memory {
        others: vec![(device(9), OTHER)],
        ..memory()
    };
    let decided = decide(&applicant(), &memory);
    assert_eq!(decided.alarms, [device(9)]);
    let text = decided.verdicts[0].to_string();
    for shown in [OWN.to_string(), OTHER.to_string()] {
        assert!(text.contains(&shown), "both keys are shown: {text}");
    }
}

#[test]
fn what_becomes_of_a_machine_that_is_a_device() {
    type Change = fn(&mut Memory<'static>, &mut Enrolled);
    let table: [(&str, Change, &str, &[Check]); 10] = [
        ("as it was", |_, _| {}, "again", &[]),
        ("revoked", |_, e| e.revoked = true, "deny", &[]),
        (
            "revoked, though approved",
            |m, e| {
                e.revoked = true;
                m.person = person(WaitingDecision::Approved);
            },
            "deny",
            &[],
        ),
        (
            "TPM cleared",
            |_, e| {
                e.counters = Some(Counters {
                    resets: 6,
                    clock: 0,
                })
            },
            "wait",
            &[Check::ResetCount],
        ),
        (
            "clock set back",
            |_, e| {
                e.counters = Some(Counters {
                    resets: 5,
                    clock: 1001,
                })
            },
            "wait",
            &[Check::ResetCount],
        ),
        (
            "TPM cleared, approved",
            |m, e| {
                e.counters = Some(Counters {
                    resets: 6,
                    clock: 0,
                });
                m.person = person(WaitingDecision::Approved);
            },
            "again",
            &[Check::ResetCount],
        ),
        (
            "other board",
            |_, e| e.serial = "SN-0".to_owned(),
            "wait",
            &[Check::Serial],
        ),
        (
            "another model, by which another policy would judge it",
            |_, e| e.model.1 = "NUC 8".to_owned(),
            "wait",
            &[Check::Model],
        ),
        (
            "another maker, approved",
            |m, e| {
                e.model.0 = "Other".to_owned();
                m.person = person(WaitingDecision::Approved);
            },
            "again",
            &[Check::Model],
        ),
        (
            "other board than the manifest says",
            |m, _| m.lines = vec![line(Some(OWN), "SN-0", Some(device(1)))],
            "refuse",
            &[Check::Serial],
        ),
    ];
    for (what, change, word, checks) in table {
        let (mut memory, mut before) = (memory(), enrolled());
        change(&mut memory, &mut before);
        memory.enrolled = Some(before);
        assert_eq!(
            outcome(&applicant(), &memory),
            (word.to_owned(), checks.to_vec()),
            "{what}"
        );
    }
}

fn another(serial: &str) -> MachineStanding {
    MachineStanding::Another {
        maker: "CN=Maker".to_owned(),
        serial: serial.to_owned(),
    }
}

fn known() -> MachineStanding {
    MachineStanding::Known {
        maker: "CN=Maker".to_owned(),
    }
}

#[test]
fn a_machine_whose_maker_certified_another_serial_number_is_for_a_person() {
    let machine = |standing| Applicant {
        level: AttestationLevel::Silver,
        standing,
        ..applicant()
    };
    // Neither a manifest nor a rule lets it in.
    let rules = [rule("a", 1, RuleEffect::Admit, MachineMatch::default())];
    let mut memory = Memory {
        lines: vec![line(Some(OWN), "SN-1", None)],
        rules: &rules,
        ..memory()
    };
    assert_eq!(outcome(&machine(another("SN-9")), &memory).0, "refuse");
    assert_eq!(
        outcome(&machine(MachineStanding::Unproven), &memory).0,
        "admit press"
    );
    memory.person = person(WaitingDecision::Approved);
    assert_eq!(
        outcome(&machine(another("SN-9")), &memory).0,
        "admit by-hand"
    );
    // A device that came to it, and one that a person let in with it.
    memory.person = None;
    memory.lines.clear();
    let mut before = Enrolled {
        certified_serial: "SN-1".to_owned(),
        level: Some(AttestationLevel::Gold),
        ..enrolled()
    };
    memory.enrolled = Some(before.clone());
    assert_eq!(outcome(&machine(another("SN-9")), &memory).0, "refuse");
    before.certified_serial = "SN-9".to_owned();
    before.level = Some(AttestationLevel::Silver);
    memory.enrolled = Some(before.clone());
    assert_eq!(outcome(&machine(another("SN-9")), &memory).0, "again");
    before.serial = "SN-0".to_owned();
    memory.enrolled = Some(before);
    assert_eq!(outcome(&machine(another("SN-9")), &memory).0, "refuse");
    memory.person = person(WaitingDecision::Approved);
    assert_eq!(outcome(&machine(another("SN-9")), &memory).0, "again");
}

#[test]
fn a_device_that_has_less_to_show_than_before_waits() {
    use AttestationLevel::{Bronze, Gold, Silver};
    use MachineStanding::{Silent, Unproven};
    let machine = |level, standing| Applicant {
        level,
        standing,
        ..applicant()
    };
    for (level, now, standing, missing) in [
        (Gold, Silver, Silent, Some(Check::MachineCertificate)),
        // One of a stranger in its place, or its maker is trusted no longer.
        (Gold, Silver, Unproven, Some(Check::MachineCertificate)),
        // The TPM's is left out, with which the machine's proves nothing either.
        (Gold, Bronze, Unproven, Some(Check::EndorsementCertificate)),
        (Silver, Bronze, Silent, Some(Check::EndorsementCertificate)),
        (Gold, Gold, known(), None),
        (Silver, Gold, known(), None),
        (Silver, Silver, Silent, None),
        (Bronze, Bronze, Silent, None),
    ] {
        let mut memory = Memory {
            enrolled: Some(Enrolled {
                level: Some(level),
                ..enrolled()
            }),
            ..memory()
        };
        let (said, checks) = outcome(&machine(now, standing.clone()), &memory);
        let word = if missing.is_some() { "wait" } else { "again" };
        assert_eq!(said, word, "{level} {now} {standing:?}");
        assert_eq!(checks, Vec::from_iter(missing));
        memory.person = person(WaitingDecision::Approved);
        assert_eq!(outcome(&machine(now, standing), &memory).0, "again");
    }
}

#[test]
fn rules_are_asked_in_their_order() {
    use RuleEffect::{Admit, Deny, Wait};
    let product = |pattern: &str| MachineMatch {
        product: Some(pattern.to_owned()),
        ..MachineMatch::default()
    };
    let all = MachineMatch::default;
    let certified = || MachineMatch {
        certified: Some(true),
        ..MachineMatch::default()
    };
    let issuer = || MachineMatch {
        endorsement_issuer: Some("*".to_owned()),
        ..MachineMatch::default()
    };
    let (bronze, none) = (AttestationLevel::Bronze, AttestationLevel::None);
    let (silver, gold) = (AttestationLevel::Silver, AttestationLevel::Gold);
    let by_maker = |wanted| MachineMatch {
        machine_certified: Some(wanted),
        ..MachineMatch::default()
    };
    for (rules, level, word) in [
        (vec![rule("a", 1, Admit, product("NUC*"))], bronze, "admit"),
        (vec![rule("a", 1, Admit, product("Other*"))], bronze, "wait"),
        (
            vec![rule("a", 2, Admit, all()), rule("b", 1, Deny, all())],
            bronze,
            "deny",
        ),
        (
            vec![rule("b", 1, Deny, all()), rule("a", 1, Admit, all())],
            bronze,
            "admit",
        ),
        (
            vec![rule("a", 1, Wait, all()), rule("b", 2, Admit, all())],
            bronze,
            "wait",
        ),
        (vec![rule("a", 1, Admit, all())], none, "wait"),
        (vec![rule("a", 1, Admit, certified())], bronze, "wait"),
        (vec![rule("a", 1, Admit, certified())], silver, "admit"),
        (vec![rule("a", 1, Admit, issuer())], bronze, "wait"),
        (vec![rule("a", 1, Admit, certified())], gold, "admit"),
        (vec![rule("a", 1, Admit, by_maker(true))], gold, "admit"),
        (vec![rule("a", 1, Admit, by_maker(true))], silver, "wait"),
        (vec![rule("a", 1, Admit, by_maker(false))], silver, "admit"),
        (vec![rule("a", 1, Admit, by_maker(false))], gold, "wait"),
    ] {
        let mut rules = rules;
        order(&mut rules);
        let memory = Memory {
            rules: &rules,
            ..memory()
        };
        let machine = Applicant {
            level,
            ..applicant()
        };
        assert_eq!(outcome(&machine, &memory).0, word, "{rules:?} {level}");
    }
    // A rule that is over fits nothing.
    let mut over = rule("a", 1, Admit, all());
    over.spec.until = Some(Timestamp::MIN);
    let rules = [over];
    let memory = Memory {
        rules: &rules,
        ..memory()
    };
    assert_eq!(outcome(&applicant(), &memory).0, "wait");
}

#[test]
fn a_machine_without_a_tpm_is_let_in_by_its_id_or_a_person_only() {
    let machine = Applicant {
        level: AttestationLevel::None,
        counters: None,
        ..applicant()
    };
    let mut known = memory();
    assert_eq!(outcome(&machine, &known).0, "wait");
    known.lines = vec![line(Some(OWN), "SN-1", None)];
    assert_eq!(outcome(&machine, &known).0, "admit press");
    known.lines = Vec::new();
    known.person = person(WaitingDecision::Approved);
    assert_eq!(outcome(&machine, &known).0, "admit by-hand");
}
