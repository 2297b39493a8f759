//! Files that a container's runtime provides: names of hosts and servers; and what must be known of its users.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use guest_api::ContainerSpec;

use crate::Error;

/// Text of `/etc/resolv.conf`.
pub fn resolv_conf(servers: &[IpAddr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

/// Text of `/etc/hosts`. The container's own name stands for its first address.
pub fn hosts(spec: &ContainerSpec) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    if !spec.hostname.is_empty() {
        let own = spec
            .interfaces
            .first()
            .map_or(IpAddr::from([127, 0, 1, 1]), |i| i.address);
        let _ = writeln!(text, "{own} {}", spec.hostname);
    }
    text
}

/// Writes them all. An image without /etc gets one; one that has a link in their place loses the link, not its target.
pub fn write(spec: &ContainerSpec) -> Result<(), Error> {
    for (path, text) in [
        ("/etc/hosts", hosts(spec)),
        ("/etc/hostname", format!("{}\n", spec.hostname)),
        ("/etc/resolv.conf", resolv_conf(&spec.dns)),
    ] {
        replace(Path::new(path), &text).map_err(Error::system("write", path))?;
    }
    Ok(())
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::write(path, text)
}

/// The environment with what programs take for granted: PATH, HOSTNAME, and HOME from the image's user list.
pub fn environment(spec: &ContainerSpec, passwd: &str) -> Vec<String> {
    let has = |name: &str| {
        spec.env.iter().any(|e| {
            e.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        })
    };
    let mut full = spec.env.clone();
    if !has("PATH") {
        full.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    if !has("HOSTNAME") && !spec.hostname.is_empty() {
        full.push(format!("HOSTNAME={}", spec.hostname));
    }
    if !has("HOME") {
        full.push(format!("HOME={}", home(spec.uid, passwd)));
    }
    full
}

/// Home directory of a user in the text of /etc/passwd (passwd(5)); `/` if it is not there.
fn home(uid: u32, passwd: &str) -> &str {
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':').skip(2);
            (fields.next()?.parse() == Ok(uid))
                .then(|| fields.nth(2))
                .flatten()
        })
        .filter(|home| home.starts_with('/'))
        .unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::sample;

    #[test]
    fn names() {
        assert_eq!(
            resolv_conf(&["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
            "nameserver 10.1.0.1\nnameserver fd00::1\n"
        );
        assert!(hosts(&sample()).ends_with("\n10.1.0.2 web\n"));
        let alone = ContainerSpec {
            interfaces: vec![],
            ..sample()
        };
        assert!(hosts(&alone).ends_with("\n127.0.1.1 web\n"));
    }

    #[test]
    fn a_link_is_replaced_and_its_target_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "kept").unwrap();
        let path = dir.path().join("etc/resolv.conf");
        fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        replace(&dir.path().join("made/hosts"), "x").unwrap();
    }

    #[test]
    fn the_environment_is_completed_not_changed() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:1000:1000::/srv/web:/bin/false\nodd:x:7:7::relative:\n";
        let env = |list: &[&str], uid| {
            let env = list.iter().map(|s| (*s).to_owned()).collect();
            environment(
                &ContainerSpec {
                    env,
                    uid,
                    ..sample()
                },
                passwd,
            )
        };
        assert_eq!(
            env(&["PATH=/x", "HOME=/y", "HOSTNAME="], 0),
            ["PATH=/x", "HOME=/y", "HOSTNAME="]
        );
        assert_eq!(
            env(&["PATH=/x", "HOMES=1"], 1000),
            ["PATH=/x", "HOMES=1", "HOSTNAME=web", "HOME=/srv/web"]
        );
        for (uid, home) in [(0, "HOME=/root"), (7, "HOME=/"), (42, "HOME=/")] {
            assert_eq!(env(&[], uid).last().unwrap(), home);
        }
        assert!(env(&[], 0)[0].starts_with("PATH=/usr/local/sbin:"));
    }
}
