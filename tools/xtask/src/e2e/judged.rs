//! A boot of the real image, judged by what its build has signed: what is learned of the firmware, what is refused, and how it is told.
//!
//! ```text
//! trusted by no policy --policy, reference--> refused: firmware not known --a person accepts--> trusted
//!   --the UKI's command line is changed on the disk--> refused, and told --changed back--> trusted
//! ```

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Story;
use super::disk::Disk;
use super::enrolment::{STRANGER, attestation};
use crate::site::{Machine, Site, manifest, path};

const POLICY: &str = "e2e-model";
const REFERENCE: &str = "e2e-image";
/// Of the command line of every image; and what an intruder makes of it, with as many letters.
const LINE: (&str, &str) = ("audit=0", "audit=1");

/// Plays it on a box that is enrolled, with an app `zero` that answers on port 8080. The policy stays, for the next box of the model.
pub fn play(story: &Story, site: &Site, pc: &mut Machine, device: &str) -> Result<()> {
    let reference = site.built.parts.join("reference.json");
    let import = [
        "reference",
        "import",
        path(&reference)?,
        "--name",
        REFERENCE,
    ];
    site.operator.run(&import)?;
    let object = site.operator.get("bootreference", REFERENCE)?;
    let key = object["status"]["releaseKey"]
        .as_str()
        .context("the reference shows no release key")?;
    site.operator
        .apply(&manifest::policy(POLICY, STRANGER, key))?;
    let failed = refused(story, site, device)?;
    ensure!(
        failed
            .iter()
            .all(|check| ["firmware", "revocationList"].contains(&check.as_str())),
        "of the image itself everything is known ahead, and it fails {failed:?}"
    );
    story.step(format!(
        "a policy is there, and the box's firmware is not known: {failed:?}"
    ));
    story.step(format!("box: {}", pc.wait_for("the controller refuses")?));
    // It keeps what it runs, as the policy lets it.
    story.answers(pc, "zero", 8080, "hello from zero")?;

    site.operator.run(&["policy", "accept", POLICY, device])?;
    trusted(story, site, device)?;
    story.step("its firmware is accepted, and the real boot is what the build has signed");

    change(pc, LINE)?;
    pc.pc.serial().skip();
    pc.pc.power_on()?;
    let line = pc.wait_for("the controller refuses")?;
    story.step(format!("box with {:?} in its command line: {line}", LINE.1));
    let failed = refused(story, site, device)?;
    for check in ["commandLine", "bootApplications"] {
        ensure!(
            failed.iter().any(|it| it == check),
            "{check} has not failed: {failed:?}"
        );
    }
    let words = attestation(site, device)?["differences"].to_string();
    ensure!(
        words.contains(LINE.1),
        "the difference is not told: {words}"
    );
    ensure!(
        pc.pc.screen()?.shows("the controller refuses"),
        "the screen does not say that the boot is refused"
    );
    pc.pc.screenshot(&story.dir().join("refused.png"))?;
    story.answers(pc, "zero", 8080, "hello from zero")?;

    change(pc, (LINE.1, LINE.0))?;
    pc.boot(&mut |line| story.step(format!("box: {line}")))?;
    trusted(story, site, device)?;
    story.step("with the right command line it is trusted again");
    Ok(())
}

/// Takes away what [`play`] has left.
pub fn clear(site: &Site) -> Result<()> {
    site.operator
        .run(&["delete", "attestationpolicy", POLICY])?;
    site.operator.run(&["delete", "bootreference", REFERENCE])?;
    Ok(())
}

/// Powers the box off, and changes the command line on its disk, as with the disk in another machine.
fn change(pc: &mut Machine, (from, to): (&str, &str)) -> Result<()> {
    pc.press_power()?;
    let changed = Disk::open(&pc.pc.drive(0))?.replace_in_boot_entries(from, to)?;
    ensure!(changed > 0, "no UKI on the disk holds {from:?}");
    Ok(())
}

/// Waits until the boot is refused; the checks that failed.
fn refused(story: &Story, site: &Site, device: &str) -> Result<Vec<String>> {
    story.until("the boot is refused", || {
        let attestation = attestation(site, device)?;
        ensure!(attestation["conclusion"] == "refused", "{attestation}");
        Ok(checks(&attestation, "failed"))
    })
}

/// Waits until the boot is trusted, by every check that a policy makes.
fn trusted(story: &Story, site: &Site, device: &str) -> Result<()> {
    story.until("the boot is trusted", || {
        let attestation = attestation(site, device)?;
        ensure!(attestation["conclusion"] == "trusted", "{attestation}");
        let passed = checks(&attestation, "passed");
        for check in [
            "policy",
            "bootApplications",
            "commandLine",
            "initramfs",
            "kernelImageSections",
            "firmware",
        ] {
            ensure!(
                passed.iter().any(|it| it == check),
                "{check} was not made: {attestation}"
            );
        }
        Ok(())
    })
}

fn checks(attestation: &Value, outcome: &str) -> Vec<String> {
    let verdicts = attestation["verdicts"].as_array();
    verdicts
        .into_iter()
        .flatten()
        .filter(|verdict| verdict["outcome"] == outcome)
        .filter_map(|verdict| Some(verdict["check"].as_str()?.to_owned()))
        .collect()
}
