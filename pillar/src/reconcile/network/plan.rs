//! What the network is to look like, and the steps from what it looks like to there; decided without touching it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hypervisor_api::mac::MacAddress;
use protocol::ids::{AppId, NetworkInstanceId};

use super::dnsmasq::{Host, Service};
use super::nft::{FilteredMap, FilteredNetwork};
use crate::domain::desired::Runtime;
use crate::reconcile::allocation::Allocated;
use crate::reconcile::ledger::{Port, bridge_mac, mac};

/// Alias of the links that are ours; what does not carry it is not touched. Taps carry their owner's uid after it.
pub const MARK: &str = "skerry";

/// A network as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedNetwork {
    /// Its bridge.
    pub bridge: String,
    /// The bridge's hardware address.
    pub mac: MacAddress,
    /// The device's address on it.
    pub gateway: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
    /// Taps on it: name and uid of the owner.
    pub taps: Vec<(String, u32)>,
    /// DHCP and DNS.
    pub service: Service,
    /// Addresses by app.
    pub leases: BTreeMap<AppId, Ipv4Addr>,
    /// What cannot be had.
    pub conflicts: Vec<String>,
}

/// All networks as they are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By network instance.
    pub networks: BTreeMap<NetworkInstanceId, WantedNetwork>,
    /// Port maps in force.
    pub maps: Vec<FilteredMap>,
    /// Links that stay although no network wants them: those of native containers, which come and go with them.
    pub leave: BTreeSet<String>,
}

impl Wanted {
    /// For the packet filter.
    #[must_use]
    pub fn filtered(&self) -> Vec<FilteredNetwork> {
        self.networks
            .values()
            .map(|network| FilteredNetwork {
                bridge: network.bridge.clone(),
                gateway: network.gateway,
                prefix: network.prefix,
            })
            .collect()
    }
}

/// Works out how the network is to look.
#[must_use]
pub fn wanted(allocated: &Allocated) -> Wanted {
    let mut wanted = Wanted::default();
    for (id, network) in &allocated.desired.networks {
        let Some(number) = allocated.ledger.network(*id) else {
            continue;
        };
        let bridge = number.bridge();
        wanted.networks.insert(
            *id,
            WantedNetwork {
                bridge: bridge.clone(),
                mac: bridge_mac(*id),
                gateway: network.gateway,
                prefix: network.prefix,
                taps: Vec::new(),
                service: Service {
                    bridge,
                    gateway: network.gateway,
                    prefix: network.prefix,
                    dns: network.dns.clone(),
                    hosts: Vec::new(),
                },
                leases: BTreeMap::new(),
                conflicts: Vec::new(),
            },
        );
    }
    let mut ports_taken: BTreeMap<(u8, u16), String> = BTreeMap::new();
    for (app, about) in &allocated.desired.apps {
        let Some(number) = allocated.ledger.app(*app) else {
            continue;
        };
        for (interface, plug) in about.interfaces.iter().enumerate() {
            let port = Port {
                app: *app,
                interface,
            };
            let Some(network) = wanted.networks.get_mut(&plug.network) else {
                continue;
            };
            if about.runtime == Runtime::ContainerNative {
                wanted.leave.insert(number.tap(interface));
            } else {
                network.taps.push((number.tap(interface), number.uid()));
            }
            let Some(address) = allocated.ledger.lease(plug.network, port) else {
                network.conflicts.push(format!(
                    "no address is free for the app {}; enlarge the range",
                    about.name
                ));
                continue;
            };
            network.leases.insert(*app, address);
            network.service.hosts.push(Host {
                mac: plug.mac.unwrap_or_else(|| mac(port)),
                address,
                name: about.name.clone(),
            });
            for map in &plug.port_maps {
                match ports_taken.get(&(map.protocol as u8, map.device_port)) {
                    Some(holder) => network.conflicts.push(format!(
                        "port {} of the device leads to the app {holder} already and cannot lead to {} as well",
                        map.device_port, about.name
                    )),
                    None => {
                        ports_taken.insert((map.protocol as u8, map.device_port), about.name.clone());
                        wanted.maps.push(FilteredMap { map: *map, address });
                    }
                }
            }
        }
    }
    wanted
}

/// What kind of link one is, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A tap.
    Tap,
    /// Anything else.
    Other,
}

/// A link that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: LinkKind,
    /// Alias; ours begin with [`MARK`].
    pub alias: String,
    /// Index of the bridge that it is plugged into.
    pub controller: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// IPv4 addresses.
    pub addresses: Vec<(Ipv4Addr, u8)>,
}

impl Link {
    fn is_ours(&self) -> bool {
        self.alias.split(' ').next() == Some(MARK)
    }
}

/// One change of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take a link away.
    Delete(String),
    /// Make a bridge; it is marked as ours.
    AddBridge(String, MacAddress),
    /// Make a tap that this uid may use; it is marked as ours.
    AddTap(String, u32),
    /// Give a link an address.
    AddAddress(String, Ipv4Addr, u8),
    /// Take an address from a link.
    RemoveAddress(String, Ipv4Addr, u8),
    /// Plug a link into a bridge.
    Plug(String, String),
    /// Set a link up.
    Up(String),
    /// A link that is not ours has this name.
    Taken(String),
}

/// Alias of a tap.
#[must_use]
pub fn tap_alias(uid: u32) -> String {
    format!("{MARK} {uid}")
}

/// The links to take away because no network wants them.
#[must_use]
pub fn surplus(links: &[Link], wanted: &Wanted) -> Vec<Step> {
    let names: BTreeSet<&str> = wanted
        .networks
        .values()
        .flat_map(|network| {
            network
                .taps
                .iter()
                .map(|(tap, _)| tap.as_str())
                .chain([network.bridge.as_str()])
        })
        .chain(wanted.leave.iter().map(String::as_str))
        .collect();
    links
        .iter()
        .filter(|link| link.is_ours() && !names.contains(link.name.as_str()))
        .map(|link| Step::Delete(link.name.clone()))
        .collect()
}

/// The steps that bring one network from what is to what is wanted.
#[must_use]
pub fn steps(links: &[Link], network: &WantedNetwork) -> Vec<Step> {
    let find = |name: &str| links.iter().find(|link| link.name == name);
    let mut steps = Vec::new();
    let bridge = &network.bridge;
    let mut there = find(bridge);
    if there.is_some_and(|link| !link.is_ours()) {
        return vec![Step::Taken(bridge.clone())];
    }
    if there.is_some_and(|link| link.kind != LinkKind::Bridge || link.mac != network.mac.0) {
        steps.push(Step::Delete(bridge.clone()));
        there = None;
    }
    if there.is_none() {
        steps.push(Step::AddBridge(bridge.clone(), network.mac));
    }
    let address = (network.gateway, network.prefix);
    let addresses = there.map_or(&[][..], |link| &link.addresses);
    for (old, prefix) in addresses.iter().filter(|old| **old != address) {
        steps.push(Step::RemoveAddress(bridge.clone(), *old, *prefix));
    }
    if !addresses.contains(&address) {
        steps.push(Step::AddAddress(bridge.clone(), address.0, address.1));
    }
    if !there.is_some_and(|link| link.up) {
        steps.push(Step::Up(bridge.clone()));
    }
    for (tap, uid) in &network.taps {
        let mut found = find(tap);
        if found.is_some_and(|link| !link.is_ours()) {
            steps.push(Step::Taken(tap.clone()));
            continue;
        }
        if found.is_some_and(|link| link.kind != LinkKind::Tap || link.alias != tap_alias(*uid)) {
            steps.push(Step::Delete(tap.clone()));
            found = None;
        }
        if found.is_none() {
            steps.push(Step::AddTap(tap.clone(), *uid));
        }
        let plugged = found.and_then(|link| link.controller);
        if plugged.is_none() || plugged != there.map(|link| link.index) {
            steps.push(Step::Plug(tap.clone(), bridge.clone()));
        }
        if !found.is_some_and(|link| link.up) {
            steps.push(Step::Up(tap.clone()));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

    fn network() -> WantedNetwork {
        WantedNetwork {
            bridge: "bn0".into(),
            mac: MAC,
            gateway: GATEWAY,
            prefix: 24,
            taps: vec![("tap0-0".into(), 200_000)],
            service: Service {
                bridge: "bn0".into(),
                gateway: GATEWAY,
                prefix: 24,
                dns: vec![],
                hosts: vec![],
            },
            leases: BTreeMap::new(),
            conflicts: vec![],
        }
    }

    fn bridge() -> Link {
        Link {
            index: 3,
            name: "bn0".into(),
            kind: LinkKind::Bridge,
            alias: MARK.into(),
            controller: None,
            up: true,
            mac: MAC.0.to_vec(),
            addresses: vec![(GATEWAY, 24)],
        }
    }

    fn tap() -> Link {
        Link {
            index: 4,
            name: "tap0-0".into(),
            kind: LinkKind::Tap,
            alias: tap_alias(200_000),
            controller: Some(3),
            up: true,
            mac: vec![],
            addresses: vec![],
        }
    }

    fn with<T>(mut value: T, change: impl FnOnce(&mut T)) -> T {
        change(&mut value);
        value
    }

    #[test]
    fn steps_lead_from_what_is_to_what_is_wanted() {
        let (bn0, tap0) = (|| "bn0".to_owned(), || "tap0-0".to_owned());
        let old = Ipv4Addr::new(10, 9, 9, 1);
        let cases = [
            ("all is well", vec![bridge(), tap()], vec![]),
            (
                "nothing there",
                vec![],
                vec![
                    Step::AddBridge(bn0(), MAC),
                    Step::AddAddress(bn0(), GATEWAY, 24),
                    Step::Up(bn0()),
                    Step::AddTap(tap0(), 200_000),
                    Step::Plug(tap0(), bn0()),
                    Step::Up(tap0()),
                ],
            ),
            (
                "the subnet moved",
                vec![
                    with(bridge(), |link| link.addresses = vec![(old, 24)]),
                    tap(),
                ],
                vec![
                    Step::RemoveAddress(bn0(), old, 24),
                    Step::AddAddress(bn0(), GATEWAY, 24),
                ],
            ),
            (
                "someone else's bridge has the name",
                vec![with(bridge(), |link| link.alias = String::new())],
                vec![Step::Taken(bn0())],
            ),
            (
                "a tap of another owner",
                vec![
                    bridge(),
                    with(tap(), |link| link.alias = tap_alias(200_001)),
                ],
                vec![
                    Step::Delete(tap0()),
                    Step::AddTap(tap0(), 200_000),
                    Step::Plug(tap0(), bn0()),
                    Step::Up(tap0()),
                ],
            ),
            (
                "a tap that was unplugged and set down",
                vec![
                    bridge(),
                    with(tap(), |link| {
                        link.controller = None;
                        link.up = false;
                    }),
                ],
                vec![Step::Plug(tap0(), bn0()), Step::Up(tap0())],
            ),
        ];
        for (what, links, expected) in cases {
            assert_eq!(steps(&links, &network()), expected, "{what}");
        }
    }

    #[test]
    fn only_our_own_surplus_is_taken_away() {
        let wanted = Wanted {
            networks: BTreeMap::from([(NetworkInstanceId(uuid::Uuid::nil()), network())]),
            leave: BTreeSet::from(["tap7-0".to_owned()]),
            ..Wanted::default()
        };
        let named = |name: &str, alias: &str| {
            with(tap(), |link| {
                link.name = name.into();
                link.alias = alias.into();
            })
        };
        let links = [
            bridge(),
            tap(),
            named("bn9", MARK),
            named("tap7-0", MARK),
            named("tap8-0", "skerry 200008"),
            named("docker0", ""),
            named("br-lan", "skerryish"),
        ];
        assert_eq!(
            surplus(&links, &wanted),
            [Step::Delete("bn9".into()), Step::Delete("tap8-0".into())]
        );
    }
}
