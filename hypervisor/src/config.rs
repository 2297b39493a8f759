//! Reads a machine's description and checks what its types cannot say.

use std::path::{Path, PathBuf};

use hypervisor_api::config::{
    Boot, MAX_COMMAND_LINE, MAX_DEVICES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, VmConfig,
};
use hypervisor_api::mac::MacAddress;

use crate::arch::layout::COMMAND_LINE_MAX;
use crate::pci::MAX_FUNCTIONS;

// What is promised to whoever writes descriptions, this machine has room for.
const _: () = assert!(MAX_COMMAND_LINE <= COMMAND_LINE_MAX && MAX_DEVICES <= MAX_FUNCTIONS);

/// Longest serial of a disk, in bytes.
const SERIAL_MAX: usize = 20;

/// A description that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not JSON, or not of the right form.
    #[error("{path} is not a machine description: {source}")]
    Form {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A value is out of bounds.
    #[error("{path}: {field} {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which field, as a path into the JSON.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },
}

/// Reads and checks the description in `path`.
pub fn load(path: &Path) -> Result<VmConfig, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes, path)
}

/// Checks a description that was read from `path` (which is only named in errors).
pub fn parse(bytes: &[u8], path: &Path) -> Result<VmConfig, ConfigError> {
    let config: VmConfig = serde_json::from_slice(bytes).map_err(|source| ConfigError::Form {
        path: path.to_owned(),
        source,
    })?;
    check(&config).map_err(|(field, problem)| ConfigError::Value {
        path: path.to_owned(),
        field,
        problem,
    })?;
    Ok(config)
}

fn check(config: &VmConfig) -> Result<(), (String, String)> {
    let wrong = |field: &str, problem: String| Err((field.to_owned(), problem));
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return wrong(
            "vcpus",
            format!("is {}, must be 1 to {MAX_VCPUS}", config.vcpus),
        );
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&config.memory_mib) {
        let problem = format!(
            "is {}, must be {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}",
            config.memory_mib
        );
        return wrong("memoryMib", problem);
    }
    let Boot::Kernel { cmdline, .. } = &config.boot;
    if cmdline.len() > MAX_COMMAND_LINE || cmdline.contains('\0') {
        let problem = format!(
            "has {} bytes, must have at most {MAX_COMMAND_LINE} and no zero byte",
            cmdline.len()
        );
        return wrong("boot.cmdline", problem);
    }
    let functions = config.disks.len()
        + config.nets.len()
        + config.consoles.len()
        + usize::from(config.vsock.is_some())
        + usize::from(config.rng);
    if functions > MAX_DEVICES {
        let problem = format!("together are {functions} devices, the bus has {MAX_DEVICES} slots");
        return wrong("disks, nets, consoles, vsock and rng", problem);
    }
    for (index, disk) in config.disks.iter().enumerate() {
        if let Some(serial) = &disk.serial
            && (serial.len() > SERIAL_MAX || !serial.is_ascii())
        {
            let problem = format!("is {serial:?}, must be at most {SERIAL_MAX} bytes of ASCII");
            return wrong(&format!("disks[{index}].serial"), problem);
        }
    }
    for (index, net) in config.nets.iter().enumerate() {
        match net.mac.parse::<MacAddress>() {
            Err(error) => return wrong(&format!("nets[{index}].mac"), error.to_string()),
            Ok(mac) if mac.is_group() => {
                let problem = format!(
                    "is {:?}, a group address; the first byte must be even",
                    net.mac
                );
                return wrong(&format!("nets[{index}].mac"), problem);
            }
            Ok(_) => {}
        }
        // Linux refuses a smaller one for Ethernet.
        if net.mtu.is_some_and(|mtu| mtu < 68) {
            return wrong(
                &format!("nets[{index}].mtu"),
                "must be at least 68".to_owned(),
            );
        }
    }
    if let Some(vsock) = &config.vsock
        && (vsock.cid < 3 || vsock.cid == u32::MAX)
    {
        let problem = format!("is {}, must be at least 3 and not 4294967295", vsock.cid);
        return wrong("vsock.cid", problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: &str) -> String {
        let base = r#"{"name":"a","vcpus":1,"memoryMib":64,
            "boot":{"kind":"kernel","kernel":"/k"},"controlSocket":"/c" REST}"#;
        parse(
            base.replace("REST", change).as_bytes(),
            Path::new("vm.json"),
        )
        .map_or_else(|error| error.to_string(), |_| "fine".to_owned())
    }

    #[test]
    fn the_smallest_description_is_enough() {
        assert_eq!(with(""), "fine");
    }

    #[test]
    fn errors_name_the_file_the_field_and_what_is_expected() {
        for (change, expected) in [
            (
                r#","disks":[{"path":"/d","format":"raw","readOnly":true}]"#,
                "unknown field `readOnly`",
            ),
            (
                r#","disks":[{"path":"/d","format":"vmdk"}]"#,
                "unknown variant `vmdk`",
            ),
            (
                r#","disks":[{"path":"/d","format":"raw","serial":"123456789012345678901"}]"#,
                "vm.json: disks[0].serial is \"123456789012345678901\", must be at most 20 bytes",
            ),
            (
                r#","nets":[{"tap":"t","mac":"02:00:00:00:00"}]"#,
                "nets[0].mac is \"02:00:00:00:00\"",
            ),
            (
                r#","nets":[{"tap":"t","mac":"01:00:00:00:00:01"}]"#,
                "a group address",
            ),
            (
                r#","nets":[{"tap":"t","mac":"02:00:00:00:00:01","mtu":10}]"#,
                "nets[0].mtu must be",
            ),
            (
                r#","vsock":{"cid":2,"socket":"/v"}"#,
                "vsock.cid is 2, must be at least 3",
            ),
        ] {
            let message = with(change);
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("vm.json"), "{message}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        let config = |vcpus: u32, memory: u32, line: usize| {
            let text = format!(
                r#"{{"name":"a","vcpus":{vcpus},"memoryMib":{memory},"controlSocket":"/c",
                "boot":{{"kind":"kernel","kernel":"/k","cmdline":"{}"}}}}"#,
                "x".repeat(line)
            );
            parse(text.as_bytes(), Path::new("f")).map_err(|error| error.to_string())
        };
        assert!(config(16, 16, 2047).is_ok());
        assert!(
            config(17, 64, 0)
                .unwrap_err()
                .contains("vcpus is 17, must be 1 to 16")
        );
        assert!(config(0, 64, 0).unwrap_err().contains("vcpus is 0"));
        assert!(
            config(1, 15, 0)
                .unwrap_err()
                .contains("memoryMib is 15, must be 16 to")
        );
        assert!(
            config(1, 64, 2048)
                .unwrap_err()
                .contains("boot.cmdline has 2048 bytes")
        );
    }
}
