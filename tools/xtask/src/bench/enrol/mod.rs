//! Zero-touch enrolment in figures: how many the controller takes, what one costs it in memory, how fast it checks quotes, and how long
//! a box takes.
//!
//! ```text
//! machines with TPM emulators --hello--> [timed] --challenge--> their TPMs' work --evidence--> [timed] --grant-->
//! ```
//!
//! The controller is the real program with its store on the disk, and each enrolment is as durable as in the field. What is timed is from
//! the first request of a flight to its last answer; the work of the machines' TPMs, which in the field are as many as the
//! machines, is done between. The client shares the two cores with the controller, TLS handshakes of both sides included.

mod door;
mod machines;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use onboarding::attest::device::make_evidence;
use onboarding::eventlog;
use onboarding::quote::{Conclusion, Evidence, Expected, verify};
use protocol::paths;

use self::door::{AT_ONCE, Door};
use self::machines::{Asking, Home, Machine, Proving};
use super::Row;
use crate::e2e::{Story, Yard};
use crate::site::{Built, Site};

/// Machines that enrol at once.
const CROWD: usize = 256;
/// How many times.
const WAVES: usize = 5;
/// How long quotes are verified.
const VERIFYING: Duration = Duration::from_secs(5);
/// A boot of OVMF with a UKI under Secure Boot, as Linux showed its log.
const LOG: &[u8] = include_bytes!("../../../../../onboarding/tests/data/ovmf-uki.log.gz");

pub fn run(built: &Built, dir: &Path) -> Result<Vec<Row>> {
    let yard = Yard::open(built, dir)?;
    let story = Story::begin("boxes", &yard, dir)?;
    let mut rows = crowd(&story, &yard.site())?;
    rows.push(quotes(&story)?);
    rows.push(on_a_box(&story)?);
    story.clean_up();
    Ok(rows)
}

fn crowd(story: &Story, site: &Site) -> Result<Vec<Row>> {
    let door = Door::of(&site.controller)?;
    let home = door.home(site)?;
    let log = event_log()?;
    let (mut taken, mut flights) = (Duration::ZERO, [Duration::ZERO; 2]);
    let (mut waiting_kib, mut peak_kib) = (0.0_f64, 0.0_f64);
    for wave in 0..WAVES {
        let machines = make(story, wave, &log)?;
        on_manifest(story, site, wave, &machines)?;
        let asking = in_parallel(machines, |machine| machine.hello(&home))?;
        let connections = (0..asking.len())
            .map(|_| door.connection())
            .collect::<Result<Vec<_>>>()?;

        let before = site.controller.memory()?;
        let bodies = asking.iter().map(|asking| asking.request.sealed.clone());
        let requests = connections.iter().cloned().zip(bodies).collect();
        let (answers, hello) = door.send(paths::ENROL_HELLO, requests)?;
        let waiting = site.controller.memory()?;
        // Each has its challenge by now, and a connection that is open.
        waiting_kib = waiting_kib.max(each(before.resident_kib, waiting.resident_kib, CROWD));

        let proving = prove(asking, &home, answers, &log)?;
        let bodies = proving.iter().map(|proving| proving.request.sealed.clone());
        let requests = connections.iter().cloned().zip(bodies).collect();
        let (answers, evidence) = door.send(paths::ENROL_EVIDENCE, requests)?;
        for (proving, answer) in proving.iter().zip(&answers) {
            proving.granted(answer)?;
        }
        let after = site.controller.memory()?;
        peak_kib = peak_kib.max(each(waiting.resident_kib, after.peak_kib, AT_ONCE));
        story.step(format!(
            "wave {}: {CROWD} hellos in {:.2} s, {CROWD} grants in {:.2} s",
            wave + 1,
            hello.as_secs_f64(),
            evidence.as_secs_f64()
        ));
        taken += hello + evidence;
        flights[0] += hello;
        flights[1] += evidence;
    }
    let count = (CROWD * WAVES) as f64;
    let rate = |time: Duration| count / time.as_secs_f64();
    story.step(format!(
        "flights a second: {:.0} hellos, {:.0} evidences",
        rate(flights[0]),
        rate(flights[1])
    ));
    Ok(vec![
        Row::at_least(
            "attested enrolments a second, two cores, SQLite, durable",
            rate(taken),
            500.0,
        ),
        Row::new(
            "controller's memory per enrolment between its flights (KiB)",
            waiting_kib,
            64.0,
        ),
        Row::new(
            "controller's memory at its peak, per evidence that is worked on (KiB)",
            peak_kib,
            1024.0,
        ),
    ])
}

/// What each of `count` adds, in KiB.
fn each(before: u64, after: u64, count: usize) -> f64 {
    after.saturating_sub(before) as f64 / count as f64
}

fn make(story: &Story, wave: usize, log: &[u8]) -> Result<Vec<Machine>> {
    let start = Instant::now();
    let events = eventlog::parse(log)?;
    let (numbers, dir) = ((0..CROWD).collect(), story.dir());
    let machines = in_parallel(numbers, |number: usize| {
        let serial = format!("SK-CROWD-{wave}-{number}");
        let machine = Machine::make(&dir.join(&serial), &serial)?;
        machine.boot(&events)?;
        Ok(machine)
    })?;
    story.step(format!(
        "{CROWD} machines with a TPM each are made and booted in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(machines)
}

fn on_manifest(story: &Story, site: &Site, wave: usize, machines: &[Machine]) -> Result<()> {
    let mut text = String::from("ekId\n");
    for machine in machines {
        text += &format!("{}\n", machine.id()?);
    }
    let file = story.dir().join(format!("crowd-{wave}.csv"));
    std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    site.operator
        .import_manifest(&format!("crowd-{wave}"), &file)
        .map(drop)
}

/// The machines' work between the flights, two at a time.
fn prove(
    asking: Vec<Asking>,
    home: &Home,
    answers: Vec<Vec<u8>>,
    log: &[u8],
) -> Result<Vec<Proving>> {
    let asked = asking.into_iter().zip(answers).collect();
    in_parallel(asked, |(asking, answer): (Asking, Vec<u8>)| {
        asking.challenged(home, &answer, log)
    })
}

/// Does the same with each, on two threads; keeps the order.
fn in_parallel<T: Send, U: Send>(
    mut all: Vec<T>,
    work: impl Fn(T) -> Result<U> + Sync,
) -> Result<Vec<U>> {
    let second = all.split_off(all.len() / 2);
    let run = |half: Vec<T>| half.into_iter().map(&work).collect::<Result<Vec<U>>>();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(second));
        let mut done = run(all)?;
        let others = other.join();
        done.extend(others.map_err(|_| anyhow::anyhow!("a thread of the crowd panicked"))??);
        Ok(done)
    })
}

/// Verifies one quote of a real boot's log over and over, on one core.
fn quotes(story: &Story) -> Result<Row> {
    let log = event_log()?;
    let machine = Machine::make(&story.dir().join("quoting"), "SK-QUOTE")?;
    let events = eventlog::parse(&log)?;
    machine.boot(&events)?;
    let nonce = [7; 32];
    let evidence: Evidence =
        make_evidence(&machine.identity, &nonce, Some(&log))?.context("a machine without a TPM")?;
    let certificate = machine.identity.attestation_certificate();
    let expected = Expected {
        attestation_certificate: certificate.map(|certificate| certificate.der()),
        has_tpm: true,
        nonce: Some(&nonce),
    };
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < VERIFYING {
        let report = verify(Some(&evidence), expected);
        ensure!(
            report.conclusion() == Conclusion::Trusted,
            "an honest quote is not trusted: {report:?}"
        );
        count += 1;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    story.step(format!(
        "{count} quotes with {} events each verified",
        events.events.len()
    ));
    Ok(Row::at_least(
        "quote verifications a second, one core, with event log",
        rate,
        1000.0,
    ))
}

/// From the line that tells of the network to the one that tells of the grant, on an emulated box at its first boot.
fn on_a_box(story: &Story) -> Result<Row> {
    let mut pc = story.installed_box("SK-ENROL")?;
    pc.pc.serial().skip();
    pc.pc.power_on()?;
    pc.wait_for("skerry: uplink ")?;
    let start = Instant::now();
    pc.wait_for("skerry: enrolled as ")?;
    let taken = start.elapsed();
    story.step("the box has its grant");
    Ok(Row::new(
        "emulated box, network up to grant, first boot (s)",
        taken.as_secs_f64(),
        30.0,
    ))
}

fn event_log() -> Result<Vec<u8>> {
    let mut log = Vec::new();
    std::io::copy(&mut GzDecoder::new(LOG), &mut log).context("unpacking the kept event log")?;
    Ok(log)
}
