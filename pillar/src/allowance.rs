//! What a device may run of what its config wants: all of it, or nothing while its boot is refused and the policy in force says so.
//!
//! ```text
//! config in force --'
//!                   +--> allowed --> desired
//! attestation ------'
//! ```
//!
//! Apps are stopped and nothing of theirs is removed: once the controller trusts the device's boot again, they go on with their volumes.
//! A policy comes with the config, and a refused device gets no config; it goes by the policy that it heard of last. A refusal outlives the
//! agent ([`crate::refusal`]), as the config does.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::InForce;
use crate::context::Attestation;
use crate::domain::desired::Desired;

/// Tells the reconcilers what the device is to be, for as long as the agent lives.
pub async fn run(
    mut config: watch::Receiver<Arc<InForce>>,
    mut attestation: watch::Receiver<Attestation>,
    desired: watch::Sender<Arc<Desired>>,
) {
    let mut told = false;
    loop {
        let in_force = config.borrow_and_update().clone();
        let refused = attestation.borrow_and_update().is_refused();
        // The first config is told even if it is empty: until then the reconcilers touch nothing.
        if in_force.since.is_some() {
            let wanted = allowed(&in_force, refused);
            desired.send_if_modified(|known| {
                let changed = !told || *known != wanted;
                if changed {
                    known.clone_from(&wanted);
                }
                changed
            });
            told = true;
        }
        // Who sends them lives as long as the agent; without them nothing changes any more.
        let more = tokio::select! {
            more = config.changed() => more,
            more = attestation.changed() => more,
        };
        if more.is_err() {
            return;
        }
    }
}

/// What of a config may run.
fn allowed(in_force: &InForce, refused: bool) -> Arc<Desired> {
    if !refused || in_force.settings.keep_running {
        return in_force.desired.clone();
    }
    let mut desired = (*in_force.desired).clone();
    for app in desired.apps.values_mut() {
        app.activate = false;
    }
    Arc::new(desired)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use protocol::ids::AppId;

    use super::*;
    use crate::domain::desired::{App, Runtime};

    fn in_force(keep_running: bool) -> InForce {
        let app = App {
            name: "one".to_owned(),
            activate: true,
            vcpus: 1,
            memory_mib: 64,
            runtime: Runtime::ContainerNative,
            volumes: vec![],
            interfaces: vec![],
            env: vec![],
            user_data: None,
            restart_counter: 0,
            purge_counter: 0,
        };
        let mut in_force = InForce {
            since: Some(SystemTime::UNIX_EPOCH),
            ..InForce::default()
        };
        in_force.settings.keep_running = keep_running;
        let desired = Arc::make_mut(&mut in_force.desired);
        desired.apps.insert(AppId(uuid::Uuid::from_u128(1)), app);
        in_force
    }

    #[test]
    fn only_a_refused_device_whose_policy_says_so_stops_its_apps() {
        for (keep_running, refused, runs) in [
            (true, false, true),
            (true, true, true),
            (false, false, true),
            (false, true, false),
        ] {
            let in_force = in_force(keep_running);
            let allowed = allowed(&in_force, refused);
            let apps: Vec<_> = allowed.apps.values().map(|app| app.activate).collect();
            assert_eq!(apps, [runs], "{keep_running} {refused}");
            assert_eq!(allowed.volumes, in_force.desired.volumes);
        }
    }

    #[tokio::test]
    async fn nothing_is_told_before_there_is_a_config_and_an_empty_one_is() {
        let config = watch::Sender::new(Arc::new(InForce::default()));
        let attestation = watch::Sender::new(Attestation::default());
        let (desired, mut seen) = watch::channel(Arc::new(Desired::default()));
        let task = tokio::spawn(run(config.subscribe(), attestation.subscribe(), desired));
        tokio::task::yield_now().await;
        assert!(!seen.has_changed().unwrap());
        let empty = InForce {
            since: Some(SystemTime::UNIX_EPOCH),
            ..InForce::default()
        };
        config.send_replace(Arc::new(empty));
        seen.changed().await.unwrap();
        config.send_replace(Arc::new(in_force(false)));
        seen.changed().await.unwrap();
        assert!(seen.borrow().apps.values().all(|app| app.activate));
        attestation.send_replace(Attestation::Failed {
            reason: "no".to_owned(),
            at: None,
            refused: true,
        });
        seen.changed().await.unwrap();
        assert!(seen.borrow().apps.values().all(|app| !app.activate));
        task.abort();
    }
}
