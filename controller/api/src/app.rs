//! App: a virtual machine or a container on a device.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use protocol::image::ImageReference;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::meta::{Condition, is_dns_label};
use crate::object::object;
use crate::problem::FieldError;

/// Most virtual processors of an app: what the device's monitor takes.
const MAX_CPUS: u32 = 16;
/// Least memory of an app: a kernel and an init still start in it, in MiB.
const MIN_MEMORY_MIB: u64 = 32;
/// Most memory of an app, in MiB: what `VmConfig.memory`, 32 bits of KiB, can say.
const MAX_MEMORY_MIB: u64 = (1 << 22) - 1;
/// Most port maps of an app.
const MAX_PORTS: usize = 256;
/// Most that user data or the whole environment may take, in bytes; it travels inside each config message.
const MAX_USER_DATA: usize = 64 * 1024;
/// Longest kernel command line, in bytes (x86 Linux: COMMAND_LINE_SIZE is 2048, with the end).
const MAX_KERNEL_ARGS: usize = 2047;

object! {
    /// A virtual machine or a container on a device.
    App, "apps", protocol::ids::AppId, AppSpec, AppStatus, validate
}

/// What shall run, where, with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppSpec {
    /// Name of the device that runs it.
    pub device: String,
    /// Virtual machine or container.
    #[serde(rename = "type")]
    pub kind: AppType,
    /// Containers only: how far they are kept from the host. `microvm` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// What to run.
    pub image: ImageSource,
    /// What it may use.
    #[serde(default)]
    pub resources: Resources,
    /// Containers only: environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Virtual machines only: the kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_args: Option<String>,
    /// Virtual machines only: cloud-init's user data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Ports of the device that lead to the app.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMap>,
}

/// What sort of thing an app is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AppType {
    /// An OCI container image.
    Container,
    /// A machine image.
    Vm,
}

/// How far a container is kept from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In a small virtual machine of its own.
    #[default]
    Microvm,
    /// By namespaces on the host's kernel.
    Native,
}

/// Where an app's image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSource {
    /// Name of the datastore.
    pub datastore: String,
    /// `repository@sha256:digest`, see [`ImageReference`].
    pub reference: String,
    /// Virtual machines only: format of the disk in the image. `raw` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
}

/// Format of a machine image's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the disk, one by one.
    #[default]
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
}

/// What an app may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// Virtual processors, 1 to 16.
    #[serde(default = "default_cpus")]
    #[schema(default = default_cpus)]
    pub cpus: u32,
    /// Memory in MiB, from 32.
    #[serde(rename = "memoryMiB", default = "default_memory")]
    #[schema(default = default_memory)]
    pub memory_mib: u64,
}

fn default_cpus() -> u32 {
    1
}

fn default_memory() -> u64 {
    128
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpus: default_cpus(),
            memory_mib: default_memory(),
        }
    }
}

/// A port of the device that leads to a port of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMap {
    /// Port on the device's uplinks.
    pub device: u16,
    /// Port in the app.
    pub app: u16,
    /// TCP if left out.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocol of a port map.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What the controller knows of an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AppStatus {
    /// Where it stands.
    pub phase: AppPhase,
    /// What is wrong, in words; empty if nothing is.
    pub message: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Its addresses on the device's network.
    pub addresses: Vec<String>,
    /// `sha256:` and hex digits of the image that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// How much of the image has arrived, in percent, while it is fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_percent: Option<u32>,
    /// Uid of the device that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_uid: Option<Uuid>,
    /// Memory in use, in KiB, as the device measured it last.
    #[serde(rename = "memoryUsedKiB", skip_serializing_if = "Option::is_none")]
    pub memory_used_kib: Option<u64>,
    /// Memory of its monitor itself, without the guest's, in KiB.
    #[serde(rename = "monitorMemoryKiB", skip_serializing_if = "Option::is_none")]
    pub monitor_memory_kib: Option<u64>,
    /// When it was started last, by the device's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When the device last said something about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_reported: Option<Timestamp>,
    /// Aspects with reasons: `Ready`.
    pub conditions: Vec<Condition>,
}

/// Where an app stands.
///
/// ```text
/// Pending -> Fetching -> Preparing -> Starting -> Running
///    any of them -> Failed -> (the device tries again)
///    Running -> Stopping -> Stopped
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum AppPhase {
    /// The device has said nothing about it yet.
    #[default]
    Pending,
    /// The image is on its way.
    Fetching,
    /// The image is here; volumes are being made.
    Preparing,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It is being stopped.
    Stopping,
    /// It does not run, on purpose.
    Stopped,
    /// Something is wrong, see the message; the device tries again.
    Failed,
}

impl fmt::Display for AppPhase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

impl AppSpec {
    /// Isolation with the default filled in; a virtual machine is always in a machine of its own.
    pub fn effective_isolation(&self) -> Isolation {
        match self.kind {
            AppType::Vm => Isolation::Microvm,
            AppType::Container => self.isolation.unwrap_or_default(),
        }
    }
}

fn validate(spec: &AppSpec, errors: &mut Vec<FieldError>) {
    let mut wrong = |field: &str, message: String| errors.push(FieldError::new(field, message));
    if !is_dns_label(&spec.device) {
        wrong(
            "spec.device",
            format!("`{}` is not a device name", spec.device),
        );
    }
    if !is_dns_label(&spec.image.datastore) {
        wrong(
            "spec.image.datastore",
            format!("`{}` is not a datastore name", spec.image.datastore),
        );
    }
    if let Err(error) = spec.image.reference.parse::<ImageReference>() {
        wrong("spec.image.reference", error.to_string());
    }
    if !(1..=MAX_CPUS).contains(&spec.resources.cpus) {
        wrong(
            "spec.resources.cpus",
            format!("{} is not from 1 to {MAX_CPUS}", spec.resources.cpus),
        );
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&spec.resources.memory_mib) {
        wrong(
            "spec.resources.memoryMiB",
            format!(
                "{} is not from {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}",
                spec.resources.memory_mib
            ),
        );
    }
    validate_for_type(spec, &mut wrong);
    if let Some(args) = &spec.kernel_args
        && (args.len() > MAX_KERNEL_ARGS || args.chars().any(char::is_control))
    {
        wrong(
            "spec.kernelArgs",
            format!("must be one line of at most {MAX_KERNEL_ARGS} bytes"),
        );
    }
    if let Some(data) = &spec.user_data
        && data.len() > MAX_USER_DATA
    {
        wrong(
            "spec.userData",
            format!("{} bytes; at most {MAX_USER_DATA} fit", data.len()),
        );
    }
    validate_env(&spec.env, &mut wrong);
    validate_ports(&spec.ports, &mut wrong);
}

/// Refuses what has a meaning for the other type only, rather than passing over it in silence.
fn validate_for_type(spec: &AppSpec, wrong: &mut impl FnMut(&str, String)) {
    match spec.kind {
        AppType::Container => {
            if spec.kernel_args.is_some() {
                wrong(
                    "spec.kernelArgs",
                    "is for type vm only; a container has the device's guest kernel".to_owned(),
                );
            }
            if spec.user_data.is_some() {
                wrong(
                    "spec.userData",
                    "is for type vm only; a container takes env".to_owned(),
                );
            }
            if spec.image.format.is_some() {
                wrong("spec.image.format", "is for type vm only".to_owned());
            }
        }
        AppType::Vm => {
            if spec.isolation.is_some() {
                wrong(
                    "spec.isolation",
                    "is for type container only; a vm always has a machine of its own".to_owned(),
                );
            }
            if !spec.env.is_empty() {
                wrong(
                    "spec.env",
                    "is for type container only; a vm takes userData".to_owned(),
                );
            }
        }
    }
}

/// Variables travel as `NAME=value` lines, so a name holds no `=` and a value no line end.
fn validate_env(env: &BTreeMap<String, String>, wrong: &mut impl FnMut(&str, String)) {
    for (name, value) in env {
        let first = name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        if !first
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        {
            wrong(
                &format!("spec.env[{name}]"),
                "a name is letters, digits, `_`, `.` or `-`, and begins with a letter or `_`"
                    .to_owned(),
            );
        }
        if value.contains(['\n', '\r', '\0']) {
            wrong(
                &format!("spec.env[{name}]"),
                "a value has no line end and no NUL".to_owned(),
            );
        }
    }
    let size: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    if size > MAX_USER_DATA {
        wrong(
            "spec.env",
            format!("{size} bytes; at most {MAX_USER_DATA} fit"),
        );
    }
}

fn validate_ports(ports: &[PortMap], wrong: &mut impl FnMut(&str, String)) {
    if ports.len() > MAX_PORTS {
        wrong(
            "spec.ports",
            format!("{} port maps; at most {MAX_PORTS} fit", ports.len()),
        );
    }
    let mut taken = BTreeSet::new();
    for (position, port) in ports.iter().enumerate() {
        for (name, number) in [("device", port.device), ("app", port.app)] {
            if number == 0 {
                wrong(
                    &format!("spec.ports[{position}].{name}"),
                    "a port is from 1 to 65535".to_owned(),
                );
            }
        }
        if !taken.insert((port.protocol, port.device)) {
            wrong(
                &format!("spec.ports[{position}].device"),
                format!("{} port {} is mapped twice", port.protocol, port.device),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Object;

    fn container() -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "skerry.io/v1", "kind": "App", "metadata": {"name": "web"},
            "spec": {
                "device": "box-1", "type": "container", "isolation": "microvm",
                "image": {"datastore": "demo", "reference": format!("hello@sha256:{}", "0".repeat(64))},
                "resources": {"cpus": 1, "memoryMiB": 128},
                "env": {"GREETING": "hello"},
                "ports": [{"device": 8080, "app": 80, "protocol": "tcp"}]
            }
        })
    }

    fn fields(value: serde_json::Value) -> Vec<String> {
        let app: App = serde_json::from_value(value).unwrap();
        app.validate()
            .err()
            .map(|invalid| invalid.0.into_iter().map(|error| error.field).collect())
            .unwrap_or_default()
    }

    #[test]
    fn the_documented_app_is_valid() {
        assert_eq!(fields(container()), Vec::<String>::new());
        let app: App = serde_json::from_value(container()).unwrap();
        let again: App = serde_json::from_value(serde_json::to_value(&app).unwrap()).unwrap();
        assert_eq!(app, again);
    }

    #[test]
    fn each_wrong_field_is_named() {
        for (pointer, value, field) in [
            ("/apiVersion", serde_json::json!("v2"), "apiVersion"),
            ("/kind", serde_json::json!("Device"), "kind"),
            ("/metadata/name", serde_json::json!("Web"), "metadata.name"),
            ("/spec/device", serde_json::json!(""), "spec.device"),
            (
                "/spec/image/datastore",
                serde_json::json!("a/b"),
                "spec.image.datastore",
            ),
            (
                "/spec/image/reference",
                serde_json::json!("hello:latest"),
                "spec.image.reference",
            ),
            (
                "/spec/resources/cpus",
                serde_json::json!(0),
                "spec.resources.cpus",
            ),
            (
                "/spec/resources/memoryMiB",
                serde_json::json!(1),
                "spec.resources.memoryMiB",
            ),
            (
                "/spec/env/GREETING",
                serde_json::json!("two\nlines"),
                "spec.env[GREETING]",
            ),
            (
                "/spec/ports/0/app",
                serde_json::json!(0),
                "spec.ports[0].app",
            ),
        ] {
            let mut app = container();
            *app.pointer_mut(pointer).unwrap() = value;
            assert_eq!(fields(app), [field]);
        }
    }

    #[test]
    fn what_belongs_to_the_other_type_is_refused() {
        let mut app = container();
        app["spec"]["type"] = "vm".into();
        assert_eq!(fields(app), ["spec.isolation", "spec.env"]);
        let mut app = container();
        app["spec"]["kernelArgs"] = "quiet".into();
        app["spec"]["userData"] = "#cloud-config".into();
        app["spec"]["image"]["format"] = "raw".into();
        assert_eq!(
            fields(app),
            ["spec.kernelArgs", "spec.userData", "spec.image.format"]
        );
    }

    #[test]
    fn a_port_taken_twice_is_named() {
        let mut app = container();
        app["spec"]["ports"] = serde_json::json!([{"device": 80, "app": 1}, {"device": 80, "app": 2, "protocol": "udp"}, {"device": 80, "app": 3}]);
        assert_eq!(fields(app), ["spec.ports[2].device"]);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut app = container();
        app["spec"]["image"]["tag"] = "latest".into();
        assert!(
            serde_json::from_value::<App>(app)
                .unwrap_err()
                .to_string()
                .contains("tag")
        );
    }
}
