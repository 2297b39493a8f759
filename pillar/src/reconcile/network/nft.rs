//! The packet filter as one nftables table, made whole from what is wanted and loaded in one transaction.
//!
//! | from | to | |
//! |---|---|---|
//! | app | anything behind the uplinks | allowed, with the device's address |
//! | app | app on the same bridge | allowed |
//! | app | app on another bridge | dropped, but for port maps |
//! | app | the device | DHCP, DNS at its gateway, ping; else dropped |
//! | uplink | app | port maps; else dropped |
//!
//! Nothing is said about traffic that has nothing to do with our bridges.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::domain::desired::{PortMap, Protocol};

/// A network as the packet filter sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilteredNetwork {
    /// Bridge.
    pub bridge: String,
    /// The device's address on it.
    pub gateway: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
}

/// A port map that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilteredMap {
    /// Ports and protocol.
    pub map: PortMap,
    /// The app's address.
    pub address: Ipv4Addr,
}

/// The ruleset for `nft -f`.
#[must_use]
pub fn ruleset(networks: &[FilteredNetwork], maps: &[FilteredMap]) -> String {
    // Declared first, so that the deletion does not fail where there is no table yet.
    let mut text = String::from("table inet skerry\ndelete table inet skerry\n");
    if networks.is_empty() {
        return text;
    }
    // Writing to a string does not fail.
    let _ = write_table(&mut text, networks, maps);
    text
}

fn write_table(
    text: &mut String,
    networks: &[FilteredNetwork],
    maps: &[FilteredMap],
) -> std::fmt::Result {
    let bridges: Vec<String> = networks
        .iter()
        .map(|network| format!("\"{}\"", network.bridge))
        .collect();
    let gateways: Vec<String> = networks
        .iter()
        .map(|network| network.gateway.to_string())
        .collect();
    let (bridges, gateways) = (bridges.join(", "), gateways.join(", "));
    let subnet = |network: &FilteredNetwork| {
        format!(
            "{}/{}",
            masked(network.gateway, network.prefix),
            network.prefix
        )
    };

    writeln!(text, "table inet skerry {{")?;
    writeln!(
        text,
        "\tset bridges {{\n\t\ttype ifname\n\t\telements = {{ {bridges} }}\n\t}}"
    )?;
    writeln!(
        text,
        "\tset gateways {{\n\t\ttype ipv4_addr\n\t\telements = {{ {gateways} }}\n\t}}"
    )?;

    writeln!(text, "\tchain mapped {{")?;
    for FilteredMap { map, address } in maps {
        let protocol = match map.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        writeln!(
            text,
            "\t\t{protocol} dport {} dnat ip to {address}:{}",
            map.device_port, map.app_port
        )?;
    }
    writeln!(text, "\t}}")?;

    // Apps may use port maps, too, at the addresses that others would use; the gateways' own ports stay the gateways'.
    writeln!(
        text,
        "\tchain prerouting {{\n\t\ttype nat hook prerouting priority dstnat; policy accept;"
    )?;
    writeln!(
        text,
        "\t\tip daddr @gateways return\n\t\tmeta nfproto ipv4 fib daddr type local jump mapped\n\t}}"
    )?;

    writeln!(
        text,
        "\tchain postrouting {{\n\t\ttype nat hook postrouting priority srcnat; policy accept;"
    )?;
    for network in networks {
        let subnet = subnet(network);
        writeln!(text, "\t\tip saddr {subnet} oifname != @bridges masquerade")?;
        // An app that reached its neighbour by a port map must get the answers from where it asked.
        writeln!(
            text,
            "\t\tip saddr {subnet} ip daddr {subnet} ct status dnat masquerade"
        )?;
    }
    writeln!(text, "\t}}")?;

    writeln!(text, "\tchain from_app {{")?;
    writeln!(
        text,
        "\t\tct state established,related accept\n\t\tct state invalid drop"
    )?;
    for network in networks {
        writeln!(
            text,
            "\t\tiifname \"{}\" ip saddr != {} drop",
            network.bridge,
            subnet(network)
        )?;
        writeln!(
            text,
            "\t\tiifname \"{0}\" oifname \"{0}\" accept",
            network.bridge
        )?;
    }
    writeln!(
        text,
        "\t\tct status dnat accept\n\t\toifname @bridges drop\n\t\tmeta nfproto ipv4 accept\n\t\tdrop\n\t}}"
    )?;

    writeln!(text, "\tchain to_app {{")?;
    writeln!(
        text,
        "\t\tct state established,related accept\n\t\tct status dnat accept\n\t\tdrop\n\t}}"
    )?;

    writeln!(
        text,
        "\tchain forward {{\n\t\ttype filter hook forward priority filter; policy accept;"
    )?;
    writeln!(
        text,
        "\t\tiifname @bridges goto from_app\n\t\toifname @bridges goto to_app\n\t}}"
    )?;

    writeln!(
        text,
        "\tchain input {{\n\t\ttype filter hook input priority filter; policy accept;"
    )?;
    writeln!(
        text,
        "\t\tiifname != @bridges accept\n\t\tct state established,related accept"
    )?;
    writeln!(text, "\t\tudp dport 67 accept")?;
    for network in networks {
        let place = format!(
            "iifname \"{}\" ip daddr {}",
            network.bridge, network.gateway
        );
        writeln!(
            text,
            "\t\t{place} meta l4proto {{ tcp, udp }} th dport 53 accept"
        )?;
    }
    writeln!(
        text,
        "\t\ticmp type echo-request accept\n\t\tdrop\n\t}}\n}}"
    )
}

/// The first address of the subnet that an address lies in.
#[must_use]
pub fn masked(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) & mask(prefix))
}

/// A prefix length as a netmask, in host byte order.
#[must_use]
pub fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(n: u8) -> FilteredNetwork {
        FilteredNetwork {
            bridge: format!("bn{n}"),
            gateway: Ipv4Addr::new(10, 1, n, 1),
            prefix: 24,
        }
    }

    #[test]
    fn the_ruleset_is_this() {
        let maps = [
            FilteredMap {
                map: PortMap {
                    protocol: Protocol::Tcp,
                    device_port: 8080,
                    app_port: 80,
                },
                address: Ipv4Addr::new(10, 1, 0, 2),
            },
            FilteredMap {
                map: PortMap {
                    protocol: Protocol::Udp,
                    device_port: 5353,
                    app_port: 53,
                },
                address: Ipv4Addr::new(10, 1, 1, 9),
            },
        ];
        let text = ruleset(&[network(0), network(1)], &maps);
        assert_eq!(text, include_str!("golden.nft"), "\n{text}");
    }

    #[test]
    fn without_networks_there_is_no_table() {
        assert_eq!(
            ruleset(&[], &[]),
            "table inet skerry\ndelete table inet skerry\n"
        );
    }

    #[test]
    fn masks() {
        assert_eq!(
            masked(Ipv4Addr::new(10, 1, 2, 3), 16),
            Ipv4Addr::new(10, 1, 0, 0)
        );
        assert_eq!(mask(0), 0);
        assert_eq!(mask(32), u32::MAX);
    }
}
