//! How a box that nobody has touched becomes a device: by its TPM and a person or a manifest, or EVE's way.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{Clock, Spec};

use super::faults::knows_the_time;
use super::{Story, judged};
use crate::site::{Machine, Site, machine_id, manifest, sparse_copy};

/// No rule of the site knows this maker.
pub(super) const STRANGER: &str = "Unlisted Machines";
const WAITS: &str = "waiting for approval: ";

/// A stick without a secret; one box that a person lets in, one that is on a manifest.
pub fn zero_touch(story: &Story) -> Result<()> {
    let site = story.yard.site();
    let stick = site.make_stick_enrolling("zero-touch")?;
    holds_no_onboarding_key(story, &site, &stick)?;

    let mut pc = stranger(story, "SK-ZERO-1", None)?;
    pc.install(&stick, &mut |_| ())?;
    story.step("installed from a stick of the zero-touch way");
    let installed = story.dir().join("installed.img");
    sparse_copy(&pc.pc.drive(0), &installed)?;

    pc.pc.serial().skip();
    pc.pc.power_on()?;
    let words = wait_for_words(story, &mut pc)?;
    let waiting = waiting(story, &site, &words)?;
    let table = site.operator.run(&["get", "waiting"])?;
    for line in table.lines() {
        story.step(line);
    }
    ensure!(
        table.contains(&words),
        "`skerry get waiting` does not show {words:?}:\n{table}"
    );
    ensure!(
        !pc.pc.serial().text().contains("skerry: enrolled"),
        "the box enrolled before anybody approved it"
    );
    site.operator.approve(&waiting)?;
    story.step(format!("{waiting} is approved"));
    let id = pc.wait_enrolled(&mut |line| story.step(format!("box: {line}")))?;
    let device = story.attested(&id)?;
    ensure!(
        level(&site, &device)? == "bronze",
        "a TPM of a maker that nobody trusts: {}",
        site.operator.get("device", &device)?["status"]
    );

    site.operator.apply(&manifest::container(
        "zero",
        &device,
        story.yard.container(),
        "native",
        8080,
    ))?;
    story.answers(&mut pc, "zero", 8080, "hello from zero")?;

    let before = attested_at(&site, &device)?;
    pc.press_power()?;
    let again = pc.boot(&mut |line| story.step(format!("box: {line}")))?;
    ensure!(
        again == id,
        "after a restart the box is {again}, and not {id}"
    );
    story.until("it has attested anew", || {
        ensure!(
            attested_at(&site, &device)? != before,
            "still the attestation of {before}"
        );
        Ok(())
    })?;
    story.step("after a restart it is the same device, and has attested anew");
    story.answers(&mut pc, "zero", 8080, "hello from zero")?;
    judged::play(story, &site, &mut pc, &device)?;
    story.delete_apps(&["zero"])?;
    pc.pc.cut_power();

    // The second box of the model: nobody has to accept its firmware again.
    on_manifest(story, &site, &installed)?;
    judged::clear(&site)
}

/// A box on a manifest, whose TPM's maker is trusted: nobody has to do anything.
fn on_manifest(story: &Story, site: &Site, installed: &Path) -> Result<()> {
    let maker = story.dir().join("tpm-maker");
    let mut pc = stranger(story, "SK-ZERO-2", Some(&maker))?;
    // As after years on a shelf, with an empty battery.
    pc.pc.spec_mut().clock = Clock::At("1970-01-01T00:00:00".to_owned());
    let machine = machine_id(&pc.pc.endorsement_certificate()?)?;
    let makers = testbed::maker_certificates(&maker)?;
    site.operator
        .apply(&manifest::tpm_maker("e2e-maker", &makers))?;
    let list = story.dir().join("machines.csv");
    std::fs::write(
        &list,
        format!("ekId,serial,name\n{machine},SK-ZERO-2,warehouse-7\n"),
    )
    .with_context(|| format!("writing {}", list.display()))?;
    site.operator.import_manifest("e2e-machines", &list)?;
    story.step(format!(
        "machine {machine} is on a manifest before it is switched on"
    ));

    sparse_copy(installed, &pc.pc.drive(0))?;
    let id = pc.boot(&mut |line| story.step(format!("box: {line}")))?;
    ensure!(
        !pc.pc.serial().text().contains(WAITS),
        "a box on a manifest waited for a person"
    );
    let device = story.attested(&id)?;
    ensure!(
        device == "warehouse-7",
        "the manifest names it warehouse-7, and it is {device}"
    );
    let level = level(site, &device)?;
    ensure!(
        level == "silver",
        "its TPM's maker is trusted, and its level is {level}"
    );
    story.step("the box on the manifest, its clock at 1970, enrolled by itself at level silver");
    knows_the_time(story, &mut pc, &device)
}

/// EVE's way alone: as it was, and as other controllers have it.
pub fn eve_onboarding(story: &Story) -> Result<()> {
    let site = story.yard.site();
    let stick = site.make_stick_enrolling("eve")?;
    let mut pc = stranger(story, "SK-EVE-1", None)?;
    pc.install(&stick, &mut |_| ())?;
    story.step("installed from a stick of EVE's way");
    let device = story.enrol(&mut pc)?;
    ensure!(
        !pc.pc.serial().text().contains(WAITS),
        "a box with an onboarding key waited for a person"
    );
    let object = site.operator.get("device", &device)?;
    ensure!(
        object["status"]["machineId"]
            .as_str()
            .unwrap_or_default()
            .is_empty(),
        "it enrolled by its endorsement key: {}",
        object["status"]
    );
    site.operator.apply(&manifest::container(
        "eve",
        &device,
        story.yard.container(),
        "native",
        8080,
    ))?;
    story.answers(&mut pc, "eve", 8080, "hello from eve")?;
    story.delete_apps(&["eve"])
}

/// A box of a maker that no rule of the site lets in.
fn stranger(story: &Story, serial: &str, tpm_maker: Option<&Path>) -> Result<Machine> {
    let spec = Spec {
        manufacturer: STRANGER.to_owned(),
        tpm_maker: tpm_maker.map(Path::to_owned),
        ..Spec::new(serial)
    };
    Machine::with_ports(spec, &story.dir().join(serial))
}

/// Neither the key's file nor its bytes are on the stick; on the yard's stick, whose boxes may need it, they are.
fn holds_no_onboarding_key(story: &Story, site: &Site, stick: &Path) -> Result<()> {
    let file = site.controller.data().join("pki/onboard.key.pem");
    let key =
        std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let line = key
        .lines()
        .nth(1)
        .filter(|line| line.len() >= 40)
        .with_context(|| format!("{} holds no key", file.display()))?;
    let has = |stick: &Path| -> Result<bool> {
        let bytes = std::fs::read(stick).with_context(|| format!("reading {}", stick.display()))?;
        let wanted = line.as_bytes();
        Ok(bytes.windows(wanted.len()).any(|bytes| bytes == wanted))
    };
    ensure!(
        has(story.yard.stick())?,
        "the search does not even find the key on a stick that has it"
    );
    ensure!(!has(stick)?, "the onboarding key is on {}", stick.display());
    story.step("the stick holds no onboarding key");
    Ok(())
}

/// The eight words of a box that waits, from the serial line; they stand on the screen, too.
fn wait_for_words(story: &Story, pc: &mut Machine) -> Result<String> {
    let line = pc.wait_for(WAITS)?;
    story.step(format!("box: {line}"));
    let (_, words) = line.split_once(WAITS).context("the line has no words")?;
    ensure!(
        words.split(' ').count() == 8,
        "eight words are wanted, and it says {words:?}"
    );
    story.until("the words stand on the screen", || {
        ensure!(
            pc.pc.screen()?.shows(words),
            "the screen does not show {words:?}"
        );
        Ok(())
    })?;
    pc.pc.screenshot(&story.dir().join("waiting.png"))?;
    Ok(words.to_owned())
}

/// The name of the waiting machine with these words.
fn waiting(story: &Story, site: &Site, words: &str) -> Result<String> {
    story.until("the machine is in the waiting room", || {
        let waiting = site.operator.list("waiting")?;
        let machine = waiting
            .iter()
            .find(|machine| machine["status"]["words"] == words)
            .with_context(|| format!("no {words:?} among {} machines", waiting.len()))?;
        machine["metadata"]["name"]
            .as_str()
            .map(str::to_owned)
            .context("it has no name")
    })
}

/// What the controller shows of a device's last quote.
pub(super) fn attestation(site: &Site, device: &str) -> Result<Value> {
    Ok(site.operator.get("device", device)?["status"]["attestation"].clone())
}

fn level(site: &Site, device: &str) -> Result<String> {
    let attestation = attestation(site, device)?;
    let level = attestation["level"].as_str().context("no level")?;
    Ok(level.to_owned())
}

fn attested_at(site: &Site, device: &str) -> Result<String> {
    let attestation = attestation(site, device)?;
    let time = attestation["time"].as_str().context("no time")?;
    Ok(time.to_owned())
}
