//! Attacks on enrolment and faults in it, each a component test against a real TPM emulator (swtpm), by the rows of the design's table.
//!
//! ```text
//! ATTACKS --> one cargo test of their test programs, by exact names --> each must have run, and passed
//! ```
//!
//! The tests themselves are where the code is that they attack; here stands which of them answer for what.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::progress::print;

/// One attack or fault.
struct Attack {
    /// Row of the table of attacks and faults that the design began with.
    row: u8,
    about: &'static str,
    home: Program,
    /// Its exact name there.
    test: &'static str,
}

/// A test program: `cargo test -p PACKAGE --test PROGRAM`.
#[derive(Clone, Copy)]
struct Program {
    package: &'static str,
    program: &'static str,
}

const AGENT: Program = program("pillar", "agent");
const CONTROLLER: Program = program("controller", "component");
const FLIGHTS: Program = program("onboarding", "enrolment");
const IDENTITY: Program = program("onboarding", "identity");
const MACHINE: Program = program("onboarding", "machine");

const fn program(package: &'static str, program: &'static str) -> Program {
    Program { package, program }
}

const fn attack(row: u8, home: Program, test: &'static str, about: &'static str) -> Attack {
    Attack {
        row,
        about,
        home,
        test,
    }
}

const ATTACKS: &[Attack] = &[
    attack(
        1,
        CONTROLLER,
        "enrol_attacks::row_1_evidence_replayed_in_the_same_session_in_another_and_after_a_restart",
        "evidence replayed: in the same session, in another, after a restart of the controller",
    ),
    attack(
        1,
        FLIGHTS,
        "evidence_replayed_in_another_session_is_refused",
        "evidence of one session under the nonce of another",
    ),
    attack(
        1,
        FLIGHTS,
        "evidence_changed_byte_by_byte_is_refused",
        "evidence changed at any byte",
    ),
    attack(
        2,
        FLIGHTS,
        "a_quote_relayed_from_a_healthy_machine_is_refused",
        "quote relayed from a healthy machine",
    ),
    attack(
        2,
        FLIGHTS,
        "another_machines_device_key_is_refused",
        "device key of another machine beside an honest quote",
    ),
    attack(
        3,
        IDENTITY,
        "a_cloned_disk_is_of_no_use_in_another_machine",
        "cloned disk in another machine, also with software of the thief's own",
    ),
    attack(
        3,
        CONTROLLER,
        "enrol_attacks::row_3_a_second_endorsement_key_under_one_serial_number",
        "second endorsement key under one serial number",
    ),
    attack(
        4,
        CONTROLLER,
        "enrol_attacks::row_4_a_board_that_was_moved_does_not_fit_its_manifest",
        "board moved into another chassis, against the manifest",
    ),
    attack(
        4,
        CONTROLLER,
        "enrol_attacks::row_4_a_device_whose_board_is_found_in_another_chassis_waits",
        "board of a device found in another chassis",
    ),
    attack(
        4,
        CONTROLLER,
        "gold::row_4_a_tpm_moved_into_another_machine_does_not_fit_its_makers_certificate",
        "TPM moved into another machine, against its maker's certificate",
    ),
    attack(
        4,
        MACHINE,
        "a_serial_number_that_disagrees_is_for_a_person_and_not_gold",
        "the same, as the verifier sees it",
    ),
    attack(
        4,
        CONTROLLER,
        "gold::row_4_a_device_once_gold_that_shows_no_certificate_any_more_waits",
        "device that was gold, without its maker's certificate",
    ),
    attack(
        4,
        MACHINE,
        "a_machines_certificate_of_another_tpm_is_refused",
        "machine's certificate of another TPM",
    ),
    attack(
        4,
        MACHINE,
        "a_certification_relayed_from_another_tpms_key_is_refused",
        "certification by another TPM's initial attestation key, relayed",
    ),
    attack(
        4,
        MACHINE,
        "what_is_not_a_machine_makers_word_is_refuted",
        "machine's certificate that its maker did not sign, or not for this",
    ),
    attack(
        5,
        FLIGHTS,
        "a_sniffed_and_broken_bus_shows_no_secret_and_stops_nothing",
        "bus sniffed; commands lost, answers lost, changed or replaced by an error",
    ),
    attack(
        5,
        FLIGHTS,
        "a_tpm_that_is_reset_in_the_middle_proves_nothing_and_enrols_afterwards",
        "TPM reset or without power, between the flights and before each command of them",
    ),
    attack(
        6,
        CONTROLLER,
        "policy::row_6_another_command_line_gets_no_config_and_no_secrets",
        "another system or command line booted",
    ),
    attack(
        6,
        CONTROLLER,
        "policy::row_6_no_quote_at_all_is_no_way_around_the_policy",
        "another system booted, which shows no quote at all",
    ),
    attack(
        6,
        CONTROLLER,
        "policy::row_6_a_device_cannot_choose_the_policy_that_judges_it",
        "another system booted, which says that it is another model",
    ),
    attack(
        7,
        AGENT,
        "enrolment::row_7_a_rogue_controller_with_a_valid_web_certificate",
        "rogue controller with a valid web certificate; a thief's stick",
    ),
    attack(
        7,
        FLIGHTS,
        "a_controller_that_does_not_speak_for_the_owner_learns_nothing",
        "controller that does not speak for the owner",
    ),
    attack(
        8,
        CONTROLLER,
        "enrol_attacks::row_8_who_has_the_image_alone_ends_in_the_waiting_room",
        "image leaked",
    ),
    attack(
        9,
        CONTROLLER,
        "enrol_attacks::row_9_a_flood_of_unknown_machines_stays_within_bounds",
        "flood of unknown machines",
    ),
    attack(
        9,
        CONTROLLER,
        "enrol_attacks::row_9_more_at_once_than_are_worked_on_are_told_to_come_again",
        "flood of requests at once",
    ),
    attack(
        10,
        AGENT,
        "enrolment::row_10_a_clock_at_1970",
        "clock at 1970",
    ),
    attack(
        10,
        AGENT,
        "enrolment::row_10_a_clock_at_2018",
        "clock at 2018",
    ),
    attack(
        10,
        AGENT,
        "enrolment::row_10_a_clock_at_2038",
        "clock at 2038",
    ),
    attack(
        10,
        AGENT,
        "enrolment::row_10_a_clock_at_2099",
        "clock at 2099",
    ),
    attack(
        10,
        AGENT,
        "enrolment::row_10_a_certificate_that_expired_on_the_shelf",
        "certificate expired after years on a shelf",
    ),
    attack(
        11,
        AGENT,
        "enrolment::row_11_a_captive_portal",
        "captive portal",
    ),
    attack(
        11,
        AGENT,
        "enrolment::row_11_a_proxy_that_opens_tls",
        "proxy that opens TLS",
    ),
    attack(
        11,
        AGENT,
        "enrolment::row_11_no_name_server",
        "no name server",
    ),
    attack(
        12,
        AGENT,
        "enrolment::row_12_a_request_or_an_answer_lost_at_each_flight",
        "request or answer lost, at each flight",
    ),
    attack(
        12,
        AGENT,
        "power_cut::row_12_power_cut_at_each_step_of_the_tpm",
        "power cut before each command of the TPM",
    ),
    attack(
        12,
        AGENT,
        "power_cut::row_12_power_cut_while_a_flight_is_on_its_way",
        "power cut while a flight is on its way",
    ),
    attack(
        12,
        AGENT,
        "power_cut::row_12_a_grant_that_cannot_be_kept_is_not_used",
        "disk full when the grant comes",
    ),
    attack(
        12,
        CONTROLLER,
        "enrol_attacks::row_12_an_answer_that_was_lost_is_given_again",
        "answer lost: the same evidence gets the same answer",
    ),
    attack(
        13,
        AGENT,
        "enrolment::row_13_a_machine_without_a_tpm_is_of_level_none",
        "no TPM",
    ),
    attack(
        13,
        AGENT,
        "enrolment::row_13_a_tpm_in_lockout",
        "TPM in lockout",
    ),
    attack(
        13,
        FLIGHTS,
        "a_tpm_in_lockout_and_without_a_certificate_still_enrols",
        "TPM in lockout and without a certificate of its maker",
    ),
    attack(
        13,
        FLIGHTS,
        "a_tpm_without_aes_cfb_holds_no_keys_and_its_machine_is_of_level_none",
        "TPM without AES in CFB mode: the keys",
    ),
    attack(
        13,
        AGENT,
        "enrolment::row_13_a_tpm_without_aes_cfb_is_told_and_its_machine_is_of_level_none",
        "TPM without AES in CFB mode: the agent, and what it tells",
    ),
    attack(
        13,
        CONTROLLER,
        "enrol_attacks::row_13_a_tpm_without_its_makers_certificate_gets_in_at_bronze_and_no_higher",
        "TPM without a certificate of its maker",
    ),
    attack(
        14,
        FLIGHTS,
        "an_event_log_that_is_missing_cut_or_huge_proves_nothing",
        "event log missing, cut, huge",
    ),
    attack(
        14,
        CONTROLLER,
        "policy::row_14_an_event_log_that_is_missing_cut_huge_or_nonsense_opens_nothing",
        "event log missing, cut, huge, nonsense: no config, no secrets",
    ),
    attack(
        15,
        CONTROLLER,
        "policy::row_15_firmware_is_learned_from_a_canary_and_accepted_by_a_person",
        "firmware update changes PCR values",
    ),
    attack(
        15,
        CONTROLLER,
        "policy::row_15_only_a_boot_that_was_proven_is_learned_from",
        "replayed quote of before offered as a canary",
    ),
    attack(
        16,
        CONTROLLER,
        "enrol_attacks::row_16_a_controller_that_fails_in_the_middle_leaves_nothing_half",
        "write of the controller broken off in the middle",
    ),
    attack(
        16,
        CONTROLLER,
        "killed::row_16_a_controller_killed_in_the_middle_leaves_nothing_half",
        "controller killed (SIGKILL) in the middle, at many moments",
    ),
    attack(
        17,
        CONTROLLER,
        "enrol_attacks::row_17_a_machine_that_was_wiped_and_reinstalled_is_recognised",
        "wiped and reinstalled, same endorsement key",
    ),
    attack(
        17,
        CONTROLLER,
        "enrol_attacks::row_17_other_keys_than_the_proven_ones_cannot_be_slipped_in_afterwards",
        "other keys shown after enrolment",
    ),
    attack(
        17,
        AGENT,
        "enrolment::row_17_a_wiped_machine_enrols_again_under_its_name",
        "wiped and reinstalled, seen from the device",
    ),
    attack(
        18,
        CONTROLLER,
        "enrol_attacks::row_18_no_endorsement_key_and_no_serial_number_stands_on_the_wire",
        "endorsement key as a tracker: the flights",
    ),
    attack(
        18,
        AGENT,
        "enrolment::row_18_the_endorsement_key_does_not_stand_on_the_wire",
        "endorsement key as a tracker: from the first Hello to the attestation of a later boot",
    ),
];

/// Names every attack with its test, one a line.
pub fn list() {
    for attack in ATTACKS {
        print(&format!(
            "row {:<2} {}\n       {} --test {} {}\n",
            attack.row, attack.about, attack.home.package, attack.home.program, attack.test
        ));
    }
}

/// Runs them all; an error names those that failed or did not run.
pub fn run() -> Result<()> {
    let mut command = build::cargo();
    // The whole workspace, so that nothing is built with other features than elsewhere.
    command.env("SKERRY_WORKSPACE_BUILT", "1").args([
        "test",
        "--release",
        "--workspace",
        "--no-fail-fast",
        "--locked",
    ]);
    let programs: BTreeSet<&str> = ATTACKS.iter().map(|attack| attack.home.program).collect();
    for program in programs {
        command.args(["--test", program]);
    }
    command.args(["--", "--exact"]);
    command.args(ATTACKS.iter().map(|attack| attack.test));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    let output = child
        .stdout
        .take()
        .context("reading what cargo test says")?;
    let mut seen = BTreeMap::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what cargo test says")?;
        println!("{line}");
        if let Some((name, passed)) = outcome(&line) {
            seen.insert(name.to_owned(), passed);
        }
    }
    let status = child.wait().context("waiting for cargo test")?;
    let missing = unproven(&seen);
    ensure!(missing.is_empty(), "not answered: {}", missing.join("; "));
    ensure!(status.success(), "cargo test: {status}");
    Ok(())
}

/// Attacks whose test did not pass, with the reason.
fn unproven(seen: &BTreeMap<String, bool>) -> Vec<String> {
    ATTACKS
        .iter()
        .filter_map(|attack| {
            let why = match seen.get(attack.test) {
                Some(true) => return None,
                Some(false) => "failed",
                None => "did not run",
            };
            Some(format!(
                "row {} ({}): {} of {} {why}",
                attack.row, attack.about, attack.test, attack.home.package
            ))
        })
        .collect()
}

/// `test NAME ... ok`
fn outcome(line: &str) -> Option<(&str, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name, outcome == "ok"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_failed_or_did_not_run_is_told() {
        assert_eq!(outcome("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(outcome("test a::b ... FAILED"), Some(("a::b", false)));
        assert_eq!(outcome("test a::b ... ignored"), Some(("a::b", false)));
        assert_eq!(outcome("running 3 tests"), None);
        let all = |passed| {
            let names = ATTACKS.iter().map(|attack| attack.test.to_owned());
            names.map(|name| (name, passed)).collect::<BTreeMap<_, _>>()
        };
        assert!(unproven(&all(true)).is_empty());
        assert_eq!(unproven(&all(false)).len(), ATTACKS.len());
        assert_eq!(unproven(&BTreeMap::new()).len(), ATTACKS.len());
    }

    #[test]
    fn each_test_answers_once() {
        let names: BTreeSet<&str> = ATTACKS.iter().map(|attack| attack.test).collect();
        assert_eq!(names.len(), ATTACKS.len());
    }
}
