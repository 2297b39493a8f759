//! A device whose boot the controller refuses, over power cuts: what it runs is what its policy says, with the controller or without.

use protocol::eve::config::{
    AppInstanceConfig, ConfigItem, ContentTree, DatastoreConfig, DsType, EdgeDevConfig, Format,
    UuiDandVersion, VmConfig, Volume, VolumeContentOrigin, VolumeContentOriginType, VolumeRef,
};
use protocol::items::KEEP_RUNNING;
use uuid::Uuid;

use crate::device::{Device, Running};
use crate::site::Site;

/// A config with one app; `keep_running` none: nothing is said about it.
fn config(keep_running: Option<bool>) -> EdgeDevConfig {
    let id = |number| Uuid::from_u128(number).to_string();
    let mut config = crate::config("one");
    let item = keep_running.map(|keep| ConfigItem {
        key: KEEP_RUNNING.into(),
        value: keep.to_string(),
    });
    config.config_items.extend(item);
    config.datastores = vec![DatastoreConfig {
        id: id(11),
        d_type: DsType::DsContainerRegistry.into(),
        fqdn: "docker://registry.example".into(),
        ..DatastoreConfig::default()
    }];
    config.content_info = vec![ContentTree {
        uuid: id(12),
        ds_id: id(11),
        url: format!("hello@sha256:{}", "ab".repeat(32)),
        iformat: Format::Container.into(),
        display_name: "image".into(),
        ..ContentTree::default()
    }];
    config.volumes = vec![Volume {
        uuid: id(13),
        origin: Some(VolumeContentOrigin {
            r#type: VolumeContentOriginType::VcotDownload.into(),
            download_content_tree_id: id(12),
        }),
        maxsizebytes: 1 << 20,
        display_name: "root".into(),
        ..Volume::default()
    }];
    config.apps = vec![AppInstanceConfig {
        uuidandversion: Some(UuiDandVersion {
            uuid: id(14),
            version: "1".into(),
        }),
        displayname: "web".into(),
        activate: true,
        fixedresources: Some(VmConfig {
            memory: 64 * 1024,
            vcpus: 1,
            ..VmConfig::default()
        }),
        volume_ref_list: vec![VolumeRef {
            uuid: id(13),
            ..VolumeRef::default()
        }],
        ..AppInstanceConfig::default()
    }];
    config
}

/// Waits until the device is to run its app, or to have it and not run it.
async fn runs(running: &mut Running, wanted: bool) {
    running
        .desires(|desired| desired.apps.values().map(|app| app.activate).eq([wanted]))
        .await;
}

/// Waits until the device has read its checkpoint; gives whether it is to run its app then, in the first wish of all.
async fn runs_from_checkpoint(running: &mut Running) -> bool {
    let desired = running.desires(|desired| !desired.apps.is_empty()).await;
    running.line("skerry: trouble: controller localhost:").await;
    let later = running.desired.borrow().apps.clone();
    assert_eq!(later, desired.apps, "it was something else for a moment");
    desired.apps.values().all(|app| app.activate)
}

/// The controller trusts this boot no more, and the token with which the device asks is not good.
fn refuse(site: &Site) {
    site.with(|state| {
        state.refuse_quotes = true;
        state.refusal = "attestation: Secure Boot is off";
        state.token = Some(b"another".to_vec());
    });
    // Told over the link, so that the device asks now.
    site.answer_with(crate::site::Answer::Good);
}

async fn started(site: &Site, keep_running: Option<bool>) -> (Device, Running) {
    site.with(|state| state.config = config(keep_running));
    let device = Device::new(site).with_tpm();
    let mut running = device.start();
    runs(&mut running, true).await;
    site.until("the link is open", |state| (state.proofs > 0).then_some(()))
        .await;
    (device, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_device_that_may_not_go_on_does_not_after_a_power_cut_either() {
    let site = Site::start().await;
    let (device, mut running) = started(&site, Some(false)).await;
    let kept = pillar::refusal::file(device.paths());
    assert!(!kept.exists());
    refuse(&site);
    runs(&mut running, false).await;
    // Its app is stopped and not taken away; and whoever cuts the power now is too late.
    assert!(kept.exists());
    running.cut().await;

    // The cable is pulled, and the box started; and again; and its disk is damaged at just that place.
    site.with(|state| state.down = true);
    for damage in [false, false, true] {
        if damage {
            std::fs::write(&kept, b"rubbish").unwrap();
        }
        let mut running = device.start();
        assert!(!runs_from_checkpoint(&mut running).await, "{damage}");
        let line = running.line("skerry: trouble: attestation: ").await;
        assert!(line.contains("before this start"), "{line}");
        let told = running.lines().iter().any(|line| line.contains("damaged"));
        assert_eq!(told, damage);
        running.cut().await;
    }

    // The controller is back, and has not changed its mind.
    let mut running = device.start();
    runs(&mut running, false).await;
    let quotes = site.with(|state| {
        state.down = false;
        state.quotes.len()
    });
    site.until("it has quoted in vain", |state| {
        (state.quotes.len() > quotes).then_some(())
    })
    .await;
    running
        .line("skerry: trouble: attestation: the controller refuses")
        .await;
    runs(&mut running, false).await;

    // Now it has.
    site.with(|state| state.refuse_quotes = false);
    runs(&mut running, true).await;
    assert!(!kept.exists());
    running.cut().await;
    site.with(|state| state.down = true);
    let mut running = device.start();
    assert!(runs_from_checkpoint(&mut running).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_device_goes_on_if_its_policy_says_nothing_else() {
    for keep_running in [None, Some(true)] {
        let site = Site::start().await;
        let (device, mut running) = started(&site, keep_running).await;
        let mut desired = running.desired.clone();
        desired.mark_unchanged();
        refuse(&site);
        running
            .line("skerry: trouble: attestation: the controller refuses")
            .await;
        site.until("the controller is told", |state| {
            crate::trouble(state, "attestation").map(drop)
        })
        .await;
        assert!(!desired.has_changed().unwrap(), "{keep_running:?}");
        runs(&mut running, true).await;
        running.cut().await;
        site.with(|state| state.down = true);
        let mut running = device.start();
        assert!(runs_from_checkpoint(&mut running).await);
        running
            .line("skerry: trouble: attestation: the controller refused")
            .await;
    }
}
