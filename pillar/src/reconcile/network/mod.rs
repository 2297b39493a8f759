//! The network reconciler: a bridge for each local network instance, taps for apps, dnsmasq on each bridge, and one table
//! of packet filter rules over all.
//!
//! Each pass looks at what there is, so that a link that someone else removed comes back.

pub mod dnsmasq;
pub mod links;
pub mod nft;
pub mod plan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protocol::ids::NetworkInstanceId;
use tokio::sync::watch;
use tokio::time::Instant;

use self::links::{LinkError, Links};
use self::plan::{Wanted, WantedNetwork};
use super::allocation::Allocated;
use super::delay::LOCAL;
use crate::domain::observed::{NetworkStatus, Trouble};
use crate::host::files::{self, FileError};
use crate::host::program::{Program, ProgramError};
use crate::host::units::{self, UnitSpec, UnitState, Units};
use crate::paths::Paths;

/// How often everything is looked at without a cause.
const LOOK_EVERY: Duration = Duration::from_secs(120);

/// Where the device's name servers are looked for, the first that exists.
const RESOLVERS: [&str; 3] = [
    "/run/systemd/resolve/resolv.conf",
    "/run/resolv.conf",
    "/etc/resolv.conf",
];

/// All networks.
pub type Networks = BTreeMap<NetworkInstanceId, NetworkStatus>;

/// Something about a network that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A file for dnsmasq.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Something that all networks need.
    #[error("what all networks of the device need could not be set up: {0}")]
    Host(Arc<NetworkError>),
}

/// Follows the desired state for ever.
pub async fn run(
    mut allocated: watch::Receiver<Arc<Allocated>>,
    paths: Paths,
    units: Arc<dyn Units>,
    changed: watch::Sender<Arc<Networks>>,
) {
    let mut executor = Executor {
        dir: paths.run.join("net"),
        units,
        loaded: None,
        served: BTreeMap::new(),
    };
    let mut failures = 0;
    loop {
        let wanted = plan::wanted(&allocated.borrow_and_update());
        let names: BTreeMap<NetworkInstanceId, String> = allocated
            .borrow()
            .desired
            .networks
            .iter()
            .map(|(id, network)| (*id, network.name.clone()))
            .collect();
        let errors = executor.apply(&wanted).await;
        let delay = if errors.is_empty() {
            failures = 0;
            LOOK_EVERY
        } else {
            failures += 1;
            LOCAL.after(failures)
        };
        let now = SystemTime::now();
        let statuses: Networks = wanted
            .networks
            .iter()
            .map(|(id, network)| {
                let error = errors.get(id);
                let message = error
                    .map(ToString::to_string)
                    .or_else(|| network.conflicts.first().cloned());
                let status = NetworkStatus {
                    name: names.get(id).cloned().unwrap_or_default(),
                    up: error.is_none(),
                    bridge: network.bridge.clone(),
                    leases: network.leases.clone(),
                    trouble: message.map(|message| Trouble {
                        message,
                        at: now,
                        retry_at: error.map(|_| now + delay),
                    }),
                };
                (*id, status)
            })
            .collect();
        for (id, error) in &errors {
            tracing::warn!(network = %id, %error, retry_seconds = delay.as_secs(), "network could not be set up");
        }
        publish(statuses, &changed);
        let again = Instant::now() + delay;
        // Without networks there is nothing to look at.
        let idle = wanted.networks.is_empty() && errors.is_empty();
        tokio::select! {
            result = allocated.changed() => if result.is_err() { return },
            () = tokio::time::sleep_until(again), if !idle => {}
        }
    }
}

/// A trouble's time alone is no news.
fn publish(statuses: Networks, changed: &watch::Sender<Arc<Networks>>) {
    let plain = |networks: &Networks| {
        let mut networks = networks.clone();
        for status in networks.values_mut() {
            if let Some(trouble) = &mut status.trouble {
                trouble.at = SystemTime::UNIX_EPOCH;
                trouble.retry_at = None;
            }
        }
        networks
    };
    changed.send_if_modified(|current| {
        let differs = plain(current) != plain(&statuses);
        if differs {
            *current = Arc::new(statuses);
        }
        differs
    });
}

struct Executor {
    dir: PathBuf,
    units: Arc<dyn Units>,
    /// The rules that were loaded last.
    loaded: Option<String>,
    /// What each dnsmasq was started with: configuration and lists.
    served: BTreeMap<String, (String, String)>,
}

impl Executor {
    async fn apply(&mut self, wanted: &Wanted) -> BTreeMap<NetworkInstanceId, NetworkError> {
        let mut errors = BTreeMap::new();
        // The rules come first: no packet passes a bridge that has no rules.
        if let Err(error) = self.load_rules(wanted).await {
            return all_fail(wanted, error);
        }
        let links = match Links::open() {
            Ok(links) => links,
            Err(error) => return all_fail(wanted, error.into()),
        };
        match links.list().await {
            Ok(there) => {
                for step in plan::surplus(&there, wanted) {
                    if let Err(error) = links.apply(&step).await {
                        tracing::warn!(%error, "a network interface that nobody wants could not be removed");
                    }
                }
            }
            Err(error) => return all_fail(wanted, error.into()),
        }
        for (id, network) in &wanted.networks {
            if let Err(error) = self.apply_one(&links, network).await {
                errors.insert(*id, error);
            }
        }
        if let Err(error) = self.end_surplus(wanted).await {
            tracing::warn!(%error, "a dnsmasq that nobody wants could not be ended");
        }
        errors
    }

    async fn load_rules(&mut self, wanted: &Wanted) -> Result<(), NetworkError> {
        let rules = nft::ruleset(&wanted.filtered(), &wanted.maps);
        if wanted.networks.is_empty() && self.loaded.is_none() {
            // A device that never had a network needs neither table nor program.
            return Ok(());
        }
        if !wanted.networks.is_empty() {
            links::set_sysctl("/proc/sys/net/ipv4/ip_forward", "1")?;
        }
        let there = Program::new("nft")
            .args(["list", "table", "inet", "skerry"])
            .run()
            .await
            .is_ok();
        if self.loaded.as_ref() == Some(&rules) && there != wanted.networks.is_empty() {
            return Ok(());
        }
        Program::new("nft")
            .args(["-f", "-"])
            .input(rules.clone())
            .run()
            .await?;
        self.loaded = Some(rules);
        Ok(())
    }

    async fn apply_one(
        &mut self,
        links: &Links,
        network: &WantedNetwork,
    ) -> Result<(), NetworkError> {
        for step in plan::steps(&links.list().await?, network) {
            links.apply(&step).await?;
        }
        self.serve(network).await
    }

    /// Sees to it that dnsmasq runs on a bridge and knows its hosts.
    async fn serve(&mut self, network: &WantedNetwork) -> Result<(), NetworkError> {
        let dir = self.dir.join(&network.bridge);
        // dnsmasq reads the lists again after it has given up root.
        for dir in [self.dir.as_path(), dir.as_path()] {
            files::make_dir(dir, 0o755)?;
        }
        let resolvers = RESOLVERS.iter().map(Path::new).find(|path| path.exists());
        let config = dnsmasq::config(
            &network.service,
            &dir,
            resolvers.unwrap_or(Path::new("/run/resolv.conf")),
        );
        let lists = format!(
            "{}\0{}",
            dnsmasq::hosts(&network.service),
            dnsmasq::names(&network.service)
        );
        let config_path = dir.join("dnsmasq.conf");
        let unit = units::net_unit(&network.bridge);
        let mut state = self.units.look(&unit).await?;
        // What a dnsmasq from before our restart was started with is on the disk.
        let before = self.served.get(&network.bridge).cloned().or_else(|| {
            let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
            Some((
                read("dnsmasq.conf")?,
                format!("{}\0{}", read("hosts")?, read("names")?),
            ))
        });
        if matches!(state, UnitState::Running { .. })
            && before.as_ref().is_some_and(|before| before.0 != config)
        {
            state = units::kill(self.units.as_ref(), &unit).await?;
        }
        files::write_volatile(
            &dir.join("hosts"),
            dnsmasq::hosts(&network.service).as_bytes(),
            0o644,
        )?;
        files::write_volatile(
            &dir.join("names"),
            dnsmasq::names(&network.service).as_bytes(),
            0o644,
        )?;
        files::write_volatile(&config_path, config.as_bytes(), 0o644)?;
        match state {
            UnitState::Running { .. } => {
                if before.is_none_or(|before| before.1 != lists) {
                    self.units.signal(&unit, libc::SIGHUP, false).await?;
                }
            }
            UnitState::Gone | UnitState::Ended { .. } => {
                if let UnitState::Ended { how } = &state {
                    tracing::warn!(unit, how, "dnsmasq is started again");
                }
                self.units.forget(&unit).await?;
                self.units.start(dnsmasq_unit(unit, &config_path)).await?;
            }
        }
        self.served.insert(network.bridge.clone(), (config, lists));
        Ok(())
    }

    async fn end_surplus(&mut self, wanted: &Wanted) -> Result<(), NetworkError> {
        let keep: Vec<String> = wanted
            .networks
            .values()
            .map(|network| units::net_unit(&network.bridge))
            .collect();
        for unit in self.units.list(units::NET_UNITS).await? {
            if !keep.contains(&unit) {
                units::kill(self.units.as_ref(), &unit).await?;
                self.units.forget(&unit).await?;
            }
        }
        let bridges: Vec<&String> = wanted
            .networks
            .values()
            .map(|network| &network.bridge)
            .collect();
        for bridge in self
            .served
            .keys()
            .filter(|bridge| !bridges.contains(bridge))
        {
            files::remove_tree(&self.dir.join(bridge))?;
        }
        self.served.retain(|bridge, _| bridges.contains(&bridge));
        Ok(())
    }
}

/// The host failed, and every network with it.
fn all_fail(wanted: &Wanted, error: NetworkError) -> BTreeMap<NetworkInstanceId, NetworkError> {
    let error = Arc::new(error);
    let one = |id: &NetworkInstanceId| (*id, NetworkError::Host(error.clone()));
    wanted.networks.keys().map(one).collect()
}

fn dnsmasq_unit(name: String, config: &Path) -> UnitSpec {
    let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    UnitSpec {
        name,
        description: "DHCP and DNS for the apps of one network".into(),
        program: "/usr/sbin/dnsmasq".into(),
        args: vec![
            "--keep-in-foreground".into(),
            format!("--conf-file={}", config.display()).into(),
        ],
        properties: vec![
            property("Restart", "on-failure"),
            property("RestartSec", "2"),
            property("Slice", "skerry.slice"),
            property("MemoryMax", "32M"),
            property("TasksMax", "16"),
            property("NoNewPrivileges", "yes"),
            property("ProtectSystem", "strict"),
            property("ProtectHome", "yes"),
            property("PrivateDevices", "yes"),
            property(
                "CapabilityBoundingSet",
                "CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID",
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::desired::{Desired, NetworkInstance};
    use crate::reconcile::ledger::Ledger;

    #[test]
    fn a_failure_of_the_host_is_told_as_such_at_every_network() {
        let mut desired = Desired::default();
        for n in 1..=2 {
            desired.networks.insert(
                NetworkInstanceId(uuid::Uuid::from_u128(n.into())),
                NetworkInstance {
                    name: "n".into(),
                    gateway: [10, n, 0, 1].into(),
                    prefix: 24,
                    range: ([10, n, 0, 2].into(), [10, n, 0, 9].into()),
                    dns: vec![],
                },
            );
        }
        let wanted = plan::wanted(&Allocated {
            ledger: Ledger::default().update(&desired, &BTreeSet::new()),
            desired: Arc::new(desired),
        });
        let source = std::io::Error::from_raw_os_error(libc::ENOENT);
        let program = "nft".to_owned();
        let errors = all_fail(&wanted, ProgramError::Start { program, source }.into());
        assert_eq!(errors.len(), 2);
        for error in errors.values() {
            assert!(matches!(error, NetworkError::Host(_)));
            let text = error.to_string();
            assert!(
                text.contains("all networks") && text.contains("nft"),
                "{text}"
            );
        }
    }
}
