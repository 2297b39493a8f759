//! One dnsmasq for each bridge: gives apps their addresses and answers their names.
//!
//! It gives addresses only to the apps that it was told of, always the same ones; so it needs no memory of its own, and
//! an app keeps its address over restarts of everything. dnsmasq(8) reads the two lists again on SIGHUP.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use hypervisor_api::mac::MacAddress;

use super::nft::{mask, masked};

/// A host that dnsmasq is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Hardware address.
    pub mac: MacAddress,
    /// Address.
    pub address: Ipv4Addr,
    /// Name of the app.
    pub name: String,
}

/// What dnsmasq does on one bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Bridge.
    pub bridge: String,
    /// The device's address on it.
    pub gateway: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
    /// Name servers that apps are told of; empty: the gateway.
    pub dns: Vec<Ipv4Addr>,
    /// Hosts.
    pub hosts: Vec<Host>,
}

/// The configuration file. `dir` holds the lists, `resolvers` is the file that names the device's name servers.
#[must_use]
pub fn config(service: &Service, dir: &Path, resolvers: &Path) -> String {
    let (gateway, dir) = (service.gateway, dir.display());
    let dns: Vec<String> = if service.dns.is_empty() {
        vec![gateway.to_string()]
    } else {
        service.dns.iter().map(Ipv4Addr::to_string).collect()
    };
    let dns = dns.join(",");
    let lines = [
        format!("interface={}", service.bridge),
        "except-interface=lo".into(),
        // Only the bridge's own address is bound: each bridge has a dnsmasq of its own.
        "bind-interfaces".into(),
        "no-hosts".into(),
        format!("addn-hosts={dir}/names"),
        format!("resolv-file={}", resolvers.display()),
        "domain-needed".into(),
        "bogus-priv".into(),
        format!(
            "dhcp-range={},static,{},12h",
            masked(gateway, service.prefix),
            Ipv4Addr::from(mask(service.prefix))
        ),
        format!("dhcp-hostsfile={dir}/hosts"),
        "dhcp-authoritative".into(),
        "no-ping".into(),
        "leasefile-ro".into(),
        format!("dhcp-option=option:router,{gateway}"),
        format!("dhcp-option=option:dns-server,{dns}"),
        "user=dnsmasq".into(),
        "group=nogroup".into(),
        "pid-file".into(),
        "log-facility=-".into(),
        "quiet-dhcp".into(),
    ];
    lines.join("\n") + "\n"
}

/// The list of hosts for DHCP.
#[must_use]
pub fn hosts(service: &Service) -> String {
    let mut text = String::new();
    for host in &service.hosts {
        // Writing to a string does not fail.
        let _ = write!(text, "{},{}", host.mac, host.address);
        if let Some(name) = label(&host.name) {
            let _ = write!(text, ",{name}");
        }
        text.push('\n');
    }
    text
}

/// The list of names for DNS.
#[must_use]
pub fn names(service: &Service) -> String {
    let mut text = String::new();
    for host in &service.hosts {
        if let Some(name) = label(&host.name) {
            let _ = writeln!(text, "{} {name}", host.address);
        }
    }
    text
}

/// A name of an app as a DNS label (RFC 1123, 2.1); `None` if it is none. Also keeps commas and line ends of a name that
/// came from outside out of the files.
#[must_use]
pub fn label(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let fits = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    fits.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service {
            bridge: "bn3".into(),
            gateway: Ipv4Addr::new(10, 1, 0, 1),
            prefix: 20,
            dns: vec![],
            hosts: vec![
                Host {
                    mac: MacAddress([2, 0, 0, 0, 0, 0xab]),
                    address: Ipv4Addr::new(10, 1, 0, 2),
                    name: "Web-1".into(),
                },
                Host {
                    mac: MacAddress([2, 0, 0, 0, 0, 1]),
                    address: Ipv4Addr::new(10, 1, 0, 3),
                    name: "evil\n,set:x".into(),
                },
            ],
        }
    }

    #[test]
    fn the_lists_hold_what_is_harmless() {
        assert_eq!(
            hosts(&service()),
            "02:00:00:00:00:ab,10.1.0.2,web-1\n02:00:00:00:00:01,10.1.0.3\n"
        );
        assert_eq!(names(&service()), "10.1.0.2 web-1\n");
    }

    #[test]
    fn the_config_names_subnet_and_servers() {
        let text = config(
            &service(),
            Path::new("/run/skerry/net/3"),
            Path::new("/etc/resolv.conf"),
        );
        assert!(
            text.contains("dhcp-range=10.1.0.0,static,255.255.240.0,12h\n"),
            "{text}"
        );
        assert!(text.contains("option:dns-server,10.1.0.1\n"), "{text}");
        let mut other = service();
        other.dns = vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)];
        let text = config(&other, Path::new("/d"), Path::new("/r"));
        assert!(
            text.contains("option:dns-server,9.9.9.9,1.1.1.1\n"),
            "{text}"
        );
    }
}
