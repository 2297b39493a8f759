//! Row 12: the power is cut at each step. The agent runs as a process of its own, which is killed, and the TPM is started anew, as both
//! are when the plug is pulled.

use std::time::Duration;

use onboarding::enrol::mark;
use protocol::enrolment::image::Way;
use protocol::paths;

use crate::device::{Device, Program};
use crate::enrolment::{site, with_door};
use crate::site::{Fault, Site};

/// Far more commands than an enrolment takes.
const MOST: u32 = 300;

fn said(program: &Program, text: &str) -> bool {
    std::fs::read_to_string(&program.status)
        .unwrap_or_default()
        .contains(text)
}

/// Pulls the plug.
fn cut(device: &mut Device, program: Program) {
    drop(program);
    let _ = std::fs::remove_file(device.dir().join("status"));
    if let Some(hop) = &device.hop {
        hop.cut();
    }
    device.tpm.as_mut().unwrap().power_cycle();
}

/// Waits until the agent has stopped at the hop, or is done; true: it is done.
async fn stopped_or_done(device: &Device, program: &Program) -> bool {
    let hop = device.hop.as_ref().unwrap();
    for _ in 0..3000 {
        if hop.stopped() {
            return false;
        }
        if said(program, "skerry: attested") {
            // The mark is written beside.
            tokio::time::sleep(Duration::from_secs(1)).await;
            return !hop.stopped();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "neither stopped nor done: {:?}",
        std::fs::read_to_string(&program.status)
    );
}

async fn whole_in_the_end(site: &Site, device: &mut Device) {
    if let Some(hop) = &device.hop {
        hop.stop_after(u32::MAX);
    }
    let program = device.start_program();
    for _ in 0..3000 {
        if said(&program, "skerry: config applied") && said(&program, "skerry: attested") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(said(&program, "skerry: config applied"));
    // The mark comes right after the grant, or right after the start.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        !said(&program, "trouble"),
        "{:?}",
        std::fs::read_to_string(&program.status)
    );
    cut(device, program);
    let (devices, owner) = with_door(site, |door| (door.devices.clone(), door.owner.pinned));
    assert_eq!(devices.len(), 1, "one machine, one device");
    let marked = mark::read(&device.tpm.as_ref().unwrap().connect()).unwrap();
    assert_eq!(
        marked.map(|mark| (mark.epoch, mark.root)),
        Some((owner.epoch, owner.root))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn row_12_power_cut_at_each_step_of_the_tpm() {
    let (site, enrolment) = site(&[Way::ZeroTouch]).await;
    // Nothing that needs a whole machine.
    site.with(|state| state.config.network_instances.clear());
    let mut device = Device::new(&site)
        .enrolling(&enrolment)
        .with_tpm_behind_a_hop();
    let mut cuts = 0;
    for commands in 0..MOST {
        device.hop.as_ref().unwrap().stop_after(commands);
        let program = device.start_program();
        let done = stopped_or_done(&device, &program).await;
        cut(&mut device, program);
        if done {
            break;
        }
        cuts += 1;
    }
    println!("cut at {cuts} places");
    assert!((10..MOST).contains(&cuts), "{cuts}");
    whole_in_the_end(&site, &mut device).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_12_power_cut_while_a_flight_is_on_its_way() {
    let (site, enrolment) = site(&[Way::ZeroTouch]).await;
    site.with(|state| state.config.network_instances.clear());
    let mut device = Device::new(&site).enrolling(&enrolment).with_tpm();
    for path in [paths::ENROL_HELLO, paths::ENROL_EVIDENCE] {
        for fault in [Fault::Request, Fault::Answer] {
            site.with(|state| state.faults.push((path, fault)));
            let program = device.start_program();
            site.until("it is on its way", |state| {
                state.faults.is_empty().then_some(())
            })
            .await;
            cut(&mut device, program);
        }
    }
    whole_in_the_end(&site, &mut device).await;
}

/// The disk is full when the grant comes: it is not used before it can be kept.
#[tokio::test(flavor = "multi_thread")]
async fn row_12_a_grant_that_cannot_be_kept_is_not_used() {
    let (site, enrolment) = site(&[Way::ZeroTouch]).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    // A folder in its place keeps the file from being renamed there, as a full disk would from being written.
    let place = pillar::grant::file(device.paths());
    std::fs::create_dir_all(place.join("in the way")).unwrap();
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled: ").await;
    assert!(line.contains("cannot be kept, so it is not used"), "{line}");
    site.with(|state| {
        assert!(
            !state.seen.iter().any(|seen| seen.ends_with("config")),
            "{:?}",
            state.seen
        );
    });
    std::fs::remove_dir_all(&place).unwrap();
    running.line("skerry: enrolled as ").await;
    assert_eq!(with_door(&site, |door| door.devices.len()), 1);
}
