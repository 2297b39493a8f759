//! Uplinks: which interfaces lead out, with which addresses, and which name servers came with them.
//!
//! systemd-networkd does the work (DHCP by the image's default `.network` file); this watches what came of it, tells
//! the person at the screen, and writes `resolv.conf`, since the image carries no systemd-resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use crate::status::{Status, Subject, Topic};

/// While there is no address, the next look is soon: the boot waits for it.
const WAITING: Duration = Duration::from_millis(100);
/// Once there is one, changes may take this long to be seen.
const WATCHING: Duration = Duration::from_secs(3);
/// Name servers that glibc looks at (`MAXNS`, resolv.conf(5)).
const MAX_NAME_SERVERS: usize = 3;

/// An interface that leads out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Its name, `eth0`.
    pub name: String,
    /// Its hardware address, `02:00:00:00:00:01`.
    pub mac: String,
    /// Its global addresses.
    pub addresses: Vec<IpAddr>,
    /// Routers that its default routes lead through.
    pub routers: Vec<Ipv4Addr>,
    /// Name servers that its lease brought.
    pub dns: Vec<IpAddr>,
    /// Search domain that its lease brought.
    pub domain: String,
    /// Time servers that its lease brought.
    pub ntp: Vec<IpAddr>,
}

/// Where the system shows its network; a directory of files in tests.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `/sys/class/net`.
    pub class: PathBuf,
    /// `/proc/net/route`.
    pub routes: PathBuf,
    /// `/run/systemd/netif/leases`.
    pub leases: PathBuf,
    /// The file to write.
    pub resolv_conf: PathBuf,
}

impl Sources {
    /// Those of a running system, with `resolv.conf` at `path`.
    #[must_use]
    pub fn system(resolv_conf: PathBuf) -> Self {
        Self {
            class: "/sys/class/net".into(),
            routes: "/proc/net/route".into(),
            leases: "/run/systemd/netif/leases".into(),
            resolv_conf,
        }
    }
}

/// Watches the uplinks for as long as the agent lives.
pub async fn run(
    sources: Sources,
    status: Status,
    uplinks: watch::Sender<Vec<Uplink>>,
) -> Result<(), Infallible> {
    let mut written = None;
    loop {
        let found = observe(&sources, &addresses());
        let up = found.iter().any(|uplink| !uplink.addresses.is_empty());
        for uplink in &found {
            if let Some(address) = uplink.addresses.first() {
                status.say(
                    Subject::Uplink(uplink.name.clone()),
                    &format!("uplink {} {address}", uplink.name),
                );
            }
        }
        if up {
            status.clear(Topic::Uplink);
            let text = resolv_conf(&found);
            if written.as_ref() != Some(&text) {
                // It need not outlive a restart.
                match durable::write_volatile(&sources.resolv_conf, text.as_bytes(), 0o644) {
                    Ok(()) => written = Some(text),
                    Err(error) => {
                        tracing::warn!(%error, "name servers not written")
                    }
                }
            }
        }
        uplinks.send_if_modified(|known| {
            let changed = *known != found;
            if changed {
                known.clone_from(&found);
            }
            changed
        });
        tokio::time::sleep(if up { WATCHING } else { WAITING }).await;
    }
}

/// Waits until some interface has an address, and says so on the screen when that takes long.
pub async fn wait(uplinks: &watch::Receiver<Vec<Uplink>>, status: &Status) {
    let mut uplinks = uplinks.clone();
    let up = |uplinks: &Vec<Uplink>| uplinks.iter().any(|uplink| !uplink.addresses.is_empty());
    loop {
        match tokio::time::timeout(Duration::from_secs(20), uplinks.wait_for(up)).await {
            Ok(_) => return,
            Err(_) => status.raise(
                Topic::Uplink,
                "no interface has an address; check the cable and that the network has DHCP",
            ),
        }
    }
}

/// Global addresses by interface, as the kernel has them.
fn addresses() -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut found: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return found;
    };
    for entry in all {
        let Some(address) = entry.address else {
            continue;
        };
        let address: IpAddr = if let Some(v4) = address.as_sockaddr_in() {
            v4.ip().into()
        } else if let Some(v6) = address.as_sockaddr_in6() {
            v6.ip().into()
        } else {
            continue;
        };
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if !address.is_loopback() && !link_local {
            found
                .entry(entry.interface_name)
                .or_default()
                .insert(address);
        }
    }
    found
}

/// The interfaces that lead out: those of hardware, since bridges and taps of apps are not.
fn observe(sources: &Sources, addresses: &BTreeMap<String, BTreeSet<IpAddr>>) -> Vec<Uplink> {
    let routers = routers(&std::fs::read_to_string(&sources.routes).unwrap_or_default());
    let Ok(entries) = std::fs::read_dir(&sources.class) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let attribute = |file: &str| {
                std::fs::read_to_string(sources.class.join(&name).join(file))
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            let lease = std::fs::read_to_string(sources.leases.join(attribute("ifindex")))
                .unwrap_or_default();
            let lease = Lease::parse(&lease);
            Uplink {
                mac: attribute("address"),
                addresses: addresses
                    .get(&name)
                    .into_iter()
                    .flatten()
                    .copied()
                    .collect(),
                routers: routers.get(&name).cloned().unwrap_or_default(),
                dns: lease.dns,
                domain: lease.domain,
                ntp: lease.ntp,
                name,
            }
        })
        .collect()
}

/// Gateways of default routes by interface, from `/proc/net/route`: hexadecimal, in the processor's byte order.
#[must_use]
pub fn routers(table: &str) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let mut found: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for line in table.lines().skip(1) {
        let mut fields = line.split_whitespace();
        let (Some(name), Some("00000000"), Some(gateway)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        match u32::from_str_radix(gateway, 16) {
            Ok(raw) if raw != 0 => {
                found
                    .entry(name.to_owned())
                    .or_default()
                    .push(Ipv4Addr::from(raw.to_ne_bytes()));
            }
            _ => {}
        }
    }
    found
}

/// What of a lease file of networkd matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domain, or empty.
    pub domain: String,
    /// Time servers (DHCP option 42, RFC 2132, section 8.3).
    pub ntp: Vec<IpAddr>,
}

impl Lease {
    /// Reads the file's text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| {
                    line.strip_prefix(key)
                        .and_then(|rest| rest.strip_prefix('='))
                })
                .unwrap_or("")
        };
        let addresses = |key: &str| {
            value(key)
                .split_whitespace()
                .filter_map(|text| text.parse().ok())
                .collect()
        };
        Self {
            dns: addresses("DNS"),
            ntp: addresses("NTP"),
            domain: Some(value("DOMAINNAME").trim())
                .filter(|name| good_domain(name))
                .unwrap_or("")
                .to_owned(),
        }
    }
}

/// A DHCP server could send anything; a line break would be a line of its own in `resolv.conf`.
fn good_domain(name: &str) -> bool {
    name.len() <= 253
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-')
}

fn resolv_conf(uplinks: &[Uplink]) -> String {
    let mut text = String::from("# Written by pillar from the leases of systemd-networkd.\n");
    let mut servers: Vec<IpAddr> = Vec::new();
    for server in uplinks.iter().flat_map(|uplink| &uplink.dns) {
        if !servers.contains(server) {
            servers.push(*server);
        }
    }
    for server in servers.iter().take(MAX_NAME_SERVERS) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if let Some(domain) = uplinks
        .iter()
        .map(|uplink| &uplink.domain)
        .find(|domain| !domain.is_empty())
    {
        text.push_str(&format!("search {domain}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: &str = "# This is private data. Do not parse.\nADDRESS=10.0.2.15\nNETMASK=255.255.255.0\n\
                         ROUTER=10.0.2.2\nDNS=10.0.2.3 192.0.2.53\nNTP=192.0.2.123\nDOMAINNAME=site.example\nLIFETIME=86400\n";
    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                          eth0\t00000000\t0202000A\t0003\t0\t0\t1024\t00000000\t0\t0\t0\n\
                          eth0\t0002000A\t00000000\t0001\t0\t0\t1024\t00FFFFFF\t0\t0\t0\n";

    #[test]
    fn a_system_is_seen_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let class = dir.path().join("class");
        for (name, hardware) in [
            ("eth0", true),
            ("bn1", false),
            ("tap1-0", false),
            ("lo", false),
        ] {
            std::fs::create_dir_all(class.join(name)).unwrap();
            if hardware {
                std::fs::create_dir(class.join(name).join("device")).unwrap();
            }
        }
        std::fs::write(class.join("eth0/ifindex"), "2\n").unwrap();
        std::fs::write(class.join("eth0/address"), "52:54:00:12:34:56\n").unwrap();
        std::fs::create_dir(dir.path().join("leases")).unwrap();
        std::fs::write(dir.path().join("leases/2"), LEASE).unwrap();
        std::fs::write(dir.path().join("route"), ROUTES).unwrap();
        let sources = Sources {
            class,
            routes: dir.path().join("route"),
            leases: dir.path().join("leases"),
            resolv_conf: dir.path().join("resolv.conf"),
        };
        let address: IpAddr = "10.0.2.15".parse().unwrap();
        let addresses = BTreeMap::from([("eth0".to_owned(), BTreeSet::from([address]))]);
        let found = observe(&sources, &addresses);
        assert_eq!(
            found,
            [Uplink {
                name: "eth0".into(),
                mac: "52:54:00:12:34:56".into(),
                addresses: vec![address],
                routers: vec!["10.0.2.2".parse().unwrap()],
                dns: vec!["10.0.2.3".parse().unwrap(), "192.0.2.53".parse().unwrap()],
                domain: "site.example".into(),
                ntp: vec!["192.0.2.123".parse().unwrap()],
            }]
        );
        let text = resolv_conf(&found);
        durable::write_volatile(&sources.resolv_conf, text.as_bytes(), 0o644).unwrap();
        let text = std::fs::read_to_string(&sources.resolv_conf).unwrap();
        assert!(
            text.ends_with("nameserver 10.0.2.3\nnameserver 192.0.2.53\nsearch site.example\n"),
            "{text}"
        );
    }

    #[test]
    fn a_lease_cannot_bring_lines_of_its_own() {
        for text in [
            "",
            "DNS=",
            "DNS=999.1.1.1 x",
            "NTP=a b",
            "DOMAINNAME=a b",
            "DOMAINNAME=\u{e9}",
            "garbage\n\n=\n",
        ] {
            assert_eq!(Lease::parse(text), Lease::default(), "{text}");
        }
    }

    #[test]
    fn name_servers_are_told_once_and_not_more_than_the_resolver_takes() {
        let uplink = |dns: &[&str]| Uplink {
            dns: dns.iter().map(|d| d.parse().unwrap()).collect(),
            ..Uplink::default()
        };
        let text = resolv_conf(&[
            uplink(&["192.0.2.1", "192.0.2.2"]),
            uplink(&["192.0.2.1", "2001:db8::1", "192.0.2.4"]),
        ]);
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "nameserver 192.0.2.1",
                "nameserver 192.0.2.2",
                "nameserver 2001:db8::1"
            ]
        );
    }
}
