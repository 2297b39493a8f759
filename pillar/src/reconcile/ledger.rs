//! What is given out once and kept: numbers of apps and networks, addresses, and how often a volume was purged.
//!
//! The numbers become uids, names of taps and bridges and vsock context ids; the addresses are leases without an end.
//! All of it must be the same after a restart, or a running VM would lose its tap and a user his bookmark. Kept in one
//! file, written whole at each change, and in a copy below `/run`, which is there for as long as anything can run that
//! was given a number.
//!
//! What is done when the file is lost (both generations are damaged, their sectors cannot be read, or their content
//! cannot be understood):
//!
//! 1. The copy is taken: whatever runs, was started with what stands there.
//! 2. Without a copy a new ledger is begun, but only when no app runs any more: what runs is killed first
//!    ([`super::allocation`]), since nobody knows which uids, taps and addresses it holds.
//!
//! Either way an operator is told. A disk that merely refuses for now is no loss: it is asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use hypervisor_api::mac::MacAddress;
use protocol::digest::Digest;
use protocol::ids::{AppId, NetworkInstanceId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::domain::desired::{Desired, NetworkInstance};
use crate::generations;
use crate::paths::Paths;

/// App numbers go up to this one and begin anew, so that a uid is not used again soon.
const APP_NUMBERS: u32 = 10_000;

/// uid of the app with the number 0. Above what Debian, systemd and login users take.
const FIRST_UID: u32 = 200_000;

/// First id of the 65,536 that the native container with the number 0 is given.
const FIRST_SUBORDINATE_ID: u32 = 0x1000_0000;

/// The number of an app, unique on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct AppNumber(u32);

/// A number that no app can have.
#[derive(Debug, thiserror::Error)]
#[error("{0} is no app's number")]
pub struct NoAppNumber(u32);

impl TryFrom<u32> for AppNumber {
    type Error = NoAppNumber;

    fn try_from(number: u32) -> Result<Self, NoAppNumber> {
        if number < APP_NUMBERS {
            Ok(Self(number))
        } else {
            Err(NoAppNumber(number))
        }
    }
}

impl From<AppNumber> for u32 {
    fn from(number: AppNumber) -> Self {
        number.0
    }
}

impl AppNumber {
    /// uid and gid of the app's monitor.
    #[must_use]
    pub fn uid(self) -> u32 {
        FIRST_UID + self.0
    }

    /// First of the 65,536 ids that a native container's users are mapped to.
    #[must_use]
    pub fn subordinate_ids(self) -> u32 {
        FIRST_SUBORDINATE_ID + self.0 * 65_536
    }

    /// vsock context id; 0 to 2 are taken (linux/vm_sockets.h).
    #[must_use]
    pub fn cid(self) -> u32 {
        3 + self.0
    }

    /// Name of the tap (or of the host's end of the veth pair) of an interface. At most 11 of the 15 bytes that a name
    /// may have.
    #[must_use]
    pub fn tap(self, interface: usize) -> String {
        format!("tap{}-{interface}", self.0)
    }
}

/// The number of a network instance, unique on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkNumber(u32);

impl NetworkNumber {
    /// Name of its bridge.
    #[must_use]
    pub fn bridge(self) -> String {
        format!("bn{}", self.0)
    }
}

/// An interface of an app: the app and the interface's place in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// The app.
    pub app: AppId,
    /// Counted from 0.
    pub interface: usize,
}

/// Everything that was given out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ledger {
    apps: BTreeMap<AppId, AppNumber>,
    next_app: u32,
    networks: BTreeMap<NetworkInstanceId, NetworkNumber>,
    leases: BTreeMap<NetworkInstanceId, Vec<(Port, Ipv4Addr)>>,
    purges: BTreeMap<AppId, u32>,
    epochs: BTreeMap<VolumeId, i64>,
}

impl Ledger {
    /// The number of an app.
    #[must_use]
    pub fn app(&self, app: AppId) -> Option<AppNumber> {
        self.apps.get(&app).copied()
    }

    /// The number of a network.
    #[must_use]
    pub fn network(&self, network: NetworkInstanceId) -> Option<NetworkNumber> {
        self.networks.get(&network).copied()
    }

    /// The address of an app's interface on a network.
    #[must_use]
    pub fn lease(&self, network: NetworkInstanceId, port: Port) -> Option<Ipv4Addr> {
        let leases = self.leases.get(&network)?;
        leases
            .iter()
            .find(|(holder, _)| *holder == port)
            .map(|(_, address)| *address)
    }

    /// The generation of a volume's file: the controller's, and one more for each purge of an app that it belongs to.
    #[must_use]
    pub fn generation(&self, volume: VolumeId, generation: i64) -> i64 {
        generation.saturating_add(self.epochs.get(&volume).copied().unwrap_or(0))
    }

    /// The ledger for a desired state: what was given out stays, what nobody wants any more is taken back (numbers of
    /// apps in `running` are not: their units still hold uid and taps).
    #[must_use]
    pub fn update(&self, desired: &Desired, running: &BTreeSet<AppId>) -> Self {
        let mut next = self.clone();
        next.apps
            .retain(|app, _| desired.apps.contains_key(app) || running.contains(app));
        for app in desired.apps.keys() {
            if !next.apps.contains_key(app)
                && let Some(number) = next.free_app_number()
            {
                next.apps.insert(*app, number);
                next.next_app = (number.0 + 1) % APP_NUMBERS;
            }
        }
        next.networks
            .retain(|network, _| desired.networks.contains_key(network));
        for network in desired.networks.keys() {
            if !next.networks.contains_key(network) {
                let taken: BTreeSet<u32> = next.networks.values().map(|number| number.0).collect();
                let free = (0..=u32::MAX)
                    .find(|number| !taken.contains(number))
                    .unwrap_or(u32::MAX);
                next.networks.insert(*network, NetworkNumber(free));
            }
        }
        next.leases = desired
            .networks
            .iter()
            .map(|(id, network)| {
                let before = self.leases.get(id).map_or(&[][..], Vec::as_slice);
                (*id, lease(*id, network, desired, before))
            })
            .collect();
        next.count_purges(desired);
        next
    }

    fn free_app_number(&self) -> Option<AppNumber> {
        let taken: BTreeSet<u32> = self.apps.values().map(|number| number.0).collect();
        (0..APP_NUMBERS)
            .map(|step| (self.next_app % APP_NUMBERS + step) % APP_NUMBERS)
            .find(|number| !taken.contains(number))
            .map(AppNumber)
    }

    /// A purge counter that went up means: this app's volumes are made anew. The first counter that is seen of an app
    /// is only noted.
    fn count_purges(&mut self, desired: &Desired) {
        self.purges.retain(|app, _| desired.apps.contains_key(app));
        self.epochs
            .retain(|volume, _| desired.volumes.contains_key(volume));
        for (id, app) in &desired.apps {
            let before = self.purges.insert(*id, app.purge_counter);
            if before.is_some_and(|before| before != app.purge_counter) {
                for mount in &app.volumes {
                    let epoch = self.epochs.entry(mount.volume).or_insert(0);
                    *epoch = epoch.saturating_add(1);
                }
            }
        }
    }
}

/// Gives each interface on a network an address: the one that the controller fixed, the one that it had, or a free one,
/// searched from a place that its ids determine.
fn lease(
    id: NetworkInstanceId,
    network: &NetworkInstance,
    desired: &Desired,
    before: &[(Port, Ipv4Addr)],
) -> Vec<(Port, Ipv4Addr)> {
    let ports: Vec<(Port, Option<Ipv4Addr>)> = desired
        .apps
        .iter()
        .flat_map(|(app, wanted)| {
            wanted
                .interfaces
                .iter()
                .enumerate()
                .map(move |(interface, plug)| {
                    (
                        Port {
                            app: *app,
                            interface,
                        },
                        plug,
                    )
                })
        })
        .filter(|(_, plug)| plug.network == id)
        .map(|(port, plug)| (port, plug.address))
        .collect();
    let (first, last) = (u32::from(network.range.0), u32::from(network.range.1));
    let gateway = u32::from(network.gateway);
    let mut taken: BTreeSet<u32> = BTreeSet::from([gateway]);
    let mut given: BTreeMap<Port, Ipv4Addr> = BTreeMap::new();
    for (port, fixed) in &ports {
        if let Some(address) = fixed
            && taken.insert(u32::from(*address))
        {
            given.insert(*port, *address);
        }
    }
    for (port, _) in &ports {
        let had = before
            .iter()
            .find(|(holder, _)| holder == port)
            .map(|(_, address)| u32::from(*address));
        if !given.contains_key(port)
            && let Some(had) = had.filter(|had| (first..=last).contains(had))
            && taken.insert(had)
        {
            given.insert(*port, had.into());
        }
    }
    for (port, _) in &ports {
        if given.contains_key(port) || last < first {
            continue;
        }
        let size = u64::from(last - first) + 1;
        let seed = Digest::of(format!("{id}/{}/{}", port.app, port.interface).as_bytes());
        let start = seed
            .bytes()
            .iter()
            .take(8)
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
            % size;
        // At most one step more than there are addresses taken is needed, unless the range is full.
        let steps = size.min(taken.len() as u64 + 1);
        let found = (0..steps)
            .filter_map(|step| u32::try_from(u64::from(first) + (start + step) % size).ok())
            .find(|address| !taken.contains(address));
        if let Some(found) = found {
            taken.insert(found);
            given.insert(*port, found.into());
        }
    }
    given.into_iter().collect()
}

/// The hardware address of an app's interface: locally administered, determined by the ids.
#[must_use]
pub fn mac(port: Port) -> MacAddress {
    let digest = Digest::of(format!("mac/{}/{}", port.app, port.interface).as_bytes());
    let [a, b, c, d, e, ..] = *digest.bytes();
    MacAddress([0x02, a, b, c, d, e])
}

/// The hardware address of a network's bridge; without one of its own a bridge takes that of its lowest port, and changes
/// it with the ports.
#[must_use]
pub fn bridge_mac(network: NetworkInstanceId) -> MacAddress {
    let digest = Digest::of(format!("bridge/{network}").as_bytes());
    let [a, b, c, d, e, ..] = *digest.bytes();
    MacAddress([0x02, a, b, c, d, e])
}

/// What was found of the ledger at a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is whole.
    Whole(Ledger),
    /// It was lost, and the copy was whole.
    Copy {
        /// What stands in the copy.
        ledger: Ledger,
        /// How it was lost.
        reason: String,
    },
    /// It was lost, and there is no copy.
    Lost {
        /// How.
        reason: String,
    },
    /// There never was one.
    None,
}

/// The ledger's file and its copy.
#[derive(Clone, Debug)]
pub struct LedgerFile {
    kept: PathBuf,
    copy: PathBuf,
}

impl LedgerFile {
    /// Where they lie.
    #[must_use]
    pub fn at(paths: &Paths) -> Self {
        Self {
            kept: paths.pillar().join("ledger.json"),
            copy: paths.run.join("ledger.json"),
        }
    }

    /// Reads what there is.
    ///
    /// # Errors
    /// When the disk refuses for now.
    pub fn read(&self) -> Result<Found, generations::Error> {
        let reason = match generations::read(&self.kept) {
            Ok(None) => None,
            Ok(Some(bytes)) => match serde_json::from_slice(&bytes) {
                Ok(ledger) => return Ok(Found::Whole(ledger)),
                // The digest was right: these are an agent's own bytes, perhaps a later one's.
                Err(error) => Some(format!(
                    "{} cannot be understood ({error})",
                    self.kept.display()
                )),
            },
            Err(error) if is_loss(&error) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        let copy = generations::read(&self.copy)
            .ok()
            .flatten()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(match (copy, reason) {
            (Some(ledger), reason) => Found::Copy {
                ledger,
                reason: reason.unwrap_or_else(|| format!("{} is gone", self.kept.display())),
            },
            (None, Some(reason)) => Found::Lost { reason },
            (None, None) => Found::None,
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, ledger: &Ledger) -> Result<(), generations::Error> {
        self.write_copy(ledger)?;
        generations::write(&self.kept, &bytes(ledger))
    }

    /// Writes the copy. One that is out of date is worse than none.
    ///
    /// # Errors
    /// When the copy can neither be written nor removed.
    pub fn write_copy(&self, ledger: &Ledger) -> Result<(), generations::Error> {
        match generations::write(&self.copy, &bytes(ledger)) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the copy of the ledger cannot be written; it is removed");
                generations::remove(&self.copy)
            }
        }
    }
}

fn bytes(ledger: &Ledger) -> Vec<u8> {
    // Maps of ids to numbers go into memory without fail.
    serde_json::to_vec(ledger).unwrap_or_default()
}

/// Whether what lay there is gone for good: damaged, or on sectors that the disk cannot read.
fn is_loss(error: &generations::Error) -> bool {
    match error {
        generations::Error::Damaged { .. } => true,
        generations::Error::File(error) => error.source.raw_os_error() == Some(libc::EIO),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::desired::{App, AppInterface, Runtime, VolumeMount};

    fn app(network: u128, address: Option<Ipv4Addr>) -> App {
        App {
            name: "a".into(),
            activate: true,
            vcpus: 1,
            memory_mib: 64,
            runtime: Runtime::ContainerMicrovm,
            volumes: vec![VolumeMount {
                volume: VolumeId(Uuid::from_u128(7)),
                mount_dir: String::new(),
            }],
            interfaces: vec![AppInterface {
                name: "eth0".into(),
                network: NetworkInstanceId(Uuid::from_u128(network)),
                mac: None,
                address,
                port_maps: vec![],
            }],
            env: vec![],
            user_data: None,
            restart_counter: 0,
            purge_counter: 0,
        }
    }

    fn desired(apps: &[u128], last: Ipv4Addr) -> Desired {
        let mut desired = Desired::default();
        desired.networks.insert(
            NetworkInstanceId(Uuid::from_u128(1)),
            NetworkInstance {
                name: "n".into(),
                gateway: Ipv4Addr::new(10, 1, 0, 1),
                prefix: 24,
                range: (Ipv4Addr::new(10, 1, 0, 2), last),
                dns: vec![],
            },
        );
        for id in apps {
            desired
                .apps
                .insert(AppId(Uuid::from_u128(*id)), app(1, None));
        }
        desired
    }

    const NETWORK: NetworkInstanceId = NetworkInstanceId(Uuid::from_u128(1));

    fn port(app: u128) -> Port {
        Port {
            app: AppId(Uuid::from_u128(app)),
            interface: 0,
        }
    }

    #[test]
    fn what_was_given_out_stays() {
        let wide = Ipv4Addr::new(10, 1, 0, 254);
        let none = BTreeSet::new();
        let one = Ledger::default().update(&desired(&[5], wide), &none);
        let two = one.update(&desired(&[4, 5, 6], wide), &none);
        assert_eq!(one.app(port(5).app), two.app(port(5).app));
        assert_eq!(one.lease(NETWORK, port(5)), two.lease(NETWORK, port(5)));
        assert_eq!(two, two.update(&desired(&[4, 5, 6], wide), &none));
        let uids: BTreeSet<u32> = [4, 5, 6]
            .map(|id| two.app(port(id).app).unwrap().uid())
            .into();
        assert_eq!(uids.len(), 3);
        // An app that is gone but still runs keeps its number; another one gets a fresh one even so.
        let gone = two.update(&desired(&[], wide), &BTreeSet::from([port(5).app]));
        assert_eq!(gone.app(port(5).app), two.app(port(5).app));
        assert_eq!(gone.app(port(4).app), None);
        let later = gone.update(&desired(&[9], wide), &BTreeSet::new());
        assert_eq!(later.app(port(9).app).unwrap().uid(), FIRST_UID + 3);
    }

    #[test]
    fn addresses_are_unique_fixed_ones_first_until_the_range_is_full() {
        let mut wanted = desired(&[1, 2, 3, 4], Ipv4Addr::new(10, 1, 0, 4));
        let fixed = Ipv4Addr::new(10, 1, 0, 3);
        wanted.apps.get_mut(&port(4).app).unwrap().interfaces[0].address = Some(fixed);
        let ledger = Ledger::default().update(&wanted, &BTreeSet::new());
        assert_eq!(ledger.lease(NETWORK, port(4)), Some(fixed));
        let given: Vec<Ipv4Addr> = (1..=4)
            .filter_map(|id| ledger.lease(NETWORK, port(id)))
            .collect();
        let distinct: BTreeSet<&Ipv4Addr> = given.iter().collect();
        assert_eq!((given.len(), distinct.len()), (3, 3));
        assert!(
            given
                .iter()
                .all(|address| (2..=4).contains(&address.octets()[3]))
        );
    }

    #[test]
    fn a_range_that_moves_takes_its_addresses_along() {
        let before = Ledger::default().update(
            &desired(&[1], Ipv4Addr::new(10, 1, 0, 254)),
            &BTreeSet::new(),
        );
        let mut moved = desired(&[1], Ipv4Addr::new(10, 9, 0, 9));
        moved.networks.get_mut(&NETWORK).unwrap().range.0 = Ipv4Addr::new(10, 9, 0, 2);
        let after = before.update(&moved, &BTreeSet::new());
        assert_eq!(after.lease(NETWORK, port(1)).unwrap().octets()[1], 9);
    }

    #[test]
    fn a_purge_raises_the_generation_of_the_apps_volumes_once() {
        let wide = Ipv4Addr::new(10, 1, 0, 254);
        let volume = VolumeId(Uuid::from_u128(7));
        let mut wanted = desired(&[1], wide);
        wanted.volumes.insert(
            volume,
            crate::domain::desired::Volume {
                name: "v".into(),
                content: protocol::ids::ContentId(Uuid::nil()),
                generation: 3,
                size_bytes: 0,
                readonly: false,
            },
        );
        wanted.apps.get_mut(&port(1).app).unwrap().purge_counter = 10;
        let ledger = Ledger::default().update(&wanted, &BTreeSet::new());
        assert_eq!(ledger.generation(volume, 3), 3);
        wanted.apps.get_mut(&port(1).app).unwrap().purge_counter = 11;
        let ledger = ledger.update(&wanted, &BTreeSet::new());
        let ledger = ledger.update(&wanted, &BTreeSet::new());
        assert_eq!(ledger.generation(volume, 3), 4);
    }

    #[test]
    fn numbers_that_were_never_given_out_are_no_ledger_and_counters_stay_in_range() {
        let text = |app: u32, next: u32| {
            let id = Uuid::from_u128(1);
            format!(r#"{{"apps":{{"{id}":{app}}},"nextApp":{next}}}"#)
        };
        assert!(serde_json::from_str::<Ledger>(&text(APP_NUMBERS, 0)).is_err());
        let ledger: Ledger = serde_json::from_str(&text(APP_NUMBERS - 1, u32::MAX)).unwrap();
        let last = Ipv4Addr::new(10, 1, 0, 200);
        let next = ledger.update(&desired(&[1, 2], last), &BTreeSet::new());
        assert!(next.app(AppId(Uuid::from_u128(2))).is_some());
    }

    #[test]
    fn names_fit_into_what_the_kernel_allows() {
        let number = AppNumber(APP_NUMBERS - 1);
        assert!(number.tap(99).len() <= 15);
        assert!(number.subordinate_ids().checked_add(65_536).is_some());
        assert_ne!(mac(port(1)), mac(port(2)));
        assert_eq!(mac(port(1)).0[0] & 3, 2);
    }

    fn place() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            persist: dir.path().join("persist"),
            run: dir.path().join("run"),
            ..Paths::default()
        };
        (dir, paths)
    }

    #[test]
    fn the_file_is_read_back() {
        let (_dir, paths) = place();
        let file = LedgerFile::at(&paths);
        assert_eq!(file.read().unwrap(), Found::None);
        let ledger = Ledger::default().update(
            &desired(&[1, 2], Ipv4Addr::new(10, 1, 0, 9)),
            &BTreeSet::new(),
        );
        file.write(&ledger).unwrap();
        assert_eq!(file.read().unwrap(), Found::Whole(ledger));
    }

    #[test]
    fn what_cannot_be_read_or_understood_is_lost_the_same_way() {
        let (_dir, paths) = place();
        let file = LedgerFile::at(&paths);
        let ledger = Ledger::default().update(
            &desired(&[1, 2], Ipv4Addr::new(10, 1, 0, 9)),
            &BTreeSet::new(),
        );
        let rubbish = |path: &PathBuf| std::fs::write(path, b"rubbish").unwrap();
        let strange = |path: &PathBuf| generations::write(path, b"{\"apps\": 7}").unwrap();
        let spoilers: [&dyn Fn(&PathBuf); 2] = [&rubbish, &strange];
        for spoil in spoilers {
            file.write(&ledger).unwrap();
            file.write(&ledger).unwrap();
            spoil(&file.kept);
            spoil(&file.kept.with_extension("json.old"));
            let found = file.read().unwrap();
            assert!(
                matches!(&found, Found::Copy { ledger: copy, .. } if *copy == ledger),
                "{found:?}"
            );
            spoil(&file.copy);
            spoil(&file.copy.with_extension("json.old"));
            let found = file.read().unwrap();
            assert!(
                matches!(&found, Found::Lost { reason } if reason.contains("ledger.json")),
                "{found:?}"
            );
        }
    }
}
