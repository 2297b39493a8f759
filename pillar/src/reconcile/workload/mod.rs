//! The workload reconciler: runs apps as virtual machines or native containers.
//!
//! Works out for each app what is wanted of it ([`start`]) and hands that to the task that looks after it ([`app`]).

pub mod app;
pub mod bundle;
pub mod guest;
pub mod life;
pub mod namespaces;
pub mod native;
pub mod process;
pub mod record;
pub mod run;
pub mod seed;
pub mod start;
pub mod status;
pub mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use protocol::ids::AppId;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use self::app::{Actor, Context, Input};
use self::life::Want;
use super::allocation::{Allocated, apps_with_a_directory};
use super::content::Contents;
use super::ledger::Port;
use super::network::Networks;
use super::volume::Volumes;
use crate::host::units::{APP_UNITS, app_of};

/// What the workload reconciler follows.
pub struct Sources {
    /// What is wanted.
    pub allocated: watch::Receiver<Arc<Allocated>>,
    /// Images.
    pub contents: watch::Receiver<Arc<Contents>>,
    /// Disks.
    pub volumes: watch::Receiver<Arc<Volumes>>,
    /// Networks.
    pub networks: watch::Receiver<Arc<Networks>>,
}

/// Follows the sources for ever. `gone` is told when an app's last traces were taken away.
pub async fn run(mut sources: Sources, context: Context, gone: Arc<Notify>) {
    let mut found = found(&context).await;
    let mut inputs: BTreeMap<AppId, watch::Sender<Input>> = BTreeMap::new();
    let mut actors: JoinSet<AppId> = JoinSet::new();
    loop {
        let allocated = sources.allocated.borrow_and_update().clone();
        let contents = sources.contents.borrow_and_update().clone();
        let volumes = sources.volumes.borrow_and_update().clone();
        let networks = sources.networks.borrow_and_update().clone();
        let mut ids: BTreeSet<AppId> = allocated.desired.apps.keys().copied().collect();
        ids.extend(inputs.keys().copied());
        ids.append(&mut found);
        for id in ids {
            let input = input(id, &allocated, &contents, &volumes, &networks);
            match inputs.get(&id) {
                Some(sender) => {
                    sender.send_if_modified(|current| {
                        let differs = *current != input;
                        *current = input;
                        differs
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(input);
                    inputs.insert(id, sender);
                    actors.spawn(Actor::new(id, context.clone()).run(receiver));
                }
            }
        }
        tokio::select! {
            result = sources.allocated.changed() => if result.is_err() { return },
            result = sources.contents.changed() => if result.is_err() { return },
            result = sources.volumes.changed() => if result.is_err() { return },
            result = sources.networks.changed() => if result.is_err() { return },
            Some(ended) = actors.join_next() => match ended {
                Ok(id) => {
                    inputs.remove(&id);
                    context.apps.send_if_modified(|apps| Arc::make_mut(apps).remove(&id).is_some());
                    gone.notify_one();
                }
                Err(error) => {
                    // Which one it was is not told; those that have no task any more get a new one.
                    tracing::error!(%error, "a task that looks after an app stopped unexpectedly; it is started again");
                    inputs.retain(|_, sender| !sender.is_closed());
                }
            },
        }
    }
}

/// Apps that an earlier run of the agent left: by their directories, their units, and the counts of their restarts.
async fn found(context: &Context) -> BTreeSet<AppId> {
    let mut apps = apps_with_a_directory(&context.paths);
    apps.extend(record::counted(&context.paths));
    match context.units.list(APP_UNITS).await {
        Ok(units) => apps.extend(units.iter().filter_map(|unit| app_of(unit))),
        Err(error) => {
            tracing::warn!(%error, "running apps could not be looked for; their directories tell of them")
        }
    }
    apps
}

/// What is wanted of one app.
fn input(
    id: AppId,
    allocated: &Allocated,
    contents: &Contents,
    volumes: &Volumes,
    networks: &Networks,
) -> Input {
    let Some(app) = allocated.desired.apps.get(&id) else {
        return Input {
            name: id.to_string(),
            want: Want::Remove,
            trouble: None,
            addresses: BTreeMap::new(),
            links: BTreeMap::new(),
        };
    };
    let addresses: BTreeMap<String, Ipv4Addr> = app
        .interfaces
        .iter()
        .enumerate()
        .filter_map(|(interface, plug)| {
            let address = allocated
                .ledger
                .lease(plug.network, Port { app: id, interface })?;
            Some((plug.name.clone(), address))
        })
        .collect();
    let number = allocated.ledger.app(id);
    let links = app
        .interfaces
        .iter()
        .enumerate()
        .filter_map(|(interface, plug)| Some((plug.name.clone(), number?.tap(interface))))
        .collect();
    let (want, trouble) = if app.activate {
        match start::resolve(id, app, allocated, contents, volumes, networks) {
            Ok(start) => (Want::Run(Arc::new(start)), None),
            Err(trouble) => (Want::Prepare, trouble),
        }
    } else {
        (Want::Halt, None)
    };
    Input {
        name: app.name.clone(),
        want,
        trouble,
        addresses,
        links,
    }
}
