//! The spec, read and checked before anything is done with it.

use std::path::{Component, Path};

use guest_api::{ContainerSpec, SPEC_PATH};

use crate::Error;

/// Reads the spec of the initramfs and removes it: it may hold secrets, and the memory is the container's.
pub fn take() -> Result<ContainerSpec, Error> {
    let json = std::fs::read(SPEC_PATH).map_err(Error::system("read", SPEC_PATH))?;
    std::fs::remove_file(SPEC_PATH).map_err(Error::system("remove", SPEC_PATH))?;
    parse(&json)
}

/// Reads and checks a spec.
pub fn parse(json: &[u8]) -> Result<ContainerSpec, Error> {
    let spec: ContainerSpec = serde_json::from_slice(json)
        .map_err(|e| Error::Spec(format!("is not what it should be: {e}")))?;
    check(&spec).map_err(Error::Spec)?;
    Ok(spec)
}

fn check(spec: &ContainerSpec) -> Result<(), String> {
    if spec.args.first().is_none_or(String::is_empty) {
        return Err("names no program".to_owned());
    }
    let mut words = spec
        .args
        .iter()
        .chain(&spec.env)
        .chain([&spec.cwd, &spec.hostname]);
    if words.any(|word| word.contains('\0')) {
        return Err("has a zero byte in a word".to_owned());
    }
    if let Some(word) = spec
        .env
        .iter()
        .find(|word| word.find('=').is_none_or(|at| at == 0))
    {
        // The name alone: values can be secrets.
        return Err(format!(
            "has '{}' in its environment, which is not NAME=value",
            word.trim_start_matches('=').split('=').next().unwrap_or("")
        ));
    }
    let hostname_fits = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    if spec.hostname.len() > 64 || !spec.hostname.bytes().all(hostname_fits) {
        return Err("has a host name that is none".to_owned());
    }
    if !is_plain_absolute(&spec.cwd) {
        return Err(format!(
            "has the working directory '{}', which is not absolute",
            spec.cwd
        ));
    }
    for interface in &spec.interfaces {
        let longest = if interface.address.is_ipv4() { 32 } else { 128 };
        if interface.prefix > longest {
            return Err(format!(
                "has a prefix of {} bits for {}",
                interface.prefix, interface.address
            ));
        }
        if interface
            .gateway
            .is_some_and(|gateway| gateway.is_ipv4() != interface.address.is_ipv4())
        {
            return Err(format!(
                "has a gateway of the other family for {}",
                interface.address
            ));
        }
    }
    for volume in &spec.volumes {
        let name = volume.device.strip_prefix("/dev/vd").unwrap_or("");
        if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_lowercase())
            || ["a", "b"].contains(&name)
        {
            return Err(format!(
                "has a volume on '{}', which is not /dev/vdc or a later one",
                volume.device
            ));
        }
        if !is_plain_absolute(&volume.path) || volume.path == "/" {
            return Err(format!(
                "has a volume at '{}', which is not a directory's absolute path",
                volume.path
            ));
        }
    }
    Ok(())
}

/// Absolute, and says what it means without `..`.
fn is_plain_absolute(path: &str) -> bool {
    path.starts_with('/')
        && !Path::new(path)
            .components()
            .any(|c| c == Component::ParentDir)
}

#[cfg(test)]
pub(crate) mod tests {
    use guest_api::{Interface, VolumeMount};

    use super::*;

    /// A spec with something in every field.
    pub fn sample() -> ContainerSpec {
        ContainerSpec {
            hostname: "web".into(),
            args: vec!["/bin/web".into(), "--port=80".into()],
            env: vec!["GREETING=hello=you".into(), "EMPTY=".into()],
            cwd: "/srv".into(),
            uid: 1000,
            gid: 1000,
            additional_gids: vec![5],
            readonly_root: false,
            interfaces: vec![Interface {
                address: "10.1.0.2".parse().unwrap(),
                prefix: 24,
                gateway: Some("10.1.0.1".parse().unwrap()),
            }],
            dns: vec!["10.1.0.1".parse().unwrap()],
            volumes: vec![VolumeMount {
                device: "/dev/vdc".into(),
                path: "/data".into(),
                readonly: false,
            }],
            stop_signal: 3,
            stop_grace_seconds: 25,
        }
    }

    #[test]
    fn a_good_spec_passes() {
        let json = serde_json::to_vec(&sample()).unwrap();
        assert_eq!(parse(&json).unwrap(), sample());
    }

    #[test]
    fn each_mistake_is_named() {
        type Spoil = fn(&mut ContainerSpec);
        let cases: [(&str, Spoil); 13] = [
            ("names no program", |s| s.args.clear()),
            ("names no program", |s| s.args = vec![String::new()]),
            ("zero byte", |s| s.args.push("a\0b".into())),
            ("'SECRET' in its environment", |s| {
                s.env.push("SECRET".into())
            }),
            ("'x' in its environment", |s| s.env.push("=x".into())),
            ("host name", |s| s.hostname = "a b".into()),
            ("'srv', which is not absolute", |s| s.cwd = "srv".into()),
            ("not absolute", |s| s.cwd = "/a/../b".into()),
            ("prefix of 33", |s| s.interfaces[0].prefix = 33),
            ("other family", |s| {
                s.interfaces[0].gateway = Some("fe80::1".parse().unwrap())
            }),
            ("'/dev/vda'", |s| s.volumes[0].device = "/dev/vda".into()),
            ("'/dev/vdc/../x'", |s| {
                s.volumes[0].device = "/dev/vdc/../x".into()
            }),
            ("volume at '/'", |s| s.volumes[0].path = "/".into()),
        ];
        for (words, spoil) in cases {
            let mut spec = sample();
            spoil(&mut spec);
            let error = parse(&serde_json::to_vec(&spec).unwrap())
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        for json in [
            &b""[..],
            b"{}",
            b"[]",
            b"\xff",
            b"{\"args\":[\"a\"],\"surprise\":1}",
        ] {
            assert!(parse(json).is_err());
        }
    }
}
